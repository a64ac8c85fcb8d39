"""Runs with the ranks of an MPI job as workers."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.service, pytest.mark.timeout(200)]


def test_three_ranks_of_mpi_score_by_the_address_in_the_scheduler_file(mpi, work, report_line):
    work.run("--scheduler", mpi.address)
    work.exact()
    assert len(work.workers()) == 2, work.workers()
    assert mpi.process.poll() is None, mpi.log()
    report_line(f"MPI, 3 ranks: {dict(work.workers())}")
