"""One execution of a plan, from taking the lock to publishing the output."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from scorer.api import _failures as failures
from scorer.cluster import readiness, waves
from scorer.cluster.connect import connect, has_current_client
from scorer.cluster.dashboard import Topic
from scorer.cluster.kinds.sizes import ahead_of, uses_jobs
from scorer.errors import CommitError, Interrupted, OutputLocked, ScorerError
from scorer.events import Counts, Notice, PartFailed, PartFinished, PlanReady, Published, RunEnded, RunStarted, Stopping
from scorer.host import crash, devices, process, signals, versions
from scorer.host.limits import limits_as_errors
from scorer.host.process import name_of_process
from scorer.locations import is_url
from scorer.model.resident import SESSIONS
from scorer.options.values import within_budget
from scorer.output import ledger, lock, publish, quarantine
from scorer.output import staging as staging_
from scorer.output.attempts import crash_seen
from scorer.output.existing import existing_problem, other_output
from scorer.output.place import Place
from scorer.plan.frozen import refuse_different
from scorer.report.eventlog import EVENTS, EventLog
from scorer.report.outcome import Report, time_before, total
from scorer.report.progress import Progress
from scorer.scoring.job import JOBS, Spec, prometheus_counters
from scorer.storage.files import THROTTLED, AtOnce
from scorer.storage.stores import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.cluster.connect import Client, Cluster, Workers
    from scorer.events import Event, Observer, Receipt
    from scorer.output.lease import Lease
    from scorer.output.place import Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part
    from scorer.plan.prepared import Plan
    from scorer.scoring.gates.judging import Judged

    Journal = staging_.Journal | staging_.Segments

_EARLY_PARTS, _EARLY_ROWS = 4, 10_000  # after so many parts or rows, a run stops if more than half its rows are bad
_EARLY_FAILURES = 10  # after so many failed parts, a run stops if more parts failed than were scored


class Run:
    """One execution of a plan: its receipts, its errors and its observers."""

    def __init__(self, plan: Plan, observers: Sequence[Observer]) -> None:
        self.frozen: FrozenPlan = plan.check()
        self.plan = plan
        self.n_parts, self.rows = self.frozen.n_parts, self.frozen.rows
        self.options = plan.options
        conflict = JOBS.configure_stores(plan.options.stores.settings)
        if conflict is not None:
            raise conflict
        self.place = Place.of(plan.output, plan.work_dir)
        self.publishing = publish.protocol(self.place)
        self.progress = Progress()
        self.log = EventLog(self.place.folder / EVENTS, self.progress, self.emit_notice)
        self.observers: list[Observer] = [self.progress, self.log, *observers]
        self.started, self.throttled_before = time.monotonic(), THROTTLED.so_far
        self.receipts: dict[int, Receipt] = {}
        self.own_receipts: dict[int, Receipt] = {}  # of the parts that this execution scored
        self.failed: dict[int, ScorerError] = {}
        self.fatal: ScorerError | None = None
        self.earlier = ledger.NOTHING_EARLIER
        self.judged: tuple[Judged, ...] = ()
        self.figures: dict[str, Any] = {}  # what was measured of all parts for gates
        self.announced = self.stopping = False
        self.threads, self.scoring_s, self.scoring_since, self.weights = 0, 0.0, 0.0, ""

    @limits_as_errors()
    def execute(self, client: Client | Cluster | None) -> Report:
        """Execute the plan, and emit how the run ended."""
        if self.plan.done:
            self.publishing.tidy(self.place, self.emit_notice)
            return self.report(already_done=True)
        try:
            finished = self.score_and_publish(client)
        except BaseException as error:
            code = Interrupted.exit_code if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
            self.emit_run_ended(code, str(error) or type(error).__name__)
            raise
        self.emit_run_ended(0)
        return finished

    def score_and_publish(self, client: Client | None) -> Report:
        """Take the lock, score the parts that are not committed yet, and publish the output."""
        with ExitStack() as stack:
            workers = None
            # jobs and clusters are requested only once it is certain that parts are left
            queued = uses_jobs(self.options.cluster) and client is None
            fresh = not self.plan.resumes and is_url(str(self.place.folder))  # a store need not be asked for parts
            if not queued and (fresh or len(staging_.committed(self.staging, self.frozen)) < self.n_parts):
                workers = stack.enter_context(self.connect_workers(client))  # before anything is written
            held = stack.enter_context(self.publishing.hold(self.place, self.emit_notice))
            publish.finish_half_published(self.place, held)
            with AtOnce(self.place.folder) as ask:
                tried = ask(lambda: self.publishing.probe(self.place, held))
                if self.already_published():
                    return self.report(already_done=True)
                self.receipts = staging_.committed(self.staging, self.frozen)
                tried()
            try:
                if len(self.receipts) < self.n_parts:
                    self.score(workers or stack.enter_context(self.connect_workers(client)), held)
                else:
                    if not self.n_parts:  # it only removes rows of earlier generations
                        publish.discard_others(self.place, self.frozen)
                        staging_.prepare(self.place, self.frozen, self.plan.deleted)
                    self.emit_run_started()
                self.check_results()
                self.judge()
            except ScorerError as error:
                if not self.may_not_write(error):
                    self.write_page(self.report(already_done=False), error=str(error))
                raise
            crash.note_publishing(str(self.place.output))
            failures.refuse_loss(held)
            finished = self.prove()
            out = self.options.out
            note = publish.publish_plan(
                self.place, self.frozen, held, overwrite=out.overwrite, success_file=out.success_file
            )
        self.emit(Published(output=str(self.place.output)))
        return replace(finished, notes=(*finished.notes, note)) if note else finished

    def prove(self) -> Report:
        """Write the proof and the page beside the staged parts; return the report."""
        published = ledger.as_published(self.frozen, self.receipts)
        with AtOnce(self.place.folder) as ask:
            swept = ask(partial(staging_.sweep, self.staging, self.frozen, self.receipts))
            self.receipts = published
            finished = self.report(already_done=False)
            data = finished.to_dict()
            digest = ledger.write_proof(self.staging, self.frozen, published, data, self.earlier, self.figures)
            swept()
            saved = ask(self.log.save)
            self.write_page(finished, digest=digest)
            saved()
        return finished

    @property
    def name(self) -> str:
        """The run's name, for logs and dashboards that show several runs."""
        return f"{self.place.output.name}-{self.frozen.plan_hash[:8]}"

    @property
    def staging(self) -> Staging:
        """The staging folders of this plan."""
        return self.place.staging(self.frozen.plan_hash, in_table=self.frozen.target is not None)

    def already_published(self) -> bool:
        """Check the output again under the lock; return whether this request's output is published already.

        Another run may have published or started here since `prepare`. Its unfinished plan of this request goes on.
        """
        overwrite, request = self.options.out.overwrite, self.frozen.request
        shared = other_output(self.place)
        if shared is not None:
            raise shared
        with AtOnce(self.place.folder) as ask:
            occupied, unfinished = ask(lambda: self.place.occupied), ask(self.place.unfinished)
            published = self.place.published()
            same = published is not None and published.request == request
            if published is not None and same and not publish.unprovable(self.place, published, overwrite=overwrite):
                self.use_plan(published)
                return True
            if self.frozen.previous:
                self.follow(published)
            elif self.frozen.target is None and occupied():
                problem = existing_problem(self.place, published, request, overwrite=overwrite)
                if problem is not None:
                    raise problem
            for other in unfinished():
                if (other.request, other.previous) == (request, self.frozen.previous):
                    self.use_plan(other)
                elif not overwrite and not self.frozen.previous:
                    raise refuse_different(str(self.place.folder), other, request)
        return False

    def follow(self, published: FrozenPlan | None) -> None:
        """Read the proof of the generations to which this one is added; raise if they are not those of the plan."""
        if published is None or published.plan_hash != self.frozen.previous:
            raise CommitError(
                "the output was changed while this run was prepared",
                where=str(self.place.output),
                expected=f"plan {self.frozen.previous[:12]} as its last generation",
                found="no published output" if published is None else f"plan {published.plan_hash[:12]}",
                hint="repeat the command; it looks for new files again",
            )
        self.earlier = ledger.read_earlier(self.place, self.frozen, published)

    def use_plan(self, plan: FrozenPlan) -> None:
        """Continue with a plan that another run froze for the same request."""
        self.frozen = plan.with_inodes(file.id for file in self.frozen.files)
        self.n_parts, self.rows = plan.n_parts, plan.rows

    def connect_workers(self, client: Client | Cluster | None) -> AbstractContextManager[Workers]:
        """Return the workers to score on, as a context manager."""
        if client is None and has_current_client():
            self.emit_notice("a Dask client exists in this process and is not used; pass client= to use it")
        requested = replace(self.options.cluster, cluster=self.plan.cluster)
        if requested.cluster == "processes" and self.options.cluster.cluster is None:
            requested = replace(requested, threads=1)
        if requested.cluster == "embedded" and client is None and not requested.scheduler and crash_seen(self.staging):
            self.emit_notice("an earlier run of this plan crashed in native code: parts are scored in worker processes")
            requested = replace(requested, cluster="processes")
        requested_device = devices.parse(self.options.session.device)
        each = devices.device_environments(replace(requested_device, name=self.frozen.device))
        fits = None if self.plan.forecast is None else self.plan.forecast.ahead
        usual = ahead_of(requested, (*self.options.input, str(self.place.output)))
        requested = replace(requested, ahead=fits or usual)
        return connect(requested, self.place.local_folder, client, self.emit_notice, each)

    def score(self, workers: Workers, held: lock.Lock | Lease) -> None:
        """Score every part that is not committed yet."""
        frozen = readiness.plan_for(workers, self.frozen, self.plan)
        if frozen.joins and (workers.remote or self.plan.cluster == "processes"):
            from scorer.dataset.joins import lookup  # noqa: PLC0415 - only for joined tables

            lookup.forget(map(lookup.id_of, frozen.joins))  # the checks read them, and workers have their own
        failures.refuse_loss(held)  # connecting to workers may have taken long
        if workers.client is not None and workers.remote and workers.client.nthreads():
            loaded = readiness.refuse_unfit(workers.client, frozen, self.place)
            for notice in dict.fromkeys(loaded.notices):
                if notice not in self.plan.notes:
                    self.emit_notice(notice)
            self.weights = loaded.packed and (self.plan.weights or loaded.packed)
        with AtOnce(self.place.folder) as ask:
            swept = [
                ask(partial(staging_.discard_markers, self.place)),
                ask(partial(publish.discard_others, self.place, self.frozen)),
                ask(partial(staging_.sweep, self.staging, self.frozen, self.receipts)),
            ]
            staging = staging_.prepare(self.place, self.frozen, self.plan.deleted)
            self.emit_run_started()
            for one in swept:
                one()
        crash.note_scoring(str(staging.started))
        # without a client the driver's only thread scores, and it cannot watch itself
        limit = None if workers.client is None else self.options.scoring.batch_timeout
        spec = Spec.of(
            frozen, staging, limit, workers.scoring_threads, remote=workers.remote, run=self.name, gates=self.plan.gates
        )
        journal = staging_.open_journal(staging)
        try:
            with Topic(workers.client, self.name, self.progress.to_dict) as topic:
                self.observers += [one for one in (prometheus_counters("driver"), topic) if one is not None]
                self.emit_plan_ready(workers)
                self.collect_outcomes(workers, spec, journal, held)
        finally:
            journal.close()
            JOBS.remove(spec.key)

    def parts_to_score(self) -> Iterator[Part]:
        """Yield the parts that are not committed, until the run stops."""
        for part in self.frozen.parts():
            if self.stopping:
                return
            if part.index not in self.receipts:
                yield part

    def stop(self, spec: Spec) -> None:
        """Start no further parts. Workers check the stop file before they start a part that was sent already."""
        self.stopping = True
        JOBS.stop(spec.key)

        def tell_others() -> None:
            with suppress(OSError):
                path_of(spec.stop_file).write_bytes(b"")

        if is_url(spec.stop_file):  # a store may answer late, and a signal handler must not wait for it
            threading.Thread(target=tell_others, daemon=True, name="scorer-stop").start()
        else:
            tell_others()

    def collect_outcomes(self, workers: Workers, spec: Spec, journal: Journal, held: lock.Lock | Lease) -> None:
        """Record outcomes as they arrive. After a signal, parts that have started are finished."""

        def drain() -> None:
            self.stop(spec)
            text = "stopping: parts that have started are finished; interrupt again to stop at once"
            self.emit(Stopping(text=text))

        counts, began = Counts(), time.monotonic()
        self.threads, self.scoring_since = workers.threads(), time.time()
        held.attach_counters(self.progress.to_dict)
        with signals.draining(drain) as stop:
            for part, outcome in waves.drive(workers, spec, self.parts_to_score(), self.emit):
                self.record_outcome(part, outcome, journal)
                if len(self.own_receipts) == 1:
                    _load_page_template()
                if part.index in self.own_receipts:
                    counts += self.own_receipts[part.index].proof.counts
                self.fatal = self.fatal or held.loss()
                if not self.stopping and (self.fatal is not None or self.should_stop_early(counts)):
                    self.stop(spec)
        self.scoring_s = time.monotonic() - began
        if stop and len(self.receipts) < self.n_parts:
            raise failures.interrupted(stop.exit_code, len(self.receipts), self.n_parts)

    def record_outcome(self, part: Part, outcome: Receipt | BaseException | None, journal: Journal) -> None:
        """Record a part's receipt or its error."""
        if outcome is None:  # not started: the next run scores it
            return
        if isinstance(outcome, BaseException):
            error = failures.as_part_error(outcome, part)
            self.failed[part.index] = error
            if isinstance(error, failures.FATAL):
                self.fatal = self.fatal or error
            self.emit(PartFailed(part=part.index, error=str(error)))
        else:
            journal.add(outcome)
            self.receipts[part.index] = self.own_receipts[part.index] = outcome
            self.emit(PartFinished(receipt=outcome))

    def should_stop_early(self, counts: Counts) -> bool:
        """Return whether more than half of the rows or parts fail, once there are enough of them to decide."""
        if len(self.failed) >= _EARLY_FAILURES and len(self.failed) > len(self.own_receipts):
            return True
        enough = len(self.own_receipts) >= _EARLY_PARTS or counts.rows >= _EARLY_ROWS
        seen = counts.scored + counts.quarantined
        over = not within_budget(self.options.scoring.max_bad_rows, counts.quarantined, self.rows)
        return enough and over and counts.quarantined > seen / 2

    def check_results(self) -> None:
        """Raise the reason why the results cannot be published, if any."""
        if self.fatal is not None:
            raise self.fatal
        if self.failed:
            raise failures.parts_failed(self.failed, self.n_parts)
        counts = ledger.totals(self.receipts.values())
        staged = self.staging
        budget = self.options.scoring.max_bad_rows
        left = self.n_parts - len(self.receipts)
        if left or not within_budget(budget, counts.quarantined, self.rows):
            bad = [receipt.proof.quarantine for receipt in self.receipts.values() if receipt.proof.quarantine]
            sample = quarantine.reasons(staged.quarantine, bad, counts.quarantined, ())
            why = quarantine.in_words({reason.words: reason.rows for reason in sample.reasons})
            raise failures.too_many_bad_rows(counts, budget, str(staged.quarantine), left, why)
        nans = self.options.scoring.max_nan_rows
        if nans is not None and not within_budget(nans, counts.nan, max(counts.scored, 1)):
            raise failures.too_many_nan_rows(counts, nans, str(staged.parts))
        if nans is None and counts.nan > counts.scored / 2:
            self.emit_notice(f"{counts.nan:,} of {counts.scored:,} scored rows have a NaN score")

    def judge(self) -> None:
        """Compare the figures of the scores with the limits of the gates; raise `GateFailed` if one does not hold."""
        gates = self.plan.gates
        if gates is None:
            return
        from scorer.scoring import part  # noqa: PLC0415 - start-up
        from scorer.scoring.gates import judging  # noqa: PLC0415 - only for runs with gates

        with part.reading(self.frozen, self.staging, gates) as read:
            judged = judging.judge(gates, self.frozen, self.staging, self.receipts, read, self.emit_notice)
        self.judged, self.receipts = judged.gates, judged.receipts
        failures.refuse_gates(self.judged, self.emit)
        self.figures = judged.figures(self.earlier.figures)

    def report(self, *, already_done: bool) -> Report:
        """Return the report of the run so far."""
        if already_done:
            with suppress(OSError, ValueError):
                self.receipts = ledger.read_receipts(self.place.folder / "ledger.parquet")
        made = {name_of_process(): SESSIONS.made} if SESSIONS.made else {}
        slowed = {name_of_process(): THROTTLED.since(self.throttled_before)}
        totals = total(self.receipts.values(), self.own_receipts, made, self.frozen.batch_rows, slowed)
        seconds = time.monotonic() - self.started
        return Report(
            output=str(self.place.output),
            already_done=already_done,
            parts=len(self.receipts) if already_done and self.frozen.generation else self.n_parts,
            parts_resumed=totals.parts_resumed,
            parts_failed={i: str(error) for i, error in self.failed.items()},
            counts=totals.counts,
            began=time_before(seconds),
            seconds=seconds,
            rows_per_s=totals.rows_read / seconds if seconds else 0.0,
            threads=self.threads,
            scoring_s=self.scoring_s,
            stages=totals.stages,
            start_s=totals.start_s(self.scoring_since, self.scoring_s, self.threads),
            calls=totals.calls,
            generation=self.frozen.generation,
            files=totals.files,
            files_left_out=len(self.frozen.left_out),
            output_bytes=totals.output_bytes,
            input_bytes=totals.input_bytes,
            on_store=any(map(is_url, self.options.input)),
            throttled=totals.throttled,
            throttled_s=round(totals.throttled_s, 3),
            peak_memory_bytes=process.peak(),
            worker_peak_bytes={name: peak for name, peak in totals.peaks.items() if name != name_of_process()},
            sessions=totals.sessions,
            trial_sessions=self.frozen.trial_sessions,
            device=self.frozen.device,
            batch_rows=self.frozen.batch_rows,
            batch_tokens=max((one.batch_tokens for one in self.frozen.scorers if one.batch_tokens), default=None),
            halved=totals.halved,
            model=self.frozen.model_digest,
            model_name=self.frozen.model_name,
            plan=self.frozen.plan_hash,
            asked=self.plan.to_dict()["asked"],
            versions=versions.versions(),
            forecast=self.plan.to_dict()["forecast"],
            nodes=self.plan.nodes,
            trees=self.plan.trees,
            weights=self.weights,
            unused=self.frozen.unused,
            notes=self.plan.notes,
            gates=tuple(one.to_dict() for one in self.judged),
            quarantine=str(self.place.folder / "quarantine") if totals.counts.quarantined else "",
            proof=str(self.place.folder),
        )

    def may_not_write(self, error: ScorerError) -> bool:
        """Return whether the work folder is another driver's now, or is on a store that does not take writes."""
        return isinstance(error, OutputLocked) or (isinstance(error, CommitError) and is_url(str(self.place.folder)))

    def write_page(self, report: Report, *, error: str = "", digest: str = "") -> None:
        """Write report.html. If that fails, the run continues with a notice."""
        if error and not self.receipts and not self.failed:
            return
        try:
            from scorer.report.html import page  # noqa: PLC0415 - start-up

            path = page.of_run(self.staging, self.frozen, self.receipts, report, error=error, digest=digest)
            if error:
                self.emit_notice(f"the report of the run so far is {path}")
        except Exception as problem:  # noqa: BLE001 - a failed report must not lose scores
            self.emit_notice(f"report.html could not be written: {problem!r}")
            with suppress(OSError):  # otherwise the page of an earlier run would stay
                (self.staging.root / "report.html").write_text("This report could not be written.\n", "utf-8")

    def emit_plan_ready(self, workers: Workers) -> None:
        """Tell the observers what is about to be scored, and where."""
        done = ledger.totals(self.receipts.values()).rows
        self.emit(
            PlanReady(
                parts=self.n_parts, done=len(self.receipts), rows=self.rows, rows_done=done,
                output=str(self.place.output), where=workers.description,
                forecast_s=None if self.plan.forecast is None else self.plan.forecast.seconds,
                dashboard=workers.dashboard, metrics=workers.metrics,
            )
        )  # fmt: skip

    def emit_run_started(self) -> None:
        """Tell the observers that the run has started to write."""
        self.announced = True
        me = process.myself()
        self.emit(
            RunStarted(
                run=self.name, output=str(self.place.output), plan=self.frozen.plan_hash,
                request=self.frozen.request_hash, model=self.frozen.model_digest,
                host=me["host"], pid=me["pid"], versions=versions.versions(),
            )
        )  # fmt: skip

    def emit_run_ended(self, code: int, error: str = "") -> None:
        """Tell the observers that the run has ended, if its start was emitted."""
        if self.announced:
            self.emit(RunEnded(exit_code=code, seconds=round(time.monotonic() - self.started, 3), error=error))

    def emit_notice(self, text: str) -> None:
        """Emit a notice, which is shown to the user."""
        self.emit(Notice(text=text))

    def emit(self, event: Event) -> None:
        """Pass an event to every observer, and drop an observer that raises."""
        for observer in list(self.observers):
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - an observer must not end the run
                self.observers.remove(observer)
                print(f"scorer: an observer was dropped: {error!r}", file=sys.stderr)  # noqa: T201 - the dropped one may be what prints


def _load_page_template() -> None:
    """Load the template of report.html now, while the driver has time because workers score."""
    with suppress(Exception):  # `write_page` reports what is wrong
        from scorer.report.html import page  # noqa: PLC0415 - start-up

        page.load_template()
