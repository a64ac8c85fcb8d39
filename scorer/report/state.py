"""How far a run is, read from its files only: by any process on any host that sees them."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.errors import InputError
from scorer.output import lock
from scorer.output.place import Place, nobody_wrote, refuse_another_format
from scorer.output.staging import n_staged
from scorer.report.progress import Snapshot
from scorer.storage.refusals import explaining
from scorer.storage.stores import exists, is_folder, raise_if_unknown

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from scorer.options.store_options import StoreOption


_MANIFEST = ("parts", "rows", "scored", "quarantined", "filtered", "deleted", "size")
_FIELDS = {
    "running": ("age_s", "host", "pid"),
    "unfinished": ("parts", "done", "hint", "page"),
    "done": (*_MANIFEST, "generations"),
}
"""What `to_dict` contains in each state, besides `state`, `output` and the progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is. Fields that have no meaning in its state keep their default."""

    state: Literal["running", "unfinished", "done"]
    output: str
    host: str = ""
    """Of a running driver, like the next three."""
    pid: int = 0
    age_s: float = 0.0
    """Seconds since the driver last wrote its lock, by the clocks of both hosts."""
    progress: Snapshot | None = None
    """None before scoring starts."""
    parts: int = 0
    done: int = 0
    """Committed parts of an unfinished run."""
    hint: str = ""
    page: str = ""
    """report.html of an unfinished run; '' if it has none."""
    rows: int = 0
    """Of a published output, like the fields below."""
    scored: int = 0
    quarantined: int = 0
    filtered: int = 0
    deleted: int = 0
    size: int = 0
    """In bytes."""
    generations: int = 0
    """How often --new-only has added to it, the first run included; 0 if the output has no generations."""

    def to_dict(self) -> dict[str, Any]:
        """Return what `scorer status --json` prints."""
        names = ("state", "output", *_FIELDS[self.state])
        return {name: getattr(self, name) for name in names} | (self.progress.to_dict() if self.progress else {})


def status(output: str | Path, *, work_dir: str | Path | None = None, store_option: StoreOption = ()) -> Status:
    """Return how far the run is that writes an output: what ``scorer status`` shows.

    Only files are read, so that it works in another process, and on any host that sees them.

    Parameters
    ----------
    output
        The folder of the output, as text or as a ``Path``.
    work_dir
        Folder of the proof, if the run uses ``work_dir``.
    store_option
        How object stores are reached, as for `run`.

    Returns
    -------
    Status
        ``state`` is ``"running"``, ``"unfinished"`` or ``"done"``. ``progress`` has the rows so far of a run that is
        scoring; ``done`` of ``parts`` are committed if it is unfinished.

    Raises
    ------
    InputError
        If no run has written there.

    Examples
    --------
    >>> import tempfile, scorer
    >>> output = tempfile.mkdtemp() + "/scores"
    >>> report = scorer.run("examples/flights/flights.parquet", "examples/flights/late.onnx", output, limit=1000)
    >>> now = status(output)
    >>> now.state, now.scored
    ('done', 1000)

    """
    return status_of(Place.at(output, work_dir, store_option))


def status_of(place: Place) -> Status:
    """Return how far the run is; raise InputError if no run has written here."""
    with explaining(InputError):
        return _status_of(place)


def _status_of(place: Place) -> Status:
    output, owner = str(place.output), lock.read(place.lock)
    if owner is not None and lock.is_alive(owner) is not False:
        age_s = round(max(0.0, time.time() - owner.get("now", 0.0)), 1)
        return Status(
            state="running", output=output, host=owner.get("host", ""), pid=owner.get("pid", 0), age_s=age_s,
            progress=Snapshot.from_dict(owner),
        )  # fmt: skip
    plan, unfinished = place.published(), place.unfinished()
    if unfinished:
        first = unfinished[0]
        staging = place.staging(first.plan_hash, in_table=first.target is not None)
        page = staging.root / "report.html"
        return Status(
            state="unfinished", output=output, parts=first.n_parts, done=n_staged(staging, first),
            hint="repeat the command to continue the run", page=str(page) if page.exists() else "",
        )  # fmt: skip
    if plan is not None:
        return _done(place)
    refuse_another_format(place)
    if exists(place.folder / "manifest.json"):
        if is_folder(place.output):
            raise _damaged(place)
        raise InputError(
            "the output folder is missing; only its proof exists",
            where=output,
            expected="the output folder",
            found=f"only {place.folder}",
            hint="move the output folder back beside its proof, or repeat the command",
        )
    raise nobody_wrote(place, InputError)


def _done(place: Place) -> Status:
    """Return the status of a published output."""
    try:
        manifest = {"deleted": 0, **json.loads((place.folder / "manifest.json").read_text())}
        known = {name: manifest[name] for name in _MANIFEST}
        generations = len(manifest.get("generations", ()))
        return Status(state="done", output=str(place.output), generations=generations, **known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_unknown(place.folder, error)
        raise _damaged(place) from error


def _damaged(place: Place) -> InputError:
    """Return the error for an output that exists beside a damaged proof."""
    return InputError(
        "the proof beside the output is damaged",
        where=str(place.folder),
        expected="a plan and a manifest of one run",
        found="files that cannot be read, or that are not of one run",
        hint="restore the folder, or score again with --overwrite",
    )
