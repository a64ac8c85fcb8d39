"""Every error scorer raises, and the exit code each one means.

ScorerError
  OptionsError            the request is wrong                     exit 2
  InputError              the dataset cannot be read               exit 3
    InputNotFound, UnreadableFile, InputChanged
  ModelError              the model cannot be used                 exit 3
    ModelNotFound, ModelLoadError, UnsupportedTensor, ProviderUnavailable
  BindingError            columns and tensors do not fit           exit 3
    MissingColumns, TypeMismatch, ShapeMismatch
  PlanError               it would not fit or would destroy        exit 3
    OutputExists, OutputInsideInput, DifferentPlan, OutputLocked
  ClusterError            retry or repair the cluster              exit 4
    NoWorkers, ModelNotResident, WorkerUnfit
  BatchError              the runtime refused a batch              (isolated, never shown alone)
    OutOfMemory
  PartError               one part failed                          exit 1
  BatchStalled            a batch hangs                            exit 1
  NativeCrash             native code ended the process            exit 1, or 3 before a row is scored
  RunFailed               rows or parts failed beyond the budget   exit 1
  CommitError             cannot write or publish                  exit 5
    OutputFull
  Interrupted             stopped on request; run it again         exit 130, 143
PreflightError            several of the above, reported together  the smallest of theirs
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from scorer.display.words import visible

if TYPE_CHECKING:
    from collections.abc import Iterable


class ScorerError(Exception):
    """Base of every error; five plain strings, so that it survives any pickle."""

    code: ClassVar[str] = "error"
    exit_code: int = 1

    def __init__(
        self,
        what: str,
        where: str = "",
        expected: str = "",
        found: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(what, where, expected, found, hint)
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        """One sentence, the facts a line each, the hint last."""
        lines = [visible(self.what)]
        facts = (("where", self.where), ("expected", self.expected), ("found", self.found))
        lines += [f"  {name + ':':<10}{visible(text)}" for name, text in facts if text]
        if self.hint:
            lines.append(f"Hint: {visible(self.hint)}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback; `%debug` still knows where it came from."""
        return f"{type(self).__name__}: {self}".splitlines()

    def to_dict(self) -> dict[str, Any]:
        """The same facts as data."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }


class OptionsError(ScorerError):
    """A flag, a TOML key or an argument is wrong."""

    code = "options"
    exit_code = 2


class InputError(ScorerError):
    """The dataset cannot be used as it is."""

    code = "input"
    exit_code = 3


class InputNotFound(InputError):
    """No file where the input should be."""

    code = "input-not-found"


class UnreadableFile(InputError):
    """A file is there and is not Parquet that can be read."""

    code = "unreadable-file"


class InputChanged(InputError):
    """The input is not what the plan saw."""

    code = "input-changed"


class ModelError(ScorerError):
    """The model cannot be used as it is."""

    code = "model"
    exit_code = 3


class ModelNotFound(ModelError):
    """No file where the model should be."""

    code = "model-not-found"


class ModelLoadError(ModelError):
    """The file is there and does not load."""

    code = "model-load"


class UnsupportedTensor(ModelError):
    """A tensor of a type or shape that scorer cannot fill or read."""

    code = "unsupported-tensor"


class ProviderUnavailable(ModelError):
    """The device that was asked for is not there."""

    code = "provider-unavailable"


class BindingError(ScorerError):
    """Columns and tensors do not fit together."""

    code = "binding"
    exit_code = 3


class MissingColumns(BindingError):
    """Columns that are needed are not in the dataset."""

    code = "missing-columns"


class TypeMismatch(BindingError):
    """A column's type cannot become the tensor's type."""

    code = "type-mismatch"


class ShapeMismatch(BindingError):
    """The number of columns or rows is not what the tensor says."""

    code = "shape-mismatch"


class PlanError(ScorerError):
    """The run would not fit, or would destroy something."""

    code = "plan"
    exit_code = 3


class OutputExists(PlanError):
    """The output is there already and is not this run's."""

    code = "output-exists"


class OutputInsideInput(PlanError):
    """The output would be written into the input, or over it."""

    code = "output-inside-input"


class DifferentPlan(PlanError):
    """An unfinished run of another request lies beside the output."""

    code = "different-plan"


class OutputLocked(PlanError):
    """Another run is writing this output now."""

    code = "output-locked"


class ClusterError(ScorerError):
    """The cluster cannot do the work; nothing is wrong with the request."""

    code = "cluster"
    exit_code = 4


class NoWorkers(ClusterError):
    """Nobody is there to score."""

    code = "no-workers"


class ModelNotResident(ClusterError):
    """A worker has no loaded model; carries the recorded cause."""

    code = "model-not-resident"


class WorkerUnfit(ClusterError):
    """One worker cannot score; `where` is its address. Others may."""

    code = "worker-unfit"


class BatchError(ScorerError):
    """The runtime refused one batch; `partition` isolates the rows."""

    code = "batch"


class OutOfMemory(BatchError):
    """The batch was too large for the device: no row is to blame."""

    code = "out-of-memory"


class PartError(ScorerError):
    """One part failed; `where` names the file and its rows."""

    code = "part"


class BatchStalled(ScorerError):
    """A batch took longer than --batch-timeout; the thread it is in cannot be ended."""

    code = "batch-stalled"


class NativeCrash(ScorerError):
    """The process is gone; only the one that waited for it can say so."""

    code = "native-crash"


class RunFailed(ScorerError):
    """Rows or parts failed beyond the budget; nothing was published."""

    code = "run-failed"


class CommitError(ScorerError):
    """Nothing was published, or what was published is no longer whole."""

    code = "commit"
    exit_code = 5


class OutputFull(CommitError):
    """No room, no quota or no right to write."""

    code = "output-full"


class Interrupted(ScorerError):
    """Stopped on request; what was committed is kept."""

    code = "interrupted"
    exit_code = 130


class PreflightError(ScorerError):
    """Several reasons why a run cannot start, reported together."""

    code = "preflight"

    def __init__(self, problems: Iterable[ScorerError]) -> None:
        self.problems = tuple(problems)
        Exception.__init__(self, self.problems)
        codes = {problem.exit_code for problem in self.problems}
        self.exit_code = min(codes - {OptionsError.exit_code}, default=OptionsError.exit_code)

    def __str__(self) -> str:
        """Every problem in full, numbered when there are several."""
        if len(self.problems) == 1:
            return str(self.problems[0])
        many = (f"{n}. {problem}" for n, problem in enumerate(self.problems, 1))
        return "\n\n".join([f"{len(self.problems)} problems were found; nothing was written.", *many])

    def to_dict(self) -> dict[str, Any]:
        """The same facts as data."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "problems": [problem.to_dict() for problem in self.problems],
        }
