"""What a replay may be asked besides: balances as of a moment, a fast second audit, statements in question, memory."""

from __future__ import annotations

from pathlib import Path

import forging
import pytest
from forging import Rows

from sawyer.errors import UsageError
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ledger import replaying, verifying
from sawyer.ledger.book import Book
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.export import ndjson
from sawyer.ledger.replay import At, ReplayReport, replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.source_ndjson import NdjsonSource
from sawyer.schemas.events import RECEIPT_KIND, KeyRevoked, KeyRotated, WorkReceipted

DAY_MS = 86_400_000


@pytest.fixture
def rows(scene, tmp_path: Path) -> list[StoredRow]:
    """8 entries of opening; then a request a minute: 9, 10 completed, 11, 12 completed, 13, 14 voided; 15 holds."""
    book = scene.open(tmp_path, views=False)
    _commit(book, scene, *scene.opening())
    for number in (1, 2, 3, 4):
        scene.now_ms += 60_000
        order = scene.order(number)
        _commit(book, scene, scene.reserve(order))
        if number < 4:
            _commit(book, scene, scene.void(order) if number == 3 else scene.complete(order))
    book.close()
    return list(SQLiteSource(tmp_path / "book.sqlite").rows())


def _commit(book: Book, scene, *commands) -> None:
    assert [reply.error for reply in book.commit(commands, scene.now_ms)] == [None] * len(commands)


def ask(rows: list[StoredRow], scene, **options) -> ReplayReport:
    return replay(Rows(rows), key=scene.vkey, operator=scene.operator, workers=1, **options)


def tokens(report: ReplayReport) -> tuple[int, int, int]:
    (row,) = report.balances
    return row.available, row.held, row.consumed


# --- as of ------------------------------------------------------------------------------------------------------------


def test_balances_as_of_an_entry_are_those_of_the_book_that_ends_there(rows: list[StoredRow], scene) -> None:
    """Every prefix that ends with a checkpoint, whole and as of."""
    ends = [at for at, row in enumerate(rows, start=1) if row.is_checkpoint]
    for end in ends:
        alone = ask(rows[:end], scene)
        as_of = ask(rows, scene, at=At(seq=alone.size))
        assert (alone.ok, as_of.ok) == (True, True)
        assert (as_of.as_of, as_of.size) == (alone.as_of, 15)


def test_balances_as_of_a_time_hold_every_entry_up_to_it_and_none_after(rows: list[StoredRow], scene) -> None:
    start_ms = scene.now_ms - 4 * 60_000
    for minutes, expected in ((0, (500_000, 0, 0)), (1, (499_992, 0, 8)), (2, (499_984, 0, 16)), (4, (499_976, 8, 16))):
        assert tokens(ask(rows, scene, at=At(ts_ms=start_ms + minutes * 60_000))) == expected
        assert tokens(ask(rows, scene, at=At(ts_ms=start_ms + minutes * 60_000 + 59_999))) == expected


def test_balances_as_of_a_time_after_the_last_entry_leave_out_what_has_expired_by_then(rows, scene) -> None:
    """No entry has ended the grant yet: it is only that nothing of it could be reserved."""
    report = ask(rows, scene, at=At(ts_ms=scene.now_ms + 31 * DAY_MS))
    assert (tokens(report), report.as_of.seq) == ((0, 8, 16), 15)


def test_rest_of_the_book_is_verified_though_balances_are_as_of_an_earlier_entry(rows, scene) -> None:
    def steal(entry: forging.Fields) -> None:
        entry["decided"]["debited"][0]["tokens"] += 1

    forged = forging.rewrite(rows, scene.network, scene.keys["ledger"], steal, seq=12)
    assert ask(forged.list, scene, at=At(seq=9)).problem.seq == 12


def test_entry_beyond_the_end_is_the_callers_mistake(rows: list[StoredRow], scene) -> None:
    with pytest.raises(UsageError, match="there is no entry 16: the book has 15"):
        ask(rows, scene, at=At(seq=16))


def test_usage_and_money_are_told(rows: list[StoredRow], scene) -> None:
    of = ask(rows, scene).as_of
    assert [(u.model, u.requests, u.input_tokens, u.output_tokens, u.billed_tokens) for u in of.models] == [
        ("austen", 2, 10, 6, 16)
    ]
    assert [(u.host, u.requests, u.rows, u.work) for u in of.host_days] == [("bob", 2, 112, 112 * 221)]
    assert (of.earned_uusd, of.breakage_uusd, of.pool_uusd) == (160, 0, 112)


