"""The workers of a run, and a client of their cluster."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed import Client

from scorer.errors import BatchStalled, NoWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


WAIT_S = 60  # for the first worker of a cluster
NO_WORKERS_S = 300  # a queue may need minutes to replace a lost job


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
    own_scheduler: bool = False
    """Whether the scheduler runs in this process and is scorer's own class, which serves metrics too."""
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


@contextmanager
def client_of(cluster: Any) -> Iterator[Client]:  # noqa: ANN401 - clusters have an interface, and no common class
    """Yield a client of a cluster. It is not closed if a thread hangs in native code: closing would wait for it."""
    client = Client(cluster, set_as_default=False)
    hangs = False
    try:
        yield client
    except BatchStalled:
        hangs = True
        raise
    finally:
        if not hangs:
            client.close()


def running_workers(client: Client, description: str, wait_s: float = WAIT_S) -> Workers:
    """Wait for the first worker, and return the workers of a cluster that scorer did not start."""
    try:
        client.wait_for_workers(1, timeout=wait_s)
    except TimeoutError:
        raise no_workers(description, wait_s, "start workers on this cluster, then repeat the command") from None
    return Workers(client=client, description=description, remote=is_remote(client))


def no_workers(description: str, wait_s: float, hint: str) -> NoWorkers:
    """Return the error for a cluster without workers."""
    return NoWorkers(
        "the cluster has no workers",
        where=description,
        expected="at least one worker",
        found=f"none after {wait_s:.0f} s",
        hint=hint,
    )


def is_remote(client: Client) -> bool:
    """Return whether the workers run in other processes than this one."""
    return not all(address.startswith("inproc://") for address in client.nthreads())
