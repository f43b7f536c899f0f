"""Who has which certificate, and which invitations are used up: what an authority must not forget."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from sawyer import durable
from sawyer.errors import Busy, VerificationError
from sawyer.schemas.base import Strict, first_problem
from sawyer.schemas.certificates import MAX_MEMBERS, MemberCertificate

KEEP_USED_S: Final = 24 * 3600
"""A used invitation is forgotten this long after it has expired."""


class UsedInvitation(Strict):
    """By its JWT's id: the key that it made a member, and when it expires (seconds)."""

    id: str
    key: str
    expires_s: int


class _Kept(Strict):
    members: tuple[MemberCertificate, ...] = ()
    used: tuple[UsedInvitation, ...] = ()


@dataclass
class Registry:
    """In one file, written whole after each change. One process has it."""

    file: Path
    _members: dict[str, MemberCertificate] = field(default_factory=dict)
    _used: dict[str, UsedInvitation] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path) -> Registry:
        """Raises VerificationError for a file that cannot be read as one."""
        registry = cls(file)
        try:
            kept = _Kept.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return registry
        except ValidationError as error:
            raise VerificationError(
                f"{file} does not hold who was certified: {first_problem(error)}", hint="Restore it from a copy."
            ) from error
        registry._members = {each.key: each for each in kept.members}
        registry._used = {each.id: each for each in kept.used}
        return registry

    @property
    def members(self) -> tuple[MemberCertificate, ...]:
        """By role and name."""
        return tuple(sorted(self._members.values(), key=lambda each: (each.role, each.name, each.issued_s)))

    def of_key(self, key: str) -> MemberCertificate | None:
        return self._members.get(key)

    def named(self, role: str, name: str) -> MemberCertificate | None:
        """The one that is not revoked."""
        found = (each for each in self._members.values() if (each.role, each.name) == (role, name))
        return next((each for each in found if not each.revoked_s), None)

    def used(self, invitation: str) -> UsedInvitation | None:
        return self._used.get(invitation)

    def note(self, member: MemberCertificate, used: UsedInvitation | None = None) -> None:
        """Remember a certificate, before anybody is given it, and what it used up. Raises Busy beyond the limit."""
        if member.key not in self._members and len(self._members) >= MAX_MEMBERS:
            raise Busy(f"the authority keeps {MAX_MEMBERS} certificates at most")
        self._members[member.key] = member
        if used is not None:
            fresh = (each for each in self._used.values() if each.expires_s + KEEP_USED_S > member.issued_s)
            self._used = {each.id: each for each in fresh}
            self._used[used.id] = used
        self._write()

    def revoke(self, key: str, now_s: int) -> MemberCertificate | None:
        """The member that this key was; None if it had no certificate."""
        member = self._members.get(key)
        if member is None or member.revoked_s:
            return member
        self._members[key] = revoked = member.model_copy(update={"revoked_s": now_s})
        self._write()
        return revoked

    def _write(self) -> None:
        durable.replace(self.file, _Kept(members=self.members, used=tuple(self._used.values())).canonical())
