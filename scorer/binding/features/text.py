"""Columns of text as token tensors: ids, mask and types of one tokenisation.

A part is tokenised once, and only flat numbers are kept; padding waits until it is known which rows go together.
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

from scorer.binding.features.numeric import EXACT, numpy_type
from scorer.binding.features.packed import Packed
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import ModelError, OptionsError, ShapeMismatch, TypeMismatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    import pyarrow as pa

    from scorer.binding.features.packed import Rows
    from scorer.binding.spec import Feed
    from scorer.options.grammar import Call, Setting


GIVES = ("ids", "mask", "types")
_KEYS = ("max_length", "give")
_LENGTH = 512  # what the position tables of most encoders hold; used where neither file nor model says more
_SHORTEST, _LONGEST = 2, 10**9 - 1
_TEXTS = 1024  # of one call; enough to make the call itself cheap
_LETTERS = 2**20  # of one call; the library needs some 100 bytes for each token until the call is done
_LOADED_AT_MOST = 8
_INSTALL = "pip install 'dask-scorer[text]'"
_LIKE = "text(tokenizer.json, max_length=256)"
_NAMES = {
    "input_ids": "ids",
    "input_word_ids": "ids",
    "ids": "ids",
    "attention_mask": "mask",
    "input_mask": "mask",
    "token_type_ids": "types",
    "input_type_ids": "types",
    "segment_ids": "types",
}
"""Names that mean one thing in every export; padding_mask, for one, is 1 in some and 0 in others."""


def settings(call: Call, tensor: str, length: int | None = None) -> tuple[tuple[str, Setting], ...]:
    """What the text converter was told, defaults filled in; `length` is the tensor's own where the model fixes it."""
    where = f"--feed {tensor}=...|{call.name}(...)"
    named = _named(call, where)
    give = named.get("give", _give(tensor))
    if give not in GIVES:
        what = f"text cannot give {give!r}"
        raise OptionsError(what, where, f"one of {quoted_list(GIVES)}", repr(give), did_you_mean(give, GIVES))
    path = os.path.abspath(os.path.expanduser(call.args[0]))
    data = _read(path, where)
    tokenizer = _parsed(data, path, where)
    own = (tokenizer.truncation or {}).get("max_length", _LENGTH)
    asked = named.get("max_length", str(min(own, length or own)))
    max_length = _checked(asked, tokenizer.num_special_tokens_to_add(is_pair=False), length, where)
    digest = hashlib.sha256(data).hexdigest()
    return ("tokenizer", path), ("sha256", digest), ("max_length", max_length), ("give", give)


def roles(names: Sequence[str]) -> dict[str, str]:
    """What the same text gives to a model's other inputs, by name; give all the names that no --feed has.

    Only what is certain: two inputs of one role may want two texts, so neither of them is here.
    """
    found = {name: _NAMES[last] for name in names if (last := _last(name)) in _NAMES}
    gives = list(found.values())
    return {name: give for name, give in found.items() if gives.count(give) == 1}