def test_pool_is_split_by_work_and_what_it_counts_for(scene, tmp_path: Path) -> None:
    """Two hosts do the same work; one keeps its promise of latency, one takes twice as long."""
    book = scene.open(tmp_path, views=False)
    _commit(book, scene, *scene.members()[:4], scene.node("node-a", "bob", promised_us=2000))
    _commit(book, scene, scene.node("node-b", "carol", promised_us=1000), scene.account(), scene.grant("january", 1000))
    order = scene.order(1)
    receipts = tuple(scene.delivered(scene.receipt(order, 28, node=node)) for node in ("node-a", "node-b"))
    _commit(book, scene, scene.reserve(order), scene.complete(order, receipts=receipts, p95_us=1500))
    book.close()
    report = replay(SQLiteSource(tmp_path / "book.sqlite"), key=scene.vkey)
    assert [(h.host, h.work, h.weight_milli, h.owed_uusd) for h in report.hosts] == [
        ("bob", 28 * 221, 28 * 221 * 1000, 29), ("carol", 28 * 221, 28 * 221 * 900, 27),
    ]  # fmt: skip


# --- since ------------------------------------------------------------------------------------------------------------


def test_entries_before_a_checkpoint_that_is_trusted_are_folded_and_not_verified_again(rows, scene) -> None:
    whole = ask(rows, scene)
    note = rows[-5].state.decode()
    fast = ask(rows, scene, since=note)
    assert (fast.ok, fast.trusted_entries, fast.entries) == (True, 13, 15)
    assert (fast.digests, fast.as_of) == (whole.digests, whole.as_of)
    assert (whole.trusted_entries, fast.signatures) == (0, 3)


def test_bad_signature_after_the_trusted_checkpoint_is_found(rows, scene) -> None:
    def spoil(entry: forging.Fields) -> None:
        entry["attestations"][0]["sig"] = "A" * 86 + "=="

    forged = forging.rewrite(rows, scene.network, scene.keys["ledger"], spoil, seq=15).list
    problem = ask(forged, scene, since=rows[-5].state.decode()).problem
    assert (problem.seq, "does not verify" in problem.why) == (15, True)


def test_book_that_is_another_one_before_the_trusted_checkpoint_is_found(rows, scene) -> None:
    """Its signatures are not looked at, its bytes are."""
    note = rows[-5].state.decode()
    later = forging.rewrite(
        rows, scene.network, scene.keys["ledger"], lambda entry: entry.update(ts_ms=entry["ts_ms"] + 1), seq=12
    )
    assert "its checkpoint says" in ask(later.list, scene, since=note).problem.why


def test_decisions_before_the_trusted_checkpoint_are_decided_again(rows, scene) -> None:
    def steal(entry: forging.Fields) -> None:
        entry["decided"]["debited"][0]["tokens"] += 1

    forged = forging.rewrite(rows, scene.network, scene.keys["ledger"], steal, seq=10).list
    assert ask(forged, scene, since=forged[-5].state.decode()).problem.seq == 10


def test_book_that_ends_before_the_trusted_checkpoint_is_cut(rows, scene) -> None:
    assert "the held checkpoint is of 15" in ask(rows[:-2], scene, since=rows[-1].state.decode()).problem.why


def test_trusted_checkpoint_that_somebody_else_signed_is_the_callers_mistake(rows, scene) -> None:
    forged = forging.rewrite(rows, scene.network, scene.keys["mallory"]).list[-1].state.decode()
    with pytest.raises(UsageError, match="is not this ledger's"):
        ask(rows, scene, since=forged)


# --- in question ------------------------------------------------------------------------------------------------------

NEW = Key.from_raw(bytes([89]) * 32)


@pytest.fixture
def compromised(scene, tmp_path: Path) -> list[StoredRow]:
    """Node-a receipts a request an hour; then it takes another key. The old one is revoked as of the second hour."""
    book = scene.open(tmp_path, views=False)
    _commit(book, scene, *scene.opening())
    since_ms = 0
    for number in (1, 2, 3):
        scene.now_ms += 3_600_000
        since_ms = scene.now_ms if number == 2 else since_ms
        order = scene.order(number)
        _commit(book, scene, scene.reserve(order))
        _commit(book, scene, scene.complete(order))
    rotation = KeyRotated(network=scene.network, role="node", name="node-a", key=NEW.id)
    scene.keys = {**scene.keys, "new": NEW}
    _commit(book, scene, _by_both(scene, rotation))
    revoked = KeyRevoked(network=scene.network, key=scene.keys["node-a"].id, since_ms=since_ms, reason="stolen_laptop")
    _commit(book, scene, scene.say(revoked, "operator"))
    order = scene.order(4)
    receipt = scene.receipt(order, 56)
    signed = sign(WorkReceipted(**{name: getattr(receipt.body, name) for name in WorkReceipted.__struct_fields__}),
                  RECEIPT_KIND, "node-a", NEW)  # fmt: skip
    _commit(book, scene, scene.reserve(order), scene.complete(order, receipts=(scene.delivered(signed),)))
    book.close()
    return list(SQLiteSource(tmp_path / "book.sqlite").rows())


