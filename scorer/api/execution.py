"""One execution of a plan: who works, what came of each part, and how it ends."""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scorer.api import _failures as failures
from scorer.cluster import readiness, waves
from scorer.cluster.connect import connect, somebody_elses_client
from scorer.cluster.dashboard import Topic
from scorer.errors import ClusterError, CommitError, Interrupted, ModelError, RunFailed, ScorerError
from scorer.events import Counts, Notice, PartFailed, PartFinished, PlanReady, Published, RunEnded, RunStarted, Stopping
from scorer.host import crash, devices, process, signals, versions
from scorer.host.process import name_of_process
from scorer.model.resident import SESSIONS
from scorer.options.values import QUEUES, within_budget
from scorer.output import ledger, lock, place, publish, quarantine
from scorer.output import staging as staging_
from scorer.output.attempts import crash_seen
from scorer.output.place import Place
from scorer.plan.frozen import refuse_different
from scorer.report.eventlog import EVENTS, EventLog
from scorer.report.outcome import Report, time_before, total
from scorer.report.progress import Progress
from scorer.scoring.job import JOBS, Spec, meter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.cluster.connect import Client, Cluster, Workers
    from scorer.events import Event, Observer, Receipt
    from scorer.output.place import Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part
    from scorer.plan.prepared import Plan


_EARLY_PARTS, _EARLY_ROWS = 4, 10_000  # beyond either, more than half bad stops a run
_EARLY_FAILURES = 10  # parts


