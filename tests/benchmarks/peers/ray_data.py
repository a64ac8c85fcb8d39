"""Ray Data: read_parquet, map_batches with a pool of actors, write_parquet.

    python ray_data.py JOB.json

Ray's pages on batch inference advise: a class whose constructor loads the model, a fixed pool of actors, Arrow batches
of a size that suits the model, select_columns so that nothing else is read, and block sizes left to Ray. Actors,
readers and writers get half a core each, so that all of them run; with a whole core each, the actors would leave no
core to the readers. A small input of texts is one block, which only one actor would get. So it is split into blocks of
a few batches.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings

import _shared

SHARE = 0.5  # of a core
TEXTS = 4 * _shared.TEXT_ROWS


class Scorer:
    """The state of one actor."""

    def __init__(self, job):
        self.job, self.types, self.model = job, _shared.arrow_types(job), _shared.Model(job)

    def __call__(self, table):
        scores = self.model({name: _shared.to_numpy(table[name]) for name in _shared.fed(self.job)})
        table = table.select(self.job["keep"])
        for name, kind in self.types.items():
            table = table.append_column(name, _shared.to_arrow(scores[name], kind))
        return table


def score(job):
    """Read, score, write."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    rows = ray.data.read_parquet(job["input"], num_cpus=SHARE).select_columns(job["columns"])
    if _shared.has_text(job):
        rows = rows.repartition(target_num_rows_per_block=TEXTS)
    scored = rows.map_batches(
        Scorer, fn_constructor_args=[job], batch_size=_shared.batch_rows(job), batch_format="pyarrow", num_cpus=SHARE,
        compute=ray.data.ActorPoolStrategy(size=_shared.cores()), udf_modifying_row_count=False,
    )  # fmt: skip
    scored.write_parquet(
        job["output"], compression=job["codec"], row_group_size=job["row_group_rows"],
        min_rows_per_file=job["row_group_rows"], ray_remote_args={"num_cpus": SHARE},
    )  # fmt: skip


def main():
    """Score on a Ray cluster of this machine, which is stopped at the end."""
    job = _shared.read_job("ray")
    _shared.reachable()
    os.environ |= {
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_DATA_LIST_FILES_THREADED_NUM_WORKERS": "1",  # threads trip over fsspec where aiohttp is missing
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import ray

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=_shared.cores(), include_dashboard=False, log_to_driver=False, configure_logging=False,
            _temp_dir=folder,
        )  # fmt: skip
        try:
            score(job)
        finally:
            ray.shutdown()
    _shared.done("ray")


if __name__ == "__main__":
    main()
