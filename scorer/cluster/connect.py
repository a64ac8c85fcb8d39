"""Get a client: embedded threads, local processes, jobs of a queue, or somebody's scheduler."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import dask
from dask.system import CPU_COUNT as CPU_COUNT  # noqa: PLC0414 - also for modules that may not import Dask
from distributed import Client as Client  # noqa: PLC0414 - as above
from distributed import LocalCluster, SpecCluster, default_client
from distributed.deploy import Cluster as Cluster  # noqa: PLC0414 - as above

from scorer.cluster import dashboard as dashboard_
from scorer.cluster import queues
from scorer.cluster.dashboard import LOOPBACK
from scorer.errors import BatchStalled, ClusterError, NoWorkers, OptionsError
from scorer.host import signals
from scorer.options.values import QUEUES, parse_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from scorer.options.request import ClusterOptions


CORES_PER_PROCESS = 8
WAIT_S = 60
ANSWER_S = 10
NO_WORKERS_S = 300  # a queue may take a while to replace a lost job
_OWN_S = 30  # our own processes are replaced at once, or never
_QUEUED_S = 24 * 3600  # jobs may wait for their turn
_CONFIG = {
    "distributed.scheduler.work-stealing": True,
    "distributed.scheduler.worker-saturation": 2.0,  # a part waits where a thread will be free; others steal it
    "distributed.scheduler.allowed-failures": 20,  # a lost node takes innocent parts with it
    "distributed.worker.memory.target": False,  # receipts are small: nothing is worth spilling
    "distributed.worker.memory.spill": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",  # with the next two: 53 ms of every second become 5
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.low-level-log-length": 100,  # of what nobody reads, for each task several entries
    "distributed.worker.profile.enabled": False,
    "dataframe.convert-string": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Who does the work; no client means the calling thread."""

    client: Client | None
    description: str
    no_worker_timeout_s: float = NO_WORKERS_S
    """How long a run waits for a worker when none is left."""
    scoring_threads: int | None = None
    """Scoring threads of each worker, where we gave it one more to wait for the disk."""
    remote: bool = False
    """Whether its workers may be on other machines, or differ from this process."""
    owned: bool = False
    """Whether we made it, and may end its workers."""
    resubmit: Callable[[], None] | None = None
    """Asks again for workers that are gone; called from time to time."""
    dashboard: str = ""
    """Where Dask's dashboard is, if it was asked for."""
    metrics: str = ""
    """Where this process's metrics are, if there are any."""

    def threads(self) -> int:
        """Scoring threads there are right now."""
        if self.client is None:
            return 1
        each = self.client.nthreads().values()
        return sum(each) if self.scoring_threads is None else self.scoring_threads * len(each)


def planned_threads(options: ClusterOptions) -> int:
    """Threads to plan for, before any cluster exists."""
    if options.cluster == "synchronous":
        return 1
    if options.cluster == "processes":
        workers, threads = _processes(options)
        return workers * threads
    if options.cluster in QUEUES:
        return queues.jobs_of(options) * queues.threads_of(options)
    return options.threads or CPU_COUNT


def elsewhere(options: ClusterOptions) -> bool:
    """Whether others than this machine may score."""
    return bool(options.cluster in QUEUES or options.scheduler or options.scheduler_file)


def local_threads(options: ClusterOptions) -> int:
    """Of the planned threads, those that this machine can run at once; one where others will score."""
    return 1 if elsewhere(options) else min(planned_threads(options), CPU_COUNT)


@contextmanager
def connect(
    options: ClusterOptions, folder: Path, client: Client | Cluster | None = None, tell: Callable[[str], None] = print,
    each: Sequence[Mapping[str, str]] = (),
) -> Iterator[Workers]:  # fmt: skip
    """The workers; a cluster that we made is closed, one that we were given is left as it is.

    Jobs keep their logs and keys in `folder`; `tell` hears what they wait for. Our own processes take turns at the
    environments in `each`.
    """
    with dask.config.set(_CONFIG | dashboard_.routes(pages=options.dashboard)):
        if isinstance(client, Cluster):
            with Client(client, set_as_default=False) as own:
                yield _given(own, "the given cluster", options, tell)
        elif client is not None:
            yield _given(_checked(client), "the given client", options, tell)
        elif options.cluster == "synchronous":
            yield Workers(client=None, description="this thread")
        elif options.scheduler or options.scheduler_file:
            address = options.scheduler or _address_in(options.scheduler_file or "")
            with _remote(address) as remote:
                yield _given(remote, f"the scheduler at {address}", options, tell)
        elif options.cluster in QUEUES:
            with dask.config.set(queues.SCHEDULER_CONFIG), _queued(options, folder, tell) as workers:
                yield workers
        else:
            with _local(options, each, tell) as workers:
                yield workers


