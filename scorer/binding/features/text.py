"""Convert columns of text into token tensors: the ids, mask and types of one tokenisation.

A part is tokenised once, and only flat arrays of numbers are kept. Rows are padded when their batch is cut, to the
longest row of that batch.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.arrow import python_values
from scorer.binding.features.numeric import EXACT, numpy_type
from scorer.binding.features.packed import NOT_UTF8, Packed
from scorer.display.words import cut, did_you_mean, quoted_list
from scorer.errors import ModelError, OptionsError, ShapeMismatch, TypeMismatch
from scorer.locations import absolute, is_url
from scorer.model.copies import Copy, local_copy, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    import pyarrow as pa

    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed
    from scorer.options.grammar import Call, Setting


GIVES = ("ids", "mask", "types")
_KEYS = ("max_length", "give")
_DEFAULT_LENGTH = (
    512  # the size of most encoders' position tables; used if neither the tokenizer's file nor the model has a length
)
_SHORTEST, _LONGEST = 2, 10**9 - 1
_CALL_TEXTS = 1024  # texts in one call: enough that the call's own overhead does not matter
_CALL_CHARACTERS = 2**20  # characters in one call: the library needs about 100 bytes per token until the call returns
_LOADED_AT_MOST = 8
_INSTALL = "pip install 'dask-scorer[text]'"
_EXAMPLE = "text(tokenizer.json, max_length=256)"
_OWN_TOKENIZER = "give the tokenizer.json that came with the model"
_ROLES = {
    "input_ids": "ids",
    "input_word_ids": "ids",
    "ids": "ids",
    "attention_mask": "mask",
    "input_mask": "mask",
    "token_type_ids": "types",
    "input_type_ids": "types",
    "segment_ids": "types",
}
"""Input names with the same meaning in every export. In padding_mask, 1 means padding in some exports only."""


def settings(call: Call, tensor: str, length: int | None = None) -> tuple[tuple[str, Setting], ...]:
    """Return all settings of text(...), defaults included; `length` is the token axis of the tensor, if it is fixed."""
    where = f"--feed {tensor}=...|{call.name}(...)"
    named = _named_arguments(call, where)
    give = named.get("give", _default_role(tensor))
    if give not in GIVES:
        raise OptionsError(
            f"unknown value of give: {give!r}",
            where=where,
            expected=f"one of {quoted_list(GIVES)}",
            found=repr(give),
            hint=did_you_mean(give, GIVES),
        )
    path = absolute(call.args[0])
    data = _read_bytes(path, where)
    tokenizer = _parse_tokenizer(data, path, where)
    default = (tokenizer.truncation or {}).get("max_length", _DEFAULT_LENGTH)
    text = named.get("max_length", str(min(default, length or default)))
    max_length = _checked_length(text, tokenizer.num_special_tokens_to_add(is_pair=False), length, where)
    digest = hashlib.sha256(data).hexdigest()
    return ("tokenizer", path), ("sha256", digest), ("max_length", max_length), ("give", give)


def roles(names: Sequence[str]) -> dict[str, str]:
    """Return which of ids, mask and types each input takes, by its name; pass all names that have no --feed.

    Only certain roles are returned: two inputs of one role may need two different texts, so both are left out.
    """
    known = {name: _ROLES[short] for name in names if (short := _short_name(name)) in _ROLES}
    gives = list(known.values())
    return {name: give for name, give in known.items() if gives.count(give) == 1}


def pack(feeds: Sequence[Feed], table: pa.Table) -> dict[str, Packed]:
    """Return the token tensors. Feeds with the same column, tokenizer and length share one tokenisation."""
    groups: dict[tuple[Setting, ...], list[Feed]] = {}
    for feed in feeds:
        groups.setdefault((*feed.columns, *_planned_tokenizer(feed), feed.on_null), []).append(feed)
    packed: dict[str, Packed] = {}
    for group in groups.values():
        tokenised = _tokenise(group, table[group[0].columns[0]])
        packed |= {feed.tensor: Tokens(feed, tokenised) for feed in group}
        packed[group[0].tensor].truncated = tokenised.truncated
    return packed


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A tokenizer and the padding of its file. It is not changed after loading, so threads can share it."""

    tokenizer: Any
    pad_id: int
    pad_type: int
    left: bool


@dataclass(frozen=True, slots=True)
class _Tokenised:
    """A tokenised column as flat arrays; the tokens of row i are from offsets[i] to offsets[i + 1]."""

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    lengths: np.ndarray
    loaded: _Loaded
    reasons: dict[int, str]
    truncated: int


