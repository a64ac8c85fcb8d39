"""How a command reads its arguments and answers: help by topic, usage errors, results and exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scorer.cli.flags import HEADINGS
from scorer.display.words import did_you_mean, quoted_list
from scorer.errors import BatchStalled, CommitError, Interrupted, OptionsError, PreflightError, ScorerError
from scorer.host import streams
from scorer.options import store_options
from scorer.options.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scorer.display.terminal import Terminal


class Group(click.Group):
    """The `scorer` command. Its usage errors suggest the command that was probably meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; a flag before the command becomes an `OptionsError`."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name
            error_ = OptionsError(
                f"the flag {flag!r} must follow the command",
                where="scorer",
                expected="a command",
                found=repr(flag),
                hint=f"scorer run INPUT {flag} ...",
            )
            fail(error_, given)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command as click does; an unknown name becomes an `OptionsError` with a suggestion."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.commands:
            hint = did_you_mean(name, sorted(self.commands))
            if os.path.exists(name):
                hint = f"scorer run {name} --model FILE"
            error = OptionsError(
                f"unknown command {name!r}", where="scorer", expected="a command", found=repr(name), hint=hint
            )
            fail(error, args)
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """One command: its help groups the flags by topic, and its usage errors are `OptionsError`s."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of the help for each group of options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(HEADINGS.get(param.name or "", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; usage errors, and flags that are given too often, become `OptionsError`s."""
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [option for p in self.params for option in p.opts if option.startswith("--")]
            unknown = OptionsError(
                f"unknown flag {error.option_name!r}",
                where=f"scorer {self.name}",
                expected="a flag",
                found=repr(error.option_name),
                hint=did_you_mean(error.option_name, known, f"scorer {self.name} --help lists the flags"),
            )
            fail(unknown, given)
        except click.UsageError as error:
            misused = OptionsError(
                error.format_message().rstrip("."),
                where=f"scorer {self.name}",
                expected=self.get_usage(ctx).removeprefix("Usage: "),
                found=" ".join(given) or "nothing",
                hint=f"scorer {self.name} --help",
            )
            fail(misused, given)
        repeated = [] if ctx.resilient_parsing else self._repeated(ctx, given) + self._contradicting(ctx, given)
        if repeated:
            fail(PreflightError(repeated), given)
        return rest

    def _contradicting(self, ctx: click.Context, args: list[str]) -> list[OptionsError]:
        """Return an error for each switch that is turned on and off; click takes the last one without a word."""
        given = set(args)
        switches = [param for param in self.params if isinstance(param, click.Option) and param.secondary_opts]
        both = [p for p in switches if given.intersection(p.opts) and given.intersection(p.secondary_opts)]
        if not both:
            return []  # the usual case, at once
        parser = self.make_parser(ctx)
        for param in both:
            for names, value in ((param.opts, True), (param.secondary_opts, False)):
                parser.add_option(param, names, param.name, action="append_const", const=value)
        values = parser.parse_args([*args])[0]  # such a text may also be the value of another flag
        return [
            OptionsError(
                f"{param.opts[0]} and {param.secondary_opts[0]} contradict each other",
                where=f"scorer {self.name}",
                expected="one of them",
                found="both",
                hint=f"leave out {param.opts[0]} or {param.secondary_opts[0]}",
            )
            for param in both
            if len(set(values[param.name])) > 1
        ]

    def _repeated(self, ctx: click.Context, args: list[str]) -> list[OptionsError]:
        """Return an error for each flag with more values than the one it takes; click keeps the last without a word."""
        names = {option: param.name for param in self.params for option in param.opts}
        flags = [names.get(flag, flag) for text in args for flag in _flags_in(text)]
        if len(set(flags)) == len(flags):
            return []  # the usual case, at once
        parser = self.make_parser(ctx)
        single = [p for p in self.params if isinstance(p, click.Option) and not (p.multiple or p.is_flag or p.count)]
        for param in single:
            listing = copy(param)
            listing.multiple = True
            listing.add_to_parser(parser, ctx)
        values = parser.parse_args([*args])[0]
        return [
            OptionsError(
                f"{flag} was given more than once",
                where=f"scorer {self.name}",
                expected=f"one value for {flag}",
                found=quoted_list(values[param.name]),
                hint=f"leave out all but one {flag}",
            )
            for param in single
            if len(values.get(param.name, ())) > 1
            for flag in (param.opts[-1],)  # the long form is the last
        ]


