"""Publishing on an object store, which has no rename: copies on the server, and the manifest last.

    OUT/part-00012-3f9ac1d2.parquet     copied from OUT.scorer/work-…/parts/ in one sweep
    OUT.scorer/manifest.json            written last: if it is there, OUT is complete, and is what the ledger says

Every step may be repeated, and every request is sent only while the lease is held (see `lease.py`). From the intention
on (`publish.json` in the staging folder), the next run of this output finishes the publish first.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.display.words import plural, quoted_list
from scorer.errors import CommitError, ScorerError
from scorer.output import lease, lock
from scorer.output.existing import PROOF_OF_GENERATION
from scorer.output.place import INTENT, SUCCESS, files_of, load_plan, sizes_below
from scorer.output.staging import discard_markers, remove_folder
from scorer.plan.generations import folder_of
from scorer.storage.files import AtOnce, as_json, map_write_errors
from scorer.storage.stores import ObjectPath
from scorer.tables.deleted import NAME as DELETED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from scorer.output.lease import Lease
    from scorer.output.place import StorePlace, StoreStaging
    from scorer.plan.frozen import FrozenPlan
    from scorer.storage.objects import ObjectStore

_MANIFEST, _LEDGER = "manifest.json", "ledger.parquet"
_PROOF = ("plan.json", DELETED, "report.json", "report.html")
"""What is copied from the staging folder before ledger and manifest."""
_RACERS = 8  # writers of one name, at once, when a store is tried
_FEWEST_COPIES, _MOST_COPIES = 8, 64  # at once: the first number is doubled while the store is not slowed
_ROUNDS = 4  # of listing and copying what is missing, before a store is given up


def hold(place: StorePlace, notify: Callable[[str], None]) -> AbstractContextManager[Lease]:
    """Hold the output's lease inside the block."""
    return lease.held(place.lock, notify)


def probe(place: StorePlace, held: Lease) -> None:
    """Try the conditional writes that the commit protocol needs, before any row is scored."""
    store = held.store()
    names = [str(place.marker()) for _ in range(2)]  # markers, so that those of a driver that died are removed
    with map_write_errors(place.folder):
        try:
            problem = _broken_promise(store, *names)
        finally:
            with suppress(OSError, ScorerError):
                store.remove(names)
    if problem:
        expected, found = problem
        raise CommitError(
            "the store does not keep its word on conditional writes",
            where=str(place.folder),
            expected=expected,
            found=found,
            hint="update the server, write elsewhere, or pass --sole-writer if no other run writes there",
        )


