"""Workers as jobs of a queue (Slurm, PBS, SGE, LSF, HTCondor, OAR), by dask-jobqueue.

The scheduler runs in the driver. Each job is one worker process with all the job's cores. Settings come from Dask's
configuration (jobqueue.yaml, environment variables); scorer's flags override them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import Security
from distributed.core import Status

from scorer.cluster._deadline import JOB_ENDS_VARIABLE
from scorer.cluster._overrides import DASK_CONFIG, WARNINGS
from scorer.cluster._servers import Scheduler
from scorer.cluster.dashboard import routes
from scorer.cluster.kinds._quoting import escape_macros, log_settings, quote, quoting, refuse_control_characters
from scorer.cluster.kinds.workers import Workers, client_of
from scorer.display.words import cut, without_secrets
from scorer.errors import ClusterError, NoWorkers, OptionsError
from scorer.host import signals
from scorer.options.values import QUEUES, parse_span, parse_walltime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from distributed import Client

    from scorer.options.fields import ClusterOptions


_CLASSES = dict(
    zip(
        QUEUES, ("SLURMCluster", "PBSCluster", "SGECluster", "LSFCluster", "HTCondorCluster", "OARCluster"), strict=True
    )
)
STATUS_COMMANDS = {
    "slurm": "squeue --noheader --format=%T --jobs={}",
    "pbs": "qstat {}",
    "sge": "qstat -j {}",
    "lsf": "bjobs -noheader -o stat {}",
    "htcondor": "condor_q -format %d JobStatus {}",
    "oar": "oarstat -j {}",
}
"""Commands that print the state of a job; they print nothing or fail once the job has finished."""
_FINISHED_STATES = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "DONE", "EXIT", "3", "4"}
_SUBMITTERS = {
    "slurm": "sbatch",
    "pbs": "qsub",
    "sge": "qsub",
    "lsf": "bsub",
    "htcondor": "condor_submit",
    "oar": "oarsub",
}
CONNECTION_TIMEOUT_S = 12
"""Seconds without an answer after which a connection counts as lost. Dask's default is 30, its minimum 11."""
SCHEDULER_CONFIG = {
    "distributed.comm.timeouts.tcp": f"{CONNECTION_TIMEOUT_S}s",
    "distributed.scheduler.worker-ttl": "20s",
}
WORKER_CONFIG = {
    "distributed.comm.timeouts.tcp": f"{CONNECTION_TIMEOUT_S}s",
    "distributed.worker.memory.spill": "False",
    "distributed.worker.memory.target": "False",
    "distributed.worker.profile.enabled": "False",
}
"""Dask settings of the jobs; `SCHEDULER_CONFIG` has those of their scheduler, in the driver."""
_NODE_LOCAL = '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"'  # expanded by the job's shell: a shared folder would be slow
_SCRATCH = '"$SCORER_SCRATCH"'
"""The worker's scratch folder, which the job creates for itself: Dask imports modules from there."""
_ROUTES = "distributed.worker.http.routes"
_WORKER_MEMORY_SHARE = 0.87  # of the job's memory; the nanny and native memory need the rest
_FAILED_JOBS_LIMIT = 3  # per requested job: how many may end without a worker before the run fails
_NO_WORKERS_S = 24 * 3600  # jobs may be queued for hours before they start
_LOG_BYTES = 2000
_JOB_ID_TIMEOUT_S = 30.0  # for the queue to return the number of a submitted job


