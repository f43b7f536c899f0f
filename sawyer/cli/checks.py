"""One finding of `sawyer doctor`, and how a check that cannot finish becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from sawyer.errors import MissingExtra, SawyerError

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"


@dataclass(frozen=True)
class Check:
    """`state` is OK, WARN (it works, or is not needed by everybody) or FAIL; `todo` is empty if it is OK."""

    state: str
    name: str
    found: str
    todo: str = ""

    @classmethod
    def of(cls, name: str, error: BaseException) -> Check:
        """What was found is that the check met this error. A package that is not there is only a warning: most
        commands work without."""
        if isinstance(error, SawyerError):
            state = WARN if isinstance(error, MissingExtra) else FAIL
            return cls(state, name, error.message, error.hint or "See the message.")
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            return cls(FAIL, name, f"{where}{error.strerror}", "Check the path and whose it is.")
        found = f"the check failed itself ({type(error).__name__}: {error})"
        return cls(FAIL, name, found, "Report it: `sawyer doctor --json` tells all that is needed.")


def run_all(checks: Iterable[tuple[str, Callable[[], Check]]]) -> list[Check]:
    """Every check, whatever becomes of the others."""
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # noqa: BLE001  whatever it is, it was found
        return Check.of(name, error)
