"""Show the pairs of reviews that mean the same.

    python show.py [SCORED]

SCORED is the folder that scorer wrote.  The default is scores beside this script.
The script needs the columns label, text and embedding.  The embeddings must have length one.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

DEFAULT = Path(__file__).resolve().parent / "scores"
PAIRS = 3
COPIES = 0.95
LABELS = {0: "bad ", 1: "good"}


def read_scores(path: Path) -> pa.Table:
    """Read the scored reviews."""
    if not path.exists():
        message = f"{path} does not exist; run scorer first"
        raise SystemExit(message)
    return ds.dataset(path, format="parquet").to_table(["label", "text", "embedding"])


def main() -> None:
    """Print the closest pairs, and how often the closest reviews have the same label."""
    parser = argparse.ArgumentParser(description="Show the reviews that are most alike.")
    parser.add_argument("scored", type=Path, nargs="?", default=DEFAULT)
    table = read_scores(parser.parse_args().scored).combine_chunks()
    embedding = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    label, text = table["label"].to_numpy(), table["text"].to_pylist()

    alike = embedding @ embedding.T
    np.fill_diagonal(alike, -1)
    nearest = alike.argmax(axis=1)
    closest = alike.max(axis=1)

    shown: set[int] = set()
    for one in np.argsort(-closest):
        other = int(nearest[one])
        if closest[one] > COPIES or shown & {int(one), other}:
            continue  # skip copies in which only a few words differ
        shown |= {int(one), other}
        print(f"cosine {closest[one]:.2f}")
        for row in (int(one), other):
            print(f"  {LABELS[int(label[row])]}  {textwrap.shorten(text[row], 100)}")
        if len(shown) == 2 * PAIRS:
            break

    same = (label == label[nearest]).mean()
    chance = ((label == 1).mean() ** 2) + ((label == 0).mean() ** 2)
    print(f"\n{len(text)} reviews")
    print(f"  a review and its closest one have the same label  {same:.0%}")
    print(f"  two random reviews have the same label            {chance:.0%}")


if __name__ == "__main__":
    main()
