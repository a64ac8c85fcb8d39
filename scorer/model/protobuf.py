"""Read what a model's file says, without creating a session.

This is its tensors and types, operators, class labels, feature names, the columns that its trees never look at, and
its digest, external data included.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.display.words import cut, is_utf8
from scorer.errors import InputError, ModelError, ModelLoadError, ModelNotFound
from scorer.locations import is_tracked, is_url, normal
from scorer.model._columns import unused_columns
from scorer.model.copies import Copy, digest_of, fetch, root
from scorer.model.spec import ModelSpec, TensorSpec
from scorer.options.values import PATH
from scorer.options.wrong_types import wrong_type
from scorer.storage import stores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        An ``.onnx`` file: a path as text or as a ``Path``, or a URL. External data must be in the same folder.
        Or a folder of Hugging Face or MLflow with such a file, or the name of a model in a tracking store of MLflow.

    Examples
    --------
    >>> spec = inspect_model("examples/flights/late.onnx")
    >>> [tensor.name for tensor in spec.outputs]
    ['label', 'probabilities']

    """
    if not isinstance(path, str | Path):
        raise wrong_type("model", path, PATH)
    text = str(path)
    if is_tracked(text) or os.path.isdir(text) or (is_url(text) and not text.endswith(".onnx")):
        from scorer.model.locating.located import locate  # noqa: PLC0415 - only for models that are no file

        found = locate(text)
        return found.completed(_inspect_file(found.path))
    return _inspect_file(text)


def _inspect_file(location: str) -> ModelSpec:
    """Return the properties of the model in a file."""
    if is_url(location):
        return _inspect_fetched(normal(location))
    path = Path(location).absolute()
    if not is_utf8(str(path)):
        raise ModelLoadError(
            "the path of the model is not valid UTF-8",
            where=str(path),
            expected="a path in UTF-8, with its folders",
            found=repr(path.name),
            hint="rename it, or make a link to it with another name",
        )
    proto = _parse(path, str(path))
    with _damage_as_errors(path, str(path)):
        names = _external(proto, path, str(path))
        return _spec(proto, path, Copy(str(path), digest_of(path, names), names))


def _inspect_fetched(url: str) -> ModelSpec:
    """Return the properties of a model behind a URL, from its copy in the model cache."""

    def names_in(path: Path) -> tuple[str, ...]:
        proto = _parse(path, url)
        with _damage_as_errors(path, url):
            return _external_names(proto, path, url)

    try:
        copy = fetch(url, names_in, _MAX_PROTOBUF_BYTES)
    except InputError as error:  # no such protocol, or its package is missing
        raise ModelNotFound(error.what, url, error.expected, error.found, error.hint) from error
    except OSError as error:
        raise _not_fetched(url, error) from error
    path = Path(copy.path)
    proto = _parse(path, url)
    with _damage_as_errors(path, url):
        return _spec(proto, path, replace(copy, path=url))


@contextmanager
def _damage_as_errors(path: Path, shown: str) -> Iterator[None]:
    """Convert what a damaged protobuf raises to `ModelLoadError`."""
    try:
        yield
    except (ValueError, TypeError, IndexError, UnicodeError) as error:
        raise _not_onnx(path, f"an inconsistent protobuf: {error}", shown) from error


def _spec(proto: onnx.ModelProto, path: Path, shown: Copy) -> ModelSpec:
    """Return the properties of the model from its protobuf; `shown` is where the user has it, and its digest."""
    graph = proto.graph
    weights = {weight.name for weight in graph.initializer}
    labels, zipmaps = _labels(graph)
    operators: dict[str, int] = {}
    for node in graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    spec = ModelSpec(
        path=shown.path,
        digest=shown.digest,
        bytes=sum(os.path.getsize(p) for p in [path, *(path.parent / name for name in shown.files)]),
        files=shown.files,
        inputs=tuple(_tensor(value) for value in graph.input if value.name not in weights),
        outputs=tuple(_tensor(value) for value in graph.output),
        feature_names=_names_in(metadata, FEATURE_KEYS),
        class_labels=labels or _names_in(metadata, ("class_labels",)),
        zipmaps=zipmaps,
        operators=dict(sorted(operators.items())),
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        metadata=metadata,
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        coupled=tuple(f"{op}: {why}" for op, why in _BATCH_COUPLED.items() if op in operators),
        unused=unused_columns(proto),
    )
    json.dumps(spec.to_dict())  # fail now if a name is not valid text, not later in a report
    return spec


def read_graph(path: str) -> onnx.ModelProto:
    """Return the protobuf of a model that `inspect_model` accepted."""
    return _parse(Path(path), path)


def element_type(text: str) -> int:
    """Return ONNX's number of the type that the runtime writes as tensor(float); 0 if it is no tensor."""
    if not text.startswith("tensor("):
        return 0
    return int(protobufs().TensorProto.DataType.Value(text.removeprefix("tensor(").removesuffix(")").upper()))


def _parse(path: Path, shown: str) -> onnx.ModelProto:
    """Return the protobuf in a file, or raise; `shown` is the path or the URL that errors name."""
    if not os.path.isfile(path):
        from scorer.storage.formats import recognise  # noqa: PLC0415 - only for an error

        if os.path.isdir(path) and recognise(str(path)) is not None:
            raise _not_onnx(path, "a folder", shown)
        raise ModelNotFound(
            "the model does not exist",
            where=shown,
            expected="an .onnx file",
            found="a folder" if os.path.isdir(path) else "nothing",
            hint="check the path of --model",
        )
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with onnx

    size = path.stat().st_size
    try:
        if size > _MAX_PROTOBUF_BYTES:
            raise ValueError(_too_large(size))  # noqa: TRY301 - mapped below
        proto = protobufs().ModelProto.FromString(path.read_bytes())
    except PermissionError as error:
        raise ModelNotFound(
            "the model cannot be read",
            where=shown,
            expected="a file that this user may read",
            found="no permission",
            hint="ask its owner for permission to read it",
        ) from error
    except (OSError, ValueError, DecodeError) as error:
        raise _not_onnx(path, str(error) or type(error).__name__, shown) from error
    if not proto.graph.output or not proto.opset_import:
        raise _not_onnx(path, f"{size} bytes without a graph that has outputs", shown)
    return proto


