"""Spark: a predict_batch_udf between read.parquet and write.parquet, on all cores of this machine.

    python spark_udf.py JOB.json

Spark's pages on predict_batch_udf and on Arrow advise: a function that loads the model once in each Python worker,
workers that are reused, Arrow batches as large as the model's. Columns of one tensor are sent as one struct, which
arrives as a frame. Spark splits files between row groups; if there are fewer row groups than needed for all cores, rows
are repartitioned first. Spark does not keep the order of rows.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys

import _shared


def session(job, cores):
    """Return a local Spark session that logs only errors."""
    from pyspark.sql import SparkSession

    settings = {
        "spark.driver.memory": "4g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "ERROR",
        "spark.python.worker.reuse": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": _shared.batch_rows(job),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.parquet.compression.codec": job["codec"],
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(f"local[{cores}]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def scorer(job, *, packed):
    """Return the UDF; with `packed`, all its columns are one tensor."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.pandas.types import from_arrow_type
    from pyspark.sql.types import StructType

    feeds, fed, types = job["feeds"], _shared.fed(job), _shared.arrow_types(job)
    parameters = ["rows"] if packed else [f"column{i}" for i in range(len(fed))]

    def make():
        model = _shared.Model(job)

        def predict(*arrays):
            if packed:
                found = model.infer({feeds[0]["tensor"]: arrays[0].astype(feeds[0]["dtype"], order="C", copy=False)})
            else:
                found = model(dict(zip(fed, arrays, strict=True)))
            return found if len(types) > 1 else found[next(iter(types))]

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD  # Spark counts them
        predict.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in parameters])
        return predict

    kinds = {name: from_arrow_type(kind) for name, kind in types.items()}
    struct = StructType()
    for name, kind in kinds.items():
        struct.add(name, kind)
    nested = {fed.index(feed["columns"][0]): feed["shape"] for feed in feeds if feed["kind"] == "nested"}
    return predict_batch_udf(
        make, return_type=struct if len(kinds) > 1 else next(iter(kinds.values())),
        batch_size=_shared.batch_rows(job), input_tensor_shapes=nested or None,
    )  # fmt: skip


def named(name):
    """Return a column, with any characters in its name."""
    from pyspark.sql.functions import col

    return col("`" + name.replace("`", "``") + "`")


def main():
    """Read, score, write."""
    job = _shared.read_job("pyspark", "pandas")
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        _shared.cannot("Java is not installed")
    odd = {fetch["type"] for fetch in job["fetches"] if fetch["type"] == "bool" or fetch["type"].startswith("uint")}
    if odd:
        _shared.cannot(f"predict_batch_udf gives no {' '.join(sorted(odd))}")
    _shared.reachable()
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    from pyspark.sql.functions import struct

    cores, text = _shared.cores(), _shared.has_text(job)
    spark = session(job, cores)
    rows = spark.read.parquet(*job["input"]).select(*map(named, job["columns"]))
    if _shared.uncut(job, cores * 8 if text else cores):
        rows = rows.repartition(cores * 8)
    columns = [named(name) for name in _shared.fed(job)]
    packed = len(job["feeds"]) == 1 and job["feeds"][0]["kind"] == "numeric" and len(columns) > 1
    scores = scorer(job, packed=packed)(*([struct(*columns)] if packed else columns))
    kept, names = [named(name) for name in job["keep"]], list(_shared.arrow_types(job))
    if len(names) == 1:
        scored = rows.select(*kept, scores.alias(names[0]))
    else:
        scored = rows.select(*kept, scores.alias("of the model")).select(*kept, "`of the model`.*")
    scored.write.parquet(job["output"])
    spark.stop()
    _shared.done("pyspark", "pandas")


if __name__ == "__main__":
    main()