def pack(feeds: Sequence[Feed], table: pa.Table) -> dict[str, Packed]:
    """The token tensors; feeds of one column, tokenizer and length share one tokenisation."""
    groups: dict[tuple[Setting, ...], list[Feed]] = {}
    for feed in feeds:
        groups.setdefault((*feed.columns, *_planned(feed), feed.on_null), []).append(feed)
    packed: dict[str, Packed] = {}
    for group in groups.values():
        found = _tokenised(group, table[group[0].columns[0]])
        packed |= {feed.tensor: Tokens(feed, found) for feed in group}
        packed[group[0].tensor].truncated = found.truncated
    return packed


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A tokenizer that is never changed again, so that threads may share it, and how its file pads."""

    tokenizer: Any
    pad_id: int
    pad_type: int
    left: bool


@dataclass(frozen=True, slots=True)
class _Tokenised:
    """A column as flat numbers; row i has those from offsets[i] to offsets[i + 1]."""

    ids: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    lengths: np.ndarray
    loaded: _Loaded
    reasons: dict[int, str]
    truncated: int


class Tokens(Packed):
    """One of the tensors that a tokenised column gives."""

    def __init__(self, feed: Feed, found: _Tokenised) -> None:
        super().__init__()
        place = f"in column {feed.columns[0]!r} (tensor {feed.tensor!r})"
        self.bad = {row: f"{reason} {place}" for row, reason in found.reasons.items()}
        self.lengths = found.lengths
        self._found, self.left = found, found.loaded.left
        self._dtype = numpy_type(feed.dtype)
        self._width = feed.shape[-1] if feed.shape else None
        give, loaded = feed.setting("give"), found.loaded
        self._values = {"ids": found.ids, "types": found.types}.get(str(give))
        self._pad = {"ids": loaded.pad_id, "types": loaded.pad_type}.get(str(give), 0)
        self._check(feed)

    def _check(self, feed: Feed) -> None:
        """Refuse what would be fed as something else."""
        where, (_, _, max_length) = f"tensor {feed.tensor!r}", _planned(feed)
        if self._width is not None and max_length > self._width:
            what, hint = "texts may be longer than the tensor", f"text(..., max_length={self._width})"
            raise ShapeMismatch(what, where, f"at most {self._width} tokens", f"max_length={max_length}", hint)
        values = self._values
        if values is not None and values.size:
            most, held = int(values.max()), EXACT.get(feed.dtype, 2**63)
            if most > (np.iinfo(self._dtype).max if self._dtype.kind in "iu" else held):
                what, hint = "the tensor's type does not hold the tokenizer's ids", "is it the model's own tokenizer?"
                raise TypeMismatch(what, where, self._dtype.name, str(most), hint)

    def batch(self, rows: Rows) -> np.ndarray:
        """Those rows, padded to the longest of them, or to the width that the model fixes."""
        lengths = self._found.lengths[rows]
        width = self._width if self._width is not None else max(1, int(lengths.max(initial=0)))
        places = np.arange(width) - (width - lengths[:, None] if self.left else 0)
        inside = (places >= 0) & (places < lengths[:, None])
        if self._values is None:
            return inside.astype(self._dtype)
        tensor = np.full(inside.shape, self._pad, self._dtype)
        tensor[inside] = self._values[(places + self._found.offsets[:-1][rows][:, None])[inside]]
        return tensor


def _named(call: Call, where: str) -> dict[str, str]:
    """The named arguments of a call whose only other one is the tokenizer."""
    if len(call.args) != 1 or not call.args[0]:
        what, expected = "text needs a tokenizer", "the path of one tokenizer.json"
        raise OptionsError(what, where, expected, quoted_list(call.args) or "nothing", _LIKE)
    keys = [key for key, _ in call.named]
    for key in keys:
        if key not in _KEYS:
            what = f"text knows no {key!r}"
            raise OptionsError(what, where, quoted_list(_KEYS), repr(key), did_you_mean(key, _KEYS))
        if keys.count(key) > 1:
            raise OptionsError(f"{key} is given twice", where, f"one {key}", quoted_list(keys), _LIKE)
    return dict(call.named)


def _checked(text: str, specials: int, length: int | None, where: str) -> int:
    """The longest row in tokens; below its own special tokens, the library would not cut at all."""
    least, most = max(_SHORTEST, specials), length or _LONGEST
    if re.fullmatch("[0-9]{1,9}", text) is None or not least <= int(text) <= most:
        what = "max_length does not fit"
        expected = f"a whole number from {least} to {most}"
        raise OptionsError(what, where, expected, repr(text), _LIKE)
    return int(text)


def _give(tensor: str) -> str:
    name = tensor.casefold()
    if "mask" in name:
        return "mask"
    return "types" if "type" in name or "segment" in name else "ids"


def _last(name: str) -> str:
    """The last word of encoder.input_ids, encoder/input_ids:0 and serving_default_input_ids:0."""
    return re.split(r"[./]", name.casefold().partition(":")[0])[-1].removeprefix("serving_default_")


def _planned(feed: Feed) -> tuple[str, str, int]:
    """Path, digest and length of a feed's tokenizer."""
    path, digest, max_length = (feed.setting(name) for name in ("tokenizer", "sha256", "max_length"))
    return str(path), str(digest), int(str(max_length))


