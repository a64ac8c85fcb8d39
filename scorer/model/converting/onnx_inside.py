"""Folders of Hugging Face and MLflow that have an ONNX model: the model with what the folder says about it.

There is no original to compare with. Class names and columns go into the metadata; the tokenizer and the pooling
become flags of a run.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import onnx

from scorer.errors import ModelError, ModelLoadError
from scorer.model.converting import gate
from scorer.model.converting.graphs import CLASSES, FEATURES, describe
from scorer.model.converting.request import Converted
from scorer.model.protobuf import inspect_model
from scorer.model.spec import CONVERSION, flags_of
from scorer.options.grammar import split_names

if TYPE_CHECKING:
    from scorer.model.converting.request import Request
    from scorer.model.converting.sources import Source

_MOST_BYTES = 2**31 - 1


def taken(request: Request) -> Converted:
    """Return the model of the folder, with what the folder says about it."""
    source = request.source
    if source.path == source.file:
        raise ModelError(
            "the model is ONNX already", where=source.path, expected="a model of another library",
            found="an ONNX model", hint=f"pass it to a run: --model {source.path}",
        )  # fmt: skip
    spec = inspect_model(source.path)
    model = _read(source)
    gate.Runtime(model)
    entries: dict[str, Any] = {}
    if spec.labels:
        entries[CLASSES] = split_names(spec.labels[0])
    if source.columns and len(spec.inputs) == 1:
        entries[FEATURES] = list(source.columns)
    record = {"model": os.path.basename(source.path.rstrip("/")), "format": source.words, "rows": 0}
    describe(model, entries | {CONVERSION: record})
    return Converted(
        model=model.SerializeToString(),
        record=record,
        features=source.columns,
        flags=flags_of(feed=spec.feeds, fetch=spec.fetches),
        notes=spec.notes,
    )


def _read(source: Source) -> onnx.ModelProto:
    """Return the model with its weights inside."""
    size = sum(os.path.getsize(os.path.join(os.path.dirname(source.file), name)) for name in _beside(source.file))
    if size > _MOST_BYTES:
        raise ModelError(
            "the model is too large for one file", where=source.file, expected="at most 2 GiB", found=f"{size} bytes",
            hint=f"pass it to a run where it is: --model {source.file}",
        )  # fmt: skip
    try:
        return onnx.load(source.file)
    except Exception as error:
        raise ModelLoadError(
            "the model does not load", where=source.file, expected="an ONNX model", found=type(error).__name__,
            hint="download or copy the folder again",
        ) from error  # fmt: skip


def _beside(file: str) -> list[str]:
    """Return the model's file and those that may hold its weights."""
    name = os.path.basename(file)
    return [name, *(one for one in os.listdir(os.path.dirname(file)) if one in {f"{name}_data", f"{name}.data"})]
