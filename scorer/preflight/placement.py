"""Choose and check the output's folder: outside the input, writable, large enough, not in use by another run."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from scorer.dataset import conditions
from scorer.dataset.listing import PROOF, is_glob
from scorer.dataset.tables import METADATA, METADATA_FILE
from scorer.display.words import is_utf8, quoted_list
from scorer.errors import CommitError, InputError, OptionsError, OutputExists, OutputInsideInput, PlanError, ScorerError
from scorer.locations import is_url, scheme, split
from scorer.output import lock
from scorer.output.existing import work_dir_problem
from scorer.storage.files import AtOnce
from scorer.storage.refusals import asks, explaining, read_problem, reason, write_problem
from scorer.storage.stores import WRITABLE, ObjectPath, is_folder, path_of
from scorer.tables.target import Destination, Replaced, Rows, Target, partition_columns, problems_of_replaced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scorer.dataset.summary import Dataset
    from scorer.options.fields import Options
    from scorer.output.place import Place
    from scorer.plan.prepared import Forecast
    from scorer.storage.stores import AnyPath
    from scorer.tables.target import Kind, Mode


def room_problems(place: Place, forecast: Forecast | None) -> list[ScorerError]:
    """Return a problem if the disk has less free space than the plan needs; a store does not say how much it has."""
    at = place.folder
    if isinstance(at, ObjectPath) or forecast is None:
        return []
    needed = forecast.output_bytes[0]
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if free >= needed:
        return []
    problem = InputError(
        "there is not enough free disk space for the output",
        where=str(at),
        expected=f"{needed / 1e6:,.1f} MB free",
        found=f"{free / 1e6:,.1f} MB",
        hint="free some space, or choose another --output",
    )
    return [problem]


_AND = re.compile(r"\s+and\s+(?=(?:[^']*'[^']*')*[^']*$)", re.IGNORECASE)
"""The word between two conditions, outside of quotes."""
_MISREAD = "%?#"
"""Letters of URLs; deltalake does not find its own files again in a folder whose path has one."""
_KEY_BYTES = 1024 - 200  # stores allow 1,024 of a key, and the names of parts and of the proof follow


def refusals(place: Place, inputs: Sequence[str], models: Sequence[str]) -> dict[str, list[ScorerError]]:
    """Return what stores refuse to this process, by "input", "model" and "output"; local paths are not looked at."""
    folder = str(place.folder)
    with AtOnce(*inputs, *models, folder) as ask:
        asked = {
            "input": [ask(partial(read_problem, one)) for one in inputs if asks(one)],
            "model": [ask(partial(read_problem, model, "model")) for model in models if asks(model)],
            "output": [ask(partial(write_problem, folder))] if asks(folder) else [],
        }
        return {name: [one for each in answers if (one := each()) is not None] for name, answers in asked.items()}


def reasons(refused: dict[str, list[ScorerError]]) -> list[ScorerError]:
    """Return what `refusals` found; one reason for several refusals, such as an expired token, only once."""
    every = [problem for problems in refused.values() for problem in problems]
    return [*{reason(problem): problem for problem in reversed(every)}.values()][::-1]


_NAME_BYTES = 255 - len(PROOF)  # common file systems allow 255, and the proof's name is longer


def output_of(options: Options) -> tuple[str, ScorerError | None]:
    """Return the output's path: next to the input by default; a problem if there are several inputs."""
    if options.out.output:
        return options.out.output, None
    first = options.input[0]
    if len(options.input) > 1 or is_glob(first):
        return "scored", OptionsError(
            "several inputs need an --output",
            where="--output",
            expected="a folder for the result",
            found=quoted_list(options.input) if len(options.input) > 1 else f"the pattern {first!r}",
            hint="name a folder: --output DIR",
        )
    if first.endswith(METADATA_FILE):
        return "scored", _needs_output(f"the metadata file {first} of a table")
    if is_url(first):
        return _beside(path_of(first))
    path = Path(os.path.abspath(first))
    if not path.name:  # the root folder
        return str(path / "scored"), None
    suffix = "" if os.path.isdir(path) else path.suffix
    stem = path.name.removesuffix(suffix) if suffix else path.name
    return str(path.with_name(f"{stem}.scored{suffix}")), None


def _beside(source: AnyPath) -> tuple[str, ScorerError | None]:
    """Return the output beside an input on a store; a problem if nothing can be written beside it."""
    if not source.name or scheme(str(source)) not in WRITABLE:
        return "scored", _needs_output(f"the input {source}, beside which scorer cannot write")
    suffix = source.suffix
    with suppress(OSError):  # reported when the input is listed
        suffix = suffix if suffix and not is_folder(source) else ""
    return str(source.with_name(f"{source.name.removesuffix(suffix)}.scored{suffix}")), None