class Tokens(Packed):
    """One token tensor of a tokenised column: ids, mask or types."""

    def __init__(self, feed: Feed, tokenised: _Tokenised) -> None:
        super().__init__()
        place = f"in column {feed.columns[0]!r} (tensor {feed.tensor!r})"
        self.bad = {row: f"{reason} {place}" for row, reason in tokenised.reasons.items()}
        self.lengths = tokenised.lengths
        self._tokenised, self.pads_left = tokenised, tokenised.loaded.left
        self._dtype = numpy_type(feed.dtype)
        self._width = feed.shape[-1] if feed.shape else None
        give, loaded = feed.setting("give"), tokenised.loaded
        self._values = {"ids": tokenised.ids, "types": tokenised.types}.get(str(give))
        self._pad = {"ids": loaded.pad_id, "types": loaded.pad_type}.get(str(give), 0)
        self._check(feed)

    def _check(self, feed: Feed) -> None:
        """Raise if texts can be longer than the tensor, or ids larger than its type holds."""
        where, (_, _, max_length) = f"tensor {feed.tensor!r}", _planned_tokenizer(feed)
        if self._width is not None and max_length > self._width:
            raise ShapeMismatch(
                "texts may be longer than the tensor",
                where=where,
                expected=f"at most {self._width} tokens",
                found=f"max_length={max_length}",
                hint=f"text(..., max_length={self._width})",
            )
        values = self._values
        if values is not None and values.size:
            largest, limit = int(values.max()), EXACT.get(feed.dtype, 2**63)
            if largest > (np.iinfo(self._dtype).max if self._dtype.kind in "iu" else limit):
                raise TypeMismatch(
                    "the tensor's type is too small for the tokenizer's ids",
                    where=where,
                    expected=self._dtype.name,
                    found=str(largest),
                    hint=_OWN_TOKENIZER,
                )

    def batch(self, rows: Rows) -> np.ndarray:
        """Return the tensor of these rows, padded to the longest of them, or to the width that the model fixes."""
        lengths = self._tokenised.lengths[rows]
        width = self._width if self._width is not None else max(1, int(lengths.max(initial=0)))
        places = np.arange(width) - (width - lengths[:, None] if self.pads_left else 0)
        inside = (places >= 0) & (places < lengths[:, None])
        if self._values is None:
            return inside.astype(self._dtype)
        tensor = np.full(inside.shape, self._pad, self._dtype)
        tensor[inside] = self._values[(places + self._tokenised.offsets[:-1][rows][:, None])[inside]]
        return tensor


def _named_arguments(call: Call, where: str) -> dict[str, str]:
    """Return the named arguments of text(...); its only unnamed argument must be the tokenizer."""
    if len(call.args) != 1 or not call.args[0]:
        raise OptionsError(
            "text needs a tokenizer",
            where=where,
            expected="the path of one tokenizer.json",
            found=quoted_list(call.args) or "nothing",
            hint=_EXAMPLE,
        )
    keys = [key for key, _ in call.named]
    for key in keys:
        if key not in _KEYS:
            raise OptionsError(
                f"text has no setting {key!r}",
                where=where,
                expected=quoted_list(_KEYS),
                found=repr(key),
                hint=did_you_mean(key, _KEYS),
            )
        if keys.count(key) > 1:
            raise OptionsError(
                f"{key} is given twice", where=where, expected=f"one {key}", found=quoted_list(keys), hint=_EXAMPLE
            )
    return dict(call.named)


def _checked_length(text: str, specials: int, length: int | None, where: str) -> int:
    """Parse max_length, the tokens of the longest row.

    It must have room for the special tokens: below that, the library does not truncate at all.
    """
    least, most = max(_SHORTEST, specials), length or _LONGEST
    if re.fullmatch("[0-9]{1,9}", text) is None or not least <= int(text) <= most:
        raise OptionsError(
            "max_length is not a valid length",
            where=where,
            expected=f"a whole number from {least} to {most}",
            found=repr(text),
            hint=_EXAMPLE,
        )
    return int(text)


def _default_role(tensor: str) -> str:
    name = tensor.casefold()
    if "mask" in name:
        return "mask"
    return "types" if "type" in name or "segment" in name else "ids"


def _short_name(name: str) -> str:
    """Return input_ids for encoder.input_ids, encoder/input_ids:0 and serving_default_input_ids:0."""
    return re.split(r"[./]", name.casefold().partition(":")[0])[-1].removeprefix("serving_default_")


def _planned_tokenizer(feed: Feed) -> tuple[str, str, int]:
    """Return path, digest and length of a feed's tokenizer, as the plan holds them."""
    path, digest, max_length = (feed.setting(name) for name in ("tokenizer", "sha256", "max_length"))
    return str(path), str(digest), int(str(max_length))


