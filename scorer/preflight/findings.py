"""The problems and notes that the checks collect."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from scorer.errors import PlanError, PreflightError, ScorerError
from scorer.storage.footers import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scorer.options.fields import Options


@dataclass(slots=True)
class Findings:
    """Problems and notes, in the order in which the checks found them."""

    problems: list[ScorerError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def collecting(self, options: Options) -> Iterator[None]:
        """Add an error to `problems` instead of raising it."""
        try:
            yield
        except PreflightError as several:
            self.problems += several.problems
        except ScorerError as error:
            self.problems.append(error)
        except (pa.ArrowException, UnicodeDecodeError, MemoryError) as error:  # a file that is damaged inside
            self.problems.append(unreadable(", ".join(options.input), error))

    def doubt(self, options: Options, text: str, where: str) -> None:
        """Add a note that the scores may be wrong; with --strict, add a problem instead."""
        if options.scoring.strict:
            self.problems.append(
                PlanError(
                    text,
                    where=where,
                    expected="no warning about the scores (--strict)",
                    found="this warning",
                    hint="run without --strict to accept it",
                )
            )
        else:
            self.notes.append(text)