class Run:
    """One execution: its receipts, and what to do when something ends it."""

    def __init__(self, plan: Plan, observers: Sequence[Observer]) -> None:
        self.frozen: FrozenPlan = plan.check()
        self.plan = plan
        self.n_parts, self.rows = self.frozen.n_parts, self.frozen.rows
        self.options = plan.options
        self.place = Place.of(plan.output, plan.work_dir)
        self.progress = Progress()
        log = EventLog(self.place.folder / EVENTS, self.progress, self.tell)
        self.observers: list[Observer] = [self.progress, log, *observers]
        self.started = time.monotonic()
        self.receipts: dict[int, Receipt] = {}
        self.ours: dict[int, Receipt] = {}
        self.failed: dict[int, ScorerError] = {}
        self.fatal: ScorerError | None = None
        self.begun = self.stopping = False
        self.threads, self.scoring_s = 0, 0.0

    def go(self, client: Client | Cluster | None) -> Report:
        """Carry it out, and tell whoever watches how it ended."""
        if self.plan.done:
            publish.tidy(self.place, self.tell)
            return self.report(already_done=True)
        try:
            finished = self.carry_out(client)
        except BaseException as error:
            code = Interrupted.exit_code if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
            self.end(code, str(error) or type(error).__name__)
            raise
        self.end(0)
        return finished

    def carry_out(self, client: Client | None) -> Report:
        """Take the lock, finish what is unfinished, publish."""
        with ExitStack() as stack:
            workers = None
            queued = self.options.cluster.cluster in QUEUES and client is None  # jobs are not asked for in vain
            if not queued and len(staging_.committed(self.staging, self.frozen)) < self.n_parts:
                workers = stack.enter_context(self.workers(client))  # before anything is written
            held = stack.enter_context(lock.held(self.place.lock, self.tell))
            publish.finish_half_published(self.place)
            if self.settle():
                return self.report(already_done=True)
            publish.probe_rename(self.place)
            self.receipts = staging_.committed(self.staging, self.frozen)
            try:
                if len(self.receipts) < self.n_parts:
                    self.score(workers or stack.enter_context(self.workers(client)), held)
                else:
                    self.begin()
                self.judge()
            except ScorerError as error:
                self.show(str(error))
                raise
            crash.note_step(f"publishing {self.place.output}")
            staging_.sweep(self.staging, self.receipts)
            finished = self.report(already_done=False)
            ledger.write_proof(self.staging, self.frozen, self.receipts, finished.to_dict())
            self.show()
            publish.publish(self.place, self.frozen, overwrite=self.options.out.overwrite)
        self.emit(Published(output=str(self.place.output)))
        return finished

    @property
    def name(self) -> str:
        """What the run is called where several are seen."""
        return f"{self.place.output.name}-{self.frozen.plan_hash[:8]}"

    @property
    def staging(self) -> Staging:
        """Where this plan's parts are made."""
        return self.place.staging(self.frozen.plan_hash)

    def settle(self) -> bool:
        """Look again, now that nobody else can write: True when the output is there already.

        Between the plan and the lock another run may have published here, or begun.
        """
        overwrite, request = self.options.out.overwrite, self.frozen.request
        published = self.place.published()
        if published is not None and published.request == request and not place.missing_parts(self.place, published):
            self.adopt(published)
            return True
        if os.path.isdir(self.place.output) and any(self.place.output.iterdir()):
            problem = place.existing_problem(self.place, published, request, overwrite=overwrite)
            if problem is not None:
                raise problem
        for other in self.place.unfinished():
            if other.request == request:
                self.adopt(other)
            elif not overwrite:
                raise refuse_different(str(self.place.folder), other.request, request)
        return False

    def adopt(self, plan: FrozenPlan) -> None:
        """Go on with a plan that was frozen before ours."""
        self.frozen, self.n_parts, self.rows = plan, plan.n_parts, plan.rows

    def workers(self, client: Client | Cluster | None) -> AbstractContextManager[Workers]:
        """Who will work."""
        if client is None and somebody_elses_client():
            self.tell("a Dask client exists in this process and is not used; pass client= to use it")
        asked = replace(self.options.cluster, cluster=self.plan.cluster)
        if asked.cluster == "processes" and self.options.cluster.cluster is None:
            asked = replace(asked, threads=1)
        if asked.cluster == "embedded" and client is None and not asked.scheduler and crash_seen(self.staging):
            self.tell("an earlier run of this plan ended in native code: parts are scored in worker processes")
            asked = replace(asked, cluster="processes")
        asked_device = devices.parse(self.options.session.device)
        each = devices.device_environments(replace(asked_device, name=self.frozen.session.device))
        return connect(asked, self.place.folder, client, self.tell, each)

    def score(self, workers: Workers, held: lock.Lock) -> None:
        """Run every part that is not committed yet."""
        frozen = with_worker_gpu(self.frozen, devices.parse(self.options.session.device), workers)
        if workers.client is not None and workers.remote and workers.client.nthreads():
            supplied = readiness.refuse_unfit(workers.client, frozen, self.place.folder)
            if supplied:
                self.tell(f"the model was brought to {supplied} host{'s' if supplied > 1 else ''} that did not see it")
        staging_.discard_others(self.place, self.frozen.plan_hash)
        staging = staging_.prepare(self.place, self.frozen)
        self.begin()
        staging_.sweep(staging, self.receipts)
        crash.note_scoring(str(staging.started))
        limit = None if workers.client is None else self.options.scoring.batch_timeout  # one thread cannot watch itself
        spec = Spec.of(frozen, staging, limit, workers.scoring_threads, remote=workers.remote, run=self.name)
        journal = staging_.Journal(staging)
        try:
            with Topic(workers.client, self.name, self.progress.to_dict) as topic:
                self.observers += [one for one in (meter("driver"), topic) if one is not None]
                self.announce(workers)
                self.gather(workers, spec, journal, held)
        finally:
            journal.close()
            JOBS.drop(spec.key)

    def todo(self) -> Iterator[Part]:
        """Parts that nobody has committed, until the run stops."""
        for part in self.frozen.parts():
            if self.stopping:
                return
            if part.index not in self.receipts:
                yield part

    def stop(self, spec: Spec) -> None:
        """Start no more parts; those that were sent and have not begun see the stop file."""
        self.stopping = True
        with suppress(OSError):
            Path(spec.stop_file).touch()

    def gather(self, workers: Workers, spec: Spec, journal: staging_.Journal, held: lock.Lock) -> None:
        """Take outcomes as they come; a signal drains what has started."""

        def drain() -> None:
            self.stop(spec)
            text = "stopping: parts that have started are finished; interrupt again to stop at once"
            self.emit(Stopping(text=text))

        counts, began = Counts(), time.monotonic()
        self.threads = workers.threads()
        held.attach_counters(self.progress.to_dict)
        with signals.draining(drain) as stop:
            for part, outcome in waves.drive(workers, spec, self.todo(), self.emit):
                self.take(part, outcome, journal)
                if len(self.ours) == 1:
                    _get_page_ready()
                if part.index in self.ours:
                    counts += self.ours[part.index].proof.counts
                if not self.stopping and (self.fatal is not None or self.hopeless(counts)):
                    self.stop(spec)
        self.scoring_s = time.monotonic() - began
        if stop and len(self.receipts) < self.n_parts:
            raise failures.interrupted(stop.exit_code, len(self.receipts), self.n_parts)

    def take(self, part: Part, outcome: Receipt | BaseException | None, journal: staging_.Journal) -> None:
        """One part's outcome."""
        if outcome is None:  # left for the next run
            return
        if isinstance(outcome, BaseException):
            error = failures.as_part_error(outcome, part)
            self.failed[part.index] = error
            if isinstance(error, (ModelError, ClusterError, CommitError)):
                self.fatal = self.fatal or error
            self.emit(PartFailed(part=part.index, error=str(error)))
        else:
            journal.add(outcome)
            self.receipts[part.index] = self.ours[part.index] = outcome
            self.emit(PartFinished(receipt=outcome))

    def hopeless(self, counts: Counts) -> bool:
        """More than half bad, once enough rows or parts were seen to believe it."""
        if len(self.failed) >= _EARLY_FAILURES and len(self.failed) > len(self.ours):
            return True
        enough = len(self.ours) >= _EARLY_PARTS or counts.rows >= _EARLY_ROWS
        seen = counts.scored + counts.quarantined
        over = not within_budget(self.options.scoring.max_bad_rows, counts.quarantined, self.rows)
        return enough and over and counts.quarantined > seen / 2

    def judge(self) -> None:
        """Raise unless everything may be published."""
        if self.fatal is not None:
            raise self.fatal
        if self.failed:
            raise failures.parts_failed(self.failed, self.n_parts)
        counts = ledger.totals(self.receipts.values())
        staged = self.place.staging(self.frozen.plan_hash)
        budget = self.options.scoring.max_bad_rows
        left = self.n_parts - len(self.receipts)
        if left or not within_budget(budget, counts.quarantined, self.rows):
            bad = [receipt.proof.quarantine for receipt in self.receipts.values() if receipt.proof.quarantine]
            seen = quarantine.reasons(staged.quarantine, bad, counts.quarantined, ())
            why = quarantine.in_words({one.text: one.rows for one in seen.reasons})
            raise failures.too_many_bad(counts, budget, str(staged.quarantine), left, why)
        nans = self.options.scoring.max_nan_rows
        if nans is not None and not within_budget(nans, counts.nan, max(counts.scored, 1)):
            what, hint = (
                "too many rows have NaN scores",
                "check the feed, or raise --max-nan-rows and repeat the command",
            )
            raise RunFailed(what, str(staged.parts), f"at most {nans}", f"{counts.nan} of {counts.scored} rows", hint)
        if nans is None and counts.nan > counts.scored / 2:
            self.tell(f"{counts.nan:,} of {counts.scored:,} scored rows have a NaN score")

    def report(self, *, already_done: bool) -> Report:
        """What was done so far."""
        if already_done:
            with suppress(OSError, ValueError):
                self.receipts = ledger.read_receipts(self.place.folder / "ledger.parquet")
        made = {name_of_process(): SESSIONS.made} if SESSIONS.made else {}
        totals = total(self.receipts.values(), self.ours, made, self.frozen.batch_rows)
        seconds = time.monotonic() - self.started
        return Report(
            output=str(self.place.output),
            already_done=already_done,
            parts=self.n_parts,
            parts_resumed=totals.parts_resumed,
            parts_failed={i: str(error) for i, error in self.failed.items()},
            counts=totals.counts,
            began=time_before(seconds),
            seconds=seconds,
            rows_per_s=totals.rows_read / seconds if seconds else 0.0,
            threads=self.threads,
            scoring_s=self.scoring_s,
            stages=totals.stages,
            calls=totals.calls,
            output_bytes=totals.output_bytes,
            input_bytes=totals.input_bytes,
            peak_memory_bytes=process.peak(),
            sessions=totals.sessions,
            trial_sessions=self.frozen.trial_sessions,
            device=self.frozen.session.device,
            batch_rows=self.frozen.batch_rows,
            batch_tokens=self.frozen.batch_tokens,
            halved=totals.halved,
            model=self.frozen.session.digest,
            plan=self.frozen.plan_hash,
            asked=self.plan.to_dict()["asked"],
            versions=versions.versions(),
            forecast=self.plan.to_dict()["forecast"],
            nodes=self.plan.nodes,
            notes=self.plan.notes,
            quarantine=str(self.place.folder / "quarantine") if totals.counts.quarantined else "",
            proof=str(self.place.folder),
        )

    def show(self, error: str = "") -> None:
        """Write report.html; whatever becomes of it, the run is as good."""
        if error and not self.receipts and not self.failed:
            return
        try:
            from scorer.report import page  # noqa: PLC0415 - start-up

            if error:
                so_far = self.report(already_done=False)
                path = page.unpublished(self.staging, self.frozen, self.receipts, so_far, error)
                self.tell(f"what was done so far is shown in {path}")
            else:
                page.write(page.of_proof(self.frozen, self.staging.root, self.staging.parts))
        except Exception as problem:  # noqa: BLE001 - a page is no reason to lose scores
            self.tell(f"report.html could not be made: {problem!r}")
            with suppress(OSError):  # or an earlier run's would stay
                (self.staging.root / "report.html").write_text("This report could not be made.\n", "utf-8")

    def announce(self, workers: Workers) -> None:
        """Tell the observers what is about to happen."""
        done = ledger.totals(self.receipts.values()).rows
        self.emit(
            PlanReady(
                parts=self.n_parts, done=len(self.receipts), rows=self.rows, rows_done=done,
                output=str(self.place.output), where=workers.description,
                forecast_s=None if self.plan.forecast is None else self.plan.forecast.seconds,
                dashboard=workers.dashboard, metrics=workers.metrics,
            )
        )  # fmt: skip

    def begin(self) -> None:
        """Tell the observers that something is written from here on."""
        self.begun = True
        me = process.myself()
        self.emit(
            RunStarted(
                run=self.name, output=str(self.place.output), plan=self.frozen.plan_hash,
                request=self.frozen.request_hash, model=self.frozen.session.digest,
                host=me["host"], pid=me["pid"], versions=versions.versions(),
            )
        )  # fmt: skip

    def end(self, code: int, error: str = "") -> None:
        """Tell the observers that nothing more is done, if anything was."""
        if self.begun:
            self.emit(RunEnded(exit_code=code, seconds=round(time.monotonic() - self.started, 3), error=error))

    def tell(self, text: str) -> None:
        """A sentence for a person."""
        self.emit(Notice(text=text))

    def emit(self, event: Event) -> None:
        """To every observer; one that raises is dropped."""
        for observer in list(self.observers):
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - whoever watches must not end the run
                self.observers.remove(observer)
                print(f"scorer: an observer was dropped: {error!r}", file=sys.stderr)  # noqa: T201 - nobody else is left to tell


def _get_page_ready() -> None:
    """While others score there is time for it."""
    with suppress(Exception):  # whoever makes the page tells what is wrong
        from scorer.report import page  # noqa: PLC0415 - start-up

        page.load_template()


def with_worker_gpu(frozen: FrozenPlan, device: devices.Device, workers: Workers) -> FrozenPlan:
    """The plan with the number that its device has for these workers: ours see one each, and that is their first."""
    gpu = 0 if workers.owned and workers.remote else device.first
    return replace(frozen, session=replace(frozen.session, gpu=gpu))
