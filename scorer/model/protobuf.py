"""Look at the model by reading its protobuf, making no session.

Tensors, types, digest (external data too), operators, class labels, feature names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.errors import ModelError, ModelLoadError, ModelNotFound
from scorer.model.spec import ModelSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


FEATURE_KEYS = ("feature_names", "features", "input_features", "columns")
_BATCH_COUPLED = {"DynamicQuantizeLinear": "its scale is computed over the whole batch"}
_MAX_PROTOBUF = 2**31 - 1
_POINTER = b"version https://git-lfs"


def inspect_model(path: str | Path) -> ModelSpec:
    """What the model at `path` takes and gives.

    Parameters
    ----------
    path
        An ``.onnx`` file. External data is looked for beside it.

    Examples
    --------
    >>> spec = inspect_model("examples/flights/late.onnx")
    >>> [tensor.name for tensor in spec.outputs]
    ['label', 'probabilities']

    """
    if "://" in str(path):
        what, hint = "the model is a URL", "copy it to a local or shared file system first"
        raise ModelNotFound(what, str(path), "a local path", "a URL", hint)
    path = Path(path).absolute()
    proto = _parse(path)
    try:
        spec = _spec(proto, path)
        json.dumps(spec.to_dict())  # names that are no text would fail later, on the way to a report
    except (ValueError, TypeError, IndexError, UnicodeError) as error:
        raise _broken(path, f"a protobuf whose parts do not fit: {error}") from error
    return spec


def _spec(proto: onnx.ModelProto, path: Path) -> ModelSpec:
    """What the protobuf says."""
    external = _external(proto, path)
    graph = proto.graph
    weights = {weight.name for weight in graph.initializer}
    labels, zipmaps = _labels(graph)
    operators: dict[str, int] = {}
    for node in graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return ModelSpec(
        path=str(path),
        digest=_digest([path, *(path.parent / name for name in external)]),
        bytes=sum(os.path.getsize(p) for p in [path, *(path.parent / name for name in external)]),
        files=external,
        inputs=tuple(_tensor(value) for value in graph.input if value.name not in weights),
        outputs=tuple(_tensor(value) for value in graph.output),
        feature_names=_feature_names(metadata),
        class_labels=labels,
        zipmaps=zipmaps,
        operators=dict(sorted(operators.items())),
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        metadata=metadata,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        coupled=tuple(f"{op}: {why}" for op, why in _BATCH_COUPLED.items() if op in operators),
    )


def digest_of(path: str, files: tuple[str, ...]) -> str:
    """The digest of a model that was inspected before."""
    return _digest([Path(path), *(Path(path).parent / name for name in files)])


def _parse(path: Path) -> onnx.ModelProto:
    hint = "check the path of --model"
    if not os.path.isfile(path):
        what, found = "the model is not there", "a folder" if os.path.isdir(path) else "nothing"
        raise ModelNotFound(what, str(path), "an .onnx file", found, hint)
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with onnx

    size = path.stat().st_size
    try:
        if size > _MAX_PROTOBUF:
            raise ValueError(f"{size} bytes in one protobuf, of at most 2 GiB")  # noqa: TRY301 - mapped below
        proto = _protobufs().ModelProto.FromString(path.read_bytes())
    except PermissionError as error:
        what, hint = "the model cannot be read", "ask its owner for the right to read it"
        raise ModelNotFound(what, str(path), "a file that this user may read", "no permission", hint) from error
    except (OSError, ValueError, DecodeError) as error:
        raise _broken(path, str(error) or type(error).__name__) from error
    if not proto.graph.output or not proto.opset_import:
        raise _broken(path, f"{size} bytes that hold no graph with outputs")
    return proto


@cache
def _protobufs() -> Any:  # noqa: ANN401 - a module
    """The classes of ONNX's protobufs alone: the package around them takes three times as long to import."""
    package = importlib.util.find_spec("onnx")
    there = Path(package.origin).with_name("onnx_ml_pb2.py") if package is not None and package.origin else Path()
    spec = importlib.util.spec_from_file_location("scorer's onnx_ml_pb2", there) if there.is_file() else None
    if "onnx" in sys.modules or spec is None or spec.loader is None:
        import onnx  # noqa: PLC0415 - only the driver reads protobufs

        return onnx
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _broken(path: Path, found: str) -> ModelLoadError:
    what, hint = "the model is not an ONNX model", "export or copy it again"
    with suppress(OSError), path.open("rb") as file:
        found = "a Parquet file" if file.read(4) == b"PAR1" else found
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            hint = "this is a Git LFS pointer: `git lfs pull` fetches the model"
    return ModelLoadError(what, str(path), "an ONNX protobuf with a graph", found[:200], hint)


def _external(proto: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Names of external data files, which must lie in the model's own folder."""
    names = {
        entry.value
        for graph in _graphs(proto.graph)
        for tensor in _tensors(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    for name in sorted(names):
        target = (folder / name).resolve()
        if not target.is_relative_to(folder):
            what, hint = "the model's external data lies outside its folder", "export the model into one folder"
            raise ModelError(what, str(path), f"files in {folder}", repr(name), hint)
        if not os.path.isfile(target):
            what, hint = "the model's external data is not there", "keep the data file beside the model"
            raise ModelNotFound(what, str(path), repr(name), "no such file", hint)
    return tuple(sorted(names))


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes: branches and loop bodies."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Weights and constants of one graph."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return TensorSpec(name=value.name, type=kind.removesuffix("_type"), shape=None)
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_size(d) for d in tensor.shape.dim)
    name = _protobufs().TensorProto.DataType.Name(tensor.elem_type).lower()
    return TensorSpec(name=value.name, type={"float": "float32", "double": "float64"}.get(name, name), shape=shape)


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A dimension; PaddlePaddle writes -1 where it is free."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _labels(graph: onnx.GraphProto) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Class labels of a classifier, and those of each ZipMap output."""
    classes: tuple[str, ...] = ()
    zipmaps: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        found: tuple[str, ...] = ()
        for attribute in node.attribute:
            if attribute.name in {"classlabels_strings", "classlabels_int64s"}:
                raw = [text.decode("utf-8", "replace") for text in attribute.strings] or list(attribute.ints)
                found = tuple(str(label) for label in raw) or found
            elif attribute.name == "classlabels_ints" and not found:
                found = tuple(str(label) for label in attribute.ints)
        if node.op_type == "ZipMap":
            zipmaps[node.output[0]] = found
        elif found and node.domain == "ai.onnx.ml":
            classes = found
    return classes, zipmaps


def _feature_names(metadata: dict[str, str]) -> tuple[str, ...]:
    for key in FEATURE_KEYS:
        text = metadata.get(key, "").strip()
        if not text:
            continue
        try:
            names = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            names = [name.strip() for name in text.split(",")]
        if isinstance(names, list) and names and all(isinstance(name, str) and name for name in names):
            return tuple(names)
    return ()
