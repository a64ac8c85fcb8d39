"""The fields of the options as click flags, their shell completion, and values from a job file."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from scorer.errors import ScorerError
from scorer.locations import is_tracked, is_url
from scorer.options.fields import FIELDS, GROUPS, ClusterOptions
from scorer.options.grammar import labels_file, parse_join
from scorer.options.models import ModelPath, split_model
from scorer.options.request import build, build_cluster, read_toml
from scorer.options.values import FEEDS, JOINS, LABELS, MODELS, TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from click.shell_completion import CompletionItem

    from scorer.options.fields import Options


JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_FLAGS = {name: f"--{name.replace('_', '-')}" for name in FIELDS}
HEADINGS = {
    field.name: (kind.__doc__ or "Options").rstrip(".")
    for kind in GROUPS.values()
    for field in dataclasses.fields(kind)
}
"""The section of the help for each field's flag."""


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:  # noqa: ARG001 - click's signature
    """Let the shell complete file names."""
    return _item(incomplete, "file")


def complete_folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:  # noqa: ARG001 - click's signature
    """Let the shell complete folder names."""
    return _item(incomplete, "dir")


WORK_DIR = click.option(
    "--work-dir", metavar="DIR", shell_complete=complete_folders,
    help="Folder of the proof, if the run used --work-dir. Default: OUT.scorer.",
)  # fmt: skip
OUT = click.argument("output", metavar="OUT", shell_complete=complete_folders)


def _item(incomplete: str, kind: str) -> list[CompletionItem[Any]]:
    from click.shell_completion import CompletionItem  # noqa: PLC0415 - only completion needs it

    return [CompletionItem(incomplete, type=kind)]


def _completes(name: str) -> Any:  # noqa: ANN401 - click accepts several kinds of callables
    """Return a field's completion: file names, folder names, or its allowed values."""
    meta = FIELDS[name].metadata
    if meta["completes"]:
        return complete_files if meta["completes"] == "file" else complete_folders
    words = meta["rule"].choices
    return lambda ctx, param, incomplete: [word for word in words if word.startswith(incomplete)]  # noqa: ARG005 - click's


def _flags(command: Callable[..., None], names: Iterable[str]) -> Callable[..., None]:
    """Add a flag for each field to a command, in the order of `names`."""
    for name in reversed([*names]):
        field = FIELDS[name]
        meta = field.metadata
        spelled = [meta["short"], _FLAGS[name]] if meta["short"] else [_FLAGS[name]]
        if not meta["metavar"]:
            off = "" if field.default is False else f"/--no-{name.replace('_', '-')}"
            option = click.option(_FLAGS[name] + off, name, default=None, is_flag=True, help=meta["help"])
        else:
            many = isinstance(field.default, tuple)
            option = click.option(
                *spelled, name, multiple=many, default=() if many else None,
                metavar=meta["metavar"], help=meta["help"], shell_complete=_completes(name),
            )  # fmt: skip
        command = option(command)
    return command


def request_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add INPUT, --model, a flag for every option, and --config, --json and --debug."""
    command = _flags(command, FIELDS)
    command = click.option(
        "--config",
        metavar="FILE",
        shell_complete=complete_files,
        help="Read options from a job.toml; its keys are the flags' names. Flags override it.",
    )(command)
    command = click.option(
        "-m", "--model", multiple=True, metavar="[NAME=]MODEL", shell_complete=complete_files,
        help="The ONNX model: a file, a folder of Hugging Face or MLflow, a URL, or models:/NAME@ALIAS. Several models "
        "score the same rows, each with a name: --model champion=a.onnx --model challenger=b.onnx. Their columns begin "
        "with champion_ and challenger_.",
    )(command)  # fmt: skip
    command = JSON(command)
    command = click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")(command)
    return click.argument("input", nargs=-1, metavar="INPUT...", shell_complete=complete_files)(command)


def bind_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags that match columns to tensors, for commands that score a few rows of some data."""
    flags = (
        click.option("--feed", multiple=True, metavar="TENSOR=COLUMNS", help="As for `run`."),
        click.option("--by-position", is_flag=True, help="As for `run`."),
        click.option("--fetch", multiple=True, metavar="TENSOR[=COLUMN]", help="As for `run`."),
        click.option(
            "--labels", multiple=True, metavar="[TENSOR=]NAMES", shell_complete=complete_files, help="As for `run`."
        ),
        click.option("--batch-axis", multiple=True, metavar="TENSOR=AXIS", help="As for `run`."),
    )
    for flag in reversed(flags):
        command = flag(command)
    return command