@dataclass(slots=True)
class Jobs:
    """The jobs of one run."""

    system: str
    """The queue: `slurm`, `pbs`, ..."""
    cluster: Any
    """The cluster object of dask-jobqueue."""
    requested: int
    """Number of jobs to keep queued or running; the maximum if the number adapts to the work."""
    adaptive: bool
    logs: Path
    failed_jobs: int = 0
    """Number of jobs that ended before their worker connected."""
    connected: set[str] = field(default_factory=set)
    """Names of the workers that have connected at least once."""
    without_id_since: dict[int, float] = field(default_factory=dict)
    """When each job that has no number yet was first checked, by the job object's `id`."""

    def submit(self) -> None:
        """Submit all jobs, and wait until the queue has accepted them; raise if it rejects one."""
        for _ in range(self.requested):
            self.cluster.worker_spec.update(self.cluster.new_worker_spec())
        self._run(self.cluster._correct_state)  # noqa: SLF001 - scale() hides the errors of a submission

    def resubmit(self) -> None:
        """Submit finished jobs again; raise `NoWorkers` if they keep ending before a worker connects."""
        self._run(self._resubmit)
        if self.failed_jobs > _FAILED_JOBS_LIMIT * self.requested and not self.connected:
            raise NoWorkers(
                "the jobs end before their workers connect",
                where=self.system,
                expected="at least one worker",
                found=self.log_tail(),
                hint=f"check the job script: scorer cluster-script --cluster {self.system}, with the same job flags",
            )

    def _run(self, step: Callable[[], Any]) -> None:
        """Run a coroutine function in the cluster's event loop; raise `ClusterError` if a submission fails."""
        try:
            self.cluster.sync(step)
        except RuntimeError as error:
            for job in self.cluster._created:  # noqa: SLF001 - the cluster closes only if every job has started
                if not job.job_id:
                    job.status = Status.closed
            raise _rejected(self.system, " ".join(str(error).split())) from error

    async def _resubmit(self) -> None:
        running = {str(worker.name) for worker in self.cluster.scheduler.workers.values()}
        self.connected |= running
        for name, job in list(self.cluster.workers.items()):
            if str(name) in running or await self._is_queued(job):
                continue
            if self.cluster.workers.get(name) is job:
                del self.cluster.workers[name]
                self.failed_jobs += str(name) not in self.connected
        if set(self.cluster.worker_spec) - set(self.cluster.workers):
            await self.cluster._correct_state()  # noqa: SLF001 - scale() does nothing if the number stays the same

    async def _is_queued(self, job: Any) -> bool:  # noqa: ANN401 - dask-jobqueue is untyped
        """Return whether the queue has the job, waiting or running; True if the queue cannot be reached."""
        if not job.job_id:  # its submission is in progress, or was rejected
            return time.monotonic() - self.without_id_since.setdefault(id(job), time.monotonic()) < _JOB_ID_TIMEOUT_S
        command = STATUS_COMMANDS[self.system].format(job.job_id).split()
        try:
            status = await job._call(command)  # noqa: SLF001 - the way dask-jobqueue calls its own commands
        except RuntimeError as error:
            return "onnection" in str(error)
        except OSError:
            return True
        return bool(status.strip()) and status.split()[0] not in _FINISHED_STATES

    def log_tail(self) -> str:
        """Return the last line of the newest log that is not empty, and that log's path."""
        logs = sorted((p for p in self.logs.glob("*") if p.is_file()), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in logs:
            with suppress(OSError):
                lines = path.read_text("utf-8", "replace")[-_LOG_BYTES:].strip().splitlines()
                if lines:
                    return f"{cut(lines[-1], 300)} ({path})"
        return f"no job output in {self.logs}"


def threads_of(options: ClusterOptions) -> int:
    """Return the number of scoring threads of a job."""
    configured = dask.config.get(f"jobqueue.{options.cluster}.cores", None)
    return options.threads or configured or 1


def jobs_of(options: ClusterOptions) -> int:
    """Return the number of jobs; the maximum if the number adapts to the work."""
    return parse_span(options.adapt)[1] if options.adapt else options.workers or 1


def script(options: ClusterOptions) -> str:
    """Return the script that would be submitted for each job, with placeholders for addresses and keys."""
    with tempfile.TemporaryDirectory() as logs, _queue_cluster(options, logs=Path(logs), folder=None) as job:
        return str(job.job_script()).replace(logs, "LOGS")


@contextmanager
def start(
    options: ClusterOptions, folder: Path, notify: Callable[[str], None], environments: Sequence[Mapping[str, str]],  # noqa: ARG001 - as every kind
) -> Iterator[Workers]:  # fmt: skip
    """Yield workers that are jobs of a queue; cancel the jobs and remove their files afterwards."""
    with DASK_CONFIG.set(SCHEDULER_CONFIG), signals.sigterm_as_interrupt(), _submitted(options, folder) as jobs:
        threads = threads_of(options)
        many = f"{jobs.requested} job{'s' if jobs.requested > 1 else ''} x {threads} thread{'s' if threads > 1 else ''}"
        description = f"{jobs.system}: {'up to ' if jobs.adaptive else ''}{many}"
        with client_of(jobs.cluster) as client:
            if not jobs.adaptive:
                _wait_for_first_worker(client, jobs, notify)
            yield Workers(
                client=client, description=description, no_worker_timeout_s=_NO_WORKERS_S, scoring_threads=threads,
                ahead=options.ahead or 1, remote=True, owned=True, own_scheduler=True, resubmit=jobs.resubmit,
            )  # fmt: skip


def _wait_for_first_worker(client: Client, jobs: Jobs, notify: Callable[[str], None]) -> None:
    """Wait until the first worker connects; submit jobs again that end before that, a few times."""
    until, notified = time.monotonic() + _NO_WORKERS_S, False
    while not client.nthreads():
        if time.monotonic() > until:
            raise NoWorkers(
                "no job has started",
                where=jobs.system,
                expected="at least one worker",
                found=f"none after {_NO_WORKERS_S // 3600} h",
                hint=f"repeat the command, and run {STATUS_COMMANDS[jobs.system].split()[0]} while it waits "
                "to see why the jobs do not start",
            )
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=5)
            return
        if not notified:
            notify(f"waiting for {jobs.system} to start a job")
            notified = True
        jobs.resubmit()


