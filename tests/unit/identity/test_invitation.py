"""Join tokens: read back whole, refused otherwise, and never told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import UsageError
from sawyer.identity import jwt
from sawyer.identity.invitation import PREFIX, Invitation
from sawyer.identity.keys import Key

KEY, SIGNER = Key.from_raw(b"\1" * 32), Key.from_raw(b"\2" * 32, "A")
INVITATION = Invitation(
    url="nats://host:4222", network="sawyer-net/3f9a1c22", ledger_vkey="v", operator="o", role="node", name="",
    host="maria", certificate=jwt.encode(SIGNER, KEY.id, "any", {"type": "user"}, now_s=1, expires_s=7), seed=KEY.seed,
)  # fmt: skip


def test_token_is_read_back() -> None:
    assert Invitation.read(INVITATION.text) == INVITATION
    assert INVITATION.key.id == KEY.id
    assert INVITATION.expires_s == 7


def test_token_that_was_wrapped_by_a_mail_program_is_read() -> None:
    text = INVITATION.text
    assert Invitation.read(f"  {text[:70]}\n{text[70:]}\n") == INVITATION


def test_seed_is_not_in_its_repr() -> None:
    assert KEY.seed not in repr(INVITATION)


@pytest.mark.parametrize("at", range(0, len(INVITATION.text), 41))
def test_token_that_was_cut_is_refused(at: int) -> None:
    with pytest.raises(UsageError, match="no join token"):
        Invitation.read(INVITATION.text[:at])


def test_token_with_another_key_than_its_certificate_is_refused() -> None:
    from dataclasses import replace

    with pytest.raises(UsageError, match="no join token"):
        Invitation.read(replace(INVITATION, seed=Key.from_raw(b"\3" * 32).seed).text)


@given(st.text(max_size=200))
def test_text_that_is_no_token_is_refused_without_telling_it(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Invitation.read(PREFIX + text)
    assert len(text) < 8 or text not in str(refused.value)
