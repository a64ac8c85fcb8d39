"""The recipes: which of them fit a model, and the models that they write.

    static 8-bit     MatMul, Gemm and Conv on 8-bit integers, with ranges of the activations from calibration rows
    8-bit weights    only the weights of MatMul and Gemm, for models whose weights are large
    dynamic 8-bit    MatMul and Gemm on 8-bit integers, with ranges from each batch: only on request

The first and the last are written by ONNX Runtime's quantiser.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime as ort
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from scorer.display.words import cut, quoted_list
from scorer.errors import ModelError
from scorer.model.optimising._weights import is_matrix, is_product, with_8_bit_weights
from scorer.model.session import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    Batches = Sequence[Mapping[str, np.ndarray]]

STATIC, WEIGHTS, DYNAMIC = "static 8-bit", "8-bit weights", "dynamic 8-bit"
_PRODUCTS, _CONVOLUTION = ("MatMul", "Gemm"), "Conv"
_FLOAT_RESULTS = {"OpTypesToExcludeOutputQuantization": [*_PRODUCTS]}
"""Matrix products return float32: a third of the error, and no slower. Convolutions would be three times slower."""
_LARGE_WEIGHTS = 1_000_000  # numbers: below, reading the weights takes no time that matters
_LEAST_OPSET, _LIFTED_OPSET = 13, 17  # a scale for each channel needs 13
_WARNING, _FATAL = 2, 4  # the runtime's default for its log, and its least
_MAX_BYTES = 2**31 - 1
_TREES = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_QUANTISED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulInteger",
    "ConvInteger", "MatMulNBits", "DynamicQuantizeMatMul",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as the recipes take it."""

    proto: onnx.ModelProto
    """Without external data and without functions."""
    fitting: tuple[str, ...]
    """The recipes that may make it faster."""
    reason: str
    """Why none fits, in words; '' if one does."""


def read(path: str, shown: str, *, dynamic: bool) -> Source:
    """Read a model, and choose the recipes that may make it faster; `shown` is the path that errors name."""
    with _failures_as_errors(shown, "the model cannot be read with its external data"):
        proto = onnx.load(path)
        if proto.functions:
            from onnx import inliner  # noqa: PLC0415 - few models have functions

            proto = inliner.inline_local_functions(proto)
        size = proto.ByteSize()
    if size > _MAX_BYTES:
        return Source(proto=proto, fitting=(), reason=f"its {size / 1e9:.1f} GB are more than one ONNX file can hold")
    reason = _left_alone(proto)
    fitting = () if reason else _fitting(proto, dynamic=dynamic)
    if not fitting and not reason:
        reason = "it has no MatMul, Gemm or Conv with constant float32 weights"
    return Source(proto=proto, fitting=fitting, reason=reason)


def write(recipe: str, source: Source, calibration: Batches, folder: str) -> str:
    """Write the model that a recipe gives into a folder and return its path; raise `ModelError` if it cannot."""
    target = os.path.join(folder, f"{recipe.replace(' ', '-')}.onnx")
    with _failures_as_errors(recipe, "it cannot be written"):
        if recipe == WEIGHTS:
            model = onnx.ModelProto()
            model.CopyFrom(source.proto)
            _with_weights_as_initializers(model.graph)
            with_8_bit_weights(model)
            onnx.save(model, target)
            return target
        plain = _prepared(source.proto, os.path.join(folder, "prepared"))
        # 7 bits: pairs of products then fit into the 16 bits to which processors without VNNI add them up
        common: dict[str, Any] = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
        if recipe == DYNAMIC:
            quantize_dynamic(plain, target, op_types_to_quantize=[*_PRODUCTS], **common)
        else:
            quantize_static(
                plain, target, _Rows(calibration), activation_type=QuantType.QUInt8,
                op_types_to_quantize=[*_PRODUCTS, _CONVOLUTION], extra_options=_FLOAT_RESULTS, **common,
            )  # fmt: skip
    return target


def describe(path: str, source: onnx.ModelProto, key: str, text: str) -> bytes:
    """Return the bytes of a written model with the metadata of its source, and one more entry."""
    model = onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.extend(source.metadata_props)
    for entry in [entry for entry in model.metadata_props if entry.key == key]:
        model.metadata_props.remove(entry)
    model.metadata_props.add(key=key, value=text)
    used = {"" if node.domain == "ai.onnx" else node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in {*used, "", "ai.onnx"}]:
        model.opset_import.remove(entry)  # the runtime adds all that it knows
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    return bytes(model.SerializeToString(deterministic=True))


