"""Threads of this process, or processes of this machine."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

from dask.system import CPU_COUNT

from scorer.cluster import scripts
from scorer.cluster._overrides import ENVIRONMENT
from scorer.cluster._servers import WithEnvironments, WithoutWorkerPages
from scorer.cluster.dashboard import LOOPBACK
from scorer.cluster.kinds.queues import temporary_security
from scorer.cluster.kinds.sizes import processes_and_threads
from scorer.cluster.kinds.workers import WAIT_S, Workers, client_of
from scorer.errors import BatchStalled, ClusterError
from scorer.host import signals
from scorer.host.limits import MORE_FILES, MORE_THREADS, OUT_OF_FILES, lacks_thread
from scorer.options.values import parse_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from distributed import LocalCluster

    from scorer.options.fields import ClusterOptions


SAFE_PATH = "PYTHONSAFEPATH"
"""With this variable, a new Python process imports nothing from the current folder, where a types.py may lie."""
_NO_WORKERS_S = 30  # a nanny replaces a dead local process at once, or never


@contextmanager
def start(
    options: ClusterOptions, folder: Path, notify: Callable[[str], None], environments: Sequence[Mapping[str, str]],  # noqa: ARG001 - as every kind
) -> Iterator[Workers]:  # fmt: skip
    """Yield threads of this process, or local processes that listen on loopback only; close them afterwards."""
    processes = options.cluster == "processes"
    workers, threads = processes_and_threads(options) if processes else (1, options.threads or CPU_COUNT)
    if processes:
        scripts.end_if_imported_by_a_worker()
        with ENVIRONMENT.set({SAFE_PATH: "1"}):
            resource_tracker.ensure_running()  # its start unblocks SIGINT, so start it before SIGINT is blocked below
    cluster: LocalCluster | None = None
    try:
        with signals.ignored_by_children():
            cluster = _start_local(options, workers, threads, environments)
    except KeyboardInterrupt:  # raised when the block above ends, with or without a cluster
        if cluster is not None:
            cluster.close(timeout=10)
        raise
    except (RuntimeError, OSError) as error:
        if scripts.ended_in_import(error):
            raise scripts.without_guard(workers) from None  # Dask's errors would only hide the reason
        raise _not_started(f"{workers} processes" if processes else f"{threads} threads", error) from error
    if options.adapt:
        least, most = parse_span(options.adapt)
        cluster.adapt(minimum=least, maximum=most)
    many = f"{threads} thread{'s' if threads > 1 else ''}"
    description = f"{workers} process{'es' if workers > 1 else ''} x {many}" if processes else f"{many} of this process"
    hangs = False
    try:
        with client_of(cluster) as client:
            yield Workers(
                client=client,
                description=description,
                no_worker_timeout_s=_NO_WORKERS_S,
                scoring_threads=threads,
                ahead=options.ahead or 1,
                remote=processes,
                owned=True,
                own_scheduler=True,
            )
    except BatchStalled:  # a thread of this process never returns from native code, and closing would wait for it
        hangs = True
        raise
    finally:
        if not hangs:
            cluster.close(timeout=10)


def _not_started(where: str, error: BaseException) -> ClusterError:
    """Return the error for local workers that did not start. Its hint depends on the first error in Dask."""
    causes = scripts.causes_of(error)
    numbers = {getattr(cause, "errno", None) for cause in causes}
    hint = "repeat the command; if it fails again, try --cluster synchronous"
    if not OUT_OF_FILES.isdisjoint(numbers):
        hint = MORE_FILES
    elif errno.EAGAIN in numbers or any(map(lacks_thread, causes)):
        hint = MORE_THREADS
    return ClusterError(
        f"the worker {where.split()[1]} did not start",
        where=where,
        expected=f"running worker {where.split()[1]}",
        found=str(causes[-1]) or type(causes[-1]).__name__,
        hint=hint,
    )


def _start_local(
    options: ClusterOptions, workers: int, threads: int, environments: Sequence[Mapping[str, str]]
) -> LocalCluster:
    processes = options.cluster == "processes"
    encrypted = {"security": temporary_security("processes")} if processes and options.tls is not False else {}
    protocol = "tls://" if encrypted else "tcp://"
    spread = processes and bool(environments)
    cluster = (WithEnvironments if spread else WithoutWorkerPages)(
        processes=processes,
        n_workers=0 if spread else workers,
        threads_per_worker=threads + (options.ahead or 1),  # while some wait for a disk or a store, others score
        host=LOOPBACK if processes else None,
        protocol=protocol if processes else "inproc://",
        memory_limit=None if not processes else "auto",
        dashboard_address=f"{LOOPBACK}:0",
        worker_dashboard_address=f"{LOOPBACK}:0",
        scheduler_kwargs={"dashboard": options.dashboard},
        silence_logs=50,
        **encrypted,
    )
    if spread:
        cluster.environments = environments
        cluster.scale(workers)
        cluster.wait_for_workers(workers, timeout=WAIT_S)
    return cluster
