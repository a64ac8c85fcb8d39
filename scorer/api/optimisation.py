"""optimise: a faster form of a model, timed and compared on held-out rows before it is written."""

from __future__ import annotations

import math
import os
import shlex
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from scorer.api import _candidates
from scorer.api.conversion import check_output, write_model
from scorer.arrow import decode_schema
from scorer.dataset import fields, reader
from scorer.dataset.cursors import InputCache
from scorer.display.blocks import Facts, Table
from scorer.display.words import plural, size
from scorer.errors import InputError, ModelError, OptimisationRefused, PreflightError
from scorer.host.versions import versions
from scorer.model.copies import local_spec, missing
from scorer.model.resident import SESSIONS, load
from scorer.model.spec import OPTIMISATION
from scorer.options.request import build
from scorer.preflight import checks
from scorer.scoring.compare import TOLERANCE
from scorer.storage import stores
from scorer.storage.files import as_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scorer.api._candidates import Batch, Speed
    from scorer.model.optimising.recipes import Source
    from scorer.model.resident import Engine
    from scorer.model.spec import ModelSpec, SessionSpec
    from scorer.plan.frozen import FrozenPlan
    from scorer.scoring.compare import Difference

ROWS, FEW_ROWS = 4096, 256  # that judge; of texts and pictures
_WINDOWS = 16  # places of the data from which rows are taken
_CALIBRATION = 5  # every fifth row chooses ranges, the others judge
_LEAST_ROWS = 2 * _CALIBRATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a candidate must fulfil."""

    allow: float = 0.01
    """Largest change of a score, relative to the largest score; 1 less the least cosine of embeddings."""
    keep_label: float = 0.999
    """Share of the labels that must stay."""
    at_least: float = 1.3
    """How many times as fast it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One form of the model, as it was measured."""

    recipe: str
    bytes: int = 0
    speed: Speed | None = None
    scores: dict[str, Difference] = field(default_factory=dict)
    """How much each output differs."""
    refused: tuple[str, ...] = ()
    """Why it is not good enough; empty if it is."""

    def scores_in_words(self) -> dict[str, str]:
        """Return how much each output differs, in words."""
        return {name: _in_words(one) for name, one in self.scores.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """The result of `scorer optimise`."""

    model: str
    output: str
    bytes: int
    """Of the original."""
    check: tuple[str, ...]
    rows: int = 0
    calibration_rows: int = 0
    rows_per_s: float = 0.0
    """Of the original on one thread, without reading and packing."""
    candidates: tuple[Candidate, ...] = ()
    written: str = ""
    """The recipe whose model was written; '' if nothing was."""
    reason: str = ""
    """Why there is no candidate, in words."""
    flags: tuple[str, ...] = ()
    """The flags of `scorer run` that feed and fetch in the same way."""

    def to_dict(self) -> dict[str, Any]:
        """Return the optimisation as data for JSON."""
        return cast("dict[str, Any]", _as_json_value(asdict(self)))

    def blocks(self) -> list[Facts | Table]:
        """Return what was measured as blocks for text."""
        rate = f"{self.rows_per_s:,.0f}" if self.rows_per_s else ""
        rows = [("original", size(self.bytes), rate, "", "", "")]
        rows += [_row(one, written=one.recipe == self.written) for one in self.candidates]
        held = f"{self.rows:,} to judge, {self.calibration_rows:,} others for the ranges of activations"
        run = shlex.join(["scorer", "run", *self.check, "--model", self.output, *self.flags])
        after = [("written", self.output), ("next", run)]
        return [
            Table(("model", "size", "rows/s", "speed", "scores", "verdict"), ("", "n", "n", "n", "", ""), rows),
            Facts([("rows", held), *(after if self.written else [])]),
        ]

    def refusal(self, limits: Limits) -> OptimisationRefused | None:
        """Return why nothing was written; None if a model was."""
        if self.written:
            return None
        if self.reason:
            found, hint = self.reason, "score with the model as it is"
        else:
            found = "; ".join(f"{one.recipe}: {', '.join(one.refused)}" for one in self.candidates)
            hint = "score with the model as it is, or allow more with --allow, --keep-label or --at-least"
        return OptimisationRefused(
            "no faster form of the model was found, and nothing was written",
            where=self.model,
            expected=f"{limits.at_least:g} times the speed, scores that change by at most {limits.allow:g}, and "
            f"{limits.keep_label:.4g} of the labels",
            found=found,
            hint=hint,
        )


def optimise(
    model: str,
    output: str,
    check: Sequence[str],
    limits: Limits,
    *,
    request: Mapping[str, Any],
    rows: int | None = None,
    dynamic: bool = False,
    overwrite: bool = False,
) -> Optimisation:
    """Try faster forms of the model and write the fastest that is good enough; write nothing if none is.

    `request` has the options of a run that say how columns are fed and what is fetched.
    """
    from scorer.model.optimising import recipes  # noqa: PLC0415 - the quantiser takes time to import

    target = Path(output)
    check_output(target, "optimised", overwrite=overwrite)
    frozen, shown, own = _plan(model, check, request)
    (scorer,) = frozen.scorers
    local = local_spec(scorer.session)
    if local is None:
        raise missing(scorer.session)
    source = recipes.read(local.path, shown.path, dynamic=dynamic)
    result = Optimisation(
        model=shown.path, output=output, bytes=shown.bytes, check=tuple(check), reason=source.reason,
        flags=(*_flags(request), *own),
    )  # fmt: skip
    if source.reason:
        return result
    texts = scorer.binding.texts or scorer.binding.pictures
    table = _rows(frozen, check, rows or (FEW_ROWS if texts else ROWS))
    calibration, judging = _split(table)
    with tempfile.TemporaryDirectory(prefix="scorer-optimise-") as folder:
        trial = _Trial(frozen, local, source, calibration, judging, folder)
        candidates = trial.candidates(limits)
        result = replace(
            result, rows=judging.num_rows, calibration_rows=calibration.num_rows, candidates=candidates,
            rows_per_s=trial.rows_per_s,
        )  # fmt: skip
        good = [one for one in candidates if not one.refused and one.speed is not None]
        best = max(good, key=lambda one: one.speed.ratio if one.speed else 0, default=None)
        if best is None:
            return result
        record = _record(result, frozen, best, limits)
        data = recipes.describe(trial.paths[best.recipe], source.proto, OPTIMISATION, as_json(record).decode())
        trial.check_same(best, data)
        write_model(target, data)
    return replace(result, written=best.recipe)


class _Trial:
    """The original and its candidates, scored and timed."""

    def __init__(
        self, frozen: FrozenPlan, local: SessionSpec, source: Source, calibration: pa.Table, judging: pa.Table,
        folder: str,
    ) -> None:  # fmt: skip
        self._frozen, self._local, self._source, self._folder = frozen, local, source, folder
        self._judging = judging
        (scorer,) = frozen.scorers
        self.original, self._binding = SESSIONS.session(scorer.session), scorer.binding
        self._calibration = self._fed(calibration)
        watched = _candidates.Recording(self.original)
        scored = _candidates.score(judging, frozen, watched)
        if len(scored.bad) == judging.num_rows:
            raise InputError(
                "none of the rows can be scored", where="--check", expected="rows that the model accepts",
                found=next(iter(scored.bad.values()))[1], hint="check --feed: order, types and values of the columns",
            )  # fmt: skip
        self._scores, self._batches = scored.columns, watched.fed
        self._coupled = _candidates.couples_rows(self.original, self._binding, judging)
        self._changed: dict[str, list[pa.Array]] = {}
        self.paths: dict[str, str] = {}
        self.rows_per_s = 0.0

    def candidates(self, limits: Limits) -> tuple[Candidate, ...]:
        """Write every candidate into the folder, compare its scores, and time those that may pass."""
        found = [self._compared(recipe, limits) for recipe in self._source.fitting]
        engines = {one.recipe: self._load(self.paths[one.recipe]) for one in found if one.scores}
        outputs = list(dict.fromkeys(fetch.tensor for fetch in self._binding.fetches))
        speeds = _candidates.speeds(self.original, engines, outputs, self._batches, self._judging.num_rows)
        for speed in speeds.values():
            self.rows_per_s = speed.rows_per_s / speed.ratio
        return tuple(
            replace(one, speed=speeds[one.recipe], refused=(*one.refused, *_too_slow(speeds[one.recipe], limits)))
            if one.recipe in speeds
            else one
            for one in found
        )

    def check_same(self, best: Candidate, data: bytes) -> None:
        """Raise if the bytes to write do not give the scores that were compared."""
        path = os.path.join(self._folder, "written.onnx")
        Path(path).write_bytes(data)
        scored = _candidates.score(self._judging, self._frozen, self._load(path))
        if any(not a.equals(b) for a, b in zip(scored.columns, self._changed[best.recipe], strict=True)):
            raise ModelError(
                "the model to write does not give the scores that were compared", where=best.recipe,
                expected="the same scores each time", found="other scores", hint="repeat the command",
            )  # fmt: skip

    def _compared(self, recipe: str, limits: Limits) -> Candidate:
        """Write one candidate and compare its scores; one that cannot be written or run is refused with the reason."""
        from scorer.model.optimising import recipes  # noqa: PLC0415 - the quantiser takes time to import

        try:
            self.paths[recipe] = recipes.write(recipe, self._source, self._calibration, self._folder)
            engine = self._load(self.paths[recipe])
            scored = _candidates.score(self._judging, self._frozen, engine)
            coupled = _candidates.couples_rows(engine, self._binding, self._judging)
        except ModelError as error:
            return Candidate(recipe=recipe, refused=(f"{error.what}: {error.found}",))
        self._changed[recipe] = scored.columns
        scores = _candidates.differences(self._binding, self._scores, scored.columns)
        refused = [why for name, one in scores.items() for why in _too_different(name, one, limits)]
        if coupled and not self._coupled and recipe != recipes.DYNAMIC:
            refused.append(coupled)
        return Candidate(
            recipe=recipe, bytes=os.path.getsize(self.paths[recipe]), scores=scores, refused=tuple(refused)
        )  # fmt: skip

    def _fed(self, table: pa.Table) -> list[Batch]:
        """Return the batches that the original is fed for these rows, without bad rows."""
        watched = _candidates.Recording(self.original)
        _candidates.score(table, self._frozen, watched)
        return watched.fed

    def _load(self, path: str) -> Engine:
        return load(replace(self._local, path=path, digest="", files=()))


def _plan(
    model: str, check: Sequence[str], request: Mapping[str, Any]
) -> tuple[FrozenPlan, ModelSpec, tuple[str, ...]]:
    """Return the plan of a run with this model and data, the model, and what its folder says; raise all problems."""
    with tempfile.TemporaryDirectory() as folder:  # an output path that certainly does not exist
        plan = checks.prepare(build({
            "input": tuple(check), "model": model, "output": os.path.join(folder, "out"), "keep": "none",
            "tune": False, "max_bad_rows": "100%", "device": "cpu", "trees": "runtime",
            "store_option": stores.options(given=True), **request,
        }))  # fmt: skip
    if plan.problems or plan.frozen is None or not plan.models:
        raise PreflightError(plan.problems)
    return plan.frozen, plan.models[""], plan.folder_flags


def _flags(request: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options as flags of the command line."""
    flags: list[str] = []
    for name, value in request.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags += [flag] if value else []
        else:
            for one in value:
                flags += [flag, one]
    return tuple(flags)


