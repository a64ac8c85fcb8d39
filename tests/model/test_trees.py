"""Compiled trees give the bits of ONNX Runtime, or leave the model to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from dask.distributed import Client
from onnx import TensorProto, helper
from support.random_trees import bits, compare
from support.runs import MODELS, ROOT, cli, read, write
from support.trained_trees import COLUMNS, data, trained

import scorer
from scorer.errors import Interrupted
from scorer.events import PartFinished
from scorer.model import _compile, _forest, _kernel, _program
from scorer.model._tree_node import TreeNode, Unsupported
from scorer.model.resident import load
from scorer.model.session import Session
from scorer.model.spec import SessionSpec
from scorer.model.trees import TreeEngine

pytestmark = pytest.mark.skipif(not _kernel.available(), reason="the kernel is not compiled in this installation")
TRAINED = trained()


def spec_of(path, **options):
    return SessionSpec(path=str(path), digest=str(path), files=(), device="cpu", **options)


def saved(folder, model):
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


BLOCKS = ([1], [2, 63, 64, 65], [511, 512, 513])


def compared(seed):
    """Return how many comparisons of one random ensemble with the runtime were made, and how many differ."""
    done, different, _ = compare(seed, BLOCKS)
    return done, len(different)


@pytest.mark.parametrize("first", [0, 40, *(pytest.param(n, marks=pytest.mark.slow) for n in (80, 120))])
def test_random_ensembles_have_the_bits_of_the_runtime(first):
    counts = np.array([compared(seed) for seed in range(first, first + 40)])
    assert counts[:, 0].sum() > 250
    assert counts[:, 1].sum() == 0


@pytest.mark.parametrize("name", TRAINED)
def test_trained_and_converted_ensembles_have_the_bits_of_the_runtime(name, tmp_path):
    path = saved(tmp_path, TRAINED[name]())
    engine, session = load(spec_of(path)), Session(spec_of(path))
    assert isinstance(engine, TreeEngine), engine.trees
    x = data(seed=7, rows=700)[0]
    if "categories" in name:
        x[:, 0], x[:, 1] = np.random.default_rng(3).integers(-1, 32, (2, len(x)))
    elif not name.startswith(("lightgbm", "xgboost")):
        x = np.nan_to_num(x)
    names = [one.name for one in onnx.load(path).graph.output]
    for rows in (x, x[:1]):
        expected = session.run(names, {"x": rows})
        for one, other in zip(engine.run(names, {"x": rows}), expected, strict=True):
            assert bits(one) == bits(other) if isinstance(other, np.ndarray) else one == other
    last, other = (one.run(names[-1:], {"x": x})[0] for one in (engine, session))
    assert bits(last) == bits(other) if isinstance(other, np.ndarray) else last == other


@pytest.fixture(scope="module")
def flights_like(tmp_path_factory):
    """A model of LightGBM, and 25,000 rows in two files."""
    folder = tmp_path_factory.mktemp("trees")
    onnx.save(TRAINED["lightgbm"](), folder / "trees.onnx")
    x = data(seed=9, rows=25_000)[0]
    for i, half in enumerate(np.split(x, 2)):
        write(folder / "in" / f"{i}.parquet", {f"c{k}": half[:, k] for k in range(COLUMNS)}, row_group_size=4000)
    return folder


FEED = ("--feed", f"x=c0..c{COLUMNS - 1}", "--part-bytes", "256KiB", "--batch-rows", "1000")


def contents(output):
    return {path.name: path.read_bytes() for path in sorted(output.glob("*.parquet"))}


@pytest.mark.parametrize("cluster", ["synchronous", "embedded", "processes"])
def test_compiled_trees_write_the_same_files_as_the_runtime(flights_like, tmp_path, cluster):
    files = {}
    for trees in ("auto", "runtime"):
        out = tmp_path / trees
        done = cli("run", flights_like / "in", "--model", flights_like / "trees.onnx", *FEED, "--output", out,
                   "--trees", trees, "--cluster", cluster, "--json")  # fmt: skip
        assert done[0] == 0, done
        assert json.loads(done[1])["trees"].endswith(f"compiled ({_kernel.chosen()})" if trees == "auto" else "")
        files[trees] = contents(out)
    assert files["auto"] == files["runtime"]
    assert len(read(tmp_path / "auto")) == 25_000


@pytest.mark.slow
def test_a_cluster_with_a_worker_without_the_kernel_writes_the_same_files(flights_like, tmp_path):
    """One of two workers uses an installation of scorer without the compiled library."""
    without = tmp_path / "without"
    shutil.copytree(
        Path(scorer.__file__).parent, without / "scorer", ignore=shutil.ignore_patterns("_trees.so", "__pycache__")
    )
    address = tmp_path / "scheduler.json"
    flags = ["--scheduler-file", str(address), "--no-dashboard"]
    programs = [
        ("dask_scheduler", ["--host", "127.0.0.1", "--port", "0", *flags], ROOT),
        ("dask_worker", ["--nthreads", "1", "--no-nanny", "--name", "with", *flags], ROOT),
        ("dask_worker", ["--nthreads", "1", "--no-nanny", "--name", "without", *flags], without),
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *given], cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(path)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for name, given, path in programs
    ]  # fmt: skip
    try:
        while not address.exists():
            time.sleep(0.05)
        with Client(scheduler_file=str(address)) as client:
            client.wait_for_workers(2, timeout=60)
            levels = client.run(lambda: __import__("scorer.model._kernel", fromlist=["chosen"]).chosen())
            assert sorted(bool(level) for level in levels.values()) == [False, True]
            report = scorer.run(
                flights_like / "in", flights_like / "trees.onnx", tmp_path / "out", feed=FEED[1], client=client,
                part_bytes="64KiB", batch_rows=1000,
            )  # fmt: skip
        assert report.counts.scored == 25_000
        assert (
            len({row["worker"] for row in pq.read_table(tmp_path / "out.scorer" / "ledger.parquet").to_pylist()}) == 2
        )
    finally:
        for program in running:
            program.kill()
            program.wait()
    scorer.run(
        flights_like / "in", flights_like / "trees.onnx", tmp_path / "alone", feed=FEED[1], trees="runtime",
        part_bytes="64KiB", batch_rows=1000, cluster="synchronous",
    )  # fmt: skip
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_run_that_compiled_trees_began_is_finished_by_the_runtime_with_the_same_files(flights_like, tmp_path):
    stopped = []

    def stop(event):
        if isinstance(event, PartFinished) and not stopped:
            stopped.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    given = {
        "feed": FEED[1],
        "part_bytes": "64KiB",
        "batch_rows": 1000,
        "cluster": "embedded",
        "threads": 1,
        "tune": False,
    }
    data_and_model = (flights_like / "in", flights_like / "trees.onnx")
    with pytest.raises(Interrupted):
        scorer.run(*data_and_model, tmp_path / "out", observers=[stop], **given)
    report = scorer.run(*data_and_model, tmp_path / "out", trees="runtime", **given)
    assert 0 < report.parts_resumed < report.parts
    scorer.run(*data_and_model, tmp_path / "whole", **given)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_runtime_verifies_compiled_scores(flights_like, tmp_path, monkeypatch):
    out = tmp_path / "out"
    model = flights_like / "trees.onnx"
    assert cli("run", flights_like / "in", "--model", model, *FEED, "--output", out)[0] == 0
    monkeypatch.setattr(TreeEngine, "run", lambda *_: pytest.fail("compiled trees checked themselves"))
    done = cli("verify", out, "--rescore", "50")
    assert done[0] == 0
    assert "50 rows" in done[1]
    assert "all have the same bits" in done[1]


def test_plan_says_how_trees_are_scored(flights_like):
    shown = cli("plan", flights_like / "in", "--model", flights_like / "trees.onnx", *FEED)[1]
    assert f"60 trees of up to 31 leaves, compiled ({_kernel.chosen()})" in " ".join(shown.split())
    few = cli("plan", flights_like / "in", "--model", flights_like / "trees.onnx", *FEED, "--limit", "500")[1]
    assert "compiled" not in few


def test_other_models_need_no_word(tmp_path):
    assert load(spec_of(MODELS / "dense28.onnx")).trees == ""


def regressor(**attributes):
    """Return a model of one tree: x0 <= 1 gives 10, else x1 <= 2 gives 20, else 30."""
    usual = {
        "nodes_treeids": [0] * 5, "nodes_nodeids": [0, 1, 2, 3, 4], "nodes_featureids": [0, 0, 1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [1.0, 0, 2.0, 0, 0],
        "nodes_truenodeids": [1, 0, 3, 0, 0], "nodes_falsenodeids": [2, 0, 4, 0, 0], "target_treeids": [0] * 3,
        "target_nodeids": [1, 3, 4], "target_ids": [0] * 3, "target_weights": [10.0, 20.0, 30.0],
    }  # fmt: skip
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
                            **{k: v for k, v in {**usual, **attributes}.items() if v is not None})  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy"]
    graph = helper.make_graph([node], "one tree", ends[:1], ends[1:])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("", 17)], ir_version=8
    )


LEFT_TO_THE_RUNTIME = {
    "its trees are put together by MIN": {"aggregate_function": "MIN"},
    "its transform is PROBIT": {"post_transform": "PROBIT"},
    "a missing value counts as equal": {
        "nodes_modes": ["BRANCH_EQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_missing_value_tracks_true": [1, 0, 0, 0, 0],
    },
    "a threshold is NaN": {"nodes_values": [float("nan"), 0, 2.0, 0, 0]},
    "no number is below a threshold": {
        "nodes_modes": ["BRANCH_LT", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_values": [float("-inf"), 0, 2.0, 0, 0],
    },
    "its transform of a regression": {"post_transform": "LOGISTIC"},
}


@pytest.mark.parametrize("why", LEFT_TO_THE_RUNTIME)
def test_what_has_no_exact_program_is_left_to_the_runtime(why, tmp_path):
    path = saved(tmp_path, regressor(**LEFT_TO_THE_RUNTIME[why]))
    engine = load(spec_of(path))
    assert isinstance(engine, Session)
    assert engine.trees.startswith(f"by ONNX Runtime: {why}")


MALFORMED = {
    "a branch leads nowhere": {"nodes_truenodeids": [9, 0, 3, 0, 0]},
    "a node has two parents": {"nodes_falsenodeids": [2, 0, 2, 0, 0]},
    "two nodes have one number": {"nodes_nodeids": [0, 1, 2, 3, 3]},
    "a weight's target is out of range": {"target_ids": [0, 0, 7]},
    "its lists of nodes differ in length": {"nodes_values": [1.0]},
    "a column's number is out of range": {"nodes_featureids": [-1, 0, 1, 0, 0]},
    "a circle": {"nodes_falsenodeids": [2, 0, 0, 0, 0]},
    "its lists of nodes differ": {"nodes_falsenodeids": [2, 0]},
    "its attributes are not complete": {"target_nodeids": None},
}


@pytest.mark.parametrize("why", MALFORMED)
def test_malformed_nodes_never_reach_the_kernel(why):
    node = regressor(**MALFORMED[why]).graph.node[0]
    with pytest.raises(Unsupported, match="two parents" if why == "a circle" else why):
        TreeNode(node, np.dtype(np.float32), _kernel.chosen())


def test_a_chain_of_100_000_nodes_is_left_to_the_runtime():
    n = 100_000
    chain = {
        "nodes_treeids": [0] * (2 * n + 1), "nodes_nodeids": list(range(2 * n + 1)),
        "nodes_featureids": [0] * (2 * n + 1), "nodes_values": [1.0] * (2 * n + 1),
        "nodes_modes": ["BRANCH_LEQ"] * n + ["LEAF"] * (n + 1),
        "nodes_truenodeids": [*range(n, 2 * n), *[0] * (n + 1)],
        "nodes_falsenodeids": [*range(1, n), 2 * n, *[0] * (n + 1)],
        "target_treeids": [0] * (n + 1), "target_nodeids": list(range(n, 2 * n + 1)), "target_ids": [0] * (n + 1),
        "target_weights": [1.0] * (n + 1),
    }  # fmt: skip
    with pytest.raises(Unsupported, match="deeper than 4,096"):
        TreeNode(regressor(**chain).graph.node[0], np.dtype(np.float32), _kernel.chosen())


def test_too_few_columns_are_a_bad_batch(tmp_path):
    from scorer.errors import BatchError

    engine = load(spec_of(saved(tmp_path, regressor())))
    with pytest.raises(BatchError, match="5 x 1 values; they look at column 1"):
        engine.run(["y"], {"x": np.zeros((5, 1), np.float32)})


@pytest.fixture(scope="module")
def compiler():
    commands = _compile.compilers()
    if not commands:
        pytest.skip("no C compiler")
    return commands[0]


MUTATIONS = {
    "less for less or equal": ("sorted[k] < x[r]", "sorted[k] <= x[r]"),
    "NaN on the other side": ("const uint8_t code = (uint8_t)row->nan;", "const uint8_t code = (uint8_t)~row->nan;"),
    "trees in another order": ("run_tree(p, &p->trees[t], &b)", "run_tree(p, &p->trees[p->n_trees - 1 - t], &b)"),
    "ranks not cut at 255": ("out[r] = (uint8_t)(code > 255 ? 255 : code);", "out[r] = (uint8_t)code;"),
    "a leaf too far": ("node->leaves);\n#pragma GCC unroll 8", "(node->leaves + 1));\n#pragma GCC unroll 8"),
    "the last tree left out": ("t < p->n_trees", "t < p->n_trees - 1"),
}


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.slow
def test_a_wrong_kernel_is_found_by_the_random_ensembles(name, compiler, tmp_path, monkeypatch):
    text = _compile.SOURCE.read_text("utf-8")
    before, after = MUTATIONS[name]
    assert before in text
    source, target = tmp_path / "trees.c", tmp_path / "_trees.so"
    source.write_text(text.replace(before, after), "utf-8")
    _compile.compile_library(compiler, target, source, "-O1")
    with_library(monkeypatch, target)
    assert any(compared(seed)[1] for seed in range(200))


def base_first(self, matrix):
    """Return the sums as if the base values came before the first tree."""
    base, self._base = self._base, None
    first = self.program._arrays["trees"][0]
    if base is not None and self.program._counts[5] == 1:
        self.program._arrays["values"][first["values"] : first["values"] + first["leaves"]] += base[first["target"]]
    return SUMS(self, matrix)


SUMS = TreeNode.sums
WRONG_PROGRAMS = {
    "chunks of 256 thresholds": lambda patch: patch.setattr(_program, "_CHUNK", 256),
    "no smaller float for <": lambda patch: patch.setattr(_forest, "below", lambda values: values),
    "a base value first": lambda patch: patch.setattr(TreeNode, "sums", base_first),
}


@pytest.mark.parametrize("name", WRONG_PROGRAMS)
def test_a_wrong_program_is_found_by_the_random_ensembles(name, monkeypatch):
    WRONG_PROGRAMS[name](monkeypatch)
    assert any(compared(seed)[1] for seed in range(400))


def with_library(monkeypatch, path):
    import ctypes

    library = ctypes.CDLL(str(path))
    monkeypatch.setattr(_kernel, "_library", lambda: library)


def test_a_wrong_kernel_is_not_used(compiler, tmp_path, monkeypatch):
    text = _compile.SOURCE.read_text("utf-8").replace("sums[r] += values[leaf[r]]", "sums[r] -= values[leaf[r]]")
    text = text.replace("_mm512_add_ps(_mm512_loadu_ps(sums + r), weight)", "weight")
    source, target = tmp_path / "trees.c", tmp_path / "_trees.so"
    source.write_text(text, "utf-8")
    _compile.compile_library(compiler, target, source, "-O1")
    with_library(monkeypatch, target)
    engine = load(spec_of(saved(tmp_path, TRAINED["lightgbm"]())))
    assert isinstance(engine, Session)
    assert engine.trees == "by ONNX Runtime: the compiled trees gave other scores than ONNX Runtime here"


def test_without_a_library_the_runtime_scores(monkeypatch, tmp_path):
    monkeypatch.setattr(_kernel, "LIBRARY", tmp_path / "nothing.so")
    monkeypatch.setattr(_kernel, "_library", lambda: None)
    engine = load(spec_of(saved(tmp_path, regressor())))
    assert engine.trees == "by ONNX Runtime: no C compiler was found when scorer was installed"


def test_a_build_without_a_compiler_says_so(tmp_path):
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('c', {str(_compile.SOURCE.with_name('_compile.py'))!r})\n"
        "c = importlib.util.module_from_spec(spec); spec.loader.exec_module(c)\n"
        f"from pathlib import Path; c.LIBRARY = Path({str(tmp_path / '_trees.so')!r})\n"
        "print(c.compile_if_possible())"
    )
    environment = {"PATH": str(tmp_path), "CC": "/bin/false"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("/bin/false failed: ")
    del environment["CC"]
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("no C compiler was found")
    assert os.listdir(tmp_path) == []


def test_lower_instruction_sets_can_be_requested(monkeypatch):
    monkeypatch.setenv("SCORER_TREES_LEVEL", "base")
    assert _kernel.chosen() == "base"
    monkeypatch.setenv("SCORER_TREES_LEVEL", "unknown")
    assert _kernel.chosen() == _kernel.available()[0]


def test_trees_are_no_part_of_a_plan():
    assert replace(spec_of("m"), trees=False).key != spec_of("m").key