class _Rows(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    """Calibration rows, as the quantiser takes them."""

    def __init__(self, batches: Batches) -> None:
        self._left = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next batch; None after the last."""
        return next(self._left, None)


def _left_alone(proto: onnx.ModelProto) -> str:
    """Return why a model is not changed, in words; '' if it may be."""
    found = {node.op_type for node in proto.graph.node}
    if found & {*_TREES}:
        return "its trees are scored by scorer's compiled kernel already"
    if found & {*_CONTROL_FLOW}:
        return f"it has control flow ({quoted_list(sorted(found & {*_CONTROL_FLOW}))}), which is left alone"
    if found & {*_QUANTISED}:
        return f"it is quantised already ({quoted_list(sorted(found & {*_QUANTISED}))})"
    return ""


def _fitting(proto: onnx.ModelProto, *, dynamic: bool) -> tuple[str, ...]:
    """Return the recipes for which a model has operators with constant weights."""
    weights = {one.name: one for one in proto.graph.initializer}
    weights |= {node.output[0]: tensor for node, tensor in _constants(proto.graph)}
    floats = {name for name, one in weights.items() if one.data_type == onnx.TensorProto.FLOAT}
    nodes = [
        node for node in proto.graph.node
        if node.op_type in {*_PRODUCTS, _CONVOLUTION} and len(node.input) > 1 and node.input[1] in floats
    ]  # fmt: skip
    products = [node for node in nodes if is_product(node) and is_matrix(weights[node.input[1]])]
    numbers = sum(_count(weights[name]) for name in {node.input[1] for node in products})
    fitting = [STATIC] if nodes else []
    fitting += [WEIGHTS] if numbers >= _LARGE_WEIGHTS else []
    return (*fitting, *([DYNAMIC] if products and dynamic else ()))


def _count(weight: onnx.TensorProto) -> int:
    count = 1
    for size in weight.dims:
        count *= size
    return count


def _constants(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Return the nodes that hold a constant tensor, with the tensor: some exporters write weights in this way."""
    return [
        (node, attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]


def _with_weights_as_initializers(graph: onnx.GraphProto) -> None:
    """Turn constant nodes into initializers."""
    for node, tensor in _constants(graph):
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = node.output[0]
        graph.node.remove(node)


def _prepared(proto: onnx.ModelProto, path: str) -> str:
    """Write the model as the quantiser takes it best, and return its path: a newer opset, constants folded."""
    opset = next(entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"})
    lifted = version_converter.convert_version(proto, _LIFTED_OPSET) if opset < _LEAST_OPSET else proto
    plain = f"{path}-plain.onnx"
    onnx.save(lifted, plain)
    quant_pre_process(plain, f"{path}.onnx", skip_symbolic_shape=True)
    model = onnx.load(f"{path}.onnx")
    _with_flat_biases(model.graph)
    onnx.save(model, f"{path}.onnx")
    return f"{path}.onnx"


def _with_flat_biases(graph: onnx.GraphProto) -> None:
    """Give Gemm a bias [N] instead of [1, N], which the quantiser does not take: microsoft/onnxruntime #24815."""
    wide = {one.name: one for one in graph.initializer if list(one.dims[:1]) == [1] and len(one.dims) == 2}  # noqa: PLR2004 - rows and columns
    for node in graph.node:
        if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] in wide:  # noqa: PLR2004 - the bias
            flat = graph.initializer.add()
            flat.CopyFrom(wide[node.input[2]])
            flat.name = node.input[2] = f"{node.output[0]}_flat_bias"
            del flat.dims[0]
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for name in wide.keys() - used:
        graph.initializer.remove(wide[name])


@contextmanager
def _failures_as_errors(where: str, what: str) -> Iterator[None]:
    """Convert any failure of a library to `ModelError`; its log is not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    except (MemoryError, ModelError):
        raise
    except Exception as error:
        text = one_line(str(error)) or type(error).__name__
        raise ModelError(
            what, where=where, expected="a model that the recipe takes", found=cut(text),
            hint="check it with `scorer inspect MODEL`",
        ) from error  # fmt: skip
    finally:
        ort.set_default_logger_severity(_WARNING)
        logging.disable(before)
