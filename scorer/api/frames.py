"""score and release: score a frame in memory at once, or a Dask frame lazily."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scorer.api._kinds import PandasFrame, frame_of, owners
from scorer.binding import transform as transform_
from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import kept_of, output_schema, requested_fetches
from scorer.dataset.fields import select
from scorer.display.words import plural, quoted_list
from scorer.errors import (
    BindingError,
    InputError,
    OptionsError,
    PreflightError,
    RunFailed,
    ScorerError,
    ShapeMismatch,
)
from scorer.host import devices
from scorer.model.resident import SESSIONS
from scorer.model.session import library_for, settle_device
from scorer.model.spec import SessionSpec
from scorer.options.request import build
from scorer.options.wrong_types import described
from scorer.plan.scorers import Scorer
from scorer.preflight import trial, tuning
from scorer.preflight.models.requested import models_of
from scorer.scoring import batches
from scorer.scoring.job import JOBS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from scorer.api._kinds import Frame
    from scorer.binding.spec import Binding
    from scorer.options.fields import Options
    from scorer.options.store_options import StoreOption


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is needed to score a partition, without the models."""

    scorers: tuple[Scorer, ...]
    kept: tuple[str, ...]
    fed: tuple[str, ...]
    """The columns that feed the models."""
    transform: Callable[[pd.DataFrame], Any] | None = None
    fed_schema: pa.Schema | None = None
    """The columns that the transform returns and that are fed, or have fields that are fed."""
    store_options: tuple[str, ...] = ()
    """How object stores are reached, if the model or its files are on one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """The good rows with their scores, and why the others have none."""

    frame: Frame
    scored: Any
    bad: dict[int, tuple[str, str]]
    """Stage and reason by row."""

    def refused(self) -> Any:  # noqa: ANN401 - as the frame
        """Return the bad rows with their reasons."""
        rows = sorted(self.bad)
        mask = np.zeros(self.frame.rows, bool)
        mask[rows] = True
        return self.frame.with_reasons(mask, [self.bad[row][1] for row in rows], [self.bad[row][0] for row in rows])

    def checked(self) -> Any:  # noqa: ANN401 - as the frame
        """Return the scored rows; raise an error if rows could not be scored."""
        if not self.bad:
            return self.scored
        row = min(self.bad)
        raise RunFailed(
            f"{plural(len(self.bad), 'row')} could not be scored",
            where=self.frame.place(row),
            expected="rows that the model accepts",
            found=self.bad[row][1],
            hint='pass errors="return" to get the scored rows and the bad ones',
        )


def score(  # noqa: PLR0913 - one argument per option of the binding
    frame: Any,  # noqa: ANN401 - a pandas, polars or Dask frame, or an Arrow table
    model: str | Path | Mapping[str, str | Path],
    *,
    feed: Sequence[str] | Mapping[str, str | Sequence[str]] | str = (),
    by_position: bool = False,
    fetch: Sequence[str] | str = (),
    labels: Sequence[str] | Mapping[str, str | Sequence[str]] | str | Path = (),
    batch_axis: Sequence[str] | Mapping[str, int] | str = (),
    keep: Sequence[str] | str = "all",
    prefix: str = "",
    on_null: Sequence[str] | str = (),
    on_lossy: str = "error",
    transform: Callable[[pd.DataFrame], pd.DataFrame] | str | None = None,
    batch_rows: int | None = None,
    device: str = "auto",
    errors: str = "raise",
    store_option: StoreOption = (),
) -> Any:  # noqa: ANN401 - as the frame
    """Add a model's scores to a frame.

    Parameters
    ----------
    frame
        A pandas or polars frame or an Arrow table, scored at once, or a Dask frame, scored when it is computed.
        The result is of the same kind. Index, dtypes and divisions are kept. In a pandas or Dask frame, scores have
        Arrow types if a column of the frame has one, else numpy types.
    model
        An ``.onnx`` file that every worker can read at this path. A dict has several models by name; the columns of
        each begin with its name.
    feed, by_position, fetch, labels, batch_axis, keep, prefix, on_null, on_lossy, batch_rows, device
        As the flags of ``scorer run``. Batches count from the first row of each partition.
    transform
        Any function that takes a pandas frame and returns one with the same rows, or its name as
        ``"package.module:function"``. The columns that it returns feed the model.
    errors
        ``"raise"`` raises an error if rows cannot be scored. ``"return"`` returns ``(scored, bad)`` for a
        frame in memory; ``bad`` has the columns ``_error`` and ``_stage``.
    store_option
        How object stores are reached for the model and its files, as for `run`.

    Examples
    --------
    >>> import pandas as pd
    >>> flights = pd.read_parquet("examples/flights/flights.parquet")
    >>> scored = score(flights, "examples/flights/late.onnx", keep=["carrier"])
    >>> list(scored.columns)
    ['carrier', 'label', 'probabilities_0', 'probabilities_1']

    An Arrow table, with a function that computes a column:

    >>> import pyarrow.parquet as pq
    >>> table = pq.read_table("examples/flights/flights.parquet")
    >>> hours = lambda frame: frame.assign(hour=frame["sched_dep_time"] // 100)
    >>> scored = score(table, "examples/flights/late.onnx", transform=hours, keep=["carrier"])
    >>> type(scored).__name__, scored.column_names[:2]
    ('Table', ['carrier', 'label'])

    """
    options = build({
        "input": "frame", "model": model, "feed": feed, "by_position": by_position, "fetch": fetch, "labels": labels,
        "batch_axis": batch_axis, "keep": keep, "prefix": prefix, "on_null": on_null, "on_lossy": on_lossy,
        "batch_rows": batch_rows, "device": device, "store_option": store_option,
    })  # fmt: skip
    _reach_stores(options.stores.settings)
    lazy = hasattr(frame, "map_partitions") and isinstance(getattr(frame, "_meta", None), pd.DataFrame)
    _check_arguments(frame, errors, lazy=lazy)
    function = transform_.function_of(transform)
    if not lazy:
        given = frame_of(frame)
        assert given is not None
        result = _score(given, _prepare_job(options, given, function))
        return (result.scored, result.refused()) if errors == "return" else result.checked()
    example = frame._meta  # noqa: SLF001 - Dask's documented way to see columns without computing
    job = _prepare_job(options, PandasFrame(example), function, nonempty=frame._meta_nonempty)  # noqa: SLF001 - the same
    meta = _score(PandasFrame(example), job).scored
    return frame.map_partitions(_score_or_raise, job, meta=meta, enforce_metadata=False)


def release() -> None:
    """Release the models that `score` keeps loaded in this process.

    Examples
    --------
    >>> release()

    """
    SESSIONS.release()


def _check_arguments(frame: Any, errors: str, *, lazy: bool) -> None:  # noqa: ANN401 - whatever was given
    """Raise an error for anything but a frame, and for arguments that this frame does not support."""
    where = "scorer.score"
    given = PandasFrame(frame) if lazy else frame_of(frame)
    if given is None:
        raise OptionsError(
            "only data frames can be scored",
            where=where,
            expected="a pandas, polars or Dask DataFrame, or a pyarrow Table",
            found=type(frame).__name__ if type(frame).__module__ == "builtins" else described(frame),
            hint=_other_frame(frame),
        )
    if errors not in {"raise", "return"}:
        raise OptionsError(
            'errors must be "raise" or "return"',
            where=where,
            expected="raise or return",
            found=repr(errors),
            hint='pass errors="raise" or errors="return"',
        )
    if lazy and errors == "return":
        raise OptionsError(
            'errors="return" needs a frame in memory',
            where=where,
            expected='errors="raise" for a Dask frame',
            found='errors="return"',
            hint="compute the frame first, or use scorer.run with max_bad_rows",
        )
    names = getattr(frame, "columns", ())
    if isinstance(names, pd.MultiIndex):
        problem = InputError(
            "the frame's columns have several levels",
            where=where,
            expected="one level of names",
            found=f"{names.nlevels} levels",
            hint="flatten the column names first",
        )
        raise PreflightError([problem])
    if given.repeated:
        problem = InputError(
            f"columns share one name: {quoted_list(given.repeated)}",
            where=where,
            expected="one column for each name",
            found="several",
            hint="rename them, or drop all but one",
        )
        raise PreflightError([problem])


def _other_frame(frame: Any) -> str:  # noqa: ANN401 - whatever was given
    """Return what to pass instead of a value that is no frame."""
    if type(frame).__name__ == "LazyFrame":
        return "call its collect() first"
    if hasattr(frame, "__arrow_c_stream__") or hasattr(frame, "__arrow_c_array__"):
        return "pass pyarrow.table(...) of it" if hasattr(frame, "__arrow_c_stream__") else "pass it as a pyarrow Table"
    return "pass a pandas or a Dask DataFrame"


def _prepare_job(
    options: Options, frame: Frame, function: Callable[..., Any] | None, nonempty: pd.DataFrame | None = None
) -> _Job:
    """Bind the columns and score some rows, to learn the output columns; raise all problems together.

    `nonempty` are rows that Dask makes up, for a transform that is tried before a Dask frame is computed.
    """
    models = models_of(options)
    columns = frame.schema()
    sample = frame.first(trial.SAMPLE_ROWS)
    given = None if function is None else _tried(function, sample, nonempty)
    device, gpu = settle_device(options.session.device), devices.parse(options.session.device).first
    bindings, wanted, problems = [], [], []
    for model in models:
        binding, wrong = bind(model.options, model.spec, columns, given=None if given is None else given.schema)
        fetches, more = requested_fetches(model.options, model.spec)
        bindings.append(binding)
        wanted.append(fetches)
        problems += model.problems([*wrong, *more])
    kept, keep_problems = kept_of(options.binding, columns)
    if problems + keep_problems:
        raise PreflightError([*problems, *keep_problems])
    if nonempty is not None:
        for binding in bindings:
            _check_widths(binding)
    fed = tuple(dict.fromkeys(name for binding in bindings for name in binding.fed))
    rows = sample.table(fed) if given is None else select(given, fed)
    rows = rows if nonempty is None else rows.slice(0, 0)
    scorers = []
    for model, binding, fetches in zip(models, bindings, wanted, strict=True):
        spec = model.spec
        library = library_for(options.session.ort_library, spec.opsets)
        session_spec = SessionSpec(
            path=spec.path, digest=spec.digest, files=spec.files, device=device, gpu=gpu, library=library
        )
        session = SESSIONS.session(session_spec)
        tried, wrong = trial.outputs(session, shapes(binding, rows), fetches, rows, spec, model.prefix)
        problems += model.problems(wrong)
        batch = tuning.untuned(tried, options.scoring.batch_rows, None, device=device)
        scorers.append(
            Scorer(
                name=model.name, binding=tried, session=session_spec, batch_rows=batch.batch_rows,
                batch_tokens=batch.batch_tokens,
            )
        )  # fmt: skip
    _, clashes = output_schema(kept, [f for one in scorers for f in one.binding.fetches], columns, "the frame")
    if problems + clashes:
        raise PreflightError([*problems, *clashes])
    fed_schema = None if given is None else given.select(owners(fed, given.column_names)).schema
    return _Job(
        scorers=tuple(scorers), kept=kept.columns, fed=fed, transform=function, fed_schema=fed_schema,
        store_options=options.stores.settings,
    )  # fmt: skip


def _reach_stores(options: tuple[str, ...]) -> None:
    """Set the options of the object stores of this process, if some are given; raise if a run here uses others."""
    conflict = JOBS.configure_stores(options) if options else None
    if conflict is not None:
        raise conflict


def _check_widths(binding: Binding) -> None:
    """Raise `ShapeMismatch` if only the values would show how wide a column of lists is."""
    unknown = [feed for feed in binding.feeds if feed.kind == "nested" and None in feed.shape]
    if unknown:
        raise ShapeMismatch(
            f"the width of {unknown[0].tensor!r} is not known without computing the frame",
            where="a Dask frame",
            expected="a column of fixed-size lists",
            found=f"lists of any length in {unknown[0].columns[0]!r}",
            hint="use fixed-size lists",
        )


def _tried(function: Callable[..., Any], sample: Frame, nonempty: pd.DataFrame | None) -> pa.Table:
    """Return what the transform makes of the first rows; raise `BindingError` if it fails for each of them."""
    frame = sample.to_pandas() if nonempty is None else nonempty
    try:
        given, bad = transform_.apply_function(function, frame)
    except ScorerError as error:
        raise PreflightError([error]) from error
    if not bad or given.num_rows:
        return given
    made_up = "let it accept any values of these types, such as those that Dask makes up to try it, or pass the result "
    raise PreflightError([
        BindingError(
            "the transform fails for every row that was tried",
            where=transform_.name_of(function),
            expected="a frame with the same rows",
            found=bad[0],
            hint="call the function on a few rows yourself"
            if nonempty is None
            else made_up + "of frame.map_partitions(function)",
        )
    ])  # fmt: skip


def _score(frame: Frame, job: _Job) -> _Result:
    """Score all rows of a frame."""
    table, failed = _fed(frame, job)
    lost = {row: ("transform", why) for row, why in failed.items()}
    each = [
        batches.score(
            table, batches.grid(frame.rows, one.batch_rows), one.binding, SESSIONS.session(one.session), lost,
            tokens=one.batch_tokens,
        )
        for one in job.scorers
    ]  # fmt: skip
    scored = batches.merged([one.name for one in job.scorers], each)
    names = [name for one in job.scorers for name in one.binding.outputs]
    values = dict(zip(names, scored.columns, strict=True))
    good = np.ones(frame.rows, bool)
    good[list(scored.bad)] = False
    if scored.bad:
        values = {name: column.filter(pa.array(good)) for name, column in values.items()}
    return _Result(frame=frame, scored=frame.with_scores(job.kept, good, values), bad=dict(scored.bad))


def _fed(frame: Frame, job: _Job) -> tuple[pa.Table, dict[int, str]]:
    """Return the fed columns, and the reason for each row on which the transform raises."""
    if job.transform is None or job.fed_schema is None:
        return frame.table(job.fed), {}
    if not frame.rows:
        return select(job.fed_schema.empty_table(), job.fed), {}
    given, bad = transform_.apply_function(job.transform, frame.to_pandas())
    name = transform_.name_of(job.transform)
    fed = (
        transform_.conform_transformed(given, job.fed_schema, name) if given.num_rows else job.fed_schema.empty_table()
    )
    return select(transform_.realign(fed, bad, frame.rows), job.fed), bad


def _score_or_raise(frame: pd.DataFrame, job: _Job) -> pd.DataFrame:
    """Score one partition of a Dask frame; raise an error if rows cannot be scored."""
    _reach_stores(job.store_options)
    scored: pd.DataFrame = _score(PandasFrame(frame), job).checked()
    return scored
