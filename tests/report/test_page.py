"""report.html: it agrees with the proof, is self-contained, stays small, and never fails a run."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import itertools
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from support.runs import MODELS, cli, report_of, write

import scorer
from scorer.display import html as html_
from scorer.display import plots
from scorer.display.blocks import Section
from scorer.errors import RunFailed
from scorer.events import Counts, Proof, Receipt, Stages
from scorer.output.ledger import LEDGER, rows_of
from scorer.plan.parts import PlannedFile
from scorer.report import outcome
from scorer.report.html import _distributions as distributions
from scorer.report.html import _timeline as timeline
from scorer.report.html import page, sections
from scorer.storage.files import FileId

DENSE, GATHER = MODELS / "dense28.onnx", MODELS / "gather.onnx"
EVIL = "<script>alert(1)</script>"
LIMIT = 3_000_000


def page_of(output):
    """The page of a finished run."""
    return (Path(f"{output}.scorer") / "report.html").read_text("utf-8")


def words(text):
    """The text of a page, with single spaces."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture
def bad_rows(tmp_path):
    """A thousand rows of which four are bad, with errors that differ in numbers only."""
    index = np.arange(1000) % 10
    index[[3, 500, 501, 999]] = [77, 78, 79, 80]
    columns = {"idx": index, "name": [f"row {i}" for i in range(1000)]}
    return write(tmp_path / "in.parquet", columns, row_group_size=400)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The frozen plan of a small run."""
    folder = tmp_path_factory.mktemp("plan")
    columns = {f"f{i}": np.arange(100, dtype=np.float32) for i in range(28)}
    found = scorer.prepare(write(folder / "in.parquet", columns), DENSE, folder / "out")
    return found.check(), found


def made_up(parts, workers, threads, slow=()):
    """Receipts of parts with ten rows; a part takes one second, those in `slow` take five."""
    free = np.zeros(workers * threads)
    receipts = {}
    for i in range(parts):
        at = int(free.argmin())
        took = 5.0 if i in slow else 1.0
        began, free[at] = free[at], free[at] + took
        receipts[i] = Receipt(
            proof=Proof(part=i, plan="p", model="m", counts=Counts(rows=10, scored=10), digests={"y": "d" * 32}),
            name=f"part-{i:05d}.parquet", size=1000, worker=f"node{at // threads:04d}-1234", batch_rows=10, calls=1,
            started=1e9 + began, ended=1e9 + free[at], attempt="a" * 12,
            stages=Stages(read=0.1, infer=0.8 * took, write=0.05),
        )  # fmt: skip
    return receipts


def long_plan(frozen, parts):
    """The plan of another, larger input."""
    runs = ((10, parts),)
    file = PlannedFile(id=FileId("/in.parquet", 1, 1), folder="", row_groups=runs, parts=runs)
    return dataclasses.replace(frozen, files=(file,), plan_hash="")


def work_of(frozen, receipts, resumed=0, began="2001-09-09 01:46:39+00:00"):
    """The work that a ledger of these receipts describes."""
    return timeline.work_of(rows_of(long_plan(frozen, len(receipts)), receipts), began, resumed)


def test_the_page_of_a_run_agrees_with_its_report(backend, fewer28, tmp_path):
    report = scorer.run(fewer28, DENSE, tmp_path / "out", part_bytes="1MiB", batch_rows=2048, **backend)
    text = page_of(tmp_path / "out")
    seen = words(text)
    assert "60,000 rows in = 60,000 scored + 0 quarantined + 0 filtered" in seen
    for said in (str(tmp_path / "out"), report.plan, report.model, report.versions["onnxruntime"], "dense28.onnx"):
        assert said in seen
    assert f"{report.parts} parts" in seen
    largest = max(report.bottleneck.shares.values())
    near = [stage for stage, share in report.bottleneck.shares.items() if share > largest - 0.01]  # times are rounded
    assert any(f"To speed it up: {outcome._CHANGES[stage]}." in seen for stage in near)
    ledger = pq.read_table(tmp_path / "out.scorer" / "ledger.parquet").to_pylist()
    assert json.loads((tmp_path / "out.scorer" / "manifest.json").read_text())["ledger"] in seen
    for row in ledger:
        assert row["name"] in seen
        assert f"part {row['part']}: {row['rows']:,} rows in " in seen
        assert row["worker"] in seen
    assert "histogram of score" in text
    assert len(text) < LIMIT


def test_receipts_contain_the_start_and_the_end_of_each_part(backend, fewer28, tmp_path):
    seen = []
    report = scorer.run(
        fewer28, DENSE, tmp_path / "out", part_bytes="1MiB", observers=[seen.append], batch_rows=2048, **backend
    )
    receipts = [event.receipt for event in seen if isinstance(event, scorer.events.PartFinished)]
    assert len(receipts) == report.parts
    assert all(0 < receipt.ended - receipt.started <= report.seconds + 1 for receipt in receipts)
    assert all(Receipt.from_json(receipt.to_json()) == receipt for receipt in receipts)
    ledger = pq.read_table(tmp_path / "out.scorer" / "ledger.parquet")
    assert ledger["started"].null_count == ledger["ended"].null_count == 0
    assert sorted(ledger["ended"].to_pylist()) == sorted(receipt.ended for receipt in receipts)


def test_the_page_loads_nothing_and_links_only_to_itself(bad_rows, tmp_path):
    scorer.run(bad_rows, GATHER, tmp_path / "out", max_bad_rows=4)
    text = page_of(tmp_path / "out")
    assert not re.findall(r"https?:|\bsrc\s*=|@import|url\(|<(?:iframe|object|embed|img|form)", text)
    assert re.findall(r"<link[^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert all(target.startswith("#") for target in re.findall(r'<a [^>]*href="([^"]*)"', text))
    assert not re.search(r"<[^>]*\s(?:style|on\w+)\s*=", text)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_markup_in_names_and_values_is_escaped(tmp_path):
    index = np.arange(300) % 10
    index[7] = 77
    columns = {"idx": index, EVIL: [f"{EVIL}{i}" for i in range(300)], "where": np.arange(300)}
    source = write(tmp_path / f"{EVIL.replace('/', '')}'\"&.parquet", columns)
    scorer.run(
        source, GATHER, tmp_path / "out", keep=[EVIL], prefix=EVIL, max_bad_rows=1, row_id=True,
        where=["where < 250"], feed={"idx": ["idx"]},
    )  # fmt: skip
    text = page_of(tmp_path / "out")
    assert len(re.findall("<script", text)) == 1
    assert "alert(1)" in words(text)
    assert html.escape(EVIL) in text
    assert not re.search(r"<script>alert", text)


def test_quarantined_rows_are_shown_by_reason_with_examples(bad_rows, tmp_path):
    scorer.run(bad_rows, GATHER, tmp_path / "out", max_bad_rows=4, batch_rows=64)
    seen = words(page_of(tmp_path / "out"))
    assert "4 rows failed at infer" in seen
    assert "996 scored + 4 quarantined" in seen
    bad = pq.read_table(tmp_path / "out.scorer" / "quarantine").sort_by("_row").to_pylist()
    told = seen.split("4 rows failed at infer")[1]
    shown = [row for row in bad if f"in.parquet {row['_row']} {row['idx']} " in told]
    assert len(shown) == 3


def test_a_run_with_too_many_bad_rows_leaves_a_page_with_the_reason(bad_rows, tmp_path):
    notices = []
    with pytest.raises(RunFailed):
        scorer.run(bad_rows, GATHER, tmp_path / "out", batch_rows=64, observers=[notices.append])
    (path,) = (tmp_path / "out.scorer").glob("work-*/report.html")
    seen = words(path.read_text("utf-8"))
    assert seen.startswith("out: report of a scoring run not published")
    assert "4 rows could not be scored; nothing was published" in seen
    assert "4 rows failed at infer" in seen
    assert any(str(path) in getattr(event, "text", "") for event in notices)
    scorer.run(bad_rows, GATHER, tmp_path / "out", batch_rows=64, max_bad_rows=4)
    assert "could not be scored; nothing" not in words(page_of(tmp_path / "out"))


def test_a_page_that_fails_does_not_fail_the_run(bad_rows, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("of a plot")

    scorer.run(bad_rows, GATHER, tmp_path / "out", max_bad_rows=4, limit=900)
    notices = []
    with monkeypatch.context() as patch:
        patch.setattr(html_, "page", broken)
        report = scorer.run(
            bad_rows, GATHER, tmp_path / "out", max_bad_rows=4, overwrite=True, observers=[notices.append]
        )
    assert report.counts.scored == 996
    assert any("ZeroDivisionError('of a plot')" in getattr(event, "text", "") for event in notices)
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    assert page_of(tmp_path / "out") == "This report could not be written.\n"
    code, stdout, _ = cli("report", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(stdout) == {"report": str(tmp_path / "out.scorer" / "report.html")}
    assert "996 scored" in words(page_of(tmp_path / "out"))


def test_the_page_can_be_written_again_from_the_proof_alone(fewer28, tmp_path):
    scorer.run(fewer28, DENSE, tmp_path / "out", part_bytes="1MiB", batch_rows=2048)
    first = page_of(tmp_path / "out")
    (tmp_path / "out.scorer" / "report.html").unlink()
    for file in fewer28.iterdir():
        file.unlink()
    assert cli("report", tmp_path / "out")[0] == 0
    assert page_of(tmp_path / "out") == first


def test_a_report_is_read_back_from_its_file_and_from_one_of_an_older_version(bad_rows, tmp_path):
    report = scorer.run(bad_rows, GATHER, tmp_path / "out", max_bad_rows=4)
    written = report_of(tmp_path / "out")
    again = outcome.Report.from_dict(written).to_dict()
    shares = {data["bottleneck"].pop("shares")["infer"] for data in (again, written)}
    assert max(shares) - min(shares) < 0.02  # `scoring_s` is rounded in the file
    for data in (again, written):
        data.pop("bottleneck")
    assert json.loads(json.dumps(again)) == written
    older = {name: value for name, value in written.items() if name not in {"began", "nodes", "proof", "quarantine"}}
    read_back = outcome.Report.from_dict(older | {"unknown": 1})
    assert (read_back.counts, read_back.began, read_back.proof) == (report.counts, "", "")


def test_where_nothing_was_published_there_is_no_report(tmp_path):
    code, _, stderr = cli("report", tmp_path / "out")
    assert code == 5
    assert "no run of scorer has written here" in stderr


def test_the_command_on_the_page_makes_the_same_request(tmp_path):
    columns = {"idx": np.arange(100) % 10, "it's": np.arange(100), "b": np.arange(100)}
    source = write(tmp_path / "with space.parquet", columns)
    asked = {"keep": ["it's", "b"], "where": ["b < 90", "b >= 0"], "batch_rows": 32, "row_id": True, "tune": False}
    scorer.run(source, GATHER, tmp_path / "out", feed="idx=idx", **asked)
    command = sections.command(report_of(tmp_path / "out")["asked"])
    assert command in html.unescape(page_of(tmp_path / "out"))
    code, stdout, stderr = cli(*shlex.split(command.replace("\\\n", ""))[1:])
    assert code == 0, stderr
    assert "Done already" in stdout


@pytest.mark.slow
def test_a_hundred_thousand_parts_stay_under_three_megabytes_and_stragglers_are_seen(plan, tmp_path):
    frozen, asked = plan
    receipts = made_up(100_000, workers=250, threads=4, slow={5_000, 77_777})
    large = long_plan(frozen, 100_000)
    totals = outcome.total(receipts.values(), receipts, {}, 10, {})
    report = outcome.Report(
        output=str(tmp_path / "out"), already_done=False, parts=len(receipts), parts_resumed=totals.parts_resumed,
        parts_failed=dict.fromkeys(range(5_000), "x" * 500), counts=totals.counts, began="2001-09-09 01:46:39+00:00",
        seconds=120.0, rows_per_s=totals.rows_read / 120, threads=1000, scoring_s=110.0, stages=totals.stages,
        calls=totals.calls, output_bytes=totals.output_bytes, input_bytes=totals.input_bytes,
        peak_memory_bytes=10**9, sessions=totals.sessions, trial_sessions=0, device="cpu", batch_rows=10,
        batch_tokens=None, halved=totals.halved, model="m", plan="p", asked=asked.to_dict()["asked"],
        versions=scorer.host.versions.versions(), forecast=None,
    )  # fmt: skip
    ledger = rows_of(large, receipts)
    (one,) = large.scorers
    trials = ("256 rows: 1,000 rows/s", "1024 rows: 900 rows/s")
    bare = dataclasses.replace(one, binding=dataclasses.replace(one.binding, fetches=()), trials=trials)
    text = page.text(
        sections.Sources(
            plan=dataclasses.replace(large, scorers=(bare,)),
            report=report,
            ledger=ledger,
            parts=tmp_path,
            proof=tmp_path,
        )
    )
    assert len(text.encode()) < LIMIT
    seen = words(text)
    assert "2 slow parts took" in seen
    assert "part 77777: 10 rows in 5 s" in seen
    assert "and 99,980 more parts" in seen


def test_rows_per_second_add_up_to_the_rows(plan):
    done = work_of(plan[0], made_up(50, workers=3, threads=2, slow={7}))
    rates = [float(s.says.split()[0].replace("k", "e3")) for s in timeline.throughput(done).shapes]
    assert sum(rates) * done.span / timeline._BINS == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize(("parts", "drawn"), [(30, "stages"), (600, "parts"), (5_000, "busy")])
def test_parts_are_drawn_while_they_are_distinguishable_and_never_overlap(plan, parts, drawn):
    done = work_of(plan[0], made_up(parts, workers=3, threads=2, slow={parts // 2}))
    plot, how = timeline.lanes(done)
    assert how == drawn
    assert [tick.text for tick in plot.up] == ["node0000-1234", "node0001-1234", "node0002-1234"]
    slow = [s for s in plot.shapes if s.tint == "slow"]
    assert [s.says.split(":")[0] for s in slow] == [f"slow part {parts // 2}"]
    assert all(0 <= s.x <= s.x + s.width <= 100.2 and 0 <= s.y <= s.y + s.height <= 100 for s in plot.shapes)
    rows = {}
    for s in plot.shapes:
        if s.tint != "slow":
            rows.setdefault((s.y, s.says if drawn == "stages" else ""), []).append(s)
    for (_, says), shapes in rows.items():
        if not says:
            shapes.sort()
            assert all(a.x + a.width <= b.x + 0.15 for a, b in itertools.pairwise(shapes))


def test_more_workers_than_lines_are_drawn_in_groups(plan):
    plot, how = timeline.lanes(work_of(plan[0], made_up(2_000, workers=500, threads=1)))
    assert how == "busy"
    assert len(plot.up) == 40
    assert plot.up[0].text.startswith("node0000-1234 + 12")
    assert all("100% busy" in s.says for s in plot.shapes)


def test_parts_of_an_earlier_run_are_left_out_of_the_timeline(plan):
    receipts = made_up(20, workers=1, threads=1)
    late = {
        i: r if i < 8 else dataclasses.replace(r, started=r.started + 86_400, ended=r.ended + 86_400)
        for i, r in receipts.items()
    }
    done = work_of(plan[0], late, resumed=8, began="2001-09-10 01:46:47+00:00")
    assert (len(done.part), done.left_out) == (12, 8)
    assert done.span == pytest.approx(12)


def test_an_older_ledger_without_times_verifies_and_has_a_page(fewer28, tmp_path):
    scorer.run(fewer28, DENSE, tmp_path / "out", batch_rows=2048)
    path = tmp_path / "out.scorer" / "ledger.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["started", "ended"]), path)
    manifest = tmp_path / "out.scorer" / "manifest.json"
    values = json.loads(manifest.read_text()) | {"ledger": hashlib.sha256(path.read_bytes()).hexdigest()}
    manifest.write_text(json.dumps(values))
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    assert cli("report", tmp_path / "out")[0] == 0
    seen = words(page_of(tmp_path / "out"))
    assert "60,000 scored" in seen
    assert "Parts by worker" not in seen


def test_empty_input_has_a_page(tmp_path):
    source = write(tmp_path / "in.parquet", {c: np.empty(0, np.float32) for c in "abc"})
    scorer.run(source, MODELS / "named3.onnx", tmp_path / "out")
    assert "0 rows in = 0 scored" in words(page_of(tmp_path / "out"))


@pytest.fixture
def odd_scores(tmp_path):
    """A function that scores a column with an identity model and returns the text of the page."""

    def run(kind, onnx_type, values):
        made = make_graph(
            [make_node("Identity", ["x"], ["y"])], "same", [make_tensor_value_info("x", onnx_type, ["N"])],
            [make_tensor_value_info("y", onnx_type, ["N"])],
        )  # fmt: skip
        onnx.save(make_model(made, opset_imports=[make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
        write(tmp_path / "in.parquet", {"x": pa.array(values, kind)}, row_group_size=300)
        scorer.run(tmp_path / "in.parquet", tmp_path / "m.onnx", tmp_path / "out", keep="none")
        return words(page_of(tmp_path / "out"))

    return run


def test_nan_and_infinite_scores_are_counted_and_far_ones_not_drawn(odd_scores):
    values = np.linspace(0, 1, 2_000).astype(np.float32)
    values[:40], values[40:43], values[43] = np.nan, np.inf, 1e9
    seen = odd_scores(pa.float32(), TensorProto.FLOAT, values)
    assert "All 2,000 scored rows. Scored rows with a NaN: 40." in seen
    assert "NaN 40 (2.00%)" in seen
    assert "infinite 3 (0.15%)" in seen
    assert "not drawn" in seen


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0, math.nextafter(1.0, 2)], ("", "all values are almost equal")),
        ([0.0, 5e-324, 1e-323], ("", "all values are almost equal")),
        ([1.7e308, 1.6e308, 1.5e308], ("mean", "1.6e+296T")),
        ([-1.7e308, -1.7e308, 0.0, 1.7e308, 1.7e308], ("mean", "0")),
    ],
)
def test_scores_that_are_almost_equal_or_very_large_have_a_distribution(values, shown):
    sample = distributions.ScoreSample(table=pa.table({"y": values}), groups=1, rows=len(values))
    (found,) = distributions.distributions_of(sample)
    assert shown in found.facts
    assert (found.plot is None) == ("equal" in shown[1])


def test_few_distinct_integers_are_counted_one_by_one(odd_scores):
    assert "distinct values 3" in odd_scores(pa.int64(), TensorProto.INT64, [1, 1, 2, 5] * 50)


def test_lists_with_nulls_have_a_histogram_of_their_values():
    lists = pa.array([[1.0, 2.0], None, [3.0, float("nan")]] * 100, pa.list_(pa.float32(), 2))
    table = pa.table({"v": lists, "s": pa.array(["a", None, "b"] * 100).dictionary_encode(), "t": [b"x"] * 300})
    vector, text, raw = distributions.distributions_of(distributions.ScoreSample(table=table, groups=1, rows=300))
    assert ("nulls", "100 (33.33%)") in vector.facts
    assert ("NaN", "100 (25.00%)") in vector.facts
    assert vector.plot is not None
    assert [meter.label for meter in text.meters] == ["a", "b"]
    assert [meter.label for meter in raw.meters] == ["1 bytes"]


def test_the_sample_of_a_large_output_is_spread_over_it():
    picks = distributions._pick_groups(np.full(1000, 5_000), 1_000)
    assert len(picks) == len(set(picks)) == 32
    for few in (4, 8, 16, 32):
        gaps = np.diff(sorted(part for part, _ in picks[:few]))
        assert gaps.max() <= 3 * 1000 / few
    assert distributions._pick_groups(np.array([0, 3, 0, 2]), 1_000) == [(1, 0), (3, 0)]


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12), st.integers(2, 8))
def test_ticks_are_round_in_order_and_cover_the_span(low, span, about):
    found = plots.nice(low, low + span, about)
    if low + span == low:
        return
    assert found == sorted(found)
    assert len([tick for tick in found if low <= tick <= low + span]) <= about * 3


@given(st.floats(0.01, 1e7))
def test_time_has_a_few_ticks_inside_the_span(span):
    ticks = plots.time_ticks(span)
    assert 1 <= len(ticks) <= 22
    assert all(0 <= tick.at <= 100 for tick in ticks)


def test_the_ledger_s_columns_are_those_of_its_schema(plan):
    assert rows_of(long_plan(plan[0], 3), made_up(3, 1, 1)).schema == LEDGER


@pytest.mark.parametrize(("rates", "words"), [
    ({8: 10}, "the only size that was tried"), ({8: 10, 32: 9}, "the fastest size of those tried"),
    ({8: 10, 32: 11}, "no other size that was tried before the run was clearly faster"), ({}, "without tuning"),
])  # fmt: skip
def test_the_page_says_how_the_batch_size_was_chosen(plan, rates, words):
    trials = tuple(f"{rows:,} rows: {rate:,} rows/s" for rows, rate in rates.items())
    scorer = dataclasses.replace(plan[0].scorers[0], batch_rows=8, trials=trials)
    assert words in str(sections._batch_size(scorer)[0])


def test_short_parts_are_never_slow(plan):
    took = made_up(50, workers=3, threads=2, slow={7})
    short = {i: dataclasses.replace(one, ended=one.started + (one.ended - one.started) / 10) for i, one in took.items()}
    assert timeline.is_slow(work_of(plan[0], took)).sum() == 1
    assert timeline.is_slow(work_of(plan[0], short)).sum() == 0


@pytest.mark.parametrize(("began", "shown"), [
    ("2026-11-30 13:21:22+02:00", "2026-11-30 13:21:22 local time (11:21:22 UTC)"),
    ("2026-11-30 01:21:22+02:00", "2026-11-30 01:21:22 local time (2026-11-29 23:21:22 UTC)"),
    ("2026-11-30 11:21:22+00:00", "2026-11-30 11:21:22 UTC"), ("", ""),
])  # fmt: skip
def test_the_page_shows_the_local_time_beside_utc(began, shown):
    assert page._local_and_utc(began) == shown


def test_the_label_of_a_line_is_beside_the_bars_and_not_over_them(plan):
    done = work_of(plan[0], made_up(50, workers=3, threads=2))
    plot = timeline.throughput(done)
    more = {"title": "", "under": "", "state": {"text": "", "tone": ""}, "error": "", "equation": "", "tiles": []}
    drawn = html_.page("report.html", sections=[Section(name="a", title="a", link="a", blocks=[plot])], **more)
    (picture,) = re.findall(r'<svg class="frame".*?</svg>', drawn, re.DOTALL)
    assert "mean" in drawn
    assert "mean" not in picture
