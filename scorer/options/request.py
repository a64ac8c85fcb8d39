"""Build a request from flags, a job file or keyword arguments, and write it as flags again.

`build` checks the values and their combinations. It reads no data and no model.
"""

from __future__ import annotations

import shlex
import tomllib
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.display.words import did_you_mean, is_utf8, without_secrets
from scorer.errors import OptionsError, PreflightError, ScorerError
from scorer.host import devices
from scorer.options import store_options
from scorer.options import values as rules
from scorer.options.contradictions import contradictions
from scorer.options.fields import FIELDS, GROUPS, KEYS, ClusterOptions, Options
from scorer.options.grammar import listed, quoted, split_pipe
from scorer.options.wrong_types import described, wrong_type

if TYPE_CHECKING:
    from collections.abc import Container, Mapping


_RULES = {"input": rules.PATHS, "model": rules.MODELS} | {
    name: field.metadata["rule"] for name, field in FIELDS.items()
}
_COMPARED = ("input", "model", "output", "work_dir", "keep", "where")
"""Options whose text is compared with what exists; their errors say more than that it is not valid UTF-8."""
_WITH_FILES = ("feed", "labels", "join", "gate", "gate_warn")
"""Options that may name files beside other text."""
_SPLITTING = set(",'")
"""Letters that would split a column name of --keep; such a name is quoted."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return a job file as a flat mapping; `build` checks its keys."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise OptionsError(
            "the job file does not exist",
            where=str(path),
            expected="a TOML file",
            found="nothing",
            hint="check the path of --config",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionsError(
            "the job file cannot be read",
            where=str(path),
            expected="a TOML file",
            found=str(error),
            hint='write one key for each flag, for example: feed = ["x=f0..f27"]',
        ) from error


def build(values: Mapping[str, Any], where: Mapping[str, str] | None = None) -> Options:
    """Check the values and return the request; raise `PreflightError` with all errors.

    `where` is the place of each value for error messages: a flag, or a key of a job file.
    """
    places = where or {}
    problems: list[ScorerError] = []
    clean: dict[str, Any] = {}
    for name, value in values.items():
        try:
            clean[name] = _clean(name, value, places.get(name, name), python=where is None)
        except OptionsError as error:
            problems.append(error)
    given = {name: value for name, value in clean.items() if value is not None}
    remote = clean.get("scheduler") or clean.get("scheduler_file")
    if clean.get("transform") is not None and not remote:
        clean["cluster"] = clean.get("cluster") or "processes"  # Python code holds the GIL
        if clean["cluster"] == "processes":
            clean.setdefault("threads", 1)
    if not remote:
        _set_processes_for_devices(clean)
    problems += _missing(clean, {*values})
    problems += contradictions(clean)
    if problems:
        raise PreflightError(problems)
    groups = {
        group: kind(**{f.name: clean[f.name] for f in fields(kind) if f.name in clean})
        for group, kind in GROUPS.items()
    }
    implied = frozenset(name for name, value in clean.items() if value is not None and name not in given)
    return Options(input=clean["input"], model=clean["model"], implied=implied, **groups)


def as_flags(given: Mapping[str, Any], but: Container[str] = ()) -> list[tuple[str, ...]]:
    """Return the flags, each with its value, that give the same options again.

    `given` is what `Options.non_defaults` returns, or its JSON. The input and the model are arguments of the command,
    and left out.
    """
    flags: list[tuple[str, ...]] = []
    for name, value in given.items():
        if name not in FIELDS or name in but or value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append((flag,) if value else (f"--no-{flag[2:]}",))
        else:
            flags += [(flag, _flag_text(name, one)) for one in (value if isinstance(value, list | tuple) else [value])]
    return flags


def _flag_text(name: str, value: Any) -> str:  # noqa: ANN401 - JSON values
    """Return one value as its flag takes it."""
    if name == "feed" and not isinstance(value, str):
        tensor, columns = value
        piped = len(columns) == 1 and len(split_pipe(columns[0])) > 1
        return f"{tensor}={columns[0] if piped else listed(columns)}"
    return quoted(value) if name in {"keep", "partition_by"} and _SPLITTING & set(value) else str(value)


def build_cluster(values: Mapping[str, Any], where: Mapping[str, str] | None = None) -> ClusterOptions:
    """Check and return the options of a cluster, without an input and a model."""
    return build({"input": "-", "model": "-", **values}, where).cluster


def _clean(name: str, value: Any, place: str, *, python: bool) -> Any:  # noqa: ANN401 - TOML and Python values
    """Return one value in the type of its field, or raise `OptionsError`."""
    if name not in KEYS:
        raise OptionsError(
            f"there is no option {name!r}",
            where=place,
            expected="the name of an option",
            found=repr(name),
            hint=did_you_mean(name, KEYS, "scorer run --help lists the options"),
        )
    rule = _RULES[name]
    if name not in _COMPARED:
        _refuse_other_bytes(name, value, place)
    if rule.types or name in _WITH_FILES:
        _refuse_secrets(value, place)
    try:
        return rule.read(value)
    except (TypeError, ValueError, OverflowError):
        if python and rule.types and not isinstance(value, str | Path):
            raise wrong_type(name, value, rule, place) from None
        flag = f"--{name.replace('_', '-')}"
        near = did_you_mean(str(value), rule.choices) if rule.choices else ""
        hint = near if near.startswith("did") else f"see `scorer run --help` for {flag if name in FIELDS else name}"
        hint = next((f"{flag} {meant}" for word, meant in rule.meant if word == value), hint)
        found = (
            value if isinstance(value, str) and value.isdecimal() else described(value)
        )  # typed numbers need no quotes
        raise OptionsError(
            f"the value of {name!r} is not valid", where=place, expected=rule.expected, found=found, hint=hint
        ) from None


def _refuse_other_bytes(name: str, value: Any, place: str) -> None:  # noqa: ANN401 - TOML and Python values
    """Raise `OptionsError` if a text in the value is not valid UTF-8."""
    texts = value if isinstance(value, list | tuple) else [value]
    for text in texts:
        if isinstance(text, str | Path) and not is_utf8(str(text)):
            raise OptionsError(
                f"the value of {name!r} is not valid UTF-8",
                where=place,
                expected="text in UTF-8",
                found=repr(str(text)),
                hint="use another name; for a file, rename it or make a link to it",
            )


def _refuse_secrets(value: Any, place: str) -> None:  # noqa: ANN401 - TOML and Python values
    """Raise `OptionsError` if a URL in the value holds a password, a token or a signature."""
    value = list(value.values()) if isinstance(value, dict) else value
    texts = value if isinstance(value, list | tuple) else [value]
    for text in map(str, (one for one in texts if isinstance(one, str | Path))):
        if without_secrets(text) != text:
            raise OptionsError(
                "a secret does not belong in a URL",
                where=place,
                expected="scheme, bucket and path",
                found=f"a password or a signature beside {without_secrets(text)}",
                hint=store_options.hint_for(text),
            )


def _missing(clean: Mapping[str, Any], given: set[str]) -> list[ScorerError]:
    """Return an error if the input or the model is missing; a value that is not valid has its own error."""
    inputs = clean.get("input") or ()
    models = [path for path in inputs if path.endswith(".onnx")]
    rest = [path for path in inputs if path not in models] or ["input.parquet"]
    line = shlex.join(["scorer", "run", *rest[:1], "--model", *(models or ["m.onnx"])[:1]])
    return [
        OptionsError(f"no {name} was given", where=name, expected=expected, found="nothing", hint=line)
        for name, expected in (("input", "files, folders or globs"), ("model", "an .onnx file"))
        if not clean.get(name) and (name not in given or name in clean)
    ]


def _set_processes_for_devices(clean: dict[str, Any]) -> None:
    """Set `cluster` and `workers` so that each requested device gets a process."""
    with suppress(OptionsError):  # the device is checked later, and the error about its name is raised there
        device = devices.parse(clean.get("device", "auto"))
        if len(device.ids) > 1:
            clean["cluster"] = clean.get("cluster") or "processes"
        each = devices.device_environments(device) if clean.get("cluster") == "processes" else []
        if each and not clean.get("adapt"):
            clean["workers"] = clean.get("workers") or len(each)
