"""The keys that a home founded its network with: the operator's and the ledger's. Nobody can make them anew."""

from __future__ import annotations

from sawyer.errors import UsageError
from sawyer.home import Home, Pin
from sawyer.identity.keys import load
from sawyer.ledger.checkpoint import vkey_of


def key_problem(home: Home, pin: Pin) -> UsageError | None:
    """What is wrong with the operator's or the ledger's key, if either is in this home: it must be the pinned one.
    Raises what `load` does."""
    for file, what, fits in (
        (home.operator_key, "operator", lambda key: key.id == pin.operator),
        (home.ledger_key, "ledger", lambda key: vkey_of(pin.network, key) == pin.ledger_vkey),
    ):
        if file.exists() and not fits(load(file)):
            return UsageError(
                f"{file} is not the {what} key that {pin.network} was founded with",
                hint="Put the right one there, from a copy: nobody can make it anew.",
            )
    return None


def check_founded_here(home: Home, pin: Pin) -> None:
    """Raises UsageError unless both keys are here, and are the pinned ones."""
    lost = [file for file in (home.operator_key, home.ledger_key) if not file.exists()]
    if len(lost) == 2 and not home.book.exists():
        raise UsageError(
            f"{home.path} joined network {pin.network}, which others run",
            hint="To host its experts: sawyer serve. To run a network of your own: another --home.",
        )
    if lost:
        raise UsageError(
            f"{' and '.join(map(str, lost))} of network {pin.network} {'is' if len(lost) == 1 else 'are'} not here",
            hint="Restore it from a copy: nobody can make it anew. Or found another network, in another --home.",
        )
    problem = key_problem(home, pin)
    if problem is not None:
        raise problem
