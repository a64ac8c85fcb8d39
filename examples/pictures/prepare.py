"""Write a model and some pictures of text into this folder; half of the pictures are upside down.

Both come from two packages on PyPI, which must be installed but are not imported:

    pip install --no-deps rapidocr==3.10.0 scikit-image==0.26.0
    pip install pillow
    python prepare.py

orientation.onnx is RapidOCR's classifier of text lines (Apache-2.0).
pictures.parquet has pieces of a photographed page as JPEG, and whether each was turned.
"""

import io
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HERE = Path(__file__).resolve().parent
SEED = 4

# Left, top, right, bottom: the heading, then four lines of text.  All are wider than four times
# their height, because RapidOCR resizes such a line to 192 by 48 but adds a margin to a shorter one.
HEADING = [(left, 10, left + 112, 36) for left in (5, 75, 150, 190)]
LINES = [(left, top, left + 80, top + 19) for top in (48, 66, 84, 101) for left in range(4, 304, 30)]


def within(package: str, *path: str) -> Path:
    """Return the path of a file in an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"{package} is not installed; see the first lines of {Path(__file__).name}"
        raise SystemExit(message)
    return Path(spec.submodule_search_locations[0]).joinpath(*path)


def jpeg(picture: Image.Image) -> bytes:
    """Encode a picture as JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def main() -> None:
    """Copy the model and write the pictures."""
    model = within("rapidocr", "models", "ch_ppocr_mobile_v2.0_cls_mobile.onnx")
    shutil.copyfile(model, HERE / "orientation.onnx")
    with Image.open(within("skimage", "data", "page.png")) as page:
        pieces = [page.convert("RGB").crop(box) for box in HEADING + LINES]
    turned = np.random.default_rng(SEED).random(len(pieces)) < 0.5
    files = [
        jpeg(piece.transpose(Image.Transpose.ROTATE_180) if turn else piece)
        for piece, turn in zip(pieces, turned, strict=True)
    ]
    table = pa.table({"picture": pa.array(files, pa.binary()), "turned": turned})
    pq.write_table(table, HERE / "pictures.parquet")
    print(f"{len(files)} pictures, {turned.sum()} of them upside down")


if __name__ == "__main__":
    main()
