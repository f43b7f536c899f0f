"""Who decides: flag > SAWYER_* > config file > default."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from sawyer.errors import UsageError
from sawyer.settings import Settings


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
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name: tmp_path / "by-default")
    environ = {} if variable is None else {"SAWYER_HOME": variable and str(tmp_path / variable)}
    assert Settings.load(environ, home=flag and tmp_path / flag).home.path == tmp_path / expected


def test_home_is_absolute_and_knows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Settings.load({}, home=Path("~/mine")).home.path == tmp_path / "mine"
    assert Settings.load({}, home=Path("here")).home.path == tmp_path / "here"


def test_loading_settings_makes_nothing(tmp_path: Path) -> None:
    settings = Settings.load({}, home=tmp_path / "home")
    assert settings.home.pin() is None
    assert not settings.home.path.exists()


@pytest.mark.parametrize("chosen", ["FULL", "NORMAL", "normal", "full"])
def test_durability_is_what_the_environment_says(tmp_path: Path, chosen: str) -> None:
    assert Settings.load({}, home=tmp_path).durability == "FULL"
    assert Settings.load({"SAWYER_LEDGER_DURABILITY": chosen}, home=tmp_path).durability == chosen.upper()


@pytest.mark.parametrize("chosen", ["OFF", "half"])
def test_durability_that_is_no_such_word_is_refused(tmp_path: Path, chosen: str) -> None:
    with pytest.raises(UsageError, match="SAWYER_LEDGER_DURABILITY"):
        Settings.load({"SAWYER_LEDGER_DURABILITY": chosen}, home=tmp_path)
