"""Lineage: which plan, model and input a file of the output is from, as two entries in the file's Parquet metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scorer.display.blocks import Facts, Table
from scorer.display.words import plural
from scorer.options.models import ModelPath

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scorer.plan.frozen import FrozenPlan
    from scorer.plan.parts import Part

MODEL_KEY, LINEAGE_KEY = b"_scorer_model", b"_scorer_lineage"
_MOST_SOURCES = 16  # a file that is joined from a thousand small ones would get a footer larger than its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows of an input file."""

    path: str
    size: int
    version: int | str
    """The time of change in nanoseconds, or the ETag."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a file of an output is from."""

    scorer: str
    """The version of scorer that planned the run."""
    plan: str
    """The hash of the plan."""
    model: Mapping[str, Any]
    """Path and digest of the model, and its name in a tracking store; with several models, these of each by its name.
    """
    input: str
    """The digest of the whole input: paths, sizes, times of change or ETags, and row groups."""
    files: int
    """The number of its files."""
    table: Mapping[str, str]
    """Kind, location and version of the table that was read; {} for plain files."""
    part: int = 0
    sources: tuple[Source, ...] = ()
    """The first files that the part has rows of."""
    n_sources: int = 0

    @classmethod
    def of(cls, frozen: FrozenPlan) -> Lineage:
        """Return what all files of a run have in common."""
        tracked, table = frozen.tracked_names, frozen.table
        models = {
            one.name: {"path": one.session.path, "digest": one.session.digest}
            | ({"name": tracked[one.name]} if tracked.get(one.name) else {})
            for one in frozen.scorers
        }
        return cls(
            scorer=frozen.versions.get("scorer", ""),
            plan=frozen.plan_hash,
            model=models.get("", models),
            input=str(frozen.request.get("input", "")),
            files=len(frozen.files),
            table={} if table is None else {"kind": table.kind, "location": table.location, "version": table.version},
        )

    def of_part(self, part: Part) -> Lineage:
        """Return the lineage of a part's file."""
        sources = (
            Source(path=one.id.path, size=one.id.size, version=one.id.version, start=one.start, stop=one.stop)
            for one in part.sources[:_MOST_SOURCES]
        )
        return replace(self, part=part.index, sources=tuple(sources), n_sources=len(part.sources))

    @property
    def models(self) -> dict[str, Mapping[str, str]]:
        """What `model` says of each model, by its name; '' is that of an only model."""
        only = isinstance(self.model.get("digest"), str)  # the name of a model may be "digest"
        return {"": self.model} if only else dict(self.model)

    @property
    def entries(self) -> dict[bytes, bytes]:
        """The entries of the file's metadata: each model as a line, and all as JSON."""
        lines = [
            str(ModelPath(name, f"{one.get('name') or one['path']} sha256:{one['digest']}"))
            for name, one in self.models.items()
        ]
        return {
            MODEL_KEY: "\n".join(lines).encode(),
            LINEAGE_KEY: json.dumps(asdict(self), separators=(",", ":")).encode(),
        }

    @classmethod
    def from_entries(cls, metadata: Mapping[bytes, bytes]) -> Lineage | None:
        """Return the lineage that a file's metadata has; None if it has none, or not all of it."""
        try:
            data = json.loads(metadata[LINEAGE_KEY])
            return cls(**data | {"sources": tuple(Source(**one) for one in data["sources"])})
        except (KeyError, ValueError, TypeError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return the lineage as data for JSON."""
        return asdict(self)

    def blocks(self) -> list[Facts | Table]:
        """Return the lineage as blocks for text."""
        table = f"version {self.table['version']} of {self.table['location']}" if self.table else ""
        more = self.n_sources - len(self.sources)
        facts = [
            ("plan", f"{self.plan}, part {self.part:,}"),
            *(fact for name, one in self.models.items() for fact in _facts(name, one)),
            ("input", f"{plural(self.files, 'file')}, digest {self.input}"),
            ("table", table),
            ("scorer", self.scorer),
            ("more", f"rows of {plural(more, 'other file')}" if more else ""),
        ]
        rows = [(one.path, f"{one.start:,}", f"{one.stop - 1:,}", f"{one.size:,}") for one in self.sources]
        return [
            Facts([(key, value) for key, value in facts if value]),
            Table(("rows of", "first", "last", "bytes"), ("", "n", "n", "n"), rows),
        ]


def entry_bytes(frozen: FrozenPlan) -> int:
    """Return the bytes that the entries add to a file of a run, by those of its first part.

    A file has them twice: as they are, and in Arrow's schema in base64.
    """
    part = next(iter(frozen.parts()), None)
    entries = {} if part is None else Lineage.of(frozen).of_part(part).entries
    return sum(len(key) + len(value) for key, value in entries.items()) * 7 // 3


def _facts(name: str, model: Mapping[str, str]) -> list[tuple[str, str]]:
    tracked, path = model.get("name", ""), model["path"]
    return [
        (f"model {name}".rstrip(), f"{tracked} ({path})" if tracked else path),
        (f"digest {name}".rstrip(), model["digest"]),
    ]
