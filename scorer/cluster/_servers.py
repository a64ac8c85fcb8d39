"""Dask's scheduler, worker and nanny for this process: they leave its `sys.path` and its environment as they were.

Dask derives settings and folder names from the names of these classes, so they are the same as Dask's.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import distributed
from distributed import LocalCluster

from scorer.cluster._overrides import DASK_CONFIG, ENVIRONMENT
from scorer.cluster.dashboard import routes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class _ListensIfItServes:
    """A part of Dask's servers: an HTTP server that listens only if it has routes."""

    def start_http_server(self, routes: list[Any], *address: Any, **options: Any) -> None:  # noqa: ANN401 - as Dask's
        """Start the HTTP server, unless it would serve nothing."""
        if routes:
            super().start_http_server(routes, *address, **options)  # type: ignore[misc]


class Scheduler(_ListensIfItServes, distributed.Scheduler):  # type: ignore[misc]  # distributed is untyped
    """A scheduler that serves the dashboard's pages only if they are requested, whatever other runs request."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Dask's
        with DASK_CONFIG.alone(), DASK_CONFIG.set(routes(pages=bool(options.get("dashboard")))):
            try:
                super().__init__(*args, **options)
            finally:
                _leave_path(self)

    async def benchmark_hardware(self) -> dict[str, dict[str, float]]:
        """Return no figures: one page of the dashboard measures all workers for everybody who opens it."""
        return {"disk": {}, "memory": {}, "network": {}}


class Worker(_ListensIfItServes, distributed.Worker):  # type: ignore[misc]  # as above
    """A worker that serves metrics only if the dashboard is requested."""

    def __init__(self, *args: Any, serves: bool = False, **options: Any) -> None:  # noqa: ANN401 - Dask's
        self._serves = serves
        try:
            super().__init__(*args, **options)
        finally:
            _leave_path(self)

    async def start_unsafe(self) -> Any:  # noqa: ANN401 - Dask's
        """Start, with the HTTP routes that are requested."""
        with DASK_CONFIG.set(routes(pages=self._serves)):
            return await super().start_unsafe()


class Nanny(distributed.Nanny):  # type: ignore[misc]  # as above
    """A nanny that sets variables for its worker process only while it starts it."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Dask's
        try:
            super().__init__(*args, **options)
        finally:
            _leave_path(self)

    async def instantiate(self) -> Any:  # noqa: ANN401 - Dask's
        """Start the worker process."""
        with ENVIRONMENT.set({**self.pre_spawn_env, "__DASK_PARENT_PID": str(os.getpid())}):
            return await super().instantiate()


class WithoutWorkerPages(LocalCluster):  # type: ignore[misc]  # as above
    """A local cluster whose workers serve no dashboard pages, which would load bokeh in each of them."""

    def __init__(self, *, processes: bool, **options: Any) -> None:  # noqa: ANN401 - Dask's
        super().__init__(processes=processes, worker_class=Nanny if processes else Worker, **options)

    async def _start(self) -> None:
        self.scheduler_spec["cls"] = Scheduler
        self.new_spec["options"]["dashboard"] = False  # LocalCluster serves pages on every worker with an HTTP address
        self.new_spec["options"]["serves"] = bool(self.scheduler_spec["options"].get("dashboard"))
        if self.processes:  # the workers of nannies
            self.new_spec["options"]["worker_class"] = Worker
        await super()._start()


class WithEnvironments(WithoutWorkerPages):
    """A local cluster that spreads `environments` evenly over its workers; a restarted worker keeps its own."""

    environments: Sequence[Mapping[str, str]] = ()

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """Return Dask's specification of the next worker, with the environment that the fewest workers have."""
        ((name, spec),) = super().new_worker_spec().items()
        taken = [one["options"].get("env") for one in self.worker_spec.values()]
        env = min((dict(one) for one in self.environments), key=taken.count)
        return {name: {**spec, "options": {**spec["options"], "env": env}}}


def _renew_offload_pool() -> None:
    """Replace the thread with which Dask reads messages in a forked process, where it does not exist."""
    pool = getattr(distributed.utils, "_offload_executor", None)
    if pool is not None:
        distributed.utils._offload_executor = type(pool)(max_workers=1, thread_name_prefix="Dask-Offload")  # noqa: SLF001 - the name that Dask uses


os.register_at_fork(after_in_child=_renew_offload_pool)


def forget_closed() -> None:
    """Let Python free closed schedulers and workers.

    Dask caches a fact about each of their methods, for ever: 0.3 MB for each cluster.
    """
    clear = getattr(getattr(distributed.core, "_expects_comm", None), "cache_clear", None)
    if clear is not None:
        clear()


def _leave_path(server: distributed.core.Server) -> None:
    """Remove the server's scratch folder from `sys.path`.

    Dask puts it there for uploaded modules, which scorer has none of, and removes it only if it is still the first.
    """
    if getattr(server, "_updated_sys_path", False):
        server._updated_sys_path = False  # noqa: SLF001 - Dask has no option for it
        with suppress(ValueError):
            sys.path.remove(server.local_directory)
