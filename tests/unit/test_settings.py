"""Who decides where things are kept, and the pin: written once, never another, never half read."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from sawyer.errors import UsageError, VerificationError
from sawyer.settings import ENV_DURABILITY, ENV_HOME, Home, Pin, durability

PIN = Pin(
    network="sawyer-net/3f9a1c22", ledger_vkey="sawyer-net/3f9a1c22+0a1b2c3d+" + "A" * 44, operator="O" + "A" * 55
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.mark.parametrize(
    ("flag", "variable", "expected"),
    [
        ("by-flag", "by-variable", "by-flag"),
        ("by-flag", None, "by-flag"),
        (None, "by-variable", "by-variable"),
        (None, None, "by-default"),
        (None, "", "by-default"),
    ],
)
def test_flag_wins_over_variable_wins_over_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flag: str | None, variable: str | None, expected: str
) -> None:
    monkeypatch.delenv(ENV_HOME, raising=False)
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name: tmp_path / "by-default")
    if variable is not None:
        monkeypatch.setenv(ENV_HOME, variable and str(tmp_path / variable))
    assert Home.resolve(flag and tmp_path / flag).path == tmp_path / expected


def test_home_is_absolute_and_knows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Home.resolve(Path("~/mine")).path == tmp_path / "mine"
    assert Home.resolve(Path("here")).path == tmp_path / "here"


def test_resolving_a_home_makes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = Home.resolve(tmp_path / "home")
    assert home.pin() is None
    assert not home.path.exists()


def test_every_file_has_a_place_of_its_own_inside_the_home(home: Home) -> None:
    places = [home.book, home.views, home.models, home.logs, home.nats, home.lock, home.demo.path, home.key("alice")]
    assert len(set(places)) == len(places)
    assert all(home.path in place.parents for place in places)
    assert home.key("alice") != home.key("bob")


def test_pin_is_read_back_as_written_and_may_be_written_again(home: Home) -> None:
    home.write_pin(PIN)
    home.write_pin(PIN)
    assert home.pin() == PIN
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [path.name for path in home.path.iterdir()] == ["network.json"]


@pytest.mark.parametrize("field", ["network", "ledger_vkey", "operator"])
def test_foreign_pin_is_refused_and_the_first_stays(home: Home, field: str) -> None:
    home.write_pin(PIN)
    with pytest.raises(UsageError, match="belongs to network") as error:
        home.write_pin(replace(PIN, **{field: "another"}))
    assert "--home" in error.value.hint
    assert home.pin() == PIN


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"network": "a", "ledger_vkey": "b"}',
        b'{"network": "a", "ledger_vkey": "b", "operator": "c", "extra": "d"}',
        b'{"network": "a", "ledger_vkey": "b", "operator": 3}',
    ],
)
def test_corrupt_pin_is_named_and_never_overwritten(home: Home, content: bytes) -> None:
    home.path.mkdir()
    file = home.path / "network.json"
    file.write_bytes(content)
    with pytest.raises(VerificationError, match=r"network\.json"):
        home.pin()
    with pytest.raises(VerificationError):
        home.write_pin(PIN)
    assert file.read_bytes() == content


@pytest.mark.parametrize("chosen", ["FULL", "NORMAL", "normal", "full"])
def test_durability_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.delenv(ENV_DURABILITY, raising=False)
    assert durability() == "FULL"
    monkeypatch.setenv(ENV_DURABILITY, chosen)
    assert durability() == chosen.upper()


@pytest.mark.parametrize("chosen", ["", "OFF", "half"])
def test_durability_that_is_no_such_word_is_refused(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv(ENV_DURABILITY, chosen)
    with pytest.raises(UsageError, match="SAWYER_LEDGER_DURABILITY"):
        durability()


def test_kept_checkpoint_is_read_back_and_replaced_by_the_next(home: Home) -> None:
    assert home.held_checkpoint() is None
    for note in ("one\n", "two \N{EM DASH}\n"):
        home.keep_checkpoint(note)
        assert home.held_checkpoint() == note
    assert [path.name for path in home.path.iterdir()] == ["checkpoint.txt"]