def spawns() -> bool:
    """Whether worker processes can start without a guard: they import the main module, which must not be a script."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    return (
        file is None
        or os.path.basename(file) == "scorer"
        or os.path.dirname(file) == os.path.dirname(os.path.dirname(__file__))
    )


def somebody_elses_client() -> bool:
    """Whether this process has a current client, which we leave alone unless it is given to us."""
    try:
        default_client()
    except ValueError:
        return False
    return True


def _checked(client: object) -> Client:
    """What was given, if it is of use."""
    if isinstance(client, Client) and client.status == "running":
        return client
    state = f"a client that is {client.status}" if isinstance(client, Client) else type(client).__name__
    what, hint = "this is no client to work on", "pass a Client or a LocalCluster that is open, or --scheduler ADDRESS"
    raise OptionsError(what, "client", "a Dask client or cluster", state, hint)


def _given(client: Client, words: str, options: ClusterOptions, tell: Callable[[str], None]) -> Workers:
    try:
        client.wait_for_workers(1, timeout=WAIT_S)
    except TimeoutError:
        what, hint = "no worker is there", "start workers, or choose another cluster"
        raise NoWorkers(what, words, "at least one worker", f"none after {WAIT_S} s", hint) from None
    link = client.dashboard_link or "" if options.dashboard else ""
    if options.dashboard:
        tell(dashboard_.invitation(link) if link else f"{words} serves no dashboard")
    far = not all(address.startswith("inproc://") for address in client.nthreads())
    return Workers(client=client, description=words, remote=far, dashboard=link)


def _served(cluster: SpecCluster, options: ClusterOptions, tell: Callable[[str], None]) -> dict[str, Any]:
    """What a scheduler of ours shows to a browser, and where; the link to its dashboard is told."""
    port = cluster.scheduler.http_server.port
    link = dashboard_.link_to(port) if options.dashboard else ""
    if link:
        tell(dashboard_.invitation(link))
    return {"dashboard": link, "metrics": dashboard_.metrics_at(port)}


def _address_in(path: str) -> str:
    """What a scheduler left in its file; it may still be starting."""
    until, found = time.monotonic() + ANSWER_S, "nothing"
    while time.monotonic() < until:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # not there yet, or half written
            return str(json.loads(_text_of(path))["address"])
        time.sleep(0.2)
    if os.path.exists(path):
        found = "a file without an address"
    what, hint = "the scheduler has left no address", "start it with the same --scheduler-file, on a shared file system"
    raise ClusterError(what, path, f"its address within {ANSWER_S} s", found, hint)


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        what, hint = "the scheduler's file cannot be read", "check --scheduler-file"
        raise ClusterError(what, path, "a file", error.strerror or str(error), hint) from error


@contextmanager
def _queued(options: ClusterOptions, folder: Path, tell: Callable[[str], None]) -> Iterator[Workers]:
    """Jobs of a queue; nothing of them is left afterwards."""
    with signals.sigterm_as_interrupt(), queues.start(options, folder) as jobs:
        threads = queues.threads_of(options)
        many = f"{jobs.asked} job{'s' if jobs.asked > 1 else ''} x {threads} thread{'s' if threads > 1 else ''}"
        words = f"{jobs.system}: {'up to ' if jobs.adapts else ''}{many}"
        served = _served(jobs.cluster, options, tell)
        with Client(jobs.cluster, set_as_default=False) as client:
            if not jobs.adapts:
                _await_first(client, jobs, tell)
            yield Workers(
                client=client, description=words, no_worker_timeout_s=_QUEUED_S, scoring_threads=threads,
                remote=True, owned=True, resubmit=jobs.resubmit, **served,
            )  # fmt: skip


def _await_first(client: Client, jobs: queues.Jobs, tell: Callable[[str], None]) -> None:
    """Until a job has brought a worker; jobs that end without one are asked for again, a few times."""
    until, told = time.monotonic() + _QUEUED_S, False
    while not client.nthreads():
        if time.monotonic() > until:
            what, hint = "no job has started", f"look at the queue of {jobs.system}, and repeat the command"
            raise NoWorkers(what, jobs.system, "at least one worker", f"none after {_QUEUED_S // 3600} h", hint)
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=5)
            return
        if not told:
            tell(f"waiting for {jobs.system} to start a job")
            told = True
        jobs.resubmit()


@contextmanager
def _remote(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        found = str(error) or type(error).__name__
    else:
        with client:
            yield client
        return
    gc.collect()  # the half-made client closes here; in the loop thread of the next one it would wait for itself
    what, hint = "the scheduler does not answer", "check the address and that the scheduler runs"
    raise ClusterError(what, address, "a Dask scheduler", found, hint)


@contextmanager
def _local(
    options: ClusterOptions, each: Sequence[Mapping[str, str]], tell: Callable[[str], None]
) -> Iterator[Workers]:
    """Our own cluster, on loopback only."""
    processes = options.cluster == "processes"
    workers, threads = _processes(options) if processes else (1, options.threads or CPU_COUNT)
    before = dict(os.environ)
    if processes:
        resource_tracker.ensure_running()  # its start unblocks interrupts: not while they are held back
    cluster: LocalCluster | None = None
    try:
        with signals.ignored_by_children():
            cluster = _start(options, workers, threads, each)
    except KeyboardInterrupt:  # it waited until the cluster was there, or could not be
        if cluster is not None:
            cluster.close(timeout=10)
        raise
    except (RuntimeError, OSError) as error:
        what = "worker processes do not start"
        hint = 'in a script, call scorer under `if __name__ == "__main__":`; each process imports the script'
        raise ClusterError(what, f"{workers} processes", "processes that answer", str(error), hint) from error
    for name in os.environ.keys() - before.keys():  # nannies set thread counts in the parent too
        del os.environ[name]
    os.environ.update(before)
    if options.adapt:
        least, most = parse_span(options.adapt)
        cluster.adapt(minimum=least, maximum=most)
    many = f"{threads} thread{'s' if threads > 1 else ''}"
    words = f"{workers} process{'es' if workers > 1 else ''} x {many}" if processes else f"{many} of this process"
    served = _served(cluster, options, tell)
    client = Client(cluster, set_as_default=False)
    hangs = False
    try:
        yield Workers(
            client=client,
            description=words,
            no_worker_timeout_s=_OWN_S,
            scoring_threads=threads,
            remote=processes,
            owned=True,
            **served,
        )
    except BatchStalled:  # one of our threads is in native code for good: closing would wait for it
        hangs = True
        raise
    finally:
        if not hangs:
            client.close()
            cluster.close(timeout=10)


class _Ours(LocalCluster):  # type: ignore[misc]  # distributed is untyped
    """Its workers have no pages of their own: the scheduler's say it all, and they would load bokeh in each."""

    async def _start(self) -> None:
        self.new_spec["options"]["dashboard"] = False  # LocalCluster gives pages to whoever has an address
        await super()._start()


