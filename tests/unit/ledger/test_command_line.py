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


# --- what may be asked besides ----------------------------------------------------------------------------------------


def test_balances_as_of_an_entry_are_shown_and_the_whole_book_is_verified(home: Path, capsys) -> None:
    assert run(["ledger", "replay", "--home", str(home), "--at", "10"]) == 0
    out = capsys.readouterr().out
    assert "balances are as of entry 10; all 12 entries were verified" in out
    assert "Balances (tokens, as of entry 10, 2023-11-14T22:13:20Z)" in out
    assert run(["ledger", "replay", "--home", str(home), "--at", "2023-11-14T22:13:20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["as_of"], told["size"]) == ({"seq": 12, "ts_ms": 1_700_000_000_000}, 12)


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("0", "there is no entry 0"), ("13", "there is no entry 13: the book has 12"), ("9" * 40, "there is no entry"),
        ("soon", "'soon' is neither an entry nor a time"), ("1969-12-31", "neither an entry nor a time of a book"),
    ],
)  # fmt: skip
def test_moment_that_is_none_exits_2(home: Path, capsys, at: str, why: str) -> None:
    assert run(["ledger", "replay", "--home", str(home), "--at", at]) == 2
    captured = capsys.readouterr()
    assert (captured.out, why in captured.err) == ("", True)


def test_second_audit_since_a_checkpoint_says_how_much_it_took_on_trust(home: Path, scene, tmp_path, capsys) -> None:
    book = scene.open(home)
    (tmp_path / "mine.txt").write_text(book.checkpoint())
    scene.work(book, 1, start=10)
    book.close()
    (home / "checkpoint.txt").unlink(missing_ok=True)
    assert run(["ledger", "replay", "--home", str(home), "--since", str(tmp_path / "mine.txt")]) == 0
    out = capsys.readouterr().out
    assert "entries 1 to 12: chained, decided and folded again" in out
    assert "their signatures were not verified again, that checkpoint stands for them" in out
    assert not (home / "checkpoint.txt").exists(), "it stands for a replay that verified every signature"


def test_usage_is_shown_by_model_host_and_day(home: Path, capsys) -> None:
    assert run(["ledger", "replay", "--home", str(home), "--usage"]) == 0
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["2023-11-14", "austen", "2", "10", "6", "16"] in out
    assert ["2023-11-14", "bob", "2", "112", "24752"] in out


def test_statements_in_question_are_told_and_listed(scene, tmp_path: Path, capsys) -> None:
    from sawyer.schemas.events import KeyRevoked

    book = scene.open(tmp_path, views=False)
    scene.work(book, 2)
    key = scene.keys["node-a"].id
    body = KeyRevoked(network=scene.network, key=key, since_ms=scene.now_ms - 5, reason="stolen")
    assert book.commit([scene.say(body, "operator")], scene.now_ms)[0].error is None
    book.close()
    asked = ["ledger", "replay", "--book", str(tmp_path / "book.sqlite"), "--key", scene.vkey]
    assert run(asked) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(key))
    assert row.split()[1:] == ["node-a", "2023-11-14T22:13:19Z", "13", "3", "5", "12"]
    assert run([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questionable"][0]["entries"] == [5, 10, 12]


def test_sums_that_may_pass_2_to_the_53_are_texts_in_json(home: Path, capsys) -> None:
    assert run(["ledger", "replay", "--home", str(home), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["hosts"][0]["work"], told["hosts"][0]["weight_milli"]) == ("24752", "24752000")
    assert told["usage"]["hosts"][0]["work"] == "24752"
    assert (told["workers"] > 0, told["repeated_signatures"]) == (True, 2)


def test_book_of_lines_is_replayed_as_the_file_is(home: Path, scene, tmp_path: Path, capsys) -> None:
    from sawyer.ledger.export import ndjson
    from sawyer.ledger.source import SQLiteSource

    (tmp_path / "book.ndjson").write_bytes(b"".join(ndjson(SQLiteSource(home / "book.sqlite"))))
    asked = ["ledger", "replay", "--key", scene.vkey, "--json", "--book"]
    assert run([*asked, str(tmp_path / "book.ndjson")]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert run([*asked, str(home / "book.sqlite")]) == 0
    file = json.loads(capsys.readouterr().out)
    assert (lines["root"], lines["digests"], lines["balances"]) == (file["root"], file["digests"], file["balances"])


def test_address_of_a_nats_server_means_its_copy_in_jetstream(scene) -> None:
    from sawyer.bookkeeper.journal_source import JetStreamSource
    from sawyer.cli.ledger import source_at

    source = source_at("nats://127.0.0.1:4222", scene.vkey)
    assert isinstance(source, JetStreamSource)
    assert source._network == scene.network


def test_interrupted_replay_exits_130_and_gives_no_verdict(home: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sawyer.ledger.replaying.decide", interrupted)
    assert run(["ledger", "replay", "--home", str(home)]) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("workers", ["-1", "257", "many"])
def test_number_of_workers_that_is_none_exits_2(home: Path, workers: str, capsys) -> None:
    assert run(["ledger", "replay", "--home", str(home), "--workers", workers]) == 2
    assert capsys.readouterr().out == ""
