"""The time forecast: what a part costs besides its rows, and threads that get no part."""

from __future__ import annotations

import numpy as np
import pytest
from support.runs import MODELS, write

import scorer
from scorer.preflight.forecast import part_seconds


def folder(tmp_path, files):
    """Write a Hive folder of small files."""
    columns = {f"f{i}": np.zeros(50, np.float32) for i in range(28)}
    for day in range(files):
        write(tmp_path / "in" / f"day={day:03}" / "a.parquet", columns)
    return tmp_path / "in"


def test_each_file_counts_in_the_time_forecast(tmp_path):
    files = 60
    report = scorer.run(folder(tmp_path, files), MODELS / "dense28.onnx", tmp_path / "out", threads=2, progress=False)
    low, high = report.forecast["seconds"]
    assert report.parts == files
    assert low >= 0.7 * files * part_seconds(0.0) / 2
    assert low / 3 <= report.scoring_s <= 3 * high  # other tests run beside this one


def test_a_thread_without_a_part_does_not_make_the_forecast_shorter(tmp_path):
    source = folder(tmp_path, 1)
    two, many = (scorer.prepare(source, MODELS / "dense28.onnx", tmp_path / "out", threads=n) for n in (2, 64))
    assert many.forecast.seconds[0] >= 0.7 * part_seconds(0.0)
    assert two.forecast.seconds[0] >= 0.7 * part_seconds(0.0)


def test_every_small_file_of_a_joined_part_counts_in_the_time_forecast(tmp_path):
    columns = {f"f{i}": np.zeros(50, np.float32) for i in range(28)}
    for file in range(90):
        write(tmp_path / "in" / f"{file:03}.parquet", columns)
    flags = {"threads": 2, "feed": "input=f0..f27", "file_rows": 90 * 50}
    plan = scorer.prepare(tmp_path / "in", MODELS / "dense28.onnx", tmp_path / "out", **flags)
    assert plan.frozen.n_parts == 1
    assert part_seconds(0.0, 90) == pytest.approx(0.188)
    assert plan.forecast.seconds[0] >= 0.7 * part_seconds(0.0, 90)


@pytest.mark.parametrize(("open_s", "expected"), [(0.0, 0.01), (0.001, 0.02), (1.0, 0.1)])
def test_a_slow_disk_makes_parts_dearer_up_to_a_limit(open_s, expected):
    assert part_seconds(open_s) == pytest.approx(expected)
