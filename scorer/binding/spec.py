"""What was bound, as data: Feed, Fetch, Transform, Binding; and each in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorer.options.grammar import Setting


CONVERTERS = ("text", "image", "vocab", "epoch", "const")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Columns to tensors and back."""

    feeds: tuple[Feed, ...]
    fetches: tuple[Fetch, ...] = ()
    kept: tuple[str, ...] = ()
    row_id: bool = False
    fixed_batch: int | None = None
    """Rows that the model insists on; batches are padded to it and cut again."""

    @property
    def fed(self) -> tuple[str, ...]:
        """Columns that any tensor uses, each once."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.columns))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Columns that the model adds."""
        return tuple(name for fetch in self.fetches for name in fetch.columns)

    @property
    def texts(self) -> bool:
        """Whether any tensor is fed texts."""
        return any(feed.kind == "text" for feed in self.feeds)

    @property
    def pictures(self) -> bool:
        """Whether any tensor is fed pictures."""
        return any(feed.kind == "image" for feed in self.feeds)


MAX_LISTED, _MANY = 4, 16
_HIDDEN = ("tokenizer", "words", "folder", "sha256", "shared")
"""Settings that are paths, digests or long."""


def feed_words(feed: Feed) -> str:
    """The columns of a feed and what they go through."""
    columns = ", ".join(feed.columns[:_MANY]) + (
        f" and {len(feed.columns) - _MANY} more" if len(feed.columns) > _MANY else ""
    )
    if not feed.settings:
        return columns
    told = {**dict(feed.settings), **({} if feed.kind != "const" else {"values": _plain(feed.setting("values"))})}
    shown = ", ".join(
        f"{name}={_plain(value)}" for name, value in told.items() if name not in _HIDDEN and value is not None
    )
    return f"{columns}{'|' if columns else ''}{feed.kind}({shown})"


def fetch_words(fetch: Fetch) -> tuple[str, str, str]:
    """An output with its steps, the columns it becomes, and their type."""
    kinds = {"list": f"lists of {fetch.width}", "ragged": "lists of any length"}
    value = fetch.type if fetch.kind not in kinds else f"{kinds[fetch.kind]} {fetch.type}"
    steps = "".join(f"|{step if len(step) < 40 else step[:36] + '...)'}" for step in fetch.steps)  # noqa: PLR2004 - a line's worth
    some = f"{', '.join(fetch.columns[:MAX_LISTED])}, ... {fetch.columns[-1]}"
    return f"{fetch.tensor}{steps}", some if len(fetch.columns) > _MANY else ", ".join(fetch.columns), value


def _plain(value: object) -> str:
    return " ".join(
        f"{one:g}" if isinstance(one, float) else str(one) for one in (value if isinstance(value, tuple) else (value,))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """A function, by name; plain data."""

    name: str
    """package.module:function."""
    folder: str
    """Importable too: where the command was given."""
    digest: str
    """sha256 of the module's source."""
    reads: tuple[str, ...] = ()
    """Columns of the frame that it gets."""


def reads(transform: Transform | None, fed: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of the input that are fed, or go through the transform first."""
    return fed if transform is None else transform.reads


ASKED, BY_FEATURES, BY_NAME = "as asked", "by the model's feature names", "by name"
BY_LIST, BY_POSITION = "the one list that fits", "by position: every float column in file order, the model names none"
"""Why columns feed a tensor, for whoever reads the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """One input tensor and the columns that fill it."""

    tensor: str
    kind: str
    """numeric, nested, strings, or a converter: text, image, vocab, epoch, const."""
    dtype: str
    """numpy's name, 'bfloat16', or 'string'."""
    columns: tuple[str, ...]
    shape: tuple[int | None, ...]
    """Of one row: () for [N], (28,) for [N, 28]; None where only the rows will tell."""
    on_null: str
    """error, nan, or a constant."""
    on_lossy: str
    """error or warn."""
    rule: str = ASKED
    """Why these columns."""
    settings: tuple[tuple[str, Setting], ...] = ()
    """What a converter was told, defaults filled in."""

    def setting(self, name: str) -> Setting:
        """One of the settings."""
        return dict(self.settings)[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One output tensor and the columns it becomes."""

    tensor: str
    kind: str
    """flat, list, ragged or zipmap."""
    columns: tuple[str, ...]
    type: str
    """Arrow's name of the value type."""
    labels: tuple[str, ...] = ()
    """Keys of a map, in the order of `columns`."""
    width: int = 1
    """Values in a row; of a ragged one, in each of its items."""
    steps: tuple[str, ...] = ()
    """What is done to the tensor first, such as softmax or topk(3)."""
