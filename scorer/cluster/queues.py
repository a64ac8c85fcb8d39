"""Workers as jobs of a queue: Slurm, PBS, SGE, LSF, HTCondor, OAR, through dask-jobqueue.

The scheduler lives in the driver; each job is one worker process with all the job's cores. Settings come from Dask's
own configuration (jobqueue.yaml, environment), with the flags on top.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed.core import Status

from scorer.cluster._deadline import ENDS
from scorer.errors import ClusterError, NoWorkers, OptionsError
from scorer.host import signals
from scorer.options.values import QUEUES, parse_span, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scorer.options.request import ClusterOptions


_CLASSES = dict(
    zip(
        QUEUES, ("SLURMCluster", "PBSCluster", "SGECluster", "LSFCluster", "HTCondorCluster", "OARCluster"), strict=True
    )
)
_LOOKS = {
    "slurm": "squeue --noheader --format=%T --jobs={}",
    "pbs": "qstat {}",
    "sge": "qstat -j {}",
    "lsf": "bjobs -noheader -o stat {}",
    "htcondor": "condor_q -format %d JobStatus {}",
    "oar": "oarstat -j {}",
}
"""Commands that say nothing, or fail, once a job is over."""
_OVER = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DONE", "EXIT", "3", "4"}
_SUBMITTERS = {
    "slurm": "sbatch",
    "pbs": "qsub",
    "sge": "qsub",
    "lsf": "bsub",
    "htcondor": "condor_submit",
    "oar": "oarsub",
}
LOST_S = 12  # seconds without an answer, and a connection is lost; by default 30, and below 11 Dask refuses
SCHEDULER_CONFIG = {
    "distributed.comm.timeouts.tcp": f"{LOST_S}s",
    "distributed.scheduler.worker-ttl": "20s",
}
WORKER_CONFIG = {
    "distributed.comm.timeouts.tcp": f"{LOST_S}s",
    "distributed.worker.memory.spill": "False",
    "distributed.worker.memory.target": "False",
    "distributed.worker.profile.enabled": "False",
}
"""What our jobs and their scheduler need of Dask."""
_NODE_LOCAL = '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"'  # the job's shell knows; a shared folder would be slow
_SHARE = 0.87  # of a job's memory, what Dask may let its worker use: the rest is the nanny's, and native memory
_HOPELESS = 3  # jobs that end before a worker came, for each that was asked for
_LOG_BYTES = 2000
_ANSWER_S = 30.0  # until a queue has said which number a job has


@dataclass(slots=True)
class Jobs:
    """The jobs of one run."""

    system: str
    cluster: Any
    asked: int
    """Jobs; the most there may be, where they adapt."""
    adapts: bool
    logs: Path
    ended: int = 0
    """Jobs that ended before their worker came."""
    seen: set[str] = field(default_factory=set)
    """Names of workers that came."""
    asked_for: dict[int, float] = field(default_factory=dict)
    """When jobs without a number were first met."""

    def submit(self) -> None:
        """Ask for all of them, and wait until the queue has taken them; it may refuse."""
        for _ in range(self.asked):
            self.cluster.worker_spec.update(self.cluster.new_worker_spec())
        self._asking(self.cluster._correct_state)  # noqa: SLF001 - scale() does not tell what goes wrong

    def resubmit(self) -> None:
        """Ask again for jobs that are over; raises when they never bring a worker."""
        self._asking(self._resubmit)
        if self.ended > _HOPELESS * self.asked and not self.seen:
            what, hint = (
                "the jobs end before their workers come",
                f"look at the script: scorer cluster-script --cluster {self.system}",
            )
            raise NoWorkers(what, self.system, "workers that connect", self.last_words(), hint)

    def _asking(self, what: Callable[[], Any]) -> None:
        try:
            self.cluster.sync(what)
        except RuntimeError as error:
            for job in self.cluster._created:  # noqa: SLF001 - closing the cluster insists that all have started
                if not job.job_id:
                    job.status = Status.closed
            raise _refused(self.system, " ".join(str(error).split())) from error

    async def _resubmit(self) -> None:
        there = {str(worker.name) for worker in self.cluster.scheduler.workers.values()}
        self.seen |= there
        for name, job in list(self.cluster.workers.items()):
            if str(name) in there or await self._is_queued(job):
                continue
            if self.cluster.workers.get(name) is job:
                del self.cluster.workers[name]
                self.ended += str(name) not in self.seen
        if set(self.cluster.worker_spec) - set(self.cluster.workers):
            await self.cluster._correct_state()  # noqa: SLF001 - scale() does nothing where the number is the same

    async def _is_queued(self, job: Any) -> bool:  # noqa: ANN401 - dask-jobqueue is untyped
        """Whether the queue still has the job, waiting or running; a queue that does not answer is believed to."""
        if not job.job_id:  # it is being asked for, or was refused
            return time.monotonic() - self.asked_for.setdefault(id(job), time.monotonic()) < _ANSWER_S
        command = _LOOKS[self.system].format(job.job_id).split()
        try:
            said = await job._call(command)  # noqa: SLF001 - as it calls its own
        except RuntimeError as error:
            return "onnection" in str(error)
        except OSError:
            return True
        return bool(said.strip()) and said.split()[0] not in _OVER

    def last_words(self) -> str:
        """The end of the newest log that says something."""
        logs = sorted((p for p in self.logs.glob("*") if p.is_file()), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in logs:
            with suppress(OSError):
                lines = path.read_text("utf-8", "replace")[-_LOG_BYTES:].strip().splitlines()
                if lines:
                    return f"{lines[-1][:300]} ({path})"
        return f"nothing in the logs in {self.logs}"


def threads_of(options: ClusterOptions) -> int:
    """Scoring threads of a job."""
    configured = dask.config.get(f"jobqueue.{options.cluster}.cores", None)
    return options.threads or configured or 1


def jobs_of(options: ClusterOptions) -> int:
    """Jobs; the most there may be, where they adapt."""
    return parse_span(options.adapt)[1] if options.adapt else options.workers or 1


def script(options: ClusterOptions) -> str:
    """What would be submitted for each job; keys and addresses are made when it is."""
    with tempfile.TemporaryDirectory() as logs, _made(options, logs=Path(logs), folder=None) as cluster:
        return str(cluster.job_script()).replace(logs, "LOGS")


@contextmanager
def start(options: ClusterOptions, folder: Path) -> Iterator[Jobs]:
    """Jobs that bring workers, gone from the queue afterwards; logs and keys are in `folder`, seen from every node."""
    system = options.cluster or ""
    if shutil.which(_SUBMITTERS[system]) is None:
        what, hint = (
            f"{system} cannot be asked for jobs here",
            "run this where jobs are submitted, or choose another --cluster",
        )
        raise ClusterError(what, "this machine", f"the command {_SUBMITTERS[system]}", "none on the PATH", hint)
    logs = folder / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("keys-*"):  # of a driver that was killed: the lock is ours
        shutil.rmtree(old, ignore_errors=True)
    keys = Path(tempfile.mkdtemp(prefix="keys-", dir=folder))  # 0700
    try:
        with _made(options, logs, keys) as cluster:
            jobs = Jobs(system, cluster, jobs_of(options), adapts=options.adapt is not None, logs=logs)
            if options.adapt:
                least, most = parse_span(options.adapt)
                cluster.adapt(minimum_jobs=least, maximum_jobs=most)
            else:
                jobs.submit()
            yield jobs
        shutil.rmtree(logs, ignore_errors=True)  # nothing went wrong: nobody needs them
    finally:
        shutil.rmtree(keys, ignore_errors=True)
        for left in (logs, folder):
            with suppress(OSError):
                left.rmdir()  # only if nothing is in it


@contextmanager
def _made(options: ClusterOptions, logs: Path, folder: Path | None) -> Iterator[Any]:
    """The cluster of dask-jobqueue, without jobs; with no folder for keys, only to look at."""
    system = options.cluster or ""
    if importlib.util.find_spec("dask_jobqueue") is None:
        what, hint = f"jobs of {system} need a package that is not installed", "pip install 'dask-scorer[hpc]'"
        raise OptionsError(what, "--cluster", "dask-jobqueue", "nothing", hint)
    with signals.keep_handlers():  # it would make of every Ctrl-C an end without a fault
        import dask_jobqueue  # noqa: PLC0415 - an extra, and only for this

    kind = getattr(dask_jobqueue, _CLASSES[system])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own configuration file, and memory that a site may not take
            if folder is None:
                job = kind.job_cls(
                    "tls://SCHEDULER" if options.tls is not False else "tcp://SCHEDULER",
                    name="NAME",
                    **_settings(options, logs),
                )
                yield job
                return
            cluster = kind(
                security=keys() if options.tls is not False else None, shared_temp_directory=str(folder),
                scheduler_options={"dashboard_address": "127.0.0.1:0", "dashboard": options.dashboard},
                silence_logs="critical",
                **_settings(options, logs),
            )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise _refused(system, " ".join(str(error).split())) from error
    with cluster:
        yield cluster


def _settings(options: ClusterOptions, logs: Path) -> dict[str, Any]:
    """Keyword arguments of a job."""
    system, threads = options.cluster or "", threads_of(options)
    configured = dask.config.get(f"jobqueue.{system}", {})
    memory = options.memory or configured.get("memory")
    if memory is None:
        what, hint = "a job needs to say how much memory it wants", "add --memory, such as --memory 16GiB"
        raise OptionsError(what, f"--cluster {system}", "--memory, or memory in jobqueue.yaml", "neither", hint)
    limit = int(_SHARE * dask.utils.parse_bytes(memory))
    settings: dict[str, Any] = {
        "cores": threads,
        "memory": dask.utils.format_bytes(memory).replace(" ", "") if isinstance(memory, int) else memory,
        "processes": 1,
        "log_directory": str(logs),
        "local_directory": configured.get("local-directory") or ("/tmp" if system == "htcondor" else _NODE_LOCAL),  # noqa: S108 - a folder of the node
        "job_name": "scorer",
        "worker_extra_args": [
            *(configured.get("worker-extra-args") or ()),
            "--nthreads", str(threads + 1),  # one waits for the disk
            "--memory-limit", str(limit),
            "--dashboard-address", "127.0.0.1:0",
            "--no-dashboard",
        ],
        "job_script_prologue": [*(configured.get("job-script-prologue") or ()), *_prologue(options, configured)],
    }  # fmt: skip
    asked = {"queue": options.queue, "interface": options.interface}
    if system == "htcondor":
        settings["disk"] = configured.get("disk") or "1GB"
        for name, given in (("queue", options.queue), ("walltime", options.walltime)):
            if given:
                what = f"HTCondor knows no {name}"
                hint = f"leave --{name} out; --job-extra NAME=VALUE says what it knows"
                raise OptionsError(what, f"--{name}", "nothing", given, hint)
    else:
        asked["walltime"] = _as_written(system, options.walltime)
    settings |= {name: value for name, value in asked.items() if value is not None}
    if options.job_extra:
        extra = [*(configured.get("job-extra-directives") or ()), *options.job_extra]
        settings["job_extra_directives"] = dict(one.split("=", 1) for one in extra) if system == "htcondor" else extra
    return settings


def _prologue(options: ClusterOptions, configured: dict[str, Any]) -> list[str]:
    """What a job does before its worker: one thread for every library, and when the job must end."""
    lines = ["export ORT_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"]
    lines.append(" ".join(["export", *(f"{variable(name)}={value}" for name, value in WORKER_CONFIG.items())]))
    with suppress(ValueError, TypeError, KeyError):  # HTCondor knows none
        seconds = parse_walltime(options.walltime or configured["walltime"])
        lines.append(f'export {ENDS}="${{SLURM_JOB_END_TIME:-$(( $(date +%s) + {seconds} ))}}"')
    return lines


def variable(name: str) -> str:
    """Dask's environment variable for a setting."""
    return f"DASK_{name.replace('.', '__').replace('-', '_').upper()}"


def _as_written(system: str, walltime: str | None) -> str | None:
    """A time limit as a system writes it."""
    if walltime is None or system == "slurm":
        return walltime
    seconds = parse_walltime(walltime)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours:02}:{minutes:02}" if system == "lsf" else f"{hours:02}:{minutes:02}:{seconds % 60:02}"


def keys() -> Any:  # noqa: ANN401 - distributed is untyped
    """Certificates for this run alone."""
    from distributed import Security  # noqa: PLC0415 - needs cryptography, an extra

    if importlib.util.find_spec("cryptography") is None:
        what, hint = "TLS needs a package that is not installed", "pip install cryptography, or add --no-tls"
        raise OptionsError(what, "--tls", "cryptography", "nothing", hint)
    return Security.temporary()


def _refused(system: str, found: str) -> ClusterError:
    what, hint = "the job queue refuses the jobs", f"look at the script: scorer cluster-script --cluster {system}"
    return ClusterError(what, system, "jobs that are accepted", found[-500:], hint)
