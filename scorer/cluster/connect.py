"""Get a Dask client: threads of this process, local processes, jobs of a queue, or a running scheduler."""

from __future__ import annotations

import errno
import gc
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT as CPU_COUNT  # noqa: PLC0414 - for modules that may not import Dask
from distributed import Client as Client  # noqa: PLC0414 - as above
from distributed import LocalCluster, SpecCluster, default_client
from distributed.deploy import Cluster as Cluster  # noqa: PLC0414 - as above

from scorer.cluster import dashboard as dashboard_
from scorer.cluster import queues, scripts
from scorer.cluster._overrides import DASK_CONFIG, ENVIRONMENT, silenced
from scorer.cluster._servers import WithEnvironments, WithoutWorkerPages, forget_closed
from scorer.cluster.dashboard import LOOPBACK
from scorer.errors import BatchStalled, ClusterError, NoWorkers, OptionsError
from scorer.host import signals
from scorer.host.limits import MORE_FILES, MORE_THREADS, OUT_OF_FILES, lacks_thread
from scorer.host.private import private_folder
from scorer.locations import is_url
from scorer.options.values import QUEUES, parse_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from scorer.options.fields import ClusterOptions


CORES_PER_PROCESS = 8
_MOST_AHEAD = 16
WAIT_S = 60  # for the first worker of a cluster
ANSWER_S = 10  # for a scheduler to write its address, and to answer
NO_WORKERS_S = 300  # a queue may need minutes to replace a lost job
_LOCAL_NO_WORKERS_S = 30  # a nanny replaces a dead local process at once, or never
_QUEUE_NO_WORKERS_S = 24 * 3600  # jobs may be queued for hours before they start
_SAFE_PATH = "PYTHONSAFEPATH"
"""With this variable, a new Python process imports nothing from the current folder, where a types.py may lie."""
_CONFIG = {
    "distributed.scheduler.work-stealing": True,
    "distributed.scheduler.worker-saturation": 2.0,  # each worker has parts waiting; idle workers steal them
    "distributed.scheduler.allowed-failures": 20,  # a lost node counts against every part that ran on it
    "distributed.worker.memory.target": False,  # results are small receipts: spilling would gain nothing
    "distributed.worker.memory.spill": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",  # this and the next two: 5 ms of overhead a second, not 53
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.large-graph-warning-threshold": "1GB",  # parts of many files: 128 bytes for each of 100,000
    "distributed.admin.low-level-log-length": 100,  # nothing reads this log, and each task adds several entries
    "distributed.worker.profile.enabled": False,
    f"distributed.nanny.pre-spawn-environ.{_SAFE_PATH}": "1",
    "dataframe.convert-string": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of one run, and what the run must know about them."""

    client: Client | None
    """The Dask client to submit parts with; None to score in the calling thread, without a scheduler."""
    description: str
    """The workers in a few words, for messages: `2 threads of this process`."""
    no_worker_timeout_s: float = NO_WORKERS_S
    """Seconds without any worker after which the run fails."""
    scoring_threads: int | None = None
    """Parts that a worker scores at once. None if that is its number of threads.

    Workers that scorer starts have more threads, so that parts can wait for a disk or a store while others are scored.
    """
    ahead: int = 1
    """How many more."""
    remote: bool = False
    """Whether the workers are other processes, which may run on other machines or with other package versions."""
    owned: bool = False
    """Whether scorer started the workers, and may therefore stop single ones."""
    resubmit: Callable[[], None] | None = None
    """Submits lost jobs again; called every few seconds. None where workers are not jobs of a queue."""
    dashboard: str = ""
    """URL of Dask's dashboard; empty unless it was requested and is served."""
    metrics: str = ""
    """URL of this process's Prometheus metrics; empty if they are not served."""

    @property
    def spread(self) -> float:
        """How many times as many parts are in progress as if only one was read or written ahead."""
        own = self.scoring_threads
        return 1.0 if own is None else (own + self.ahead) / (own + 1)

    def share_hosts(self) -> bool:
        """Return whether several of the worker processes that are connected now run on one host."""
        if self.client is None or not self.remote:
            return False
        addresses = self.client.nthreads()
        return len({address.rpartition(":")[0] for address in addresses}) < len(addresses)

    def threads(self) -> int:
        """Return the number of scoring threads of the workers that are connected now."""
        if self.client is None:
            return 1
        each = self.client.nthreads().values()
        return sum(each) if self.scoring_threads is None else self.scoring_threads * len(each)


def ahead_of(options: ClusterOptions, locations: Iterable[str]) -> int:
    """Return how many parts a worker reads or writes beside those that it scores; more if a location is on a store."""
    if options.ahead is not None:
        return options.ahead
    return min(_MOST_AHEAD, 2 * process_threads(options)) if any(map(is_url, locations)) else 1


def planned_threads(options: ClusterOptions) -> int:
    """Return the number of scoring threads that these options will give, before any cluster exists."""
    if options.cluster == "synchronous":
        return 1
    if options.cluster == "processes":
        workers, threads = _processes_and_threads(options)
        return workers * threads
    if options.cluster in QUEUES:
        return queues.jobs_of(options) * queues.threads_of(options)
    return options.threads or CPU_COUNT


def process_threads(options: ClusterOptions) -> int:
    """Return how many of the planned threads score in one process."""
    if options.cluster == "processes":
        return _processes_and_threads(options)[1]
    return queues.threads_of(options) if options.cluster in QUEUES else planned_threads(options)


def planned_processes(options: ClusterOptions, cluster: str) -> int:
    """Return how many local worker processes the cluster that was chosen will have; 0 if none of them is local."""
    if cluster != "processes" or uses_other_machines(options):
        return 0
    threads = options.threads if options.cluster == "processes" else 1
    return _processes_and_threads(replace(options, threads=threads))[0]


def uses_other_machines(options: ClusterOptions) -> bool:
    """Return whether parts may be scored on other machines."""
    return bool(options.cluster in QUEUES or options.scheduler or options.scheduler_file)


def local_threads(options: ClusterOptions) -> int:
    """Return how many of the planned threads this machine can run at once; 1 if other machines will score."""
    return 1 if uses_other_machines(options) else min(planned_threads(options), CPU_COUNT)


@contextmanager
def connect(
    options: ClusterOptions, folder: Path, client: Client | Cluster | None = None,
    notify: Callable[[str], None] = print, environments: Sequence[Mapping[str, str]] = (),
) -> Iterator[Workers]:  # fmt: skip
    """Yield the workers. A cluster that scorer starts is closed afterwards; a given one stays as it is.

    Logs and TLS keys of jobs are kept in `folder`. `notify` receives lines for the user, such as the dashboard's URL.
    Local worker processes are spread evenly over `environments`, sets of environment variables that select a GPU.
    """
    try:
        with (
            DASK_CONFIG.set(_CONFIG | dashboard_.routes(pages=True)),
            _workers(options, folder, client, notify, environments) as workers,
        ):
            yield workers
    finally:
        forget_closed()


@contextmanager
def _workers(
    options: ClusterOptions, folder: Path, client: Client | Cluster | None, notify: Callable[[str], None],
    environments: Sequence[Mapping[str, str]],
) -> Iterator[Workers]:  # fmt: skip
    """Yield the workers that the options name."""
    if isinstance(client, Cluster):
        with Client(client, set_as_default=False) as opened:
            yield _existing_workers(opened, "the given cluster", options, notify)
    elif client is not None:
        yield _existing_workers(_checked_client(client), "the given client", options, notify)
    elif options.cluster == "synchronous":
        yield Workers(client=None, description="this thread")
    elif options.scheduler or options.scheduler_file:
        address = options.scheduler or _read_address(options.scheduler_file or "")
        with _connect_to(address) as opened:
            yield _existing_workers(opened, f"the scheduler at {address}", options, notify)
    elif options.cluster in QUEUES:
        config = DASK_CONFIG.set(queues.SCHEDULER_CONFIG | _private_scratch())
        with config, silenced(), _queue_workers(options, folder, notify) as workers:
            yield workers
    else:
        with DASK_CONFIG.set(_private_scratch()), silenced(), _local_workers(options, environments, notify) as workers:
            yield workers


def has_current_client() -> bool:
    """Return whether this process has a current Dask client. scorer uses one only if it is passed as `client=`."""
    try:
        default_client()
    except ValueError:
        return False
    return True


def _checked_client(client: object) -> Client:
    """Return the given client; raise `OptionsError` unless it is an open Dask client."""
    if isinstance(client, Client) and client.status == "running":
        return client
    raise OptionsError(
        "the given client cannot be used",
        where="client",
        expected="an open Dask client or cluster",
        found=f"a {client.status} client" if isinstance(client, Client) else type(client).__name__,
        hint="pass an open Client or LocalCluster as client=",
    )


def _existing_workers(
    client: Client, description: str, options: ClusterOptions, notify: Callable[[str], None]
) -> Workers:
    """Wait for the first worker of a cluster that scorer did not start, and return its workers."""
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError:
        raise NoWorkers(
            "the cluster has no workers",
            where=description,
            expected="at least one worker",
            found=f"none after {WAIT_S} s",
            hint="start workers on this cluster, then repeat the command",
        ) from None
    link = client.dashboard_link or "" if options.dashboard else ""
    if options.dashboard:
        notify(dashboard_.link_text(link) if link else f"{description} does not serve a dashboard")
    remote = not all(address.startswith("inproc://") for address in client.nthreads())
    return Workers(client=client, description=description, remote=remote, dashboard=link)


def _urls(cluster: SpecCluster, options: ClusterOptions, notify: Callable[[str], None]) -> dict[str, Any]:
    """Return the URLs of the dashboard and the metrics of a scheduler in this process; report the dashboard's."""
    if not options.dashboard:
        return {}
    port = cluster.scheduler.http_server.port
    link = dashboard_.link_to(port)
    notify(dashboard_.link_text(link))
    return {"dashboard": link, "metrics": dashboard_.metrics_at(port)}


def _read_address(path: str) -> str:
    """Return the address in a scheduler file; wait for a scheduler that is still starting."""
    until, found = time.monotonic() + ANSWER_S, "no such file"
    while time.monotonic() < until:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # not written yet, or only half
            return str(json.loads(_read_text(path))["address"])
        time.sleep(0.2)
    if os.path.exists(path):
        found = "a file without an address"
    raise ClusterError(
        "the scheduler has not written its address",
        where=path,
        expected=f"its address within {ANSWER_S} s",
        found=found,
        hint="start the scheduler with the same --scheduler-file, on a file system that both machines share",
    )


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ClusterError(
            "the scheduler file cannot be read",
            where=path,
            expected="a readable file",
            found=error.strerror or str(error),
            hint="check the path and the permissions of --scheduler-file",
        ) from error


@contextmanager
def _queue_workers(options: ClusterOptions, folder: Path, notify: Callable[[str], None]) -> Iterator[Workers]:
    """Yield workers that are jobs of a queue; cancel the jobs and remove their files afterwards."""
    with signals.sigterm_as_interrupt(), queues.start(options, folder) as jobs:
        threads = queues.threads_of(options)
        many = f"{jobs.requested} job{'s' if jobs.requested > 1 else ''} x {threads} thread{'s' if threads > 1 else ''}"
        description = f"{jobs.system}: {'up to ' if jobs.adaptive else ''}{many}"
        urls = _urls(jobs.cluster, options, notify)
        with Client(jobs.cluster, set_as_default=False) as client:
            if not jobs.adaptive:
                _wait_for_first_worker(client, jobs, notify)
            yield Workers(
                client=client, description=description, no_worker_timeout_s=_QUEUE_NO_WORKERS_S,
                scoring_threads=threads, ahead=options.ahead or 1, remote=True, owned=True, resubmit=jobs.resubmit,
                **urls,
            )  # fmt: skip


def _wait_for_first_worker(client: Client, jobs: queues.Jobs, notify: Callable[[str], None]) -> None:
    """Wait until the first worker connects; submit jobs again that end before that, a few times."""
    until, notified = time.monotonic() + _QUEUE_NO_WORKERS_S, False
    while not client.nthreads():
        if time.monotonic() > until:
            raise NoWorkers(
                "no job has started",
                where=jobs.system,
                expected="at least one worker",
                found=f"none after {_QUEUE_NO_WORKERS_S // 3600} h",
                hint=f"repeat the command, and run {queues.STATUS_COMMANDS[jobs.system].split()[0]} while it waits "
                "to see why the jobs do not start",
            )
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=5)
            return
        if not notified:
            notify(f"waiting for {jobs.system} to start a job")
            notified = True
        jobs.resubmit()


