"""The frozen plan: what decides the scores and the output's bytes, with its two hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from scorer.arrow import decode_schema
from scorer.binding.spec import Transform, fed, reads, unused_words
from scorer.dataset import conditions as conditions_
from scorer.dataset import keys as keys_
from scorer.dataset.joins.spec import Join
from scorer.dataset.reader import Source
from scorer.display.words import plural, quoted_list
from scorer.errors import DifferentPlan
from scorer.options.models import ModelPath
from scorer.plan.generations import folder_of, without_generation
from scorer.plan.parts import Part, PlannedFile
from scorer.plan.scorers import Scorer, as_tuples
from scorer.storage.encoding import Storage
from scorer.storage.stores import changes
from scorer.tables.snapshot import TableState
from scorer.tables.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scorer.binding.spec import Feed, Fetch
    from scorer.plan.generations import Difference
    from scorer.storage.files import FileId


FORMAT = 3
_FILE = "in a file"
_MEASURED = ("trials", "together")
"""Fields that a probe measured, for the report; two runs of one request may differ in them."""
_OF_SCORER = {field.name for field in dataclasses.fields(Scorer)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPlan:
    """What decides the scores and the output's bytes; written to plan.json."""

    request: dict[str, Any]
    """What was requested: the input, the model, and each option that changes scores."""
    files: tuple[PlannedFile, ...]
    conditions: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Paths of the input files that --where rules out by their keys; they were not opened."""
    scorers: tuple[Scorer, ...]
    """The models; each scores every row."""
    kept: tuple[str, ...] = ()
    """Input columns that the output has, too."""
    row_id: bool = False
    """Whether the output has the columns _file and _row."""
    read_schema: str
    """The columns that are read, because they are fed, kept or filtered on (Arrow's own form, in base64)."""
    output_schema: str
    storage: Storage
    joins: tuple[Join, ...] = ()
    """The tables whose columns are added to the rows that are read, before the transform."""
    transform: Transform | None = None
    fed_schema: str = ""
    """The columns that the transform returns and that are fed; '' without a transform."""
    table: TableState | None = None
    """The table that is read, at its version; None if the input are plain files."""
    own_names: bool = False
    """Whether the files' names have the plan's hash: on a store, an output replaces another one file by file; and a
    table has the files of other runs."""
    target: Target | None = None
    """The table that the output is; None for plain Parquet files."""
    generation: int = 0
    """Which generation of its output this is, from 1; 0 if the output has none."""
    first_part: int = 0
    """The number of the first part: those of earlier generations come before it."""
    previous: str = ""
    """The plan hash of the generation before; '' if there is none."""
    replaced: tuple[str, ...] = ()
    """Input files whose rows this generation removes from those before it; some of them are among `files`, too."""
    gone: tuple[str, ...] = ()
    """Scored files that the input table does not have any more, and whose rows stay in the output."""
    trial_sessions: int = 0
    """Sessions that tuning created besides the resident one."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Recorded, not hashed."""
    plan_hash: str = ""
    """Identifies the parts and their staging folder; computed if it is not given."""

    def __post_init__(self) -> None:
        """Compute the plan hash, over all fields that decide what is written."""
        if not self.plan_hash:
            object.__setattr__(self, "plan_hash", self._hash_without("versions", *_MEASURED))

    def _hash_without(self, *names: str) -> str:
        def without(data: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in data.items() if name not in {"plan_hash", *names}}

        data = without(self.to_dict())
        if "scorers" in data:
            data["scorers"] = [without(one) for one in data["scorers"]]
        return hash_of(data)

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """The input tensors of all models."""
        return tuple(feed for scorer in self.scorers for feed in scorer.binding.feeds)

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        """The output tensors of all models."""
        return tuple(fetch for scorer in self.scorers for fetch in scorer.binding.fetches)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The columns that the models add."""
        return tuple(name for scorer in self.scorers for name in scorer.binding.outputs)

    @property
    def fed(self) -> tuple[str, ...]:
        """The columns that feed at least one model, without duplicates."""
        return fed(scorer.binding for scorer in self.scorers)

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns that are fed or go into the transform."""
        return reads(self.transform, [scorer.binding for scorer in self.scorers])

    @property
    def unused(self) -> str:
        """How many fed columns are not read, because no model ever looks at them, in words; '' if none is."""
        skips = any(feed.unused for feed in self.feeds)
        bindings = [scorer.binding for scorer in self.scorers]
        return unused_words(bindings, decode_schema(self.read_schema).names) if skips else ""

    @property
    def together(self) -> float | None:
        """How many times as fast two threads score as one, of the model that gains least; None if unknown."""
        return min((scorer.together for scorer in self.scorers if scorer.together is not None), default=None)

    @property
    def batch_rows(self) -> int:
        """The rows of a batch, of the model with the largest ones."""
        return max(scorer.batch_rows for scorer in self.scorers)

    @property
    def device(self) -> str:
        """The device on which the models run: the request names one for all."""
        return self.scorers[0].session.device

    @property
    def model_digest(self) -> str:
        """The digest of the model; with several, the hash of their names and digests."""
        if not self.scorers[0].name:
            return self.scorers[0].session.digest
        return hash_of([[scorer.name, scorer.session.digest] for scorer in self.scorers])

    @property
    def unread(self) -> set[str]:
        """The kept columns that are copied with whole row groups and not decoded."""
        return set(self.storage.copied) - set(self.reads) - {name for join in self.joins for name in join.left}

    @property
    def request_hash(self) -> str:
        """A hash of the request: equal for equal options and equal inputs."""
        return hash_of(self.request)

    @property
    def tracked_names(self) -> dict[str, str]:
        """The names that models have in a tracking store, with their versions, by the models' own names."""
        return _tracked_names(self.request)

    @property
    def model_name(self) -> str:
        """The model's name in a tracking store, with the version; '' for other models. With several, NAME= and each."""
        return _tracked_words(self.request)

    @property
    def n_parts(self) -> int:
        """The number of parts."""
        return sum(times for file in self.files for _, times in file.parts) - sum(file.joined for file in self.files)

    @property
    def rows(self) -> int:
        """The number of rows that are read, before any filter and without deleted ones."""
        return sum(rows * times for file in self.files for rows, times in file.parts) - self.deleted

    @property
    def deleted(self) -> int:
        """The number of rows in the files that their table has deleted."""
        return sum(file.deleted[1] for file in self.files if file.deleted)

    @property
    def most_rows(self) -> int:
        """The number of rows of the largest part, before any filter."""
        most = held = 0
        for file in self.files:
            rows = max((rows for rows, _ in file.parts), default=0)
            held = held + rows if file.joined else rows
            most = max(most, held)
        return most

    @property
    def left_out_note(self) -> str:
        """How many files --where ruled out by their keys, and which keys; '' if none."""
        conditions = [conditions_.parse(text) for text in self.conditions]
        keys = dict(self.files[0].hive) if self.files else {}
        return keys_.left_out_note(len(self.left_out), conditions, keys)

    def folder_of(self, file: PlannedFile) -> str:
        """Return the folder of a file's parts inside the output; '' for the output itself.

        On a store, generations share the folders, because their files have names of their own.
        """
        if not self.generation or self.own_names:
            return file.folder
        return "/".join(filter(None, (folder_of(self.generation), without_generation(file.folder))))

    @property
    def suffix(self) -> str:
        """What the name of every file ends with."""
        return f"-{self.plan_hash[:8]}.parquet" if self.own_names else ".parquet"

    def parts(self) -> Iterator[Part]:
        """Yield every part, in the order of the input."""
        width = max(5, len(str(max(self.first_part + self.n_parts - 1, 0))))
        index = self.first_part
        suffix = self.suffix
        held: list[Source] = []
        for file, following in zip_longest(self.files, self.files[1:]):
            start = 0
            folder = self.folder_of(file)
            prefix = f"{folder}/" if folder else ""
            for rows, times in file.parts:
                for _ in range(times):
                    held.append(
                        Source(id=file.id, start=start, stop=start + rows, hive=file.hive, deleted=file.deleted)
                    )
                    start += rows
                    if following is None or not following.joined:
                        yield Part(index=index, name=f"{prefix}part-{index:0{width}d}{suffix}", sources=tuple(held))
                        held = []
                        index += 1

    def with_sessions(self, **changes: Any) -> FrozenPlan:  # noqa: ANN401 - as fields of SessionSpec
        """Return the plan with these fields of every model's session; its hash stays."""
        scorers = (replace(one, session=replace(one.session, **changes)) for one in self.scorers)
        return replace(self, scorers=tuple(scorers))

    def with_inodes(self, files: Iterable[FileId]) -> FrozenPlan:
        """Return the plan with the inodes of these files, which plan.json does not have."""
        seen = {file.path: file for file in files}
        own = (replace(file, id=seen.get(file.path, file.id)) for file in self.files)
        return replace(self, files=tuple(own))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON holds it. A file is a short list, because there may be 100,000 files."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        plain |= {"storage": dataclasses.asdict(self.storage), "scorers": [one.to_dict() for one in self.scorers]}
        if not self.scorers[0].name:  # the only model: its fields are those of the plan, as in older plans
            only = plain.pop("scorers")[0]
            only["binding"] |= {name: plain.pop(name) for name in ("kept", "row_id")}
            plain |= {name: value for name, value in only.items() if name != "name"}
        plain["joins"] = [dataclasses.asdict(join) for join in self.joins]
        if not self.joins:
            del plain["joins"]
        if not self.left_out:  # so that other plans keep their hash
            del plain["left_out"]
        for name in ("own_names", "generation", "first_part", "previous", "replaced", "gone"):
            if not plain[name]:
                del plain[name]
        plain["table"] = None if self.table is None else dataclasses.asdict(self.table)
        if self.table is None:
            del plain["table"]
        if self.target is None:
            del plain["target"]
        else:
            plain["target"] = self.target.to_dict()
        plain["transform"] = None if self.transform is None else dataclasses.asdict(self.transform)
        return {**plain, "files": [file.as_row() for file in self.files]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FrozenPlan:
        """Create a plan from what `to_dict` returned; raise ValueError if the data does not have its recorded hash."""
        only = [] if "scorers" in data else [data]
        kept = data if not only else data["binding"]
        changed = {
            "scorers": tuple(Scorer.from_dict(one) for one in only or data["scorers"]),
            "kept": tuple(kept["kept"]),
            "row_id": kept["row_id"],
            "transform": None if data["transform"] is None else Transform(**as_tuples(data["transform"])),
            "storage": Storage(**as_tuples(data["storage"])),
            "files": tuple(PlannedFile.from_row(row) for row in data["files"]),
            "conditions": tuple(data["conditions"]),
            "joins": tuple(Join(**as_tuples(join)) for join in data.get("joins", ())),
            **{name: tuple(data.get(name, ())) for name in ("left_out", "replaced", "gone")},
            "table": TableState(**data["table"]) if "table" in data else None,
            "target": Target.from_dict(data["target"]) if "target" in data else None,
        }
        plan = cls(**{name: value for name, value in (data | changed).items() if name not in _OF_SCORER})
        if plan.plan_hash not in {plan._hash_without("versions", *_MEASURED), plan._hash_without("versions")}:
            raise ValueError(plan.plan_hash)  # the second is how plans were hashed at first
        return plan


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of the fields that differ between two requests."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def explain_differences(plan: FrozenPlan, now: dict[str, Any], files: Difference | None = None) -> str:
    """Describe how a request differs from that of an earlier plan, with both values where they are short.

    `files` says how the input differs, if that is known.
    """
    before = plan.request
    other = before.get("input") != now.get("input")
    descriptions = {
        "input": (str(files or "") or _changed_files(plan)) if other else "",
        "model": _changed_models(before.get("model"), now.get("model")),
        "model_name": f"the model {_tracked_words(before) or _FILE}, now {_tracked_words(now) or _FILE}",
        "table": _changed_table(before.get("table"), now.get("table")),
        "files": _changed_named(before.get("files"), now.get("files")),
    }
    names = differences(before, now)
    if "model_name" in names and not isinstance(now.get("model"), list):
        names = [name for name in names if name != "model"]  # each version has its contents
    texts = (
        descriptions.get(name) or f"{name} = {_shown(before.get(name))}, now {_shown(now.get(name))}" for name in names
    )
    return "; ".join(texts)


def _tracked_names(request: dict[str, Any]) -> dict[str, str]:
    found = request.get("model_name", {})
    return dict(found) if isinstance(found, dict) else {"": str(found)}


def _tracked_words(request: dict[str, Any]) -> str:
    return ", ".join(str(ModelPath(*one)) for one in _tracked_names(request).items())


def _changed_models(before: str | list[list[str]] | None, now: str | list[list[str]] | None) -> str:
    """Describe how the models of two requests differ: digests, or lists of names and digests."""
    if not isinstance(before, list) and not isinstance(now, list):
        return "the model's contents"
    old, new = (dict(one) if isinstance(one, list) else {} for one in (before, now))
    if [*old] != [*new]:
        return f"{_model_names(old)}, now {_model_names(new)}"
    return f"the contents of {_model_names([name for name, digest in new.items() if old[name] != digest])}"


def _model_names(names: Iterable[str]) -> str:
    shown = list(names)
    return f"the model{'s' if len(shown) > 1 else ''} {quoted_list(shown)}" if shown else "one model without a name"


def _changed_named(before: dict[str, str] | None, now: dict[str, str] | None) -> str:
    """Describe which files and joined tables, which flags name, differ between two requests."""
    both = {**(before or {}), **(now or {})}
    names = [name for name in both if (before or {}).get(name) != (now or {}).get(name)]
    return f"the contents of {quoted_list(names, 3)}" if names else ""


def _changed_table(before: list[str] | None, now: list[str] | None) -> str:
    """Describe how the table of two requests differs; '' if one has none."""
    if not before or not now:
        return ""
    return f"version {before[2]} of the table, now {now[2]}" if before[:2] == now[:2] else "another table"


def _changed_files(plan: FrozenPlan) -> str:
    """Describe which files of a plan's input are not as they were."""
    changed, gone = changes([file.id for file in plan.files])
    if not changed:
        return "the input's files or their order"
    how = "changed" if not gone else "gone" if gone == len(changed) else f"changed, {gone:,} of them gone"
    return f"{plural(len(changed), 'input file')} {how}: {quoted_list(changed, 3)}"


def refuse_different(path: str, plan: FrozenPlan, now: dict[str, Any]) -> DifferentPlan:
    """Return the error for an unfinished run of another request, with the differences."""
    discard = "with --overwrite" if "output_format" not in now else "with `scorer clean OUT`"
    return DifferentPlan(
        "an unfinished run of another request is here",
        where=path,
        expected="this request",
        found=f"another request: {explain_differences(plan, now)}",
        hint=f"repeat that command to finish it, or discard it {discard}",
    )


def _shown(value: object) -> str:
    return "default" if value in (None, "") else str(value)


def hash_of(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return the hash of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
