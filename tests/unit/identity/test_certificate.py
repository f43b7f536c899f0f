"""Certificates: proven by the operator's key alone, in one role, until they end or are revoked."""

from __future__ import annotations

import pytest

from sawyer.errors import CertificateRefused
from sawyer.identity import certificate
from sawyer.identity.certificate import Chain
from sawyer.identity.keys import Key
from sawyer.schemas.permissions import ROLES, Role

NETWORK = "sawyer-net/3f9a1c22"
NOW_S = 1_700_000_000
OPERATOR, SPEAKER = Key.from_raw(b"\1" * 32, "O"), Key.from_raw(b"\2" * 32, "O")
SYSTEM, ACCOUNT = Key.from_raw(b"\3" * 32, "A"), Key.from_raw(b"\4" * 32, "A")
SIGNERS: dict[Role, Key] = {role: Key.from_raw(bytes([10 + n]) * 32, "A") for n, role in enumerate(ROLES)}
NODE = Key.from_raw(b"\5" * 32)


def chain(revoked: dict[str, int] | None = None, *, speaker: Key = SPEAKER, operator: str = OPERATOR.id) -> Chain:
    root = certificate.operator_jwt(OPERATOR, NETWORK, SYSTEM.id, SPEAKER.id, now_s=NOW_S)
    signers = {role: key.id for role, key in SIGNERS.items()}
    account = certificate.account_jwt(speaker, ACCOUNT.id, NETWORK, signers, revoked or {}, now_s=NOW_S)
    return Chain(operator, root, account)


def issued(signer: Key = SIGNERS["node"], account: str = ACCOUNT.id, name: str = "attic") -> str:
    return certificate.certificate_jwt(
        signer, account, NODE.id, name, now_s=NOW_S, expires_s=NOW_S + 100, models=["austen"], host="maria"
    )


def test_certificate_is_proven_by_the_operators_key() -> None:
    proven = chain().prove(issued(), NOW_S + 1)
    assert (proven.role, proven.name, proven.key) == ("node", "attic", NODE.id)
    assert (proven.models, proven.host) == (("austen",), "maria")
    assert proven.renew_s == NOW_S + 50


@pytest.mark.parametrize("role", ROLES)
def test_role_is_that_of_the_signing_key(role: Role) -> None:
    assert chain().prove(issued(SIGNERS[role]), NOW_S).role == role


def test_expired_certificate_is_refused() -> None:
    with pytest.raises(CertificateRefused, match="has expired"):
        chain().prove(issued(), NOW_S + 100)


def test_certificate_of_another_account_is_refused() -> None:
    with pytest.raises(CertificateRefused, match="another network"):
        chain().prove(issued(account=SYSTEM.id), NOW_S)


def test_certificate_that_a_member_signed_for_itself_is_refused() -> None:
    with pytest.raises(CertificateRefused, match="another network"):
        chain().prove(issued(NODE), NOW_S)


def test_certificate_that_the_account_itself_signed_is_refused() -> None:
    """Such a one would have no role, and so no bounds."""
    with pytest.raises(CertificateRefused, match="another network"):
        chain().prove(issued(ACCOUNT), NOW_S)


def test_revoked_certificate_is_refused_and_a_later_one_is_not() -> None:
    revoked = chain({NODE.id: NOW_S})
    with pytest.raises(CertificateRefused, match="revoked"):
        revoked.prove(issued(), NOW_S)
    later = certificate.certificate_jwt(
        SIGNERS["node"], ACCOUNT.id, NODE.id, "attic", now_s=NOW_S + 1, expires_s=NOW_S + 100
    )
    assert revoked.prove(later, NOW_S + 1).name == "attic"


def test_account_of_an_authority_that_the_operator_never_named_is_refused() -> None:
    with pytest.raises(CertificateRefused, match="no word"):
        chain(speaker=Key.from_raw(b"\7" * 32, "O"))


def test_chain_of_another_operator_is_refused() -> None:
    with pytest.raises(CertificateRefused, match="the operator is"):
        chain(operator=Key.from_raw(b"\7" * 32, "O").id)


@pytest.mark.parametrize("name", ["", "UPPER", "a.b", "*", ">", "a b", "x" * 64])
def test_name_that_could_reach_other_subjects_is_refused(name: str) -> None:
    """The server puts the name into subjects."""
    with pytest.raises(CertificateRefused, match="no name"):
        chain().prove(issued(name=name), NOW_S)
