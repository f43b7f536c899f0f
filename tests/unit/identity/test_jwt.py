"""NATS JWTs: what was signed is read back, and nothing else is."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import BadSignature, MalformedMessage, SawyerError
from sawyer.identity import jwt
from sawyer.identity.keys import Key

OPERATOR = Key.from_raw(b"\1" * 32, "O")
USER = Key.from_raw(b"\2" * 32)
NATS = {"type": "user", "tags": ["model:austen"]}
TOKEN = jwt.encode(OPERATOR, USER.id, "maria", NATS, now_s=1000, expires_s=2000)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def resigned(claims: object, header: object = jwt.HEADER) -> str:
    """Whatever claims, with a signature that holds."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{base64.urlsafe_b64encode(OPERATOR.sign(signed.encode())).rstrip(b'=').decode()}"


def claims() -> dict[str, object]:
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(TOKEN.split(".")[1] + "=="))
    return found


def test_token_says_who_says_what_of_whom_until_when() -> None:
    read = jwt.decode(TOKEN)
    assert (read.issuer, read.subject, read.name, read.kind) == (OPERATOR.id, USER.id, "maria", "user")
    assert (read.issued_s, read.expires_s) == (1000, 2000)
    assert read.nats["tags"] == ["model:austen"]


def test_two_tokens_have_two_ids() -> None:
    other = jwt.encode(OPERATOR, USER.id, "maria", NATS, now_s=1001, expires_s=2000)
    assert jwt.decode(other).id != jwt.decode(TOKEN).id


@pytest.mark.parametrize("at", range(0, len(TOKEN), 7))
def test_altered_token_is_refused_at_every_place(at: int) -> None:
    other = "A" if TOKEN[at] != "A" else "B"
    with pytest.raises((MalformedMessage, BadSignature)):
        jwt.decode(TOKEN[:at] + other + TOKEN[at + 1 :])


@pytest.mark.parametrize(
    ("claim", "value"),
    [("iss", 7), ("sub", None), ("nats", []), ("exp", "2000"), ("exp", -1), ("iat", True), ("exp", 2**60), ("jti", [])],
)
def test_claim_of_another_type_is_refused(claim: str, value: object) -> None:
    with pytest.raises(MalformedMessage):
        jwt.decode(resigned(claims() | {claim: value}))


def test_token_of_another_version_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="version 2"):
        jwt.decode(resigned(claims() | {"nats": {"type": "user", "version": 1}}))


@pytest.mark.parametrize("header", [{"typ": "JWT", "alg": "none"}, {"typ": "JWT"}, [], {**jwt.HEADER, "kid": "x"}])
def test_token_with_another_header_is_refused(header: object) -> None:
    with pytest.raises(MalformedMessage):
        jwt.decode(resigned(claims(), header))


def test_claim_that_stands_twice_is_refused() -> None:
    body = base64.urlsafe_b64encode(b'{"iss":"a","iss":"b"}').rstrip(b"=").decode()
    with pytest.raises(MalformedMessage):
        jwt.decode(f"{part(jwt.HEADER)}.{body}.AAAA")


def test_signature_of_another_than_the_issuer_is_refused() -> None:
    thief = Key.from_raw(b"\3" * 32, "O")
    with pytest.raises(BadSignature):
        jwt.decode(jwt.encode(OPERATOR, USER.id, "x", NATS, now_s=1).rpartition(".")[0] + "."
                   + jwt.encode(thief, USER.id, "x", NATS, now_s=1).rpartition(".")[2])  # fmt: skip


@given(
    st.text(max_size=300) | st.lists(st.text(alphabet="AZaz09_-", max_size=60), min_size=3, max_size=3).map(".".join)
)
def test_text_that_is_no_token_is_refused_and_nothing_else_happens(text: str) -> None:
    with pytest.raises(SawyerError):
        jwt.decode(text)