def cluster_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags of `ClusterOptions`."""
    return _flags(command, [field.name for field in dataclasses.fields(ClusterOptions)])


def options_of(config: str | None, given: dict[str, Any]) -> Options:
    """Build the options: flags override the job file, which overrides the defaults."""
    typed = {name: value for name, value in given.items() if value not in (None, ())}
    toml = read_toml(config) if config else {}
    folder = os.path.dirname(os.path.abspath(config)) if config else ""
    if "model" in toml:
        toml["model"] = _models_beside(folder, toml["model"])
    for name in ("input", "output", "work_dir", "ort_library", "scheduler_file"):
        if name in toml:
            toml[name] = _beside(folder, toml[name])
    if "feed" in toml:
        toml["feed"] = _feeds_beside(folder, toml["feed"])
    if "labels" in toml:
        names = _names_of_models(typed.get("model", toml.get("model")))
        toml["labels"] = _labels_beside(folder, toml["labels"], names)
    if "join" in toml:
        toml["join"] = _joins_beside(folder, toml["join"])
    for name in ("gate", "gate_warn"):
        if name in toml:
            toml[name] = _gates_beside(folder, toml[name])
    places = {name: f"{name} in {config}" for name in toml} | {n: _FLAGS.get(n, n) for n in typed}
    return build({**toml, **typed}, places)


def cluster_of(given: dict[str, Any]) -> ClusterOptions:
    """Build the cluster options from the flags of `cluster_flags`."""
    return build_cluster({name: value for name, value in given.items() if value not in (None, ())}, _FLAGS)


def _beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Resolve paths of a job file relative to its folder."""
    if isinstance(value, str):
        return value if is_url(value) or is_tracked(value) else os.path.join(folder, value)
    return [_beside(folder, one) for one in value] if isinstance(value, list) else value


def _models_beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Resolve paths of models relative to the job file's folder; each may have a name."""
    found = value
    if isinstance(value, str | list):  # whether 'a=m.onnx' is the text of a file is asked in that folder
        texts = value if isinstance(value, list) else [value]
        found = [ModelPath.parse(text, folder) if _may_name(text) else text for text in texts]
    try:
        models = MODELS.read(found)
    except ScorerError:
        return found  # `build` reports what is wrong
    except (TypeError, ValueError):
        return value
    return [ModelPath(model.name, _beside(folder, model.path)) for model in models]


def _may_name(value: object) -> bool:
    return isinstance(value, str) and not value.lstrip().startswith("=") and "=" in value and "\0" not in value


def _feeds_beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Resolve file names in converters relative to the job file's folder."""
    try:
        return [feed.beside(folder) for feed in FEEDS.read(value)]
    except (TypeError, ValueError):
        return value


def _joins_beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Resolve the locations of joined tables relative to the job file's folder."""
    try:
        joins = [parse_join(text) for text in JOINS.read(value)]
    except (TypeError, ValueError):
        return value
    return tuple(one.at(_beside(folder, one.location)) for one in joins if one is not None)


def _gates_beside(folder: str, value: Any) -> Any:  # noqa: ANN401 - TOML values; `build` checks them
    """Resolve the baselines of gates relative to the job file's folder."""
    from scorer.options.gates import beside  # noqa: PLC0415 - only for runs with gates

    try:
        return [beside(text, folder) for text in TEXTS.read(value)]
    except (TypeError, ValueError):
        return value


def _names_of_models(value: Any) -> list[str]:  # noqa: ANN401 - TOML values; `build` checks them
    try:
        return [model.name for model in MODELS.read(value) if model.name]
    except (TypeError, ValueError, ScorerError):
        return []


def _labels_beside(folder: str, value: Any, models: Sequence[str]) -> Any:  # noqa: ANN401 - TOML values
    """Resolve files of class names relative to the job file's folder; a text may begin with the name of a model."""
    try:
        texts = LABELS.read(value)
    except (TypeError, ValueError):
        return value
    split = [split_model(text, models) for text in texts]
    placed = ((owner, text, labels_file(text, folder)) for owner, text in split)
    own = ((owner, text if file is None else "".join(file)) for owner, text, file in placed)
    return tuple(f"{owner}:{text}" if owner else text for owner, text in own)
