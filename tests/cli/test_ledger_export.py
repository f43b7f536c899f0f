"""`sawyer ledger export` as a person runs it, on the book of a demo."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import accounting
import pytest


def test_exported_lines_are_replayed_like_the_book(sawyer, demo_home, tmp_path):
    file = tmp_path / "book.ndjson"
    done = sawyer("ledger", "export", "--format", "ndjson", "-o", file, "--home", demo_home)
    assert done.code == 0, done.err
    assert done.out == ""
    assert str(file) in done.err
    report = sawyer("ledger", "replay", "--book", file, "--json").json
    book = sawyer("ledger", "replay", "--book", demo_home / "book.sqlite", "--json").json
    assert report["ok"]
    assert (report["root"], report["digests"]) == (book["root"], book["digests"])


def test_exported_lines_hold_the_entries_to_the_byte(sawyer, demo_home):
    lines = sawyer("ledger", "export", "--format", "ndjson", "--home", demo_home).out.splitlines()
    entries = [line for line in lines if not line.startswith('{"checkpoint":')]
    leaves = [row["leaf"] for row in sawyer("ledger", "log", "-n", "1000", "--home", demo_home, "--json").json]
    assert [hashlib.sha256(b"\0" + line.encode()).hexdigest() for line in entries] == leaves
    assert json.loads(lines[-1])["checkpoint"].startswith("sawyer-net/")


@pytest.mark.parametrize("form", ["beancount", "hledger"])
def test_exported_journal_is_accepted(sawyer, demo_home, tmp_path, form, record_property):
    file = tmp_path / f"book.{form}"
    done = sawyer("ledger", "export", "--format", form, "-o", file, "--home", demo_home)
    assert done.code == 0, done.err
    assert "transactions of" in done.err
    assert "not verified" in done.err
    assert file.stat().st_mode & 0o077 == 0
    assert "tokens of alice for" in file.read_text(encoding="utf-8")
    if form == "hledger" and accounting.hledger() is None:
        record_property("did not run", accounting.NO_HLEDGER)
    else:
        assert not (accounting.hledger_check(file) if form == "hledger" else accounting.bean_check(file))


def test_export_takes_the_place_of_an_older_one(sawyer, demo_home, tmp_path):
    file = tmp_path / "book.beancount"
    file.write_text("old")
    assert sawyer("ledger", "export", "--format", "beancount", "-o", file, "--home", demo_home).code == 0
    assert file.read_text(encoding="utf-8").startswith("; The book of")
    assert list(tmp_path.iterdir()) == [file]


def test_export_never_takes_the_place_of_the_book(sawyer, demo_home, tmp_path):
    book = demo_home / "book.sqlite"
    before = book.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(book)
    for target in (book, link, demo_home / "book.sqlite-wal"):
        done = sawyer("ledger", "export", "--format", "ndjson", "-o", target, "--home", demo_home)
        assert done.code == 2
        assert "belongs to the home" in done.err
    assert book.read_bytes() == before


def test_export_never_takes_the_place_of_the_copy_that_it_reads(sawyer, demo_home, tmp_path):
    copy = tmp_path / "copy.ndjson"
    assert sawyer("ledger", "export", "--format", "ndjson", "-o", copy, "--home", demo_home).code == 0
    before = copy.read_bytes()
    done = sawyer("ledger", "export", "--format", "hledger", "-o", copy, "--book", copy)
    assert (done.code, copy.read_bytes()) == (2, before)
    assert "is what this command reads" in done.err


def test_book_that_does_not_follow_leaves_no_file(sawyer, demo_home, tmp_path):
    book = tmp_path / "book.sqlite"
    with sqlite3.connect(demo_home / "book.sqlite") as source, sqlite3.connect(book) as copy:
        source.backup(copy)
    with sqlite3.connect(book) as copy:
        copy.execute(
            "UPDATE stored_events SET state = CAST(replace(state, ?, ?) AS BLOB) WHERE topic = 'tokens.granted.v1'",
            (b'"tokens":500000', b'"tokens":500001'),
        )
    copy.close()
    folder = tmp_path / "out"
    folder.mkdir()
    done = sawyer("ledger", "export", "--format", "beancount", "-o", folder / "book.beancount", "--book", book)
    assert done.code == 3
    assert "entry 7" in done.err  # the first whose hash of the entry before does not fit
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "csv"), "csv"),
        ((), "--format"),
        (("--format", "ndjson", "-o", "/no/such/folder/file"), "/no/such/folder"),
        (("--format", "ndjson", "--book", "/no/such/book"), "/no/such/book"),
    ],
)
def test_what_makes_no_sense_is_said(sawyer, demo_home, arguments, words):
    home = () if "--book" in arguments else ("--home", demo_home)
    done = sawyer("ledger", "export", *arguments, *home)
    assert done.code in {1, 2}
    assert words in done.err


def test_export_may_be_written_to_a_pipe(sawyer, demo_home):
    done = sawyer("ledger", "export", "--format", "hledger", "-o", Path("/dev/stdout"), "--home", demo_home)
    assert done.code == 0, done.err
    assert done.out.startswith("; The book of")
