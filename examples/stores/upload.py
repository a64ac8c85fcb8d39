"""Put the input of the flights example into the bucket "lake", which SeaweedFS creates."""

import sys
import time
from pathlib import Path

import obstore
from obstore.exceptions import BaseError

FLIGHTS = Path(__file__).parent.parent / "flights" / "flights.parquet"
store = obstore.store.S3Store(
    "lake",
    endpoint=sys.argv[1],
    region="us-east-1",
    client_options={"allow_http": True},
    retry_config={"max_retries": 0},
)
for wait in [1] * 60:
    try:
        obstore.put(store, "flights/flights.parquet", FLIGHTS)
        break
    except BaseError:  # the server has just been started
        time.sleep(wait)
else:
    sys.exit("the store does not answer")
