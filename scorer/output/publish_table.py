"""Publishing as a table: the parts lie in the table's folder, unseen, until one commit to its log names them all.

    work-…/publish.json       from here on, the next run of this output finishes the publish first
    the table's log           looked at for this run's commit; if it is not there, the commit is made
    manifest.json             written last, with the version of the table

Every step may be repeated: the commit has an id that is looked for before each try. Whatever the answer to a try is,
the next look decides.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from scorer.arrow import decode_schema
from scorer.display.words import cut, quoted_list
from scorer.errors import CommitError, ScorerError
from scorer.output.place import INTENT, DiskPlace, StorePlace, files_of, sizes_in, sizes_of
from scorer.output.staging import (
    move_proof,
    named_files,
    remove_parts_without_rows,
    staged_names,
    sweep_quarantine,
)
from scorer.output.writer import open_part
from scorer.storage.files import as_json, map_write_errors, sync, write_json
from scorer.storage.stores import exists, for_arrow
from scorer.tables.target import ANOTHER_RUN, Contents, Identity, NewFile, stored_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import ModuleType

    from scorer.output.lease import Lease
    from scorer.output.place import DiskStaging, Place, Staging
    from scorer.plan.frozen import FrozenPlan
    from scorer.storage.stores import AnyPath
    from scorer.tables.target import Existing, Kind, Target

_MANIFEST, _LEDGER = "manifest.json", "ledger.parquet"
_FOOTERS = 32  # read at once
_TRIES = 5
_WAIT_S = 0.2


def publish(place: Place, plan: FrozenPlan, held: Any) -> str:  # noqa: ANN401 - of the place's kind
    """Add the staged parts to the table in one commit; return in words which version has them.

    After an interruption at any point, it is safe to repeat.
    """
    if isinstance(place, DiskPlace):
        version = _publish_on_disk(place, plan)
    elif isinstance(place, StorePlace):
        version = _publish_on_store(place, plan, held)
    word = "snapshot" if _target(plan).kind == "iceberg" else "version"
    return "" if version is None else f"the rows are in {word} {version} of the table"


def _publish_on_disk(place: DiskPlace, plan: FrozenPlan) -> int | None:
    staging, version = place.staging(plan.plan_hash, in_table=True), None
    with map_write_errors(place.output):
        sweep_quarantine(staging)
        write_json(staging.root / INTENT, {"plan": plan.plan_hash})
        if (staging.root / _LEDGER).exists():  # else the commit was made, and the proof was being moved
            remove_parts_without_rows(staging)
            _sync_folders(place, staging, plan)
            version = _commit(place, plan, staging.root / _LEDGER, lambda: None)
            _sync_log(place)
            manifest = staging.root / _MANIFEST
            write_json(manifest, {**json.loads(manifest.read_text()), "table": _described(place, plan, version)})
        move_proof(place, staging, plan)
        shutil.rmtree(staging.root)
        sync(place.folder)
    return version


def _publish_on_store(place: StorePlace, plan: FrozenPlan, held: Lease) -> int | None:
    from scorer.output import publish_objects as objects  # noqa: PLC0415 - only for object stores

    staging, gate = place.staging(plan.plan_hash, in_table=True), objects._Gate()  # noqa: SLF001 - of this package
    store, version = held.store(gate.slow), None
    with map_write_errors(place.output):
        new = objects._read(store, staging.root / _MANIFEST)  # noqa: SLF001
        if new is not None:
            store.put_new(str(staging.root / INTENT), as_json({"plan": plan.plan_hash}))
            _remove_objects_without_rows(place, staging)
            version = _commit(place, plan, staging.root / _LEDGER, held.check)
            store.remove([str(place.folder / _MANIFEST)])  # the proof of another run
            ledger = store.read(str(staging.root / _LEDGER))
            objects._keep_proofs_of_generations(store, place, plan)  # noqa: SLF001
            objects._copy_proof(store, gate, place, staging, ledger)  # noqa: SLF001
            store.put(str(place.folder / _LEDGER), ledger)
            digest = objects._sha256(ledger)  # noqa: SLF001
            manifest = {**json.loads(new), "ledger": digest, "table": _described(place, plan, version)}
            objects._put_manifest(store, place.folder / _MANIFEST, as_json(manifest))  # noqa: SLF001
        elif not objects._is_manifest_of(objects._read(store, place.folder / _MANIFEST), plan):  # noqa: SLF001
            store.remove([str(staging.root / INTENT)])  # somebody removed staged files: the run publishes later
            return None
    try:
        with map_write_errors(place.output):
            objects._remove_staging(store, staging)  # noqa: SLF001
    except ScorerError as error:
        held.notify(f"the output is complete, but {staging.root} could not be removed: {error.found}")
    return version


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What the log of a table says of a plan that was published."""

    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    """What could not be checked."""
    removed: frozenset[str] = frozenset()
    """Parts that the newest version has no more; their files may have been removed."""

    def excuses(self, name: str) -> bool:
        """Return whether a part may be gone, because the table has other files by now."""
        return name in self.removed