class _Sharing(_Ours):
    """Each worker process gets an environment that fewest others have; one that is replaced keeps its own."""

    each: Sequence[Mapping[str, str]] = ()

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """What the next worker is made of."""
        ((name, spec),) = super().new_worker_spec().items()
        taken = [one["options"].get("env") for one in self.worker_spec.values()]
        env = min((dict(one) for one in self.each), key=taken.count)
        return {name: {**spec, "options": {**spec["options"], "env": env}}}


def _start(options: ClusterOptions, workers: int, threads: int, each: Sequence[Mapping[str, str]]) -> LocalCluster:
    processes = options.cluster == "processes"
    encrypted = {"security": queues.keys()} if processes and options.tls else {}
    protocol = "tls://" if encrypted else "tcp://"
    shares = processes and bool(each)
    cluster = (_Sharing if shares else _Ours)(
        processes=processes,
        n_workers=0 if shares else workers,
        threads_per_worker=threads + 1,  # one waits for the disk
        host=LOOPBACK if processes else None,
        protocol=protocol if processes else "inproc://",
        memory_limit=None if not processes else "auto",
        dashboard_address=f"{LOOPBACK}:0",
        worker_dashboard_address=f"{LOOPBACK}:0",
        scheduler_kwargs={"dashboard": options.dashboard},
        silence_logs=50,
        **encrypted,
    )
    if shares:
        cluster.each = each
        cluster.scale(workers)
        cluster.wait_for_workers(workers, timeout=WAIT_S)
    return cluster


def _processes(options: ClusterOptions) -> tuple[int, int]:
    """Worker processes and the threads of each, within the usable cores."""
    most = parse_span(options.adapt)[1] if options.adapt else None
    workers = options.workers or most or max(1, CPU_COUNT // (options.threads or min(CORES_PER_PROCESS, CPU_COUNT)))
    return workers, options.threads or max(1, CPU_COUNT // workers)
