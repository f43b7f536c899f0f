"""Invitations at the command line: how long they are good, where a token is read from, and for whom it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from sawyer.cli.joining import check_role, read_invitation
from sawyer.cli.network_commands import _life
from sawyer.errors import UsageError
from sawyer.identity import jwt
from sawyer.identity.invitation import Invitation
from sawyer.identity.keys import Key

KEY = Key.from_raw(b"\1" * 32)
INVITATION = Invitation(
    url="nats://host:4222", network="sawyer-net/3f9a1c22", ledger_vkey="v", operator="o", role="account", name="gwen",
    host="", certificate=jwt.encode(Key.from_raw(b"\2" * 32, "A"), KEY.id, "gwen", {"type": "user"}, now_s=1),
    seed=KEY.seed,
)  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("24h", 86_400), ("7d", 604_800), ("30d", 2_592_000)])
def test_life_of_an_invitation_is_read(text: str, seconds: int) -> None:
    assert _life(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "24", "h", "-1h", "31d", "1w", "1.5h", " 1h", "99999999m"])
def test_life_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time for an invitation"):
        _life(text)


def test_token_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token.txt"
    file.write_text(INVITATION.text + "\n")
    assert read_invitation(str(file)) == INVITATION


def test_token_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(INVITATION.text + "\n"))
    assert read_invitation("-") == INVITATION


def test_token_on_the_command_line_works_and_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_invitation(INVITATION.text) == INVITATION
    told = capsys.readouterr().err
    assert "is seen by every user of this machine" in told
    assert KEY.seed not in told


@pytest.mark.parametrize("given", ["no-such-file", "x" * 5000])
def test_what_is_neither_file_nor_token_is_refused_and_not_told(given: str) -> None:
    with pytest.raises(UsageError, match="no join token") as refused:
        read_invitation(given)
    assert given not in str(refused.value)


def test_invitation_of_another_kind_says_what_to_run() -> None:
    with pytest.raises(UsageError, match="for role account, not node") as refused:
        check_role(INVITATION, "node")
    assert refused.value.hint == "Use: sawyer account open gwen --join"
