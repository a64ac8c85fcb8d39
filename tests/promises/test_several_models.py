"""Several models score the rows of one read: each gives the scores of a run of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.ensemble import RandomForestClassifier
from support.runs import FLIGHTS, MODELS, cli, oracle, read, write
from support.trained_trees import sklearn_model

import scorer
from scorer.arrow import digest
from scorer.cli.flags import options_of
from scorer.cluster import connect
from scorer.cluster.readiness import plan_for
from scorer.errors import GateFailed
from scorer.model import spec
from scorer.options.models import ModelPath, parse_models
from scorer.options.request import as_flags, build
from scorer.plan.frozen import FrozenPlan

DENSE, SUM = MODELS / "dense28.onnx", MODELS / "sum3.onnx"
BOTH = {"champion": DENSE, "challenger": SUM}
FEED = ["challenger:x=f0..f2"]
HERE = {"cluster": "synchronous", "tune": False}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A file with 72 columns, of which the champion is fed 28, and the challenger three of these."""
    rng = np.random.default_rng(3)
    columns = {f"f{i}": rng.standard_normal(3000, dtype=np.float32) for i in range(28)}
    columns |= {f"k{i}": rng.integers(0, 9, 3000) for i in range(44)}
    return write(tmp_path_factory.mktemp("wide") / "in.parquet", columns, row_group_size=1000)


def outputs(folder, *names):
    table = pq.read_table(folder)
    return [table[name].combine_chunks() for name in names]


def test_each_model_gives_the_scores_of_a_run_of_its_own(wide, tmp_path, backend):
    options = {"part_bytes": "64KiB", "batch_rows": 256, **backend}
    report = scorer.run(wide, BOTH, tmp_path / "both", feed=FEED, **options)
    scorer.run(wide, DENSE, tmp_path / "one", **options)
    scorer.run(wide, SUM, tmp_path / "other", feed="x=f0..f2", **options)
    assert report.counts.scored == 3000
    assert pq.read_schema(next((tmp_path / "both").glob("*.parquet"))).names[-2:] == [
        "champion_score", "challenger_total",
    ]  # fmt: skip
    both = outputs(tmp_path / "both", "champion_score", "challenger_total")
    assert both == [*outputs(tmp_path / "one", "score"), *outputs(tmp_path / "other", "total")]
    kept = pq.read_table(wide)
    assert pq.read_table(tmp_path / "both", columns=kept.column_names).equals(kept)
    verdict = scorer.verify(tmp_path / "both", deep=True, rescore=100)
    assert verdict.whole
    assert "all have the same bits" in verdict.to_dict()["rescored"]


def test_the_same_command_scores_nothing_again_and_another_model_is_another_request(wide, tmp_path):
    scorer.run(wide, BOTH, tmp_path / "out", feed=FEED, **HERE)
    assert scorer.run(wide, BOTH, tmp_path / "out", feed=FEED, **HERE).already_done
    others = {
        "the models 'champion', 'challenger', now the models 'challenger', 'champion'": dict(reversed(BOTH.items())),
        "the contents of the model 'champion'": BOTH | {"champion": SUM},
    }
    for words, models in others.items():
        with pytest.raises(scorer.errors.ScorerError) as caught:
            scorer.run(wide, models, tmp_path / "out", feed=[*FEED, "champion:x=f0..f2"], **HERE)
        assert words in str(caught.value)


def test_each_model_has_batches_of_its_own(wide, tmp_path):
    """A model that takes three rows at a time and one that takes any number are fed the same rows."""
    feed = ["a:x=f0,f1", "b:x=f0..f2"]
    scorer.run(wide, {"a": MODELS / "fixed3.onnx", "b": SUM}, tmp_path / "out", feed=feed, **HERE)
    scorer.run(wide, MODELS / "fixed3.onnx", tmp_path / "one", feed="x=f0,f1", **HERE)
    assert outputs(tmp_path / "out", "a_y_0", "a_y_1") == outputs(tmp_path / "one", "y_0", "y_1")
    matrix = np.stack([pq.read_table(wide)[f"f{i}"].to_numpy() for i in range(3)], axis=1)
    assert outputs(tmp_path / "out", "b_total")[0].to_pylist() == oracle(SUM, {"x": matrix})["total"].tolist()


