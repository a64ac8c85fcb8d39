"""The models that a request names: what their files say, and the options that are for each of them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from scorer.binding.request import with_folder_flags
from scorer.display.words import nearest, quoted_list
from scorer.errors import OptionsError, PreflightError, ScorerError
from scorer.host.crash import note_step
from scorer.model.protobuf import inspect_model
from scorer.options.grammar import CONVERTERS, FeedText, split_fetch, split_known
from scorer.options.models import split_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from scorer.model.spec import ModelSpec, TensorSpec
    from scorer.options.fields import BindingOptions, Options
    from scorer.options.models import ModelPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a request."""

    name: str
    """'' for the only model of a request."""
    spec: ModelSpec
    options: BindingOptions
    """What is requested for its tensors, and what its folder says of them."""
    folder_flags: tuple[str, ...] = ()
    """The flags that its folder stands for, as words of a command."""

    @property
    def prefix(self) -> str:
        """What the names of its output columns begin with."""
        return f"{self.options.prefix}{self.name}_" if self.name else self.options.prefix

    def problems(self, found: Iterable[ScorerError]) -> list[ScorerError]:
        """Return the problems of this model with its name, where the request has several models."""
        return [_named(error, self.name) for error in found] if self.name else [*found]

    def words(self, text: str) -> str:
        """Return a text about this model with its name, where the request has several models."""
        return f"{self.name}: {text}" if self.name else text


def models_of(options: Options) -> tuple[Model, ...]:
    """Read the files of all models; raise the errors of those that cannot be read."""
    of_name: dict[str, ModelSpec] = {}
    problems: list[ScorerError] = []
    for model in options.model:
        try:
            of_name[model.name] = _read(model)
        except ScorerError as error:
            problems.append(_named(error, model.name) if model.name else error)
    if problems:
        raise problems[0] if len(problems) == 1 else PreflightError(problems)
    _refuse_misspelt(options.binding, of_name)
    models = []
    for name, spec in of_name.items():
        own = _options_for(options.binding, name, of_name)
        completed, flags = with_folder_flags(own, spec)
        named = tuple(flag if flag.startswith("--") or not name else f"{name}:{flag}" for flag in flags)
        models.append(Model(name=name, spec=spec, options=completed, folder_flags=named))
    return tuple(models)


def _read(model: ModelPath) -> ModelSpec:
    note_step(f"reading the model {model.path}")  # named if native code crashes
    return inspect_model(model.path)


def _refuse_misspelt(options: BindingOptions, specs: Mapping[str, ModelSpec]) -> None:
    """Raise if an option begins with a name that is nearly that of a model, and no tensor begins with it."""
    tensors = [tensor.name for spec in specs.values() for tensor in (*spec.inputs, *spec.outputs)]
    feeds = [feed.text if feed.tensor is None else feed.tensor for feed in options.feed]
    given = {
        "--feed": feeds, "--fetch": options.fetch, "--labels": options.labels, "--on-null": options.on_null,
        "--batch-axis": options.batch_axis,
    }  # fmt: skip
    for flag, text in ((flag, text) for flag, texts in given.items() for text in texts):
        name, colon, rest = text.partition(":")
        near = nearest(name.strip(), list(specs)) if colon and not rest.startswith("//") else ""
        if near and name.strip() not in specs and not any(tensor.startswith(f"{name}:") for tensor in tensors):
            raise OptionsError(
                "no model has this name",
                where=f"{flag} {text}",
                expected=f"one of {quoted_list(list(specs))}",
                found=repr(name.strip()),
                hint=f"{flag} {shlex.quote(f'{near}:{rest}')}",
            )


def _options_for(options: BindingOptions, name: str, specs: Mapping[str, ModelSpec]) -> BindingOptions:
    """Return the options for one of the models: those that name it, without the name, and those that name none.

    An option that names no model, and a tensor that only other models have, is not for this one.
    """
    if not name:
        return options
    names, others = list(specs), [spec for other, spec in specs.items() if other != name]

    def is_own(owner: str, has: Callable[[ModelSpec], bool]) -> bool:
        return owner == name or (not owner and (has(specs[name]) or not any(map(has, others))))

    def own(texts: Sequence[str], tensors: Callable[[ModelSpec], Sequence[TensorSpec]]) -> tuple[str, ...]:
        def has(text: str, spec: ModelSpec) -> bool:
            known = [tensor.name for tensor in tensors(spec)]
            return split_known(text, known)[0] is not None or split_fetch(text, known)[0] is not None

        split = [split_model(text, names) for text in texts]
        return tuple(text for owner, text in split if is_own(owner, partial(has, text)))

    def is_fed(feed: FeedText, spec: ModelSpec) -> bool:
        known = [tensor.name for tensor in spec.inputs]
        return feed.split(known, CONVERTERS)[0] in known

    feeds = [(*split_model(feed.text if feed.tensor is None else feed.tensor, names), feed) for feed in options.feed]
    return replace(
        options,
        feed=tuple(
            _without_name(feed, text) if owner else feed
            for owner, text, feed in feeds
            if is_own(owner, partial(is_fed, feed))
        ),
        fetch=own(options.fetch, lambda spec: spec.outputs),
        labels=own(options.labels, lambda spec: spec.outputs),
        on_null=own(options.on_null, lambda spec: spec.inputs),
        batch_axis=own(options.batch_axis, lambda spec: (*spec.inputs, *spec.outputs)),
    )


def _without_name(feed: FeedText, text: str) -> FeedText:
    return FeedText.parse(text) if feed.tensor is None else replace(feed, tensor=text)


_FLAG = re.compile(r"(--(?:feed|fetch|labels|on-null|batch-axis)) (['\"]?)(?=[^\s'\"]+=|(?<=['\"])\S)")
"""A flag about a tensor that a hint shows with its value."""


def _named(error: ScorerError, name: str) -> ScorerError:
    """Return an error of one of several models: with its name, also in the flags that the hint shows."""
    hint = _FLAG.sub(rf"\1 \2{name}:", error.hint)
    where = ", ".join(filter(None, (f"model {name!r}", error.where)))
    return type(error)(error.what, where, error.expected, error.found, hint)
