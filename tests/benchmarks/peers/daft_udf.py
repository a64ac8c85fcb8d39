"""Daft: a class whose batch method scores, on the native runner, between read_parquet and write_parquet.

    python daft_udf.py JOB.json

Daft's pages on UDFs advise: a class for state that is costly to load, batch methods that get whole Series, a batch size
if the model needs one, and a separate process only for code that holds the GIL. The runtime and the tokenizers release
the GIL, so Daft's threads share one session. Numbers come in Daft's own morsels, texts 32 at a time. Daft writes rows
as they are ready, so their order is lost.
"""

from __future__ import annotations

import os
import sys

import _shared


def main():
    """Read, score, write."""
    job = _shared.read_job("daft")
    os.environ |= {"DAFT_PROGRESS_BAR": "0", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "true"}
    import daft
    import pyarrow as pa

    types = _shared.arrow_types(job)
    names, fed = list(types), _shared.fed(job)
    given = daft.DataType.from_arrow_type(types[names[0]] if len(names) == 1 else pa.struct(list(types.items())))

    @daft.cls(use_process=False)
    class Scorer:
        def __init__(self):
            self.model = _shared.Model(job)

        @daft.method.batch(
            return_dtype=given, unnest=len(names) > 1, batch_size=_shared.TEXT_ROWS if _shared.has_text(job) else None
        )
        def score(self, *series: daft.Series):
            scores = self.model({name: _shared.to_numpy(one.to_arrow()) for name, one in zip(fed, series, strict=True)})
            columns = [_shared.to_arrow(scores[name], kind) for name, kind in types.items()]
            return columns[0] if len(names) == 1 else pa.StructArray.from_arrays(columns, names)

    daft.set_runner_native()
    rows = daft.read_parquet(job["input"]).select(*job["columns"])
    scores = Scorer().score(*(daft.col(name) for name in fed))
    scores = scores.alias(names[0]) if len(names) == 1 else scores
    rows.select(*job["keep"], scores).write_parquet(job["output"], compression=job["codec"])
    _shared.done("daft")
    sys.stdout.flush()
    os._exit(0)  # the output is written; Daft 0.7.26 now and then crashes when the interpreter shuts down


if __name__ == "__main__":
    main()
