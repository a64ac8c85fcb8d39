"""`scorer`, and `python -m scorer`."""

from scorer import cli
from scorer.crash import survived


def main() -> None:
    """The command line, with somebody left to explain it if native code ends it."""
    survived(cli.main)


if __name__ == "__main__":
    main()
