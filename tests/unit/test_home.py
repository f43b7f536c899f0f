"""The files of a home, and the pin: written once, never another, never half read."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from sawyer.errors import UsageError, VerificationError
from sawyer.home import Home, Pin

PIN = Pin(
    network="sawyer-net/3f9a1c22", ledger_vkey="sawyer-net/3f9a1c22+0a1b2c3d+" + "A" * 44, operator="O" + "A" * 55
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


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


def test_kept_checkpoint_is_read_back_and_replaced_by_the_next(home: Home) -> None:
    assert home.held_checkpoint() is None
    for note in ("one\n", "two \N{EM DASH}\n"):
        home.keep_checkpoint(note)
        assert home.held_checkpoint() == note
    assert [path.name for path in home.path.iterdir()] == ["checkpoint.txt"]
