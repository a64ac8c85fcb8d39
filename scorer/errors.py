"""Every error that scorer raises: when it is raised, and the exit code of the command.

Catch `ScorerError` for all of them, or one of its subclasses. `scorer.ScorerError`, `scorer.PreflightError` and
`scorer.RunFailed` are the ones that most programs need; import the others from this module.

`prepare` never raises for a bad request: its plan has `problems`. `run`, `execute` and `score` raise all problems that
they find before the first row as one `PreflightError`, even if it is only one. The attributes of each error are texts:
`what`, `where`, `expected`, `found` and `hint`; `code` names its kind, and `exit_code` is that of the command.

    ScorerError             base of all
      OptionsError          2   an option is wrong, unknown or contradicts another
      InputError            3   the input cannot be used as it is
        InputNotFound       3   no such file or folder, or no Parquet file in it
        UnreadableFile      3   a file is not Parquet, is damaged, or may not be read
          StoreUnavailable  3   an object store does not answer, or only with errors
        InputChanged        3   a file, or the transform's code, has changed since the plan was made
      ModelError            3   the model cannot be used as it is
        ModelNotFound       3   the model or its external data does not exist, or may not be read
        ModelLoadError      3   the file is no ONNX model, or ONNX Runtime does not load it
        UnsupportedTensor   3   scorer cannot fill or read a tensor of this type or shape
        ProviderUnavailable 3   the requested device is not available
      BindingError          3   columns and tensors do not match in another way than the next three
        MissingColumns      3   the input has no such column
        TypeMismatch        3   a column's type cannot be converted to the tensor's
        ShapeMismatch       3   the number of columns, values or rows is not that of the tensor
      PlanError             3   the run would not fit on the disk, or --strict refuses it
        OutputExists        3   the output exists and is of another request, or is not scorer's
        OutputInsideInput   3   the output would be in the input, or over it
        DifferentPlan       3   an unfinished run with other options is in the output
        OutputLocked        3   another run is writing to this output
      ClusterError          4   the cluster cannot do the work, while the request is fine
        NoWorkers           4   no worker is available, or all of them ended
        ModelNotResident    4   a worker has no loaded model
        WorkerUnfit         4   one worker cannot score, but others may
      BatchError            1   the runtime rejected a batch; a run handles it and scores the other rows
        OutOfMemory         1   a batch did not fit into memory; a run tries smaller ones
      PartError             1   one part failed
      BatchStalled          1   a batch took longer than --batch-timeout
      NativeCrash           1   the process crashed in native code; 3 before scoring, 5 after it and in verify
      ConversionRefused     1   a converted model does not give the scores of the original
      OptimisationRefused   1   no candidate of `scorer optimise` is fast and exact enough
      RunFailed             1   more rows or parts failed than allowed, or `score` met a row that it cannot score
        GateFailed          1   the scores do not meet a --gate, and are not published
      CommitError           5   the output cannot be written, published or verified
        OutputFull          5   the disk or the quota is full, or scorer has no right to write there
      Interrupted         130   stopped by Ctrl-C; 143 by SIGTERM
      PreflightError            the lowest exit code of its `problems`, and 2 only if all are 2

Examples
--------
>>> import scorer
>>> try:
...     scorer.run("gone.parquet", "examples/flights/late.onnx")
... except scorer.PreflightError as error:
...     for problem in error.problems:
...         print(type(problem).__name__, problem.exit_code, problem.what)
InputNotFound 3 the input does not exist

"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from scorer.display.words import visible, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterable


class ScorerError(Exception):
    """Base of every error: what failed, where, what was expected, what was found, and a hint.

    All five are plain strings, so every error can be pickled. Passwords and signatures in URLs are left out.
    """

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
        what, where, expected, found, hint = map(without_secrets, (what, where, expected, found, hint))
        super().__init__(what, where, expected, found, hint)
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        """Return the error as text: a sentence, one line for each fact, and the hint."""
        lines = [visible(self.what)]
        facts = (("where", self.where), ("expected", self.expected), ("found", self.found))
        lines += [f"  {name + ':':<10}{visible(text)}" for name, text in facts if text]
        if self.hint:
            lines.append(f"Hint: {visible(self.hint)}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback; `%debug` still works."""
        return f"{type(self).__name__}: {self}".splitlines()

    def to_dict(self) -> dict[str, Any]:
        """Return the error as the dict that `--json` prints."""
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
    """A flag, a TOML key or a Python argument is wrong."""

    code = "options"
    exit_code = 2


class InputError(ScorerError):
    """The input dataset cannot be used as it is."""

    code = "input"
    exit_code = 3


class InputNotFound(InputError):
    """The input does not exist."""

    code = "input-not-found"


class UnreadableFile(InputError):
    """A file exists, but is not readable Parquet."""

    code = "unreadable-file"


