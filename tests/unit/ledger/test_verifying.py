"""Signatures beside the folding: whoever finds a bad one, the first in the book is named; no process goes missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sawyer.errors import BookCorrupt, SawyerError
from sawyer.ledger import verifying
from sawyer.ledger.commands import claims, first_claims, jobs
from sawyer.ledger.entry import encode_entry
from sawyer.ledger.verify_worker import HOLDS, first_failure
from sawyer.ledger.verifying import Verifying
from sawyer.projections.fold import Entry


@pytest.fixture
def entries(empty_judge, scene) -> list[Entry]:
    """8 of the opening, then 40 requests: 88 entries, 168 signatures that do not stand twice."""
    steps = list(scene.opening())
    for number in range(1, 41):
        order = scene.order(number)
        steps += [scene.reserve(order), scene.complete(order)]
    return empty_judge.write(*steps)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[verifying._Other]]:
    """Other processes are started at once and get small chunks; these are they."""
    started: list[verifying._Other] = []

    class Counted(verifying._Other):
        def __init__(self) -> None:
            super().__init__()
            started.append(self)
            while not self.ready:
                self.answers(verifying.ANSWER_S)

    monkeypatch.setattr(verifying, "_Other", Counted)
    monkeypatch.setattr(verifying, "ALONE_SIGNATURES", 0)
    monkeypatch.setattr(verifying, "CHUNK_SIGNATURES", 8)
    return started


def verify(entries: list[Entry], workers: int) -> int:
    """How many signatures hold. Raises BookCorrupt for the first that does not."""
    with Verifying(workers) as beside:
        try:
            for entry in entries:
                beside.add(entry, raw_of(entry))
        except BookCorrupt:
            beside.finish()
            raise
        beside.finish()
        return beside.signatures


def raw_of(entry: Entry) -> bytes:
    """The bytes that it is read from."""
    names = ("log", "seq", "prev", "ts_ms", "kind", "stream", "version", "idem", "body", "statement", "decided",
             "attestations")  # fmt: skip
    return encode_entry(**{name: getattr(entry, name) for name in names})[0]


def attested(entry: Entry, **changes: str) -> Entry:
    """This entry under another signature."""
    fields = {name: getattr(entry, name) for name in Entry.__struct_fields__}
    return Entry(**{**fields, "attestations": (entry.signer.changed(**changes),)})


def spoil(entry: Entry, other: Entry) -> Entry:
    """This entry under the other's attestation."""
    return attested(entry, sig=other.signer.sig)


def test_jobs_are_the_claims_without_the_order_that_a_completion_repeats(entries: list[Entry]) -> None:
    repeated = 0
    for entry in entries:
        every = claims(entry.kind, entry.body, entry.statement, entry.attestations)
        first = first_claims(entry)
        assert len(jobs(entry)) == len(first)
        left_out = [claim for claim in every if claim not in first]
        assert [claim.kind for claim in left_out] == ["inference.requested.v1"] * (
            entry.kind == "inference.completed.v1"
        )
        repeated += len(left_out)
    assert repeated == 40


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_signatures_that_hold_are_counted_whoever_verifies_them(entries, eager, workers: int) -> None:
    assert verify(entries, workers) == 168
    assert len(eager) == workers - 1


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("bad", [[0], [87], [50, 20], [86, 87], [9, 80]])
def test_first_bad_signature_of_the_book_is_named_whoever_finds_it(entries, eager, workers: int, bad) -> None:
    for at in bad:
        entries[at] = spoil(entries[at], entries[1])
    with pytest.raises(BookCorrupt, match="does not verify") as caught:
        verify(entries, workers)
    assert caught.value.seq == min(bad) + 1


def test_signature_that_is_no_signature_of_its_kind_does_not_hide_an_earlier_bad_one(entries, eager) -> None:
    entries[30] = spoil(entries[30], entries[1])
    entries[40] = attested(entries[40], type="key.added.v1")
    with pytest.raises(BookCorrupt) as caught:
        verify(entries, 1)
    assert caught.value.seq == 31


def test_small_book_starts_no_other_process(entries, monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(verifying, "_Other", start)
    assert verify(entries, 8) == 168


def test_process_that_was_killed_is_an_error_and_never_a_verdict(entries, eager) -> None:
    with Verifying(2) as beside:
        _add_all(beside, entries[:20])
        (other,) = eager
        other._process.kill()
        other._process.wait()
        with pytest.raises(SawyerError, match="ended before its time") as caught:
            _add_all(beside, entries[20:])
    assert not isinstance(caught.value, BookCorrupt)
    assert "says nothing about the book" in caught.value.hint


NONSENSE = """
import sys
say = lambda number: (sys.stdout.buffer.write(number.to_bytes(4, "big", signed=True)), sys.stdout.buffer.flush())
say(-2)
sys.stdin.buffer.read(4)
say(9999)
sys.stdin.read()
"""


@pytest.mark.parametrize(("program", "why"), [("pass", "ended before its time"), (NONSENSE, "answered 9999")])
def test_process_that_is_no_worker_is_an_error_and_never_a_verdict(entries, monkeypatch, program, why) -> None:
    monkeypatch.setattr(verifying, "ALONE_SIGNATURES", 0)
    monkeypatch.setattr(verifying, "CHUNK_SIGNATURES", 8)
    monkeypatch.setattr(verifying, "WORKER", ["-c", program])
    with Verifying(2) as beside, pytest.raises(SawyerError, match=why):
        _add_all(beside, entries * 1000)


def test_processes_are_ended_whatever_happens(entries, eager) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted(entries)
    assert [other._process.poll() is not None for other in eager] == [True, True]


def _add_all(beside: Verifying, entries: list[Entry]) -> None:
    for entry in entries:
        beside.add(entry, raw_of(entry))
    beside.finish()


def _interrupted(entries: list[Entry]) -> None:
    with Verifying(3) as beside:
        _add_all(beside, entries)
        raise KeyboardInterrupt


def test_worker_finds_the_first_failure_of_a_chunk(entries: list[Entry]) -> None:
    whole = [job for entry in entries for job in jobs(entry)]
    assert first_failure(whole) == HOLDS
    public, signed = whole[5]
    whole[5] = (public, signed[:-1] + bytes([signed[-1] ^ 1]))
    assert first_failure(whole) == 5
    assert first_failure([(whole[0][0], b"short")]) == 0
