"""The protobuf of a stage, and a session for it.

A stage's weights stay where they are: in the model's own data files, to which its protobuf points, or inside the
protobuf if the model has them there. Its tensors are declared exactly as the uncut model declares them, because
declared shapes decide which operators the runtime fuses, and so the bits of the scores. Of a tensor without a
declaration only the type and the rank are given; or, if the bits are equal only then, what is handed to a stage has the
shape that follows from the model's inputs.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from scorer.model.protobuf import protobufs
from scorer.model.session import map_load_errors, packed_options, session_options
from scorer.model.stages.graph import values_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from scorer.model.spec import SessionSpec
    from scorer.model.stages.graph import Graph


def stage_proto(
    graph: Graph, nodes: Sequence[int], outputs: Sequence[str], shapes: Mapping[str, onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    """Return the protobuf of these nodes, which gives these outputs.

    `shapes` are declared of what is handed to the stage, where the model declares nothing.
    """
    known = shapes or {}
    onnx_ = protobufs()
    made = {name for k in nodes for name in graph.nodes[k].output}
    needs = list(dict.fromkeys(name for k in nodes for name in graph.takes[k] if name not in made))
    declared = values_of(graph)
    whole = graph.proto
    stage = onnx_.ModelProto(ir_version=whole.ir_version, producer_name=whole.producer_name)
    stage.opset_import.extend(whole.opset_import)
    stage.functions.extend(whole.functions)
    own = stage.graph
    own.name = f"{whole.graph.name}, nodes {nodes[0]} to {nodes[-1]}"
    own.node.extend(graph.nodes[k] for k in nodes)
    own.initializer.extend(graph.weights[name] for name in needs if name in graph.weights)
    # a weight that is also an input can be replaced by the caller, so the runtime does not compute with it in advance
    as_input = {value.name for value in whole.graph.input}
    inputs = [name for name in needs if name not in graph.weights or name in as_input]
    own.input.extend(declared.get(name) or known.get(name) or _by_rank(graph, name) for name in inputs)
    own.output.extend(declared.get(name) or _by_rank(graph, name) for name in outputs)
    own.value_info.extend(value for value in whole.graph.value_info if value.name in made and value.name not in outputs)
    return stage


def load(spec: SessionSpec, stage: onnx.ModelProto, *, optimised: bool = True) -> ort.InferenceSession:
    """Return a session for a stage of the model of `spec`, whose path is local."""
    options = session_options(spec) if optimised else packed_options(spec)
    folder = os.path.dirname(os.path.abspath(spec.path))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    with map_load_errors(spec.path):
        return ort.InferenceSession(stage.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, held: dict[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """Run a stage with the tensors that it takes from `held`, and return its outputs by name."""
    feeds = {tensor.name: held[tensor.name] for tensor in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, feeds), strict=True))


def _by_rank(graph: Graph, name: str) -> onnx.ValueInfoProto:
    """Return a declaration with the type and the rank of a measured tensor; without both before it was measured."""
    value = protobufs().ValueInfoProto(name=name)
    found = graph.measured.get(name)
    if found is not None:
        value.type.tensor_type.elem_type = found.type
        value.type.tensor_type.shape.SetInParent()
        for _ in found.shape:
            value.type.tensor_type.shape.dim.add()
    return value