def _flags_in(text: str) -> list[str]:
    """Return the flags that an argument may contain: `--model=m`, or several letters as in `-vm`."""
    if text.startswith("--"):
        return [text.partition("=")[0]]
    return [f"-{letter}" for letter in text[1:]] if text.startswith("-") else []


def fail(error: ScorerError, args: Sequence[str] = (), *, as_json: bool = False) -> NoReturn:
    """Print an error, also as JSON if that was asked for, and exit with its code."""
    if as_json or "--json" in args:
        click.echo(json.dumps({"error": error.to_dict()}))
    from scorer.display.terminal import error_text, terminal_of  # noqa: PLC0415 - only errors need it

    click.echo(error_text(str(error), terminal_of(sys.stderr)), err=True)
    sys.exit(error.exit_code)


def reports_errors(body: Callable[..., None]) -> Callable[..., None]:
    """Turn a `ScorerError` into text and an exit code.

    Any other exception is a bug in scorer and keeps its traceback.
    """

    @wraps(body)
    def wrapped(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - click's values
        try:
            body(*args, **kwargs)
        except ScorerError as error:
            if kwargs.get("debug"):
                raise
            try:
                fail(error, as_json=kwargs.get("as_json", False))
            finally:
                if isinstance(error, BatchStalled):  # a thread hangs in native code: a normal exit would wait for it
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(error.exit_code)
        except KeyboardInterrupt:
            from scorer.host.signals import INTERRUPTED_TEXT  # noqa: PLC0415 - start-up

            click.echo(INTERRUPTED_TEXT, err=True)
            sys.stderr.flush()
            os._exit(Interrupted.exit_code)  # a normal exit would wait for threads in native code

    return wrapped


def store_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Add --store-option to a command that reads an output or a model; it applies before the command starts."""

    def configure(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> None:  # noqa: ARG001 - click's signature
        if texts:
            from scorer.storage import stores  # noqa: PLC0415 - start-up

            try:
                stores.configure(store_options.parse(texts))
            except ScorerError as error:
                fail(error, as_json=bool(ctx.params.get("as_json")))

    meta = FIELDS["store_option"].metadata
    return click.option(
        "--store-option", multiple=True, metavar=meta["metavar"], help="As for `run`.", callback=configure,
        expose_value=False,
    )(command)  # fmt: skip


def show(value: dict[str, Any], text: Callable[[Terminal], str], *, as_json: bool, acted: bool = False) -> None:
    """Print a result; `acted` if the command did more than print, so that its exit code must not depend on this."""
    from scorer.cli.text import printable  # noqa: PLC0415 - start-up
    from scorer.display.terminal import terminal_of  # noqa: PLC0415 - start-up

    terminal = terminal_of(sys.stdout)
    shown = json.dumps(value) if as_json else text(terminal)
    coloured = terminal.colours and not as_json  # `printable` would escape the colour codes
    print_text(shown if coloured else printable(shown), acted=acted)


def print_text(text: str, *, acted: bool = False) -> None:
    """Print a text; if that fails, raise `CommitError` unless the command `acted` already."""
    click.echo(text)
    error = streams.lost()
    if error is None or error.errno == errno.EPIPE:  # a reader such as `head` has what it needs
        return
    if not acted:
        raise CommitError(
            "the result cannot be printed",
            where="standard output",
            expected="a file or a pipe that can be written",
            found=error.strerror or str(error),
            hint="write it to another file or disk",
        )
    click.echo(f"Warning: the result could not be printed: {error.strerror}. The exit code is valid.", err=True)
