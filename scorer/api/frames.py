"""Score a frame that somebody already has: pandas in, pandas out; Dask in, lazy Dask out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scorer.binding.inputs import bind, shapes
from scorer.binding.outputs import output_schema, requested_fetches
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
    from scorer.options.request import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every partition needs; plain data, the model not in it."""

    binding: Binding
    session: SessionSpec
    batch_rows: int
    batch_tokens: int | None


def score(  # noqa: PLR0913 - the binding's options, spelled out
    frame: Any,  # noqa: ANN401 - a pandas or a Dask frame; the same comes back
    model: str | Path,
    *,
    feed: Sequence[str] | Mapping[str, str | Sequence[str]] | str = (),
    fetch: Sequence[str] | str = (),
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
        A pandas frame, scored now; or a Dask frame, scored when it is computed. Index, dtypes and
        divisions survive, and scores are numpy's or Arrow's as the frame's own columns are.
    model
        An ``.onnx`` file that every worker can read at this path.
    feed, fetch, keep, prefix, on_null, on_lossy, batch_rows, device
        As the flags of ``scorer run``. Batches count from the first row of each partition.
    errors
        ``"raise"`` stops at rows that cannot be scored; ``"return"`` gives ``(scored, bad)`` for a
        pandas frame, with ``_error`` and ``_stage`` in the second.

    Examples
    --------
    >>> import pandas as pd
    >>> flights = pd.read_parquet("examples/flights/flights.parquet")
    >>> scored = score(flights, "examples/flights/late.onnx", keep=["carrier"])
    >>> list(scored.columns)
    ['carrier', 'label', 'probabilities_0', 'probabilities_1']

    """
    options = build({
        "input": "frame", "model": model, "feed": feed, "fetch": fetch, "keep": keep, "prefix": prefix,
        "on_null": on_null, "on_lossy": on_lossy, "batch_rows": batch_rows, "device": device,
    })  # fmt: skip
    lazy = hasattr(frame, "map_partitions") and isinstance(getattr(frame, "_meta", None), pd.DataFrame)
    _check(frame, errors, lazy=lazy)
    if not lazy:
        job = _job(options, frame)
        scored, bad = _score(frame, job)
        if errors == "return":
            return scored, bad
        if len(bad):
            raise _bad_rows(bad)
        return scored
    example = frame._meta  # noqa: SLF001 - Dask's documented way to see columns without computing
    job = _job(options, example, lazy=True)
    return frame.map_partitions(_score_or_raise, job, meta=_score(example, job)[0], enforce_metadata=False)


def release() -> None:
    """Forget the models that `score` keeps loaded in this process.

    Examples
    --------
    >>> release()

    """
    SESSIONS.release()


def _check(frame: Any, errors: str, *, lazy: bool) -> None:  # noqa: ANN401 - whatever was given
    """Refuse what is no frame, and what a frame cannot do."""
    where = "scorer.score"
    if not lazy and not isinstance(frame, pd.DataFrame):
        what, hint = "only frames can be scored", "pass a pandas or a Dask DataFrame"
        raise OptionsError(what, where, "a pandas or a Dask DataFrame", type(frame).__name__, hint)
    if errors not in {"raise", "return"}:
        what, hint = "errors is neither of its two words", 'errors="raise" or errors="return"'
        raise OptionsError(what, where, "raise or return", repr(errors), hint)
    if lazy and errors == "return":
        what, hint = "a lazy frame has one result", "score a pandas frame, or use scorer.run with max_bad_rows"
        raise OptionsError(what, where, 'errors="raise" for a Dask frame', 'errors="return"', hint)
    names = frame.columns
    if isinstance(names, pd.MultiIndex):
        what, hint = "the frame's columns have several levels", "flatten them first"
        raise PreflightError([InputError(what, where, "one level of names", f"{names.nlevels} levels", hint)])
    twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        what, hint = f"columns share one name: {quoted_list(twice)}", "rename them, or drop all but one"
        raise PreflightError([InputError(what, where, "one column of a name", "several", hint)])


def _job(options: Options, frame: pd.DataFrame, *, lazy: bool = False) -> _Job:
    """Bind and learn the output columns; every problem at once."""
    spec = inspect_model(options.model)
    columns = pa.schema([pa.field(str(name), _arrow(_few(frame[name])).type) for name in frame.columns])
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
        what, hint = f"the width of {unknown[0].tensor!r} cannot be seen without computing", "use fixed-size lists"
        found = f"lists of any length in {unknown[0].columns[0]!r}"
        raise ShapeMismatch(what, "a Dask frame", "a column of fixed-size lists", found, hint)
    rows = _table(frame.iloc[: trial.SAMPLE_ROWS], binding.fed)
    binding = shapes(binding, rows)
    session = SESSIONS.session(session_spec)
    fetches, wrong = trial.outputs(session, binding, wanted, rows, spec, options.binding.prefix)
    binding = replace(binding, fetches=fetches)
    _, clashes = output_schema(binding, columns, "the frame")
    problems = [*wrong, *clashes]
    if problems:
        raise PreflightError(problems)
    usual = tuning.untuned(binding, options.scoring.batch_rows, None, device=device)
    return _Job(binding=binding, session=session_spec, batch_rows=usual.batch_rows, batch_tokens=usual.batch_tokens)


def _score(frame: pd.DataFrame, job: _Job) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Good rows with scores, and bad rows with their reasons."""
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
    outputs = pd.DataFrame({n: _pandas(c, arrow=arrow) for n, c in values.items()}, copy=False)
    outputs.index = frame.index[good]
    reasons = [scored.bad[row] for row in sorted(scored.bad)]
    bad = frame[~good].assign(_error=[r for _, r in reasons], _stage=[s for s, _ in reasons])
    if not scored.bad:
        bad = frame.iloc[:0].assign(_error="", _stage="")
    return pd.concat([result, outputs], axis=1), bad


def _score_or_raise(frame: pd.DataFrame, job: _Job) -> pd.DataFrame:
    """One partition of a Dask frame."""
    scored, bad = _score(frame, job)
    if len(bad):
        raise _bad_rows(bad)
    return scored


def _bad_rows(bad: pd.DataFrame) -> ScorerError:
    what, hint = f"{len(bad):,} rows could not be scored", 'errors="return" gives the scored rows and the bad ones'
    return RunFailed(what, f"index {bad.index[0]!r}", "rows that the model takes", str(bad["_error"].iloc[0]), hint)


def _table(frame: pd.DataFrame, names: Sequence[str]) -> pa.Table:
    """The fed columns as Arrow, without copies where pandas allows."""
    by_text = {str(name): name for name in frame.columns}
    return pa.table({name: _arrow(frame[by_text[name]]) for name in names})


def _arrow(series: pd.Series) -> pa.ChunkedArray:
    if series.dtype.kind in "fiub" and isinstance(series.dtype, np.dtype):
        return pa.chunked_array([pa.array(series.to_numpy())])
    if isinstance(series.dtype, pd.ArrowDtype):
        return series.array.__arrow_array__()
    array = pa.array(series, from_pandas=True)
    if pa.types.is_null(array.type):  # an empty or all-missing column of Python objects
        array = array.cast(pa.string())
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _few(series: pd.Series) -> pd.Series:
    """As much of a column as tells its type: of Python objects, some that are there."""
    return series.dropna().iloc[: trial.SAMPLE_ROWS] if series.dtype == object else series.iloc[:0]


def _arrow_backed(frame: pd.DataFrame) -> bool:
    """Whether the frame's columns are Arrow's, the pandas 3 text type not counted."""
    return any(isinstance(dtype, pd.ArrowDtype) for dtype in frame.dtypes)


def _pandas(column: pa.Array, *, arrow: bool) -> Any:  # noqa: ANN401 - any pandas column
    if arrow:
        return pd.arrays.ArrowExtensionArray(pa.chunked_array([column]))
    if pa.types.is_string(column.type):
        return pd.array(column.to_pylist(), dtype="str")
    if pa.types.is_fixed_size_list(column.type):
        values = np.empty(len(column), dtype=object)
        width = column.type.list_size
        matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        values[:] = list(matrix)
        return values
    return column.to_numpy(zero_copy_only=False)