def _by_both(scene, body: KeyRotated):
    from sawyer.ledger.commands import check, command

    return check(command(body, "node-a", scene.keys["node-a"], NEW))


def test_what_a_key_signed_between_its_loss_and_its_revocation_is_in_question(compromised, scene) -> None:
    """The receipts of hours 2 and 3, and the rotation itself; not that of hour 1, nor what the new key signed."""
    report = ask(compromised, scene)
    assert report.ok
    (row,) = report.questionable
    assert (row.key, row.by, row.revoked_seq) == (scene.keys["node-a"].id, "node-a", 16)
    assert (row.statements, row.first_seq, row.last_seq, row.entries) == (3, 12, 15, (12, 14, 15))


def test_list_of_what_is_in_question_is_bounded_and_its_count_is_not(compromised, scene, monkeypatch) -> None:
    monkeypatch.setattr("sawyer.ledger.compromise.MOST_LISTED", 1)
    (row,) = ask(compromised, scene).questionable
    assert (row.statements, row.entries, row.first_seq, row.last_seq) == (3, (12,), 12, 15)


def test_book_is_read_once_where_no_key_was_revoked_with_a_date(rows: list[StoredRow], scene) -> None:
    class Counted(Rows):
        reads = 0

        def rows(self):
            self.reads += 1
            return super().rows()

    source = Counted(rows)
    assert replay(source, key=scene.vkey, workers=1).questionable == ()
    assert source.reads == 1


def test_book_that_is_another_one_when_it_is_read_again_gives_no_verdict(compromised, scene) -> None:
    from sawyer.errors import SawyerError

    class Changing(Rows):
        def rows(self):
            yield from self.list
            self.list = forging.rewrite(
                self.list, scene.network, scene.keys["ledger"], lambda entry: entry.update(ts_ms=1), seq=12
            ).list

    with pytest.raises(SawyerError, match="was changed while it was read"):
        replay(Changing(compromised), key=scene.vkey, workers=1)


# --- sources, workers, memory -----------------------------------------------------------------------------------------


def test_export_as_lines_replays_to_the_same_report(rows: list[StoredRow], scene, tmp_path: Path) -> None:
    path = tmp_path / "book.ndjson"
    path.write_bytes(b"".join(ndjson(Rows(rows))))
    exported, original = replay(NdjsonSource(path), key=scene.vkey), replay(Rows(rows), key=scene.vkey)
    assert (exported.ok, exported.root, exported.as_of) == (True, original.root, original.as_of)


@pytest.mark.parametrize("workers", [1, 3])
def test_report_is_the_same_whoever_verifies(rows, scene, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "ALONE_SIGNATURES", 0)
    monkeypatch.setattr(verifying, "CHUNK_SIGNATURES", 2)
    report = replay(Rows(rows), key=scene.vkey, workers=workers)
    assert (report.ok, report.workers, report.signatures) == (True, workers, 15 + 6 + 2)
    assert report.as_of == replay(Rows(rows), key=scene.vkey, workers=1).as_of


def test_more_workers_than_there_may_be_is_the_callers_mistake(rows: list[StoredRow], scene) -> None:
    with pytest.raises(UsageError, match="at most 256 workers"):
        replay(Rows(rows), key=scene.vkey, workers=257)


def test_what_is_in_memory_does_not_grow_with_requests(scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    class Kept(replaying.Replaying):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            runs.append(self)

    monkeypatch.setattr("sawyer.ledger.replay.Replaying", Kept)
    book = scene.open(tmp_path, views=False)
    scene.work(book, 6)
    replay(SQLiteSource(tmp_path / "book.sqlite"), workers=1)
    scene.work(book, 30, start=7)
    replay(SQLiteSource(tmp_path / "book.sqlite"), workers=1)
    book.close()
    sizes = [
        [len(fold.rows) + len(fold.changed) for fold in run.state.folds]
        + [len(run.state.balances.ended), len(run.state.balances.open_requests)]
        for run in runs
    ]
    assert sizes[0] == sizes[1]
    assert [len(run._seen._recent) for run in runs] == [6, 36]