@contextmanager
def _submitted(options: ClusterOptions, folder: Path) -> Iterator[Jobs]:
    """Submit the jobs and yield them; cancel them afterwards. `folder`, on every node, holds their logs and keys."""
    system = options.cluster or ""
    if shutil.which(_SUBMITTERS[system]) is None:
        raise ClusterError(
            f"this machine cannot submit {system} jobs",
            where="this machine",
            expected=f"the command {_SUBMITTERS[system]}",
            found="not on the PATH",
            hint="run scorer on a login node of the queue, or choose another --cluster",
        )
    logs = folder / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("keys-*"):  # left by a killed driver: this process holds the lock
        shutil.rmtree(old, ignore_errors=True)
    logs.mkdir(exist_ok=True)
    keys = Path(tempfile.mkdtemp(prefix="keys-", dir=folder))  # 0700
    try:
        with _queue_cluster(options, logs, keys) as cluster:
            jobs = Jobs(system, cluster, jobs_of(options), adaptive=options.adapt is not None, logs=logs)
            if options.adapt:
                least, most = parse_span(options.adapt)
                cluster.adapt(minimum_jobs=least, maximum_jobs=most)
            else:
                jobs.submit()
            yield jobs
        shutil.rmtree(logs, ignore_errors=True)  # only a run that fails keeps its logs
    finally:
        shutil.rmtree(keys, ignore_errors=True)
        for emptied in (logs, folder):
            with suppress(OSError):
                emptied.rmdir()  # fails if it is not empty


@contextmanager
def _queue_cluster(options: ClusterOptions, logs: Path, folder: Path | None) -> Iterator[Any]:
    """Yield dask-jobqueue's cluster, without jobs yet; without a folder for keys, one job that is never submitted."""
    system = options.cluster or ""
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise OptionsError(
            f"{system} jobs need a package that is not installed",
            where="--cluster",
            expected="dask-jobqueue",
            found="nothing",
            hint="pip install 'dask-scorer[hpc]'",
        )
    with signals.keep_handlers():  # the import installs a SIGINT handler that exits with code 0
        import dask_jobqueue  # noqa: PLC0415 - an extra, and only for this

    kind: Any = quoting(getattr(dask_jobqueue, _CLASSES[system]), system)
    try:
        # Some warnings are about an old configuration file, others about memory settings that some sites reject.
        with WARNINGS.ignored("", Warning):
            if folder is None:
                job = kind.job_cls(
                    "tls://SCHEDULER" if options.tls is not False else "tcp://SCHEDULER",
                    name="NAME",
                    **_settings(options, logs),
                )
                yield job
                return
            cluster = kind(
                security=temporary_security(system) if options.tls is not False else None,
                shared_temp_directory=str(folder),
                scheduler_options={"dashboard_address": "127.0.0.1:0", "dashboard": options.dashboard},
                scheduler_cls=Scheduler, silence_logs="critical",
                **_settings(options, logs),
            )  # fmt: skip
    except (ValueError, TypeError) as error:
        raise ClusterError(
            "dask-jobqueue rejected the settings of the jobs",
            where=system,
            expected="settings that it accepts",
            found=" ".join(str(error).split())[-500:],
            hint="check the cluster flags, and Dask's jobqueue.yaml",
        ) from error
    with cluster:
        yield cluster


def _settings(options: ClusterOptions, logs: Path) -> dict[str, Any]:
    """Return the keyword arguments of dask-jobqueue's job."""
    system, threads = options.cluster or "", threads_of(options)
    configured = dask.config.get(f"jobqueue.{system}", {})
    memory = options.memory or configured.get("memory")
    if memory is None:
        raise OptionsError(
            "the memory of the jobs is not set",
            where=f"--cluster {system}",
            expected="--memory, or memory in jobqueue.yaml",
            found="neither",
            hint="add --memory, such as --memory 16GiB",
        )
    limit = int(_WORKER_MEMORY_SHARE * dask.utils.parse_bytes(memory))
    refuse_control_characters("--output or --work-dir", str(logs.parent))
    for place, text in (("--queue", options.queue), ("--interface", options.interface)):
        refuse_control_characters(place, text or "")
    for one in options.job_extra:
        refuse_control_characters("--job-extra", one)
    log_directory, no_logs, redirect = log_settings(system, str(logs))
    settings: dict[str, Any] = {
        "cores": threads,
        "memory": dask.utils.format_bytes(memory).replace(" ", "") if isinstance(memory, int) else memory,
        "processes": 1,
        "log_directory": log_directory,
        "python": configured.get("python") or quote(system, sys.executable),
        "local_directory": escape_macros(system, _SCRATCH),
        "job_name": "scorer",
        "worker_extra_args": [
            *(configured.get("worker-extra-args") or ()),
            "--nthreads", str(threads + (options.ahead or 1)),  # while some wait for a disk or a store, others score
            "--memory-limit", str(limit),
            "--dashboard-address", "127.0.0.1:0",
            "--no-dashboard",
        ],
        "job_script_prologue": [
            *redirect, *(configured.get("job-script-prologue") or ()), *_prologue(options, configured)
        ],
    }  # fmt: skip
    requested = {"queue": options.queue, "interface": options.interface or configured.get("interface")}
    if system == "htcondor":
        settings["disk"] = configured.get("disk") or "1GB"
        for name, given in (("queue", options.queue), ("walltime", options.walltime)):
            if given:
                raise OptionsError(
                    f"HTCondor does not support --{name}",
                    where=f"--{name}",
                    expected="nothing",
                    found=given,
                    hint=f"leave --{name} out, or set HTCondor's own options with --job-extra NAME=VALUE",
                )
    else:
        requested["walltime"] = _format_walltime(system, options.walltime)
    settings |= {name: value for name, value in requested.items() if value is not None}
    if options.job_extra or no_logs:
        extra = [*no_logs, *(configured.get("job-extra-directives") or ()), *options.job_extra]
        settings["job_extra_directives"] = dict(one.split("=", 1) for one in extra) if system == "htcondor" else extra
    return settings


