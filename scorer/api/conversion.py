"""convert: a model of another library as ONNX, compared with the original before it is written."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from scorer.binding.request import expand
from scorer.dataset import reader
from scorer.dataset.summary import summarise
from scorer.display.words import quoted_list, size
from scorer.errors import InputError, MissingColumns, ModelError, ModelLoadError, OptionsError, OutputExists
from scorer.host import isolation
from scorer.model.converting import sources
from scorer.model.converting.request import Request, Settings
from scorer.model.spec import conversion_words
from scorer.options.grammar import split_names
from scorer.storage.files import as_json, map_write_errors, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.model.converting.request import Converted
    from scorer.model.converting.sources import Source

_TARGET = "scorer.model.converting.conversion:convert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The result of `scorer convert`."""

    output: str
    bytes: int
    record: dict[str, Any]
    """What was compared, as the model's metadata has it."""
    features: tuple[str, ...]
    flags: tuple[str, ...]
    """Flags that a run of the model needs."""
    notes: tuple[str, ...]
    check: tuple[str, ...]

    def facts(self) -> list[tuple[str, str]]:
        """Return what was done, with the command that comes next, as lines."""
        run = shlex.join(["scorer", "run", *self.check, "--model", self.output, *self.flags])
        return [
            ("written", f"{self.output} ({size(self.bytes)})"),
            ("compared", conversion_words(as_json(self.record).decode())),
            *(("note", note) for note in self.notes),
            ("next", run),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the conversion as data for JSON."""
        return {
            "output": self.output, "bytes": self.bytes, **self.record, "features": list(self.features),
            "flags": list(self.flags), "notes": list(self.notes),
        }  # fmt: skip


def convert(  # noqa: PLR0913 - one argument for each flag
    model: str,
    output: str,
    check: Sequence[str],
    *,
    features: str = "",
    rows: int = 10_000,
    tolerance: float = 1e-5,
    double: bool = False,
    opset: int = 0,
    trust: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Convert the model and write it; raise an error, and write nothing, if it differs from the original."""
    target = Path(output)
    check_output(target, "converted", overwrite=overwrite)
    source = sources.find(model)
    if source.kind in sources.PICKLES and not trust:
        raise ModelError(
            "a pickle runs code when it is loaded", where=source.file, expected="--trust, if you trust the file",
            found=source.words, hint="add --trust if you trust whoever wrote the file",
        )  # fmt: skip
    table, unusable = _first_rows(check, rows)
    request = Request(
        source=source, table=table, data=", ".join(check), tolerance=tolerance, unusable=unusable,
        features=_features(features, check, table), settings=Settings(double=double, opset=opset), trust=trust,
    )  # fmt: skip
    converted = _in_child(request, source)
    write_model(target, converted.model)
    return Conversion(
        output=output, bytes=len(converted.model), record=converted.record, features=converted.features,
        flags=converted.flags, notes=converted.notes, check=tuple(check),
    )  # fmt: skip


def write_model(target: Path, data: bytes) -> None:
    """Write the file in one step; if that fails, nothing is left."""
    tmp = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with map_write_errors(target):
            write_atomically(target, data, durable=True, tmp=tmp)
    finally:
        with suppress(OSError):
            tmp.unlink(missing_ok=True)


def check_output(target: Path, made: str, *, overwrite: bool) -> None:
    """Raise if the model that is `made`, such as "converted", cannot be written there, or must not."""
    if not target.absolute().parent.is_dir():
        raise OptionsError(
            f"the folder of the {made} model does not exist", where=f"--output {target}",
            expected="an existing folder", found=f"no folder {target.absolute().parent}",
            hint=f"mkdir -p {shlex.quote(str(target.absolute().parent))}",
        )  # fmt: skip
    if target.is_dir():
        raise OptionsError(
            f"the {made} model is one file", where=f"--output {target}", expected="the name of a file",
            found="a folder", hint=f"--output {shlex.quote(str(target / 'model.onnx'))}",
        )  # fmt: skip
    if target.exists() and not overwrite:
        raise OutputExists(
            "the file exists already", where=str(target), expected="a name that no file has", found="a file",
            hint="choose another --output, or pass --overwrite to replace it",
        )  # fmt: skip


def _first_rows(check: Sequence[str], rows: int) -> tuple[pa.Table, dict[str, str]]:
    """Return the first rows of the data, and the types of columns that no model takes."""
    dataset = summarise(check, ())
    fields = [field for field in dataset.columns if _usable(field.type)]
    unusable = {field.name: str(field.type) for field in dataset.columns if not _usable(field.type)}
    table = reader.first_rows(dataset, pa.schema(fields), rows) if fields else pa.table({})
    if not (table.num_rows if fields else dataset.rows):
        raise InputError(
            "the data has no rows", where=", ".join(check), expected="rows to compare the models with", found="0 rows",
            hint="pass data with rows as the model will get them",
        )  # fmt: skip
    return table.cast(pa.schema([field.with_type(_plain(table[field.name])) for field in table.schema])), unusable


def _usable(kind: pa.DataType) -> bool:
    """Return whether a model takes values of this type."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (
        pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_string,
        pa.types.is_large_string, pa.types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _plain(column: pa.ChunkedArray) -> pa.DataType:
    """Return the type in which pandas keeps the values as they are."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return pa.float64()
    if pa.types.is_float16(kind):
        return pa.float32()
    return pa.int8() if pa.types.is_boolean(kind) and column.null_count else kind


def _features(text: str, check: Sequence[str], table: pa.Table) -> tuple[str, ...]:
    """Return the columns that --features names, in its order."""
    names = split_names(text)
    found, unknown = ([], [text]) if names is None else expand(names, table.column_names)
    if unknown:
        raise MissingColumns(
            f"--features names columns that the data does not have: {quoted_list(unknown)}", where=", ".join(check),
            expected="columns of the data", found=quoted_list(table.column_names),
            hint="names, globs (x_*) and ranges (f0..f27) must match columns",
        )  # fmt: skip
    return tuple(found)


def _in_child(request: Request, source: Source) -> Converted:
    """Convert in a process of its own."""
    try:
        converted: Converted = isolation.call(_TARGET, request)
    except isolation.Died as error:
        raise ModelLoadError(
            "the process that loaded the model ended", where=source.path, expected="a model that its library loads",
            found=str(error), hint="write or copy the file again, or load it with its library in Python",
        ) from error  # fmt: skip
    return converted
