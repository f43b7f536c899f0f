"""The two offices of a network, operator and ledger: who follows whom, and which key signs which checkpoint."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sawyer.errors import BookCorrupt, NotAuthorised, RefusedError, SawyerError, Superseded, VerificationError
from sawyer.identity.envelope import check_signed
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import Checkpoint, Verifier, vkey_of
from sawyer.ledger.decide import decide


def refuse(judge, asked, error: type[RefusedError], match: str) -> RefusedError:
    with pytest.raises(error, match=match) as caught:
        decide(judge.state, asked, judge.scene.now_ms)
    return caught.value


def accepted(book: Book, scene, *commands) -> None:
    assert [reply.error for reply in book.commit(commands, scene.now_ms)] == [None] * len(commands)


def signer_of(book: Book, scene) -> str:
    """Which of the ledger's keys the newest checkpoint verifies with."""
    found = []
    for name in ("ledger", "ledger-2", "ledger-3"):
        try:
            Checkpoint.verify(book.checkpoint(), Verifier.parse(vkey_of(scene.network, scene.keys[name])))
        except VerificationError:
            continue
        found.append(name)
    (name,) = found
    return name


# --- the operator -----------------------------------------------------------------------------------------------------


def test_old_operator_is_refused_after_its_successor_and_the_new_one_accepted(judge, scene) -> None:
    judge.write(scene.add_key("operator", "operator-2"))
    refuse(judge, scene.grant("february", 5), NotAuthorised, "expected the network's operator")
    judge.write(scene.say(scene.grant("february", 5).body, "operator-2", by="operator"))


def test_operators_facts_said_before_the_succession_are_repeats_after_it(judge, scene) -> None:
    """A command that is delivered again is no new command, and its answer no new permission."""
    succession = scene.add_key("operator", "operator-2")
    judge.write(succession)
    for again in (scene.grant("january", 500_000), succession):
        assert decide(judge.state, again, scene.now_ms).repeated


def test_new_operator_may_not_claim_what_the_old_one_said(judge, scene) -> None:
    """The same words from another key are judged as that key's: here it may say them, and they stand already."""
    judge.write(scene.add_key("operator", "operator-2"))
    body = scene.grant("january", 500_000).body
    assert decide(judge.state, scene.say(body, "operator-2", by="operator"), scene.now_ms).repeated
    refuse(judge, scene.say(body, "mallory", by="operator"), NotAuthorised, "expected the network's operator")


@pytest.mark.parametrize(
    ("role", "key", "name", "why"),
    [
        ("operator", "alice-2", "operator", "not a key for the role operator"),
        ("ledger", "operator-2", "ledger", "not a key for the role ledger"),
        ("router", "operator-2", "router-2", "not a key for the role router"),
        ("operator", "operator-2", "boss", "has the name operator"),
        ("ledger", "ledger-2", "ledger-2", "has the name ledger"),
        ("operator", "operator", "operator", "in office already"),
        ("ledger", "ledger", "ledger", "in office already"),
        ("router", "ledger", "router-2", "in office already"),
    ],
)
def test_office_for_the_wrong_key_or_under_another_name_is_refused(judge, scene, role, key, name, why) -> None:
    refuse(judge, scene.add_key(role, key, name=name), RefusedError, why)


@pytest.mark.parametrize("role", ["operator", "ledger"])
def test_office_given_by_anybody_but_the_operator_is_refused(judge, scene, role: str) -> None:
    refuse(judge, scene.add_key(role, f"{role}-2", by="mallory"), NotAuthorised, "expected the network's operator")


def test_office_said_again_after_a_third_key_took_it_is_no_repeat(judge, scene) -> None:
    """An acknowledgement would say that the second key is in office again."""
    second = scene.add_key("ledger", "ledger-2")
    judge.write(second, scene.add_key("ledger", "ledger-3"))
    assert "never had it" in refuse(judge, second, Superseded, "another key has it now").hint


def test_founding_operator_stays_the_root_that_is_pinned(judge, scene) -> None:
    judge.write(scene.add_key("operator", "operator-2"))
    assert judge.state.registry.network.operator == scene.operator
    assert judge.state.registry.operator == scene.keys["operator-2"].id


# --- the ledger -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(scene, tmp_path: Path) -> Path:
    """The folder of a closed book whose ledger key was replaced in its last batch."""
    book = scene.open(tmp_path, successors=("ledger-2",))
    accepted(book, scene, *scene.opening())
    accepted(book, scene, scene.add_key("ledger", "ledger-2"))
    book.close()
    return tmp_path


