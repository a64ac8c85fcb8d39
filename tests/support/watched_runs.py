"""Made-up events and snapshots, a clock set by hand, and a stream that acts as a terminal."""

import io

from support.pseudo_terminal import Screen

from scorer import events
from scorer.events import Counts, PartFinished, Proof, Receipt, Tick
from scorer.report.progress import Snapshot

HALF = Snapshot(
    parts=128, done=79, resumed=12, retried=3, rows=8_000_000, rows_done=4_960_000, scored=4_950_868, quarantined=12,
    filtered=9_120, bytes_read=312_000_000, bytes_written=84_100_000, rows_per_s=1_150_000, rows_per_s_now=1_203_000,
    seconds=13, left_s=(20, 25), workers=2, threads=8, memory_bytes=812_300_000,
)  # fmt: skip


TICK = Tick(workers=1, threads=2, memory_bytes=300_000_000)


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


class Window(io.StringIO):
    """A stream that acts as a terminal of some size; it counts the calls of `write`."""

    encoding = "utf-8"

    def __init__(self, columns=80, rows=24):
        super().__init__()
        self.screen, self.writes = Screen(columns, rows), 0

    def isatty(self):
        return True

    def write(self, text):
        self.writes += 1
        self.screen.feed(text)
        return super().write(text)


def ended(part, rows=100, tries=1, **counts):
    """Return the event of a committed part."""
    proof = Proof(part=part, plan="", model="", counts=Counts(rows=rows, scored=rows, **counts), digests={})
    return PartFinished(receipt=Receipt(proof=proof, name="", size=1000, bytes_read=3000, tries=tries))


STARTED = events.RunStarted(
    run="out-12345678", output="/data/out", plan="12345678" * 8, request="r" * 64, model="m" * 64, host="node", pid=1,
    versions={"scorer": "0.1.0"},
)  # fmt: skip


def finished(part):
    """Return the event of a committed part, as large as in a real run."""
    counts = events.Counts(rows=320, scored=319, quarantined=1)
    proof = events.Proof(part=part, plan="p" * 64, model="m" * 64, counts=counts, digests={"y": "d" * 32})
    stages = events.Stages(read=0.0123, decode=0.0123, pack=0.0123, infer=1.0123, unpack=0.0123, write=0.0123)
    receipt = events.Receipt(
        proof=proof, name=f"part-{part:06}.parquet", size=123_456, bytes_read=654_321, stages=stages, calls=12,
        worker="node0123:123456", started=1_795_315_064.6331, ended=1_795_315_064.7052,
    )  # fmt: skip
    return events.PartFinished(receipt=receipt)
