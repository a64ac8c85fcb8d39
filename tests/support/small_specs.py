"""Models and schemas as plain values, for tests that need no file."""

import pyarrow as pa

from scorer.model.spec import ModelSpec, TensorSpec


def tensor(name="x", kind="float32", shape=("N", 3)):
    return TensorSpec(name=name, type=kind, shape=shape)


def model(*inputs, outputs=(), features=(), labels=(), zipmaps=()):
    return ModelSpec(
        path="m.onnx", digest="0", bytes=1, files=(), inputs=tuple(inputs or [tensor()]), outputs=tuple(outputs),
        feature_names=tuple(features), class_labels=tuple(labels), zipmaps=dict(zipmaps), operators={}, opsets={},
        metadata={}, producer="", coupled=(),
    )  # fmt: skip


def floats(*names):
    return pa.schema([(name, pa.float32()) for name in names])
