"""Show the predictions for the penguins of 2009, which were not used for training.

    python show.py [SCORED]

SCORED is the folder (or file) that scorer wrote.  The default is scores beside this
script.  The script needs pandas and pyarrow.
"""

import argparse
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds

DEFAULT = Path(__file__).resolve().parent / "scores"
LAST_YEAR = 2009
UNSURE = 0.8


def read_scores(path: Path) -> pd.DataFrame:
    """Read the scored penguins."""
    if not path.exists():
        message = f"{path} does not exist; run scorer first"
        raise SystemExit(message)
    frame: pd.DataFrame = ds.dataset(path, format="parquet").to_table().to_pandas()
    return frame


def main() -> None:
    """Print the predicted and the true species, and the penguins with a doubtful or wrong prediction."""
    parser = argparse.ArgumentParser(description="Compare the predicted species with the true one.")
    parser.add_argument("scored", type=Path, nargs="?", default=DEFAULT)
    every = read_scores(parser.parse_args().scored)
    chances = every.filter(regex="^chance_")
    every = every.assign(sure=chances.max(axis=1))
    seen = every[every["year"] == LAST_YEAR]

    print(f"{len(every)} penguins scored, {len(seen)} of {LAST_YEAR}: predicted from left to right\n")
    print(pd.crosstab(seen["species"], seen["predicted"]).rename_axis(index=None, columns=None).to_string())

    doubtful = every[(every["sure"] < UNSURE) | (every["species"] != every["predicted"])]
    print(f"\n{len(doubtful)} doubtful or wrong predictions of all years:\n")
    shown = doubtful[["year", "island", "sex", "bill_length_mm", "species", "predicted", "sure"]]
    print(shown.to_string(index=False, na_rep="?", float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