def test_a_row_that_one_model_cannot_score_is_bad_and_its_error_names_the_model(tmp_path):
    columns = {"a": ["x", "1", None, "3"], "f": pa.array([0.0, 1.0, 2.0, 3.0], pa.float32())}
    source = write(tmp_path / "in.parquet", columns)
    feed = ["first:x=f,f,f", "second:x=(a)|vocab(1, 3),f,f"]
    options = {"feed": feed, "on_null": ["second:x=error"], "max_bad_rows": 4, **HERE}
    report = scorer.run(source, {"first": SUM, "second": SUM}, tmp_path / "out", **options)
    assert (report.counts.scored, report.counts.quarantined) == (2, 2)
    (bad,) = (tmp_path / "out.scorer" / "quarantine").glob("*.parquet")
    rows = pq.read_table(bad)
    assert rows["_row"].to_pylist() == [0, 2]
    assert set(rows["_stage"].to_pylist()) == {"feed"}
    assert all(text.startswith("second: ") for text in rows["_error"].to_pylist())
    assert read(tmp_path / "out")["first_total"].to_pylist() == [3.0, 9.0]


def test_a_feed_without_a_name_is_for_every_model_that_has_the_tensor(wide, tmp_path):
    plan = scorer.prepare(wide, {"a": SUM, "b": SUM, "c": DENSE}, tmp_path / "out", feed=["x=f3,f4,f5"], **HERE)
    fed = {one.name: one.binding.fed for one in plan.check().scorers}
    assert fed["a"] == fed["b"] == ("f3", "f4", "f5")
    assert len(fed["c"]) == 28


def test_fetches_labels_and_policies_may_name_a_model(wide, tmp_path):
    options = {"feed": FEED, "fetch": ["challenger:total=p"], "on_null": ["challenger:error"], **HERE}
    plan = scorer.prepare(wide, BOTH, tmp_path / "out", prefix="x_", **options).check()
    assert plan.outputs == ("x_champion_score", "x_challenger_p")
    policies = {one.name: {feed.on_null for feed in one.binding.feeds} for one in plan.scorers}
    assert policies == {"champion": {"nan"}, "challenger": {"error"}}


@pytest.mark.parametrize(
    ("option", "typed", "hint"),
    [
        ("feed", "challengr:x=f0..f2", "--feed challenger:x=f0..f2"),
        ("fetch", "champ:score=p", "--fetch champion:score=p"),
        ("on_null", "chamion:nan", "--on-null champion:nan"),
    ],
)  # fmt: skip
def test_a_misspelt_name_of_a_model_is_one_error_with_the_right_name(wide, tmp_path, option, typed, hint):
    plan = scorer.prepare(wide, BOTH, tmp_path / "out", **{"feed": FEED, option: [typed], **HERE})
    (problem,) = plan.problems
    assert (problem.what, problem.hint) == ("no model has this name", hint)


def test_a_plan_of_several_models_comes_back_from_json_with_the_same_hash(wide, tmp_path):
    plan = scorer.prepare(wide, BOTH, tmp_path / "out", feed=FEED, **HERE).check()
    data = json.loads(json.dumps(plan.to_dict()))
    assert [one["name"] for one in data["scorers"]] == ["champion", "challenger"]
    again = FrozenPlan.from_dict(data)
    assert (again.plan_hash, again.outputs, again.kept) == (plan.plan_hash, plan.outputs, plan.kept)
    data["scorers"][0]["batch_rows"] += 1
    with pytest.raises(ValueError, match=plan.plan_hash):
        FrozenPlan.from_dict(data)


def test_flags_and_job_files_and_python_name_the_same_models(wide, tmp_path):
    typed = build({"input": str(wide), "model": ["a=m.onnx", "b=s3://bucket/k=1/n.onnx"]})
    assert typed.model == (ModelPath("a", "m.onnx"), ModelPath("b", "s3://bucket/k=1/n.onnx"))
    assert build({"input": str(wide), "model": typed.to_dict()["model"]}).model == typed.model
    assert as_flags(typed.non_defaults()) == []
    assert parse_models({"a": "m.onnx", "b": "s3://bucket/k=1/n.onnx"}) == typed.model
    assert parse_models("s3://bucket/k=1/n.onnx") == (ModelPath("", "s3://bucket/k=1/n.onnx"),)
    job = tmp_path / "job.toml"
    job.write_text(f'input = "{wide}"\nfeed = ["challenger:x=f0..f2"]\n[model]\nchampion = "{DENSE}"\n'
                   f'challenger = "{SUM}"\n', "utf-8")  # fmt: skip
    code, shown, _ = cli("plan", "--config", job, "--output", tmp_path / "out", "--no-tune", "--json")
    assert code == 0
    assert set(json.loads(shown)["model"]) == {"champion", "challenger"}