def _library() -> ModuleType:
    """The tokenizers library, told before its first use that the scoring threads share the cores already."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers  # noqa: PLC0415 - an extra, and only text needs it
    except ImportError as error:
        what, expected = "text needs the tokenizers library", "an installed package"
        raise OptionsError(what, "", expected, str(error), _INSTALL) from error
    return tokenizers


def _read(path: str, where: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        what, hint = "the tokenizer cannot be read", "give the tokenizer.json that came with the model"
        found = f"{path}: {error.strerror or error}"
        raise OptionsError(what, where, "a file", found, hint) from error


def _parsed(data: bytes, path: str, where: str) -> Any:  # noqa: ANN401 - of a library that may be missing
    library = _library()
    try:
        return library.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing finer
        what, hint = "the tokenizer does not load", "give the tokenizer.json that came with the model"
        found = f"{path}: {error}"[:300]
        raise OptionsError(what, where, "a file that the tokenizers library wrote", found, hint) from error


_LOCK = threading.Lock()
_LOADED: dict[tuple[str, str, int], _Loaded] = {}
"""By path, digest and length: a length is a state of the tokenizer, and changing it would disturb other threads."""


def _load(path: str, digest: str, max_length: int) -> _Loaded:
    """The planned tokenizer, loaded once per process."""
    with _LOCK:
        key = path, digest, max_length
        if key not in _LOADED:
            while len(_LOADED) >= _LOADED_AT_MOST:
                del _LOADED[next(iter(_LOADED))]
            _LOADED[key] = _fresh(*key)
        return _LOADED[key]


def _fresh(path: str, digest: str, max_length: int) -> _Loaded:
    """A tokenizer that cuts at `max_length` and leaves padding to us."""
    data = _read(path, path) if os.path.exists(path) else None
    found = hashlib.sha256(data).hexdigest()[:16] if data is not None else "nothing"
    if data is None or found != digest[:16]:
        what = "the tokenizer is not the one that was planned"
        hint = "restore it, or start again with --overwrite; workers must see the same file"
        raise ModelError(what, path, f"sha256 {digest[:16]}", found, hint)
    tokenizer = _parsed(data, path, path)
    padding, direction = tokenizer.padding, (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, direction=direction)
    if padding:
        return _Loaded(tokenizer, padding["pad_id"], padding["pad_type_id"], padding["direction"] == "left")
    known = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    return _Loaded(tokenizer, next((number for number in known if number is not None), 0), 0, left=False)


def _tokenised(feeds: Sequence[Feed], column: pa.ChunkedArray) -> _Tokenised:
    """The column, tokenised in pieces of which nothing but numbers is kept."""
    path, digest, max_length = _planned(feeds[0])
    loaded = _load(path, digest, max_length)
    typed = any(feed.setting("give") == "types" for feed in feeds)
    reasons: dict[int, str] = {}
    none = np.empty(0, np.uint32)
    ids, types, lengths, truncated = [none], [none], [np.empty(0, np.int64)], 0
    row = 0
    for texts in _pieces(_texts(column, feeds[0].on_null, reasons)):
        rows = _encoded(loaded.tokenizer, texts, row, reasons)
        row += len(texts)
        ids.append(_flat([one.ids if one is not None else () for one in rows]))
        if typed:
            types.append(_flat([one.type_ids if one is not None else () for one in rows]))
        lengths.append(np.fromiter((len(one) if one is not None else 0 for one in rows), np.int64, len(rows)))
        truncated += sum(one is not None and len(one) >= max_length and bool(one.overflowing) for one in rows)
    counts = np.concatenate(lengths)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat_types = np.concatenate(types) if typed else None
    return _Tokenised(np.concatenate(ids), flat_types, offsets, counts, loaded, reasons, truncated)


def _flat(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), np.uint32, sum(map(len, rows)))


def _texts(column: pa.ChunkedArray, on_null: str, reasons: dict[int, str]) -> Iterator[str]:
    """Each row's text; rows without one go to `reasons` and are empty."""
    for start in range(0, len(column), _TEXTS):
        for row, value in enumerate(_strings(column.slice(start, _TEXTS)), start):
            if isinstance(value, str):
                yield value
            elif value is None and on_null != "error":
                yield on_null
            else:
                reasons[row] = "null" if value is None else "text that is not UTF-8"
                yield ""


def _strings(column: pa.ChunkedArray) -> list[str | bytes | None]:
    """Python's strings, and bytes where a writer put what is no text."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]  # pyarrow is untyped
    except UnicodeDecodeError:
        return [_string(value) for value in column]


def _string(value: pa.Scalar) -> str | bytes | None:
    try:
        return value.as_py()  # type: ignore[no-any-return]  # pyarrow is untyped
    except UnicodeDecodeError as error:
        return error.object


def _pieces(texts: Iterator[str]) -> Iterator[list[str]]:
    """As many texts as one call should take; a very long one goes alone."""
    piece: list[str] = []
    letters = 0
    for text in texts:
        if piece and (len(piece) == _TEXTS or letters + len(text) > _LETTERS):
            yield piece
            piece, letters = [], 0
        piece.append(text)
        letters += len(text)
    if piece:
        yield piece


def _encoded(tokenizer: Any, texts: list[str], first: int, reasons: dict[int, str]) -> list[Any]:  # noqa: ANN401 - as above
    """The encodings; None for a text that the tokenizer refuses, such as an unknown word where it has no token."""
    try:
        return tokenizer.encode_batch_fast(texts)  # type: ignore[no-any-return]
    except Exception as error:
        if type(error) is not Exception:  # the library raises the bare class alone; the rest is not about texts
            raise
        if len(texts) == 1:
            reasons.setdefault(first, f"text that the tokenizer refuses ({error})")
            return [None]
    middle = len(texts) // 2
    return [
        *_encoded(tokenizer, texts[:middle], first, reasons),
        *_encoded(tokenizer, texts[middle:], first + middle, reasons),
    ]
