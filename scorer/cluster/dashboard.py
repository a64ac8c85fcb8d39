"""What Dask's dashboard shows of a run: its URL on loopback, a span with the run's name, and a few log events.

Every user of the machine can open it. Pages and metrics are therefore served only with `--dashboard`, and none of them
acts on the run. Without the flag, no HTTP server even listens.
"""

from __future__ import annotations

import socket
import sys
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import dask
from distributed import span
from distributed.utils import format_dashboard_link
from distributed.versions import BOKEH_REQUIREMENT

from scorer.cluster._overrides import DASK_CONFIG, WARNINGS
from scorer.errors import OptionsError
from scorer.events import PartFailed, PlanReady

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

    from scorer.events import Event
    from scorer.options.fields import ClusterOptions


LOOPBACK = "127.0.0.1"
TOPIC = "scorer"
_ACTING = {"distributed.http.scheduler.api", "distributed.http.proxy"}
"""Routes that retire workers, or connect to other addresses, for everybody who can open the page."""
_OF_WORKERS = {"distributed.http.worker.prometheus", "distributed.http.health"}
"""What workers serve with `--dashboard`; the pages are served by the scheduler."""
_MAX_LOGGED_FAILURES = 20  # further failed parts are only counted, in the last event
_ANSWER_S = 5


def problem(options: ClusterOptions) -> OptionsError | None:
    """Return an error if the dashboard lacks bokeh here. A running scheduler serves its own dashboard."""
    if not options.dashboard or options.scheduler or options.scheduler_file:
        return None
    found = "nothing"
    if find_spec("bokeh") is not None:
        with suppress(PackageNotFoundError):
            found = f"bokeh {version('bokeh')}"
            if BOKEH_REQUIREMENT.specifier.contains(version("bokeh"), prereleases=True):
                return None
    return OptionsError(
        "the dashboard needs a package that is not installed",
        where="--dashboard",
        expected=str(BOKEH_REQUIREMENT),
        found=found,
        hint="pip install 'dask-scorer[dashboard]', or leave --dashboard out",
    )


def routes(*, pages: bool) -> dict[str, list[str]]:
    """Return Dask settings of what HTTP servers serve: with pages or nothing of Dask's; a user's own routes stay."""

    def served(names: list[str], allowed: Callable[[str], bool]) -> list[str]:
        return [name for name in names if (pages and allowed(name)) or not name.startswith("distributed.http.")]

    scheduler, worker = "distributed.scheduler.http.routes", "distributed.worker.http.routes"
    return {
        scheduler: served(DASK_CONFIG.before(scheduler), lambda name: name not in _ACTING),
        worker: served(DASK_CONFIG.before(worker), _OF_WORKERS.__contains__),
    }


def link_to(port: int) -> str:
    """Return the URL of the dashboard of a scheduler in this process, as Dask's settings format it for proxies."""
    try:
        return str(format_dashboard_link(LOOPBACK, port))
    except KeyError:  # Dask's template names an environment variable that is not set
        return f"http://{LOOPBACK}:{port}/status"


def metrics_at(port: int) -> str:
    """Return the URL of this process's metrics; '' without prometheus_client, which Dask imports if it can."""
    scheme = "https" if dask.config.get("distributed.scheduler.dashboard.tls.cert") else "http"
    return f"{scheme}://{LOOPBACK}:{port}/metrics" if "prometheus_client" in sys.modules else ""


def link_text(link: str) -> str:
    """Return a line with the link, and the SSH tunnel to open it from another machine."""
    at = f"://{LOOPBACK}:"
    if at not in link:
        return f"Dask's dashboard: {link}"
    port = link.partition(at)[2].split("/")[0]
    tunnel = f"ssh -L {port}:{LOOPBACK}:{port} {socket.gethostname()}"
    return f"Dask's dashboard: {link} (from another machine: {tunnel})"


def span_of(run: str) -> dict[str, Any]:
    """Return the annotation that puts tasks of all waves into one span with the run's name."""
    with span("scorer", run):
        return dask.get_annotations()["span"]  # type: ignore[no-any-return]


@contextmanager
def in_span(annotation: dict[str, Any]) -> Iterator[None]:
    """Put the tasks that are submitted in this context into the span."""
    # Dask warns that frames ignore annotations, but `persist` uses them.
    with WARNINGS.ignored("Dask annotations", UserWarning), dask.annotate(span=annotation):
        yield


class Topic:
    """An observer that logs a few events at the scheduler: the start of scoring, failed parts, and the end.

    `client.get_events("scorer")` returns them. If an event cannot be logged, the run continues.
    """

    def __init__(self, client: Client | None, run: str, progress: Callable[[], dict[str, Any]]) -> None:
        self._client, self._run, self._progress = client, run, progress
        self._failures = 0

    def __call__(self, event: Event) -> None:
        """Log the event, if it is one of the few that are logged."""
        match event:
            case PlanReady():
                fields = ("output", "parts", "done", "rows", "rows_done")
                self._log("PlanReady", **{name: getattr(event, name) for name in fields})
            case PartFailed() if self._failures < _MAX_LOGGED_FAILURES:
                self._failures += 1
                self._log("PartFailed", part=event.part, error=event.error)

    def __enter__(self) -> Self:
        """Scoring starts."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, place: object) -> None:
        """Log the end of scoring; not after an interrupt, which must not wait for the scheduler."""
        fields = ("parts", "done", "failed", "retried", "rows", "rows_done", "quarantined", "seconds")
        progress = self._progress()
        if kind is None or issubclass(kind, Exception):
            self._log("ScoringEnded", **{name: progress[name] for name in fields if name in progress})
        self._client = None

    def _log(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - plain data
        client = self._client
        if client is None or client.status != "running":
            return
        with suppress(OSError, TimeoutError, RuntimeError):
            message = {"run": self._run, "event": event, **fields}
            client.sync(client.scheduler.log_event, topic=TOPIC, msg=message, callback_timeout=_ANSWER_S)
