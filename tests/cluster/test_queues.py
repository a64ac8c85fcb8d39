"""Job scripts of the queues, and the errors where nothing can be submitted."""

from __future__ import annotations

import importlib
import sys

import dask
import pytest
from support.runs import MODELS, cli, write

from scorer.cluster.queues import jobs_of, threads_of
from scorer.options.request import build_cluster
from scorer.options.values import QUEUES, parse_walltime

SIZE = ("--threads", "16", "--memory", "64GiB")
WHERE = dict.fromkeys(QUEUES, ("--queue", "batch", "--walltime", "1-02:30:00", "--interface", "ib0"))
WHERE["htcondor"] = ("--interface", "ib0")
EXTRA = dict.fromkeys(QUEUES, "--account=abc") | {"htcondor": "Requirements=HasScratch"}


def script(system, *flags):
    code, out, err = cli("cluster-script", "--cluster", system, *flags)
    assert code == 0, err
    return out


@pytest.mark.parametrize("system", QUEUES)
def test_the_script_of_every_queue_matches_its_golden_file(system, golden):
    text = script(system, *SIZE, *WHERE[system], f"--job-extra={EXTRA[system]}").replace(sys.executable, "PYTHON")
    golden(f"scripts/{system}.txt", text)


@pytest.mark.parametrize("system", QUEUES)
def test_a_job_has_one_worker_with_all_its_cores_and_one_more_thread_for_the_disk(system):
    text = script(system, *SIZE)
    assert "--nworkers" not in text
    assert text.index("--nthreads 16") < text.index("--nthreads 17")  # the last one counts
    assert text.index("--memory-limit 64.00GiB") < text.rindex("--memory-limit")
    assert "tls://" in text
    assert "tcp://" in script(system, *SIZE, "--no-tls")


def test_a_job_with_a_walltime_knows_when_it_ends():
    assert "+ 5400 )" in script("slurm", *SIZE, "--walltime", "01:30:00")
    assert "-t 01:30:00" in script("slurm", *SIZE, "--walltime", "01:30:00")
    assert "-W 01:30\n" in script("lsf", *SIZE, "--walltime", "01:30:00")
    assert [parse_walltime(text) for text in ("00:00:01", "100:00:00", "2-00:00:00")] == [1, 360_000, 172_800]


def test_dasks_own_configuration_is_used_and_flags_win():
    site = {
        "cores": 24, "memory": "100GB", "queue": "long", "walltime": "02:00:00",
        "job-extra-directives": ["--constraint=fast"], "job-script-prologue": ["module load python"],
    }  # fmt: skip
    importlib.import_module("dask_jobqueue")  # loads its default settings
    with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in site.items()}):
        text = script("slurm")
        assert "--cpus-per-task=24" in text
        assert "-p long" in text
        assert "module load python\nexport" in text
        assert "+ 7200 )" in text
        text = script(
            "slurm", "--queue", "short", "--threads", "8", "--job-extra=--exclusive", "--walltime", "00:10:00"
        )
        assert "-p short" in text
        assert "--cpus-per-task=8" in text
        assert "--constraint=fast\n#SBATCH --exclusive" in text
        assert "-t 00:10:00" in text
        assert threads_of(build_cluster({"cluster": "slurm"})) == 24


def test_the_number_of_jobs_is_the_workers_or_the_maximum_of_adapt():
    assert jobs_of(build_cluster({"cluster": "slurm"})) == 1
    assert jobs_of(build_cluster({"cluster": "pbs", "workers": 4})) == 4
    assert jobs_of(build_cluster({"cluster": "sge", "adapt": "0:7"})) == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cluster", "slurm"), "the memory of the jobs is not set"),
        (("--cluster", "processes"), "cluster-script needs a job queue"),
        (("--cluster", "slrm"), "did you mean 'slurm'?"),
        (("--cluster", "slurm", "--walltime", "90"), "[DAYS-]HOURS:MINUTES:SECONDS"),
        (("--cluster", "slurm", "--adapt", "5:1"), "MIN:MAX"),
        (("--cluster", "slurm", "--adapt", "0:5", "--workers", "2"), "--workers or --adapt, not both"),
        (("--cluster", "htcondor", "--memory", "1GiB", "--queue", "x"), "HTCondor does not support --queue"),
        (("--queue", "x"), "'queue' can only be used with a job queue"),
    ],
)
def test_wrong_job_flags_are_refused(flags, message):
    code, out, err = cli("cluster-script", *flags)
    assert (code, out) == (2, "")
    assert message in err


def test_a_machine_that_cannot_submit_jobs_is_reported_and_nothing_is_written(fewer28, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = cli(
        "run", fewer28, "--model", MODELS / "dense28.onnx", "--output", tmp_path / "out",
        "--cluster", "slurm", "--memory", "2GiB",
    )  # fmt: skip
    assert code == 4
    assert "the command sbatch" in err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("text", "found"), [(None, "no such file"), ("{}", "a file without an address"), ("[", "a file without an address")]
)
def test_a_scheduler_file_without_an_address_is_reported(tmp_path, monkeypatch, text, found):
    monkeypatch.setattr("scorer.cluster.connect.ANSWER_S", 0.5)
    if text is not None:
        (tmp_path / "s.json").write_text(text)
    write(tmp_path / "in.parquet", {f"f{i}": [0.5] for i in range(28)})
    code, _, err = cli(
        "run", tmp_path / "in.parquet", "--model", MODELS / "dense28.onnx", "--scheduler-file", tmp_path / "s.json"
    )
    assert code == 4
    assert "the scheduler has not written its address" in err
    assert f"found:    {found}" in err
    assert [path.name for path in tmp_path.glob("in*")] == ["in.parquet"]
