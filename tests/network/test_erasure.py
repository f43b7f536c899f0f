"""Personal notes: in the book for ever, readable until their key is destroyed, and the book holds without it."""

from __future__ import annotations

import pytest

from sawyer.bus.calls import record
from sawyer.cli import erasing
from sawyer.cli.erasing import erase
from sawyer.cli.granting import Gift, day_ms, grant
from sawyer.cli.grants import grant_of_tokens
from sawyer.cli.notes import read_note
from sawyer.clock import SystemClock
from sawyer.economy.tiers import TIERS
from sawyer.errors import RefusedError, UnknownAccount, VerificationError
from sawyer.identity.keys import load
from sawyer.identity.sealing import SubjectKey, open_sealed, seal
from sawyer.ledger.commands import command
from sawyer.settings import Settings

NOTE = "Jane Roe, jane@example.org"
GIFT = Gift(0, TIERS["explorer"], day_ms(""), 0, NOTE)


def settings_of(network, account: str = "alice") -> Settings:
    return Settings.load(home=network.home.path, nats=network.url, account=account)


async def test_erased_note_stays_in_the_book_unreadable_and_nothing_more_is_sealed(founded):
    body, entry, _ = await grant(settings_of(founded), GIFT)
    (sealed,) = body.sealed
    assert read_note(founded.home, sealed) == NOTE
    assert NOTE.encode() not in founded.home.book.read_bytes()
    had_key, erased = await erase(settings_of(founded))
    assert had_key
    assert erased.seq > entry.seq
    assert read_note(founded.home, sealed) is None
    with pytest.raises(VerificationError):
        open_sealed(sealed, SubjectKey(b"another key of thirty-two bytes!"))
    with pytest.raises(RefusedError, match="alice is erased"):
        await grant(settings_of(founded), GIFT)
    late = grant_of_tokens(founded.network, "alice", 5, SystemClock().now_ms())
    late = late.changed(sealed=(seal("Jane again", "alice", SubjectKey(b"k" * 32)),))
    with pytest.raises(RefusedError, match="erased"):  # the ledger's own word, whatever key it is sealed with
        await record(founded.bus, command(late, "operator", load(founded.home.operator_key)))
    report = await founded.audit()
    assert report.problem is None, report.problem


async def test_tokens_can_be_granted_to_an_erased_account_without_a_note(founded):
    await erase(settings_of(founded))
    _, _, reply = await grant(settings_of(founded), Gift(7, None, 0, 0, ""))
    assert reply.balance.available >= 7


async def test_erasure_that_was_cut_short_before_its_entry_is_finished_by_running_it_again(founded, monkeypatch):
    body, _, _ = await grant(settings_of(founded), GIFT)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sawyer.cli.founding.Founder.record", die)
    with pytest.raises(KeyboardInterrupt):
        await erase(settings_of(founded))
    monkeypatch.undo()
    assert read_note(founded.home, body.sealed[0]) is None
    had_key, entry = await erase(settings_of(founded))
    assert (had_key, entry.kind) == (False, "subject.erased.v1")
    assert (await erase(settings_of(founded)))[1].seq == entry.seq, "once more is a repeat"


async def test_account_that_does_not_exist_is_refused_before_anything_is_destroyed(founded):
    SubjectKey.load_or_create(founded.home.subject_key("bob"))
    with pytest.raises(UnknownAccount):
        await erasing.erase(settings_of(founded, "bob"))
    assert founded.home.subject_key("bob").is_file()


async def test_same_period_granted_twice_is_one_grant(founded):
    first, entry, before = await grant(settings_of(founded), GIFT)
    again, repeated, after = await grant(settings_of(founded), GIFT)
    assert (again, repeated.seq, after.balance.granted) == (first, entry.seq, before.balance.granted)
    (bucket,) = [each for each in after.buckets if each.grant == first.grant]
    assert (bucket.tier, bucket.granted, bucket.expires_ms) == ("explorer", 500_000, first.expires_ms)
