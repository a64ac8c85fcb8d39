"""Read and write the part of Thrift's compact protocol that Parquet's footers and page headers use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


Buffer = bytes | bytearray | memoryview
YES, NO, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
Span = tuple[int, int, int]
"""A field's type, and the start and end of its value."""
_MOST_BITS = 64
_LONG = 15  # from here on, a count or step does not fit into half a byte


def fields(data: Buffer, at: int) -> tuple[dict[int, Span], int]:
    """Return the fields of the struct at `at`, by number, and the end of the struct."""
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
        end = _end_of(data, at, kind)
        found[number] = (kind, at, end)
        at = end


def integer(data: Buffer, at: int) -> tuple[int, int]:
    """Return the integer at `at`, and its end."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def items(data: Buffer, at: int) -> tuple[int, int, int]:
    """Return the item type of the list at `at`, the number of items, and the start of the first."""
    kind, count = data[at] & 15, data[at] >> 4
    at += 1
    if count == _LONG:
        count, at = _unsigned(data, at)
    if count > len(data) - at:  # each takes at least one byte
        raise ValueError(count)
    return kind, count, at


def number(value: int) -> bytes:
    """Return an integer of any width, encoded."""
    return _varint(value * 2 if value >= 0 else -value * 2 - 1)


def binary(value: bytes) -> bytes:
    """Return bytes or text, encoded."""
    return _varint(len(value)) + value


def listed(kind: int, values: Sequence[bytes]) -> bytes:
    """Return a list of encoded values of one type."""
    count = len(values)
    head = bytes([count << 4 | kind]) if count < _LONG else bytes([_LONG << 4 | kind]) + _varint(count)
    return head + b"".join(values)


def struct(values: Iterable[tuple[int, int, bytes]]) -> bytes:
    """Return a struct of encoded fields (number, type, value) in ascending order."""
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


def _unsigned(data: Buffer, at: int) -> tuple[int, int]:
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


def _end_of(data: Buffer, at: int, kind: int) -> int:
    """Return the end of a value of this type."""
    if kind <= NO:
        return at
    if kind in (I16, I32, I64):
        while data[at] >= 0x80:  # noqa: PLR2004 - as above
            at += 1
        return at + 1
    if kind == BINARY:
        length, at = _unsigned(data, at)
        return at + length
    if kind == STRUCT:
        return fields(data, at)[1]
    if kind in (LIST, SET):
        kind, count, at = items(data, at)
        if kind <= BYTE:  # a boolean in a list takes one byte
            return at + count
        for _ in range(count):
            at = _end_of(data, at, kind)
        return at
    if kind in (BYTE, DOUBLE):
        return at + (1 if kind == BYTE else 8)
    raise ValueError(kind)
