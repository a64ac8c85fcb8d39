"""Run the command line on damaged and hostile files: no crash, no traceback, no hang, nothing written beside OUT.

    python tests/faults/damaged_files.py 500 500 --seed 1

The arguments are the numbers of Parquet and of ONNX files, each changed at random. At least half of each kind pass the
first parse of their library (the footer, the protobuf), so that deeper code is reached. Each is scored by the command
line in its own process, under a memory limit. Prints JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto

from scorer.cli import main as main_
from scorer.host.crash import run_supervised

MODELS = Path(__file__).parent.parent / "models"
SOUND = ["sum3", "dense28", "strings", "zipmap", "gather", "wide_output", "fixed3", "two_outputs", "float16"]
MEMORY_BYTES, TIMEOUT_S = 6 << 30, 60
EXPECTED_FILES = {"in.parquet", "m.onnx", "sound.parquet", "stderr", "out", "out.scorer"}
LARGE = [2**63 - 1, -(2**63), 2**31, 2**40, -1, 0, 10**12, 65536]


def parquet_file(draw: random.Random) -> bytes:
    """Return a valid file with columns of many types."""
    rows = draw.choice([0, 1, 50, 400, 400])
    rng = np.random.default_rng(draw.randrange(2**32))
    table = pa.table({
        **{name: rng.standard_normal(rows).astype(np.float32) for name in "abc"},
        "text": pa.array([f"word {i % 7}" if i % 5 else None for i in range(rows)], pa.string()),
        "list": pa.array([[1.0] * (i % 3) for i in range(rows)], pa.list_(pa.float32())),
        "when": pa.array(range(rows), pa.timestamp("us")),
        "kind": pa.array([["x", "y"][i % 2] for i in range(rows)]).dictionary_encode(),
    })  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=draw.choice([13, 100, 1000]), compression=draw.choice(["none", "snappy", "zstd"]),
        use_dictionary=draw.random() < 0.5, write_page_checksum=draw.random() < 0.2,
        data_page_version=draw.choice(["1.0", "2.0"]),
    )  # fmt: skip
    return sink.getvalue().to_pybytes()


def damaged_parquet(draw: random.Random) -> bytes:
    """Return a file with changed pages, page headers or footer."""
    data = bytearray(parquet_file(draw))
    footer = int.from_bytes(data[-8:-4], "little")
    body = len(data) - 8 - footer
    way = draw.choices(["pages", "swap", "footer", "numbers", "cut"], [9, 4, 2, 2, 1])[0]
    if way == "cut":
        return bytes(data[: draw.randrange(len(data))])
    if way == "swap" and body > 40:  # a piece of the body over another
        size = draw.randrange(4, 20)
        at, to = draw.randrange(4, body - size), draw.randrange(4, body - size)
        data[to : to + size] = data[at : at + size]
        return bytes(data)
    low, high = (body, len(data) - 8) if way in {"footer", "numbers"} else (4, max(body, 5))
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(low, high)
        if way == "numbers":  # large variable-length numbers in the footer
            data[at] = draw.choice([0xFF, 0x7F, 0x80, 0x01])
        else:
            data[at] ^= 1 << draw.randrange(8)
    return bytes(data)


def damaged_onnx(draw: random.Random) -> bytes:
    """Return a valid model with one to three changes, in its structure or in its bytes."""
    data = (MODELS / f"{draw.choice(SOUND)}.onnx").read_bytes()
    if draw.random() < 0.3:
        raw = bytearray(data)
        for _ in range(draw.choice([1, 1, 3])):
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        return bytes(raw)
    model = onnx.load_from_string(data)
    for _ in range(draw.choice([1, 1, 2, 3])):
        with suppress(Exception):  # a change that protobuf itself refuses
            draw.choice(CHANGES)(draw, model)
    return model.SerializeToString()


def _tensor(draw: random.Random, model: onnx.ModelProto) -> TensorProto:
    return draw.choice(list(model.graph.initializer))


def _value(draw: random.Random, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    return draw.choice([*model.graph.input, *model.graph.output])


def _node(draw: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    return draw.choice(list(model.graph.node))


def _dims(draw: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(draw, model)
    tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(LARGE)


def _data(draw: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(draw, model)
    tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]


def _outside(draw: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(draw, model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", draw.choice(["../../../etc/passwd", "/etc/passwd", "a\nb", "gone.bin", ""])),
                       ("offset", str(draw.choice(LARGE))), ("length", str(draw.choice(LARGE)))):  # fmt: skip
        tensor.external_data.add(key=key, value=value)


def _shape(draw: random.Random, model: onnx.ModelProto) -> None:
    dims = _value(draw, model).type.tensor_type.shape.dim
    dim = draw.choice([*dims, dims.add()])
    if draw.random() < 0.5:
        dim.dim_value = draw.choice(LARGE)
    else:
        dim.dim_param = draw.choice(["", "N", "\x1b[31m", "x" * 5000])


def _kind(draw: random.Random, model: onnx.ModelProto) -> None:
    _value(draw, model).type.tensor_type.elem_type = draw.randrange(0, 30)


def _name(draw: random.Random, model: onnx.ModelProto) -> None:
    target = draw.choice([_value(draw, model), _node(draw, model)])
    target.name = draw.choice(["", "../../evil", "a/b", "\x1b]0;title\x07", "new\nline", "x" * 100_000, "=|'(", "a"])


def _operator(draw: random.Random, model: onnx.ModelProto) -> None:
    node = _node(draw, model)
    node.op_type = draw.choice(["Reshape", "Loop", "If", "Gather", "ConstantOfShape", "Expand", "Nothing", "", "Tile"])


def _wires(draw: random.Random, model: onnx.ModelProto) -> None:
    node = _node(draw, model)
    names = [value.name for value in model.graph.input] + [name for n in model.graph.node for name in n.output]
    if node.input and draw.random() < 0.7:
        node.input[draw.randrange(len(node.input))] = draw.choice([*names, "", "nowhere"])
    else:
        node.output.append(draw.choice(names))


def _attribute(draw: random.Random, model: onnx.ModelProto) -> None:
    node = _node(draw, model)
    name = draw.choice(["axis", "keepdims", "to", "perm", "value", *(a.name for a in node.attribute)])
    for old in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(old)
    value = draw.choice([*LARGE, [1, 2, 3], "text", 1e30])
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _versions(draw: random.Random, model: onnx.ModelProto) -> None:
    model.opset_import[0].version = draw.choice([*LARGE, 1, 7, 99])
    model.ir_version = draw.choice([0, 1, 8, 99, 2**40])


def _twice(draw: random.Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    draw.choice([graph.node, graph.input, graph.output, graph.initializer]).append(
        draw.choice(list(draw.choice([graph.node, graph.input, graph.output, graph.initializer])))
    )


def _less(draw: random.Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    things = draw.choice([graph.node, graph.input, graph.output, graph.initializer])
    del things[draw.randrange(len(things))]


def _metadata(draw: random.Random, model: onnx.ModelProto) -> None:
    key = draw.choice(["feature_names", "classes", "names", "\x1b[1m"])
    value = draw.choice(["[" * 5000, '["a", "b"]', "{}", "null", "\0", "x" * 10**6])
    model.metadata_props.add(key=key, value=value)


CHANGES = [
    _dims,
    _data,
    _outside,
    _shape,
    _kind,
    _name,
    _operator,
    _wires,
    _attribute,
    _versions,
    _twice,
    _less,
    _metadata,
]


def crafted(folder: Path) -> list[tuple[str, list[str]]]:
    """Write malicious files; return a name and the arguments for each."""
    table = {name: np.ones(4, np.float32) for name in "abc"}
    run = ["--model", str(MODELS / "sum3.onnx"), "--feed", "x=a,b,c"]
    cases = []

    def add(name: str, columns: dict, *more: str, file: str = "in.parquet", **options: object) -> None:
        where = folder / f"{len(cases)}"
        where.mkdir()
        path = where / file
        path.parent.mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table(columns), path, **options)
        cases.append((name, ["run", str(path), *run, "--output", str(where / "out"), "--quiet", *more]))

    add("a column called ../../evil", {**table, "../../evil": [1] * 4})
    add("a column with a newline and an escape", {**table, "a\nb\x1b[31m": [1] * 4})
    add("an empty column name", {**table, "": [1] * 4})
    add("a name of 100,000 letters", {**table, "x" * 100_000: [1] * 4})
    add("a file with a newline in its name", table, file="new\nline.parquet")
    add("a Hive folder that climbs", table, file="k=..%2F..%2Fevil/in.parquet")
    deep = pa.float32()
    for _ in range(200):
        deep = pa.list_(deep)
    add("lists 200 deep", {**table, "deep": pa.nulls(4, deep)})
    add("5,000 columns", {**table, **{f"c{i}": np.ones(4, np.float32) for i in range(5000)}})
    add("100,000 row groups of one row", {n: np.ones(20_000, np.float32) for n in "abc"}, row_group_size=1)
    whole = (folder / "0" / "in.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    four = b"\x16\x08"  # a count of rows in the footer: four
    for name, data in {
        "nothing": b"", "magic only": b"PAR1", "a footer length of 4 GB": whole[:-8] + b"\xff\xff\xff\xffPAR1",
        "a footer length of the whole file": whole[:-8] + len(whole).to_bytes(4, "little") + b"PAR1",
        "text": b"id,a\n1,2\n", "an encrypted footer": whole[:-4] + b"PARE",
        "more rows than there are": whole[:footer] + whole[footer:].replace(four, b"\x16\x7e", 1),
        "more rows in each chunk": whole[:footer] + whole[footer:].replace(four, b"\x16\x7e"),
        "less than no rows": whole[:footer] + whole[footer:].replace(four, b"\x16\x07"),
    }.items():  # fmt: skip
        where = folder / f"{len(cases)}"
        where.mkdir()
        (where / "in.parquet").write_bytes(data)
        cases.append((name, ["run", str(where / "in.parquet"), *run, "--output", str(where / "out"), "--quiet"]))
    return cases


def passes(kind: str, data: bytes) -> bool:
    """Return whether the library's own first parse accepts the file."""
    try:
        if kind == "parquet":
            pq.ParquetFile(pa.BufferReader(data))
        else:
            onnx.load_from_string(data)
    except Exception:  # noqa: BLE001 - any error means that it refused
        return False
    return True


