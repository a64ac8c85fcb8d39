"""How many workers and threads the options will give, before any cluster exists."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dask.system import CPU_COUNT

from scorer.cluster.kinds import queues
from scorer.locations import is_url
from scorer.options.values import QUEUES, is_class, parse_span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scorer.options.fields import ClusterOptions


_CORES_PER_PROCESS = 8
_MOST_AHEAD = 16


def ahead_of(options: ClusterOptions, locations: Iterable[str]) -> int:
    """Return how many parts a worker reads or writes beside those that it scores; more if a location is on a store."""
    if options.ahead is not None:
        return options.ahead
    return min(_MOST_AHEAD, 2 * process_threads(options)) if any(map(is_url, locations)) else 1


def planned_threads(options: ClusterOptions) -> int:
    """Return the number of scoring threads that these options will give."""
    if options.cluster == "synchronous":
        return 1
    if options.cluster == "processes":
        workers, threads = processes_and_threads(options)
        return workers * threads
    if uses_jobs(options):
        return queues.jobs_of(options) * process_threads(options)
    return options.threads or CPU_COUNT


def process_threads(options: ClusterOptions) -> int:
    """Return how many of the planned threads score in one process."""
    if options.cluster == "processes":
        return processes_and_threads(options)[1]
    if options.cluster in QUEUES:
        return queues.threads_of(options)
    return 1 if options.cluster == "synchronous" else options.threads or CPU_COUNT


def processes_and_threads(options: ClusterOptions) -> tuple[int, int]:
    """Return the number of worker processes and the scoring threads of each, by the usable cores."""
    most = parse_span(options.adapt)[1] if options.adapt else None
    workers = options.workers or most or max(1, CPU_COUNT // (options.threads or min(_CORES_PER_PROCESS, CPU_COUNT)))
    return workers, options.threads or max(1, CPU_COUNT // workers)


def planned_processes(options: ClusterOptions, cluster: str) -> int:
    """Return how many local worker processes the cluster that was chosen will have; 0 if none of them is local."""
    if cluster != "processes" or uses_other_machines(options):
        return 0
    threads = options.threads if options.cluster == "processes" else 1
    return processes_and_threads(replace(options, threads=threads))[0]


def uses_jobs(options: ClusterOptions) -> bool:
    """Return whether scorer requests the workers from a queue or a cluster's class, which may cost money."""
    return options.cluster in QUEUES or is_class(options.cluster)


def uses_other_machines(options: ClusterOptions) -> bool:
    """Return whether parts may be scored on other machines."""
    return bool(uses_jobs(options) or options.scheduler or options.scheduler_file)


def local_threads(options: ClusterOptions) -> int:
    """Return how many of the planned threads this machine can run at once; 1 if other machines will score."""
    return 1 if uses_other_machines(options) else min(planned_threads(options), CPU_COUNT)
