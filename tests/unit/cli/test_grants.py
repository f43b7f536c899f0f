"""Grants as the operator words them: a period of a tier is the same grant however often it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from sawyer.cli.granting import day_ms, with_note
from sawyer.cli.grants import grant_of_period, grant_of_tokens, tier_named
from sawyer.cli.notes import read_note
from sawyer.economy.periods import day_of
from sawyer.economy.tiers import TIERS
from sawyer.errors import RefusedError, UsageError, VerificationError
from sawyer.home import Home
from sawyer.identity.sealing import destroy
from sawyer.schemas.events import TokensGranted

NETWORK = "sawyer-net/3f9a1c22"
JAN_31 = day_ms("2026-01-31")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def period(account: str = "alice", start_ms: int = JAN_31, anchor_day: int = 0) -> TokensGranted:
    return grant_of_period(NETWORK, account, TIERS["explorer"], start_ms, anchor_day)


def test_period_of_a_tier_has_its_tokens_its_price_and_one_more_month_to_live() -> None:
    body = period()
    assert (body.grant, body.tier, body.tokens, body.paid_uusd) == ("alice-2026-01-31", "explorer", 500_000, 5_000_000)
    assert [day_of(each) for each in (body.valid_from_ms, body.period_end_ms, body.expires_ms)] == [
        "2026-01-31", "2026-02-28", "2026-03-31",
    ]  # fmt: skip


def test_anchor_brings_later_periods_back_to_their_day() -> None:
    body = period(start_ms=day_ms("2026-02-28"), anchor_day=31)
    assert [day_of(each) for each in (body.period_end_ms, body.expires_ms)] == ["2026-03-31", "2026-04-30"]


def test_same_period_of_the_same_account_is_the_same_grant() -> None:
    assert period() == period()
    assert len({period().grant, period("bob").grant, period(start_ms=day_ms("2026-03-01")).grant}) == 3


@pytest.mark.parametrize("word", ["a" * 63, "b" * 41])
def test_grant_of_a_long_name_has_a_name_that_fits_and_is_its_own(word: str) -> None:
    bodies = [
        period(word), period(word[:-1] + "z"),
        grant_of_tokens(NETWORK, word, 5, JAN_31), grant_of_tokens(NETWORK, word[:-1] + "z", 5, JAN_31),
    ]  # fmt: skip
    assert [TokensGranted.parse(each.canonical()) for each in bodies] == bodies
    assert len({each.grant for each in bodies}) == 4


def test_tier_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="gold") as caught:
        tier_named("gold")
    assert "explorer, builder, operator" in caught.value.hint


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "2026-02-30", "1969-12-31", "2026-01-31T12:00"])
def test_day_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        day_ms(text)


def test_note_is_read_where_its_key_is_and_only_until_it_is_destroyed(home: Home, tmp_path: Path) -> None:
    body = with_note(period(), "Jane Roe, jane@example.org", home)
    assert b"jane" not in body.canonical().lower().replace(b"alice", b"")
    (sealed,) = body.sealed
    assert sealed.subject == "alice"
    assert read_note(home, sealed) == "Jane Roe, jane@example.org"
    assert read_note(Home(tmp_path / "elsewhere"), sealed) is None
    destroy(home.subject_key("alice"))
    assert read_note(home, sealed) is None
    with pytest.raises(RefusedError, match="erased"):
        with_note(period(), "Jane again", home)


def test_note_said_again_is_the_same_grant_and_no_note_makes_no_key(home: Home) -> None:
    assert with_note(period(), "", home) == period()
    assert not home.path.exists()
    assert with_note(period(), "Jane", home) == with_note(period(), "Jane", home)


def test_note_sealed_with_another_key_is_wrong_not_absent(home: Home, tmp_path: Path) -> None:
    (sealed,) = with_note(period(), "Jane", home).sealed
    with_note(period(), "Joan", Home(tmp_path / "other"))
    with pytest.raises(VerificationError, match="does not open"):
        read_note(Home(tmp_path / "other"), sealed)
