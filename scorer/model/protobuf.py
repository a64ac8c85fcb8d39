"""Read what a model's file says, without creating a session.

This is its tensors and types, operators, class labels, feature names, and its digest, external data included.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.display.words import cut, is_utf8
from scorer.errors import ModelError, ModelLoadError, ModelNotFound
from scorer.model.spec import ModelSpec, TensorSpec
from scorer.options.values import PATH
from scorer.options.wrong_types import wrong_type

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


FEATURE_KEYS = ("feature_names", "features", "input_features", "columns")
_BATCH_COUPLED = {"DynamicQuantizeLinear": "its scale is computed over the whole batch"}
_MAX_PROTOBUF_BYTES = 2**31 - 1
_WITHOUT_TENSORS = {"ValueInfoProto", "StringStringEntryProto", "OperatorSetIdProto"}  # not searched, to save time


def inspect_model(path: str | Path) -> ModelSpec:
    """Return the inputs, outputs and other properties of the model at `path`.

    Parameters
    ----------
    path
        An ``.onnx`` file, as text or as a ``Path``. External data must be in the same folder.

    Examples
    --------
    >>> spec = inspect_model("examples/flights/late.onnx")
    >>> [tensor.name for tensor in spec.outputs]
    ['label', 'probabilities']

    """
    if not isinstance(path, str | Path):
        raise wrong_type("model", path, PATH)
    if "://" in str(path):
        raise ModelNotFound(
            "the model is a URL",
            where=str(path),
            expected="a local path",
            found="a URL",
            hint="copy it to a local or shared file system first",
        )
    path = Path(path).absolute()
    if not is_utf8(str(path)):
        raise ModelLoadError(
            "the path of the model is not valid UTF-8",
            where=str(path),
            expected="a path in UTF-8, with its folders",
            found=repr(path.name),
            hint="rename it, or make a link to it with another name",
        )
    proto = _parse(path)
    try:
        spec = _spec(proto, path)
        json.dumps(spec.to_dict())  # fail now if a name is not valid text, not later in a report
    except (ValueError, TypeError, IndexError, UnicodeError) as error:
        raise _not_onnx(path, f"an inconsistent protobuf: {error}") from error
    return spec


def _spec(proto: onnx.ModelProto, path: Path) -> ModelSpec:
    """Return the properties of the model from its protobuf."""
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


def read_graph(path: str) -> onnx.ModelProto:
    """Return the protobuf of a model that `inspect_model` accepted."""
    return _parse(Path(path))


def element_type(text: str) -> int:
    """Return ONNX's number of the type that the runtime writes as tensor(float); 0 if it is no tensor."""
    if not text.startswith("tensor("):
        return 0
    return int(_protobufs().TensorProto.DataType.Value(text.removeprefix("tensor(").removesuffix(")").upper()))


def digest_of(path: str, files: tuple[str, ...]) -> str:
    """Return the digest of a model and its external data `files`."""
    return _digest([Path(path), *(Path(path).parent / name for name in files)])


def _parse(path: Path) -> onnx.ModelProto:
    if not os.path.isfile(path):
        if os.path.isfile(path / "saved_model.pb"):
            raise _not_onnx(path, "a folder")
        raise ModelNotFound(
            "the model does not exist",
            where=str(path),
            expected="an .onnx file",
            found="a folder" if os.path.isdir(path) else "nothing",
            hint="check the path of --model",
        )
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with onnx

    size = path.stat().st_size
    try:
        if size > _MAX_PROTOBUF_BYTES:
            raise ValueError(f"a protobuf of {size} bytes; the limit is 2 GiB")  # noqa: TRY301 - mapped below
        proto = _protobufs().ModelProto.FromString(path.read_bytes())
    except PermissionError as error:
        raise ModelNotFound(
            "the model cannot be read",
            where=str(path),
            expected="a file that this user may read",
            found="no permission",
            hint="ask its owner for permission to read it",
        ) from error
    except (OSError, ValueError, DecodeError) as error:
        raise _not_onnx(path, str(error) or type(error).__name__) from error
    if not proto.graph.output or not proto.opset_import:
        raise _not_onnx(path, f"{size} bytes without a graph that has outputs")
    return proto


