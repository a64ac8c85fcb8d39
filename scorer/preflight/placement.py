"""Where the result may go: beside the input, writable, and over nothing that is not ours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from scorer.dataset.listing import PROOF, is_glob
from scorer.display.words import quoted_list
from scorer.errors import CommitError, InputError, OptionsError, OutputExists, OutputInsideInput, PlanError, ScorerError
from scorer.output import lock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scorer.options.request import Options
    from scorer.output.place import Place


def room_problem(place: Place, needed: int) -> ScorerError | None:
    """Not enough space for what the plan expects to write."""
    at = place.folder
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if free >= needed:
        return None
    what, hint = "there is not enough room for the output", "make room, or choose another --output"
    return InputError(what, str(at), f"{needed / 1e6:,.1f} MB free", f"{free / 1e6:,.1f} MB", hint)


_NAME_BYTES = 255 - len(PROOF)  # what common file systems allow


def output_of(options: Options) -> tuple[str, ScorerError | None]:
    """Where the result goes; beside the input unless told."""
    if options.out.output:
        return options.out.output, None
    first = options.input[0]
    if len(options.input) > 1 or is_glob(first):
        what, hint = "several inputs need an --output", "--output DIR"
        found = quoted_list(options.input) if len(options.input) > 1 else f"the pattern {first!r}"
        return "scored", OptionsError(what, "--output", "a folder for the result", found, hint)
    path = Path(os.path.abspath(first))
    suffix = "" if os.path.isdir(path) else path.suffix
    stem = path.name.removesuffix(suffix) if suffix else path.name
    return str(path.with_name(f"{stem}.scored{suffix}")), None


def problems_of(place: Place, inputs: Sequence[str]) -> list[ScorerError]:
    """The output's place: never inside the input, writable, not held by another run."""
    inside = [problem for text in inputs if (problem := _overlap(place, os.path.realpath(text), text))]
    if inside:
        return inside
    problems: list[ScorerError] = []
    output, folder = place.output, place.folder
    owner = lock.read(place.lock)
    if owner is not None and lock.is_alive(owner):
        problems.append(lock.refused(place.lock, owner))
    places = (
        [(output, "--output")]
        if folder == output.with_name(output.name + PROOF)
        else [(output, "--output"), (folder, "--work-dir")]
    )
    for path, flag in places:
        if os.path.lexists(path) and not os.path.isdir(path):
            what, hint = f"the folder of {flag} is a file", f"choose another {flag}"
            problems.append(OutputExists(what, str(path), "a folder, or nothing", "a file", hint))
        at = _existing(path.parent)
        if not os.path.isdir(at):
            what, hint = "the output would lie below a file", f"choose another {flag}"
            problems.append(PlanError(what, str(path), "a folder", f"{at} is a file", hint))
        elif not os.access(at, os.W_OK | os.X_OK):
            what, hint = "the output cannot be written here", f"choose another {flag}, or change the rights"
            problems.append(CommitError(what, str(at), "a folder we may write to", "no right to write", hint))
        elif max(map(len, map(os.fsencode, path.parts))) > _NAME_BYTES:
            what, hint = "a name in the output's path is too long", f"choose another {flag}"
            longest = f"{max(map(len, map(os.fsencode, path.parts)))} bytes"
            problems.append(PlanError(what, flag, f"names of at most {_NAME_BYTES} bytes", longest, hint))
    return problems


def _overlap(place: Place, source: str, text: str) -> ScorerError | None:
    """Neither output nor proof in, around or at the input; the proof not in the output."""
    output, folder = place.output, place.folder
    for path, flag in ((output, "--output"), (folder, "--work-dir")):
        if path.is_relative_to(source) or Path(source).is_relative_to(path):
            inside = path.is_relative_to(source)
            what = (
                f"the folder of {flag} lies inside the input"
                if inside
                else f"the input lies inside the folder of {flag}"
            )
            hint = f"choose a {flag} beside the input"
            return OutputInsideInput(what, str(path), "folders apart", f"the input {text}", hint)
    if folder.is_relative_to(output):
        what, hint = "the folder of --work-dir lies inside the output", "choose a --work-dir beside the output"
        return PlanError(what, str(folder), f"a folder outside {output}", str(folder), hint)
    return None


def _existing(path: Path) -> Path:
    while not os.path.lexists(path):
        path = path.parent
    return path
