"""The live views against people who hold their file, against damage, and against another Sawyer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sawyer.errors import SawyerError, ViewDiffers
from sawyer.ledger.book import Book
from sawyer.ledger.replay import ReplayReport, replay
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.tables import BOOK_TABLE, VIEWS_TABLE
from sawyer.ledger.views import Views
from sawyer.projections.fold import ROWS_VERSION


@pytest.fixture
def home(scene, tmp_path: Path) -> Path:
    """The folder of a closed book of 12 entries, with its views."""
    book = scene.open(tmp_path)
    scene.work(book, 2)
    book.close()
    return tmp_path


def verify(home: Path, scene) -> ReplayReport:
    return replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey, views=home / "views.sqlite")


def change(home: Path, *statements: str) -> None:
    with sqlite3.connect(home / "views.sqlite") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def test_views_whose_head_was_taken_away_do_not_pass_with_changed_rows(home: Path, scene) -> None:
    """Views that say they hold no entry are compared too: there, no row may be."""
    change(
        home, "DELETE FROM view_rows WHERE key='head'",
        "UPDATE view_rows SET row=replace(row, '499984', '999999') WHERE key='bucket:january'",
    )  # fmt: skip
    report = verify(home, scene)
    assert report.problem.why.startswith("at entry 0: view")
    assert "delete views.sqlite" in report.problem.hint


def test_views_without_any_row_are_compared_at_entry_0_and_say_so(home: Path, scene) -> None:
    change(home, "DELETE FROM view_rows")
    report = verify(home, scene)
    assert (report.ok, report.views_seq) == (True, 0)


def test_views_whose_head_was_taken_away_are_made_anew_by_the_writer(home: Path, scene) -> None:
    change(
        home, "DELETE FROM view_rows WHERE key='head'", "INSERT INTO view_rows VALUES ('payouts', 'host:evil', '{}')"
    )
    scene.open(home).close()
    assert (verify(home, scene).problem, verify(home, scene).views_seq) == (None, 12)


def test_views_of_another_version_are_not_compared_and_said_so(home: Path, scene) -> None:
    change(home, f"PRAGMA user_version={ROWS_VERSION + 1}", "UPDATE view_rows SET row='{}' WHERE key='bucket:january'")
    report = verify(home, scene)
    assert (report.ok, report.views_seq) == (True, None)
    assert report.views_note == f"they are of version {ROWS_VERSION + 1}, this Sawyer makes {ROWS_VERSION}"


FIRST_TRACKING = (
    "CREATE TABLE tracking (application_name TEXT, notification_id INTEGER, PRIMARY KEY (application_name)) "
    "WITHOUT ROWID"
)


@pytest.mark.parametrize("version", [2, ROWS_VERSION - 1, ROWS_VERSION + 1])
def test_views_of_another_version_are_made_anew_by_the_writer(home: Path, scene, version: int) -> None:
    change(home, f"PRAGMA user_version={version}", "UPDATE view_rows SET row='{}'")
    scene.open(home).close()
    assert (verify(home, scene).problem, verify(home, scene).views_seq) == (None, 12)


def test_views_of_the_first_sawyer_are_made_anew_by_the_writer(home: Path, scene) -> None:
    """As its code made them: with a table of positions, and no version."""
    change(home, "PRAGMA user_version=0", FIRST_TRACKING, "UPDATE view_rows SET row='{}'")
    scene.open(home).close()
    assert (verify(home, scene).problem, verify(home, scene).views_seq) == (None, 12)


FOREIGN = {
    "a database": ("CREATE TABLE photos (a)", "INSERT INTO photos VALUES (1)"),
    "a database that numbers its versions as we do": ("CREATE TABLE photos (a)", f"PRAGMA user_version={ROWS_VERSION}"),
    "a table of our name": ("CREATE TABLE view_rows (a)",),
    "a table of the first Sawyer's name": ("CREATE TABLE tracking (a)",),
    "a table beside ours": (VIEWS_TABLE, "CREATE TABLE photos (a)", "PRAGMA user_version=2"),
    "a book": (BOOK_TABLE,),
    "no table but a version": ("PRAGMA user_version=7",),
}


@pytest.mark.parametrize("held", FOREIGN)
def test_file_that_is_something_else_is_refused_before_a_byte_of_it_changes(tmp_path: Path, held: str) -> None:
    file = tmp_path / "mine.sqlite"
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in FOREIGN[held]:
            connection.execute(statement)
    before = file.read_bytes()
    with pytest.raises(ViewDiffers, match="holds no views") as caught:
        Views(file)
    assert str(file) in caught.value.message
    assert "name another file" in caught.value.hint
    assert (file.read_bytes(), [each.name for each in tmp_path.iterdir()]) == (before, [file.name])


def test_folder_is_refused_as_views(tmp_path: Path) -> None:
    with pytest.raises(ViewDiffers, match="is no file"):
        Views(tmp_path)


def test_file_that_is_empty_becomes_views(tmp_path: Path) -> None:
    (tmp_path / "mine.sqlite").touch()
    views = Views(tmp_path / "mine.sqlite")
    assert views.head().seq == 0
    views.close()


def test_replay_without_views_says_that_none_were_compared(home: Path, scene) -> None:
    report = replay(SQLiteSource(home / "book.sqlite"), key=scene.vkey)
    assert (report.ok, report.views_seq, report.views_note) == (True, None, "none were given")


DAMAGE = {
    "head is garbage": "UPDATE view_rows SET row=x'00' WHERE key='head'",
    "head is a number": "UPDATE view_rows SET row=7 WHERE key='head'",
    "head has no seq": "UPDATE view_rows SET row='{}' WHERE key='head'",
    "head is below 0": "UPDATE view_rows SET row=replace(row, '\"seq\":12', '\"seq\":-1') WHERE key='head'",
    "head is no number": "UPDATE view_rows SET row=replace(row, '\"seq\":12', '\"seq\":\"x\"') WHERE key='head'",
    "no table": "DROP TABLE view_rows",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON view_rows BEGIN DELETE FROM view_rows; END",
    "a second table": "CREATE TABLE tracking (a)",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_views_are_wrong_in_replay_with_the_hint(home: Path, scene, damage: str) -> None:
    change(home, DAMAGE[damage])
    report = verify(home, scene)
    assert not report.ok
    assert "delete views.sqlite" in report.problem.hint


@pytest.mark.parametrize("damage", DAMAGE.keys() - {"head has no seq"})
def test_damaged_views_are_not_opened_and_the_hint_says_what_to_do(home: Path, scene, damage: str) -> None:
    change(home, DAMAGE[damage])
    with pytest.raises(ViewDiffers) as caught:
        scene.open(home)
    assert f"delete {home / 'views.sqlite'}" in caught.value.hint


def test_views_table_of_another_shape_is_refused_by_replay_and_writer(home: Path, scene) -> None:
    change(home, "DROP TABLE view_rows", "CREATE TABLE view_rows (a)")
    assert "that Sawyer did not make" in verify(home, scene).problem.why
    with pytest.raises(ViewDiffers, match="that Sawyer did not make"):
        scene.open(home)


def test_views_file_that_is_no_database_is_refused_with_the_hint(home: Path, scene) -> None:
    (home / "views.sqlite").write_bytes(b"no database, whatever its name says" * 100)
    with pytest.raises(ViewDiffers, match="cannot open the views") as caught:
        scene.open(home)
    assert f"delete {home / 'views.sqlite'}" in caught.value.hint


def test_slower_writer_does_not_move_the_views_back(home: Path) -> None:
    views = Views(home / "views.sqlite")
    with pytest.raises(SawyerError, match="at entry 12 already"):
        views.write([("payouts", "pool", b"{}")], 12)
    assert views.head().seq == 12
    views.close()


# --- in batches -------------------------------------------------------------------------------------------------------


def rows_of(home: Path) -> dict[tuple[str, str], bytes]:
    with sqlite3.connect(home / "views.sqlite") as connection:
        found = connection.execute("SELECT view, key, row FROM view_rows").fetchall()
    connection.close()
    return {(view, key): row for view, key, row in found}


def folded(book: Book) -> dict[tuple[str, str], bytes]:
    return {(fold.name, key): row for fold in book._state.folds for key, row in fold.encoded_rows()}


def test_views_lag_behind_the_book_until_they_catch_up_and_then_are_the_folds(scene, tmp_path: Path) -> None:
    book = scene.open(tmp_path)
    scene.work(book, 3)
    assert rows_of(tmp_path) == {}
    book.catch_up()
    assert rows_of(tmp_path) == folded(book)
    scene.work(book, 2, start=10)
    assert rows_of(tmp_path) != folded(book)
    book.close()
    assert verify(tmp_path, scene).views_seq == 18


def test_views_catch_up_by_themselves_after_so_many_entries(scene, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sawyer.ledger.book.VIEWS_ENTRIES", 5)
    book = scene.open(tmp_path)
    lags = []
    for number in range(1, 8):
        scene.work(book, 1, start=number)
        lags.append(book.size - book._at.views_size)
    assert max(lags) < 5
    assert 0 in lags
    book.close()


def test_row_of_a_request_is_in_the_views_while_it_holds_tokens_and_gone_after(scene, tmp_path: Path) -> None:
    book = scene.open(tmp_path)
    order = scene.order()
    key = ("balances", f"request:{order.body.request}")
    for asked, there in ((scene.opening(), False), ([scene.reserve(order)], True), ([scene.complete(order)], False)):
        book.commit(asked, scene.now_ms)
        book.catch_up()
        assert (key in rows_of(tmp_path)) is there
    assert [name for view, name in rows_of(tmp_path) if name.startswith("stream:request:")] == []
    book.close()


@pytest.mark.parametrize("caught_up", [0, 1, 2, 3])
def test_writer_that_was_killed_leaves_views_that_catch_up_exactly_once(scene, tmp_path: Path, caught_up: int) -> None:
    """Whatever they were at: nothing counts twice, and a row that is gone is gone."""
    book = scene.open(tmp_path)
    order = scene.order()
    batches = [scene.opening(), [scene.reserve(order)], [scene.complete(order)], [scene.reserve(scene.order(2))]]
    for number, batch in enumerate(batches):
        book.commit(batch, scene.now_ms)
        if number < caught_up:
            book.catch_up()
    book._store.close()
    book._views.close()
    again = scene.open(tmp_path)
    assert rows_of(tmp_path) == folded(again)
    again.close()
    assert verify(tmp_path, scene).problem is None


def test_views_that_cannot_be_written_delay_no_commit_and_are_made_good_later(scene, tmp_path: Path, caplog) -> None:
    book = scene.open(tmp_path)
    scene.work(book, 1)
    blocker = sqlite3.connect(tmp_path / "views.sqlite", isolation_level=None)
    blocker.execute("ALTER TABLE view_rows RENAME TO elsewhere")
    book.catch_up()
    assert "the views lag behind the book" in caplog.text
    scene.work(book, 1, start=5)
    assert book.balance("alice", scene.now_ms).consumed == 16
    blocker.execute("ALTER TABLE elsewhere RENAME TO view_rows")
    blocker.close()
    book.catch_up()
    assert rows_of(tmp_path) == folded(book)
    book.close()
