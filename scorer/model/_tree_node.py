"""One ensemble's node on the compiled kernel: a matrix in; labels and scores out, bit for bit those of the runtime."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from scorer.model import _kernel
from scorer.model._forest import Unsupported, classic_forest, new_forest
from scorer.model._program import Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from scorer.model._forest import Forest


_TRANSFORMS = {"NONE": 0, "LOGISTIC": 1, "SOFTMAX": 2}
_SUM, _AVERAGE = "SUM", "AVERAGE"
_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
_NEW_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_HALF = 0.5


class TreeNode:
    """One ensemble, ready to score. `run` may be called from many threads at once."""

    def __init__(self, node: onnx.NodeProto, real: np.dtype, level: str) -> None:
        """Build the program of a node whose input has the type `real`; raise `Unsupported` if there is none."""
        attributes = _attributes(node)
        self._real = real
        self._classifier = node.op_type == "TreeEnsembleClassifier"
        self._new = node.op_type == "TreeEnsemble"
        self.labels = _labels(attributes) if self._classifier else None
        try:
            self._post, self._aggregate = _settings(attributes, new=self._new)
            forest = self._forest(attributes)
        except (KeyError, IndexError) as error:
            raise Unsupported(f"its attributes are not complete: {error}") from error
        self.program = Program(forest)
        base = attributes.get("base_values_as_tensor", attributes.get("base_values", ()))
        self._base = np.asarray(base, real) if len(base) else None
        weights = forest.votes[2]
        if self._classifier:
            self._check_classes(positive=bool((weights >= 0).all()))
        else:
            self._check_targets()
        self._sum = _kernel.function("trees_sum", real, level)
        finish = "trees_two_classes" if self._classifier and self._two else "trees_classes"
        self._finish = _kernel.function(finish, real, level)

    def _forest(self, attributes: Mapping[str, Any]) -> Forest:
        if self._new:
            return new_forest(attributes, self._real)
        if self.labels is not None:
            return classic_forest(attributes, "class", len(self.labels), self._real)
        return classic_forest(attributes, "target", int(attributes["n_targets"]), self._real)

    def _check_targets(self) -> None:
        """Refuse regressors whose sums need more than adding and a base value."""
        if self._post != _TRANSFORMS["NONE"]:
            raise Unsupported("its transform of a regression is not supported")
        program = self.program
        if self._base is not None and len(self._base) != program.n_targets:
            raise Unsupported("the number of base values differs from the targets")
        if self._base is not None and not self._always_voted(program.n_targets):
            raise Unsupported("a base value belongs to a target without votes")

    def _check_classes(self, *, positive: bool) -> None:
        """Choose how labels and scores follow from the sums."""
        program, classes = self.program, len(self.labels) if self.labels is not None else 0
        if self._aggregate != _SUM:
            raise Unsupported("a classifier's trees are not added")
        self._two = classes == 2 and len(program.voted) == 1  # noqa: PLR2004 - two classes, one sum
        if classes < 2:  # noqa: PLR2004 - the same
            raise Unsupported("it has fewer than two classes")
        if self._two:
            if program.voted[0] != 0 or not program.votes_everywhere or self._post == _TRANSFORMS["SOFTMAX"]:
                raise Unsupported("its two classes are voted for in an unusual way")
            if self._base is not None and len(self._base) != 1:
                raise Unsupported("two classes with one sum have several base values")
            self._limit, self._rest = (_HALF, 1.0) if positive else (0.0, 0.0)
        elif self._base is not None and len(self._base) != classes:
            raise Unsupported("the number of base values differs from the classes")
        elif self._base is not None and classes == 2:  # noqa: PLR2004 - the runtime then ignores one sum
            raise Unsupported("two classes with a sum each have base values")
        elif not self._always_voted(classes):
            raise Unsupported("a class may get no vote")
        elif classes == 2 and self.labels is not None and self.labels.dtype == np.int64:  # noqa: PLR2004
            self.labels = np.array([0, 1])  # as the runtime, which does not look at the labels then

    def _always_voted(self, targets: int) -> bool:
        """Return whether each target gets a vote from every row."""
        return self.program.votes_everywhere and len(self.program.voted) == targets

    def run(self, matrix: np.ndarray) -> list[np.ndarray]:
        """Return the node's outputs for a matrix of its type."""
        matrix = np.ascontiguousarray(matrix, self._real)
        sums = self.sums(matrix)
        if self._classifier:
            return self._classes(sums)
        if self._aggregate == _AVERAGE:
            sums /= self._real.type(self.program.n_trees)
        if self._base is not None:
            sums += self._base
        return [sums if self._new else sums.astype(np.float32, copy=False)]

    def sums(self, matrix: np.ndarray) -> np.ndarray:
        """Return the sums of the trees, [rows, targets]."""
        program = self.program
        sums = np.empty((len(matrix), program.n_targets), self._real)
        structure = program.structure(matrix.shape[1])
        if self._sum(ctypes.byref(structure), _pointer(matrix), ctypes.c_int64(len(matrix)), _pointer(sums)):
            raise MemoryError
        return sums

    def _classes(self, sums: np.ndarray) -> list[np.ndarray]:
        assert self.labels is not None
        n, classes = len(sums), len(self.labels)
        scores, label = np.empty((n, classes), np.float32), np.empty(n, np.int32)
        real = ctypes.c_float if self._real == np.float32 else ctypes.c_double
        if self._two:
            base = real(0 if self._base is None else self._base[0])
            sums = np.ascontiguousarray(sums[:, 0])
            self._finish(_pointer(sums), ctypes.c_int64(n), base, ctypes.c_int32(self._post), real(self._limit),
                         real(self._rest), _pointer(scores), _pointer(label))  # fmt: skip
        else:
            self._finish(_pointer(sums), ctypes.c_int64(n), ctypes.c_int32(classes), _pointer(self._base),
                         ctypes.c_int32(self._post), _pointer(scores), _pointer(label))  # fmt: skip
        return [self.labels[label], scores]


