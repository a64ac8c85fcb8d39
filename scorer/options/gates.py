"""The grammar of --gate: figures, their sums and differences, and one comparison. Knows no column and no type.

GATE       SUM op NUMBER      SUM between NUMBER and NUMBER      op is one of <= < >= > == = !=
SUM        TERM + TERM - ...      a term is a figure or a number
FIGURE     FUNCTION(ARGUMENT, ...)      the functions and their arguments are in `FUNCTIONS`
COLUMN     p      champion.label      'a name with spaces'
"""

from __future__ import annotations

import operator
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scorer.display.words import cut, did_you_mean, nearest
from scorer.errors import OptionsError
from scorer.locations import is_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


FUNCTIONS: dict[str, tuple[str, ...]] = {
    "count": ("condition?",),
    "share": ("condition",),
    "null_rate": ("column",),
    "nan_rate": ("column",),
    "mean": ("column",),
    "std": ("column",),
    "min": ("column",),
    "max": ("column",),
    "quantile": ("column", "number"),
    "psi": ("column", "baseline"),
    "agree": ("column", "column"),
    "accuracy": ("column", "column"),
    "corr": ("column", "column"),
    "max_diff": ("column", "column"),
    "auc": ("column", "column"),
}
"""The functions of figures with the kinds of their arguments; an argument with ? may be left out."""
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_EXAMPLES = {
    "count": "count() >= 1000", "share": "share('label = 1') <= 0.3", "quantile": "quantile(p, 0.99) < 1",
    "psi": "psi(p, baseline=OUT) <= 0.2", "agree": "agree(a, b) >= 0.98", "accuracy": "accuracy(truth, label) >= 0.9",
    "corr": "corr(a, b) >= 0.9", "max_diff": "max_diff(a, b) <= 1e-5", "auc": "auc(truth, p) >= 0.7",
}  # fmt: skip
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NAME = re.compile(r"[^\W\d]\w*(?:\.\w+)*")
_QUOTED = re.compile(r"'((?:[^']|'')+)'|\"((?:[^\"]|\"\")+)\"")
_PLAIN_PATH = re.compile(r"[^\s,()'\"]+")
_OPERATOR = re.compile(r"<=|<|>=|>|==|=|!=")
_SHOWN, _FOUND = 60, 20  # letters of a gate in an error message, before and after the place, and of what is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a gate, such as quantile(p, 0.99)."""

    function: str
    columns: tuple[str, ...] = ()
    number: str = ""
    """The number among its arguments, as it is written."""
    condition: str = ""
    baseline: str = ""
    """The location of the output that it is compared with."""

    def __str__(self) -> str:
        """Return the figure as it may be written."""
        words = [*map(_as_name, self.columns), self.number, _quoted(self.condition)]
        words += [f"baseline={_as_path(self.baseline)}"] if self.baseline else []
        return f"{self.function}({', '.join(filter(None, words))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A figure or a number, and whether it is added or subtracted."""

    sign: int
    figure: Figure | None = None
    number: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition on figures of a run's scores."""

    text: str
    """As it was written."""
    terms: tuple[Term, ...]
    op: str
    """The comparison, or 'between'."""
    limits: tuple[str, ...]
    """The number that the sum is compared with, or the two that it must be between."""
    warn: bool = False
    """Whether a failure is only reported."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Its figures."""
        return tuple(term.figure for term in self.terms if term.figure is not None)

    @property
    def limit(self) -> str:
        """The comparison and its limits, as text."""
        return f"{self.op} {' and '.join(self.limits)}"

    def allows(self, value: float) -> bool:
        """Return whether the sum of the terms may have this value."""
        limits = [float(limit) for limit in self.limits]
        if self.op == "between":
            return limits[0] <= value <= limits[1]
        return _COMPARE[self.op](value, limits[0])


def parse(text: str, *, warn: bool = False) -> Gate:
    """Return the parsed gate; raise `OptionsError` that shows the place in the text."""
    return replace(_Parser(text, "--gate-warn" if warn else "--gate").gate(), warn=warn)


def parse_all(gates: tuple[str, ...], warnings: tuple[str, ...]) -> tuple[Gate, ...]:
    """Return the parsed gates, those that are only reported last."""
    return (*(parse(text) for text in gates), *(parse(text, warn=True) for text in warnings))


def beside(text: str, folder: str) -> str:
    """Return a gate whose baselines are relative to this folder; a text that is no gate as it is."""
    parser = _Parser(text, "--gate")
    try:
        parser.gate()
    except OptionsError:
        return text
    for start, end, path in reversed(parser.paths):
        if not is_url(path):
            text = f"{text[:start]}{_as_path(os.path.join(folder, path))}{text[end:]}"
    return text


