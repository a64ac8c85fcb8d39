"""How far a run is, seen from outside by its files."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from scorer.errors import InputError
from scorer.output import lock
from scorer.output.place import Place, nobody_wrote, refuse_another_format
from scorer.output.staging import n_staged
from scorer.report.progress import Snapshot


def state_of(place: Place) -> dict[str, Any]:
    """What can be seen from outside: running, unfinished, done, or nothing."""
    owner = lock.read(place.lock)
    plan = place.published()
    if owner is not None and lock.is_alive(owner) is not False:
        told = {name: owner[name] for name in ("host", "pid", *Snapshot.__slots__) if name in owner}
        age = max(0.0, time.time() - owner.get("now", 0.0))  # by its clock and ours
        return {"state": "running", "output": str(place.output), "age_s": round(age, 1), **told}
    unfinished = place.unfinished()
    if unfinished:
        first = unfinished[0]
        done = n_staged(place.staging(first.plan_hash))
        hint = "repeat the command to go on"
        page = place.staging(first.plan_hash).root / "report.html"
        told = {"parts": first.n_parts, "done": done, "hint": hint, "page": str(page) if page.exists() else ""}
        return {"state": "unfinished", "output": str(place.output), **told}
    if plan is not None:
        manifest = json.loads((place.folder / "manifest.json").read_text())
        shown = ("parts", "rows", "scored", "quarantined", "filtered", "size")
        return {"state": "done", "output": str(place.output), **{n: manifest[n] for n in shown}}
    refuse_another_format(place)
    if os.path.exists(place.folder / "manifest.json"):
        what, hint = "the output is gone; its proof is here", "move both together, or score again with --overwrite"
        raise InputError(what, str(place.output), "the output folder", f"only {place.folder}", hint)
    raise nobody_wrote(place, InputError)