@contextmanager
def _connect_to(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        found = str(error) or type(error).__name__
    else:
        with client:
            yield client
        return
    # Collect the half-open client now: if the next client's event loop collected it, closing would deadlock there.
    gc.collect()
    raise ClusterError(
        "the scheduler does not answer",
        where=address,
        expected="a Dask scheduler",
        found=found,
        hint="check the address and that the scheduler runs",
    )


def _private_scratch() -> dict[str, str]:
    """Return the Dask setting of a scratch folder that no other user can write to."""
    base = DASK_CONFIG.before("temporary-directory") or None
    try:
        return {"temporary-directory": private_folder(base)}
    except OSError as error:
        raise ClusterError(
            "the temporary directory cannot be used",
            where=error.filename or base or "TMPDIR",
            expected="a folder in which folders can be created",
            found=error.strerror or str(error),
            hint="set TMPDIR to another folder",
        ) from error


@contextmanager
def _local_workers(
    options: ClusterOptions, environments: Sequence[Mapping[str, str]], notify: Callable[[str], None]
) -> Iterator[Workers]:
    """Yield threads of this process, or local processes that listen on loopback only; close them afterwards."""
    processes = options.cluster == "processes"
    workers, threads = _processes_and_threads(options) if processes else (1, options.threads or CPU_COUNT)
    if processes:
        scripts.end_if_imported_by_a_worker()
        with ENVIRONMENT.set({_SAFE_PATH: "1"}):
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
    urls = _urls(cluster, options, notify)
    client = Client(cluster, set_as_default=False)
    hangs = False
    try:
        yield Workers(
            client=client,
            description=description,
            no_worker_timeout_s=_LOCAL_NO_WORKERS_S,
            scoring_threads=threads,
            ahead=options.ahead or 1,
            remote=processes,
            owned=True,
            **urls,
        )
    except BatchStalled:  # a thread of this process never returns from native code, and closing would wait for it
        hangs = True
        raise
    finally:
        if not hangs:
            client.close()
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
    encrypted = {"security": queues.temporary_security("processes")} if processes and options.tls is not False else {}
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


def _processes_and_threads(options: ClusterOptions) -> tuple[int, int]:
    """Return the number of worker processes and the scoring threads of each, by the usable cores."""
    most = parse_span(options.adapt)[1] if options.adapt else None
    workers = options.workers or most or max(1, CPU_COUNT // (options.threads or min(CORES_PER_PROCESS, CPU_COUNT)))
    return workers, options.threads or max(1, CPU_COUNT // workers)
