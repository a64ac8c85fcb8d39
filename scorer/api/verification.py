"""verify: check a published output against its proof, and that rows in = scored + quarantined + filtered.

The ledger is trusted if the manifest has its digest; everything else is checked. With `deep`, every value is read.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from scorer.arrow import decode_schema, digest
from scorer.display import html
from scorer.display.blocks import Facts
from scorer.display.words import cut, plural, quoted_list
from scorer.errors import CommitError
from scorer.events import Counts, Proof
from scorer.host.crash import note_verifying
from scorer.host.limits import limits_as_errors
from scorer.output.existing import Files
from scorer.output.ledger import DELETED, LEDGER, TIMES, UNMATCHED, counts_of
from scorer.output.place import Place, load_plan, nobody_wrote, refuse_another_format
from scorer.output.publish_table import Check
from scorer.output.publish_table import check as check_table
from scorer.output.writer import open_part, read_footer
from scorer.plan.generations import KEY, generation_in
from scorer.plan.history import live_parts
from scorer.storage.files import file_digest
from scorer.storage.refusals import explaining
from scorer.storage.stores import digest_of, exists, for_arrow, raise_if_unknown
from scorer.tables import deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from scorer.api.rescoring import Rescored
    from scorer.options.store_options import StoreOption
    from scorer.output.writer import Source
    from scorer.plan.frozen import FrozenPlan


_PLAN, _LEDGER, _MANIFEST = "plan.json", "ledger.parquet", "manifest.json"
_GONE = "the part is gone"
_WITHOUT_PART = ("--where left it without rows", "--where left it without rows or a later generation replaced it")
_UNBALANCED = "rows are not the sum of scored, quarantined and filtered"
_BROKEN = (OSError, ValueError, KeyError, TypeError, pa.ArrowException)
"""The exceptions that a damaged footer causes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The result of `verify`."""

    output: str
    parts: int
    counts: Counts
    deep: bool
    faults: tuple[str, ...]
    unchecked: tuple[str, ...] = ()
    """What could not be checked, because the proof is not beside the output."""
    rescored: str = ""
    """The result of scoring some rows again, in one line."""
    left_out: str = ""
    """How many input files the run did not open, in words; '' if it opened all."""

    @property
    def whole(self) -> bool:
        """Whether no fault was found and nothing was left unchecked."""
        return not self.faults and not self.unchecked

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as data for JSON."""
        return {
            "output": self.output, "whole": self.whole, "parts": self.parts, "deep": self.deep,
            **self.counts.to_dict(), "faults": list(self.faults), "unchecked": list(self.unchecked),
            "left_out": self.left_out, "rescored": self.rescored,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        return html.card("Verdict", [Facts([(name, _joined(value)) for name, value in self.to_dict().items()])])


def _joined(value: object) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def verify(
    output: str | Path, *, deep: bool = False, rescore: int = 0, work_dir: str | Path | None = None,
    store_option: StoreOption = (),
) -> Verdict:  # fmt: skip
    """Check a finished output against its proof: what ``scorer verify`` does.

    Parameters
    ----------
    output
        The folder of the output, as text or as a ``Path``.
    deep
        Read every page and value instead of the footers only.
    rescore
        Score this many random rows again and compare the scores. Needs the input and the model.
    work_dir
        Folder of the proof, if the run used ``work_dir``.
    store_option
        How object stores are reached, as for `run`.

    Returns
    -------
    Verdict
        ``whole`` is true if nothing is wrong, and ``faults`` lists what is. ``counts`` are the rows.

    Raises
    ------
    CommitError
        If there is no finished output with a proof.

    Examples
    --------
    >>> import tempfile, scorer
    >>> output = tempfile.mkdtemp() + "/scores"
    >>> report = scorer.run("examples/flights/flights.parquet", "examples/flights/late.onnx", output, limit=1000)
    >>> verdict = verify(output, rescore=10)
    >>> verdict.whole, verdict.counts.scored, verdict.faults
    (True, 1000, ())

    """
    return check(Place.at(output, work_dir, store_option), deep=deep, rescore=rescore)


@limits_as_errors()
def check(place: Place, *, deep: bool = False, rescore: int = 0) -> Verdict:
    """Check the published output against its plan, manifest and ledger; score `rescore` rows again."""
    with explaining(CommitError):
        return _check(place, deep=deep, rescore=rescore)


def _check(place: Place, *, deep: bool, rescore: int) -> Verdict:
    note_verifying(str(place.output))
    plan = load_plan(place.folder / _PLAN)
    missing = [name for name in (_LEDGER, _MANIFEST) if not exists(place.folder / name)]
    if plan is None or missing:
        return _verify_without_proof(place, plan, missing, deep=deep, rescore=rescore)
    plans = place.generations(plan)
    manifest, ledger, ledger_digest = _read_proof(place)
    faults = _manifest_faults(manifest, plans, ledger, ledger_digest)
    faults += [fault for one in plans for fault in _deleted_faults(place, one)]
    files = Files(place.output)
    check_part = _PartCheck(place, plans, files, any(row["quarantine"] for row in ledger), deep=deep)
    table = Check() if plan.target is None else check_table(place, plan, manifest)
    removed = 0
    for row, part_faults in zip(ledger, files.each(check_part, ledger, whole=deep), strict=True):
        if _GONE in part_faults and table.excuses(row["name"]):
            removed += 1
        else:
            faults += [f"{row['name']}: {fault}" for fault in part_faults]
    faults += _strays(files, {row["name"] for row in ledger if row["size"]}) if plan.target is None else table.faults
    gone = f"{plural(removed, 'part')}, which the newest version of the table has no more, and whose files were removed"
    if faults and place.pending() is not None:
        raise _half_published(place)
    again = _rescoring(files, place, plans, ledger, rescore) if rescore and not faults else None
    total = sum(map(counts_of, ledger), Counts())
    return Verdict(
        output=str(place.output),
        parts=len(ledger),
        counts=total,
        deep=deep,
        faults=(*faults, *(again.faults if again else ())),
        unchecked=(*table.unchecked, gone) if removed else table.unchecked,
        rescored=str(again) if again else "",
        left_out=plan.left_out_note,
    )


def _half_published(place: Place) -> CommitError:
    return CommitError(
        "the output is published only in part",
        where=str(place.output),
        expected="a published output",
        found="a run that ended while it published",
        hint="repeat its command, which finishes publishing, then verify",
    )


def _verify_without_proof(
    place: Place, plan: FrozenPlan | None, missing: list[str], *, deep: bool, rescore: int
) -> Verdict:
    """Check the parts alone if the output was moved away from its proof; otherwise raise why there is no proof."""
    if place.unfinished():
        raise CommitError(
            "the run is not finished",
            where=str(place.folder),
            expected="a published output",
            found="an unfinished run",
            hint="repeat its command, then verify; `scorer status OUT` says how far it is",
        )
    if not any(exists(place.folder / name) for name in (_PLAN, _LEDGER, _MANIFEST)):
        verdict = None if rescore else _verify_parts(place, deep=deep)
        if verdict is not None:
            return verdict
        if not exists(place.output):
            raise nobody_wrote(place)
    if plan is None:
        refuse_another_format(place)
        if exists(place.folder / _PLAN):
            raise CommitError(
                "the proof beside the output cannot be read",
                where=str(place.folder / _PLAN),
                expected="a plan",
                found="a file that is not a plan, or is damaged",
                hint="restore it, or score again with --overwrite",
            )
    raise CommitError(
        "there is no proof beside the output",
        where=str(place.folder),
        expected=f"{_PLAN}, {_LEDGER}, {_MANIFEST}",
        found=f"without {quoted_list(missing or [_PLAN])}",
        hint="name the output of a finished run; give --work-dir if it had one",
    )


def _read_proof(place: Place) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Read the manifest, and the rows and digest of the ledger; raise CommitError if either is damaged."""
    try:
        manifest = json.loads((place.folder / _MANIFEST).read_text())
        source = for_arrow(place.folder / _LEDGER)
        ledger_digest = digest_of(source)
        more = [field for field in (DELETED, UNMATCHED) if field.name in pq.read_schema(source).names]
        table = pq.read_table(source, schema=pa.schema([*LEDGER, *more]))
        ledger = table.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise_if_unknown(place.folder, error)
        raise CommitError(
            "the proof beside the output cannot be read",
            where=str(place.folder),
            expected="a manifest and a ledger",
            found=cut(str(error).replace("<Buffer>", str(place.folder / _LEDGER))),  # as Arrow says of a local file
            hint="restore it, or score again to another --output",
        ) from error
    holes = [name for name in table.column_names if table[name].null_count and name not in TIMES]
    if holes or not isinstance(manifest, dict):
        raise CommitError(
            "the proof beside the output is damaged",
            where=str(place.folder),
            expected="a manifest and a ledger without nulls",
            found=f"nulls in {quoted_list(holes)} of the ledger" if holes else "a manifest that is no JSON object",
            hint="restore it, or score again to another --output",
        )
    return manifest, ledger, ledger_digest


def _rescoring(
    files: Files, place: Place, plans: list[FrozenPlan], ledger: list[dict[str, Any]], rows: int
) -> Rescored:
    from scorer.api.rescoring import rescore  # noqa: PLC0415 - start-up: only this needs the runtime

    return rescore(files, place, plans, ledger, rows)


def _verify_parts(place: Place, *, deep: bool) -> Verdict | None:
    """Check the parts by their own footers and against each other; return None if scorer wrote none of them."""
    proofs: dict[str, Proof] = {}
    faults: list[str] = []
    total = Counts()
    files = Files(place.output)
    names = sorted(files.names(_unlisted(faults)))
    for name, (proof, part_faults) in zip(
        names, files.each(lambda name: _part_proof(files, name, deep=deep), names, whole=deep), strict=True
    ):
        faults += [f"{name}: {fault}" for fault in part_faults]
        if proof is not None:
            proofs[name] = proof
            total += proof.counts
    if not proofs:
        return None
    numbering = _numbering_faults(proofs)
    later = len({proof.plan for proof in proofs.values()}) > 1 or min(proof.part for proof in proofs.values()) > 0
    grown = any(generation_in(name) > 1 for name in proofs) or (later and _has_own_names(proofs))
    excused = grown or any(proof.where for proof in proofs.values())
    doubtful = [fault for fault in numbering if fault.endswith("is missing") and excused]
    faults += [fault for fault in numbering if fault not in doubtful]
    unchecked = (
        *(f"whether {fault}, or {_WITHOUT_PART[grown]}" for fault in doubtful),
        f"whether these {len(proofs)} parts are all: the plan and the ledger are not in {place.folder}",
        "the size of each file, and its row of the ledger",
        *(["the quarantined rows"] if total.quarantined else []),
    )
    return Verdict(
        output=str(place.output), parts=len(proofs), counts=total, deep=deep, faults=tuple(faults), unchecked=unchecked
    )


def _has_own_names(proofs: dict[str, Proof]) -> bool:
    return all(name.endswith(f"-{proof.plan[:8]}.parquet") for name, proof in proofs.items())


def _numbering_faults(proofs: dict[str, Proof]) -> list[str]:
    """List the parts of another run, and the part numbers that are missing or repeated.

    The parts of a generation are those of one run, with numbers after those of the one before. On a store, the names
    of parts have the hash of their run.
    """
    if _has_own_names(proofs) and len({proof.model for proof in proofs.values()}) == 1:
        return _faults_of_numbers(proofs.values())
    runs: dict[int, Counter[tuple[str, str]]] = defaultdict(Counter)
    for name, proof in proofs.items():
        runs[generation_in(name)][proof.plan, proof.model] += 1
    usual = {generation: counted.most_common(1)[0][0] for generation, counted in runs.items()}
    others = [name for name, proof in proofs.items() if (proof.plan, proof.model) != usual[generation_in(name)]]
    rest = (proof for name, proof in proofs.items() if name not in others)
    return [*(f"{name}: of another run" for name in others), *_faults_of_numbers(rest)]


def _faults_of_numbers(proofs: Iterable[Proof]) -> list[str]:
    numbers = Counter(proof.part for proof in proofs)
    faults = [f"part number {n} is missing" for n in range(max(numbers)) if n not in numbers]
    return faults + [f"part number {n} exists {many} times" for n, many in sorted(numbers.items()) if many > 1]


def _part_proof(files: Files, name: str, *, deep: bool) -> tuple[Proof | None, list[str]]:
    """Return the proof in a file's footer, and what is wrong with the file."""
    note_verifying(str(files.top / name))
    try:
        source = files.source(name, whole=deep)
        proof, rows, _ = read_footer(source)
    except _BROKEN as error:
        raise_if_unknown(files.top, error)
        return None, [f"cannot be read: {cut(str(error), 120)}"]
    if proof is None:
        return None, ["not written by scorer"]
    faults = [] if rows == proof.counts.scored else [f"rows: {rows}, expected {proof.counts.scored}"]
    faults += [] if proof.counts.balanced else [_UNBALANCED]
    return proof, faults + (_value_faults(source, proof) if deep else [])


def _manifest_faults(
    manifest: dict[str, Any], plans: list[FrozenPlan], ledger: list[dict[str, Any]], ledger_digest: str
) -> list[str]:
    """Check the manifest against the ledger, and the ledger against the plans of all generations."""
    plan = plans[-1]
    sums = {name: sum(row.get(name, 0) for row in ledger) for name in Counts().to_dict()}
    manifest = {DELETED.name: 0, UNMATCHED.name: 0, **manifest}
    expected = {
        "ledger": ledger_digest, "plan": plan.plan_hash, "request": plan.request_hash,
        "model": plan.model_digest, "parts": len(ledger), "size": sum(row["size"] for row in ledger), **sums,
    }  # fmt: skip
    faults = [
        f"manifest: {name} is {manifest.get(name)!r}, but the files say {value!r}"
        for name, value in expected.items()
        if manifest.get(name) != value
    ]
    if manifest.get("files_left_out", 0) != len(plan.left_out):
        faults.append(f"manifest: files_left_out is not {len(plan.left_out)}, as in the plan")
    listed_plans = [one.get("plan") for one in manifest.get(KEY + "s", [])]
    if plan.generation and listed_plans != [one.plan_hash for one in plans]:
        faults.append(f"manifest: it does not list the {plural(len(plans), 'generation')} whose plans are there")
    planned = {part.name: part.rows for part in live_parts(plans)}
    listed = {row["name"]: row["rows"] + row.get(DELETED.name, 0) for row in ledger}
    faults += [f"ledger: {name} is not listed" for name in sorted(planned.keys() - listed.keys())]
    faults += [f"ledger: {name} was not planned" for name in sorted(listed.keys() - planned.keys())]
    faults += [
        f"ledger: {name} has {listed[name]} rows, and {planned[name]} were planned"
        for name in sorted(planned.keys() & listed.keys())
        if listed[name] != planned[name]
    ]
    return faults


def _deleted_faults(place: Place, plan: FrozenPlan) -> list[str]:
    """Check the numbers of the deleted rows, which --rescore needs."""
    wanted = "" if plan.table is None else plan.table.deleted
    if not wanted:
        return []
    path = place.proof_of(plan) / deleted.NAME
    if not exists(path):
        return [f"{deleted.NAME}: the numbers of the deleted rows are gone"]
    return [] if file_digest(path) == wanted else [f"{deleted.NAME}: not as it was planned"]


class _PartCheck:
    """Checks one part's file, and the file of its quarantined rows, against its row of the ledger."""

    def __init__(self, place: Place, plans: list[FrozenPlan], files: Files, quarantine: bool, *, deep: bool) -> None:  # noqa: FBT001 - whether there is any
        self._plan, self._files, self._deep = plans[-1], files, deep  # what all generations share
        self._firsts, self._hashes = [plan.first_part for plan in plans], [plan.plan_hash for plan in plans]
        self._schema = decode_schema(plans[-1].output_schema)
        self._quarantine = Files(place.folder / "quarantine") if quarantine else None

    def __call__(self, row: dict[str, Any]) -> list[str]:
        """Return what is wrong with the part."""
        counts = counts_of(row)
        if not row["size"] and self._plan.conditions:
            faults = [] if counts.balanced else [_UNBALANCED]
            faults += [f"it has {counts.scored} scored rows, but no file"] if counts.scored else []
            return faults + self._quarantine_faults(row, counts)
        size = self._files.size(row["name"])
        if size < 0:
            return [_GONE]
        note_verifying(str(self._files.top / row["name"]))
        try:
            source = self._files.source(row["name"], whole=self._deep)
            proof, found_rows, found_schema = read_footer(source)
        except _BROKEN as error:
            raise_if_unknown(self._files.top, error)
            return [f"the part cannot be read: {cut(str(error), 120)}"]
        if proof is None:
            return ["scorer did not write its footer"]
        checks = [
            ("size", size, row["size"]),
            ("rows", found_rows, counts.scored),
            ("part number", proof.part, row["part"]),
            ("plan", proof.plan, self._hashes[bisect_right(self._firsts, row["part"]) - 1]),
            ("model", proof.model, self._plan.model_digest),
            ("counts", proof.counts, counts),
            ("digests", proof.digests, dict(row["digests"])),
            ("quarantine", proof.quarantine, row["quarantine"]),
        ]
        faults = [] if counts.balanced else [_UNBALANCED]
        faults += [f"{name}: {found}, expected {expected}" for name, found, expected in checks if found != expected]
        faults += (
            [] if found_schema.equals(self._schema, check_metadata=False) else ["the schema is not the planned one"]
        )
        faults += self._quarantine_faults(row, counts)
        return faults + (_value_faults(source, proof) if self._deep else [])

    def _quarantine_faults(self, row: dict[str, Any], counts: Counts) -> list[str]:
        name = row["quarantine"]
        if not name or self._quarantine is None:
            return []
        try:
            source = self._quarantine.source(name, whole=self._deep)
            with open_part(source) as parquet:
                found = parquet.metadata.num_rows
                if self._deep:
                    parquet.read()  # not read_table: it refuses two columns of one name
        except (OSError, pa.ArrowException) as error:
            raise_if_unknown(self._quarantine.top, error)
            return [f"its quarantine file {name} is missing or cannot be read"]
        expected = counts.quarantined
        return [] if found == expected else [f"its quarantine file has {found} rows, expected {expected}"]


def _value_faults(source: Source, proof: Proof) -> list[str]:
    """Read every page with its checksum, and compare every column of scores with its digest."""
    try:
        table = pq.read_table(source, page_checksum_verification=True, partitioning=None)
        found = {name: digest(table[name]) for name in proof.digests}
    except (OSError, KeyError, pa.ArrowException) as error:
        return [f"its values cannot be read: {cut(str(error), 120)}"]
    return [f"column {name!r} holds other values" for name in found if found[name] != proof.digests[name]]


def _strays(files: Files, names: set[str]) -> list[str]:
    """List the files in the output that are not in the ledger, and the folders that may hold some."""
    faults: list[str] = []
    found = set(files.names(_unlisted(faults))) if files.exists() else set()
    return faults + [f"{name}: not in the ledger" for name in sorted(found - names)]


def _unlisted(faults: list[str]) -> Callable[[str, OSError], None]:
    """Return a function for `Files.names` that adds a fault for each folder that cannot be listed."""
    return lambda name, error: faults.append(f"{name}: the folder cannot be listed: {error.strerror or error}")
