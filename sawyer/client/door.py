"""Who asks, and where: what a client was given, and for what was left out, what the `sawyer` command would use. Owns no
connection."""

from __future__ import annotations

from pathlib import Path

from sawyer.contexts import NatsTarget
from sawyer.errors import UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key
from sawyer.ids import AccountId, is_slug
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.succession import check_remembered, trusted
from sawyer.schemas.messages import NetworkReply
from sawyer.settings import Settings


def target_of(url: str | NatsTarget | None, context: str, creds: Path | None) -> NatsTarget:
    """Where to connect. An address alone is taken as it is, and no file is read; a context is looked up; without either
    the settings decide (flags of the command apart), as for `sawyer`. Raises UsageError."""
    if isinstance(url, NatsTarget):
        if context:
            raise UsageError("a NatsTarget and a context both say how to connect", hint="Give one of them.")
        return url.with_creds(creds) if creds else url
    if url and not context:
        return NatsTarget(url=url, creds=creds)
    return Settings.load(nats=url, context=context, creds=creds).where_nats()[0]


def home_of(url: str | NatsTarget | None, context: str) -> Home | None:
    """The home whose network is meant, where nothing else says which: it may be pinned."""
    return Settings.load().home if not url and not context else None


def check_pinned(network: NetworkReply, home: Home) -> tuple[str, tuple[Verifier, ...]]:
    """The operator's key now, and the keys that checkpoints may be signed with (ledger/succession.py). Raises
    VerificationError if this home is pinned to another network, ledger key or operator, or if a later key was not given
    by the operator of its time, or is left out."""
    pinned, found = home.pin(), pin_of(network)
    if pinned is None or pinned == found:
        now = trusted(found, network.successors)
        return now if pinned is None else trusted(found, check_remembered(home.successors, network.successors))
    if pinned.network != found.network:
        raise VerificationError(
            f"network {found.network} of operator {found.operator} answers, "
            f"and {home.path} is pinned to {pinned.network} of {pinned.operator}",
            hint="Connect to the NATS server of your own network (--nats, --context), or use another --home.",
        )
    what, got, expected = (
        ("ledger key", found.ledger_vkey, pinned.ledger_vkey)
        if pinned.ledger_vkey != found.ledger_vkey
        else ("operator", found.operator, pinned.operator)
    )
    raise VerificationError(
        f"what answers as {found.network} has the {what} {got}, and {home.path} is pinned to {expected}",
        hint="Trust it no further: somebody stands in for your network, or it was founded anew. Ask its operator.",
    )


def pin_of(network: NetworkReply) -> Pin:
    """What a home that belongs to this network trusts."""
    return Pin(network=network.network, ledger_vkey=network.ledger_vkey, operator=network.operator)


def identity_of(account: str | None, key: Key | Path | None) -> tuple[AccountId, Key]:
    """Who pays and signs. Without an account: the setting `account`; without a key: its key file in the home. Raises
    UsageError, or NotAuthorised for a key file that others may read."""
    if account is None or key is None:
        settings = Settings.load(account=account)
        account = settings["account"] if account is None else account
        key = settings.home.account_key(_checked(account)) if key is None else key
    return _checked(account), key if isinstance(key, Key) else Key.from_file(key)


def _checked(account: str) -> AccountId:
    if not is_slug(account):
        raise UsageError(
            f"{account!r} is not an account name",
            hint="Names are lower-case letters, digits, - and _, at most 63 characters.",
        )
    return AccountId(account)
