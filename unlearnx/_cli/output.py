"""What a command writes and how it ends: results to stdout, its log and one sentence on what went wrong to stderr."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from typing import Any, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.text import Text
from typer.core import TyperGroup

from unlearnx._progress import stderr_console

NOT_APPLIED, CANNOT, INTERRUPTED = 1, 2, 130  # exit statuses
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)  # their messages are sentences for the user
_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True}  # a line of text is printed as it is

Verdict = Sequence[tuple[str, object]]


class Output:
    """What a command writes: results to stdout, its log and errors to stderr.

    Args:
        command: its name, for errors.
        quiet: write errors and the verdict, but no log and no tables.
        as_json: write the result as JSON to stdout, and nothing else there.
    """

    def __init__(self, command: str, *, quiet: bool, as_json: bool):
        self.command, self.quiet, self.as_json = command, quiet, as_json
        self._stdout = sys.stdout

    def log(self, line: str) -> None:
        """Write a line to stderr, with the time."""
        if not self.quiet:
            stderr_console().print(Text(f"{datetime.now():%H:%M:%S}", "dim"), line, markup=False, **_PLAIN)

    def result(self, record: Any, *tables: RenderableType, verdict: Verdict = ()) -> None:
        """Write what the command found: with ``--json`` the record, otherwise the tables and the verdict below them.

        Args:
            record: everything that was found, made of values that JSON has.
            tables: what a person is shown of it; nothing with ``--quiet``.
            verdict: lines that are shown even with ``--quiet``: titles with values.

        Raises:
            OSError: standard output cannot be written to.
        """
        if self.as_json:
            from unlearnx.experiments.runs import to_json

            with self._writing():
                print(to_json(record), file=self._stdout)
            return
        console = Console(file=self._stdout)
        with self._writing():
            for table in () if self.quiet else tables:
                console.print(table)
            for title, value in verdict:
                console.print(Text(f"{title}: ").append(str(value), "bold"), **_PLAIN)

    def line(self, text: str) -> None:
        """Write a line of a result to stdout as it comes; with ``--json`` to the log."""
        if self.as_json:
            self.log(text)
        else:
            with self._writing():
                print(text, file=self._stdout)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
            self._stdout.flush()
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # what is left in the buffer has nowhere to go
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())
            raise type(error)(f"standard output cannot be written to: {error.strerror}") from error

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Say in one line on stderr why a command stops early: exit status 2 where it cannot work, 130 for Ctrl-C.

        What a user's own module prints in the meantime goes to stderr too.
        """
        try:
            with redirect_stdout(sys.stderr):
                yield
        except (Exception, KeyboardInterrupt) as error:
            _end(self.command, error)


class Commands(TyperGroup):
    """The commands. A wrong command line ends with one sentence and status 2, as everything else that cannot work."""

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **more: Any
    ) -> Any:
        """As typer's, but for the form of the errors."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **more)
        words = list(sys.argv[1:] if args is None else args)
        command = words[0] if words and words[0] in self.commands else ""
        try:
            status = super().main(args, standalone_mode=False, **more)
        except (Exception, KeyboardInterrupt) as error:
            try:
                _end(command, error)
            except typer.Exit as ending:
                status = ending.exit_code
        sys.exit(status if isinstance(status, int) else 0)


def command_line() -> str:
    """What was typed."""
    return shlex.join(["unlearnx", *sys.argv[1:]])


def _end(command: str, error: BaseException) -> NoReturn:
    if isinstance(error, typer.Exit):
        raise error
    interrupted = isinstance(error, (KeyboardInterrupt, typer.Abort))
    if sys.flags.dev_mode and not interrupted:  # python -X dev: whoever works on unlearnx sees where
        traceback.print_exception(error)
    if reason := "interrupted" if interrupted else _reason(error):
        line = Text(f"unlearnx {command}".rstrip(), "red").append(f": {reason}", "default")
        Console(stderr=True).print(line, **_PLAIN)
    raise typer.Exit(INTERRUPTED if interrupted else CANNOT) from error


def _reason(error: BaseException) -> str:
    """What went wrong, in one line; nothing where no command was given, and its help was shown instead."""
    if hasattr(error, "format_message"):  # a wrong command line
        return _one_line(error.format_message())
    if isinstance(error, EXPECTED) and str(error):
        return _one_line(str(error))
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {last[0].filename}, line {last[0].lineno}" if last else ""
    return f"failed{where}: {type(error).__name__}: {_one_line(str(error))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