def _needs_output(found: str) -> ScorerError:
    return OptionsError(
        "this input needs an --output",
        where="--output",
        expected="a folder for the result",
        found=found,
        hint="name a folder: --output DIR",
    )


def _not_utf8(path: AnyPath) -> ScorerError:
    return OptionsError(
        "the path of the output is not valid UTF-8",
        where=str(path),
        expected="a path in UTF-8, with its folders",
        found=repr(path.name),
        hint="choose an output with another name, or in another folder",
    )


def problems_of(place: Place, inputs: Sequence[str]) -> list[ScorerError]:
    """Return what is wrong with the output's place, also if its store does not say what is there."""
    try:
        with explaining(CommitError):
            return _problems_of(place, inputs)
    except CommitError as error:
        return [error]


def _problems_of(place: Place, inputs: Sequence[str]) -> list[ScorerError]:
    """Return what is wrong with the output's place; if it overlaps with the input, only that."""
    inside = [problem for text in inputs if (problem := _overlap(place, _resolved(text), text))]
    if inside:
        return inside
    output, folder = place.output, place.folder
    if isinstance(output, ObjectPath) and scheme(str(output)) not in WRITABLE:
        return [_not_writable(output)]
    problems = [_not_utf8(path) for path in (output, folder) if not is_utf8(str(path))]
    if problems:
        return problems[:1] if all(is_utf8(os.path.abspath(text)) for text in inputs) else []  # else the input's error
    places = (
        [(output, "--output")]
        if folder == output.with_name(output.name + PROOF)
        else [(output, "--output"), (folder, "--work-dir")]
    )
    with AtOnce(folder) as ask:
        others = [ask(partial(list[ScorerError], _path_problems(path, flag))) for path, flag in places]
        owner = lock.read(place.lock)
        if owner is not None and lock.is_alive(owner):
            problems.append(lock.refused(place.lock, owner))
        if len(places) > 1:
            problems += [problem for problem in [work_dir_problem(place)] if problem is not None]
        return problems + [problem for one in others for problem in one()]


def _resolved(text: str) -> AnyPath:
    """Return where an input is; of a table's metadata file, the folder of the table."""
    path = path_of(text if is_url(text) else os.path.realpath(text))
    return path.parent.parent if text.endswith(METADATA_FILE) and path.parent.name == METADATA else path


def _not_writable(output: AnyPath) -> ScorerError:
    kind = scheme(str(output))
    return OptionsError(
        f"scorer cannot write to {kind}://",
        where=str(output),
        expected=f"a local path, or a URL with {', '.join(WRITABLE)}",
        found=f"{kind}://",
        hint="choose another --output",
    )


def _object_problems(path: ObjectPath, flag: str) -> Iterator[ScorerError]:
    """Yield what keeps objects from being written below a path."""
    if path.is_file():
        yield OutputExists(
            f"{flag} is a file",
            where=str(path),
            expected="a folder, or nothing",
            found="an object with this name",
            hint=f"choose another {flag}",
        )
    size = len(split(str(path))[1].encode())
    if size > _KEY_BYTES:
        yield PlanError(
            "a name in the output's path is too long",
            where=flag,
            expected=f"a key of at most {_KEY_BYTES} bytes",
            found=f"{size} bytes",
            hint=f"choose another {flag}",
        )


def problems_on_a_disk(options: Options, place: Place) -> list[ScorerError]:
    """Return a problem for each requested option that has no meaning for an output on a disk."""
    requested = {"--sole-writer": options.stores.sole_writer, "--success-file": options.out.success_file}
    return [
        OptionsError(
            f"{flag} is for outputs on object stores",
            where=flag,
            expected="an output such as s3://bucket/scores",
            found=str(place.output),
            hint=f"leave out {flag}",
        )
        for flag, given in requested.items()
        if given and not isinstance(place.output, ObjectPath)
    ]


