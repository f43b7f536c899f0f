"""What an operator does beside granting tokens: tiers, prices, notes, erasure, keys; on a network that runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Done, Zygote, runner

START = "2026-01-31"


@pytest.fixture
def operator(zygote: Zygote, up: Path, tmp_path: Path) -> Callable[..., Done]:
    """`operator("pricing", "show", text="stdin")`: a command in the home of the network."""
    return runner(zygote, tmp_path, SAWYER_HOME=str(up), SAWYER_ACCOUNT="alice")


def opened(operator: Callable[..., Done], account: str) -> None:
    done = operator("account", "open", account)
    assert done.code == 0, done.err


# --- tiers ------------------------------------------------------------------------------------------------------------


def test_period_of_a_tier_is_granted_once_and_shown_with_its_expiry(operator: Callable[..., Done]) -> None:
    opened(operator, "bob")
    said = ("account", "grant", "bob", "--tier", "explorer", "--start", "2126-01-31")
    first, again = operator(*said), operator(*said)
    assert first.code == again.code == 0, first.err
    assert first.out == again.out
    assert "500,000 tokens (tier explorer, 2126-01-31 to 2126-02-28, spendable until 2126-03-31)" in first.out
    shown = operator("account", "show", "bob").out
    assert "explorer  500,000" in shown
    assert "2126-01-31T00:00:00Z (not yet)" in shown
    assert "2126-03-31T00:00:00Z" in shown
    assert operator("balance", "--account", "bob", "--json").json["granted"] == 500_000


def test_period_that_is_over_expires_in_the_book_and_is_told(operator: Callable[..., Done]) -> None:
    opened(operator, "carol")
    done = operator("account", "grant", "carol", "--tier", "builder", "--start", "2020-01-31", "--json")
    assert done.code == 0, done.err
    assert (done.json["grant"], done.json["tier"]) == ("carol-2020-01-31", "builder")
    assert operator("balance", "--account", "carol", "--json").json["available"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("alice",), "grant either TOKENS or a period"),
        (("alice", "5", "--tier", "explorer"), "grant either TOKENS or a period"),
        (("alice", "5", "--start", START), "about the period of a --tier"),
        (("alice", "--tier", "gold"), "no tier 'gold'"),
        (("alice", "--tier", "explorer", "--start", "soon"), "'soon' is no day"),
    ],
)
def test_grant_that_makes_no_sense_is_refused(
    operator: Callable[..., Done], arguments: tuple[str, ...], says: str
) -> None:
    done = operator("account", "grant", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


# --- notes ------------------------------------------------------------------------------------------------------------


def test_note_is_sealed_and_erased_only_when_that_is_confirmed(up: Path, operator: Callable[..., Done]) -> None:
    opened(operator, "dora")
    done = operator("account", "grant", "dora", "5", "--note", "Dora Roe, dora@example.org", "--json")
    assert done.code == 0, done.err
    key = up / "keys" / "subjects" / "dora.key"
    assert b"example.org" not in (up / "book.sqlite").read_bytes()
    shown = ("ledger", "show", done.json["entry"])
    assert "a note about dora: Dora Roe, dora@example.org" in operator(*shown).out
    asked = operator("account", "erase", "dora", text="n\n")
    assert asked.code != 0
    assert key.is_file()
    done = operator("account", "erase", "dora", text="y\n")
    assert (done.code, "its subject key is destroyed" in done.out) == (0, True), done.err
    assert not key.exists()
    assert "a note about dora, whose key is not here" in operator(*shown).out
    refused = operator("account", "grant", "dora", "5", "--note", "again")
    assert (refused.code, "dora is erased" in refused.err) == (5, True)
    again = operator("account", "erase", "dora", "--yes", "--json")
    assert again.json["key_destroyed"] is False


# --- prices -----------------------------------------------------------------------------------------------------------


def test_price_is_set_for_a_model_and_format_and_what_a_request_costs_is_told(operator: Callable[..., Done]) -> None:
    done = operator("pricing", "set", "austen-8m", "--format", "f32", "--price", "2.5", "--quant", "0.8")
    assert done.code == 0, done.err
    assert "no price before, 3,000 budget tokens now" in done.out
    again = operator("pricing", "set", "austen-8m", "--format", "f32", "--price", "2.5")
    assert (again.code, "nothing to publish" in again.out) == (0, True)
    sheet = operator("pricing", "show", "--json").json
    assert [(each["format"], each["price_milli"], each["quant_milli"]) for each in sheet["prices"]] == [
        ("f32", 2500, 800), ("q4", 1000, 1000),
    ]  # fmt: skip
    assert "3,000 budget tokens" in operator("pricing", "show").out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("austen-8m", "--price", "2.5001"), 2, "down to a thousandth"),
        (("austen-8m", "--price", "-1"), 2, "must be above 0"),
        (("austen-8m",), 2, "nothing to change"),
        (("austen-8m", "--format", "q2", "--price", "1"), 2, "unknown format"),
        (("zola", "--price", "1"), 5, "no model zola"),
    ],
)
def test_price_that_cannot_be_set_is_refused(
    operator: Callable[..., Done], arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = operator("pricing", "set", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_only_the_operator_sets_prices_erases_and_revokes(
    guest: Callable[..., Done], invited: Callable[..., Path]
) -> None:
    assert guest("account", "open", "eve", "--join", invited("--account", "eve")).code == 0
    for arguments in (
        ("pricing", "set", "austen-8m", "--price", "9"),
        ("account", "erase", "alice", "--yes"),
        ("account", "grant", "eve", "--tier", "explorer"),
        ("keys", "rotate", "operator"),
    ):
        done = guest(*arguments)
        assert (done.code, "does not hold the operator's key" in done.err) == (5, True), done.err
    assert guest("pricing", "show").code == 0


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_promise_of_a_host_is_recorded_and_cannot_be_changed(
    guest: Callable[..., Done], invited: Callable[..., Path]
) -> None:
    done = guest("register", "--name", "attic", "--promise", "2.5", "--join", invited("--host", "maria"))
    assert done.code == 0, done.err
    assert "it promises 2.5 ms" in done.out
    assert guest("register", "--name", "attic", "--json").json["promised_us"] == 2500
    other = guest("register", "--name", "attic", "--promise", "3")
    assert (other.code, "cannot be changed" in other.err) == (2, True)
    assert guest("register", "--name", "cellar", "--promise", "fast").code == 2


# --- keys -------------------------------------------------------------------------------------------------------------


def test_keys_are_replaced_while_the_network_runs_and_everybody_goes_on(
    up: Path, operator: Callable[..., Done], guest: Callable[..., Done], invited: Callable[..., Path]
) -> None:
    assert guest("account", "open", "fay", "--join", invited("--account", "fay")).code == 0
    done = operator("keys", "rotate", "operator", "--json")
    assert done.code == 0, done.err
    assert Path(done.json["former"]).is_file()
    rotated = operator("keys", "rotate", "account", "alice")
    assert rotated.code == 0, rotated.err
    assert operator("generate", "It was a", "--max-tokens", 2).code == 0
    mine = guest("identity", "rotate", "account", "fay", "--json")
    assert mine.code == 0, mine.err
    shown = guest("identity", "show", "--json").json["certificates"]
    assert [(each["name"], each["key"], each["problem"]) for each in shown] == [("fay", mine.json["new"], "")]
    assert operator("account", "grant", "fay", 5).code == 0
    assert guest("balance", "--account", "fay", "--json").json["granted"] == 5, "its pin proves the new operator"
    assert operator("account", "open", "alice").code == 0, "its account, under whatever key"
    held = operator("keys", "ls", "--all", "--json").json
    operators = [each for each in held if each["role"] == "operator"]
    assert [each["key"] for each in operators] == [done.json["old"], done.json["new"]]
    assert operators[0]["until"] == operators[1]["since"] == done.json["entry"]
    revoked = operator("keys", "revoke", done.json["old"], "--since", START, "--reason", "stolen")
    assert revoked.code == 0, revoked.err
    assert "in question" in operator("keys", "ls", "--all").out
    assert [row for row in operator("doctor", "--json").json["checks"] if row["state"] == "fail"] == []


def test_ledgers_key_is_refused_while_the_network_runs(operator: Callable[..., Done]) -> None:
    done = operator("keys", "rotate", "ledger")
    assert (done.code, "runs a network" in done.err) == (5, True)
    assert "sawyer down" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rotate", "king"), "no role 'king'"),
        (("rotate", "node"), "name the node"),
        (("rotate", "operator", "me"), "there is one operator"),
        (("rotate", "node", "../ledger"), "no key of node"),
        (("revoke", "UAB"), "is no public key"),
        (("revoke", "U" + "A" * 55, "--reason", "two words"), "public key"),
    ],
)
def test_command_about_keys_that_makes_no_sense_is_refused(
    operator: Callable[..., Done], arguments: tuple[str, ...], says: str
) -> None:
    done = operator("keys", *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_book_whose_ledger_has_a_new_key_still_verifies_by_the_pinned_one(
    sawyer: Callable[..., Done], demo_home: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo_home, home, ignore=shutil.ignore_patterns("nats", "logs", "lock", "running.json", "models"))
    for _ in range(2):
        done = sawyer("keys", "rotate", "ledger", "--home", home, "--json")
        assert done.code == 0, done.err
        assert Path(done.json["file"]).is_file()
    held = [each for each in sawyer("keys", "ls", "--all", "--json", "--home", home).json if each["role"] == "ledger"]
    assert len(held) == 3
    report = sawyer("ledger", "replay", "--json", "--home", home)
    assert report.code == 0, report.out + report.err
