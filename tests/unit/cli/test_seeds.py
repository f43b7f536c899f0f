"""A key is replaced in its file so that a crash at any moment leaves one that works, and is finished by going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sawyer import durable
from sawyer.cli.seeds import next_seed, put_in_place, settled, waiting_seed
from sawyer.home import Home
from sawyer.identity.keys import load, load_or_create


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def file(home: Home) -> Path:
    load_or_create(home.operator_key, "O")
    return home.operator_key


def test_next_seed_is_made_once_and_the_key_in_the_file_stays(file: Path) -> None:
    held = load(file)
    assert waiting_seed(file) is None
    made = next_seed(file, "O")
    assert (next_seed(file, "O").id, waiting_seed(file).id) == (made.id, made.id)  # type: ignore[union-attr]
    assert made.kind == "O"
    assert load(file).id == held.id


def test_next_seed_takes_the_file_and_the_old_one_is_set_aside(home: Home, file: Path) -> None:
    old, new = load(file), next_seed(file, "O")
    former = put_in_place(home, file)
    assert load(file).id == new.id
    assert load(former).id == old.id
    assert waiting_seed(file) is None
    assert {each.stat().st_mode & 0o777 for each in (file, former)} == {0o600}


def test_crash_between_setting_aside_and_replacing_is_finished_by_doing_it_again(
    home: Home, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = load(file), next_seed(file, "O")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        put_in_place(home, file)
    monkeypatch.undo()
    assert load(file).id == old.id
    put_in_place(home, file)
    assert load(file).id == new.id


def test_rotation_that_was_recorded_is_settled_and_one_that_was_not_waits(home: Home, file: Path) -> None:
    old, new = load(file), next_seed(file, "O")
    assert settled(home, file, old.id).id == old.id
    assert waiting_seed(file) is not None
    assert settled(home, file, new.id).id == new.id
    assert settled(home, file, new.id).id == new.id


def test_destroyed_file_is_gone_and_destroying_nothing_is_no_error(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    durable.destroy(secret)
    durable.destroy(secret)
    assert not secret.exists()