class _Parser:
    """Reads one gate from left to right."""

    def __init__(self, text: str, flag: str) -> None:
        self.text, self.flag, self.at = text, flag, 0
        self.paths: list[tuple[int, int, str]] = []
        """Where each baseline begins and ends in the text, and its path."""

    def gate(self) -> Gate:
        terms = [self.term(self.sign())]
        while (sign := self.take("+", "-")) is not None:
            terms.append(self.term(1 if sign == "+" else -1))
        if self.take_word("between"):
            first = self.number("a number")
            if not self.take_word("and"):
                self.fail("and, then the upper limit")
            op, limits = "between", [first, self.number("a number")]
            if float(first) > float(limits[1]):
                self.fail("a lower limit that is not above the upper one")
        else:
            found = self.match(_OPERATOR)
            if found is None:
                self.fail("a comparison, such as <= 0.2, or between 0.1 and 0.2")
            op, limits = "==" if found[0] == "=" else found[0], [self.number("a number")]
        self.skip()
        if self.at < len(self.text):
            self.fail("the end of the gate, which has one comparison")
        if all(term.figure is None for term in terms):
            self.at = 0
            self.fail("a figure, such as mean(COLUMN)")
        return Gate(text=self.text, terms=tuple(terms), op=op, limits=tuple(limits))

    def sign(self) -> int:
        return -1 if self.take("-") else 1

    def term(self, sign: int) -> Term:
        number = self.match(_NUMBER)
        if number is not None:
            return Term(sign=sign, number=float(number[0]))
        return Term(sign=sign, figure=self.figure())

    def figure(self) -> Figure:
        self.skip()
        start, name = self.at, self.match(_NAME)
        if name is None:
            self.fail("a figure, such as mean(COLUMN)")
        if name[0] not in FUNCTIONS:
            self.at = start
            meant = nearest(name[0], [*FUNCTIONS])
            hint = did_you_mean(name[0], [*FUNCTIONS]) if meant else ""
            self.fail("the name of a figure", hint or f"figures: {', '.join(FUNCTIONS)}")
        function = name[0]
        self.expect("(", function)
        figure = Figure(function=function)
        for n, kind in enumerate(FUNCTIONS[function]):
            if kind.endswith("?") and self.peek(")"):
                break
            if n:
                self.expect(",", function)
            figure = self.argument(figure, kind.rstrip("?"))
        self.expect(")", function)
        return figure

    def argument(self, figure: Figure, kind: str) -> Figure:
        if kind == "column":
            return replace(figure, columns=(*figure.columns, self.name("a column")))
        if kind == "condition":
            found = self.match(_QUOTED)
            if found is None:
                self.fail("a condition in quotes, such as 'label = 1'", figure.function)
            return replace(figure, condition=_unquoted(found))
        if kind == "number":
            self.skip()
            start, number = self.at, self.number("a share from 0 to 1")
            if not 0 <= float(number) <= 1:
                self.at = start
                self.fail("a share from 0 to 1")
            return replace(figure, number=number)
        return replace(figure, baseline=self.baseline(figure.function))

    def baseline(self, function: str) -> str:
        if not self.take_word("baseline"):
            self.fail("baseline=OUT, the output of an earlier run", function)
        self.expect("=", function)
        self.skip()
        start = self.at
        quoted = self.match(_QUOTED)
        plain = None if quoted else self.match(_PLAIN_PATH)
        if quoted is None and plain is None:
            self.fail("the location of an output", function)
        path = _unquoted(quoted) if quoted is not None else plain[0] if plain is not None else ""
        self.paths.append((start, self.at, path))
        return path

    def name(self, expected: str) -> str:
        quoted = self.match(_QUOTED)
        if quoted is not None:
            return _unquoted(quoted)
        plain = self.match(_NAME)
        if plain is None:
            self.fail(f"{expected}; names with other letters than a-z, 0-9 and _ are quoted")
        return plain[0]

    def number(self, expected: str) -> str:
        sign = "-" if self.take("-") else ""
        found = self.match(_NUMBER)
        if found is None:
            self.fail(expected)
        return sign + found[0]

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def peek(self, letter: str) -> bool:
        self.skip()
        return self.text.startswith(letter, self.at)

    def take(self, *letters: str) -> str | None:
        found = next((letter for letter in letters if self.peek(letter)), None)
        self.at += len(found or "")
        return found

    def take_word(self, word: str) -> bool:
        return self.match(re.compile(rf"{word}\b", re.IGNORECASE)) is not None

    def expect(self, letter: str, function: str) -> None:
        if self.take(letter) is None:
            self.fail(f"{letter!r}", function)

    def fail(self, expected: str, hint: str = "") -> NoReturn:
        """Raise the error for the current place; `hint` may be the name of a function, whose example is shown."""
        self.skip()
        first = max(0, min(self.at - _SHOWN // 2, len(self.text) - _SHOWN))
        shown = self.text[first : first + _SHOWN]
        what = "ends too early" if self.at >= len(self.text) else "cannot be read"
        if hint in FUNCTIONS:
            hint = f'for example {self.flag} "{_EXAMPLES.get(hint, f"{hint}(p) <= 0.2")}"'
        raise OptionsError(
            f"a condition of {self.flag} {what}",
            where=shown,
            expected=f"{' ' * (self.at - first)}^ {expected}",
            found=repr(cut(self.text[self.at :], _FOUND)) if self.at < len(self.text) else "the end of the text",
            hint=hint or f'for example {self.flag} "mean(p) between 0.05 and 0.2"',
        )


def _unquoted(found: re.Match[str]) -> str:
    return found[1].replace("''", "'") if found[1] is not None else found[2].replace('""', '"')


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'" if text else ""


def _as_name(name: str) -> str:
    return name if _NAME.fullmatch(name) else _quoted(name)


def _as_path(path: str) -> str:
    return path if _PLAIN_PATH.fullmatch(path) else _quoted(path)
