"""`sawyer ledger replay`: what it prints and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sawyer.cli.app import run
from sawyer.home import Home, Pin

BLOCKED = ("nats", "onnxruntime", "onnx", "tokenizers", "stripe", "psycopg")


@pytest.fixture
def home(scene, tmp_path: Path) -> Path:
    """A home with its pin, a book and its views."""
    Home(tmp_path).write_pin(Pin(scene.network, scene.vkey, scene.keys["operator"].id))
    book = scene.open(tmp_path)
    scene.work(book, 2)
    book.close()
    return tmp_path


def test_replay_of_an_honest_home_says_ok_and_exits_0(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "replay", "--home", str(home)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("OK: ")
    assert "live views compared, row by row, at entry 12" in out
    assert "alice" in out
    assert "bob" in out


def test_replay_as_json_has_the_same_facts(home: Path, scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "replay", "--home", str(home), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["anchored"], told["network"], told["entries"]) == (True, True, scene.network, 12)
    assert told["balances"][0]["consumed"] == 16


def test_replay_of_a_changed_book_names_the_entry_and_exits_3(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import sqlite3

    with sqlite3.connect(home / "book.sqlite") as connection:
        changed = connection.execute(
            "UPDATE stored_events SET state=CAST(replace(CAST(state AS TEXT), '\"tokens\":500000', '\"tokens\":900000')"
            " AS BLOB) WHERE topic='tokens.granted.v1'"
        )
        assert changed.rowcount == 1
    connection.close()
    assert run(["ledger", "replay", "--home", str(home)]) == 3
    out = capsys.readouterr().out
    assert "WRONG: entry 8: the signature of operator" in out
    assert "signed by: operator (O" in out
    assert "next: Stop trusting this copy" in out


def test_replay_of_a_copy_without_a_key_says_that_it_is_not_anchored(home: Path, capsys) -> None:
    assert run(["ledger", "replay", "--book", str(home / "book.sqlite")]) == 0
    out = capsys.readouterr().out
    assert "not anchored" in out
    assert "no live views compared: none were given" in out


def test_replay_of_a_copy_without_the_operators_key_says_that_the_operator_is_not_anchored(
    home: Path, scene, capsys
) -> None:
    copy = ["ledger", "replay", "--book", str(home / "book.sqlite"), "--key", scene.vkey]
    assert run(copy) == 0
    out = capsys.readouterr().out
    assert "the operator is not anchored" in out
    assert "give --operator" in out
    assert run([*copy, "--operator", scene.operator]) == 0
    assert "by the key you trust" in capsys.readouterr().out


def test_replay_of_a_copy_against_another_operator_exits_3(home: Path, scene, capsys) -> None:
    from sawyer.identity.keys import Key

    other = Key.from_raw(bytes([77]) * 32, "O").id
    copy = ["--book", str(home / "book.sqlite"), "--key", scene.vkey]
    assert run(["ledger", "replay", *copy, "--operator", other]) == 3
    assert f"expected the pinned {other}" in capsys.readouterr().out


@pytest.mark.parametrize("operator", ["nonsense", "U" + "A" * 55, "of a router"])
def test_operator_key_that_is_none_exits_2(home: Path, scene, operator: str, capsys) -> None:
    key = scene.keys["router"].id if operator == "of a router" else operator
    assert run(["ledger", "replay", "--home", str(home), "--operator", key]) == 2
    assert capsys.readouterr().out == ""


def test_checkpoint_file_that_is_none_exits_2_before_anything_is_said_of_the_book(
    home: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "held").write_text("garbage")
    assert run(["ledger", "replay", "--home", str(home), "--checkpoint", str(tmp_path / "held")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the checkpoint to hold the book against" in captured.err


def test_replay_of_a_copy_against_another_key_exits_3(home: Path, scene, capsys) -> None:
    from sawyer.ledger.checkpoint import vkey_of

    other = vkey_of(scene.network, scene.keys["mallory"])
    assert run(["ledger", "replay", "--book", str(home / "book.sqlite"), "--key", other]) == 3
    assert "the founding names the ledger key" in capsys.readouterr().out


def test_replay_against_a_held_checkpoint_that_the_book_lost_exits_3(home: Path, scene, tmp_path: Path, capsys) -> None:
    book = scene.open(home)
    scene.work(book, 1, start=10)
    (tmp_path / "held").write_text(book.checkpoint())
    book.close()
    assert run(["ledger", "replay", "--home", str(home), "--checkpoint", str(tmp_path / "held")]) == 0
    import sqlite3

    with sqlite3.connect(home / "book.sqlite") as connection:
        connection.execute("DELETE FROM stored_events WHERE rowid > 17")
    connection.close()
    copy = ["--book", str(home / "book.sqlite"), "--key", scene.vkey]
    assert run(["ledger", "replay", *copy, "--checkpoint", str(tmp_path / "held")]) == 3
    assert "the held checkpoint is of 14" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--home", "/nonexistent/home"], ["--book", "/nonexistent/book.sqlite"], ["--key", "nonsense"],
        ["--home", "a", "--book", "b"], ["--checkpoint", "/nonexistent/note"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_question_exits_2_with_a_hint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ledger", "replay", *arguments]) == 2
    captured = capsys.readouterr()
    assert "error:" in captured.err
    assert captured.out == ""


def test_replay_runs_where_bus_engine_and_payments_are_not_installed(home: Path) -> None:
    """An auditor's machine: none of these packages can be imported."""
    program = (
        "import sys\n"
        f"for name in {BLOCKED!r}: sys.modules[name] = None\n"
        "import typer\n"
        "from sawyer.cli import ledger\n"
        "app = typer.Typer()\n"
        "app.add_typer(ledger.app, name='ledger')\n"
        "app()\n"
    )
    command = [sys.executable, "-c", program, "ledger", "replay", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:3]) == (0, "OK:"), done.stderr
