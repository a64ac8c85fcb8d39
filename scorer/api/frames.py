"""score and release: score a pandas frame at once, or a Dask frame lazily."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import output_schema, requested_fetches
from scorer.dataset.fields import path_of, select
from scorer.display.words import quoted_list
from scorer.errors import InputError, OptionsError, PreflightError, RunFailed, ScorerError, ShapeMismatch
from scorer.host import devices
from scorer.model.protobuf import inspect_model
from scorer.model.resident import SESSIONS
from scorer.model.session import library_for, settle_device
from scorer.model.spec import SessionSpec
from scorer.options.request import build
from scorer.preflight import trial, tuning
from scorer.scoring import batches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scorer.binding.spec import Binding
    from scorer.options.fields import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is needed to score a partition, as plain data and without the model."""

    binding: Binding
    session: SessionSpec
    batch_rows: int
    batch_tokens: int | None


def score(  # noqa: PLR0913 - one argument per option of the binding
    frame: Any,  # noqa: ANN401 - a pandas or a Dask frame
    model: str | Path,
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
    batch_rows: int | None = None,
    device: str = "auto",
    errors: str = "raise",
) -> Any:  # noqa: ANN401 - as the frame
    """Add a model's scores to a frame.

    Parameters
    ----------
    frame
        A pandas frame, scored at once, or a Dask frame, scored when it is computed. Index, dtypes and
        divisions are kept. Scores have Arrow types if a column of the frame has one, else numpy types.
    model
        An ``.onnx`` file that every worker can read at this path.
    feed, by_position, fetch, labels, batch_axis, keep, prefix, on_null, on_lossy, batch_rows, device
        As the flags of ``scorer run``. Batches count from the first row of each partition.
    errors
        ``"raise"`` raises an error if rows cannot be scored. ``"return"`` returns ``(scored, bad)`` for a
        pandas frame; ``bad`` has the columns ``_error`` and ``_stage``.

    Examples
    --------
    >>> import pandas as pd
    >>> flights = pd.read_parquet("examples/flights/flights.parquet")
    >>> scored = score(flights, "examples/flights/late.onnx", keep=["carrier"])
    >>> list(scored.columns)
    ['carrier', 'label', 'probabilities_0', 'probabilities_1']

    """
    options = build({
        "input": "frame", "model": model, "feed": feed, "by_position": by_position, "fetch": fetch, "labels": labels,
        "batch_axis": batch_axis, "keep": keep, "prefix": prefix, "on_null": on_null, "on_lossy": on_lossy,
        "batch_rows": batch_rows, "device": device,
    })  # fmt: skip
    lazy = hasattr(frame, "map_partitions") and isinstance(getattr(frame, "_meta", None), pd.DataFrame)
    _check_arguments(frame, errors, lazy=lazy)
    if not lazy:
        job = _prepare_job(options, frame)
        scored, bad = _score(frame, job)
        if errors == "return":
            return scored, bad
        if len(bad):
            raise _bad_rows(bad)
        return scored
    example = frame._meta  # noqa: SLF001 - Dask's documented way to see columns without computing
    job = _prepare_job(options, example, lazy=True)
    return frame.map_partitions(_score_or_raise, job, meta=_score(example, job)[0], enforce_metadata=False)


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
    if not lazy and not isinstance(frame, pd.DataFrame):
        raise OptionsError(
            "only data frames can be scored",
            where=where,
            expected="a pandas or a Dask DataFrame",
            found=type(frame).__name__,
            hint="pass a pandas or a Dask DataFrame",
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
            'errors="return" needs a pandas frame',
            where=where,
            expected='errors="raise" for a Dask frame',
            found='errors="return"',
            hint="score a pandas frame, or use scorer.run with max_bad_rows",
        )
    names = frame.columns
    if isinstance(names, pd.MultiIndex):
        problem = InputError(
            "the frame's columns have several levels",
            where=where,
            expected="one level of names",
            found=f"{names.nlevels} levels",
            hint="flatten the column names first",
        )
        raise PreflightError([problem])
    twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        problem = InputError(
            f"columns share one name: {quoted_list(twice)}",
            where=where,
            expected="one column for each name",
            found="several",
            hint="rename them, or drop all but one",
        )
        raise PreflightError([problem])