def _pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def _settings(attributes: Mapping[str, Any], *, new: bool) -> tuple[int, str]:
    """Return the transform of sums and how trees are put together."""
    if new:
        post = _NEW_TRANSFORMS[int(attributes.get("post_transform", 0))]
        aggregate = _AGGREGATES[int(attributes.get("aggregate_function", 1))]
    else:
        post = _text(attributes.get("post_transform", b"NONE"))
        aggregate = _text(attributes.get("aggregate_function", b"SUM"))
    if post not in _TRANSFORMS:
        raise Unsupported(f"its transform is {post}")
    if aggregate not in {_SUM, _AVERAGE}:
        raise Unsupported(f"its trees are put together by {aggregate}")
    return _TRANSFORMS[post], aggregate


def _labels(attributes: Mapping[str, Any]) -> np.ndarray:
    numbers = attributes.get("classlabels_int64s", ())
    if len(numbers):
        return np.asarray(numbers, np.int64)
    return np.array([_text(name) for name in attributes.get("classlabels_strings", ())], object)


def _text(value: Any) -> str:  # noqa: ANN401 - protobuf has no types
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the node's attributes; lists of numbers as arrays."""
    found: dict[str, Any] = {}
    for one in node.attribute:
        kind = one.type
        if kind == one.INTS:
            found[one.name] = np.array(one.ints, np.int64)
        elif kind == one.FLOATS:
            found[one.name] = np.array(one.floats, np.float32)
        elif kind == one.STRINGS:
            found[one.name] = list(one.strings)
        elif kind == one.TENSOR:
            found[one.name] = _array(one.t)
        elif kind == one.INT:
            found[one.name] = one.i
        elif kind == one.FLOAT:
            found[one.name] = one.f
        elif kind == one.STRING:
            found[one.name] = one.s
        else:
            raise Unsupported(f"its attribute {one.name} has an unknown type")
    return found


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    from onnx import numpy_helper  # noqa: PLC0415 - few models have such tensors

    return np.asarray(numpy_helper.to_array(tensor)).reshape(-1)
