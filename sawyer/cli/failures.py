"""How a command fails: an exception becomes one line on stderr, a hint and an exit code; a traceback only if asked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import traceback
from typing import Any, Final

import typer

from sawyer.cli.output import print_error, say
from sawyer.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, SawyerError, UsageError

DEBUG: Final = "--debug"
_BAD_ARGUMENTS: Final[Any] = typer.BadParameter.__bases__[0]
"""The base of all complaints about arguments (click's UsageError), which typer carries inside and does not export."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_HINTS: Final[dict[int, str]] = {
    **dict.fromkeys(_FULL, "Free some space there (`df -h` shows it), or use another --home."),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Check whose it is (`ls -l`), or use a home of your own: --home DIR."),
    errno.EROFS: "Use a home that can be written: --home DIR.",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "Raise the limit of open files: ulimit -n 4096."),
    errno.ENOTDIR: "Check the path: it leads through a file.",
    errno.EISDIR: "Check the path: a file is wanted there.",
    errno.ENOENT: "Check the path.",
}


def without_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` stands anywhere before `--`, and the other arguments."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [each for each in arguments[:end] if each != DEBUG]
    return len(kept) < end, kept + arguments[end:]


def report(error: BaseException, *, debug: bool) -> int:
    """Say what failed and what to do next; returns the exit code."""
    if debug and not isinstance(error, _BAD_ARGUMENTS):
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    error = _first(error)
    if isinstance(error, typer.Abort | KeyboardInterrupt | asyncio.CancelledError):
        say("interrupted")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError) and error.filename is None:
        _leave_stdout()  # the reader of our pipe has gone: nothing is left to say
        return EXIT_FAILED
    if isinstance(error, _BAD_ARGUMENTS):
        return _report_arguments(error)
    known = error if isinstance(error, SawyerError) else _as_known(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        _leave_stdout()  # what it could not write it would try to write again at the end
    print_error(known)
    return known.exit_code


def _first(error: BaseException) -> BaseException:
    """What went wrong inside tasks that ran together; of several, what we have words for."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    inside = [_first(each) for each in error.exceptions]
    return next((each for each in inside if isinstance(each, SawyerError)), inside[0])


def _report_arguments(error: Any) -> int:
    if type(error).__name__ != "NoArgsIsHelpError":  # which typer has printed already
        asked = f"{error.ctx.command_path} --help" if error.ctx is not None else "sawyer --help"
        print_error(UsageError(error.format_message().rstrip("."), hint=f"`{asked}` lists what there is."))
    return EXIT_USAGE


def _as_known(error: BaseException) -> SawyerError:
    if isinstance(error, OSError) and error.errno is not None:
        what = " -> ".join(str(each) for each in (error.filename, error.filename2) if each is not None)
        reason = error.strerror or os.strerror(error.errno)
        what = what or ("cannot write" if error.errno in _FULL else "")
        return SawyerError(f"{what}: {reason}" if what else reason, hint=_HINTS.get(error.errno, _DEBUG_HINT))
    detail = f": {error}" if str(error) else ""
    return SawyerError(f"sawyer failed unexpectedly ({type(error).__name__}{detail})", hint=_DEBUG_HINT)


_DEBUG_HINT: Final = f"Run it again with {DEBUG} to see where; that is what a bug report needs."


def _leave_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