def _prepare_job(options: Options, frame: pd.DataFrame, *, lazy: bool = False) -> _Job:
    """Bind the columns and score some rows, to learn the output columns; raise all problems together."""
    spec = inspect_model(options.model)
    columns = pa.schema([pa.field(str(name), _to_arrow(_type_sample(frame[name])).type) for name in frame.columns])
    binding, problems = bind(options.binding, spec, columns)
    wanted, more = requested_fetches(options.binding, spec)
    problems += more
    device, gpu = settle_device(options.session.device), devices.parse(options.session.device).first
    library = library_for(options.session.ort_library, spec.opsets)
    session_spec = SessionSpec(
        path=spec.path, digest=spec.digest, files=spec.files, device=device, gpu=gpu, library=library
    )
    if problems:
        raise PreflightError(problems)
    unknown = [feed for feed in binding.feeds if feed.kind == "nested" and None in feed.shape]
    if lazy and unknown:
        raise ShapeMismatch(
            f"the width of {unknown[0].tensor!r} is not known without computing the frame",
            where="a Dask frame",
            expected="a column of fixed-size lists",
            found=f"lists of any length in {unknown[0].columns[0]!r}",
            hint="use fixed-size lists",
        )
    rows = _table(frame.iloc[: trial.SAMPLE_ROWS], binding.fed)
    binding = shapes(binding, rows)
    session = SESSIONS.session(session_spec)
    binding, wrong = trial.outputs(session, binding, wanted, rows, spec, options.binding.prefix)
    _, clashes = output_schema(binding, columns, "the frame")
    problems = [*wrong, *clashes]
    if problems:
        raise PreflightError(problems)
    batch = tuning.untuned(binding, options.scoring.batch_rows, None, device=device)
    return _Job(binding=binding, session=session_spec, batch_rows=batch.batch_rows, batch_tokens=batch.batch_tokens)


def _score(frame: pd.DataFrame, job: _Job) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the good rows with their scores, and the bad rows with their errors."""
    binding = job.binding
    table = _table(frame, binding.fed)
    edges, session = batches.grid(len(frame), job.batch_rows), SESSIONS.session(job.session)
    scored = batches.score(table, edges, binding, session, tokens=job.batch_tokens)
    arrow = _arrow_backed(frame)
    result = frame[[name for name in frame.columns if str(name) in binding.kept]]
    values = dict(zip(binding.outputs, scored.columns, strict=True))
    good = np.ones(len(frame), bool)
    good[list(scored.bad)] = False
    if scored.bad:
        result, values = result[good], {n: c.filter(pa.array(good)) for n, c in values.items()}
    outputs = pd.DataFrame({n: _to_pandas(c, arrow=arrow) for n, c in values.items()}, copy=False)
    outputs.index = frame.index[good]
    reasons = [scored.bad[row] for row in sorted(scored.bad)]
    bad = frame[~good].assign(_error=[r for _, r in reasons], _stage=[s for s, _ in reasons])
    if not scored.bad:
        bad = frame.iloc[:0].assign(_error="", _stage="")
    return pd.concat([result, outputs], axis=1), bad


def _score_or_raise(frame: pd.DataFrame, job: _Job) -> pd.DataFrame:
    """Score one partition of a Dask frame; raise an error if rows cannot be scored."""
    scored, bad = _score(frame, job)
    if len(bad):
        raise _bad_rows(bad)
    return scored


def _bad_rows(bad: pd.DataFrame) -> ScorerError:
    return RunFailed(
        f"{len(bad):,} rows could not be scored",
        where=f"index {bad.index[0]!r}",
        expected="rows that the model accepts",
        found=str(bad["_error"].iloc[0]),
        hint='pass errors="return" to get the scored rows and the bad ones',
    )


def _table(frame: pd.DataFrame, names: Sequence[str]) -> pa.Table:
    """Return the fed columns as an Arrow table, without copies where pandas allows that."""
    labels = {str(name): name for name in frame.columns}
    own = dict.fromkeys(name if name in labels else path_of(name)[0] for name in names)
    return select(pa.table({name: _to_arrow(frame[labels[name]]) for name in own}), names)


def _to_arrow(series: pd.Series) -> pa.ChunkedArray:
    if series.dtype.kind in "fiub" and isinstance(series.dtype, np.dtype):
        return pa.chunked_array([pa.array(series.to_numpy())])
    if isinstance(series.dtype, pd.ArrowDtype):
        return series.array.__arrow_array__()
    array = pa.array(series, from_pandas=True)
    if pa.types.is_null(array.type):  # an empty or all-missing column of Python objects
        array = array.cast(pa.string())
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _type_sample(series: pd.Series) -> pd.Series:
    """Return as few values as show a column's type: of Python objects, some that are not null; else none."""
    return series.dropna().iloc[: trial.SAMPLE_ROWS] if series.dtype == object else series.iloc[:0]


def _arrow_backed(frame: pd.DataFrame) -> bool:
    """Return whether any column has an Arrow type; the text type of pandas 3 does not count."""
    return any(isinstance(dtype, pd.ArrowDtype) for dtype in frame.dtypes)


def _to_pandas(column: pa.Array, *, arrow: bool) -> Any:  # noqa: ANN401 - any pandas column
    if arrow:
        return pd.arrays.ArrowExtensionArray(pa.chunked_array([column]))
    if pa.types.is_string(column.type):
        return pd.array(column.to_pylist(), dtype="str")
    if pa.types.is_fixed_size_list(column.type):
        values = np.empty(len(column), dtype=object)
        width = column.type.list_size
        matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        lists = np.empty(len(matrix), dtype=object)
        lists[:] = list(matrix)
        values[column.is_valid().to_numpy(zero_copy_only=False)] = lists
        return values
    return column.to_numpy(zero_copy_only=False)
