"""Random tree ensembles and hostile rows for them, each from a seed; the oracle is ONNX Runtime with one thread."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from scorer.model import _kernel
from scorer.model._tree_node import TreeNode, Unsupported

MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, 3.4028235e38, -3.4028235e38, 1.0, 1.0000001, 1e-38]


class RandomTrees:
    """A model of one ensemble, `node`, and rows that meet its thresholds exactly, or miss them by one float."""

    def __init__(self, seed):
        rng = self.rng = np.random.default_rng(seed)
        self.real = np.dtype(rng.choice(["f4", "f4", "f8"]))
        self.operator = str(rng.choice(["TreeEnsembleRegressor", "TreeEnsembleClassifier", "TreeEnsemble"]))
        self.columns = int(rng.integers(1, 8))
        self.targets = int(rng.choice([1, 1, 2, 3, 5]))
        kind = rng.integers(4)
        self.modes = [MODES[:1], MODES[1:2], MODES[:4], MODES][kind]
        self.chains = kind == 3 and self.operator != "TreeEnsemble"  # the runtime refuses shared nodes there
        self.missing = rng.random() < 0.5
        self.several = self.targets > 1 and rng.random() < 0.5
        self.positive = rng.random() < 0.3
        self.skips = rng.random() < 0.1
        pool = [*SPECIAL, *rng.standard_normal(int(rng.choice([3, 50, 3000]))), *rng.integers(-3, 4, 5), *range(1, 33)]
        self.pool = np.array(pool).astype(self.real)
        self.trees = [self._tree() for _ in range(int(rng.integers(1, 40)))]
        self.base = rng.standard_normal(self._bases()).tolist() if rng.random() < 0.5 else []
        self.node = self._new_node() if self.operator == "TreeEnsemble" else self._classic_node()

    def _bases(self):
        if self.operator == "TreeEnsembleClassifier" and self.targets == 1:
            return int(self.rng.choice([1, 2]))
        return self.targets

    def _tree(self):
        """Return one tree: (mode, column, value, true, false, tracks) of each node; leaves have mode LEAF."""
        rng, nodes = self.rng, []
        depth = int(rng.choice([rng.integers(0, 9), 9, 11], p=[0.95, 0.03, 0.02]))
        shallow = 0.25 if depth < 9 else 0.02

        def grow(left):
            i = len(nodes)
            nodes.append(None)
            if not left or (i and rng.random() < shallow):
                nodes[i] = ("LEAF", 0, 0.0, 0, 0, 0)
                return i
            mode, column = str(rng.choice(self.modes)), int(rng.integers(self.columns))
            value = self.pool[rng.integers(len(self.pool))]
            if mode not in {"BRANCH_LEQ", "BRANCH_GT"} and np.isneginf(value):
                value = self.real.type(0)
            tracks = int(rng.random() < 0.5) if self.missing and mode not in {"BRANCH_EQ", "BRANCH_NEQ"} else 0
            false = grow(left - 1)  # the runtime expects it right behind its parent
            again = nodes[false]
            if self.chains and mode == "BRANCH_EQ" and again[0] == "BRANCH_EQ" and rng.random() < 0.8:
                true, column = again[3], again[1]
            else:
                true = grow(left - 1)
            nodes[i] = (mode, column, float(value), true, false, tracks)
            return i

        grow(depth)
        return nodes

    def _weight(self):
        value = self.rng.standard_normal() * 10.0 ** self.rng.integers(-3, 3)
        return float(self.real.type(abs(value) if self.positive else value))

    def _votes(self, t, _leaf):
        """Return the targets for which a leaf of tree t votes."""
        if self.skips and self.rng.random() < 0.3:
            return []
        if self.several:
            return list(range(self.targets))
        return [t % self.targets]

    def _add_one_if_empty(self, votes):
        """Add a vote of the first leaf if there is none, because ONNX has no empty lists."""
        if any(votes.values()):
            return
        leaf = next(i for i, node in enumerate(self.trees[0]) if node[0] == "LEAF")
        for name, one in zip(votes, (0, leaf, 0, self._weight()), strict=True):
            votes[name].append(one)

    def _classic_node(self):
        prefix = "class" if self.operator == "TreeEnsembleClassifier" else "target"
        names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
                 "missing_value_tracks_true")  # fmt: skip
        nodes = {f"nodes_{name}": [] for name in names}
        votes = {f"{prefix}_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
        for t, tree in enumerate(self.trees):
            for i, (mode, column, value, true, false, tracks) in enumerate(tree):
                for name, one in zip(names, (t, i, column, mode, value, true, false, tracks), strict=True):
                    nodes[f"nodes_{name}"].append(one)
                for target in self._votes(t, i) if mode == "LEAF" else []:
                    for name, one in zip(votes, (t, i, target, self._weight()), strict=True):
                        votes[name].append(one)
        self._add_one_if_empty(votes)
        if not self.missing:
            nodes.pop("nodes_missing_value_tracks_true")
        attributes = {**nodes, **votes, **({"base_values": self.base} if self.base else {})}
        if self.real == np.float64:
            for name in ("nodes_values", f"{prefix}_weights", "base_values"):
                if name in attributes:
                    attributes[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(attributes.pop(name), self.real))
        if prefix == "class":
            post = str(self.rng.choice(["NONE", "LOGISTIC", "SOFTMAX"]))
            n = max(2, self.targets)
            labels = {"classlabels_int64s": list(range(10, 10 + n))}
            if self.rng.random() < 0.3:
                labels = {"classlabels_strings": [f"class {k}" for k in range(n)]}
            return helper.make_node(self.operator, ["x"], ["label", "scores"], domain="ai.onnx.ml",
                                    post_transform=post, **labels, **attributes)  # fmt: skip
        return helper.make_node(
            self.operator, ["x"], ["y"], domain="ai.onnx.ml", n_targets=self.targets,
            aggregate_function=str(self.rng.choice(["SUM", "SUM", "AVERAGE"])), **attributes,
        )  # fmt: skip

    def _new_node(self):
        nodes = {name: [] for name in ("featureids", "splits", "modes", "truenodeids", "trueleafs", "falsenodeids",
                                       "falseleafs", "missing_value_tracks_true")}  # fmt: skip
        leaves, roots = {"targetids": [], "weights": []}, []
        for t, tree in enumerate(self.trees):
            if tree[0][0] == "LEAF":
                tree = [("BRANCH_LEQ", 0, 0.0, 1, 2, 0), tree[0], tree[0]]  # noqa: PLW2901 - it has no other form
            place, inner = {}, len(nodes["modes"])
            roots.append(inner)
            for i, node in enumerate(tree):
                if node[0] == "LEAF":
                    place[i] = len(leaves["targetids"])
                    leaves["targetids"].append(t % self.targets)
                    leaves["weights"].append(self._weight())
                else:
                    place[i] = inner
                    inner += 1
            for mode, column, value, true, false, tracks in tree:
                if mode == "LEAF":
                    continue
                row = (column, value, MODES.index(mode), place[true], int(tree[true][0] == "LEAF"), place[false],
                       int(tree[false][0] == "LEAF"), tracks)  # fmt: skip
                for name, one in zip(nodes, row, strict=True):
                    nodes[name].append(one)
        self.base = []
        return helper.make_node(
            "TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", n_targets=self.targets, tree_roots=roots,
            aggregate_function=int(self.rng.choice([0, 1, 1])), post_transform=0,
            nodes_splits=numpy_helper.from_array(np.array(nodes.pop("splits"), self.real)),
            nodes_modes=numpy_helper.from_array(np.array(nodes.pop("modes"), np.uint8)),
            leaf_targetids=leaves["targetids"],
            leaf_weights=numpy_helper.from_array(np.array(leaves["weights"], self.real)),
            **{f"nodes_{name}": values for name, values in nodes.items()},
        )  # fmt: skip

    def model(self):
        """Return the model of this node alone."""
        real = TensorProto.FLOAT if self.real == np.float32 else TensorProto.DOUBLE
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.node.output]
        graph = helper.make_graph(
            [self.node], "trees", [helper.make_tensor_value_info("x", real, [None, self.columns])], outputs
        )
        opsets = [helper.make_opsetid("ai.onnx.ml", 5 if self.operator == "TreeEnsemble" else 3),
                  helper.make_opsetid("", 17)]  # fmt: skip
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def rows(self, n):
        """Return rows full of thresholds, their neighbours, NaN and infinities."""
        rng = self.rng
        x = self.pool[rng.integers(0, len(self.pool), (n, self.columns))]
        x = np.where(rng.random(x.shape) < 0.2, rng.standard_normal(x.shape).astype(self.real), x)
        with np.errstate(over="ignore"):
            near = np.nextafter(x, np.where(rng.random(x.shape) < 0.5, -np.inf, np.inf).astype(self.real))
        x = np.where(rng.random(x.shape) < 0.1, near, x)
        return np.ascontiguousarray(np.where(rng.random(x.shape) < 0.1, self.real.type(np.nan), x).astype(self.real))


def runtime_session(model):
    """Return the bare runtime with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def bits(values):
    """Return what two outputs must have in common to be the same."""
    return values.tolist() if values.dtype == object else (values.dtype, values.shape, values.tobytes())


def compare(seed, blocks):
    """Compare one ensemble with the runtime, for each list of block sizes with one of them.

    Return the number of comparisons, those that differ as (seed, level, rows), and why the runtime keeps the ensemble.
    """
    random = RandomTrees(seed)
    session = runtime_session(random.model())
    try:
        nodes = {level: TreeNode(random.node, random.real, level) for level in _kernel.available()}
    except Unsupported as why:
        return 0, [], str(why)
    done, different = 0, []
    for sizes in blocks:
        rows = int(random.rng.choice(sizes))
        x = random.rows(rows)
        expected = [bits(one) for one in session.run(None, {"x": x})]
        for level, node in nodes.items():
            done += 1
            if [bits(one) for one in node.run(x)] != expected:
                different.append((seed, level, rows))
    return done, different, ""
