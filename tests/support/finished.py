"""A finished run, ways to damage it, and what commands say of it, wherever it lies."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.runs import MODELS, cli, write

import scorer

FILES, GROUP, ROWS = 3, 200, 1200
REQUEST = {
    "model": MODELS / "gather.onnx", "feed": "idx=idx", "where": "tens < 96", "max_bad_rows": 100, "part_bytes": 8192,
    "batch_rows": 64, "cluster": "synchronous",
}  # fmt: skip


def make_run(top):
    """Run a job with Hive folders, bad rows and filtered rows: its input is top/input, its output top/out."""
    idx = np.arange(ROWS) % 10
    idx[::200] = 99
    table = pa.table({"idx": idx, "tens": np.arange(ROWS) // 10, "noise": np.random.default_rng(5).random(ROWS)})
    for i in range(FILES):
        part = table.slice(i * ROWS // FILES, ROWS // FILES)
        write(top / "input" / f"k={i}" / "data.parquet", part, row_group_size=GROUP, compression="none")
    scorer.run(top / "input", output=top / "out", **REQUEST)


def said(command, output, *flags):
    """Return the exit code of a command and its JSON, in which the output has the same name wherever it is."""
    code, text, _ = cli(command, output, *flags, "--json")
    value = json.loads(text.replace(str(output).removesuffix("out"), "TOP/"))
    if "error" in value:
        value["error"]["found"] = value["error"]["found"][:80]  # it is cut where a path is long
    return code, value


def part(out, number=0):
    """The path of a part."""
    return sorted(out.rglob("*.parquet"), key=lambda path: path.name)[number]


def _flip(path):
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(2)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(data)


def _manifest(out, **changes):
    path = out.with_name("out.scorer") / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _quarantine(out):
    return next(out.with_name("out.scorer").glob("quarantine/*.parquet"))


DAMAGES = {
    "nothing": lambda _: None,
    "a missing part": lambda out: part(out, 1).unlink(),
    "all parts missing": shutil.rmtree,
    "a part cut short": lambda out: part(out).write_bytes(part(out).read_bytes()[:-100]),
    "an empty part": lambda out: part(out).write_bytes(b""),
    "a part of 6 bytes": lambda out: part(out).write_bytes(b"PAR1AR"),
    "a part that is text": lambda out: part(out).write_bytes(b"no Parquet " * 1000),
    "a footer that claims to be huge": lambda out: part(out).write_bytes(
        part(out).read_bytes()[:-8] + b"\xff\xff\xff\x0fPAR1"
    ),
    "other bytes": lambda out: _flip(part(out)),
    "the part of another place": lambda out: shutil.copy(part(out, 1), part(out, 0)),
    "a file of another program": lambda out: write(part(out), {"idx": [1, 2]}),
    "a foreign file": lambda out: (out / "notes.txt").write_text("hello"),
    "an empty foreign file": lambda out: (out / "k=0" / "_SUCCESS").write_text(""),
    "a folder without files": lambda out: (out / "k=9").mkdir(),
    "a manifest cut short": lambda out: (out.with_name("out.scorer") / "manifest.json").write_text('{"plan": '),
    "a manifest that is a list": lambda out: (out.with_name("out.scorer") / "manifest.json").write_text("[]"),
    "another number in the manifest": lambda out: _manifest(out, scored=7),
    "another ledger than the manifest's": lambda out: _manifest(out, ledger="0" * 64),
    "no manifest": lambda out: (out.with_name("out.scorer") / "manifest.json").unlink(),
    "no ledger": lambda out: (out.with_name("out.scorer") / "ledger.parquet").unlink(),
    "a damaged ledger": lambda out: (out.with_name("out.scorer") / "ledger.parquet").write_bytes(b"PAR1" * 9),
    "a damaged plan": lambda out: (out.with_name("out.scorer") / "plan.json").write_text("{}"),
    "no plan": lambda out: (out.with_name("out.scorer") / "plan.json").unlink(),
    "no proof": lambda out: shutil.rmtree(out.with_name("out.scorer")),
    "no proof, and a part missing": lambda out: (shutil.rmtree(out.with_name("out.scorer")), part(out, 1).unlink()),
    "no quarantine file": lambda out: _quarantine(out).unlink(),
    "a damaged quarantine file": lambda out: _quarantine(out).write_bytes(b"PAR1" * 9),
    "an empty quarantine file": lambda out: write(_quarantine(out), {"idx": pa.array([], pa.int64())}),
    "nothing at all": lambda out: (shutil.rmtree(out), shutil.rmtree(out.with_name("out.scorer"))),
}


def copied(made, folder):
    """Copy a finished run and its proof into a folder; return the output."""
    for name in ("out", "out.scorer"):
        shutil.copytree(made / name, folder / name)
    return folder / "out"