class StoreUnavailable(UnreadableFile):
    """An object store did not answer for three minutes, or only with errors."""

    code = "store-unavailable"


class InputChanged(InputError):
    """The input, or the transform's code, has changed since the plan was made."""

    code = "input-changed"


class ModelError(ScorerError):
    """The model cannot be used as it is."""

    code = "model"
    exit_code = 3


class ModelNotFound(ModelError):
    """The model file does not exist."""

    code = "model-not-found"


class ModelLoadError(ModelError):
    """The model file exists, but does not load."""

    code = "model-load"


class UnsupportedTensor(ModelError):
    """scorer cannot fill or read a tensor of this type or shape."""

    code = "unsupported-tensor"


class ProviderUnavailable(ModelError):
    """The requested device is not available."""

    code = "provider-unavailable"


class BindingError(ScorerError):
    """The columns do not match the tensors of the model."""

    code = "binding"
    exit_code = 3


class MissingColumns(BindingError):
    """The dataset lacks columns that are needed."""

    code = "missing-columns"


class TypeMismatch(BindingError):
    """A column's type cannot be converted to the tensor's type."""

    code = "type-mismatch"


class ShapeMismatch(BindingError):
    """The number of columns, values or rows does not match the tensor's shape."""

    code = "shape-mismatch"


class PlanError(ScorerError):
    """The run would not fit or would overwrite files, or `--strict` refuses it."""

    code = "plan"
    exit_code = 3


class OutputExists(PlanError):
    """The output exists already and does not belong to this run."""

    code = "output-exists"


class OutputInsideInput(PlanError):
    """The output would be written into the input, or over it."""

    code = "output-inside-input"


class DifferentPlan(PlanError):
    """The output has an unfinished run with different options."""

    code = "different-plan"


class OutputLocked(PlanError):
    """Another run is writing to this output."""

    code = "output-locked"


class ClusterError(ScorerError):
    """The cluster cannot do the work; the request itself is fine."""

    code = "cluster"
    exit_code = 4


class NoWorkers(ClusterError):
    """No worker is available."""

    code = "no-workers"


class ModelNotResident(ClusterError):
    """A worker has no loaded model."""

    code = "model-not-resident"


class WorkerUnfit(ClusterError):
    """One worker cannot score, but others may; `where` is its address."""

    code = "worker-unfit"


class BatchError(ScorerError):
    """The runtime rejected a batch; scorer then finds the bad rows and scores the others."""

    code = "batch"


class OutOfMemory(BatchError):
    """The batch did not fit into the device's memory; scorer then retries with smaller batches."""

    code = "out-of-memory"


class PartError(ScorerError):
    """One part failed; `where` is its file and rows."""

    code = "part"


class BatchStalled(ScorerError):
    """A batch took longer than `--batch-timeout`; its thread cannot be stopped."""

    code = "batch-stalled"


class NativeCrash(ScorerError):
    """The process crashed in native code, or was killed; its parent process reports it."""

    code = "native-crash"


class ConversionRefused(ScorerError):
    """A converted model does not give the scores of the original; nothing was written."""

    code = "conversion-refused"


class OptimisationRefused(ScorerError):
    """No candidate of `scorer optimise` is fast and exact enough; nothing was written."""

    code = "optimisation-refused"


class RunFailed(ScorerError):
    """More rows or parts failed than allowed; nothing was published."""

    code = "run-failed"


class GateFailed(RunFailed):
    """The scores do not meet a condition of --gate; nothing was published."""

    code = "gate-failed"


class CommitError(ScorerError):
    """The output cannot be written or published, or a published output is damaged."""

    code = "commit"
    exit_code = 5


class OutputFull(CommitError):
    """The disk or the quota is full, or scorer has no right to write there."""

    code = "output-full"


class Interrupted(ScorerError):
    """Stopped by Ctrl-C or SIGTERM; committed parts are kept."""

    code = "interrupted"
    exit_code = 130


class PreflightError(ScorerError):
    """All reasons why a run cannot start, reported together; `problems` holds them."""

    code = "preflight"

    def __init__(self, problems: Iterable[ScorerError]) -> None:
        self.problems = tuple(problems)
        Exception.__init__(self, self.problems)
        codes = {problem.exit_code for problem in self.problems}
        self.exit_code = min(codes - {OptionsError.exit_code}, default=OptionsError.exit_code)

    def __str__(self) -> str:
        """Return every problem in full, numbered if there are several."""
        if len(self.problems) == 1:
            return str(self.problems[0])
        numbered = (f"{n}. {problem}" for n, problem in enumerate(self.problems, 1))
        return "\n\n".join([f"{len(self.problems)} problems were found; nothing was written.", *numbered])

    def to_dict(self) -> dict[str, Any]:
        """Return the error as the dict that `--json` prints."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "problems": [problem.to_dict() for problem in self.problems],
        }
