"""Job scripts of the queues, and the errors where nothing can be submitted."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import dask
import pytest
from support.runs import MODELS, cli, write

from scorer.cluster.kinds.queues import _queue_cluster, jobs_of, threads_of
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


HOSTILE = 'it\'s "$(touch ran)" `touch ran`; touch ran # %J $HOME \\ * é'


def run_script(system, script):
    """Run the shell lines of a job script as its queue would."""
    if system == "htcondor":  # a submit file: "..." holds -c '...', with each quote doubled
        line = next(line for line in script.splitlines() if line.startswith("Arguments = "))
        text = line.removeprefix("Arguments = \"-c '").removesuffix("'\"").replace("''", "'").replace('""', '"')
        assert "$(" not in text.replace("$(DOLLAR)", "")  # HTCondor would expand it
        command = ["/bin/sh", "-c", text.replace("$(DOLLAR)", "$")]
    else:
        command = ["bash", "-c", script]
    subprocess.run(command, check=True, timeout=60)


@pytest.mark.filterwarnings("ignore:OAR Job memory")
@pytest.mark.parametrize("name", ["plain", HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("system", QUEUES)
def test_a_job_gets_the_paths_of_the_output_as_they_are_whatever_their_names(system, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    logs, keys = tmp_path / name / "jobs", tmp_path / name / "keys"
    logs.mkdir(parents=True)
    keys.mkdir()
    options = build_cluster({"cluster": system, "memory": "1GiB", "threads": 1})
    words = tmp_path / "words"
    importlib.import_module("dask_jobqueue")
    printing = f"printf '%s\\n' > {words}"  # in place of Python
    with dask.config.set({f"jobqueue.{system}.python": printing}), _queue_cluster(options, logs, keys) as cluster:
        script = cluster.job_script()
        run_script(system, script)
        given = words.read_text().splitlines()
        for flag in ("--tls-ca-file", "--tls-cert", "--tls-key"):
            path = Path(given[given.index(flag) + 1])
            assert path.parent == keys
            assert "-----BEGIN" in path.read_text()
            assert path.stat().st_mode & 0o077 == 0
    assert not list((tmp_path / "here").iterdir())
    directives = [line for line in script.splitlines() if line.startswith(("#", "LogDirectory"))]
    assert name == "plain" or not any("touch" in line for line in directives)
    assert len(list(logs.iterdir())) == (name != "plain")  # where the queue's directives do not name the log


RECORD = """
printf '%s\\n' "$@" > {words}
while [ "$1" != --local-directory ]; do shift; done
stat -c %a "$2" > {mode}
"""


@pytest.mark.filterwarnings("ignore:OAR Job memory")
@pytest.mark.parametrize("system", QUEUES)
def test_a_job_has_a_private_scratch_folder_that_ends_with_it(system, tmp_path, monkeypatch):
    (tmp_path / "record.sh").write_text(RECORD.format(words=tmp_path / "words", mode=tmp_path / "mode"))
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / HOSTILE))
    importlib.import_module("dask_jobqueue")
    with dask.config.set({f"jobqueue.{system}.python": f"sh {tmp_path / 'record.sh'}"}):
        run_script(system, script(system, *SIZE))
    given = (tmp_path / "words").read_text().splitlines()
    folder = Path(given[given.index("--local-directory") + 1])
    assert folder.parent == tmp_path / HOSTILE
    assert (tmp_path / "mode").read_text() == "700\n"
    assert not list(folder.parent.iterdir())


@pytest.mark.parametrize("flag", [(), ("--dashboard",)], ids=["without", "with"])
def test_workers_of_jobs_serve_metrics_only_with_the_dashboard(flag):
    assert ("distributed.http.worker.prometheus" in script("slurm", *SIZE, *flag)) is bool(flag)


def test_every_value_from_a_flag_is_quoted_in_the_script(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/my env/$(x)/python")
    for system in QUEUES:
        text = script(system, *SIZE, "--interface", "ib0; touch ran")
        doubled = system == "htcondor"
        quote = "''" if doubled else "'"
        assert f"--interface {quote}ib0; touch ran{quote}" in text
        assert f"{quote}/opt/my env/{'$(DOLLAR)' if doubled else '$'}(x)/python{quote} -m distributed" in text


@pytest.mark.parametrize(
    "flags", [("--queue", "a\ntouch ran"), ("--interface", "ib0\n"), ("--job-extra=-A b\ntouch ran",)]
)
def test_a_value_with_a_line_break_is_refused_in_a_job_script(flags):
    code, out, err = cli("cluster-script", "--cluster", "slurm", *SIZE, *flags)
    assert (code, out) == (2, "")
    assert "a job script cannot contain this name" in err


def test_an_output_with_a_line_break_is_refused_before_a_job_is_submitted(fewer28, tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text("#!/bin/sh\ntouch " + str(tmp_path / "submitted"))
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    code, _, err = cli(
        "run", fewer28, "--model", MODELS / "dense28.onnx", "--output", tmp_path / "out\ntouch ran",
        "--cluster", "slurm", "--memory", "2GiB",
    )  # fmt: skip
    assert code == 2
    assert "a job script cannot contain this name" in err
    assert [path.name for path in tmp_path.iterdir() if path.name != fewer28.name] == ["sbatch"]
