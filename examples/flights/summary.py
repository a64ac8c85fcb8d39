"""Summarise the scored flights in a few lines.

    python summary.py [SCORED]

SCORED is the folder (or file) that scorer wrote.  The default is
flights.scored.parquet beside this script.  The script needs pandas and pyarrow, and
the columns label, probabilities_1, carrier and arr_delay.
"""

import argparse
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds

DEFAULT = Path(__file__).resolve().parent / "flights.scored.parquet"
COLUMNS = ["label", "probabilities_1", "carrier", "arr_delay"]
LATE_MINUTES = 15
FEWEST_FLIGHTS = 100
CARRIERS = 5


def read_scores(path: Path) -> pd.DataFrame:
    """Read the columns needed from a scored file or a folder of them."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        message = f"{path}: no scored Parquet files; run scorer first"
        raise SystemExit(message)
    scored = ds.dataset([str(file) for file in files], format="parquet")
    missing = [name for name in COLUMNS if name not in scored.schema.names]
    if missing:
        message = f"{path}: no column {', '.join(missing)}; was the file scored, and the column kept?"
        raise SystemExit(message)
    frame: pd.DataFrame = scored.to_table(columns=COLUMNS).to_pandas()
    return frame


def auc(truth: pd.Series, score: pd.Series) -> float:
    """Return how often a late flight scores higher than a punctual one (a tie counts half)."""
    late = int(truth.sum())
    punctual = len(truth) - late
    if not late or not punctual:
        return float("nan")
    rank_sum = float(score.rank()[truth].sum())
    return (rank_sum - late * (late + 1) / 2) / (late * punctual)


def by_carrier(known: pd.DataFrame) -> pd.DataFrame:
    """Compare the expected and the actual share of late flights by carrier, highest expected share first."""
    table = known.groupby("carrier").agg(
        flights=("late", "size"),
        expected=("probabilities_1", "mean"),
        actual=("late", "mean"),
    )
    table = table[table["flights"] >= FEWEST_FLIGHTS]
    return table.sort_values("expected", ascending=False).head(CARRIERS)


def main() -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description="Summarise the scored flights.")
    parser.add_argument("scored", type=Path, nargs="?", default=DEFAULT)
    scored = read_scores(parser.parse_args().scored)

    known = scored.dropna(subset=["arr_delay", "label", "probabilities_1"])
    known = known.assign(late=known["arr_delay"] > LATE_MINUTES)
    predicted = known["label"] == 1
    area = auc(known["late"], known["probabilities_1"])
    accuracy = (predicted == known["late"]).mean()

    print(f"flights scored             {len(scored):>8,}")
    print(f"  whose arrival is known   {len(known):>8,}")
    print(f"predicted late             {predicted.mean():>8.1%}  of those")
    print(f"actually late              {known['late'].mean():>8.1%}  (over 15 minutes)")
    print(f"prediction right           {accuracy:>8.1%}")
    print(f"AUC                        {area:>8.3f}")
    print()
    print("carrier   flights   expected late   actually late")
    for name, row in by_carrier(known).iterrows():
        shares = f"{row['expected']:>16.1%}{row['actual']:>16.1%}"
        print(f"{name:<7}{row['flights']:>10,.0f}{shares}")


if __name__ == "__main__":
    main()
