"""Whoever trusts a network's pin trusts the keys that its operators put in their place, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sawyer.client.door import check_pinned, pin_of
from sawyer.errors import BadSignature, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import MAX_SIZE, Verifier, vkey_of
from sawyer.ledger.succession import known_successors, trusted
from sawyer.schemas.events import KeyAdded, Successor
from sawyer.schemas.messages import NetworkReply

NETWORK = "sawyer-net/3f9a1c22"
SECOND, THIRD = Key.from_raw(b"2" * 32, "O"), Key.from_raw(b"3" * 32, "O")
LATER, LATEST = Key.from_raw(b"4" * 32), Key.from_raw(b"5" * 32)

Told = Callable[..., NetworkReply]


def added(
    by: Key, role: str, key: Key, *, name: str = "", network: str = NETWORK, said_by: str = "operator", covered: int = 9
) -> Successor:
    body = KeyAdded(network=network, role=role, name=name or role, key=key.id)  # type: ignore[arg-type]
    return Successor(added=sign(body, "key.added.v1", said_by, by), covered=covered)


@pytest.fixture
def pin(keys: dict[str, Key]) -> Pin:
    return Pin(network=NETWORK, ledger_vkey=vkey_of(NETWORK, keys["ledger"]), operator=keys["operator"].id)


@pytest.fixture
def chain(keys: dict[str, Key]) -> tuple[Successor, ...]:
    """The operator adds a ledger key, hands over to a second, who adds another one."""
    return (
        added(keys["operator"], "ledger", LATER, covered=9),
        added(keys["operator"], "operator", SECOND, covered=12),
        added(SECOND, "ledger", LATEST, covered=20),
    )


@pytest.fixture
def told(pin: Pin) -> Told:
    def make(*successors: Successor) -> NetworkReply:
        return NetworkReply(
            network=pin.network, ledger_vkey=pin.ledger_vkey, operator=pin.operator, successors=successors, mode="test",
            models=(), size=1, checkpoint="a signed note", now_ms=1,
        )  # fmt: skip

    return make


@pytest.fixture
def home(tmp_path: Path, pin: Pin) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    made.write_pin(pin)
    return made


def test_pin_alone_is_trusted_where_nothing_was_replaced(pin: Pin, keys: dict[str, Key]) -> None:
    assert trusted(pin, ()) == (keys["operator"].id, (Verifier(NETWORK, keys["ledger"].public),))


def test_each_successor_of_the_operator_of_its_time_is_trusted(
    pin: Pin, chain: tuple[Successor, ...], keys: dict[str, Key]
) -> None:
    verifiers = (
        Verifier(NETWORK, keys["ledger"].public, 0, 9),
        Verifier(NETWORK, LATER.public, 10, 20),
        Verifier(NETWORK, LATEST.public, 21),
    )
    assert trusted(pin, chain) == (SECOND.id, verifiers)


def test_two_keys_of_the_ledger_in_one_batch_are_covered_by_one_checkpoint(pin: Pin, keys: dict[str, Key]) -> None:
    both = [added(keys["operator"], "ledger", key, covered=9) for key in (LATER, LATEST)]
    _, (_, between, newest) = trusted(pin, both)
    assert (between.first, between.last, newest.first) == (10, 9, 10)
    with pytest.raises(VerificationError, match="statement 2 is said to be covered by 8 entries"):
        trusted(pin, (both[0], both[1].model_copy(update={"covered": 8})))


def test_statement_of_a_stranger_or_of_a_former_operator_is_refused(
    pin: Pin, chain: tuple[Successor, ...], keys: dict[str, Key]
) -> None:
    for by in (THIRD, keys["mallory"], keys["operator"], keys["ledger"]):
        with pytest.raises(VerificationError, match="statement 4 is signed by"):
            trusted(pin, (*chain, added(by, "ledger", keys["mallory"])))


def test_successor_left_out_in_between_breaks_what_follows(pin: Pin, chain: tuple[Successor, ...]) -> None:
    with pytest.raises(VerificationError, match="statement 2"):
        trusted(pin, (chain[0], chain[2]))


def test_statement_for_another_network_or_under_another_name_is_refused(pin: Pin, keys: dict[str, Key]) -> None:
    for lie in ({"network": "other-net/3f9a1c22"}, {"said_by": "router"}):
        with pytest.raises(VerificationError, match="statement 1"):
            trusted(pin, (added(keys["operator"], "ledger", LATER, **lie),))


def test_role_that_has_no_successors_and_an_operator_key_that_is_none_are_refused(
    pin: Pin, keys: dict[str, Key]
) -> None:
    for role in ("router", "operator"):
        with pytest.raises(VerificationError, match="which has no successors"):
            trusted(pin, (added(keys["operator"], role, LATER),))


def test_altered_statement_is_refused(pin: Pin, chain: tuple[Successor, ...]) -> None:
    said = chain[0].added
    altered = said.changed(body=said.body.changed(key=LATEST.id))
    with pytest.raises(BadSignature):
        trusted(pin, (chain[0].model_copy(update={"added": altered}),))


def test_pinned_home_takes_the_network_with_its_new_keys_and_remembers_them(
    home: Home, told: Told, chain: tuple[Successor, ...]
) -> None:
    assert check_pinned(told(), home)[0] == home.pin().operator  # type: ignore[union-attr]
    assert known_successors(home.successors) == ()
    assert check_pinned(told(*chain), home)[0] == SECOND.id
    assert known_successors(home.successors) == chain
    longer = (*chain, added(SECOND, "operator", THIRD))
    assert check_pinned(told(*longer), home)[0] == THIRD.id
    assert known_successors(home.successors) == longer


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_network_that_leaves_out_a_key_that_the_home_was_told_is_refused(
    home: Home, told: Told, chain: tuple[Successor, ...], kept: int
) -> None:
    check_pinned(told(*chain), home)
    with pytest.raises(VerificationError, match="is left out") as caught:
        check_pinned(told(*chain[:kept]), home)
    assert "ask its operator" in caught.value.hint


def test_other_successor_than_the_one_remembered_is_refused(
    home: Home, told: Told, chain: tuple[Successor, ...], keys: dict[str, Key]
) -> None:
    check_pinned(told(*chain), home)
    forked = (chain[0], added(keys["operator"], "operator", THIRD), added(THIRD, "ledger", LATEST))
    with pytest.raises(VerificationError, match="is left out"):
        check_pinned(told(*forked), home)


def test_home_that_belongs_to_no_network_checks_the_chain_and_remembers_nothing(
    tmp_path: Path, told: Told, chain: tuple[Successor, ...], keys: dict[str, Key]
) -> None:
    nobody = Home(tmp_path / "nobody")
    assert check_pinned(told(*chain), nobody)[0] == SECOND.id
    assert not nobody.path.exists()
    with pytest.raises(VerificationError):
        check_pinned(told(added(keys["mallory"], "ledger", LATER)), nobody)


@pytest.mark.parametrize("order", [(9, 15), (15, 9)])
def test_of_two_places_that_were_told_for_a_key_the_smaller_counts_whoever_told_it_first(
    home: Home, told: Told, keys: dict[str, Key], order: tuple[int, int]
) -> None:
    """Where it stands is nobody's signed word: a lie may only take sizes from the key that was replaced."""
    for covered in order:
        _, verifiers = check_pinned(told(added(keys["operator"], "ledger", LATER, covered=covered)), home)
    assert [(each.first, each.last) for each in verifiers] == [(0, 9), (10, MAX_SIZE)]
    assert [each.covered for each in known_successors(home.successors)] == [9]


def test_damaged_memory_of_successors_is_named_and_never_taken_for_none(home: Home, told: Told) -> None:
    home.successors.write_text("{}\n")
    with pytest.raises(VerificationError, match=r"successors\.ndjson"):
        check_pinned(told(), home)


def test_pin_stays_that_of_the_founding(told: Told, chain: tuple[Successor, ...], pin: Pin) -> None:
    assert pin_of(told(*chain)) == pin
