"""Clusters by their class: started, scaled, used and closed, or refused with what to do."""

from __future__ import annotations

import json

import numpy as np
import psutil
import pytest
from support.runs import MODELS, cli, oracle, read, write

import scorer
from scorer.cluster.connect import connect
from scorer.cluster.kinds import classes
from scorer.errors import ClusterError, NoWorkers, OptionsError, PreflightError
from scorer.host.versions import versions as real_versions
from scorer.options import cluster_options
from scorer.options.request import as_flags, build, build_cluster

SUM = MODELS / "sum3.onnx"
LOCAL = "distributed:LocalCluster"
THREADS = {"processes": False, "n_workers": 0, "threads_per_worker": 2, "dashboard_address": None}
ROWS = {name: np.arange(i, i + 5000, dtype=np.float32) for i, name in enumerate("abc")}


@pytest.fixture
def source(tmp_path):
    """An input of 5,000 rows, in row groups of 500."""
    return write(tmp_path / "in.parquet", ROWS, row_group_size=500)


def scored(source, output, **options):
    """Score the input, and assert the scores of ONNX Runtime alone."""
    scorer.run(source, SUM, output, feed="x=a,b,c", part_bytes="8KiB", tune=False, **options)
    assert read(output)["total"].to_pylist() == oracle(SUM, {"x": np.stack([*ROWS.values()], 1)})["total"].tolist()


@pytest.mark.parametrize("number", [{"workers": 1}, {"adapt": "0:2"}])
def test_a_class_is_started_scaled_used_and_closed(source, tmp_path, number):
    notices = []
    with connect(
        build_cluster({"cluster": LOCAL, "cluster_option": THREADS, **number}), tmp_path, notify=notices.append
    ) as workers:
        cluster = workers.client.cluster
    assert (cluster.status.name, notices) == ("closed", [])
    scored(source, tmp_path / "out", cluster=LOCAL, cluster_option=THREADS, **number)


@pytest.mark.slow
def test_worker_processes_of_a_class_score_and_leave_no_process(source, tmp_path):
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    options = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": None}
    scored(source, tmp_path / "out", cluster=LOCAL, cluster_option=options, workers=2)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in left if "resource_tracker" not in " ".join(child.cmdline())] == []


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        (
            "dask_nowhere.deep:Cluster",
            "the module of the cluster's class cannot be imported",
            "pip install dask-nowhere",
        ),
        ("distributed.nowhere:Cluster", "the module of the cluster's class cannot be imported", "has no module"),
        ("distributed:LocalClutser", "the class of the cluster does not exist", "did you mean 'LocalCluster'?"),
        ("json:JSONDecoder", "json:JSONDecoder is no Dask cluster", "MODULE:CLASS"),
        ("distributed:__version__", "distributed:__version__ is no Dask cluster", "MODULE:CLASS"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_before_the_run(source, tmp_path, name, what, hint):
    code, _, stderr = cli(
        "plan", source, "--model", SUM, "--output", tmp_path / "out", "--feed", "x=a,b,c", "--cluster", name
    )
    assert code == 2, stderr
    assert what in stderr
    assert hint in " ".join(stderr.split())
    assert not (tmp_path / "out.scorer").exists()


def test_options_that_a_class_does_not_take_are_refused_with_the_names_that_it_takes():
    problem = classes.problem(build_cluster({"cluster": "distributed:SpecCluster", "cluster_option": {"n_jobs": 3}}))
    assert problem.what == "distributed:SpecCluster does not take these options"
    assert "n_jobs" in problem.found
    assert "'shutdown_on_close'" in problem.expected


def test_options_that_a_class_passes_on_in_vain_are_refused_when_it_starts(tmp_path):
    options = build_cluster({"cluster": LOCAL, "cluster_option": {**THREADS, "n_workers": 1, "n_jobs": 3}})
    with (
        pytest.raises(OptionsError, match="LocalCluster does not take these options") as caught,
        connect(options, tmp_path),
    ):
        pass
    assert "n_jobs" in caught.value.found
    assert "those of what it starts" in caught.value.expected


def test_a_function_that_returns_no_cluster_is_refused(tmp_path):
    with (
        pytest.raises(OptionsError, match="time is no Dask cluster") as caught,
        connect(build_cluster({"cluster": "time:time"}), tmp_path),
    ):
        pass
    assert "float" in caught.value.found


def test_a_class_that_fails_is_reported_with_the_first_cause(tmp_path):
    options = build_cluster({"cluster": LOCAL, "cluster_option": {**THREADS, "protocol": "gopher"}})
    with pytest.raises(ClusterError, match="LocalCluster did not start") as caught, connect(options, tmp_path):
        pass
    assert "gopher" in caught.value.found


def test_a_cluster_without_workers_is_given_up_with_the_flag_to_add(tmp_path, monkeypatch):
    monkeypatch.setattr(classes, "_NEW_WORKERS_S", 0.3)
    monkeypatch.setattr(classes, "_NOTICE_S", 0.1)
    notices = []
    with (
        pytest.raises(NoWorkers) as caught,
        connect(build_cluster({"cluster": LOCAL, "cluster_option": THREADS}), tmp_path, notify=notices.append),
    ):
        pass
    assert "add --workers N" in caught.value.hint
    assert notices == ["waiting for the first worker of LocalCluster"]


@pytest.mark.parametrize("name", [LOCAL, "distributed:SSHCluster"])
def test_a_class_that_does_not_connect_by_name_is_refused(name, tmp_path):
    options = build_cluster({"cluster": name, "cluster_name": "blue"})
    with (
        pytest.raises(OptionsError, match="cannot connect to a cluster by its name") as caught,
        connect(options, tmp_path),
    ):
        pass
    assert caught.value.where == "--cluster-name"
    assert "--scheduler" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"cluster_option": {"n_workers": 1}}, "add the class"),
        ({"cluster": "processes", "cluster_name": "blue"}, "add the class"),
        ({"cluster": LOCAL, "cluster_name": "blue", "workers": 2}, "leave --workers out"),
        ({"cluster": LOCAL, "cluster_name": "blue", "adapt": "0:2"}, "leave --adapt out"),
        ({"cluster": LOCAL, "tls": False}, "leave --no-tls out"),
        ({"cluster": LOCAL, "ahead": 3}, "leave --ahead out"),
        ({"cluster": LOCAL, "queue": "batch"}, "--cluster-option"),
        ({"cluster": LOCAL, "scheduler": "tcp://h:1"}, "give only one"),
        ({"cluster": LOCAL, "cluster_option": {"auth": {"password": "hunter2"}}}, "Dask's configuration"),
        ({"cluster": LOCAL, "cluster_option": "address=https://ann:hunter2@gateway"}, "Dask's configuration"),
        ({"cluster": LOCAL, "cluster_option": "n_workers"}, "write NAME=VALUE"),
        ({"cluster": LOCAL, "cluster_option": {"security": object()}}, "client="),
        ({"cluster": "a:b:c"}, ""),
    ],
)
def test_options_that_contradict_a_class_are_refused(given, hint):
    with pytest.raises(PreflightError) as caught:
        build_cluster(given)
    text = str(caught.value)
    assert hint in text
    assert "hunter2" not in text