def check(place: Place, plan: FrozenPlan, manifest: dict[str, Any]) -> Check:
    """Compare the version that the manifest names with the ledger."""
    target, sizes = _target(plan), files_of(for_arrow(place.folder / _LEDGER))
    library, location = library_of(target.kind), name_of(place, target)
    version = manifest.get("table", {}).get("version")
    package = library.missing_package()
    if package is not None:
        return Check(unchecked=(f"whether the table names these files: {package.expected} is {package.found}",))
    newest = library.files_at(location, None)
    if newest is None or not isinstance(version, int):
        return Check(faults=("there is no table, or the manifest names no version of it",))
    removed = frozenset(sizes.keys() - newest.keys())
    live = None
    with suppress(CommitError):
        live = library.files_at(location, version)
    if live is None:
        what = f"whether version {version} of the table has exactly these files: its log was cleaned up"
        return Check(unchecked=(what,), removed=removed)
    own = {part.name for part in plan.parts()}  # those of earlier generations may have been stored again since
    lost = sorted(name for name in sizes.keys() - live.keys() if name in own or name in newest)
    faults = [f"{name}: not in version {version} of the table" for name in lost]
    faults += [f"{name}: {live[name]} bytes in version {version} of the table, expected {size}"
               for name, size in sizes.items() if name in live and live[name] != size]  # fmt: skip
    if target.mode in {"new", "overwrite"}:
        faults += [
            f"{name}: in version {version} of the table, but not in the ledger"
            for name in sorted(live.keys() - sizes.keys())
        ]
    return Check(faults=tuple(faults), removed=removed)


def missing(place: Place, plan: FrozenPlan) -> list[str]:
    """List what the table lacks of a plan that was published; nothing if a run of the plan has nothing to do.

    Rows that were added once are not added again, whatever happened to the table since. Rows that replaced others are
    looked for: if the table has other files now, the plan may be carried out again.
    """
    target = _target(plan)
    library = library_of(target.kind)
    now = library.look(name_of(place, target), plan.request_hash)
    said = json.loads((place.folder / _MANIFEST).read_text()).get("table", {})
    if now is None or now.table_id != said.get("id") or _is_older(target, now.version, said):
        return [f"version {said.get('version')} of the table {said.get('id')}"]
    if target.mode not in {"overwrite", "replace"}:
        return []
    live = library.files_at(name_of(place, target), None) or {}
    return [name for name, size in files_of(for_arrow(place.folder / _LEDGER)).items() if live.get(name) != size]


def _is_older(target: Target, version: int, said: dict[str, Any]) -> bool:
    """Return whether a table is older than a commit to it; the ids of Iceberg's snapshots have no order."""
    return target.kind == "delta" and version < int(said.get("version", -1))


def unlisted_parts(place: Place, plan: FrozenPlan) -> list[AnyPath]:
    """Return the parts of an unfinished plan that lie in the table's folder and that no commit names."""
    target = plan.target
    if target is None:
        return []
    library = library_of(target.kind)
    package = library.missing_package()
    if package is not None:  # without the log, nobody knows whether the parts are in the table
        raise package
    try:
        if library.committed(name_of(place, target), target, identity_of(plan)) is not None:
            return []
    except CommitError as error:
        if error.what != ANOTHER_RUN:
            raise
    staging = place.staging(plan.plan_hash, in_table=True)
    return [staging.parts / name for name in sorted(staged_names(staging, plan))]


def identity_of(plan: FrozenPlan) -> Identity:
    """Return what identifies the commit of a plan."""
    return Identity(request=plan.request_hash, number=_target(plan).commit, plan=plan.plan_hash)


def library_of(kind: Kind) -> ModuleType:
    """Return the module that writes tables of a kind; imported here, because most outputs are no tables."""
    if kind == "iceberg":
        from scorer.tables import iceberg_commit  # noqa: PLC0415 - only for tables

        return iceberg_commit
    from scorer.tables import delta_commit  # noqa: PLC0415 - only for tables

    return delta_commit


def name_of(place: Place, target: Target) -> str:
    """Return the name under which the library knows the table: its URL in a catalog, or its folder."""
    return target.catalog or str(place.output)


def _commit(place: Place, plan: FrozenPlan, ledger: AnyPath, check: Callable[[], object]) -> int:
    target = _target(plan)
    files = _new_files(place, plan, ledger)
    notes = {
        "scorer.model": plan.model_digest, "scorer.rows": str(sum(rows for _, rows in files)),
        "scorer.version": plan.versions.get("scorer", ""),
    }  # fmt: skip
    contents = Contents(files=tuple(file for file, _ in files), removed=_removed(place, plan, ledger), notes=notes)
    return _commit_once(name_of(place, target), target, identity_of(plan), contents, check)


def _removed(place: Place, plan: FrozenPlan, ledger: AnyPath) -> tuple[str, ...]:
    """Return the files of the last run with --new-only that this one replaces: those that its ledger does not name."""
    if not plan.generation or not exists(place.folder / _LEDGER):
        return ()
    gone = tuple(sorted(named_files(place.folder / _LEDGER) - named_files(ledger)))
    target = _target(plan)
    now = library_of(target.kind).look(name_of(place, target), plan.request_hash) if gone else None
    return gone if now is not None and now.table_id == _id_of_last_run(place) else ()


