"""Any class with the interface of Dask's clusters, by its name MODULE:CLASS: started, or connected to, and used."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from scorer.cluster import scripts
from scorer.cluster._overrides import silenced
from scorer.cluster.kinds.workers import Workers, client_of, is_remote, no_workers, running_workers
from scorer.display.words import cut, did_you_mean, quoted_list, without_secrets
from scorer.errors import ClusterError, OptionsError
from scorer.host import signals
from scorer.options.cluster_options import values_of
from scorer.options.values import is_class, parse_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from distributed import Client

    from scorer.options.fields import ClusterOptions


_NEW_WORKERS_S = 600  # a cloud may need minutes to start a machine, and a registry to send a container
_NOTICE_S = 5  # after so long without a worker, the wait is reported


def is_cluster(value: object) -> bool:
    """Return whether an object, or the objects of a class, have the interface of Dask's clusters."""
    methods = all(callable(getattr(value, name, None)) for name in ("scale", "close"))
    return methods and (inspect.isclass(value) or hasattr(value, "scheduler_address"))


def problem(options: ClusterOptions) -> OptionsError | None:
    """Return why the class of --cluster cannot be called with its options, if that is certain before it is called."""
    if not is_class(options.cluster):
        return None
    try:
        _call_of(options)
    except OptionsError as error:
        return error
    return None


@contextmanager
def start(
    options: ClusterOptions, folder: Path, notify: Callable[[str], None], environments: Sequence[Mapping[str, str]],  # noqa: ARG001 - as every kind
) -> Iterator[Workers]:  # fmt: skip
    """Yield the workers of a cluster of the class, and close it; with --cluster-name, connect and leave it running."""
    name, call = _name_of(options), _call_of(options)
    with signals.sigterm_as_interrupt():
        cluster = _called(call, name, options)
        with silenced():  # again: some classes set the level of Dask's logs
            try:
                with client_of(cluster) as client:
                    if options.cluster_name:
                        yield running_workers(client, name)
                    else:
                        _scale(cluster, options, name)
                        yield _first_workers(client, options, name, notify)
            finally:
                _close(cluster, name, notify)


def _close(cluster: Any, name: str, notify: Callable[[str], None]) -> None:  # noqa: ANN401 - clusters have no common class
    try:
        cluster.close()
    except Exception as error:  # noqa: BLE001 - classes raise what their services do, and the scores are safe
        notify(f"{name} was not closed: {_words(error)}; check that nothing of it still runs")


def _first_workers(
    client: Client, options: ClusterOptions, name: str, notify: Callable[[str], None]
) -> Workers:  # fmt: skip
    """Wait for the first worker of a cluster that was just started, unless it may have none until there is work."""
    if not options.adapt or parse_span(options.adapt)[0]:
        try:
            client.wait_for_workers(1, timeout=_NOTICE_S)
        except TimeoutError:
            notify(f"waiting for the first worker of {name}")
            try:
                client.wait_for_workers(1, timeout=max(0.1, _NEW_WORKERS_S - _NOTICE_S))
            except TimeoutError:
                hint = (
                    "see what the service of the cluster says about its workers"
                    if options.workers or options.adapt
                    else "add --workers N: not every class starts workers unless their number is given"
                )
                raise no_workers(name, _NEW_WORKERS_S, hint) from None
    remote = is_remote(client) or not client.nthreads()
    return Workers(client=client, description=name, no_worker_timeout_s=_NEW_WORKERS_S, remote=remote, owned=True)


def _name_of(options: ClusterOptions) -> str:
    """Return the cluster in a few words."""
    kind = (options.cluster or "").partition(":")[2]
    return f"{kind} {options.cluster_name}" if options.cluster_name else kind


def _call_of(options: ClusterOptions) -> Callable[[], Any]:
    """Return the call that starts the cluster, or connects to it; raise `OptionsError` if it cannot be made."""
    found, given = _imported(options.cluster or ""), values_of(options.cluster_option)
    arguments = [options.cluster_name] if options.cluster_name else []
    if options.cluster_name:
        if not callable(getattr(found, "from_name", None)):
            raise _no_names(options)
        found = found.from_name
    try:
        inspect.signature(found).bind(*arguments, **given)
    except TypeError as error:
        raise _wrong_options(options.cluster or "", found, str(error)) from None
    except ValueError:  # a class of an extension module has no signature
        pass
    return functools.partial(found, *arguments, **given)


def _no_names(options: ClusterOptions) -> OptionsError:
    return OptionsError(
        f"{options.cluster} cannot connect to a cluster by its name",
        where="--cluster-name",
        expected="a class with the method from_name",
        found=options.cluster or "",
        hint="give the address of its scheduler as --scheduler, or leave --cluster-name out",
    )