@cache
def _protobufs() -> Any:  # noqa: ANN401 - a module
    """Return ONNX's protobuf module only: importing the whole package takes three times as long."""
    package = importlib.util.find_spec("onnx")
    source = Path(package.origin).with_name("onnx_ml_pb2.py") if package is not None and package.origin else Path()
    spec = importlib.util.spec_from_file_location("scorer's onnx_ml_pb2", source) if source.is_file() else None
    if "onnx" in sys.modules or spec is None or spec.loader is None:
        import onnx  # noqa: PLC0415 - only the driver reads protobufs

        return onnx
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _not_onnx(path: Path, found: str) -> ModelLoadError:
    """Return the error for a file that is no ONNX model: what it is instead, and what converts it."""
    from scorer.storage.formats import how_to_convert, recognise  # noqa: PLC0415 - only for an error

    other = recognise(str(path))
    return ModelLoadError(
        "the file is not an ONNX model",
        where=str(path),
        expected="an ONNX protobuf with a graph",
        found=cut(found) if other is None else other.name,
        hint="export or copy it again" if other is None else how_to_convert(str(path), other),
    )


def _external(proto: onnx.ModelProto, path: Path) -> tuple[str, ...]:
    """Return the names of the external data files; raise if one is missing or outside the model's folder.

    The whole protobuf is searched, not only its graph: a tensor may also be in a function, a branch or an attribute.
    """
    names: set[str] = set()
    for found in _tensors_and_nodes(proto):
        if found.DESCRIPTOR.name == "TensorProto":
            names.update(entry.value for entry in found.external_data if entry.key == "location")
        elif found.op_type == "EPContext":
            _refuse_engine_files(found, path)
    folder = path.parent.resolve()
    for name in sorted(names):
        target = (folder / name).resolve()
        if not target.is_relative_to(folder):
            raise ModelError(
                "the model's external data is outside its folder",
                where=str(path),
                expected=f"files in {folder}",
                found=repr(name),
                hint="export the model into one folder",
            )
        if not os.path.isfile(target):
            raise ModelNotFound(
                "the model's external data is missing",
                where=str(path),
                expected=repr(name),
                found="no such file",
                hint="copy the data file into the model's folder",
            )
    return tuple(sorted(names))


def _tensors_and_nodes(message: Any) -> Iterator[Any]:  # noqa: ANN401 - protobuf has no types
    """Yield all tensors and nodes inside a message, at any depth: in graphs, functions, attributes and elsewhere."""
    for field, value in message.ListFields():
        kind = field.message_type.name if field.message_type is not None else ""
        if not kind or kind in _WITHOUT_TENSORS:
            continue
        inner = (value,) if hasattr(value, "ListFields") else value
        if kind in {"TensorProto", "NodeProto"}:
            yield from inner
        if kind != "TensorProto":
            for one in inner:
                yield from _tensors_and_nodes(one)


def _refuse_engine_files(node: onnx.NodeProto, path: Path) -> None:
    """Raise if an engine that TensorRT compiled, or its weights, are in another file: the digest would not change."""
    own = {attribute.name: attribute for attribute in node.attribute}
    engine = own.get("ep_cache_context") if "embed_mode" in own and own["embed_mode"].i == 0 else None
    weights = own.get("onnx_model_filename")
    named = [attribute.s.decode("utf-8", "replace") for attribute in (engine, weights) if attribute is not None]
    if any(named):
        raise ModelError(
            "the model's compiled engine is in another file",
            where=str(path),
            expected="an engine inside the model",
            found=", ".join(repr(name) for name in named if name),
            hint="export it with ep.context_embed_mode=1, or use the model that it was compiled from",
        )


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
    """Return a dimension; None if it is free, which PaddlePaddle writes as -1."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return dim.dim_param or None


def _labels(graph: onnx.GraphProto) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the class labels of a classifier, and those of each ZipMap output."""
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