def test_a_frame_is_scored_by_several_models(wide):
    table = pq.read_table(wide)
    scored = scorer.score(table, BOTH, feed=FEED, keep="none")
    assert scored.column_names == ["champion_score", "challenger_total"]
    matrix = np.stack([table[f"f{i}"].to_numpy() for i in range(3)], axis=1)
    assert scored["challenger_total"].to_pylist() == oracle(SUM, {"x": matrix})["total"].tolist()


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Flights, and two ensembles for them: one of LightGBM, and a forest of scikit-learn."""
    top = tmp_path_factory.mktemp("trees")
    flights = pq.read_table(FLIGHTS / "flights.parquet").slice(0, 21_000)  # enough rows for the compiled kernel
    onnx.save(sklearn_model(RandomForestClassifier(10, max_depth=6, random_state=0)), top / "forest.onnx")
    return write(top / "flights.parquet", flights, row_group_size=7000), FLIGHTS / "late.onnx", top / "forest.onnx"


FOREST = "x=day,flight,sched_dep_time,dep_delay,sched_arr_time,distance,hour,minute,day,flight,hour,minute"


@pytest.mark.slow
def test_ensembles_on_the_compiled_kernel_and_other_models_score_together(trees, tmp_path):
    source, late, forest = trees
    models = {"late": late, "forest": forest, "sum": SUM}
    feed = [f"forest:{FOREST}", "sum:x=dep_delay,distance,hour"]
    report = scorer.run(source, models, tmp_path / "out", feed=feed, keep="none", cluster="embedded", tune=False)
    assert "late: " in report.trees
    assert "forest: " in report.trees
    assert "sum: " not in report.trees
    both = read(tmp_path / "out")
    for name, flags in {"late": (), "forest": (FOREST,), "sum": ("x=dep_delay,distance,hour",)}.items():
        scorer.run(source, models[name], tmp_path / name, feed=flags, keep="none", cluster="embedded", tune=False)
        alone = read(tmp_path / name)
        for column in alone.column_names:
            assert digest(alone[column]) == digest(both[f"{name}_{column}"])
    assert scorer.verify(tmp_path / "out", rescore=20).whole  # by ONNX Runtime alone


def test_a_row_is_replayed_through_each_model(wide, tmp_path):
    scorer.run(wide, BOTH, tmp_path / "out", feed=FEED, fetch=["challenger:total=p"], **HERE)
    code, text, errors = cli("replay", tmp_path / "out", "--row", 1234, "--json")
    assert code == 0, errors
    found = json.loads(text)
    row = pq.read_table(wide).slice(1234, 1)
    matrix = np.array([[row[f"f{i}"][0].as_py() for i in range(28)]], np.float32)
    fed = {name: np.array(one["values"], np.float32) for name, one in found["fed"].items()}
    (x,) = [name for name in fed if name.startswith("champion:")]
    assert fed[x].tobytes() == matrix.tobytes()
    assert fed["challenger:x"].tobytes() == matrix[:, :3].tobytes()
    total = oracle(SUM, {"x": matrix[:, :3]})["total"]
    assert np.array(found["returned"]["challenger:total"]["values"], np.float32).tolist() == total.tolist()
    assert {name: one["equal"] for name, one in found["scores"].items()} == {
        "champion_score": True, "challenger_p": True,
    }  # fmt: skip
    assert found["model"] == {name: str(path) for name, path in BOTH.items()}
    assert (found["row_of_file"], found["faults"]) == (1234, [])
    code, text, _ = cli("replay", tmp_path / "out", "--row", 1234)
    assert f"{SUM} ({found['digest']['challenger'][:16]})" in text
    assert "challenger:total" in text


def test_gates_compare_the_models_and_publish_nothing_if_they_differ(wide, tmp_path):
    options = {"feed": FEED, "fetch": ["champion:score=p", "challenger:total=p"], "keep": "none", **HERE}
    gates = ["max_diff(champion.p, challenger.p) <= 0.001", "mean(champion.p) - mean(challenger.p) < 1000"]
    with pytest.raises(GateFailed) as caught:
        scorer.run(wide, BOTH, tmp_path / "out", gate=gates, **options)
    assert not (tmp_path / "out").exists()
    scorer.run(wide, BOTH, tmp_path / "plain", **options)
    frame = read(tmp_path / "plain").to_pandas().astype(float)
    differ = (frame["champion_p"] - frame["challenger_p"]).abs()
    assert f"row {differ.idxmax():,} of in.parquet" in caught.value.found
    gates[0] = "max_diff(champion.p, challenger.p) <= 1000"
    report = scorer.run(wide, BOTH, tmp_path / "out", gate=gates, **options)
    assert report.calls == 0  # the staged parts are published
    assert report.gates[0]["figure"] == differ.max()
    means = frame["champion_p"].mean() - frame["challenger_p"].mean()
    assert report.gates[1]["figure"] == pytest.approx(means, rel=1e-12)


def test_each_file_says_which_models_it_is_from(wide, tmp_path):
    scorer.run(wide, BOTH, tmp_path / "out", feed=FEED, **HERE)
    plan = json.loads((tmp_path / "out.scorer" / "plan.json").read_text("utf-8"))
    (file,) = (tmp_path / "out").glob("*.parquet")
    digests = {one["name"]: one["session"]["digest"] for one in plan["scorers"]}
    code, text, _ = cli("lineage", file, "--json")
    assert code == 0
    assert json.loads(text)["model"] == {
        name: {"path": str(path), "digest": digests[name]} for name, path in BOTH.items()
    }
    lines = pq.read_metadata(file).metadata[b"_scorer_model"].decode().split("\n")
    assert lines == [f"{name}={path} sha256:{digests[name]}" for name, path in BOTH.items()]
    code, text, _ = cli("lineage", file)
    for name, path in BOTH.items():
        assert f"model {name}" in text
        assert str(path) in text
        assert digests[name] in text


def test_new_files_are_scored_with_all_models(wide, tmp_path):
    table = pq.read_table(wide)
    options = {"feed": FEED, "new_only": True, **HERE}
    write(tmp_path / "in" / "a.parquet", table.slice(0, 1000))
    scorer.run(tmp_path / "in", BOTH, tmp_path / "out", **options)
    write(tmp_path / "in" / "b.parquet", table.slice(1000))
    report = scorer.run(tmp_path / "in", BOTH, tmp_path / "out", **options)
    assert report.counts.scored == 2000
    scorer.run(wide, BOTH, tmp_path / "whole", feed=FEED, **HERE)
    names = ["champion_score", "challenger_total"]
    assert outputs(tmp_path / "out", *names) == outputs(tmp_path / "whole", *names)


def test_a_transform_feeds_all_models(wide, tmp_path, monkeypatch):
    code = "def add(frame):\n    return frame.assign(g=frame['f0'] + frame['f1'])\n"
    (tmp_path / "sums_of_two.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    models = {"a": SUM, "b": SUM}
    feed = ["a:x=g,f1,f2", "b:x=f0,g,g"]
    scorer.run(wide, models, tmp_path / "out", feed=feed, transform="sums_of_two:add", keep="none", **HERE)
    f = {name: pq.read_table(wide)[name].to_numpy() for name in ("f0", "f1", "f2")}
    g = f["f0"] + f["f1"]
    for name, columns in {"a_total": (g, f["f1"], f["f2"]), "b_total": (f["f0"], g, g)}.items():
        expected = oracle(SUM, {"x": np.stack(columns, axis=1)})["total"]
        assert outputs(tmp_path / "out", name)[0].to_pylist() == expected.tolist()


def test_each_large_model_is_packed_for_itself(wide, tmp_path, monkeypatch):
    """A sum has less to share than the dense model, but both are packed if both are called large; trees never are."""
    monkeypatch.setattr(spec, "_LARGE_BYTES", 0)
    models = {**BOTH, "late": FLIGHTS / "late.onnx"}
    feed = [*FEED, "late:features=f0..f7"]
    plan = scorer.prepare(wide, models, tmp_path / "out", feed=feed, cluster="processes", workers=2, tune=False)
    assert plan.weights.count("packed once for 2 processes") == 2
    assert "champion: " in plan.weights
    assert "challenger: " in plan.weights
    workers = connect.Workers(client=None, description="", own_scheduler=True, remote=True)
    frozen = plan_for(workers, plan.check(), plan)
    assert [one.session.pack for one in frozen.scorers] == [True, True, False]
    assert frozen.plan_hash == plan.check().plan_hash
    alone = replace(plan, options=replace(plan.options, session=replace(plan.options.session, pack=False)))
    assert not any(one.session.pack for one in plan_for(workers, plan.check(), alone).scorers)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["embedded", "processes"])
def test_a_run_that_is_killed_is_finished_by_the_same_command(wide, tmp_path, cluster):
    words = [
        sys.executable, "-m", "scorer", "run", str(wide), *(f"--model={name}={path}" for name, path in BOTH.items()),
        "--feed", FEED[0], "--part-bytes", "8KiB", "--batch-rows", "16", "--cluster", cluster, "--threads", "1",
        "--output", str(tmp_path / "out"), "--no-tune", "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(words, start_new_session=True)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None and not parts(tmp_path):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    staged = len(parts(tmp_path))
    assert staged
    done = subprocess.run([*words, "--json"], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert staged <= report["parts_resumed"] < report["parts"]
    scorer.run(wide, BOTH, tmp_path / "whole", feed=FEED, batch_rows=16, **HERE)
    assert read(tmp_path / "out").equals(read(tmp_path / "whole"))
    assert scorer.verify(tmp_path / "out", deep=True, rescore=50).whole


def parts(folder):
    return [*folder.glob("out.scorer/work-*/parts/*.parquet")]


@pytest.mark.parametrize(
    ("option", "given"),
    [("feed", "b:x=f2,f1,f0"), ("fetch", "b:total=p"), ("labels", "b:total=n,y"), ("on_null", "b:x=0")],
)  # fmt: skip
def test_an_option_that_names_a_model_is_not_dropped_if_only_another_has_the_tensor(tmp_path, option, given):
    source = write(tmp_path / "in.parquet", {f"f{i}": np.zeros(9, np.float32) for i in range(3)})
    other = onnx.load(SUM)
    for node in other.graph.node:
        node.input[:] = ["y" if name == "x" else name for name in node.input]
        node.output[:] = ["sum" if name == "total" else name for name in node.output]
    other.graph.input[0].name, other.graph.output[0].name = "y", "sum"
    onnx.save(other, tmp_path / "y.onnx")
    options = {"feed": ["a:x=f0..f2", "b:y=f0..f2"], **HERE}
    options[option] = [*options.get(option, ()), given]
    plan = scorer.prepare(source, {"a": SUM, "b": tmp_path / "y.onnx"}, tmp_path / "out", **options)
    assert ["model 'b'" in problem.where for problem in plan.problems] == [True]


def test_a_text_of_a_job_file_is_that_of_a_file_beside_the_job_file(wide, tmp_path):
    (tmp_path / "x=y.onnx").write_bytes(SUM.read_bytes())
    (tmp_path / "y.onnx").write_bytes(DENSE.read_bytes())
    job = tmp_path / "job.toml"
    job.write_text(f'input = "{wide}"\nmodel = "x=y.onnx"\nfeed = "x=f0..f2"\n', "utf-8")
    code, shown, _ = cli("plan", "--config", job, "--output", tmp_path / "out", "--no-tune", "--json")
    assert code == 0
    assert json.loads(shown)["model"]["path"] == str(tmp_path / "x=y.onnx")


def test_a_model_without_its_name_is_refused(wide):
    with pytest.raises(scorer.errors.ScorerError, match="a model has a file and no name"):
        build({"input": str(wide), "model": ["=m.onnx"]})


def test_all_models_that_cannot_be_read_are_named(wide, tmp_path):
    plan = scorer.prepare(
        wide, {"a": tmp_path / "a.onnx", "b": SUM, "c": tmp_path / "c.onnx"}, tmp_path / "out", **HERE
    )
    assert [problem.where for problem in plan.problems] == [
        f"model 'a', {tmp_path / 'a.onnx'}", f"model 'c', {tmp_path / 'c.onnx'}",
    ]  # fmt: skip


def test_columns_of_two_models_with_one_name_have_a_hint_that_helps(wide, tmp_path):
    options = {"feed": ["x=f0..f2"], "fetch": ["a:total=b_c", "a_b:total=c"], **HERE}
    (problem,) = scorer.prepare(wide, {"a": SUM, "a_b": SUM}, tmp_path / "out", **options).problems
    assert "a_b_c" in problem.what
    assert "--prefix" not in problem.hint


@pytest.mark.parametrize("text", ["a:names.txt", "a:x=names.txt", "x=names.txt"])
def test_class_names_of_one_model_are_beside_the_job_file(tmp_path, monkeypatch, text):
    """Not in the current folder, where other names are."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "names.txt").write_text("mine\n", "utf-8")
    (tmp_path / "names.txt").write_text("other\n", "utf-8")
    job = tmp_path / "jobs" / "job.toml"
    job.write_text(f'input = "in.parquet"\nlabels = ["{text}"]\n[model]\na = "a.onnx"\nb = "b.onnx"\n', "utf-8")
    monkeypatch.chdir(tmp_path)
    (found,) = options_of(str(job), {}).binding.labels
    assert found == text.replace("names.txt", str(tmp_path / "jobs" / "names.txt"))


def test_verify_says_which_model_is_not_that_of_the_run(wide, tmp_path):
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(SUM.read_bytes())
    scorer.run(wide, {"a": DENSE, "b": changed}, tmp_path / "out", feed=["b:x=f0..f2"], **HERE)
    scorer.release()
    changed.write_bytes(DENSE.read_bytes())
    (fault,) = scorer.verify(tmp_path / "out", rescore=5).faults
    assert str(changed) in fault