def _library() -> ModuleType:
    """Return the tokenizers library, with its own threads turned off: the scoring threads already use all cores."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers  # noqa: PLC0415 - an extra, and only text needs it
    except ImportError as error:
        raise OptionsError(
            "text needs the tokenizers library", expected="an installed package", found=str(error), hint=_INSTALL
        ) from error
    return tokenizers


def _read_bytes(path: str, where: str) -> bytes:
    try:
        with open(readable(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise OptionsError(
            "the tokenizer cannot be read",
            where=where,
            expected="a file",
            found=f"{path}: {error.strerror or error}",
            hint=_OWN_TOKENIZER,
        ) from error


def _parse_tokenizer(data: bytes, path: str, where: str) -> Any:  # noqa: ANN401 - the library is optional
    library = _library()
    try:
        return library.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises no finer class
        raise OptionsError(
            "the tokenizer cannot be loaded",
            where=where,
            expected="a file written by the tokenizers library",
            found=cut(f"{path}: {error}", 300),
            hint=_OWN_TOKENIZER,
        ) from error


_LOCK = threading.Lock()
_LOADED: dict[tuple[str, str, int], _Loaded] = {}
"""Tokenizers by path, digest and length: the length is state of a tokenizer that threads share, so it cannot change."""


def _load_once(path: str, digest: str, max_length: int) -> _Loaded:
    """Return the planned tokenizer, loaded once per process."""
    with _LOCK:
        key = path, digest, max_length
        if key not in _LOADED:
            while len(_LOADED) >= _LOADED_AT_MOST:
                del _LOADED[next(iter(_LOADED))]
            _LOADED[key] = _load_planned(*key)
        return _LOADED[key]


def _load_planned(path: str, digest: str, max_length: int) -> _Loaded:
    """Load a tokenizer that truncates at `max_length` and does not pad.

    Raises `ModelError` if the file is not the planned one.
    """
    data = _planned_bytes(path, digest)
    found = hashlib.sha256(data).hexdigest()[:16] if data is not None else "nothing"
    if data is None or found != digest[:16]:
        raise ModelError(
            "the tokenizer is not the one that was planned",
            where=path,
            expected=f"sha256 {digest[:16]}",
            found=found,
            hint="restore it, or start again with --overwrite; workers must see the same file",
        )
    tokenizer = _parse_tokenizer(data, path, path)
    padding, direction = tokenizer.padding, (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=direction)
    if padding:
        return _Loaded(tokenizer, padding["pad_id"], padding["pad_type_id"], padding["direction"] == "left")
    known = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    return _Loaded(tokenizer, next((number for number in known if number is not None), 0), 0, left=False)


def _planned_bytes(path: str, digest: str) -> bytes | None:
    """Return what is at the planned place, or in the cache of this host for a URL; None if there is nothing."""
    if not is_url(path):
        return _read_bytes(path, path) if os.path.exists(path) else None
    copy = local_copy(Copy.of_file(path, digest))
    return None if copy is None else _read_bytes(copy, path)


def _tokenise(feeds: Sequence[Feed], column: pa.ChunkedArray) -> _Tokenised:
    """Tokenise a column, some texts in each call; only numbers are kept of the encodings."""
    path, digest, max_length = _planned_tokenizer(feeds[0])
    loaded = _load_once(path, digest, max_length)
    typed = any(feed.setting("give") == "types" for feed in feeds)
    reasons: dict[int, str] = {}
    none = np.empty(0, np.uint32)
    ids, types, lengths, truncated = [none], [none], [np.empty(0, np.int64)], 0
    row = 0
    for texts in _group_by_call(_row_texts(column, feeds[0].on_null, reasons)):
        rows = _encode(loaded.tokenizer, texts, row, reasons)
        row += len(texts)
        ids.append(_flatten([one.ids if one is not None else () for one in rows]))
        if typed:
            types.append(_flatten([one.type_ids if one is not None else () for one in rows]))
        lengths.append(np.fromiter((len(one) if one is not None else 0 for one in rows), np.int64, len(rows)))
        truncated += sum(one is not None and len(one) >= max_length and bool(one.overflowing) for one in rows)
    counts = np.concatenate(lengths)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat_types = np.concatenate(types) if typed else None
    return _Tokenised(np.concatenate(ids), flat_types, offsets, counts, loaded, reasons, truncated)


def _flatten(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), np.uint32, sum(map(len, rows)))


def _row_texts(column: pa.ChunkedArray, on_null: str, reasons: dict[int, str]) -> Iterator[str]:
    """Yield each row's text; a row without one is added to `reasons`, and its text is empty."""
    for start in range(0, len(column), _CALL_TEXTS):
        for row, value in enumerate(python_values(column.slice(start, _CALL_TEXTS)), start):
            if isinstance(value, str):
                yield value
            elif value is None and on_null != "error":
                yield on_null
            else:
                reasons[row] = "null" if value is None else NOT_UTF8
                yield ""


def _group_by_call(texts: Iterator[str]) -> Iterator[list[str]]:
    """Group texts into the calls of the tokenizer; a very long text is alone in its call."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and (len(group) == _CALL_TEXTS or characters + len(text) > _CALL_CHARACTERS):
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    if group:
        yield group


def _encode(tokenizer: Any, texts: list[str], first: int, reasons: dict[int, str]) -> list[Any]:  # noqa: ANN401 - the library is optional
    """Return the encodings; None for a text that the tokenizer refuses, such as an unknown word if it has no [UNK]."""
    try:
        return tokenizer.encode_batch_fast(texts)  # type: ignore[no-any-return]
    except Exception as error:
        if type(error) is not Exception:  # a refused text raises the bare class, other failures a subclass
            raise
        if len(texts) == 1:
            reasons.setdefault(first, f"text that the tokenizer refuses ({error})")
            return [None]
    middle = len(texts) // 2
    return [
        *_encode(tokenizer, texts[:middle], first, reasons),
        *_encode(tokenizer, texts[middle:], first + middle, reasons),
    ]
