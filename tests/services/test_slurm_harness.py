"""The Slurm of the tests, with a cluster created by hand: a failure here is not a fault of scorer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dask.distributed import Client

import scorer
from services import slurm as service
from services.processes import environment, wait_until
from services.work import MODEL, Clock

TESTS = Path(__file__).parent.parent
pytestmark = [pytest.mark.service, pytest.mark.timeout(200)]


@pytest.fixture
def by_hand(slurm):
    """A dask-jobqueue cluster of four jobs, one on each node."""
    from dask_jobqueue import SLURMCluster

    with SLURMCluster(
        queue="debug", cores=1, processes=1, memory="2GB", walltime="00:10:00", interface="lo",
        job_extra_directives=["--exclusive"], scheduler_options={"dashboard_address": "127.0.0.1:0"},
        worker_extra_args=["--no-dashboard"], local_directory=str(slurm.folder), log_directory=str(slurm.folder),
    ) as cluster:  # fmt: skip
        cluster.scale(jobs=4)
        yield cluster


def test_a_cluster_made_by_hand_puts_four_workers_on_four_nodes(slurm, by_hand, work, report_line, monkeypatch):
    clock = Clock()
    with Client(by_hand) as client:
        client.wait_for_workers(4, timeout=60)
        report_line(f"four workers on the test Slurm after {clock():.1f} s")
        assert sorted(job.node for job in slurm.jobs("RUNNING")) == ["n1", "n2", "n3", "n4"]
        monkeypatch.chdir(work.folder)
        scorer.run(work.source, MODEL, work.output, client=client, **work.options)
    work.exact()
    assert len(work.workers()) == 4
    by_hand.close()
    report_line(f"the queue was empty {slurm.wait_empty():.1f} s after the end")


def test_a_second_slurm_starts_beside_one_whose_owner_was_killed(tmp_path):
    sleeper = "sbatch --output=job.log --wrap='sleep 100' && sleep 100"
    with (tmp_path / "said").open("w") as said:
        owner = subprocess.Popen(
            [sys.executable, "-m", "services.slurm", "sh", "-c", sleeper], cwd=tmp_path, stdout=said, stderr=said,
            env=environment(PYTHONPATH=os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])),
        )  # fmt: skip
    wait_until(lambda: "Submitted" in (tmp_path / "said").read_text(), 60, "a job of the first Slurm")
    first = service.Slurm(Path(re.search("SLURM_CONF=(.*)/", (tmp_path / "said").read_text())[1]))
    first.wait_for_jobs(1, "RUNNING")
    owner.kill()
    owner.wait()
    with service.slurm(nodes=1) as second:
        second.ask("sbatch", "--wrap=sleep 100", f"--output={tmp_path}/second.log")
        second.wait_for_jobs(1, "RUNNING")
        assert len(second.processes()) >= 4
    assert second.processes() == []
    assert not second.folder.exists()
    first._sweep()
    shutil.rmtree(first.folder)