def _prologue(options: ClusterOptions, configured: dict[str, Any]) -> list[str]:
    """Return the lines of the job script before the worker: library threads, Dask settings, the job's end."""
    lines = [
        "export PYTHONSAFEPATH=1 ORT_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"
    ]
    lines.append(" ".join(["export", *(f"{variable(name)}={value}" for name, value in WORKER_CONFIG.items())]))
    served = routes(pages=options.dashboard)[_ROUTES]
    lines.append(f"export {variable(_ROUTES)}={quote(options.cluster or '', json.dumps(served))}")
    lines += _forwarded(options)
    lines += _scratch_lines(options.cluster or "", configured.get("local-directory") or _NODE_LOCAL)
    with suppress(ValueError, TypeError, KeyError):  # no walltime is set, or the system has none, as HTCondor
        seconds = parse_walltime(options.walltime or configured["walltime"])
        lines.append(f'export {JOB_ENDS_VARIABLE}="${{SLURM_JOB_END_TIME:-$(( $(date +%s) + {seconds} ))}}"')
    return lines


def _forwarded(options: ClusterOptions) -> list[str]:
    """Return the lines that set the variables of --forward-env; raise `OptionsError` for one that is not set here."""
    lines = []
    for name in options.forward_env:
        text = os.environ.get(name)
        if text is None or without_secrets(text) != text:
            raise OptionsError(
                "a variable cannot be passed on to the jobs",
                where=f"--forward-env {name}",
                expected="a variable that is set here and holds no secret",
                found="it is not set" if text is None else "a URL with a password or a signature",
                hint=f"set {name} before you start scorer, or leave it out",
            )
        refuse_control_characters(f"--forward-env {name}", text)
        lines.append(f"export {name}={quote(options.cluster or '', text)}")
    return lines


def _scratch_lines(system: str, base: str) -> list[str]:
    """Return the lines that create a scratch folder which only this user can use, and remove it with the job."""
    create = f"mkdir -p {base} && SCORER_SCRATCH=$(mktemp -d {base}/scorer-XXXXXXXX) || exit 1"
    lines = [create, f"trap 'rm -rf {_SCRATCH}' EXIT"]
    return [escape_macros(system, line) for line in lines]


def variable(name: str) -> str:
    """Return the environment variable of a Dask setting."""
    return f"DASK_{name.replace('.', '__').replace('-', '_').upper()}"


def _format_walltime(system: str, walltime: str | None) -> str | None:
    """Return a time limit in the format of the queue."""
    if walltime is None or system == "slurm":
        return walltime
    seconds = parse_walltime(walltime)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    return f"{hours:02}:{minutes:02}" if system == "lsf" else f"{hours:02}:{minutes:02}:{seconds % 60:02}"


def temporary_security(cluster: str) -> Security:
    """Create a TLS key and its certificate for this run only; who has the key may connect."""
    try:
        return Security.temporary()  # imports cryptography
    except ImportError as error:
        raise OptionsError(
            "TLS needs a package that cannot be imported",
            where=f"--cluster {cluster}",
            expected="cryptography",
            found=str(error.__context__ or error),
            hint="pip install --force-reinstall cryptography",
        ) from error


def _rejected(system: str, found: str) -> ClusterError:
    return ClusterError(
        f"{system} rejected the jobs",
        where=system,
        expected="jobs that are accepted",
        found=found[-500:],
        hint=f"check the job script: scorer cluster-script --cluster {system}, with the same job flags",
    )