def _broken_promise(store: ObjectStore, first: str, second: str) -> tuple[str, str] | None:
    """Return what was expected and found if a conditional write does not do what it should; None if all do.

    The first write is known to be this one even if its answer is lost, because nobody else has its name.
    """
    if not store.conditional:
        return None
    with AtOnce(first) as ask:
        race = [ask(partial(store.put_new, second, b"%d" % n)) for n in range(_RACERS)]
        seen = store.put_new(first, b"1") or store.identity(first)
        store.put_over(first, b"33", seen)
        late, again = ask(lambda: store.put_over(first, b"444", seen)), ask(lambda: store.put_new(first, b"2"))
        if again() is not None:
            return 'a second "create" of one name to be refused', "both were accepted"
        if late() is not None:
            return "a write over an older ETag to be refused", "it was accepted"
        winners = sum(one() is not None for one in race)
    return None if winners <= 1 else ("one winner among writers of one name", f"{winners} of {_RACERS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What is there when publishing begins; None for an object that is not."""

    manifest: bytes | None
    """That of the output, which is replaced or complete already."""
    ledger: bytes | None
    staged_manifest: bytes | None
    staged_ledger: bytes | None
    intent: bytes | None
    """The intention that an earlier run recorded."""
    output: dict[str, int]
    """The sizes of the output's objects, by name."""

    @classmethod
    def of(cls, store: ObjectStore, place: StorePlace, staging: StoreStaging) -> _Seen:
        """Ask for everything at once."""
        with AtOnce(place.folder) as ask:
            paths = [folder / name for folder in (place.folder, staging.root) for name in (_MANIFEST, _LEDGER)]
            read = [ask(partial(_read, store, path)) for path in (*paths, staging.root / INTENT)]
            output = ask(lambda: sizes_below(place.output))
            manifest, ledger, staged_manifest, staged_ledger, intent = (answer() for answer in read)
            return cls(
                manifest=manifest, ledger=ledger, staged_manifest=staged_manifest, staged_ledger=staged_ledger,
                intent=intent, output=output(),
            )  # fmt: skip

    def intention(self, plan: str, *, overwrite: bool, success_file: bool) -> dict[str, Any]:
        """Return the recorded intention; without one, that of this run, with the digests of what it replaces."""
        if self.intent is not None:
            return dict(json.loads(self.intent))
        replaced = {
            "manifest": _sha256(self.manifest) if overwrite else "",
            "ledger": _sha256(self.ledger) if overwrite and self.manifest is not None else "",
        }
        return {"plan": plan, "overwrite": overwrite, "success_file": success_file, **replaced}

    def replaced(self, intent: dict[str, Any]) -> dict[str, int]:
        """Return the files of the replaced output with their sizes, as long as its ledger is there."""
        is_there = self.ledger is not None and intent["ledger"] == _sha256(self.ledger)
        return files_of(pa.BufferReader(self.ledger)) if is_there else {}


def publish(place: StorePlace, plan: FrozenPlan, held: Lease, *, overwrite: bool, success_file: bool = False) -> None:
    """Make the staged parts the output. After an interruption at any point, it is safe to repeat."""
    staging, gate = place.staging(plan.plan_hash), _Gate()
    store = held.store(gate.slow)
    with map_write_errors(place.output):
        seen = _Seen.of(store, place, staging)
        if seen.staged_manifest is not None:
            replaces = overwrite or bool(plan.replaced)
            intent = seen.intention(plan.plan_hash, overwrite=replaces, success_file=success_file)
            if seen.manifest != seen.staged_manifest or intent["manifest"] == _sha256(seen.manifest):
                _show(store, gate, place, plan, seen, intent)
        elif not _is_manifest_of(seen.manifest, plan):  # somebody removed staged files: the run publishes later
            store.remove([str(staging.root / INTENT)])
            return
    try:
        with map_write_errors(place.output):
            if success_file:
                store.put(str(place.output / SUCCESS), b"")
            _remove_staging(store, staging)
    except ScorerError as error:
        held.notify(f"the output is complete, but {staging.root} could not be removed: {error.found}")


def tidy(place: StorePlace, notify: Callable[[str], None]) -> None:
    """Remove what processes that died left beside a finished run: a lease, work folders and markers."""
    with suppress(ScorerError, OSError):  # the output is complete without it
        with AtOnce(place.folder) as ask:
            held, markers = ask(partial(lock.read, place.lock)), ask(place.markers)
            left = [folder for folder in place.work_folders() if not (folder / "plan.json").is_file()]
            owner = held()
            alive = owner is not None and lock.is_alive(owner) is not False
            if alive or (owner is None and not left and not markers()):
                return
        with hold(place, notify):
            for path in left:
                remove_folder(path)
            discard_markers(place)


def _show(
    store: ObjectStore, gate: _Gate, place: StorePlace, plan: FrozenPlan, seen: _Seen, intent: dict[str, Any]
) -> None:
    """Record the intention, copy parts and proof to the output, remove what they replace, and put the manifest.

    The ledger has the parts of earlier generations, too, which are in the output already.
    """
    staging = place.staging(plan.plan_hash)
    if seen.staged_ledger is None or seen.staged_manifest is None:
        raise FileNotFoundError(errno.ENOENT, "the staged ledger is gone", str(staging.root / _LEDGER))
    sizes, old = files_of(pa.BufferReader(seen.staged_ledger)), seen.replaced(intent)
    _refuse_others(place, seen.output, sizes, old)
    if seen.intent is None:  # if it is there nevertheless, the answer to this request was lost
        store.put_new(str(staging.root / INTENT), as_json(intent))
    if seen.manifest is not None or SUCCESS in seen.output:
        store.remove([str(place.folder / _MANIFEST), str(place.output / SUCCESS)])  # from here on, OUT claims nothing
    again = () if plan.previous else old.keys() & sizes.keys()  # parts of earlier generations are not staged

    def prove() -> None:
        _keep_proofs_of_generations(store, place, plan)
        _copy_proof(store, gate, place, staging, seen.staged_ledger)

    with AtOnce(place.folder) as ask:
        proof = ask(prove)
        found = _copy_parts(store, gate, place, staging, sizes, found=seen.output, again=again)
        proof()
    gone = [str(place.output / name) for name in old.keys() - sizes.keys()]
    if gone:
        store.remove(gone)
        found = sizes_below(place.output)
    # not copied: a driver without its lease may have staged another one. It is last, because it names what a repeat
    # removes
    store.put(str(place.folder / _LEDGER), seen.staged_ledger)
    _compare(place, found, sizes)
    manifest = {**json.loads(seen.staged_manifest), "ledger": _sha256(seen.staged_ledger)}
    _put_manifest(store, place.folder / _MANIFEST, as_json(manifest))


def _copy_parts(
    store: ObjectStore, gate: _Gate, place: StorePlace, staging: StoreStaging, sizes: Mapping[str, int], *,
    found: Mapping[str, int], again: Iterable[str],
) -> Mapping[str, int]:  # fmt: skip
    """Copy the parts that the output lacks or has with another size, and those to copy `again`.

    `found` is what the output has before; returns what it has afterwards.
    """
    anew = set(again)
    failures: list[OSError] = []
    for _ in range(_ROUNDS):
        missing = [name for name, size in sizes.items() if name in anew or found.get(name) != size]
        if not missing:
            return found
        anew.clear()
        failures = _copy_all(store, gate, [(staging.parts / name, place.output / name) for name in missing])
        found = sizes_below(place.output)
    if failures:
        raise failures[-1]
    return found


def _copy_all(store: ObjectStore, gate: _Gate, pairs: list[tuple[ObjectPath, ObjectPath]]) -> list[OSError]:
    """Copy objects, many at once; return the errors of the store. A copy that took too long may yet be done by it."""
    failures: list[OSError] = []

    def one(pair: tuple[ObjectPath, ObjectPath]) -> None:
        with gate:
            try:
                store.copy(*map(str, pair))
            except (PermissionError, FileNotFoundError):
                raise
            except OSError as error:
                failures.append(error)

    with ThreadPoolExecutor(min(_MOST_COPIES, max(1, len(pairs)))) as pool:
        try:
            for _ in pool.map(one, pairs):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def _copy_proof(
    store: ObjectStore, gate: _Gate, place: StorePlace, staging: StoreStaging, ledger: bytes | None
) -> None:
    """Copy plan, report and quarantine beside the output, over those of an older run; not the ledger."""
    named = pq.read_table(pa.BufferReader(ledger), columns=["quarantine"])["quarantine"].to_pylist()
    bad = {name for name in named if name}
    with AtOnce(place.folder) as ask:
        copied = [ask(partial(_copy_files, store, staging.root, place.folder, [name])) for name in _PROOF]
        found = ask((place.folder / "quarantine").files)
        staged = staging.quarantine.files() if bad else {}  # the others are there already, from earlier generations
        pairs = [
            (staging.quarantine / name, place.folder / "quarantine" / name) for name in sorted(bad & staged.keys())
        ]
        failures = _copy_all(store, gate, pairs)
        if failures:
            raise failures[0]
        store.remove(file.path for name, file in found().items() if name not in bad)
        for one in copied:
            one()


def _copy_files(store: ObjectStore, source: ObjectPath, target: ObjectPath, names: Iterable[str]) -> None:
    """Copy files of a proof, one after the other."""
    for name in names:
        try:
            store.copy(str(source / name), str(target / name))
        except FileNotFoundError:
            if name not in {"report.html", DELETED}:  # a run may fail to write the first, and rarely has the second
                raise
            store.remove([str(target / name)])


def _keep_proofs_of_generations(store: ObjectStore, place: StorePlace, plan: FrozenPlan) -> None:
    """Copy what later generations replace into folders of their own; remove those of an output that was replaced."""
    kept = (*PROOF_OF_GENERATION[1:], PROOF_OF_GENERATION[0])
    if plan.generation > 1:
        published = load_plan(place.folder / "plan.json")
        if published is not None and not published.generation:
            _copy_files(store, place.folder, place.folder / folder_of(1), kept)
    if plan.generation:
        _copy_files(store, place.staging(plan.plan_hash).root, place.folder / folder_of(plan.generation), kept)
    if plan.generation <= 1:
        old = [path for path in place.generation_folders() if path.name != folder_of(1) or not plan.generation]
        store.remove(file.path for path in old if isinstance(path, ObjectPath) for file in path.files().values())


def _put_manifest(store: ObjectStore, path: ObjectPath, data: bytes) -> None:
    """Put the manifest if there is none: the step from which on the output is complete."""
    for _ in range(_ROUNDS):
        if store.put_new(str(path), data) is not None or _read(store, path) == data:
            return
        store.remove([str(path)])  # a driver that had lost its lease wrote it at the last moment
    raise CommitError(
        "another driver writes the manifest of this output",
        where=str(path),
        expected="one driver",
        found="another manifest",
        hint="stop the other run, then repeat the command: committed parts are kept",
    )


def _remove_staging(store: ObjectStore, staging: StoreStaging) -> None:
    """Remove what was staged. The manifest is first and the intention last, so that a repeat knows what is left."""
    last = str(staging.root / INTENT)
    with AtOnce(staging.root) as ask:
        found = ask(staging.root.files)
        store.remove([str(staging.root / _MANIFEST)])
        store.remove(file.path for file in found().values() if file.path != last)
    store.remove([last])
    remove_folder(staging.started)


def _refuse_others(place: StorePlace, found: Mapping[str, int], new: Mapping[str, int], old: Mapping[str, int]) -> None:
    """Raise if the output holds files that are neither of this plan nor, with the same size, of the replaced one."""
    there = {name: size for name, size in found.items() if name != SUCCESS}
    others = sorted(name for name, size in there.items() if name not in new and old.get(name) != size)
    if others:
        raise CommitError(
            "other files appeared in the output folder during the run; nothing was published",
            where=str(place.output),
            expected="no folder, or an empty one" if not old else "only files that its ledger names",
            found=quoted_list(others),
            hint="move them away and repeat the command; it publishes the parts, which are kept",
        )


def _compare(place: StorePlace, found: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Raise if the output is not what the ledger says."""
    wrong = sorted(name for name in {*found, *sizes} if found.get(name) != sizes.get(name))
    if wrong:
        raise CommitError(
            "the output is not what the ledger says; its manifest was not written",
            where=str(place.output),
            expected=plural(len(sizes), "file"),
            found=f"missing, changed or not in the ledger: {quoted_list(wrong)}",
            hint="move files of others away and repeat the command; it publishes the parts, which are kept",
        )


def _is_manifest_of(data: bytes | None, plan: FrozenPlan) -> bool:
    try:
        return data is not None and json.loads(data)["plan"] == plan.plan_hash
    except (ValueError, KeyError, TypeError):
        return False


def _read(store: ObjectStore, path: ObjectPath) -> bytes | None:
    try:
        return store.read(str(path))
    except FileNotFoundError:
        return None


def _sha256(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


class _Gate:
    """How many copies run at once: more as long as the store keeps up, half as many after an attempt that failed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limit, self._running, self._done = _FEWEST_COPIES, 0, 0

    def __enter__(self) -> None:
        """Wait until another copy may run."""
        with self._changed:
            self._changed.wait_for(lambda: self._running < self._limit)
            self._running += 1

    def __exit__(self, *_: object) -> None:
        """Count a copy that has ended; double the limit after so many."""
        with self._changed:
            self._running -= 1
            self._done += 1
            if self._done >= self._limit:
                self._limit, self._done = min(_MOST_COPIES, 2 * self._limit), 0
            self._changed.notify_all()

    def slow(self) -> None:
        """Halve the limit, because the store did not do what it was asked for."""
        with self._changed:
            self._limit, self._done = max(1, self._limit // 2), 0
