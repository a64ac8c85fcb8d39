"""The fields of the options as flags, what a shell may complete, and a job file below the flags."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from scorer.options.request import FIELDS, GROUPS, ClusterOptions, build, build_cluster, read_toml
from scorer.options.values import FEEDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from click.shell_completion import CompletionItem

    from scorer.options.request import Options


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_FLAGS = {name: f"--{name.replace('_', '-')}" for name in FIELDS}
HEADINGS = {
    field.name: (kind.__doc__ or "Options").rstrip(".")
    for kind in GROUPS.values()
    for field in dataclasses.fields(kind)
}
"""What the flag of each field decides."""


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:  # noqa: ARG001 - click's signature
    """The shell completes names of files."""
    return _item(incomplete, "file")


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:  # noqa: ARG001 - click's signature
    """The shell completes names of folders."""
    return _item(incomplete, "dir")


def _item(incomplete: str, kind: str) -> list[CompletionItem[Any]]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - only a shell that completes needs it

    return [CompletionItem(incomplete, type=kind)]


def _completes(name: str) -> Any:  # noqa: ANN401 - click's own kinds of callables
    """What the shell offers for a field: names of files or folders, or the words it may be."""
    meta = FIELDS[name].metadata
    if meta["completes"]:
        return files if meta["completes"] == "file" else folders
    words = meta["rule"].choices
    return lambda ctx, param, incomplete: [word for word in words if word.startswith(incomplete)]  # noqa: ARG005 - click's


def _flags(command: Callable[..., None], names: Iterable[str]) -> Callable[..., None]:
    """Fields of the options as flags, the first one first."""
    for name in reversed([*names]):
        field = FIELDS[name]
        meta = field.metadata
        if not meta["metavar"]:
            off = "" if field.default is False else f"/--no-{name.replace('_', '-')}"
            option = click.option(_FLAGS[name] + off, name, default=None, is_flag=True, help=meta["help"])
        else:
            many = isinstance(field.default, tuple)
            option = click.option(
                _FLAGS[name], name, multiple=many, default=() if many else None,
                metavar=meta["metavar"], help=meta["help"], shell_complete=_completes(name),
            )  # fmt: skip
        command = option(command)
    return command


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Every field of the options as a flag, and the flags about the flags."""
    command = _flags(command, FIELDS)
    command = click.option(
        "--config", metavar="FILE", shell_complete=files, help="A job.toml with the same keys; flags win."
    )(command)
    command = click.option("--model", metavar="FILE", shell_complete=files, help="The ONNX model.")(command)
    command = JSON(command)
    command = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(command)
    return click.argument("input", nargs=-1, metavar="INPUT...", shell_complete=files)(command)


def asking_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that say who works."""
    return _flags(command, [field.name for field in dataclasses.fields(ClusterOptions)])


def options_of(config: str | None, given: dict[str, Any]) -> Options:
    """Defaults < job.toml < flags."""
    asked = {name: value for name, value in given.items() if value not in (None, ())}
    toml = read_toml(config) if config else {}
    folder = os.path.dirname(os.path.abspath(config)) if config else ""
    for name in ("input", "model", "output", "work_dir", "ort_library", "scheduler_file"):
        if name in toml:
            toml[name] = _beside(folder, toml[name])
    if "feed" in toml:
        toml["feed"] = _feeds_beside(folder, toml["feed"])
    places = {name: f"{name} in {config}" for name in toml} | {n: _FLAGS.get(n, n) for n in asked}
    return build({**toml, **asked}, places)


def cluster_of(given: dict[str, Any]) -> ClusterOptions:
    """Who works, of the flags of `asking_cluster`."""
    return build_cluster({name: value for name, value in given.items() if value not in (None, ())}, _FLAGS)


def _beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Paths in a job file are relative to the file."""
    if isinstance(value, str):
        return value if "://" in value else os.path.join(folder, value)
    return [_beside(folder, one) for one in value] if isinstance(value, list) else value


def _feeds_beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Converters may name files, relative to the job file too."""
    try:
        return [feed.beside(folder) for feed in FEEDS.read(value)]
    except (TypeError, ValueError):
        return value