def arguments_for(kind: str, folder: Path) -> list[str]:
    """Return the arguments for a damaged file."""
    if kind == "parquet":
        return ["run", str(folder / "in.parquet"), "--model", str(MODELS / "sum3.onnx"), "--feed", "x=a,b,c",
                "--output", str(folder / "out"), "--max-bad-rows", "100%", "--quiet"]  # fmt: skip
    return ["run", str(folder / "sound.parquet"), "--model", str(folder / "m.onnx"), "--output", str(folder / "out"),
            "--quiet", "--max-bad-rows", "100%"]  # fmt: skip


def run_command(arguments: list[str], folder: Path) -> tuple[int | None, str]:
    """Run the command line in a fork; return its exit code, None if it hung, and its stderr."""
    errors = folder / "stderr"
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        with errors.open("wb") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest may have replaced them
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["scorer", *arguments]
        try:
            run_supervised(main_.main)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
        except BaseException:  # noqa: BLE001 - seen as a traceback
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(99)
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), errors.read_text("utf-8", "replace")
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None, errors.read_text("utf-8", "replace")


def run_and_check(name: str, arguments: list[str], folder: Path, found: Counter[str], keep: Path | None) -> None:
    """Run the command, and count and print its faults."""
    code, errors = run_command(arguments, folder)
    faults = []
    if code is None:
        faults.append("hang")
    elif code not in {0, 1, 2, 3, 4, 5}:
        faults.append("crash")
    if "Traceback" in errors:
        faults.append("traceback")
    if any(c in errors for c in "\x1b\x07"):
        faults.append("escape sent to the terminal")
    if code not in {0, None} and "Error: " not in errors:
        faults.append("no error message")
    found[f"exit {code}"] += 1
    found["native code ended the process, and the command said so"] += "crashed in native code" in errors
    for fault in faults:
        found[f"FAULT: {fault}"] += 1
        print(f"{fault}: {name}\n{errors[-1500:]}", file=sys.stderr)
        if keep is not None:
            for path in folder.iterdir():
                if path.is_file():
                    (keep / f"{name.replace('/', '_').replace(' ', '-')[:60]}-{path.name[:40]}").write_bytes(
                        path.read_bytes()
                    )