def table_of(
    options: Options, place: Place, dataset: Dataset, request_hash: str
) -> tuple[Destination | None, list[ScorerError]]:
    """Return the table that is requested as the output, and what keeps the run from writing it; None for plain files.

    Its columns are not known yet; `Destination.fitted` compares them.
    """
    if options.out.format == "parquet":
        return None, []
    from scorer.output.publish_table import library_of, not_removable  # noqa: PLC0415 - only for tables

    kind = cast("Kind", options.out.format)
    library = library_of(kind)
    package = library.missing_package()
    if package is not None:
        return None, [package]
    catalog = str(options.out.output) if kind == "iceberg" else ""
    where, mode = catalog or str(place.output), options.out.mode
    odd = next((letter for letter in where if letter in _MISREAD), "") if kind == "delta" else ""
    if odd:
        problem = PlanError(
            "the path of the table has letters that its library reads as another path",
            where=where,
            expected=f"a path without any of {' '.join(_MISREAD)}",
            found=odd,
            hint="choose another --output",
        )
        return None, [problem]
    existing = library.look(where, request_hash)
    replaced, problems = _replaced(mode) if mode and mode.startswith("replace") else ((), [])
    # what was scored before is replaced by its names, so that rows of others stay
    again = options.out.overwrite and place.published() is not None
    word = cast("Mode", mode.split()[0]) if mode else "append" if again else "new"
    rows = Rows(keys=dataset.hive, values=tuple(dict.fromkeys(tuple(file.hive.items()) for file in dataset.files)))
    partition_by, others = partition_columns(options.out.partition_by, rows, existing, where)
    problems += others
    if replaced and not others:
        problems += problems_of_replaced(replaced, partition_by, rows)
    target = Target(
        kind=kind, mode=word, catalog=catalog, commit=1 + (existing.commits if existing else 0),
        version=-1 if existing is None else existing.version, partition_by=partition_by, replaced=replaced,
    )  # fmt: skip
    problems += not_removable(place, target, existing) if again and existing is not None else []
    identified = library.with_ids if kind == "iceberg" else None
    return Destination(where=where, target=target, existing=existing, rows=rows, identified=identified), problems


def _replaced(mode: str) -> tuple[tuple[Replaced, ...], list[ScorerError]]:
    """Return the partitions that --mode replace names."""
    found = []
    for text in _AND.split(mode.partition(" ")[2]):
        try:
            condition = conditions.parse(text.strip())
        except ScorerError:
            condition = None
        if condition is None or condition.op not in {"==", "in"}:
            problem = OptionsError(
                "the condition of --mode replace cannot be used",
                where="--mode",
                expected="PARTITION = VALUE or PARTITION in (VALUE, ...), several of them joined by and",
                found=repr(text.strip()),
                hint="for example --mode \"replace day = '2026-01-31'\"",
            )
            return (), [problem]
        found.append(Replaced(column=condition.column, values=tuple(map(str, condition.literals))))
    return tuple(found), []


def _path_problems(path: AnyPath, flag: str) -> Iterator[ScorerError]:
    """Yield what keeps a folder from being created or written at a path."""
    if isinstance(path, ObjectPath):
        yield from _object_problems(path, flag)
        return
    if os.path.lexists(path) and not os.path.isdir(path):
        yield OutputExists(
            f"{flag} is a file",
            where=str(path),
            expected="a folder, or nothing",
            found="a file",
            hint=f"choose another {flag}",
        )
    at = _existing_parent(path)
    if not os.path.isdir(at):
        yield PlanError(
            f"the folder for {flag} cannot be created inside a file",
            where=str(path),
            expected="a folder",
            found=f"{at} is a file",
            hint=f"choose another {flag}",
        )
    elif not os.access(at, os.W_OK | os.X_OK):
        yield CommitError(
            "the output cannot be written here",
            where=str(at),
            expected="a writable folder",
            found="no permission to write",
            hint=f"choose another {flag}, or change the permissions",
        )
    elif max(map(len, map(os.fsencode, path.parts))) > _NAME_BYTES:
        yield PlanError(
            "a name in the output's path is too long",
            where=flag,
            expected=f"names of at most {_NAME_BYTES} bytes",
            found=f"{max(map(len, map(os.fsencode, path.parts)))} bytes",
            hint=f"choose another {flag}",
        )


def _is_in(path: AnyPath, other: AnyPath) -> bool:
    """Return whether a path is another one, or below it."""
    if isinstance(path, ObjectPath) or isinstance(other, ObjectPath):
        return isinstance(path, ObjectPath) and path.is_relative_to(other)
    return path.is_relative_to(other)


def _overlap(place: Place, source: AnyPath, text: str) -> ScorerError | None:
    """Return a problem if output or proof overlap with the input, or if the proof is inside the output."""
    output, folder = place.output, place.folder
    for path, flag in ((output, "--output"), (folder, "--work-dir")):
        if _is_in(path, source) or _is_in(source, path):
            inside = _is_in(path, source)
            return OutputInsideInput(
                f"the folder for {flag} is inside the input"
                if inside
                else f"the input is inside the folder for {flag}",
                where=str(path),
                expected="separate folders",
                found=f"the input {text}",
                hint=f"choose a folder for {flag} next to the input",
            )
    if _is_in(folder, output):
        return PlanError(
            "the folder for --work-dir is inside the output",
            where=str(folder),
            expected=f"a folder outside {output}",
            found=str(folder),
            hint="choose a folder for --work-dir next to the output",
        )
    return None


def _existing_parent(path: Path) -> Path:
    path = path.parent
    while not os.path.lexists(path):
        path = path.parent
    return path
