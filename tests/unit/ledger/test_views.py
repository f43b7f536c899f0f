"""The live views against people who hold their file, against damage, and against another Sawyer."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sawyer.errors import SawyerError, ViewDiffers
from sawyer.ledger.replay import ReplayReport, replay
from sawyer.ledger.source import SQLiteSource
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


@pytest.mark.parametrize("version", [0, ROWS_VERSION - 1, ROWS_VERSION + 1])
def test_views_of_another_version_are_made_anew_by_the_writer(home: Path, scene, version: int) -> None:
    change(home, f"PRAGMA user_version={version}", "CREATE TABLE tracking (a)", "UPDATE view_rows SET row='{}'")
    scene.open(home).close()
    assert (verify(home, scene).problem, verify(home, scene).views_seq) == (None, 12)


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
    assert "delete views.sqlite" in caught.value.hint


def test_views_table_of_another_shape_is_refused_by_replay_and_writer(home: Path, scene) -> None:
    change(home, "DROP TABLE view_rows", "CREATE TABLE view_rows (a)")
    assert "that Sawyer did not make" in verify(home, scene).problem.why
    with pytest.raises(ViewDiffers, match="that Sawyer did not make"):
        scene.open(home)


def test_views_file_that_is_no_database_is_refused_with_the_hint(home: Path, scene) -> None:
    (home / "views.sqlite").write_bytes(b"no database, whatever its name says" * 100)
    with pytest.raises(ViewDiffers, match="cannot open the views") as caught:
        scene.open(home)
    assert "delete views.sqlite" in caught.value.hint


def test_slower_writer_does_not_move_the_views_back(home: Path) -> None:
    views = Views(home / "views.sqlite")
    with pytest.raises(SawyerError, match="at entry 12 already"):
        views.write([("payouts", "pool", b"{}")], 12)
    assert views.head().seq == 12
    views.close()