def test_options_of_a_class_are_the_same_as_flags_keys_and_arguments():
    table = {"hosts": ["a", "b"], "connect_options": {"port": 22}, "name": "blue", "shape": "1", "known": None}
    asked = build({"input": "i", "model": "m", "cluster": LOCAL, "cluster_option": table})
    flags = [value for flag, *value in as_flags(asked.non_defaults()) if flag == "--cluster-option"]
    assert cluster_options.values_of(text for (text,) in flags) == table
    again = build_cluster({"cluster": LOCAL, "cluster_option": [text for (text,) in flags]})
    assert again == asked.cluster
    assert cluster_options.values_of(cluster_options.parse("n_workers=2")) == {"n_workers": 2}
    assert cluster_options.values_of(cluster_options.parse(["memory=2GB"])) == {"memory": "2GB"}


def test_a_job_file_has_a_table_of_options(source, tmp_path):
    (tmp_path / "job.toml").write_text(
        f'input = "in.parquet"\nmodel = {json.dumps(str(SUM))}\nfeed = "x=a,b,c"\ncluster = "{LOCAL}"\nworkers = 1\n'
        "[cluster_option]\nprocesses = false\nn_workers = 0\nthreads_per_worker = 1\n"
    )
    code, stdout, stderr = cli("plan", "--config", tmp_path / "job.toml", "--output", tmp_path / "out")
    assert code == 0, stderr
    assert LOCAL in stdout


@pytest.mark.slow
def test_doctor_asks_the_workers_of_a_class_and_leaves_nothing(source, tmp_path):
    flags = ["--cluster", LOCAL, "--workers", "1", "--cluster-option", "n_workers=0"]
    flags += ["--cluster-option", "dashboard_address=127.0.0.1:0", "--cluster-option", "threads_per_worker=3"]
    request = [source, "--model", SUM, "--output", tmp_path / "out", "--feed", "x=a,b,c"]
    for arguments in (flags, [*request, *flags]):
        code, stdout, stderr = cli("doctor", *arguments, "--json")
        assert code == 0, stderr
        ((worker, has),) = [(name, value) for name, value in json.loads(stdout).items() if name.startswith("worker ")]
        assert worker
        assert has == "3 threads; devices: cpu"
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


@pytest.mark.slow
def test_doctor_reports_workers_with_other_versions(monkeypatch):
    monkeypatch.setattr("scorer.cluster.readiness.versions", lambda: {**real_versions(), "onnxruntime": "0.1"})
    flags = ["--cluster", LOCAL, "--workers", "1", "--cluster-option", "n_workers=0"]
    code, _, stderr = cli("doctor", *flags, "--cluster-option", "dashboard_address=127.0.0.1:0")
    assert code == 4, stderr
    assert "workers have another version of onnxruntime" in stderr
    assert "expected: onnxruntime 0.1" in stderr