def _imported(name: str) -> Any:  # noqa: ANN401 - a class, or a function that returns a cluster
    """Import MODULE:CLASS; raise `OptionsError` with the package to install, or the class that was meant."""
    module, _, attribute = name.partition(":")
    try:
        with signals.keep_handlers():  # dask_jobqueue installs a SIGINT handler that exits with code 0
            imported = importlib.import_module(module)
    except Exception as error:
        raise _not_imported(name, module, error) from error
    try:
        found = functools.reduce(getattr, attribute.split("."), imported)
    except AttributeError:
        names = [one for one in dir(imported) if one.endswith("Cluster") and not one.startswith("_")]
        raise OptionsError(
            "the class of the cluster does not exist",
            where="--cluster",
            expected=f"a class of {module}",
            found=f"no {attribute} there",
            hint=did_you_mean(attribute, names) if names else f"{module} has no class whose name ends with Cluster",
        ) from None
    if callable(found) and (not inspect.isclass(found) or is_cluster(found)):
        return found
    raise _no_cluster(name, "a class without scale and close" if inspect.isclass(found) else type(found).__name__)


def _not_imported(name: str, module: str, error: Exception) -> OptionsError:
    """Return the error for a module that cannot be imported; the hint has the package to install if one is missing."""
    missing = (getattr(error, "name", None) or "") if isinstance(error, ModuleNotFoundError) else ""
    package = missing.partition(".")[0]
    if not missing:
        hint = f"repair the package, until `python -c 'import {module}'` works"
    elif missing != package:  # its package is installed
        hint = f"check the name: the package {package} has no module {missing}"
    else:
        hint = f"pip install {package.replace('_', '-')}, where scorer runs and where the workers run"
    return OptionsError(
        "the module of the cluster's class cannot be imported",
        where="--cluster",
        expected=f"the module {module} of {name}",
        found=_words(error),
        hint=hint,
    )


def _no_cluster(name: str, found: str) -> OptionsError:
    return OptionsError(
        f"{name} is no Dask cluster",
        where="--cluster",
        expected="a class with the interface of Dask's clusters, such as distributed:LocalCluster",
        found=found,
        hint="name the class of the cluster, as MODULE:CLASS",
    )


def _wrong_options(name: str, called: Callable[..., Any], why: str) -> OptionsError:
    """Return the error for options that the class does not take, with the names of those that it takes."""
    parameters = inspect.signature(called).parameters.values()
    names = [one.name for one in parameters if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}]
    more = any(one.kind is one.VAR_KEYWORD for one in parameters)
    known = quoted_list(names, 100) + (", and those of what it starts" if more else "")
    return OptionsError(
        f"{name} does not take these options",
        where="--cluster-option",
        expected=known,
        found=cut(why, 300),
        hint="give its options as --cluster-option NAME=VALUE; its documentation describes them",
    )


def _called(call: Callable[[], Any], name: str, options: ClusterOptions) -> Any:  # noqa: ANN401 - as above
    """Start the cluster or connect to it; raise a `ScorerError` with the first cause if that fails."""
    scripts.end_if_imported_by_a_worker()
    try:
        with signals.ignored_by_children(), redirect_stdout(sys.stderr):  # some classes print how far they are
            cluster = call()
    except Exception as error:
        if scripts.ended_in_import(error):
            raise scripts.without_guard(1) from None
        cause = scripts.causes_of(error)[-1]
        if options.cluster_name and isinstance(cause, NotImplementedError):  # as LocalCluster's method
            raise _no_names(options) from error
        if isinstance(cause, TypeError) and "argument" in str(cause):
            raise _wrong_options(name, call.func, str(cause)) from error  # type: ignore[attr-defined]  # a partial
        raise ClusterError(
            f"{name} cannot be reached" if options.cluster_name else f"{name} did not start",
            where=name,
            expected="a running cluster",
            found=_words(cause),
            hint="check its --cluster-option and Dask's configuration, which holds addresses and passwords",
        ) from error
    if not is_cluster(cluster):
        raise _no_cluster(name, f"it returns a value of type {type(cluster).__name__}")
    return cluster


def _scale(cluster: Any, options: ClusterOptions, name: str) -> None:  # noqa: ANN401 - as above
    """Request the workers; without --workers and --adapt, the cluster has those that its class starts."""
    flag = f"--adapt {options.adapt}" if options.adapt else f"--workers {options.workers}"
    fixed = getattr(cluster, "new_spec", cluster) is None  # such as SSHCluster: it has one worker for each host
    n_workers = len(cluster.worker_spec) if fixed else 0
    if fixed and (options.adapt or (options.workers or 0) > n_workers):
        raise _not_scaled(name, flag, f"it has {n_workers} workers, and cannot start more")
    try:
        if options.adapt:
            least, most = parse_span(options.adapt)
            cluster.adapt(minimum=least, maximum=most)
        elif options.workers and options.workers != n_workers:
            cluster.scale(options.workers)
    except Exception as error:
        raise _not_scaled(name, flag, _words(error)) from error


def _not_scaled(name: str, flag: str, found: str) -> ClusterError:
    return ClusterError(
        f"the number of workers of {name} cannot be set",
        where=flag.partition(" ")[0],
        expected=f"a class that can do {flag}",
        found=found,
        hint=f"leave {flag.partition(' ')[0]} out, and give the number as the class takes it, with --cluster-option",
    )


def _words(error: BaseException) -> str:
    """Return an error in one line, without secrets."""
    text = " ".join(str(error).split())
    return cut(without_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__), 300)
