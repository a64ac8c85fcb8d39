"""List the wrong predictions, and draw all pictures the right way up.

    python show.py [SCORED]

SCORED is the folder that scorer wrote.  The default is scores beside this script.
The script needs Pillow and the columns picture, turned and chance_1.  It writes upright.png.
"""

import argparse
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
DEFAULT = HERE / "scores"
ACROSS = 4
WIDTH, HEIGHT = 192, 48
GRID, RED = 4, "#c00000"


def read_scores(path: Path) -> pa.Table:
    """Read the scored pictures."""
    if not path.exists():
        message = f"{path} does not exist; run scorer first"
        raise SystemExit(message)
    return ds.dataset(path, format="parquet").to_table(["picture", "turned", "chance_1"])


def tile(data: bytes, *, turn: bool, wrong: bool) -> Image.Image:
    """Return one picture turned as the model predicts, with a red edge if the prediction is wrong."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB").resize((WIDTH, HEIGHT))
    picture = picture.transpose(Image.Transpose.ROTATE_180) if turn else picture
    return ImageOps.expand(picture, GRID, RED if wrong else "white")


def main() -> None:
    """Print the wrong predictions and write the sheet of pictures."""
    parser = argparse.ArgumentParser(description="Turn the pictures the right way up.")
    parser.add_argument("scored", type=Path, nargs="?", default=DEFAULT)
    rows = read_scores(parser.parse_args().scored).to_pylist()

    wide, high = WIDTH + 2 * GRID, HEIGHT + 2 * GRID
    sheet = Image.new("RGB", (ACROSS * wide, -(-len(rows) // ACROSS) * high), "white")
    mistakes = []
    for i, row in enumerate(rows):
        turn = row["chance_1"] > 0.5
        wrong = turn != row["turned"]
        sheet.paste(tile(row["picture"], turn=turn, wrong=wrong), (i % ACROSS * wide, i // ACROSS * high))
        if wrong:
            mistakes.append(
                f"  row {i // ACROSS + 1}, column {i % ACROSS + 1}: {row['chance_1']:.0%} probability of upside down"
            )
    sheet.save(HERE / "upright.png")

    print(f"{len(rows)} pictures, {sum(row['turned'] for row in rows)} of them upside down")
    print(f"{len(rows) - len(mistakes)} turned the right way up, {len(mistakes)} wrong", *mistakes, sep="\n")
    print("upright.png shows all pictures; wrong ones have a red edge")


if __name__ == "__main__":
    main()
