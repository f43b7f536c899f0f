"""`sawyer keys rotate` and `revoke`: what they do. The new seed is on disk first, then the book is told, then the seed
takes its place: cut short anywhere, the same command finishes it. Owns no option and no rule."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sawyer import durable
from sawyer.bus.calls import ask, record
from sawyer.bus.protocol import Bus
from sawyer.cli.founding_keys import key_problem
from sawyer.cli.operating import operating, operators_pin
from sawyer.cli.own_book import open_book
from sawyer.cli.seeds import next_seed, put_in_place, settled
from sawyer.cli.session import checked_network, connected
from sawyer.clock import SystemClock
from sawyer.errors import RefusedError, UsageError
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key, load
from sawyer.ids import AccountId, NodeId, is_slug
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME, command
from sawyer.ledger.succession import check_remembered, trusted
from sawyer.schemas.events import KeyAdded, KeyRevoked, KeyRotated
from sawyer.schemas.messages import AccountQuery, AccountReply, EntryRef, MembersReply, NetworkReply
from sawyer.settings import Settings

if TYPE_CHECKING:
    from typing import Literal


@dataclass(frozen=True, slots=True)
class Rotated:
    """`entry` 0: the book had it already, and only the files were behind. `former`: where the old seed lies now.
    `vkey`: the ledger's new key, as `--key` takes it."""

    role: str
    name: str
    old: str
    new: str
    entry: int
    file: Path
    former: Path | None
    vkey: str = ""


async def rotate_operator(settings: Settings) -> Rotated:
    """Another operator key. The network may run meanwhile. Raises NotAuthorised."""
    home = settings.home
    operators_pin(home)
    before = load(home.operator_key).id
    async with operating(settings) as (founder, network):  # finishes a rotation that was cut short
        if load(home.operator_key).id != before:
            now = load(home.operator_key).id
            return Rotated(OPERATOR_NAME, OPERATOR_NAME, before, now, 0, home.operator_key, home.former_key(before))
        new = next_seed(home.operator_key, "O")
        body = KeyAdded(network=network.network, role="operator", name=OPERATOR_NAME, key=new.id)
        entry = await founder.record(body)
        await checked_network(founder.bus, home)  # remembers the successor before the old key leaves its place
    former = put_in_place(home, home.operator_key)
    return Rotated(OPERATOR_NAME, OPERATOR_NAME, before, new.id, entry.seq, home.operator_key, former)


def rotate_ledger(settings: Settings) -> Rotated:
    """Another key for the ledger: checkpoints from the next on are signed with it. The network must be down, for a
    running bookkeeper does not have the key. Raises Busy if one runs in this home, NotAuthorised."""
    home = settings.home
    pin = operators_pin(home)
    with home.alone():
        problem = key_problem(home, pin)
        if problem is not None:
            raise problem
        with closing(open_book(settings, pin)) as book:
            new = _next_ledger_key(home, _had(book.network(SystemClock().now_ms())))
        with closing(open_book(settings, pin)) as book:  # it writes with every key that is here: the new one, too
            return _rotate_ledger(book, home, pin, new)


def _next_ledger_key(home: Home, had: list[str]) -> Key:
    """On disk before the book is told; after a rotation that was cut short the one that it made."""
    new = _waiting(home, had) or Key.generate()
    file = home.ledger_successor(new.id)
    if not file.is_file():
        durable.create(file, f"{new.seed}\n".encode("ascii"))
    return new


def _had(told: NetworkReply) -> list[str]:
    """The ledger's keys after that of the founding, as the book knows them."""
    return [each.added.body.key for each in told.successors if each.added.body.role == LEDGER_NAME]


def _rotate_ledger(book: Book, home: Home, pin: Pin, new: Key) -> Rotated:
    clock = SystemClock()
    told = book.network(clock.now_ms())
    operator = settled(home, home.operator_key, trusted(pin, told.successors)[0])
    had, file = _had(told), home.ledger_successor(new.id)
    old = had[-1] if had else load(home.ledger_key).id
    body = KeyAdded(network=pin.network, role="ledger", name=LEDGER_NAME, key=new.id)
    (reply,) = book.commit([book.verify(command(body, OPERATOR_NAME, operator))], clock.now_ms())
    if reply.error is not None:
        raise reply.error.to_error()
    assert reply.entry is not None, "no error: an entry"
    check_remembered(home.successors, book.network(clock.now_ms()).successors)
    return Rotated(LEDGER_NAME, LEDGER_NAME, old, new.id, reply.entry.seq, file, None, vkey_of(pin.network, new))


def _waiting(home: Home, had: list[str]) -> Key | None:
    """A seed that was made for a rotation, and that the book does not know."""
    keys = (load(file) for file in home.ledger_successors())
    return next((key for key in keys if key.id not in had), None)


async def rotate_holder(settings: Settings, role: Literal["node", "account"], name: str) -> Rotated:
    """Another key for a node or an account that this home holds. Raises UsageError if its key is not here, RefusedError
    if the book knows it by a third one."""
    home = settings.home
    file = home.node_key(name) if role == "node" else home.account_key(name)
    if not is_slug(name) or not file.is_file():
        raise UsageError(
            f"no key of {role} {name} is in {home.path}", hint="Only who holds the key can replace it: --home DIR."
        )
    old = load(file)
    async with connected(settings, f"rotate {name}") as (bus, network):
        known = await _known_key(bus, role, name)
        new = next_seed(file)
        seq = 0
        if known == old.id:
            body = KeyRotated(network=network.network, role=role, name=name, key=new.id)
            seq = (await record(bus, command(body, name, old, new))).seq
        elif known != new.id:
            raise RefusedError(
                f"the book knows {role} {name} by the key {known}, and {file} is another one",
                hint="Bring the seed of that key into this file first.",
            )
    return Rotated(role, name, old.id, new.id, seq, file, put_in_place(home, file))


async def _known_key(bus: Bus, role: str, name: str) -> str:
    """The key that the book knows a holder by; "" for none."""
    if role == "account":
        return (await ask(bus, "account", AccountReply, AccountQuery(account=AccountId(name)))).key
    members = await ask(bus, "members", MembersReply)
    return next((each.key for each in members.nodes if each.node == NodeId(name)), "")


async def revoke(settings: Settings, key: str, since_ms: int, reason: str) -> EntryRef:
    """A key signs nothing any more: as the operator, or with that key itself if its seed is here. Raises UsageError if
    this home holds neither."""
    home = settings.home
    own = None if home.operator_key.is_file() else _holder_of(home, key)
    if own is None:
        async with operating(settings) as (founder, network):
            body = KeyRevoked(network=network.network, key=key, since_ms=since_ms, reason=reason)
            return await founder.record(body)
    name, seed = own
    async with connected(settings, f"revoke {name}") as (bus, network):
        body = KeyRevoked(network=network.network, key=key, since_ms=since_ms, reason=reason)
        return await record(bus, command(body, name, seed))


def _holder_of(home: Home, key: str) -> tuple[str, Key] | None:
    """The name and seed of a key that this home holds, in whatever role."""
    for file in sorted(home.keys.rglob("*.nk")):
        seed = load(file)
        if seed.id == key:
            return (file.stem if file.parent != home.former_key(key).parent else "holder"), seed
    return None
