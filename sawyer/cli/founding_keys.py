"""The keys of a home that runs its network: the operator's and the ledger's, of the founding and later. Nobody can make
one of them anew."""

from __future__ import annotations

from sawyer.cli.seeds import waiting_seed
from sawyer.errors import UsageError
from sawyer.home import Home, Pin
from sawyer.identity.keys import load
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.succession import known_successors, trusted


def key_problem(home: Home, pin: Pin) -> UsageError | None:
    """What is wrong with the operator's or the ledger's keys, if they are in this home: they must be the pinned ones,
    or those that replaced them, as far as this home was told. Raises what `load` does, VerificationError."""
    operator, verifiers = trusted(pin, known_successors(home.successors))
    if home.operator_key.exists():
        here = (load(home.operator_key), waiting_seed(home.operator_key))
        if operator not in [key.id for key in here if key is not None]:
            return _wrong(home, pin, "operator", operator == pin.operator)
    if home.ledger_key.exists():
        if vkey_of(pin.network, load(home.ledger_key)) != pin.ledger_vkey:
            return _wrong(home, pin, "ledger", True)
        newest = home.ledger_successor(verifiers[-1].key_id)
        if len(verifiers) > 1 and not newest.exists():
            return UsageError(
                f"{newest} is not here, and the ledger of {pin.network} signs with it now",
                hint="Put it there, from a copy: nobody can make it anew.",
            )
    return None


def check_founded_here(home: Home, pin: Pin) -> None:
    """Raises UsageError unless both keys are here, and are the network's."""
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


def _wrong(home: Home, pin: Pin, role: str, founding: bool) -> UsageError:
    file = home.operator_key if role == "operator" else home.ledger_key
    which = f"the {role} key that {pin.network} was founded with" if founding else f"the {role}'s key of {pin.network}"
    return UsageError(
        f"{file} is not {which}",
        hint="Put the right one there, from a copy: nobody can make it anew.",
    )
