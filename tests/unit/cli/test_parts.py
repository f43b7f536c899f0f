"""What `sawyer bookkeeper` opens its book with. Nothing here needs a server: the book is opened first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sawyer.cli.app import run
from sawyer.cli.founding import pinned_network
from sawyer.cli.parts import model_folder
from sawyer.errors import Busy, UsageError
from sawyer.home import Home
from sawyer.schemas.models import MANIFEST_FILE


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    pinned_network(made)
    return made


def test_bookkeeper_with_an_unknown_durability_exits_2_and_makes_no_book(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAWYER_LEDGER_DURABILITY", "SOMETIMES")
    assert run(["bookkeeper", "--home", str(home.path)]) == 2
    assert "Write full or normal" in capsys.readouterr().err
    assert not home.book.exists()


def test_bookkeeper_opens_its_book_with_pin_kept_checkpoint_and_durability(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def opened(path: Path, **options: Any) -> None:
        asked.update(options, path=path)
        raise Busy("seen enough")

    monkeypatch.setattr("sawyer.ledger.book.Book.open", opened)
    monkeypatch.setenv("SAWYER_LEDGER_DURABILITY", "NORMAL")
    home.keep_checkpoint("a note\n")
    assert run(["bookkeeper", "--home", str(home.path)]) == Busy.exit_code
    pin = home.pin()
    assert (asked["path"], asked["network"], asked["operator"]) == (home.book, pin.network, pin.operator)
    assert (asked["held"], asked["synchronous"]) == ("a note\n", "NORMAL")


def test_model_that_is_not_here_is_answered_with_names_that_can_be_typed(home: Home) -> None:
    for folder in ("austen-8m-q4", "tiny-moe-f32", "odd"):
        (home.models / folder).mkdir(parents=True)
        (home.models / folder / MANIFEST_FILE).touch()
    with pytest.raises(UsageError) as caught:
        model_folder(home, "nope", "q4")
    assert "There are: austen-8m, tiny-moe (f32)." in caught.value.hint
