"""Who gets a certificate, and who does not: every rule of joining, renewing and revoking, and what is remembered."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sawyer.authority.admission import Admission
from sawyer.authority.files import CERTIFICATE_S, Authority
from sawyer.bus.credentials import read_creds
from sawyer.bus.membership import Member
from sawyer.clock import ManualClock
from sawyer.errors import BadSignature, CertificateRefused, NotAuthorised, UnknownAccount, VerificationError
from sawyer.home import Home
from sawyer.identity.certificate import Certificate
from sawyer.identity.envelope import attest, sign
from sawyer.identity.invitation import Invitation
from sawyer.identity.keys import Key
from sawyer.schemas.certificates import (
    INVITED_KIND,
    REQUESTED_KIND,
    REVOKED_KIND,
    CertificateRequested,
    CertificateRevoked,
    Joining,
    Renewing,
    Revoking,
)
from sawyer.schemas.permissions import Role

NETWORK = "sawyer-net/3f9a1c22"
NOW_S = 1_700_000_000
OPERATOR = Key.from_raw(b"\1" * 32, "O")
ATTIC, OTHER = Key.from_raw(b"\2" * 32), Key.from_raw(b"\3" * 32)


@dataclass
class World:
    """An authority in a home of its own, and newcomers."""

    home: Home
    admission: Admission

    def again(self) -> World:
        """The same, after a restart."""
        return World(self.home, Admission.open(Authority.open(self.home, NETWORK, OPERATOR, NOW_S)))

    def invite(self, role: Role = "node", name: str = "", life_s: int = 3600) -> Invitation:
        return self.admission.invite(role, name, "maria" if role == "node" else "", "nats://x", "v", NOW_S, life_s)

    def join(
        self, invitation: Invitation, key: Key = ATTIC, /, *, now_s: int = NOW_S, **changes: object
    ) -> Certificate:
        return self.proven(self.admission.join(joining(invitation, key, **changes), now_s), now_s)

    def proven(self, token: str, now_s: int = NOW_S) -> Certificate:
        return self.admission.authority.prove(token, OPERATOR.id, now_s)


def requested(key: Key, /, **changes: object) -> CertificateRequested:
    asked = Member(NETWORK, OPERATOR.id, "node", "attic", key, ("austen",)).request(ManualClock(NOW_S * 1000))
    return replace_fact(asked, **changes)


def replace_fact(fact: CertificateRequested, **changes: object) -> CertificateRequested:
    fields = {name: getattr(fact, name) for name in fact.__struct_fields__}
    return CertificateRequested(**{**fields, **changes})


def joining(invitation: Invitation, key: Key, /, *, accepting: Key | None = None, **changes: object) -> Joining:
    request = requested(key, **changes)
    return Joining(
        requested=sign(request, REQUESTED_KIND, request.name, key),
        invitation=invitation.certificate,
        accepted=attest(request.canonical(), INVITED_KIND, "newcomer", accepting or invitation.key),
    )


def revoking(key: str, by: Key = OPERATOR, network: str = NETWORK) -> Revoking:
    body = CertificateRevoked(network=network, key=key, at_ms=NOW_S * 1000)
    return Revoking(revoked=sign(body, REVOKED_KIND, "operator", by))


@pytest.fixture
def world(tmp_path: Path) -> World:
    home = Home(tmp_path / "home")
    return World(home, Admission.open(Authority.open(home, NETWORK, OPERATOR, NOW_S)))


# --- joining ----------------------------------------------------------------------------------------------------------


def test_invited_node_gets_a_certificate_for_what_it_asked(world: World) -> None:
    got = world.join(world.invite())
    assert (got.role, got.name, got.key, got.host, got.models) == ("node", "attic", ATTIC.id, "maria", ("austen",))
    assert got.expires_s == NOW_S + CERTIFICATE_S


def test_invitation_is_used_once_also_after_a_restart(world: World) -> None:
    invitation = world.invite()
    world.join(invitation)
    with pytest.raises(CertificateRefused, match="used already"):
        world.again().join(invitation, OTHER, name="cellar")


def test_answer_that_was_lost_is_given_again_to_the_same_key(world: World) -> None:
    invitation = world.invite()
    assert world.join(invitation).key == world.again().join(invitation).key


def test_expired_invitation_is_refused(world: World) -> None:
    with pytest.raises(CertificateRefused, match="expired"):
        world.join(world.invite(life_s=60), now_s=NOW_S + 61)


def test_token_that_was_overheard_is_of_no_use_without_its_seed(world: World) -> None:
    with pytest.raises(BadSignature, match="the invitation's own key"):
        world.admission.join(joining(world.invite(), OTHER, accepting=OTHER), NOW_S)
    assert world.admission.registry.members == ()


def test_invitation_of_another_network_is_refused(world: World, tmp_path: Path) -> None:
    theirs = Admission.open(Authority.open(Home(tmp_path / "theirs"), NETWORK, OPERATOR, NOW_S))
    foreign = theirs.invite("node", "", "maria", "nats://x", "v", NOW_S, 60)
    with pytest.raises(CertificateRefused, match="another network"):
        world.join(foreign)


def test_members_certificate_is_no_invitation(world: World) -> None:
    token = world.admission.authority.issue("node", "attic", ATTIC.id, NOW_S, models=("as-node",))
    invitation = replace(world.invite(), certificate=token, seed=ATTIC.seed)
    with pytest.raises(CertificateRefused, match="no invitation"):
        world.join(invitation, OTHER)


@pytest.mark.parametrize("role", ["account", "router", "operator", "bookkeeper", "authority", "newcomer"])
def test_node_invitation_gives_no_other_role(world: World, role: str) -> None:
    with pytest.raises(CertificateRefused, match="is for a node"):
        world.join(world.invite(), role=role)


def test_invitation_for_one_name_gives_no_other(world: World) -> None:
    with pytest.raises(CertificateRefused, match="is for a node cellar"):
        world.join(world.invite(name="cellar"))


def test_name_of_another_member_is_not_given_away(world: World) -> None:
    world.join(world.invite())
    with pytest.raises(CertificateRefused, match="another node attic"):
        world.join(world.invite(), OTHER)


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"network": "sawyer-net/00000000"}, CertificateRefused, "for network"),
        ({"at_ms": (NOW_S - 3600) * 1000}, CertificateRefused, "is old"),
        ({"at_ms": (NOW_S + 3600) * 1000}, CertificateRefused, "is old"),
        ({"key": OTHER.id}, BadSignature, "not signed with the key"),
        ({"key": OPERATOR.id}, BadSignature, "not signed with the key"),
    ],
)
def test_request_that_is_not_the_newcomers_own_is_refused(
    world: World, changes: dict[str, object], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        world.join(world.invite(), **changes)


def test_operator_key_gets_no_certificate(world: World) -> None:
    """It would be one key with two voices."""
    with pytest.raises(CertificateRefused, match="no participant"):
        world.join(world.invite(), OPERATOR)


# --- renewing ---------------------------------------------------------------------------------------------------------


def renewing(key: Key, /, **changes: object) -> Renewing:
    request = requested(key, **changes)
    return Renewing(requested=sign(request, REQUESTED_KIND, request.name, key))


def test_member_renews_and_keeps_host_and_name(world: World) -> None:
    world.join(world.invite())
    later_s = NOW_S + 100
    got = world.proven(world.admission.renew(renewing(ATTIC, models=("austen", "emma")), later_s), later_s)
    assert (got.host, got.name, got.models, got.expires_s) == (
        "maria",
        "attic",
        ("austen", "emma"),
        later_s + CERTIFICATE_S,
    )


def test_member_that_renews_all_the_time_makes_the_authority_write_nothing(world: World) -> None:
    first = world.join(world.invite())
    written = (world.admission.authority.folder / "issued.json").stat().st_mtime_ns
    for second in range(1, 59):
        again = world.proven(world.admission.renew(renewing(ATTIC), NOW_S + second), NOW_S + second)
        assert again.expires_s == first.expires_s
    assert (world.admission.authority.folder / "issued.json").stat().st_mtime_ns == written


def test_stranger_renews_nothing(world: World) -> None:
    with pytest.raises(CertificateRefused, match="has no certificate"):
        world.admission.renew(renewing(OTHER), NOW_S)


@pytest.mark.parametrize("changes", [{"name": "cellar"}, {"role": "operator"}, {"role": "account"}])
def test_member_renews_as_nobody_else(world: World, changes: dict[str, object]) -> None:
    world.join(world.invite())
    with pytest.raises(CertificateRefused, match="has no certificate"):
        world.admission.renew(renewing(ATTIC, **changes), NOW_S)


# --- revoking ---------------------------------------------------------------------------------------------------------


def test_revoked_member_is_refused_for_good_also_after_a_restart(world: World) -> None:
    token = world.admission.join(joining(world.invite(), ATTIC), NOW_S)
    world.admission.revoke(revoking(ATTIC.id), OPERATOR.id, NOW_S)
    for each in (world, world.again()):
        with pytest.raises(CertificateRefused, match="revoked"):
            each.proven(token)
        with pytest.raises(CertificateRefused, match="revoked"):
            each.admission.renew(renewing(ATTIC), NOW_S)
        with pytest.raises(CertificateRefused, match="revoked"):
            each.join(each.invite(), ATTIC)


def test_name_of_a_revoked_member_is_free(world: World) -> None:
    world.join(world.invite())
    world.admission.revoke(revoking(ATTIC.id), OPERATOR.id, NOW_S)
    assert world.join(world.invite(), OTHER).key == OTHER.id


@pytest.mark.parametrize(("by", "network"), [(ATTIC, NETWORK), (OPERATOR, "sawyer-net/00000000")])
def test_only_the_operator_of_this_network_revokes(world: World, by: Key, network: str) -> None:
    world.join(world.invite())
    with pytest.raises(NotAuthorised):
        world.admission.revoke(revoking(ATTIC.id, by, network), OPERATOR.id, NOW_S)


def test_revocation_that_was_altered_is_refused(world: World) -> None:
    world.join(world.invite())
    signed = revoking(OTHER.id).revoked
    body = CertificateRevoked(network=NETWORK, key=ATTIC.id, at_ms=NOW_S * 1000)
    with pytest.raises(BadSignature):
        world.admission.revoke(
            Revoking(revoked=type(signed)(body=body, signature=signed.signature)), OPERATOR.id, NOW_S
        )


def test_revoking_nobody_says_so(world: World) -> None:
    with pytest.raises(UnknownAccount):
        world.admission.revoke(revoking(OTHER.id), OPERATOR.id, NOW_S)


# --- in the authority's own home --------------------------------------------------------------------------------------


def test_certificates_at_home_are_renewed_at_half_of_their_life_and_not_before(world: World) -> None:
    world.admission.issue_here("node", "attic", ATTIC, NOW_S, models=("austen",))
    file = world.home.credentials("node", "attic")
    first = read_creds(file)[0]
    world.admission.renew_here(NOW_S + CERTIFICATE_S // 2 - 1)
    assert read_creds(file)[0] == first
    half_s = NOW_S + CERTIFICATE_S // 2
    world.admission.renew_here(half_s)
    got = world.proven(read_creds(file)[0], half_s)
    assert (got.expires_s, got.models) == (half_s + CERTIFICATE_S, ("austen",))


def test_key_that_was_replaced_at_home_counts_no_more(world: World) -> None:
    world.admission.issue_here("node", "attic", ATTIC, NOW_S)
    former = read_creds(world.home.credentials("node", "attic"))[0]
    world.admission.issue_here("node", "attic", OTHER, NOW_S)
    with pytest.raises(CertificateRefused, match="revoked"):
        world.proven(former)


def test_secret_files_are_for_their_owner_alone(world: World) -> None:
    world.admission.issue_here("node", "attic", ATTIC, NOW_S)
    files = [file for file in world.home.path.rglob("*") if file.suffix in (".nk", ".creds")]
    assert len(files) > 5
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


@pytest.mark.parametrize("name", ["issued.json", "revoked.json"])
def test_memory_that_was_damaged_is_an_error_and_not_an_empty_one(world: World, name: str) -> None:
    """An authority that forgets would take an invitation twice, or a revoked key back."""
    (world.admission.authority.folder / name).write_text("[")
    with pytest.raises(VerificationError, match=name):
        world.again()
