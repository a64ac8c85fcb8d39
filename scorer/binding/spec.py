"""The result of binding, as plain data: Feed, Fetch, Transform and Binding; and their description as text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from scorer.options.grammar import PartSettings, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which columns fill which input tensors of a model, and which output tensors become which columns."""

    feeds: tuple[Feed, ...]
    fetches: tuple[Fetch, ...] = ()
    fixed_batch: int | None = None
    """Number of rows that the model requires; batches are padded to it, and the outputs cut back."""
    batch_axes: tuple[tuple[str, int], ...] = ()
    """The axis that holds the rows, of tensors where it is requested or is not the first."""

    @property
    def fed(self) -> tuple[str, ...]:
        """Columns that feed at least one tensor, without duplicates."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.columns))

    @property
    def read(self) -> tuple[str, ...]:
        """Columns that are read to feed the tensors: the fed ones without those that the model never looks at."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.read))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Columns that the model adds."""
        return tuple(name for fetch in self.fetches for name in fetch.columns)

    @property
    def texts(self) -> bool:
        """Whether a tensor is fed by the text converter."""
        return any(feed.kind == "text" for feed in self.feeds)

    @property
    def pictures(self) -> bool:
        """Whether a tensor is fed by the image converter."""
        return any(feed.kind == "image" for feed in self.feeds)

    @property
    def any_size(self) -> bool:
        """Whether the pictures of a tensor have different sizes, so that rows are scored one by one."""
        return any(feed.kind == "image" and None in feed.shape for feed in self.feeds)


MAX_LISTED, _MOST_NAMES = 4, 16
_CLASS_TYPES = {"topk": "string", "topk_numbers": "int64"}
_HIDDEN_SETTINGS = ("tokenizer", "words", "folder", "sha256", "shared")
"""Settings that are not shown: paths, digests, and long values."""


def feed_words(feed: Feed) -> str:
    """Describe a feed as text: its columns, and its converter with the settings."""
    if feed.kind == "mixed":
        return ", ".join(map(_part_words, feed.parts))
    columns = ", ".join(feed.columns[:_MOST_NAMES]) + (
        f" and {len(feed.columns) - _MOST_NAMES} more" if len(feed.columns) > _MOST_NAMES else ""
    )
    if not feed.settings:
        return columns
    settings = {
        **dict(feed.settings),
        **({} if feed.kind != "const" else {"values": _setting_text(feed.setting("values"))}),
    }
    shown = ", ".join(
        f"{name}={_setting_text(value)}"
        for name, value in settings.items()
        if name not in _HIDDEN_SETTINGS and value is not None
    )
    return f"{columns}{'|' if columns else ''}{feed.kind}({shown})"


def _part_words(part: Feed) -> str:
    """Describe a part of a mixed feed; several columns with one converter are put in brackets."""
    words = feed_words(part)
    columns, bar, converter = words.partition("|")
    return f"({columns}){bar}{converter}" if bar and len(part.columns) > 1 else words


def fetch_words(fetch: Fetch) -> tuple[str, str, str]:
    """Describe a fetch as text: (the output with its steps, its columns, their type)."""
    shape = f" ({' x '.join(map(str, fetch.shape))})" if fetch.shape else ""
    kinds = {"list": f"lists of {fetch.width}{shape}", "ragged": "lists of any length"}
    value = fetch.type if fetch.kind not in kinds else f"{kinds[fetch.kind]} {fetch.type}"
    if fetch.kind in _CLASS_TYPES:
        value = f"{_CLASS_TYPES[fetch.kind]}, {fetch.type}"
    steps = "".join(f"{'' if step[0] == '[' else '|'}{_short(step)}" for step in fetch.steps)
    some = f"{', '.join(fetch.columns[:MAX_LISTED])}, ... {fetch.columns[-1]}"
    return f"{fetch.tensor}{steps}", some if len(fetch.columns) > _MOST_NAMES else ", ".join(fetch.columns), value


def _short(step: str) -> str:
    return step if len(step) < 40 else step[:36] + "...)"  # noqa: PLR2004 - longer steps would fill a line


