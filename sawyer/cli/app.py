"""The `sawyer` command: its groups, and the one place where an error becomes text and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, Any, Final, NoReturn

import typer

import sawyer
from sawyer.cli import demo, ledger, models, parts
from sawyer.cli.output import print_error, say, stdout
from sawyer.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, SawyerError

_BAD_ARGUMENTS: Final[Any] = typer.BadParameter.__bases__[0]
"""The base of all complaints about arguments (click's UsageError), which typer carries inside and does not export."""

app = typer.Typer(
    name="sawyer",
    help="Volunteer Mixture-of-Experts inference: remote experts over NATS, exact output, an auditable book.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog="Example: sawyer demo --prompt 'It was a' --kill")(demo.demo)
app.command(epilog="Example: sawyer bookkeeper --home DIR --nats nats://127.0.0.1:4222")(parts.bookkeeper)
app.command(epilog="Example: sawyer route austen-8m --home DIR --nats nats://127.0.0.1:4222")(parts.route)
app.command(epilog="Example: sawyer serve austen-8m --share 0/2 --home DIR --nats nats://127.0.0.1:4222")(parts.serve)
app.add_typer(models.app, name="models")
app.add_typer(ledger.app, name="ledger")


def _version(wanted: bool) -> None:
    if wanted:
        stdout().print(f"sawyer {sawyer.__version__}", markup=False)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the whole program."""


def main() -> NoReturn:
    """Run the command line; every way out has its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line. Known errors are printed in two lines; a traceback is a bug."""
    try:
        code = app(arguments, standalone_mode=False, prog_name="sawyer")
    except _BAD_ARGUMENTS as error:
        error.show(sys.stderr)
        return EXIT_USAGE
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted")
        return EXIT_INTERRUPTED
    except SawyerError as error:
        print_error(error)
        return error.exit_code
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # the reader of our pipe has gone: nothing is left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code if isinstance(code, int) else EXIT_DONE