def test_batch_that_brings_a_new_ledger_key_is_signed_by_the_old_one_and_the_next_by_the_new(scene, tmp_path) -> None:
    book = scene.open(tmp_path, successors=("ledger-2",))
    accepted(book, scene, *scene.opening())
    accepted(book, scene, scene.grant("one", 1), scene.add_key("ledger", "ledger-2"), scene.grant("two", 2))
    assert signer_of(book, scene) == "ledger"
    assert book.vkey == vkey_of(scene.network, scene.keys["ledger-2"])
    accepted(book, scene, scene.grant("three", 3))
    assert signer_of(book, scene) == "ledger-2"
    book.close()


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_book_opens_with_the_ledgers_keys_however_long_ago_they_changed(scene, home: Path, batches: int) -> None:
    book = scene.open(home, successors=("ledger-2", "ledger-3"))
    for number in range(batches):
        accepted(book, scene, scene.grant(f"more-{number}", 1))
    book.close()
    again = scene.open(home, successors=("ledger-2",))
    assert again.size == 9 + batches
    assert signer_of(again, scene) == ("ledger-2" if batches else "ledger")
    again.close()


def test_two_successions_one_after_the_other(scene, home: Path) -> None:
    book = scene.open(home, successors=("ledger-2", "ledger-3"))
    accepted(book, scene, scene.add_key("ledger", "ledger-3"))
    assert signer_of(book, scene) == "ledger-2"
    accepted(book, scene, scene.grant("more", 1))
    assert signer_of(book, scene) == "ledger-3"
    root = book.root
    book.close()
    again = scene.open(home, successors=("ledger-3", "ledger-2"))
    assert again.root == root
    again.close()


def test_book_without_the_new_key_can_be_read_and_says_what_to_do_when_written(scene, home: Path) -> None:
    book = scene.open(home)
    assert book.balance("alice", scene.now_ms).available == 500_000
    with pytest.raises(SawyerError, match="it is not here") as caught:
        book.commit([scene.grant("more", 1)], scene.now_ms)
    assert "keys/ledgers/" in caught.value.hint
    assert scene.keys["ledger-2"].id in caught.value.message
    assert (book.size, book.balance("alice", scene.now_ms).granted) == (9, 500_000)
    book.close()


def test_ledger_key_that_this_writer_does_not_have_is_refused(scene, tmp_path: Path) -> None:
    """A book whose ledger key is nowhere could never be written again."""
    book = scene.open(tmp_path)
    accepted(book, scene, *scene.opening())
    key, more = book.commit([scene.add_key("ledger", "ledger-2"), scene.grant("more", 1)], scene.now_ms)
    assert "does not have the ledger key" in key.error.message
    assert "keys rotate ledger" in key.error.hint
    assert (more.error, book.size) == (None, 9)
    book.close()


def test_checkpoint_by_the_old_key_after_the_succession_is_refused_on_opening(scene, home: Path) -> None:
    book = scene.open(home, successors=("ledger-2",))
    accepted(book, scene, scene.grant("more", 1))
    forged = Checkpoint.read(book.checkpoint()).sign(scene.keys["ledger"])
    book.close()
    with sqlite3.connect(home / "book.sqlite") as connection:
        connection.execute(
            "UPDATE stored_events SET state=? WHERE rowid=(SELECT MAX(rowid) FROM stored_events)", (forged.encode(),)
        )
    connection.close()
    with pytest.raises(BookCorrupt, match="no valid signature"):
        scene.open(home, successors=("ledger-2",))


def test_ledgers_own_facts_are_signed_by_the_key_in_office(scene, home: Path) -> None:
    book = scene.open(home, successors=("ledger-2",))
    accepted(book, scene, scene.reserve(scene.order()))
    late_ms = scene.now_ms + 600_000
    (old,) = book.commit([scene.expiry(scene.order())], late_ms)
    assert old.error.code == "not_authorised"
    (expiry,) = book.expire(late_ms)
    assert expiry.signer.key_id == scene.keys["ledger-2"].id
    (reply,) = book.commit([expiry], late_ms)
    assert reply.error is None
    book.close()


@pytest.mark.parametrize("held", [9, 10])
def test_kept_checkpoint_by_any_key_that_held_the_office_is_this_ledgers(scene, home: Path, held: int) -> None:
    book = scene.open(home, successors=("ledger-2",))
    notes = {9: book.checkpoint()}
    accepted(book, scene, scene.grant("more", 1))
    notes[10] = book.checkpoint()
    book.close()
    scene.open(home, successors=("ledger-2",), held=notes[held]).close()
    stranger = Checkpoint.read(notes[held]).sign(scene.keys["ledger-3"])
    with pytest.raises(VerificationError, match="not of this ledger"):
        scene.open(home, successors=("ledger-2",), held=stranger)


def test_network_tells_the_signed_chain_from_the_pinned_keys_to_the_newest(scene, home: Path) -> None:
    book = scene.open(home, successors=("ledger-2", "ledger-3"))
    accepted(book, scene, scene.add_key("operator", "operator-2"))
    accepted(book, scene, scene.add_key("ledger", "ledger-3", by="operator-2"))
    told = book.network(scene.now_ms)
    book.close()
    assert (told.operator, told.ledger_vkey) == (scene.operator, scene.vkey)
    said = [(each.added.body.role, each.added.signature.key_id, each.covered) for each in told.successors]
    assert said == [
        ("ledger", scene.operator, 9),
        ("operator", scene.operator, 10),
        ("ledger", scene.keys["operator-2"].id, 11),
    ]
    for each in told.successors:
        check_signed(each.added, "key.added.v1")
