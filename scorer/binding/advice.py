"""Suggest --feed and --fetch lines for a model, before any data is read: lines to paste and fill in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.binding.features import text
from scorer.binding.feeds import looks_like_pictures, row_shape
from scorer.binding.spec import MAX_LISTED
from scorer.options.grammar import split_known

if TYPE_CHECKING:
    from collections.abc import Container

    from scorer.model.spec import ModelSpec, TensorSpec


_TOKENS = 3  # axes of [N, tokens, values]


def feed_lines(model: ModelSpec, fed: Container[str] = ()) -> list[str]:
    """Return a --feed for each input that is not fed, with COLUMN in place of a name.

    Token tensors of one text share a line.
    """
    names = [tensor.name for tensor in model.inputs]
    roles, of_folder = text.roles(names), {split_known(one, names)[0]: one for one in model.feeds}
    lines = []
    for tensor in model.inputs:
        role = roles.get(tensor.name) if tensor.type.startswith("int") else None
        if tensor.name not in fed and tensor.name in of_folder:
            lines.append(_line("--feed", of_folder[tensor.name]))
        elif tensor.name not in fed and role in {None, "ids"}:
            source = "COLUMN|text(tokenizer.json)" if role else _source(tensor)
            lines.append(_line("--feed", f"{tensor.name}={source}") + _remark(source))
    return lines


def fetch_lines(model: ModelSpec) -> list[str]:
    """Return what the model's folder says, else a --fetch for each output, with steps if its shape suggests them."""
    if model.fetches:
        return [_line("--fetch", text) for text in model.fetches]
    masks = [name for name, role in text.roles([tensor.name for tensor in model.inputs]).items() if role == "mask"]
    lines = []
    for tensor in model.outputs:
        steps = ""
        if masks and tensor.shape is not None and len(tensor.shape) == _TOKENS:
            steps = f"|mean_pool({masks[0]})|normalize=embedding"
        lines.append(_line("--fetch", f"{tensor.name}{steps}"))
    return lines


def _source(tensor: TensorSpec) -> str:
    """Return the columns or the converter that suit a tensor of this shape."""
    row = row_shape(tensor)
    if tensor.shape == ():
        return "const(VALUE)"
    if looks_like_pictures(tensor) and row is not None:
        height, width = row[1:] if row[0] in {1, 3} else row[:2]
        size = f"{height or 'any'}x{width or 'any'}" if height or width else "HEIGHTxWIDTH"
        return f"COLUMN|image(size={size}, layout={'NCHW' if row[0] in {1, 3} else 'NHWC'})"
    if row is not None and len(row) == 1 and row[0] is not None and 1 < row[0] <= MAX_LISTED:
        return ",".join(["COLUMN"] * row[0])
    if row is not None and len(row) == 1 and (row[0] or 0) > MAX_LISTED:
        return f"f0..f{(row[0] or 0) - 1}"
    return "COLUMN"


def _remark(source: str) -> str:
    """Return a comment for a source that is a range of columns with made-up names; a shell ignores it."""
    first, dots, last = source.partition("..f")
    return f"  # {int(last) + 1} columns by their own names, or one column of lists" if dots and first == "f0" else ""


def _line(flag: str, value: str) -> str:
    return f"{flag} '" + value.replace("'", "'\"'\"'") + "'"
