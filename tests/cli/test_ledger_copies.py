"""`sawyer ledger backup` and `sawyer ledger restore`, as the keeper of a network runs them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sawyer.home import Home
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.source import source_of
from sawyer.ledger.store import Store


@pytest.fixture
def home(demo_home: Path, tmp_path: Path) -> Path:
    """A copy of the demo's home, to be changed."""
    return Path(shutil.copytree(demo_home, tmp_path / "home", ignore=shutil.ignore_patterns("models", "nats", "logs")))


@pytest.fixture
def copy(sawyer, home: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    file = tmp_path / "copies" / "book.sqlite"
    file.parent.mkdir()
    done = sawyer("ledger", "backup", file, "--home", home)
    assert done.code == 0, done.err
    return file


def cut(book: Path, rows: int) -> None:
    """Take away the last rows."""
    with sqlite3.connect(book) as connection:
        (last,) = connection.execute("SELECT MAX(rowid) FROM stored_events").fetchone()
        connection.execute("DELETE FROM stored_events WHERE rowid > ?", (last - rows,))
    connection.close()


def rows_to_a_checkpoint(book: Path) -> int:
    """How many rows to take away so that the book ends with a checkpoint again."""
    with sqlite3.connect(book) as connection:
        numbers = connection.execute(
            "SELECT (SELECT MAX(rowid) FROM stored_events) - rowid FROM stored_events "
            "WHERE originator_id='log:checkpoints' ORDER BY rowid DESC LIMIT 2"
        ).fetchall()
    connection.close()
    return int(numbers[1][0])


def everything(home: Path) -> dict[str, bytes]:
    names = ("book.sqlite", "views.sqlite", "network.json", "checkpoint.txt")
    return {name: (home / name).read_bytes() for name in names if (home / name).exists()}


def test_backup_is_one_file_that_replays_by_the_networks_key(sawyer, home: Path, copy: Path) -> None:
    assert [path.name for path in copy.parent.iterdir()] == ["book.sqlite"]
    pin = json.loads((home / "network.json").read_text())
    keys = ("--key", pin["ledger_vkey"], "--operator", pin["operator"])
    replayed = sawyer("ledger", "replay", "--book", copy, *keys, "--json")
    assert replayed.code == 0, replayed.err
    assert replayed.json["root"] == sawyer("ledger", "replay", "--home", home, "--json").json["root"]


def test_backup_tells_rows_and_that_it_verified_nothing(sawyer, home: Path, tmp_path: Path) -> None:
    done = sawyer("ledger", "backup", tmp_path / "copy.sqlite", "--home", home, "--json")
    assert done.json["rows"] > 10
    assert done.json["bytes"] == (tmp_path / "copy.sqlite").stat().st_size
    assert "nothing was verified" in done.err


def test_backup_is_refused_where_a_file_stands(sawyer, home: Path, copy: Path) -> None:
    before = copy.read_bytes()
    done = sawyer("ledger", "backup", copy, "--home", home)
    assert (done.code, copy.read_bytes()) == (2, before)
    assert "never takes the place" in done.err


def test_lost_book_is_restored_and_replays_with_its_views_made_anew(sawyer, home: Path, copy: Path) -> None:
    root = sawyer("ledger", "replay", "--home", home, "--json").json["root"]
    for name in ("book.sqlite", "views.sqlite"):
        (home / name).unlink()
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 0, done.err
    assert f"root {root}" in done.out
    assert sawyer("ledger", "replay", "--home", home, "--json").json["root"] == root
    assert sorted(path.name for path in home.iterdir() if ".restore" in path.name) == []


def test_export_is_restored_as_a_backup_is(sawyer, home: Path, tmp_path: Path) -> None:
    root = sawyer("ledger", "replay", "--home", home, "--json").json["root"]
    assert sawyer("ledger", "export", "--format", "ndjson", "-o", tmp_path / "b.ndjson", "--home", home).code == 0
    (home / "book.sqlite").unlink()
    done = sawyer("ledger", "restore", tmp_path / "b.ndjson", "--home", home, "--json")
    assert (done.json["ok"], done.json["root"], done.json["former"]) == (True, root, "")


def test_book_cut_short_against_the_kept_checkpoint_is_refused_even_by_force(sawyer, home: Path, copy: Path) -> None:
    assert sawyer("ledger", "replay", "--home", home, "--json").code == 0
    cut(copy, rows_to_a_checkpoint(copy))
    before = everything(home)
    for more in ((), ("--force",)):
        done = sawyer("ledger", "restore", copy, "--home", home, *more)
        assert done.code == 3
        assert f"not put in place, {home / 'checkpoint.txt'} forbids it" in done.err
        assert f"delete {home / 'checkpoint.txt'}" in done.err
        assert "--force does not change this" in done.err
    assert everything(home) == before


def test_copy_that_ends_before_what_witnesses_cosigned_is_restored_by_force_only(
    sawyer, home: Path, copy: Path
) -> None:
    """The book is lost, and nobody replayed it here: only the witnesses know how far it went."""
    newest = list(source_of(str(copy)).rows())[-1]
    (home / "cosigned.txt").write_bytes(newest.state)
    (home / "checkpoint.txt").unlink(missing_ok=True)
    (home / "book.sqlite").unlink()
    cut(copy, rows_to_a_checkpoint(copy))
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 3
    assert f"not put in place, {home / 'cosigned.txt'} forbids it" in done.err
    assert "Only if there is none: --force." in done.err
    assert not (home / "book.sqlite").exists()
    done = sawyer("ledger", "restore", copy, "--home", home, "--force", "--json")
    assert done.code == 0
    assert done.json["former_cosigned"] == str(home / "cosigned.txt.former-1")
    assert ((home / "cosigned.txt").exists(), (home / "cosigned.txt.former-1").read_bytes()) == (False, newest.state)


def test_book_that_is_in_place_already_stays_as_it_is(sawyer, home: Path, copy: Path) -> None:
    before = {path.name for path in home.iterdir()} | {"checkpoint.txt"}
    books = (home / "book.sqlite").read_bytes(), (home / "views.sqlite").read_bytes()
    for more in ((), ("--force",)):
        done = sawyer("ledger", "restore", copy, "--home", home, *more)
        assert done.code == 0, done.err
        assert done.out.startswith("this book is in place already")
    told = sawyer("ledger", "restore", copy, "--home", home, "--json").json
    assert (told["already_there"], told["former"], told["former_cosigned"]) == (True, "", "")
    assert ((home / "book.sqlite").read_bytes(), (home / "views.sqlite").read_bytes()) == books
    assert {path.name for path in home.iterdir() if not path.name.endswith(("-wal", "-shm"))} == {
        name for name in before if not name.endswith(("-wal", "-shm"))
    }


def test_checkpoint_that_cannot_be_read_is_named_when_a_book_is_restored(sawyer, home: Path, copy: Path) -> None:
    (home / "cosigned.txt").write_text("x")
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 3
    assert str(home / "cosigned.txt") in done.err


@pytest.mark.parametrize(("target", "said"), [("", "is a folder"), ("typo/book.sqlite", "there is no folder")])
def test_backup_without_a_place_for_its_file_says_so(
    sawyer, home: Path, tmp_path: Path, target: str, said: str
) -> None:
    done = sawyer("ledger", "backup", tmp_path / target if target else "", "--home", home)
    assert (done.code, said in done.err, (tmp_path / "typo").exists()) == (2, True, False)


def test_shorter_copy_takes_the_place_of_a_longer_book_by_force_only_and_keeps_it(
    sawyer, home: Path, copy: Path
) -> None:
    for name in ("checkpoint.txt", "cosigned.txt"):
        (home / name).unlink(missing_ok=True)
    cut(copy, rows_to_a_checkpoint(copy))
    before = everything(home)
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 5
    assert "more rows than the copy" in done.err
    assert "--force" in done.err
    assert everything(home) == before
    done = sawyer("ledger", "restore", copy, "--home", home, "--force", "--json")
    assert done.code == 0, done.err
    assert done.json["former"] == str(home / "book.sqlite.former-1")
    longer = sawyer("ledger", "log", "-n", "1000", "--book", home / "book.sqlite.former-1", "--json").json
    assert len(longer) > len(sawyer("ledger", "log", "-n", "1000", "--home", home, "--json").json)


def test_copy_that_was_changed_is_refused_with_its_entry(sawyer, home: Path, copy: Path) -> None:
    with sqlite3.connect(copy) as connection:
        connection.execute(
            "UPDATE stored_events SET state = CAST(replace(CAST(state AS TEXT), 'alice', 'malis') AS BLOB) "
            "WHERE topic='account.opened.v1'"
        )
    connection.close()
    before = everything(home)
    done = sawyer("ledger", "restore", copy, "--home", home, "--force")
    assert done.code == 3
    assert "entry " in done.err
    assert everything(home) == before


def test_book_of_another_network_is_refused(sawyer, home: Path, copy: Path) -> None:
    pin = json.loads((home / "network.json").read_text())
    stranger = Key.from_raw(bytes([77]) * 32)
    (home / "network.json").write_text(json.dumps({**pin, "ledger_vkey": vkey_of(pin["network"], stranger)}))
    (home / "checkpoint.txt").unlink(missing_ok=True)
    before = everything(home)
    done = sawyer("ledger", "restore", copy, "--home", home, "--force")
    assert done.code == 3
    assert everything(home) == before


def test_home_in_which_a_network_runs_is_left_alone(sawyer, home: Path, copy: Path) -> None:
    with Home(home).alone():
        before = everything(home)
        done = sawyer("ledger", "restore", copy, "--home", home, "--force")
        assert done.code == 5
        assert "sawyer down" in done.err
        assert everything(home) == before


def test_book_that_a_bookkeeper_has_open_is_left_alone(sawyer, home: Path, copy: Path) -> None:
    """Also one that was started by itself, without the lock of `sawyer up`. (A process that closes a file loses its
    locks on it: the files are read before SQLite opens them and after.)"""
    cut(home / "book.sqlite", rows_to_a_checkpoint(home / "book.sqlite"))
    before = everything(home)
    with closing(Store.sqlite(home / "book.sqlite")):
        done = sawyer("ledger", "restore", copy, "--home", home)
        assert done.code == 2
        assert "Stop the bookkeeper" in done.err
    assert everything(home) == before


def test_book_moves_into_postgresql_once(sawyer, home: Path, copy: Path, postgres_url: str) -> None:
    """A home that names a database keeps its book there: what is restored goes into its empty schema."""
    (home / "config.toml").write_text(f'ledger_url = "{postgres_url}"')
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 0, done.err
    assert list(source_of(postgres_url).rows()) == list(source_of(str(copy)).rows())
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert (done.code, "in place already" in done.out) == (0, True)
    cut(copy, rows_to_a_checkpoint(copy))
    (home / "checkpoint.txt").unlink()
    (home / "cosigned.txt").unlink(missing_ok=True)
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 2
    assert "rows of a book already" in done.err
    done = sawyer("ledger", "backup", copy.with_name("another"), "--home", home)
    assert done.code == 2
    assert "pg_dump" in done.err
    assert "p@ss" not in done.err + done.out


def test_damaged_book_is_replaced_by_force_and_kept(sawyer, home: Path, copy: Path) -> None:
    damaged = (home / "book.sqlite").read_bytes()[:5000]
    (home / "book.sqlite").write_bytes(damaged)
    done = sawyer("ledger", "restore", copy, "--home", home)
    assert done.code == 5
    assert "cannot be read whole" in done.err
    assert sawyer("ledger", "restore", copy, "--home", home, "--force").code == 0
    assert (home / "book.sqlite.former-1").read_bytes() == damaged
    assert sawyer("ledger", "replay", "--home", home, "--json").code == 0


def test_home_without_a_pin_cannot_say_whose_book_it_is(sawyer, copy: Path, tmp_path: Path) -> None:
    done = sawyer("ledger", "restore", copy, "--home", tmp_path / "empty")
    assert done.code == 2
    assert "network.json" in done.err
    assert not (tmp_path / "empty" / "book.sqlite").exists()


@pytest.mark.parametrize("name", ["none.sqlite", "text.txt"])
def test_file_that_is_no_book_is_refused(sawyer, home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text("a book? " * 1000)
    done = sawyer("ledger", "restore", tmp_path / name, "--home", home)
    assert done.code == (2 if name == "none.sqlite" else 3)
    assert "Traceback" not in done.err