def _id_of_last_run(place: Place) -> str:
    """Return the id of the table that the last run wrote; '' without a manifest, which is removed after the commit."""
    try:
        said = json.loads((place.folder / _MANIFEST).read_text()).get("table", {})
    except FileNotFoundError:
        return ""
    return str(said.get("id", ""))


def not_removable(place: Place, target: Target, existing: Existing, left: Collection[str] = ()) -> list[ScorerError]:
    """Return a problem if the table does not have the files any more that are to be removed: all but those `left`."""
    if existing.table_id != _id_of_last_run(place):
        return []
    live = library_of(target.kind).files_at(name_of(place, target), None) or {}
    gone = sorted(named_files(place.folder / _LEDGER) - set(left) - live.keys())
    return [stored_elsewhere(name_of(place, target), gone)] if gone else []


def _commit_once(name: str, target: Target, identity: Identity, contents: Contents, check: Callable[[], object]) -> int:
    """Commit once, unless that was done; return the version of the table that has the files.

    `check` is called before each try; it may raise.
    """
    library, problem = library_of(target.kind), None
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_WAIT_S * 2**attempt * random.uniform(0.5, 1.5))  # noqa: S311 - writers must not retry in step
        check()
        version: int | None = library.committed(name, target, identity)
        if version is not None:
            return version
        problem = library.try_commit(name, target, identity, contents)
    version = library.committed(name, target, identity)
    if version is not None:
        return version
    raise CommitError(
        "the table did not take the commit",
        where=name,
        expected=f"one of {_TRIES} tries to succeed",
        found=cut(" ".join(str(problem).split()), 300) or type(problem).__name__,
        hint="repeat the command: committed parts are kept, and no row is added twice",
    ) from problem


def _new_files(place: Place, plan: FrozenPlan, ledger: AnyPath) -> list[tuple[NewFile, int]]:
    """Return each part that has a file, with its rows and with the statistics of its footer."""
    table = pq.read_table(for_arrow(ledger), columns=["name", "size", "scored", "nan"])
    own = {part.name: dict(part.sources[0].hive) for part in plan.parts()}
    rows = {row["name"]: row for row in table.to_pylist() if row["size"] and row["name"] in own}
    size_of = sizes_in(place.output)
    gone = [name for name, row in rows.items() if size_of(name) != row["size"]]
    if gone:
        raise CommitError(
            "parts in the table's folder are missing or changed; nothing was added to the table",
            where=str(place.output),
            expected="files of the recorded sizes",
            found=quoted_list(gone),
            hint="remove what this run staged with `scorer clean OUT`, then start again",
        )
    schema, scores = decode_schema(plan.output_schema), set(plan.outputs)
    target = _target(plan)
    keys, library = target.partition_by, library_of(target.kind)

    def one(name: str) -> tuple[NewFile, int]:
        row, path = rows[name], place.output / name
        statistics = ""
        if target.kind == "delta":
            with open_part(path if isinstance(place, DiskPlace) else path.stat()) as parquet:
                statistics = library.statistics_of(parquet.metadata, schema, set() if row["nan"] else scores)
        values = {key: own[name][key] for key in keys}
        return NewFile(path=name, size=row["size"], keys=values, statistics=statistics), row["scored"]

    with ThreadPoolExecutor(min(_FOOTERS, max(1, len(rows))), "scorer-footers") as pool:
        return list(pool.map(one, [name for name in own if name in rows]))


def _sync_folders(place: DiskPlace, staging: DiskStaging, plan: FrozenPlan) -> None:
    """Flush the folders that hold the parts to disk: the log may name a file only if it survives a power failure."""
    folders = {staging.parts / file.folder for file in plan.files if (staging.parts / file.folder).is_dir()}
    above = {one for folder in folders for one in folder.parents if one.is_relative_to(place.output)}
    for folder in sorted({*folders, *above, place.output, place.output.parent}):
        if os.path.isdir(folder):
            sync(folder)


def _sync_log(place: DiskPlace) -> None:
    """Flush the log of a Delta table to disk, which its library does not do."""
    log = place.output / "_delta_log"
    if log.is_dir():
        newest = max(log.glob("*.json"), default=None)
        for path in (newest, log, place.output):
            if path is not None:
                sync(path)


def _remove_objects_without_rows(place: StorePlace, staging: Staging) -> None:
    names = [name for name, size in sizes_of(for_arrow(staging.root / _LEDGER)).items() if not size]
    place.output.store.remove(str(place.output / name) for name in names)


def _described(place: Place, plan: FrozenPlan, version: int) -> dict[str, Any]:
    """Return what the manifest says of the table."""
    target = _target(plan)
    now = library_of(target.kind).look(name_of(place, target), plan.request_hash)
    own = {"id": now.table_id if now else "", "version": version, "commit": target.commit}
    return {"kind": target.kind, "mode": target.mode, **own}


def _target(plan: FrozenPlan) -> Target:
    if plan.target is None:
        msg = f"a plan without a table: {plan.plan_hash}"
        raise AssertionError(msg)
    return plan.target
