"""`sawyer ledger statement` as a person runs it, on the book of a demo."""

from __future__ import annotations

import json

import pytest

from .test_commands import NETWORK_PACKAGES, _without


def test_statement_of_an_account_opens_closes_and_has_a_line_for_the_request(sawyer, demo_home):
    done = sawyer("ledger", "statement", "alice", "--home", demo_home)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert "account alice of sawyer-net/" in lines[0]
    opening, closing = (
        next(line for line in lines if words in line) for words in ("opening balance", "closing balance")
    )
    debit = next(line for line in lines if " out of austen-8m, from " in line)
    assert opening.split()[-1] == "0"
    assert closing.split()[-1] == debit.split()[-1]
    assert debit.split()[-2].startswith("-")
    assert "not verified" in done.err


def test_statement_of_an_account_adds_up_to_its_balance(sawyer, demo_home):
    made = sawyer("ledger", "statement", "alice", "--home", demo_home, "--json").json
    account = made["account"]
    assert (made["verified"], made["host"]) == (False, None)
    assert account["opening"] + account["granted"] - account["debited"] - account["expired"] == account["closing"]
    replayed = sawyer("ledger", "replay", "--home", demo_home, "--json").json["balances"][0]
    assert account["closing"] == replayed["available"] + replayed["held"]


def test_receipts_name_the_nodes_that_computed(sawyer, demo_home):
    done = sawyer("ledger", "statement", "alice", "--receipts", "--home", demo_home)
    assert "node-1 of host-1: " in done.out
    assert "receipt 1" in done.out
    assert "node-1 of host-1: " not in sawyer("ledger", "statement", "alice", "--home", demo_home).out


def test_statement_of_a_host_tells_its_receipts_and_sums(sawyer, demo_home):
    done = sawyer("ledger", "statement", "host-1", "--home", demo_home)
    assert done.code == 0, done.err
    assert "host host-1 of sawyer-net/" in done.out
    assert "By day" in done.out
    host = sawyer("ledger", "statement", "host-1", "--home", demo_home, "--json").json["host"]
    line = host["lines"][0]  # the demo may have run more than once in this home
    assert (line["node"], line["counter"]) == ("node-1", 1)
    assert str(sum(each["work"] for each in host["lines"])) == host["total"]["work"]
    entry = json.loads(sawyer("ledger", "show", line["seq"], "--home", demo_home, "--json").out)
    assert entry["decided"]["credits"][0]["rows"] == line["rows"]


def test_month_in_which_nothing_happened_has_no_lines(sawyer, demo_home):
    made = sawyer("ledger", "statement", "alice", "--month", "2020-02", "--home", demo_home, "--json").json
    assert (made["month"], made["account"]["lines"], made["account"]["closing"]) == ("2020-02", [], 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody",), "no account and no host nobody"),
        (("Alice's",), "no name"),
        (("alice", "--month", "November"), "no month"),
        (("alice", "--month", "2026-13"), "no month"),
        (("alice", "--book", "/no/such/book"), "/no/such/book"),
    ],
)
def test_what_makes_no_sense_is_said(sawyer, demo_home, arguments, words):
    home = () if "--book" in arguments else ("--home", demo_home)
    done = sawyer("ledger", "statement", *arguments, *home)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize("command", [("statement", "alice"), ("export", "--format", "hledger")])
def test_book_is_told_where_the_network_packages_are_not_installed(sawyer, demo_home, command):
    done = sawyer("ledger", *command, "--home", demo_home, program=_without(*NETWORK_PACKAGES))
    assert done.code == 0, done.err