def _setting_text(value: object) -> str:
    return " ".join(
        f"{one:g}" if isinstance(one, float) else str(one) for one in (value if isinstance(value, tuple) else (value,))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """A user's function, by name."""

    name: str
    """package.module:function."""
    folder: str
    """The current folder of the command; modules are imported from it too."""
    digest: str
    """sha256 of the module's source."""
    reads: tuple[str, ...] = ()
    """Columns of the frame that the function gets."""


def reads(transform: Transform | None, bindings: Sequence[Binding]) -> tuple[str, ...]:
    """Return the input columns to read: those of the transform if one is used, else those that feed a model."""
    if transform is not None:
        return transform.reads
    return tuple(dict.fromkeys(name for binding in bindings for name in binding.read))


def fed(bindings: Iterable[Binding]) -> tuple[str, ...]:
    """Return the columns that feed at least one model, without duplicates."""
    return tuple(dict.fromkeys(name for binding in bindings for name in binding.fed))


def unused_words(bindings: Sequence[Binding], others: Container[str]) -> str:
    """Return how many fed columns are not read, because no model ever looks at them, in words; '' if none is.

    `others` are kept or filtered on.
    """
    read = set(reads(None, bindings))
    names = fed(bindings)
    unused = [name for name in names if name not in read]
    also = sum(name in others for name in unused)
    if also == len(unused):
        return ""
    are = "is" if len(unused) == 1 else "are"
    who = "the model" if len(bindings) == 1 else "any model"
    never = f"{len(unused):,} of {len(names):,} fed columns {are} never looked at by {who}"
    if not also:
        return f"{never}, and {are} not read"
    return f"{never}: {len(unused) - also:,} not read, {also:,} only kept or filtered on"


ASKED, BY_FEATURES, BY_NAME = "as asked", "by the model's feature names", "by name"
BY_LIST, BY_POSITION = "the one list that fits", "by position: every float column in file order, the model names none"
BY_GLOB = "by a glob, in the input's order, because no name says the order of the columns"
BY_NUMBERS = "by a glob, in the order of the numbers in the columns' names, which is not the input's order"
"""Why these columns feed a tensor, as the plan shows it. The texts are part of the plan's hash."""
UNCONFIRMED = {
    BY_POSITION: "choose other columns with --feed",
    BY_GLOB: "name the columns in --feed to set the order",
    BY_NUMBERS: "name the columns in --feed to set another order",
}
"""Rules for an order that nothing confirms, with how to choose another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One input tensor and the columns that fill it."""

    tensor: str
    kind: str
    """numeric, nested, strings, mixed, or a converter: text, image, vocab, epoch, const."""
    dtype: str
    """numpy's name, 'bfloat16', or 'string'."""
    columns: tuple[str, ...]
    shape: tuple[int | None, ...]
    """Shape of one row: () for [N], (28,) for [N, 28]. A size is None if only the data decides it."""
    on_null: str
    """error, nan, or a constant."""
    on_lossy: str
    """error or warn."""
    rule: str = ASKED
    """Why these columns feed the tensor."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """The converter's settings, defaults included. A mixed feed has the settings of its parts."""
    unused: tuple[int, ...] = ()
    """Numbers of the columns that the model never looks at: they are not read, and zeros are fed in their place."""

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that are read for this tensor."""
        if not self.unused:
            return self.columns
        unused = set(self.unused)
        return tuple(name for at, name in enumerate(self.columns) if at not in unused)

    @property
    def parts(self) -> tuple[Feed, ...]:
        """The parts of a mixed feed, each with its own converter, in the order of the columns."""
        found, at = [], 0
        for kind, count, settings in cast("tuple[PartSettings, ...]", self.setting("parts")):
            columns = self.columns[at : at + count]
            unused = tuple(one - at for one in self.unused if at <= one < at + count)
            found.append(replace(self, kind=kind, columns=columns, shape=(count,), settings=settings, unused=unused))
            at += count
        return tuple(found)

    @property
    def shared(self) -> bool:
        """Whether all rows share one tensor, which has no axis for them."""
        return self.kind == "const" and bool(self.setting("shared"))

    def setting(self, name: str) -> Setting:
        """Return one of the settings."""
        return dict(self.settings)[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One output tensor and the columns it becomes."""

    tensor: str
    kind: str
    """flat, list, ragged, zipmap, topk or topk_numbers."""
    columns: tuple[str, ...]
    type: str
    """Arrow's name of the value type."""
    labels: tuple[str, ...] = ()
    """Keys of a map, in the order of `columns`."""
    width: int = 1
    """Number of values in a row; in a ragged output, in each item of a row."""
    steps: tuple[str, ...] = ()
    """Steps applied to the tensor first, such as softmax or topk(3)."""
    shape: tuple[int, ...] = ()
    """The shape of a row that becomes one list, if it is deeper than a list. It is only shown: plan.json lacks it."""
