"""Weights of matrix products in 8 bits: MatMul and Gemm become the operator MatMulNBits of ONNX Runtime.

Each column of a weight is cut into blocks of `_BLOCK` values with a scale each. Activations stay as they are between
the operators, and are rounded row by row inside, so a row does not depend on the other rows.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_BLOCK = 32
_ZERO = 128  # stored for a weight of zero, and the operator's default
_DOMAIN = "com.microsoft"
_ACCURACY_LEVEL = 4  # products of 8-bit integers


def with_8_bit_weights(model: onnx.ModelProto) -> None:
    """Replace each MatMul or Gemm that has a constant float32 matrix as its second input."""
    graph = model.graph
    matrices = {one.name: one for one in graph.initializer if is_matrix(one)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += _replaced(graph, node, matrices) if is_product(node) and node.input[1] in matrices else [node]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {one.name for one in graph.output}
    for name in matrices.keys() - used:
        graph.initializer.remove(matrices[name])
    if all(one.domain != _DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def is_matrix(weight: onnx.TensorProto) -> bool:
    """Whether a weight is a float32 matrix."""
    return weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2  # noqa: PLR2004 - rows and columns


def is_product(node: onnx.NodeProto) -> bool:
    """Whether a node multiplies by its second input, and does nothing that MatMulNBits and Add cannot do."""
    if node.domain not in {"", "ai.onnx"}:
        return False
    if node.op_type == "MatMul":
        return True
    numbers = {one.name: one.f if one.type == onnx.AttributeProto.FLOAT else one.i for one in node.attribute}
    return (
        node.op_type == "Gemm"
        and not numbers.get("transA", 0)
        and numbers.get("alpha", 1.0) == numbers.get("beta", 1.0) == 1.0
    )


def _replaced(
    graph: onnx.GraphProto, node: onnx.NodeProto, matrices: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Return the nodes that compute the same with weights in 8 bits, and add those weights to the graph."""
    weight = numpy_helper.to_array(matrices[node.input[1]])
    if any(one.name == "transB" and one.i for one in node.attribute):
        weight = weight.T
    name = f"{node.output[0]}_8bit"
    codes, scales = _blocks(weight)
    graph.initializer.extend([
        numpy_helper.from_array(codes, f"{name}_weight"), numpy_helper.from_array(scales, f"{name}_scales"),
    ])  # fmt: skip
    bias = node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004 - the third input of Gemm
    result = f"{name}_product" if bias else node.output[0]
    product = helper.make_node(
        "MatMulNBits", [node.input[0], f"{name}_weight", f"{name}_scales"], [result], name=name, domain=_DOMAIN,
        K=weight.shape[0], N=weight.shape[1], bits=8, block_size=_BLOCK, accuracy_level=_ACCURACY_LEVEL,
    )  # fmt: skip
    added = [helper.make_node("Add", [result, bias], [node.output[0]], name=f"{name}_bias")] if bias else []
    return [product, *added]


def _blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes [columns, blocks, block size] and the scales [columns, blocks] of a matrix."""
    rows, columns = weight.shape
    n_blocks = -(-rows // _BLOCK)
    padded = np.zeros((columns, n_blocks * _BLOCK), np.float32)
    padded[:, :rows] = weight.T
    blocks = padded.reshape(columns, n_blocks, _BLOCK)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    steps = np.where(scales == 0, np.float32(1), scales)[:, :, None]
    codes = (np.rint(blocks / steps) + _ZERO).clip(1, 255).astype(np.uint8)
    return codes, scales.astype(np.float32)
