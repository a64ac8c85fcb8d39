"""Get a Dask client: of a cluster that scorer starts, by its kind, or of a running scheduler."""

from __future__ import annotations

import gc
import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT as CPU_COUNT  # noqa: PLC0414 - for modules that may not import Dask
from distributed import Client as Client  # noqa: PLC0414 - as above
from distributed import default_client

from scorer.cluster import dashboard as dashboard_
from scorer.cluster._overrides import DASK_CONFIG, silenced
from scorer.cluster._servers import forget_closed
from scorer.cluster.kinds import classes, local, queues
from scorer.cluster.kinds.workers import Workers as Workers  # noqa: PLC0414 - as above
from scorer.cluster.kinds.workers import client_of, running_workers
from scorer.errors import ClusterError, OptionsError
from scorer.host.private import private_folder
from scorer.options.values import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from distributed.deploy import Cluster as Cluster  # noqa: PLC0414 - as above

    from scorer.options.fields import ClusterOptions


ANSWER_S = 10  # for a scheduler to write its address, and to answer
_STARTERS = {"embedded": local.start, "processes": local.start, **dict.fromkeys(QUEUES, queues.start)}
"""What starts each kind of --cluster; every other value is the name of a class."""
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
    f"distributed.nanny.pre-spawn-environ.{local.SAFE_PATH}": "1",
    "dataframe.convert-string": False,
}


def problems(options: ClusterOptions) -> tuple[OptionsError | None, ...]:
    """Return why the cluster or its dashboard cannot be started, as far as that is certain without starting it."""
    return dashboard_.problem(options), classes.problem(options)


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
    if client is None and options.cluster == "synchronous":
        yield Workers(client=None, description="this thread")
        return
    with ExitStack() as stack:
        if client is not None:
            workers = stack.enter_context(_given_workers(client))
        elif options.scheduler or options.scheduler_file:
            address = options.scheduler or _read_address(options.scheduler_file or "")
            workers = running_workers(stack.enter_context(_connect_to(address)), f"the scheduler at {address}")
        else:
            start = _STARTERS.get(options.cluster or "embedded", classes.start)
            stack.enter_context(DASK_CONFIG.set(_private_scratch()))
            stack.enter_context(silenced())
            workers = stack.enter_context(start(options, folder, notify, environments))
        yield _with_dashboard(workers, notify) if options.dashboard else workers


@contextmanager
def _given_workers(given: Client | Cluster) -> Iterator[Workers]:
    """Yield the workers of the client or cluster that was passed as `client=`."""
    if classes.is_cluster(given):
        with client_of(given) as opened:
            yield running_workers(opened, "the given cluster")
    else:
        yield running_workers(_checked_client(given), "the given client")


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


def _with_dashboard(workers: Workers, notify: Callable[[str], None]) -> Workers:
    """Report the URL of the dashboard, and return the workers with it, and with that of a scheduler's metrics here."""
    client: Any = workers.client
    port = client.cluster.scheduler.http_server.port if workers.own_scheduler else None
    link = dashboard_.link_to(port) if port else client.dashboard_link or ""
    notify(dashboard_.link_text(link) if link else f"{workers.description} does not serve a dashboard")
    return replace(workers, dashboard=link, metrics=dashboard_.metrics_at(port) if port else "")


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
