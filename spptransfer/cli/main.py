"""Entry point: one place turns what went wrong into one line and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from spptransfer._version import __version__
from spptransfer.cli import caches, catalogues, pipelines, scoring
from spptransfer.cli.output import Output
from spptransfer.errors import SPPTransferError

DONE, INCOMPLETE, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Spatial-pyramid features from frozen networks, cached once; exact linear SVMs on top.",
)
pipelines.register(app)
scoring.register(app)
catalogues.register(app)
app.add_typer(caches.app, name="cache")


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        typer.echo(f"spptransfer {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of this process.

    Returns
    -------
    int
        0 done; 1 finished but something is missing or failed; 2 the user's input is wrong; 130
        interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        typer.echo(f"spptransfer {__version__}")
        return DONE
    try:
        command = typer.main.get_command(app)
        status = command.main(arguments, prog_name="spptransfer", standalone_mode=False)
        return int(status or DONE)
    except SPPTransferError as error:
        return _refuse(arguments, str(error), _status_of(error))
    except KeyboardInterrupt:
        return _refuse(arguments, "interrupted; everything finished so far is kept", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INCOMPLETE
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _refuse(arguments, _usage(error), WRONG_INPUT)


def _usage(error: Exception) -> str:
    """Message about wrong arguments, as one line."""
    message = " ".join(str(getattr(error, "format_message")()).split())  # noqa: B009
    return message or "wrong arguments; see spptransfer --help"


def _status_of(error: SPPTransferError) -> int:
    return INTERRUPTED if type(error).__name__ == "Interrupted" else WRONG_INPUT


def _refuse(arguments: Sequence[str], message: str, status: int) -> int:
    line = " ".join(message.split())
    print(f"spptransfer: {line}", file=sys.stderr)
    if "--json" in arguments:
        Output(quiet=False, json=True).finish(
            status="interrupted" if status == INTERRUPTED else "error", message=line
        )
    return status
