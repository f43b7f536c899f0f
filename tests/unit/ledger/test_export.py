"""Exports: lines that replay reads back; journals that accounting programs accept, and refuse once they are touched."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import accounting
import pytest

from sawyer.errors import BookCorrupt
from sawyer.ledger import entry
from sawyer.ledger.chart import COMMODITIES, account_of
from sawyer.ledger.entry import CHECKPOINT_STREAM, StoredRow
from sawyer.ledger.export import JOURNALS, Export, ndjson, ndjson_line
from sawyer.ledger.source import SQLiteSource, source_of
from sawyer.schemas import events

from .conftest import Scene
from .stories import tell

FORMS = sorted(JOURNALS)


@pytest.fixture(scope="module")
def story(keys, tmp_path_factory) -> SQLiteSource:
    return SQLiteSource(tell(Scene(keys), tmp_path_factory.mktemp("story")))


@pytest.fixture
def complaint(record_property):
    """What the program of a form says of a journal. Where hledger cannot be had, the end of the test run says so."""

    def judge(form: str, journal: Path) -> str | None:
        if form == "hledger" and accounting.hledger() is None:
            record_property("did not run", accounting.NO_HLEDGER)
            return None
        return accounting.hledger_check(journal) if form == "hledger" else accounting.bean_check(journal)

    return judge


def exported(source, form: str, folder: Path) -> Path:
    made = Export(source, JOURNALS[form](), lambda entry: f'entry {entry.seq} is "a\\b"; or | {entry.kind}')
    file = folder / f"book.{form}"
    file.write_text("".join(f"{line}\n" for line in made.lines()), encoding="utf-8")
    return file


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_the_rows_of_the_book_to_the_byte(story, tmp_path) -> None:
    file = tmp_path / "book.ndjson"
    file.write_bytes(b"".join(ndjson(story)))
    with closing(story.rows()) as rows, closing(source_of(str(file)).rows()) as again:
        assert list(again) == list(rows)


@pytest.mark.parametrize(
    "row",
    [
        StoredRow("account:alice", 1, "account.opened.v1", b'{"a":1}\n{"b":2}'),
        StoredRow("account:alice", 1, "account.opened.v1", b'{"checkpoint":"x"}'),
        StoredRow(CHECKPOINT_STREAM, 1, "checkpoint", b"\xff"),
    ],
)
def test_row_that_would_be_read_back_as_another_is_refused(row) -> None:
    with pytest.raises(BookCorrupt, match="neither an entry nor a checkpoint"):
        ndjson_line(row)


# --- journals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_accounting_program_accepts_the_journal_of_a_book_in_which_everything_happened(
    story, tmp_path, form, complaint
) -> None:
    assert not complaint(form, exported(story, form, tmp_path))


@pytest.mark.parametrize("form", FORMS)
def test_accounting_program_accepts_a_book_in_which_nothing_moved(scene, tmp_path, form, complaint) -> None:
    book = scene.open(tmp_path)
    book.commit(scene.members(), scene.now_ms)
    book.close()
    assert not complaint(form, exported(SQLiteSource(tmp_path / "book.sqlite"), form, tmp_path))


def one_posting(text: str) -> str:
    """One amount of one posting is another."""
    return re.sub(r"(Tokens:Consumed +)7 TOKEN", r"\g<1>8 TOKEN", text, count=1)


def both_postings(text: str) -> str:
    """A transaction that still balances says another amount."""
    changed = re.sub(r"(Tokens:Consumed +)7 TOKEN", r"\g<1>6 TOKEN", text, count=1)
    return re.sub(r"(Bucket:CheapUu:Held +)-7 TOKEN", r"\g<1>-6 TOKEN", changed, count=1)


def without_a_transaction(text: str) -> str:
    """A whole transaction is missing."""
    blocks = text.split("\n\n")
    gone = next(number for number, block in enumerate(blocks) if "inference.completed.v1" in block)
    head = [line for line in blocks[gone].splitlines() if " open " in line or line.startswith("account ")]
    return "\n\n".join([*blocks[:gone], "\n".join(head), *blocks[gone + 1 :]])


def another_sign(text: str) -> str:
    """Money flows the other way."""
    return re.sub(r"(Assets:Stripe:Clearing +)5000000 UUSD", r"\g<1>-5000000 UUSD", text, count=1)


def another_account(text: str) -> str:
    """Tokens go to an account that the book does not have."""
    return re.sub(r"Tokens:Consumed +7 TOKEN", "Tokens:Stolen  7 TOKEN", text, count=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("touch", [one_posting, both_postings, without_a_transaction, another_sign, another_account])
def test_accounting_program_refuses_a_journal_that_was_touched(story, tmp_path, form, touch, complaint) -> None:
    journal = exported(story, form, tmp_path)
    text = journal.read_text(encoding="utf-8")
    journal.write_text(touch(text), encoding="utf-8")
    assert journal.read_text(encoding="utf-8") != text
    assert complaint(form, journal) != ""


@pytest.mark.parametrize("form", FORMS)
def test_every_account_is_asserted_at_what_the_projections_say(story, tmp_path, form) -> None:
    text = exported(story, form, tmp_path).read_text(encoding="utf-8")
    found = re.findall(r"balance (\S+) +(\S+) (\S+)$|^    (\S+)  0 \S+ == (\S+) (\S+)$", text, flags=re.MULTILINE)
    asserted = {(account_of(a or d), c or f): int(b or e) for a, b, c, d, e, f in found}
    used = set(re.findall(r"^ +([A-Z]\S+)  -?\d+ [A-Z]+", text, flags=re.MULTILINE))
    assert {account for account, _ in asserted} == {account_of(name) for name in used}
    tokens, uusd = COMMODITIES["tokens"], COMMODITIES["uusd"]
    assert asserted["tokens:issued", tokens] == -801_000
    assert asserted["tokens:consumed", tokens] == 30
    assert asserted["user:alice:bucket:2026_jan-a:held", tokens] == 8
    assert asserted["user:alice:bucket:gift:available", tokens] == 299_992
    assert asserted["stripe:clearing", uusd] == 5_000_025
    assert asserted["revenue:usage", uusd] == -25
    assert sum(amount for (_, unit), amount in asserted.items() if unit == tokens) == 0


@pytest.mark.parametrize("form", FORMS)
def test_transaction_says_which_entry_it_is(story, tmp_path, form) -> None:
    text = exported(story, form, tmp_path).read_text(encoding="utf-8")
    assert "2026-01-05" in text
    assert re.search(r"seq: ?\d+", text)
    assert re.search(r"leaf: ?\"?[0-9a-f]{64}", text)
    assert "tokens.granted.v1" in text
    assert "no money moved" in text


@pytest.mark.parametrize("form", FORMS)
def test_entries_of_a_kind_that_is_unknown_are_counted_and_left_out(story, form, monkeypatch) -> None:
    known = {kind: body for kind, body in events.KINDS.items() if kind != "pricing.published.v1"}
    monkeypatch.setattr(entry, "KINDS", known)  # a copy: who puts a kind back changes the order of all
    made = Export(story, JOURNALS[form](), lambda entry: entry.kind)
    assert list(made.lines())
    assert made.unknown == {"pricing.published.v1": 1}


def changed(story: SQLiteSource, folder: Path, kind: str, old: bytes, new: bytes) -> SQLiteSource:
    copy = Path(shutil.copy(story.path, folder / "copy.sqlite"))
    with closing(sqlite3.connect(copy)) as connection, connection:
        done = connection.execute(
            "UPDATE stored_events SET state = CAST(replace(state, ?, ?) AS BLOB) WHERE topic = ? AND instr(state, ?)",
            (old, new, kind, old),
        )
        assert done.rowcount
    return SQLiteSource(copy)


@pytest.mark.parametrize(
    ("kind", "old", "new", "why"),
    [
        ("account.opened.v1", b'"alice"', b'"alise"', "canonical|prev|stream|columns"),
        ("network.founded.v1", b'"mode":"test"', b'"mode":"t\\nst"', "entry 1"),
        ("network.founded.v1", b'"log":"sawyer-net/', b'"log":"sawyer-n\\n/', "log"),
        ("inference.completed.v1", b'"tokens":7', b'"tokens":9', "held falls to"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_book_that_does_not_follow_is_not_exported(story, tmp_path, form, kind, old, new, why) -> None:
    """What stands in a journal is taken as true, and a line break in a name could be a line of its own there."""
    source = changed(story, tmp_path, kind, old, new)
    with pytest.raises(BookCorrupt, match=why):
        list(Export(source, JOURNALS[form](), lambda entry: entry.kind).lines())


@pytest.mark.parametrize("form", FORMS)
def test_empty_book_is_not_exported(scene, tmp_path, form) -> None:
    scene.open(tmp_path).close()
    with pytest.raises(BookCorrupt, match="empty"):
        list(Export(SQLiteSource(tmp_path / "book.sqlite"), JOURNALS[form](), lambda entry: "").lines())
