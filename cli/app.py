"""The Typer application: its commands, and how errors become one message and an exit code."""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from landscape import __version__
from landscape.errors import LandscapeError, TerminatedError, UsageError
from landscape.launch import launched
from landscape_cli import (
    batch,
    check,
    collect,
    compare,
    convert,
    demo,
    flat,
    hessian,
    information,
    init_task,
    inspect,
    modules,
    plot,
    show,
    slice,
    train,
    volume,
)
from landscape_cli.reporting import REPORT

__all__ = ["app", "run"]

app = typer.Typer(
    name="landscape",
    help="Measure the geometry of the loss around a trained network.",
    epilog="Start with: landscape demo. Every command has examples under --help.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _module in (
    *(demo, train, inspect, convert, init_task, check),
    *(hessian, volume, flat, modules, compare, slice, information),
    *(batch, collect, show, plot),
):
    _module.register(app)


_SEVERAL = ("hessian", "volume", "compare")  # Commands that work over several processes.


def _version(value: bool) -> None:
    if value:
        typer.echo(f"landscape {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Measure the geometry of the loss around a trained network."""


# What ends a run on a cluster: the scheduler's own signal, and those that users ask it to send.
_TERMINATING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


_SAVING_SECONDS = 10.0
_last_signal = -math.inf


def _terminate(number: int, frame: Any) -> None:
    global _last_signal
    now, before = time.monotonic(), _last_signal
    _last_signal = now
    if now - before < _SAVING_SECONDS:
        return  # Signals come in flocks, and a second one must not interrupt the saving.
    raise TerminatedError("terminated; finished units are saved and the same command resumes")


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code; never raises, never prints a traceback.

    With ``--debug`` the traceback of an error is shown. With ``--json`` exactly one JSON document
    goes to stdout, also on a failure.
    """
    arguments = list(argv)
    global _last_signal
    _last_signal = -math.inf
    previous = {number: signal.signal(number, _terminate) for number in _TERMINATING}
    try:
        _begin(arguments)
        code = app(arguments, standalone_mode=False, prog_name="landscape")
        if code == 130:  # Typer turns an interrupt into this exit code.
            REPORT.error("interrupted; finished units are saved and the same command resumes", 130)
        return REPORT.end(code if isinstance(code, int) else 0)
    except typer.TyperException as error:
        return REPORT.fail(_usage(error), error.exit_code)
    except typer.Abort:
        return REPORT.fail("aborted", 130)
    except LandscapeError as error:
        _trace()
        return REPORT.fail(str(error), error.exit_code)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            return 0  # Rich's way of saying that the reader of --help has gone.
        if not arguments or arguments[0].startswith("-"):
            # No command ran, and so no task: Typer completes words or prints its script and exits.
            return error.code if isinstance(error.code, int) else 0
        # Code of a task that exits in the middle of a run must not choose the exit code.
        _trace()
        return REPORT.fail(
            f"the task's code called sys.exit({error.code!r}) during the run; expected it to "
            "return or to raise an error. Run again with --debug to see where",
            3,
        )
    except Exception as error:
        _trace()
        return REPORT.fail(
            f"this is a bug in landscape: {type(error).__name__}: {error}. Run again with --debug "
            "and report the traceback",
            1,
        )
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        REPORT.close()


def _begin(arguments: Sequence[str]) -> None:
    """Start the report; of several processes of one analysis the first speaks."""
    command = _command(arguments)
    REPORT.begin(json="--json" in arguments, command=command, argv=arguments)
    REPORT.launch = launch = launched()
    if launch is None:
        return
    if command not in _SEVERAL and not {"--help", "-h"} & set(arguments):
        raise UsageError(
            f"landscape {command} works in one process, but torchrun or srun started "
            f"{launch.size}; only {', '.join(_SEVERAL[:-1])} and {_SEVERAL[-1]} share theirs out"
        )


def _trace() -> None:
    if REPORT.debug:
        traceback.print_exc()


def _command(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _usage(error: typer.TyperException) -> str:
    message = error.format_message()
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "landscape")
    # The parser tells what it expected, but not what it was given.
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    seen = f" (got {details[0]['input']!r})" if details and "input" in details[0] else ""
    told = f"{message.rstrip('.')}{seen}"
    end = "" if told.endswith("?") else "."
    return f"{told}{end} See: {path} --help" if message else f"See: {path} --help"
