"""What Dask's dashboard is given: an address on loopback, a span with the run's name, a few log events.

Its pages are served only when they are asked for; health and metrics always, as Dask does.
"""

from __future__ import annotations

import socket
import sys
import warnings
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import dask
from distributed import span
from distributed.utils import format_dashboard_link
from distributed.versions import BOKEH_REQUIREMENT

from scorer.errors import OptionsError
from scorer.events import PartFailed, PlanReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

    from scorer.events import Event
    from scorer.options.request import ClusterOptions


LOOPBACK = "127.0.0.1"
TOPIC = "scorer"
_PAGES = {
    "distributed.http.scheduler.info",
    "distributed.http.scheduler.json",
    "distributed.http.proxy",
    "distributed.http.statics",
}
_FAILURES = 20  # told one by one; the rest are a number
_ANSWER_S = 5


def problem(options: ClusterOptions) -> OptionsError | None:
    """What a dashboard of ours would lack here; a scheduler that is there has its own."""
    if not options.dashboard or options.scheduler or options.scheduler_file:
        return None
    found = "nothing"
    if find_spec("bokeh") is not None:
        with suppress(PackageNotFoundError):
            found = f"bokeh {version('bokeh')}"
            if BOKEH_REQUIREMENT.specifier.contains(version("bokeh"), prereleases=True):
                return None
    what = "the dashboard needs a package that is not installed"
    hint = "pip install 'dask-scorer[dashboard]', or leave --dashboard out"
    return OptionsError(what, "--dashboard", str(BOKEH_REQUIREMENT), found, hint)


def routes(*, pages: bool) -> dict[str, list[str]]:
    """Dask's settings of what its HTTP servers answer; a user's own routes stay."""
    names = ("distributed.scheduler.http.routes", "distributed.worker.http.routes")
    return {
        name: [route for route in dask.config.get(name) if route not in _PAGES]
        for name in (names[1:] if pages else names)
    }


def link_to(port: int) -> str:
    """Of a scheduler of ours, as Dask's own settings write links: behind a proxy they differ."""
    try:
        return str(format_dashboard_link(LOOPBACK, port))
    except KeyError:  # of a variable that is not set
        return f"http://{LOOPBACK}:{port}/status"


def metrics_at(port: int) -> str:
    """Where a scheduler of ours shows this process's metrics; Dask has loaded prometheus_client where it is there."""
    scheme = "https" if dask.config.get("distributed.scheduler.dashboard.tls.cert") else "http"
    return f"{scheme}://{LOOPBACK}:{port}/metrics" if "prometheus_client" in sys.modules else ""


def invitation(link: str) -> str:
    """The link, and how to get there from another machine."""
    at = f"://{LOOPBACK}:"
    if at not in link:
        return f"Dask's dashboard: {link}"
    port = link.partition(at)[2].split("/")[0]
    tunnel = f"ssh -L {port}:{LOOPBACK}:{port} {socket.gethostname()}"
    return f"Dask's dashboard: {link} (from another machine: {tunnel})"


def span_of(run: str) -> dict[str, Any]:
    """An annotation that puts tasks into the run's span, however many waves they come in."""
    with span("scorer", run):
        return dask.get_annotations()["span"]  # type: ignore[no-any-return]


@contextmanager
def in_span(annotation: dict[str, Any]) -> Iterator[None]:
    """Tasks that are sent meanwhile belong to the span."""
    with warnings.catch_warnings(), dask.annotate(span=annotation):
        warnings.filterwarnings("ignore", "Dask annotations", UserWarning)  # frames ignore them, the client does not
        yield


class Topic:
    """Watches a run and logs a few events at the scheduler: the start, what failed, and the end of scoring.

    `client.get_events("scorer")` gives them. Whether they arrive or not, the run goes on.
    """

    def __init__(self, client: Client | None, run: str, progress: Callable[[], dict[str, Any]]) -> None:
        self._client, self._run, self._progress = client, run, progress
        self._failures = 0

    def __call__(self, event: Event) -> None:
        """Tell the scheduler, if it is worth it."""
        match event:
            case PlanReady():
                shown = ("output", "parts", "done", "rows", "rows_done")
                self._log("PlanReady", **{name: getattr(event, name) for name in shown})
            case PartFailed() if self._failures < _FAILURES:
                self._failures += 1
                self._log("PartFailed", part=event.part, error=event.error)

    def __enter__(self) -> Self:
        """Scoring begins."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, place: object) -> None:
        """Scoring is over; whoever stops at once does not wait for the scheduler."""
        shown = ("parts", "done", "failed", "retried", "rows", "rows_done", "quarantined", "seconds")
        seen = self._progress()
        if kind is None or issubclass(kind, Exception):
            self._log("ScoringEnded", **{name: seen[name] for name in shown if name in seen})
        self._client = None

    def _log(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - plain data
        client = self._client
        if client is None or client.status != "running":
            return
        with suppress(OSError, TimeoutError, RuntimeError):
            message = {"run": self._run, "event": event, **fields}
            client.sync(client.scheduler.log_event, topic=TOPIC, msg=message, callback_timeout=_ANSWER_S)
