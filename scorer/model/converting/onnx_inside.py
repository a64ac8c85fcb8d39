"""Folders of Hugging Face and MLflow that have an ONNX model: the model with what the folder says about it.

There is no original to compare with. Class names and columns go into the metadata; the tokenizer and the pooling
become flags of a run.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import onnx

from scorer.errors import ModelError, ModelLoadError
from scorer.model.converting import gate
from scorer.model.converting.graphs import CLASSES, FEATURES, describe
from scorer.model.converting.request import Converted
from scorer.model.spec import CONVERSION
from scorer.options.grammar import quoted

if TYPE_CHECKING:
    import pyarrow as pa

    from scorer.model.converting.request import Request
    from scorer.model.converting.sources import Source

_IDS, _MASK = "input_ids", "attention_mask"
_LONGEST = 100_000  # tokenizers without a limit say 1e30
_MOST_BYTES = 2**31 - 1
_POOLS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": f"mean_pool({_MASK})"}
"""Keys of a pooling's configuration, and scorer's steps."""


def taken(request: Request) -> Converted:
    """Return the model of the folder, with what the folder says about it."""
    source = request.source
    if source.path == source.file:
        raise ModelError(
            "the model is ONNX already", where=source.path, expected="a model of another library",
            found="an ONNX model", hint=f"pass it to a run: --model {source.path}",
        )  # fmt: skip
    model = _read(source)
    gate.Runtime(model)
    entries: dict[str, Any] = {}
    flags, notes = _flags(source, model, request.table) if source.folder else ((), ())
    labels = _labels(_config(source.folder, "config.json")) if source.folder else []
    if labels:
        entries[CLASSES] = labels
    if source.columns and len(model.graph.input) == 1:
        entries[FEATURES] = list(source.columns)
    record = {"model": os.path.basename(source.path.rstrip("/")), "format": source.words, "rows": 0}
    describe(model, entries | {CONVERSION: record})
    return Converted(
        model=model.SerializeToString(), record=record, features=source.columns, flags=tuple(flags), notes=tuple(notes)
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


def _config(folder: str, name: str) -> dict[str, Any]:
    """Return a JSON object of the folder; {} if there is none."""
    with suppress(OSError, ValueError, RecursionError), open(os.path.join(folder, name), encoding="utf-8") as file:
        found = json.load(file)
        if isinstance(found, dict):
            return found
        if isinstance(found, list):
            return {str(at): one for at, one in enumerate(found)}
    return {}


def _labels(config: dict[str, Any]) -> list[str]:
    """Return the names of the classes; [] if they are only numbered."""
    found = config.get("id2label")
    if not isinstance(found, dict) or not all(str(at) in found for at in range(len(found))):
        return []
    names = [str(found[str(at)]) for at in range(len(found))]
    return [] if len(names) < 2 or all(name.startswith("LABEL_") for name in names) else names  # noqa: PLR2004 - classes


def _flags(source: Source, model: onnx.ModelProto, table: pa.Table) -> tuple[list[str], list[str]]:
    """Return the flags of a run that the folder describes, and what it does not say."""
    inputs = [one.name for one in model.graph.input]
    if _IDS not in inputs:
        return [], []
    tokenizer = os.path.join(source.folder, "tokenizer.json")
    if not os.path.isfile(tokenizer):
        return [], ["the folder has no tokenizer.json, so the tokens of a text are not known"]
    texts = [field.name for field in table.schema if str(field.type) in {"string", "large_string"}]
    column = quoted(texts[0]) if len(texts) == 1 else "COLUMN"
    length = _length(source.folder)
    limit = f", max_length={length}" if length else ""
    flags = ["--feed", f"{_IDS}={column}|text({_in_call(tokenizer)}{limit})"]
    outputs = [one.name for one in model.graph.output]
    for fetch in _fetches(source.folder, outputs):
        flags += ["--fetch", fetch]
    return flags, [] if len(texts) == 1 else ["replace COLUMN by the column of texts"]


def _in_call(path: str) -> str:
    """Return a path as the argument of a converter."""
    return path if path.replace("/", "").replace(".", "").replace("-", "").replace("_", "").isalnum() else f"'{path}'"


def _length(folder: str) -> int:
    """Return the longest text in tokens, 0 if nothing says it."""
    places = (
        ("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length"),
        ("config.json", "max_position_embeddings"),
    )  # fmt: skip
    found = (_config(folder, name).get(key) for name, key in places)
    return next((int(one) for one in found if isinstance(one, int | float) and 0 < one < _LONGEST), 0)


def _fetches(folder: str, outputs: list[str]) -> list[str]:
    """Return the outputs to write, with their steps."""
    if "sentence_embedding" in outputs:
        return ["sentence_embedding=embedding"]
    if "logits" in outputs:
        config = _config(folder, "config.json")
        if len(config.get("id2label") or {}) == 1:
            return ["logits=prediction"]
        step = "sigmoid" if config.get("problem_type") == "multi_label_classification" else "softmax"
        return [f"logits|{step}=probabilities", *(["logits|label=label"] if step == "softmax" else [])]
    pooling = _config(folder, "1_Pooling/config.json")
    pool = next((step for key, step in _POOLS.items() if pooling.get(key)), "")
    hidden = next((name for name in ("last_hidden_state", "token_embeddings") if name in outputs), "")
    if not pool or not hidden:
        return []
    steps = [one.get("type", "") for one in _config(folder, "modules.json").values() if isinstance(one, dict)]
    normal = "|normalize" if any(str(one).endswith("Normalize") for one in steps) else ""
    return [f"{hidden}|{pool}{normal}=embedding"]
