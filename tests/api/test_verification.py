"""`scorer verify` checks an output against its proof, and names what is wrong."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.runs import MODELS, cli, command, without_rights, write

import scorer

FILES, GROUP, ROWS = 3, 200, 1200
BAD, FILTERED = 5, 240


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run with scores, bad rows and filtered rows, made once."""
    top = tmp_path_factory.mktemp("verify")
    idx = np.arange(ROWS) % 10
    idx[::200] = 99  # one bad row in each row group; the last is filtered out
    noise = np.random.default_rng(5).random(ROWS)  # does not compress: the pages are large enough to hit
    table = pa.table({"idx": idx, "tens": np.arange(ROWS) // 10, "noise": noise})
    for i in range(FILES):
        part = table.slice(i * ROWS // FILES, ROWS // FILES)
        write(top / "input" / f"k={i}" / "data.parquet", part, row_group_size=GROUP, compression="none")
    report = scorer.run(
        top / "input", MODELS / "gather.onnx", top / "out", feed="idx=idx", where="tens < 96", max_bad_rows=100,
        part_bytes=8192, batch_rows=64, cluster="synchronous",
    )  # fmt: skip
    assert (report.counts.quarantined, report.counts.filtered) == (BAD, FILTERED)
    return top


@pytest.fixture
def out(made, tmp_path):
    """A copy of the finished run to damage; its proof lies in out.scorer beside it."""
    for name in ("out", "out.scorer"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path / "out"


def parts(out):
    """The parts by their number."""
    return sorted(out.rglob("*.parquet"), key=lambda path: path.name)


def name(out, part):
    """A part as the ledger calls it."""
    return part.relative_to(out).as_posix()


def faults(out, *flags):
    """Return the faults in `verify --json`; check exit code 5 and that the text names the same faults."""
    code, text, _ = cli("verify", out, *flags, "--json")
    verdict = json.loads(text)
    assert code == 5
    assert verdict["whole"] is False
    assert verdict["faults"]
    code, words, _ = cli("verify", out, *flags)
    assert code == 5
    assert all(fault in words for fault in verdict["faults"][:20])
    return verdict["faults"]


def flip(path, column):
    """Flip one bit in the middle of a column's pages; the size and the footer stay as they are."""
    found = pq.ParquetFile(path).metadata.row_group(0)
    place = [found.column(i).path_in_schema for i in range(found.num_columns)].index(column)
    chunk = found.column(place)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - chunk.total_compressed_size // 4] ^= 1
    path.write_bytes(data)


def relabel(path, change):
    """Rewrite the ledger with some of its rows changed."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize("flags", [(), ("--deep",)])
def test_a_finished_run_is_whole(flags, out):
    code, text, error = cli("verify", out, *flags, "--json")
    verdict = json.loads(text)
    assert (code, error) == (0, "")
    assert verdict["whole"] is True
    assert verdict["faults"] == []
    assert verdict["parts"] == len(parts(out)) + 1 > FILES  # the last part has no rows, and so no file
    assert verdict["deep"] is bool(flags)
    assert verdict["rows"] == ROWS == verdict["scored"] + BAD + FILTERED
    code, text, _ = cli("verify", out, *flags)
    assert code == 0
    assert f"{ROWS:,} rows in" in text
    assert str(out) in text


def test_a_run_in_its_own_work_dir_is_whole_and_found_only_there(out, tmp_path):
    (tmp_path / "out.scorer").rename(tmp_path / "elsewhere")
    assert cli("verify", out, "--work-dir", tmp_path / "elsewhere", "--deep")[0] == 0
    assert cli("verify", out)[0] == 5


def test_an_output_without_rows_is_whole(tmp_path):
    write(tmp_path / "in.parquet", {"idx": pa.array([], pa.int64())})
    scorer.run(tmp_path / "in.parquet", MODELS / "gather.onnx", tmp_path / "out", cluster="synchronous")
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0


@pytest.mark.parametrize("model", ["zipmap", "wide_output", "two_outputs", "strings"])
def test_scores_of_every_kind_are_whole_and_their_changes_found(model, tmp_path):
    rng = np.random.default_rng(1)
    columns = {"color": ["red", "blue"] * 50, "size": rng.random(100).astype(np.float32)}
    columns |= {} if model == "strings" else {n: rng.random(100).astype(np.float32) for n in "abcd"}
    write(tmp_path / "in.parquet", columns)
    feed = {} if model == "strings" else {"feed": "x=a,b,c,d"}
    scorer.run(tmp_path / "in.parquet", MODELS / f"{model}.onnx", tmp_path / "out", cluster="synchronous", **feed)
    assert cli("verify", tmp_path / "out", "--deep")[0] == 0
    (path,) = parts(tmp_path / "out")
    table = pq.ParquetFile(path).read()
    for column in table.column_names[len(columns) :]:
        order = [1, 0, *range(2, 100)]
        place = table.schema.get_field_index(column)
        changed = table.set_column(place, table.schema.field(column), table[column].take(pa.array(order)))
        if changed.equals(table):
            continue
        pq.write_table(changed, path)
        assert any(f"column {column!r} holds other values" in fault for fault in faults(tmp_path / "out", "--deep"))


def test_a_removed_part_is_named(out):
    gone = parts(out)[1]
    gone.unlink()
    assert faults(out) == [f"{name(out, gone)}: the part is gone"]


def test_a_removed_output_is_all_its_parts(out):
    names = [name(out, part) for part in parts(out)]
    shutil.rmtree(out)
    assert faults(out) == [f"{part}: the part is gone" for part in names]


def test_two_parts_that_changed_places_are_named(out):
    first, second = parts(out)[0], parts(out)[-1]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    found = faults(out)
    for part in (first, second):
        assert any(fault.startswith(f"{name(out, part)}: part number") for fault in found)
    assert {fault.split(":")[0] for fault in found} == {name(out, first), name(out, second)}


def test_a_part_of_another_run_is_named(out, tmp_path):
    write(tmp_path / "in.parquet", {"idx": [1, 2, 3]})
    scorer.run(tmp_path / "in.parquet", MODELS / "gather.onnx", tmp_path / "other", cluster="synchronous")
    strange = parts(out)[0]
    shutil.copy(parts(tmp_path / "other")[0], strange)
    assert any(fault.startswith(f"{name(out, strange)}: plan") for fault in faults(out))


@pytest.mark.parametrize("column", ["value", "noise", "idx"])
def test_a_flipped_bit_in_a_page_is_found_with_deep(column, out):
    part = parts(out)[2]
    flip(part, column)
    assert cli("verify", out)[0] == 0
    found = faults(out, "--deep")
    assert len(found) == 1
    assert found[0].startswith(f"{name(out, part)}: ")


def test_a_changed_score_under_the_same_footer_is_found_with_deep(out):
    part = parts(out)[0]
    before = pq.ParquetFile(part)
    table = before.read()
    scores = table["value"].to_pylist()
    scores[1] += 10
    place = table.schema.get_field_index("value")
    changed = table.set_column(place, table.schema.field("value"), pa.array(scores, pa.float32()))
    pq.write_table(changed, part, compression="none", use_dictionary=False)
    found = faults(out, "--deep")
    assert f"{name(out, part)}: column 'value' holds other values" in found


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -10])
def test_a_truncated_part_is_named(keep, out):
    part = parts(out)[1]
    part.write_bytes(part.read_bytes()[:keep])
    found = faults(out)
    assert len(found) == 1
    assert found[0].startswith(f"{name(out, part)}: the part cannot be read")


@pytest.mark.parametrize(
    "stray", ["notes.txt", "part-99999.parquet", "k=0/part-99999.parquet", "k=9/x.parquet", ".hidden"]
)
def test_a_stray_file_is_named(stray, out):
    (out / stray).parent.mkdir(exist_ok=True)
    shutil.copy(parts(out)[0], out / stray)
    assert faults(out) == [f"{stray}: not in the ledger"]


@pytest.mark.parametrize("proof", ["kept", "lost"])
def test_a_folder_that_cannot_be_listed_is_named(proof, out):
    start = without_rights()
    if start is None:
        pytest.skip("needs setpriv, to drop root's right to list any folder")
    if proof == "lost":
        shutil.rmtree(f"{out}.scorer")
    (out / "k=7" / "below").mkdir(parents=True)
    (out / "k=7" / "below").chmod(0)
    done = command("verify", out, "--json", start=start)
    assert done.returncode == 5
    assert json.loads(done.stdout)["faults"] == ["k=7/below: the folder cannot be listed: Permission denied"]


@pytest.mark.parametrize("key", ["rows", "scored", "quarantined", "filtered", "nan", "lossy", "parts", "size"])
def test_a_changed_number_of_the_manifest_is_named(key, out):
    path = out.with_name("out.scorer") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key] += 1
    path.write_text(json.dumps(manifest))
    found = faults(out)
    assert len(found) == 1
    assert found[0].startswith(f"manifest: {key} is ")


@pytest.mark.parametrize("key", ["plan", "request", "model", "ledger"])
def test_a_changed_hash_of_the_manifest_is_named(key, out):
    path = out.with_name("out.scorer") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[key] = manifest[key][::-1]
    path.write_text(json.dumps(manifest))
    assert [fault.split(" is ")[0] for fault in faults(out)] == [f"manifest: {key}"]


def test_a_manifest_that_lost_a_key_is_named(out):
    path = out.with_name("out.scorer") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["scored"]
    path.write_text(json.dumps(manifest))
    assert [fault.split(" is ")[0] for fault in faults(out)] == ["manifest: scored"]


def test_a_changed_plan_proves_nothing(out):
    path = out.with_name("out.scorer") / "plan.json"
    plan = json.loads(path.read_text())
    plan["conditions"] = ["tens < 5"]
    path.write_text(json.dumps(plan))
    code, text, error = cli("verify", out)
    assert code == 5
    assert "plan" in text + error


@pytest.mark.parametrize("balanced", [True, False])
def test_a_ledger_whose_counts_were_edited_names_the_part(balanced, out):
    def change(rows):
        rows[1]["scored"] -= 1
        rows[1]["filtered"] += 1 if balanced else 0

    relabel(out.with_name("out.scorer") / "ledger.parquet", change)
    found = faults(out)
    assert any(fault.startswith("manifest: ledger is ") for fault in found)
    assert any(fault.startswith(f"{name(out, parts(out)[1])}: ") for fault in found)


@pytest.mark.parametrize("key", ["size", "row_start", "part", "quarantine", "digests", "file", "seconds"])
def test_any_edit_of_the_ledger_is_found(key, out):
    def change(rows):
        row = rows[0]
        if key == "seconds":
            row["infer_s"] += 1.0
        elif key == "digests":
            row["digests"] = [("value", "0" * 32)]
        else:
            row[key] = row[key] + (1 if isinstance(row[key], int) else "x")

    relabel(out.with_name("out.scorer") / "ledger.parquet", change)
    assert any(fault.startswith("manifest: ledger is ") for fault in faults(out))


def test_a_ledger_that_lost_or_doubled_a_row_names_the_part(out):
    path = out.with_name("out.scorer") / "ledger.parquet"
    first = name(out, parts(out)[0])
    relabel(path, lambda rows: rows.pop(0))
    found = faults(out)
    assert f"ledger: {first} is not listed" in found
    assert f"{first}: not in the ledger" in found
    relabel(path, lambda rows: rows.append(dict(rows[0])))
    assert any(fault.startswith("manifest: ledger is ") for fault in faults(out))


def test_a_removed_quarantine_file_is_named_with_its_part(out):
    files = sorted((out.with_name("out.scorer") / "quarantine").iterdir())
    assert len(files) == len({file.name.split(".")[0] for file in files}) >= FILES
    files[0].unlink()
    found = faults(out)
    assert len(found) == 1
    assert files[0].name in found[0]
    assert found[0].split(":")[0] in {name(out, part) for part in parts(out)}


def test_a_quarantine_file_with_other_rows_is_named(out):
    file = min((out.with_name("out.scorer") / "quarantine").iterdir())
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    assert [fault.split(": ")[1] for fault in faults(out)] == ["its quarantine file has 2 rows, expected 1"]


def test_a_broken_page_in_quarantine_is_found_with_deep(out):
    file = min((out.with_name("out.scorer") / "quarantine").iterdir())
    flip(file, "noise")
    found = faults(out, "--deep")
    assert any("quarantine" in fault for fault in found)


def test_verify_of_an_output_without_its_proof_lists_what_is_unchecked(out, tmp_path):
    away = tmp_path / "elsewhere" / "out"
    shutil.copytree(out, away)
    code, text, _ = cli("verify", away, "--json")
    found = json.loads(text)
    whole = json.loads(cli("verify", out, "--json")[1])
    assert (code, found["faults"], found["whole"]) == (5, [], False)
    assert (found["scored"], found["parts"]) == (whole["scored"], whole["parts"] - 1)
    assert "whether" in found["unchecked"][0]
    assert str(away.with_name("out.scorer")) in found["unchecked"][0]
    shutil.copy(parts(away)[0], parts(away)[1])
    text = cli("verify", away)[1]
    assert "part number 0 exists 2 times" in text
    assert "part number 1 is missing" in text
    (away / "stray.parquet").write_bytes(b"PAR1")
    assert "stray.parquet: cannot be read" in cli("verify", away)[1]


def test_moved_away_from_its_proof_deep_still_reads_every_score(out, tmp_path):
    away = tmp_path / "elsewhere" / "out"
    shutil.copytree(out, away)
    assert json.loads(cli("verify", away, "--deep", "--json")[1])["faults"] == []
    part = parts(away)[2]
    table = pq.ParquetFile(part).read()
    field = table.schema.field("value")
    scores = pa.array([(v or 0) + 1 for v in table["value"].to_pylist()], field.type)
    at = table.column_names.index("value")
    pq.write_table(table.set_column(at, field, scores), part)
    assert "column 'value' holds other values" in cli("verify", away, "--deep")[1]


def test_rows_scored_again_have_the_same_bits(out):
    code, text, _ = cli("verify", out, "--rescore", 40)
    assert (code, "scored again: 40 rows" in text, "all have the same bits" in text) == (0, True, True), text
    code, text, _ = cli("verify", out, "--rescore", 10**6, "--json")
    found = json.loads(text)
    assert (code, found["faults"]) == (0, [])
    assert found["rescored"].startswith(f"{found['scored']:,} rows of ")
    assert "all have the same bits" in found["rescored"]


def test_rows_that_now_score_differently_are_found(made, tmp_path):
    """Ledger, manifest and parts agree with each other, but not with the model."""
    shutil.copytree(made / "input", tmp_path / "input")
    asked = {"feed": "idx=idx", "where": "tens < 96", "max_bad_rows": 100, "cluster": "synchronous"}
    rng = np.random.default_rng(1)
    model = onnx.load(MODELS / "gather.onnx")
    onnx.save(model, tmp_path / "m.onnx")
    scorer.run(tmp_path / "input", tmp_path / "m.onnx", tmp_path / "out", **asked)
    assert cli("verify", tmp_path / "out", "--rescore", 5)[0] == 0
    files = sorted((tmp_path / "input").rglob("*.parquet"))
    table = pq.ParquetFile(files[0]).read()
    changed = table.set_column(0, "idx", pa.array(rng.integers(0, 10, len(table))))
    before = files[0].stat()
    write(files[0], changed, row_group_size=GROUP, compression="none")
    code, text, _ = cli("verify", tmp_path / "out", "--rescore", 2000)
    assert code == 5, text
    assert "cannot be scored again: the input changed" in text or "now differs by" in text
    data = files[0].read_bytes()
    if len(data) == before.st_size:
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
        assert "now differs by" in cli("verify", tmp_path / "out", "--rescore", 2000)[1]


def test_without_the_model_nothing_is_scored_again_and_that_is_reported(made, tmp_path):
    shutil.copy(MODELS / "gather.onnx", tmp_path / "m.onnx")
    shutil.copytree(made / "input", tmp_path / "input")
    asked = {"feed": "idx=idx", "max_bad_rows": 100, "cluster": "synchronous"}
    scorer.run(tmp_path / "input", tmp_path / "m.onnx", tmp_path / "out", **asked)
    scorer.release()
    (tmp_path / "m.onnx").unlink()
    code, text, _ = cli("verify", tmp_path / "out", "--rescore", 5)
    assert code == 5
    assert "cannot be scored again: the model is not the one that was planned" in text
    assert "scored again: no row\n" in text


@pytest.mark.parametrize("lost", ["plan.json", "manifest.json", "ledger.parquet"])
def test_without_its_proof_the_output_proves_nothing(lost, out):
    folder = out.with_name("out.scorer")
    (folder / lost).unlink()
    code, text, error = cli("verify", out)
    assert (code, text) == (5, "")
    assert error.startswith("Error: there is no proof beside the output")
    assert str(folder) in error
    assert "--work-dir" in error.splitlines()[-1]
    code, text, _ = cli("verify", out, "--json")
    assert code == 5
    assert json.loads(text)["error"]["what"] == "there is no proof beside the output"


def test_a_proof_of_another_version_is_not_reported_as_missing(made, out):
    path = out.with_name("out.scorer") / "plan.json"
    plan = json.loads(path.read_text())
    plan["request"]["format"], plan["versions"]["scorer"] = 1, "0.0.1"
    del plan["storage"]["copied"]
    path.write_text(json.dumps(plan))
    for name_, code in (("verify", 5), ("status", 5), ("report", 5)):
        found, _, error = cli(name_, out)
        assert found == code
        assert error.startswith("Error: another version of scorer created this output"), error
        assert "format 1, by scorer 0.0.1" in error
    flags = ("--model", MODELS / "gather.onnx", "--feed", "idx=idx", "--output", out, "--cluster", "synchronous")
    code, _, error = cli("run", made / "input", *flags)
    assert code == 3
    assert "the output of another version: format 1, by scorer 0.0.1" in error
    assert "no run of scorer" not in error
    code, _, _ = cli("run", made / "input", *flags, "--max-bad-rows", 200, "--overwrite")
    assert code == 0
    assert cli("verify", out)[0] == 0


@pytest.mark.parametrize("broken", ["plan.json", "manifest.json", "ledger.parquet"])
@pytest.mark.parametrize("contents", [b"", b"[]", b"{}", b"PAR1", b'{"a": 1}', b"\xff\xfe"])
def test_an_unreadable_proof_is_an_error_without_a_traceback(broken, contents, out):
    (out.with_name("out.scorer") / broken).write_bytes(contents)
    code, text, error = cli("verify", out)
    assert code == 5
    assert error.startswith("Error: ") or "manifest" in text


def test_a_ledger_with_nulls_is_an_error_without_a_traceback(out):
    def change(rows):
        rows[0]["rows"] = rows[0]["name"] = rows[1]["digests"] = None

    relabel(out.with_name("out.scorer") / "ledger.parquet", change)
    assert cli("verify", out)[0] == 5


def test_verify_changes_nothing(out, tmp_path):
    def look():
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = look()
    assert cli("verify", out, "--deep")[0] == 0
    assert look() == before
