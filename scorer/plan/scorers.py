"""One model of a plan: which columns feed it, how it is loaded, and how large its batches are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scorer.binding.spec import Binding, Feed, Fetch
from scorer.model.spec import SessionSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """One model of a plan."""

    name: str = ""
    """The name that --model gives it; '' for the only model of a run."""
    binding: Binding
    session: SessionSpec
    batch_rows: int
    batch_tokens: int | None = None
    """Tokens of a batch, if batches are cut by tokens and not by rows."""
    trials: tuple[str, ...] = ()
    """The batch sizes that tuning tried, with their speeds, in words."""
    together: float | None = None
    """How many times as fast two threads score as one; None if that was not tried."""

    def tensor(self, name: str) -> str:
        """Return the name of a tensor as flags take it: with the model's name, if the run has several."""
        return f"{self.name}:{name}" if self.name else name

    def to_dict(self) -> dict[str, Any]:
        """Return the model of a plan as JSON holds it."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain |= {name: dataclasses.asdict(getattr(self, name)) for name in ("binding", "session")}
        for name in ("gpu", "trees", "pack"):  # each process chooses its own
            del plain["session"][name]
        if not self.binding.batch_axes:  # so that other plans keep their hash
            del plain["binding"]["batch_axes"]
        for fetch in plain["binding"]["fetches"]:
            del fetch["shape"]  # for the text of a plan only
        for feed in plain["binding"]["feeds"]:
            if not feed["unused"]:
                del feed["unused"]
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scorer:
        """Create the model of a plan from what `to_dict` returned."""
        binding, session = data["binding"], data["session"]
        return cls(
            name=data.get("name", ""),
            binding=Binding(
                feeds=tuple(Feed(**as_tuples(feed)) for feed in binding["feeds"]),
                fetches=tuple(Fetch(**as_tuples(fetch)) for fetch in binding["fetches"]),
                fixed_batch=binding["fixed_batch"],
                batch_axes=as_tuples(binding.get("batch_axes", ())),
            ),
            session=SessionSpec(**session | {"files": tuple(session["files"])}),
            trials=tuple(data["trials"]),
            **{name: data[name] for name in ("batch_rows", "batch_tokens", "together")},
        )


def as_tuples(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return a value of JSON with tuples for lists, at any depth."""
    if isinstance(value, dict):
        return {name: as_tuples(one) for name, one in value.items()}
    return tuple(as_tuples(one) for one in value) if isinstance(value, list | tuple) else value
