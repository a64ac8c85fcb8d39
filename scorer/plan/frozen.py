"""The frozen plan: what decides the scores and the output's bytes, with its two hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.binding.spec import Binding, Feed, Fetch, Transform, reads
from scorer.dataset.reader import Source
from scorer.errors import DifferentPlan
from scorer.model.spec import SessionSpec
from scorer.plan.parts import Part, PlannedFile
from scorer.storage.encoding import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator


FORMAT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPlan:
    """What decides the scores and the output's bytes; written to plan.json."""

    request: dict[str, Any]
    """What was asked, hashed: inputs, model, and each option that changes scores."""
    files: tuple[PlannedFile, ...]
    conditions: tuple[str, ...]
    binding: Binding
    session: SessionSpec
    batch_rows: int
    read_schema: str
    """Columns that are read: fed, kept and filtered on (base64 of Arrow's own form)."""
    output_schema: str
    storage: Storage
    transform: Transform | None = None
    fed_schema: str = ""
    """Columns that the transform gives and that are fed; '' without one."""
    batch_tokens: int | None = None
    """What batches of texts are cut by instead."""
    trials: tuple[str, ...] = ()
    """What tuning tried, in words."""
    together: float | None = None
    """How much more two threads score than one, where that was tried."""
    trial_sessions: int = 0
    """Sessions that tuning made besides the resident one."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Recorded, not hashed."""
    plan_hash: str = ""
    """Names parts and staging; reckoned once, when it is not given."""

    def __post_init__(self) -> None:
        """Reckon the hash over everything but versions."""
        if not self.plan_hash:
            data = self.to_dict()
            del data["versions"], data["plan_hash"]
            object.__setattr__(self, "plan_hash", _hash(data))

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns that are fed, or go through the transform first."""
        return reads(self.transform, self.binding.fed)

    @property
    def unread(self) -> set[str]:
        """Kept columns that are copied from whole row groups and not decoded."""
        return set(self.storage.copied) - set(self.reads)

    @property
    def request_hash(self) -> str:
        """Equal for equal requests on equal inputs."""
        return _hash(self.request)

    @property
    def n_parts(self) -> int:
        """Parts in all."""
        return sum(times for file in self.files for _, times in file.parts)

    @property
    def rows(self) -> int:
        """Rows that are read, before any filter."""
        return sum(rows * times for file in self.files for rows, times in file.parts)

    @property
    def most_rows(self) -> int:
        """Rows of the largest part, before any filter."""
        return max((rows for file in self.files for rows, _ in file.parts), default=0)

    def parts(self) -> Iterator[Part]:
        """Every part in input order."""
        width = max(5, len(str(max(self.n_parts - 1, 0))))
        index = 0
        for file in self.files:
            start = 0
            prefix = f"{file.folder}/" if file.folder else ""
            for rows, times in file.parts:
                for _ in range(times):
                    source = Source(id=file.id, start=start, stop=start + rows, hive=file.hive)
                    yield Part(index=index, name=f"{prefix}part-{index:0{width}d}.parquet", source=source)
                    start += rows
                    index += 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; files are short lists, because there may be 100,000."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "files"}
        plain |= {name: dataclasses.asdict(getattr(self, name)) for name in ("binding", "session", "storage")}
        del plain["session"]["gpu"]  # that is the affair of each process
        plain["transform"] = None if self.transform is None else dataclasses.asdict(self.transform)
        return {**plain, "files": [file.as_row() for file in self.files]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FrozenPlan:
        """The inverse of `to_dict`; ValueError when the data does not have the hash that it claims."""
        binding = data["binding"]
        feeds = tuple(Feed(**_frozen(feed)) for feed in binding["feeds"])
        fetches = tuple(Fetch(**_frozen(fetch)) for fetch in binding["fetches"])
        changed = {
            "binding": Binding(**binding | {"feeds": feeds, "fetches": fetches, "kept": tuple(binding["kept"])}),
            "transform": None if data["transform"] is None else Transform(**_frozen(data["transform"])),
            "storage": Storage(**_frozen(data["storage"])),
            "session": SessionSpec(**data["session"] | {"files": tuple(data["session"]["files"])}),
            "files": tuple(PlannedFile.from_row(row) for row in data["files"]),
            **{name: tuple(data[name]) for name in ("conditions", "trials")},
        }
        plan = cls(**data | changed | {"plan_hash": ""})
        if plan.plan_hash != data["plan_hash"]:
            raise ValueError(data["plan_hash"])
        return plan


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Names of the fields of two requests that are not equal."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def explain_differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between an earlier request and this one, with both values where they can be shown."""
    words = {
        "input": "the input's files, sizes or times of change",
        "model": "the model's contents",
        "files": "the contents of a file that the flags name, such as that of --transform or a tokenizer",
    }
    told = (
        words.get(name) or f"{name} = {_shown(before.get(name))}, now {_shown(now.get(name))}"
        for name in differences(before, now)
    )
    return "; ".join(told)


def refuse_different(path: str, before: dict[str, Any], now: dict[str, Any]) -> DifferentPlan:
    """An unfinished run of another request, with what differs."""
    what, hint = "an unfinished run of a different plan is here", "repeat that command, or discard it with --overwrite"
    return DifferentPlan(what, path, "this very request", f"another one: {explain_differences(before, now)}", hint)


def _shown(value: object) -> str:
    return "default" if value in (None, "") else str(value)


def _frozen(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Lists as tuples, all the way down; a mapping stays one at its top."""
    if isinstance(value, dict):
        return {name: _frozen(one) for name, one in value.items()}
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _hash(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
