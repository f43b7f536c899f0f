"""The history of a chat on disk."""

from __future__ import annotations

import stat
from pathlib import Path

from sawyer.cli.chat_input import HISTORY_LIMIT, _remember, _remembered


def test_history_is_for_its_owner_alone_and_comes_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "chat_history"
    for line in ("It was", "Ünïcode"):
        _remember(file, line)
    assert _remembered(file) == ["It was", "Ünïcode"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_history_that_has_grown_long_is_cut_to_its_newest_lines(tmp_path: Path) -> None:
    file = tmp_path / "chat_history"
    file.write_text("".join(f"{number}\n" for number in range(3 * HISTORY_LIMIT)))
    kept = _remembered(file)
    assert (len(kept), kept[-1]) == (HISTORY_LIMIT, str(3 * HISTORY_LIMIT - 1))
    assert len(file.read_text().splitlines()) == HISTORY_LIMIT


def test_history_that_cannot_be_kept_does_not_end_the_chat(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing" / "chat_history"
    _remember(nowhere, "It was")
    assert _remembered(nowhere) == []