def _rows(frozen: FrozenPlan, check: Sequence[str], wanted: int) -> pa.Table:
    """Return rows from all over the data, with a quarter more than `wanted` for calibration."""
    sources = [source for part in frozen.parts() for source in part.sources if source.stop > source.start]
    total = sum(source.stop - source.start for source in sources)
    if total < _LEAST_ROWS:
        raise InputError(
            "the data has too few rows", where=", ".join(check), expected=f"at least {_LEAST_ROWS} rows",
            found=plural(total, "row"), hint="pass data with rows as the model will get them",
        )  # fmt: skip
    count = min(total, wanted * _CALIBRATION // (_CALIBRATION - 1))
    each = -(-count // _WINDOWS)
    starts = [total * at // _WINDOWS for at in range(_WINDOWS)] if count < total else [0]
    spans = [(at, min(at + each, total)) for at in starts] if count < total else [(0, total)]
    schema, cache, pieces = decode_schema(frozen.read_schema), InputCache(), []
    first = 0
    for source in sources:
        n_rows = source.stop - source.start
        for low, high in spans:
            start, stop = max(low, first) - first, min(high, first + n_rows) - first
            if start < stop:
                window = replace(source, start=source.start + start, stop=source.start + stop)
                pieces.append(reader.read(window, schema, (), (frozen.batch_rows,), cache).table)
        first += n_rows
    return fields.select(pa.concat_tables(pieces).slice(0, count).combine_chunks(), frozen.reads)


def _split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows that choose ranges, and those that judge: no row is in both."""
    every = range(table.num_rows)
    calibration = [row for row in every if row % _CALIBRATION == _CALIBRATION - 1]
    judging = [row for row in every if row % _CALIBRATION != _CALIBRATION - 1]
    return table.take(pa.array(calibration)), table.take(pa.array(judging))


def _too_different(name: str, one: Difference, limits: Limits) -> list[str]:
    """Return why an output differs too much, in words."""
    why = []
    if one.cosine is not None:
        if one.cosine < 1 - limits.allow:
            why.append(f"{name}: a cosine of {one.cosine:.4f} is below {1 - limits.allow:g}")
    elif one.largest is not None and one.largest > limits.allow:
        why.append(f"{name}: a change of {one.largest:.2g} is above {limits.allow:g}")
    if one.same is not None and one.same < limits.keep_label:
        why.append(f"{name}: {one.same:.4f} of the labels stay, fewer than {limits.keep_label:g}")
    return why


def _too_slow(speed: Speed, limits: Limits) -> list[str]:
    return [] if speed.ratio >= limits.at_least else [f"{speed.ratio:.2f} times the speed is below {limits.at_least:g}"]


def _as_json_value(value: Any) -> Any:  # noqa: ANN401 - data for JSON
    """Return the value without infinite numbers, which JSON does not have: they become null."""
    if isinstance(value, dict):
        return {name: _as_json_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json_value(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in_words(one: Difference) -> str:
    """Return how much an output differs, in words."""
    words = []
    if one.cosine is not None:
        words.append(f"cosine {one.cosine:.4f} at least")
        words += [] if one.nearest is None else [f"{one.nearest:.2f} of the 5 nearest stay"]
    elif one.largest is not None and one.largest <= TOLERANCE / 100:
        words.append("equal")
    elif one.largest is not None:
        words.append(f"change {one.largest:.2g} at most, {one.mean:.1g} on average")
    words += [] if one.same is None else [f"{one.same:.4f} of the labels stay"]
    return ", ".join(words)


def _row(one: Candidate, *, written: bool) -> tuple[str, str, str, str, str, str]:
    """Return a candidate as a row of the table."""
    scores = "; ".join(f"{name}: {words}" for name, words in one.scores_in_words().items())
    verdict = "refused: " + "; ".join(one.refused) if one.refused else "written" if written else "good, but slower"
    rate, speed = (f"{one.speed.rows_per_s:,.0f}", f"x{one.speed.ratio:.2f}") if one.speed else ("", "")
    return one.recipe, size(one.bytes) if one.bytes else "", rate, speed, scores, verdict


def _record(result: Optimisation, frozen: FrozenPlan, best: Candidate, limits: Limits) -> dict[str, Any]:
    """Return what the metadata says. No speed, so that the same command writes the same bytes."""
    return {
        "recipe": best.recipe, "model": frozen.model_digest, "data": ", ".join(result.check), "rows": result.rows,
        "calibration_rows": result.calibration_rows, "scores": best.scores_in_words(),
        "differences": {name: asdict(one) for name, one in best.scores.items()},
        "allow": limits.allow, "keep_label": limits.keep_label, "versions": versions(),
    }  # fmt: skip
