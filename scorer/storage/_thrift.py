"""As much of Thrift's compact form as Parquet's footers and page headers are written in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


Buffer = bytes | bytearray | memoryview
YES, NO, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
Span = tuple[int, int, int]
"""A field's type, and where its value begins and ends."""
_MOST_BITS = 64
_LONG = 15  # items or steps that do not fit into half a byte


def fields(data: Buffer, at: int) -> tuple[dict[int, Span], int]:
    """Where the fields of the struct that begins here are, by number, and where it ends."""
    found: dict[int, Span] = {}
    number = 0
    while True:
        head = data[at]
        at += 1
        if not head:
            return found, at
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = integer(data, at)
        end = _behind(data, at, kind)
        found[number] = (kind, at, end)
        at = end


def integer(data: Buffer, at: int) -> tuple[int, int]:
    """The number that is written here, and where it ends."""
    value, at = _plain(data, at)
    return (value >> 1) ^ -(value & 1), at


def items(data: Buffer, at: int) -> tuple[int, int, int]:
    """Of the list that begins here, the type of its items, how many there are, and where they begin."""
    kind, many = data[at] & 15, data[at] >> 4
    at += 1
    if many == _LONG:
        many, at = _plain(data, at)
    if many > len(data) - at:  # each takes a byte at the least
        raise ValueError(many)
    return kind, many, at


def number(value: int) -> bytes:
    """A number of any width, written."""
    return _varint(value * 2 if value >= 0 else -value * 2 - 1)


def binary(value: bytes) -> bytes:
    """Bytes or text, written."""
    return _varint(len(value)) + value


def listed(kind: int, values: Sequence[bytes]) -> bytes:
    """Values of one type, written."""
    many = len(values)
    head = bytes([many << 4 | kind]) if many < _LONG else bytes([_LONG << 4 | kind]) + _varint(many)
    return head + b"".join(values)


def struct(values: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Fields with rising numbers (number, type, value), written."""
    pieces, last = [], 0
    for at, kind, value in values:
        step = at - last
        pieces += [bytes([step << 4 | kind]) if 0 < step <= _LONG else bytes([kind]) + number(at), value]
        last = at
    return b"".join(pieces) + b"\0"


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _plain(data: Buffer, at: int) -> tuple[int, int]:
    byte = data[at]
    at += 1
    if byte < 0x80:  # noqa: PLR2004 - the last seven bits
        return byte, at
    value, shift = byte & 0x7F, 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - as above
            return value, at
        shift += 7
        if shift > _MOST_BITS:
            raise ValueError(shift)


def _behind(data: Buffer, at: int, kind: int) -> int:
    """Where a value of this type ends."""
    if kind <= NO:
        return at
    if kind in (I16, I32, I64):
        while data[at] >= 0x80:  # noqa: PLR2004 - as above
            at += 1
        return at + 1
    if kind == BINARY:
        length, at = _plain(data, at)
        return at + length
    if kind == STRUCT:
        return fields(data, at)[1]
    if kind in (LIST, SET):
        kind, many, at = items(data, at)
        if kind <= BYTE:  # a truth in a list takes a byte
            return at + many
        for _ in range(many):
            at = _behind(data, at, kind)
        return at
    if kind in (BYTE, DOUBLE):
        return at + (1 if kind == BYTE else 8)
    raise ValueError(kind)