def fuzz(parquets: int, models: int, seed: int, keep: Path | None = None) -> Counter[str]:
    """Run all files; return the counts by result."""
    found: Counter[str] = Counter()
    sound = pa.table({**{c: np.ones(40, np.float32) for c in "abcd"}, "idx": np.arange(40) % 9, "color": ["red"] * 40,
                      "size": np.ones(40, np.float32)})  # fmt: skip
    for kind, many, make in (("parquet", parquets, damaged_parquet), ("onnx", models, damaged_onnx)):
        for number in range(many):
            draw = random.Random(f"{seed}-{kind}-{number}")
            data = make(draw)
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
                folder = Path(name) / "inside"
                folder.mkdir()
                (folder / ("in.parquet" if kind == "parquet" else "m.onnx")).write_bytes(data)
                if kind == "onnx":
                    pq.write_table(sound, folder / "sound.parquet")
                found[f"{kind} files"] += 1
                found[f"{kind} files that pass the first parse"] += passes(kind, data)
                run_and_check(f"{kind} {number}", arguments_for(kind, folder), folder, found, keep)
                beside = set(os.listdir(folder)) - EXPECTED_FILES
                if beside or os.listdir(name) != ["inside"]:
                    found["FAULT: written beside OUT"] += 1
                    print(f"{kind} {number} wrote {beside}", file=sys.stderr)
            if number % 100 == 99:
                print(f"{number + 1} {kind}", file=sys.stderr)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        for what, arguments in crafted(Path(name)):
            found["crafted files"] += 1
            run_and_check(what, arguments, Path(name), found, keep)
    return found


def main() -> None:
    """Print the counts as JSON; exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parquet", type=int)
    parser.add_argument("onnx", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    found = fuzz(asked.parquet, asked.onnx, asked.seed, asked.keep)
    print(json.dumps(dict(sorted(found.items())), indent=1))
    sys.exit(any(name.startswith("FAULT") for name in found))


if __name__ == "__main__":
    main()