@cache
def protobufs() -> Any:  # noqa: ANN401 - a module
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


def _too_large(size: int) -> str:
    return f"a protobuf of {size} bytes; the limit is 2 GiB"


def _not_onnx(path: Path, found: str, shown: str) -> ModelLoadError:
    """Return the error for a file that is no ONNX model: what it is instead, and what converts it."""
    from scorer.storage.formats import how_to_convert, recognise  # noqa: PLC0415 - only for an error

    other = recognise(str(path))
    hint = "export or copy it again"
    if other is not None and is_url(shown):
        own = how_to_convert(path.name, other)
        hint = f"download it, then {own}" if path.name in own else own
    elif other is not None:
        hint = how_to_convert(str(path), other)
    return ModelLoadError(
        "the file is not an ONNX model",
        where=shown,
        expected="an ONNX protobuf with a graph",
        found=cut(found) if other is None else other.name,
        hint=hint,
    )


def _not_fetched(url: str, error: OSError) -> ModelError:
    """Return the error for a model that could not be fetched from its store."""
    words, number, where = error.strerror or str(error), error.errno, str(error.filename or url)
    again = "repeat the command; if it fails again, check the server and the network"
    if isinstance(error, FileNotFoundError):
        if where != url:
            return _external_missing(url, repr(where), f"copy the data file to {where}")
        return ModelNotFound(
            "the model does not exist",
            where=url,
            expected="an .onnx file",
            found=_found_instead(url),
            hint="check the URL of --model",
        )
    if isinstance(error, PermissionError):
        return ModelNotFound(
            "the model cannot be read",
            where=where,
            expected="a file that these credentials may read",
            found=cut(words),
            hint="check the credentials in the environment of this process, and what they may read",
        )
    if number == errno.EFBIG:
        return _not_onnx(Path(), _too_large(int(words.split()[0])), url)
    if number in {errno.ENOSPC, errno.EDQUOT}:
        return ModelError(
            "there is no room for a copy of the model",
            where=str(root()),
            expected="enough free space",
            found=words,
            hint="free some space there, or set TMPDIR to a folder on a larger disk",
        )
    return ModelError(
        "the model cannot be downloaded", where=where, expected="the whole file", found=cut(words), hint=again
    )


def _found_instead(url: str) -> str:
    try:
        return "a folder" if stores.is_folder(stores.path_of(url)) else "nothing"
    except OSError as error:  # such as a bucket that does not exist
        return cut(f"nothing; {error.strerror}", 300) if stores.can_list(url) else "nothing"


def _external_missing(shown: str, name: str, hint: str) -> ModelNotFound:
    return ModelNotFound(
        "the model's external data is missing", where=shown, expected=name, found="no such file", hint=hint
    )


def _external(proto: onnx.ModelProto, path: Path, shown: str) -> tuple[str, ...]:
    """Return the names of the external data files; raise if one is missing or outside the model's folder."""
    names = _external_names(proto, path, shown)
    missing = next((name for name in names if not os.path.isfile(path.parent / name)), None)
    if missing is not None:
        raise _external_missing(shown, repr(missing), "copy the data file into the model's folder")
    return names


def _external_names(proto: onnx.ModelProto, path: Path, shown: str) -> tuple[str, ...]:
    """Return the names of the external data files; raise if one is outside the model's folder.

    The whole protobuf is searched, not only its graph: a tensor may also be in a function, a branch or an attribute.
    """
    names: set[str] = set()
    for found in _tensors_and_nodes(proto):
        if found.DESCRIPTOR.name == "TensorProto":
            names.update(entry.value for entry in found.external_data if entry.key == "location")
        elif found.op_type == "EPContext":
            _refuse_engine_files(found, shown)
    folder = path.parent.resolve()
    for name in sorted(names):
        if not (folder / name).resolve().is_relative_to(folder):
            raise ModelError(
                "the model's external data is outside its folder",
                where=shown,
                expected=f"files in {shown.rpartition('/')[0] if is_url(shown) else folder}",
                found=repr(name),
                hint="export the model into one folder",
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


def _refuse_engine_files(node: onnx.NodeProto, shown: str) -> None:
    """Raise if an engine that TensorRT compiled, or its weights, are in another file: the digest would not change."""
    own = {attribute.name: attribute for attribute in node.attribute}
    engine = own.get("ep_cache_context") if "embed_mode" in own and own["embed_mode"].i == 0 else None
    weights = own.get("onnx_model_filename")
    named = [attribute.s.decode("utf-8", "replace") for attribute in (engine, weights) if attribute is not None]
    if any(named):
        raise ModelError(
            "the model's compiled engine is in another file",
            where=shown,
            expected="an engine inside the model",
            found=", ".join(repr(name) for name in named if name),
            hint="export it with ep.context_embed_mode=1, or use the model that it was compiled from",
        )


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return TensorSpec(name=value.name, type=kind.removesuffix("_type"), shape=None)
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(_size(d) for d in tensor.shape.dim)
    name = protobufs().TensorProto.DataType.Name(tensor.elem_type).lower()
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


def _names_in(metadata: dict[str, str], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the names that the first of these entries lists."""
    for key in keys:
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
