"""Reading the book without verifying it: `sawyer ledger log` and `sawyer ledger show`."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from .test_commands import NETWORK_PACKAGES, _without


def test_log_shows_the_newest_entries_last_and_says_that_it_verifies_nothing(sawyer, demo_home):
    done = sawyer("ledger", "log", "-n", "3", "--home", demo_home)
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    seqs = [int(line[0]) for line in lines]
    assert seqs == [seqs[-1] - 2, seqs[-1] - 1, seqs[-1]]
    assert lines[-1][2] == "inference.completed.v1"
    assert "alice" in done.out
    assert "sawyer ledger replay" in done.err


def test_log_of_a_whole_book_begins_with_its_founding(sawyer, demo_home):
    rows = sawyer("ledger", "log", "-n", "1000", "--book", demo_home / "book.sqlite", "--json").json
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["kind"] == "network.founded.v1"
    assert all(row["summary"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "kinds"),
    [
        (("--kind", "tokens.granted"), {"tokens.granted.v1"}),
        (("--kind", "tokens.granted.v1"), {"tokens.granted.v1"}),
        (("--kind", "tokens"), {"tokens.granted.v1", "tokens.reserved.v1"}),
        (("--kind", "token"), set()),
        (("--account", "nobody"), set()),
        (
            ("--account", "alice"),
            {"account.opened.v1", "tokens.granted.v1", "tokens.reserved.v1", "inference.completed.v1"},
        ),
        (("--account", "alice", "--kind", "tokens"), {"tokens.granted.v1", "tokens.reserved.v1"}),
        (("--host", "host-1"), {"node.registered.v1", "inference.completed.v1"}),
        (("--node", "node-1", "--kind", "node"), {"node.registered.v1"}),
        (("--account", "alice", "--host", "host-1"), {"inference.completed.v1"}),
        (("--since", "2100-01-01"), set()),
        (("--until", "2020-01-01"), set()),
        (("--since", "2020-01-01", "--until", "2100-01-01T00:00Z", "--kind", "network"), {"network.founded.v1"}),
    ],
)
def test_log_shows_what_was_asked_for(sawyer, demo_home, arguments, kinds):
    rows = sawyer("ledger", "log", *arguments, "--home", demo_home, "--json").json
    assert {row["kind"] for row in rows} == kinds


def test_exact_entry_hashes_to_its_leaf(sawyer, demo_home):
    leaf = sawyer("ledger", "log", "-n", "1", "--home", demo_home, "--json").json[0]
    done = sawyer("ledger", "show", leaf["seq"], "--home", demo_home, "--json")
    assert hashlib.sha256(b"\0" + done.out.removesuffix("\n").encode()).hexdigest() == leaf["leaf"]
    assert json.loads(done.out)["kind"] == leaf["kind"]


def test_shown_entry_names_everybody_who_signed_and_what_was_decided(sawyer, demo_home):
    last = sawyer("ledger", "log", "-n", "1", "--home", demo_home, "--json").json[0]
    done = sawyer("ledger", "show", last["seq"], "--home", demo_home)
    for words in (last["leaf"], "router-1 over inference.completed.v1", "alice over inference.requested.v1",
                  "node-1 over work.receipted.v1", '"debited"', last["summary"]):  # fmt: skip
        assert words in done.out
    lines = [line.split() for line in done.out.splitlines()]
    assert any(line[:3] == ["node-1", "host-1", "1"] for line in lines)  # its first receipt
    assert any(line[:1] == ["tokens:consumed"] and line[-1] == "tokens" for line in lines)
    assert "not verified" in done.err


@pytest.mark.parametrize("command", [("log",), ("show", "1")])
def test_book_is_read_where_the_network_packages_are_not_installed(sawyer, demo_home, command):
    done = sawyer("ledger", *command, "--home", demo_home, program=_without(*NETWORK_PACKAGES))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "9999"), "the book has"),
        (("show", "0"), "SEQ"),
        (("log", "-n", "0"), "-n"),
        (("log", "--account", "Alice"), "is no name"),
        (("log", "--since", "yesterday"), "is no time"),
        (("log", "--book", "/no/such/book"), "/no/such/book"),
    ],
)
def test_what_is_not_there_is_said(sawyer, demo_home, arguments, words):
    home = () if "--book" in arguments else ("--home", demo_home)
    done = sawyer("ledger", *arguments, *home)
    assert done.code == 2
    assert words in done.err


def test_entry_that_cannot_be_read_is_named(sawyer, demo_home, tmp_path):
    book = Path(shutil.copy(demo_home / "book.sqlite", tmp_path / "book.sqlite"))
    connection = sqlite3.connect(book)
    with connection:
        connection.execute(
            "UPDATE stored_events SET state = CAST(replace(state, ?, ?) AS BLOB) WHERE topic = 'account.opened.v1'",
            (b'"account":"alice"', b'"account": "alice"'),
        )
    connection.close()
    done = sawyer("ledger", "log", "-n", "1000", "--book", book)
    assert done.code == 3
    assert "entry 5" in done.err or "entry 6" in done.err
