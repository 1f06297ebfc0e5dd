"""``fedexperts``: exit code 0 done, 2 the input is wrong, 130 interrupted (and resumable), 1 anything else."""

from __future__ import annotations

import logging
import os
import sys

import click
import typer
from rich.text import Text

from .. import __version__
from ..errors import Diverged, InputError, RunError, hear_warnings, legible
from ..writing import PATHS
from .common import console, say, warn
from .lazy import LazyGroup
from .own_errors import theirs

INTERRUPTED = 130
app = typer.Typer(
    name="fedexperts",
    cls=LazyGroup,
    help="Federated tuning of Mixture-of-Experts models over networks that come and go.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,  # they may hold what is nobody's business
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


class _Log(logging.Handler):
    """What the package logs, as messages of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        warn(record.getMessage().removeprefix("warning: "))


_log = _Log(logging.WARNING)


def main() -> None:
    """Entry point."""
    hear_warnings(warn)
    logging.getLogger("fedexperts").addHandler(_log)
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        code = _refuse(error, 2)
    except (RunError, Diverged) as error:
        code = _refuse(error, 1)
    except BrokenPipeError:  # who reads our output has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more as it ends
        code = 1
    except OSError as error:
        told = f"{error.filename or 'files'}: {error.strerror or error}"
        wrong = error.errno in PATHS
        code = _refuse(
            f"{told}; {'correct the path, or name another' if wrong else 'make room, and try again'}", 2 if wrong else 1
        )
    except click.ClickException as error:
        vars(error).update(message=legible(error.message))
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        console.print("interrupted")
        code = INTERRUPTED
    except Exception as error:
        if not (told := theirs(error)):
            raise  # ours to mend, with all of it
        say(told)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(error: object, code: int) -> int:
    """One message, and the exit code."""
    console.print(Text.assemble(("error:", "bold red"), f" {legible(str(error))}"), soft_wrap=True)
    return code
