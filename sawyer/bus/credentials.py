"""What a connection proves itself with: the options of nats-py for the credentials and certificates of a target.

Files are read here and not by nats-py, which needs one more package to sign (nkeys) and reads a credentials file that
holds no JWT for ever. Formats: nats-io/nkeys (seeds) and nats-io/jwt (credentials files).
"""

from __future__ import annotations

import base64
import logging
import re
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sawyer.contexts import NatsTarget
from sawyer.errors import NotAuthorised, SawyerError, UsageError
from sawyer.identity.keys import Key

_SEED: Final = re.compile(r"\bSU[A-Z2-7]{56}\b")
_JWT: Final = re.compile(r"-{3,}\s*BEGIN NATS USER JWT\s*-{3,}\s*([\w.=-]+)\s*-{3,}\s*END NATS USER JWT")
_CREDS_HINT: Final = "A credentials file holds a user's JWT and seed, as `nsc generate creds` writes it."

log = logging.getLogger(__name__)


def options(target: NatsTarget) -> dict[str, Any]:
    """What nats-py's `connect` needs to prove who connects. Raises UsageError for a file that cannot be used."""
    if target.creds:
        proof = _Creds(target.creds)
        return {"user_jwt_cb": proof.jwt, "signature_cb": proof.sign, "inbox_prefix": proof.inbox_prefix}
    if target.nkey:
        return {"signature_cb": signs(read_nkey(target.nkey))}
    if target.user:
        return {"user": target.user, "password": target.password}
    return {"token": target.token} if target.token else {}


def read_creds(file: Path) -> tuple[str, Key]:
    """The JWT and the key of a NATS credentials file. Raises UsageError, never telling what the file holds, and
    NotAuthorised for one that others may read."""
    text = _text(file)
    jwt = _JWT.search(text)
    if jwt is None:
        raise UsageError(f"{file} is not a NATS credentials file: it holds no user JWT", hint=_CREDS_HINT)
    return jwt.group(1), _key(file, text, _CREDS_HINT)


def read_nkey(file: Path) -> Key:
    """The key of a seed file. Raises what `read_creds` does."""
    return _key(file, _text(file), "A seed file holds a user's seed: 58 characters that begin with SU.")


def signs(key: Key) -> Callable[[str], bytes]:
    """Answers a server's nonce."""
    return lambda nonce: base64.b64encode(key.sign(nonce.encode()))


def tls(target: NatsTarget) -> ssl.SSLContext | None:
    """None where the target does not say how to know its server, and who we are to it, by certificate."""
    if not wants_tls(target):
        return None
    for file in (target.ca, target.cert, target.key):
        if file is not None:
            _text(file)
    try:
        context = ssl.create_default_context(cafile=target.ca)
        if target.cert:
            context.load_cert_chain(target.cert, target.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        files = ", ".join(str(each) for each in (target.ca, target.cert, target.key) if each)
        raise UsageError(
            f"the TLS files cannot be used: {files} ({error})",
            hint="ca, cert and key are PEM files, key without password.",
        ) from error
    return context


def wants_tls(target: NatsTarget) -> bool:
    """Whether nothing may be told to a server that does not encrypt."""
    secure = any(each.lower().startswith(("tls://", "wss://")) for each in target.servers)
    return bool(target.ca or target.cert or target.tls_first or secure)


class _Creds:
    """A credentials file, read anew at each connect: short-lived ones are replaced while a program runs. nats-py takes
    no exception here, so what was read last stands in for a file that cannot be read then."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._jwt, self._key = read_creds(file)

    @property
    def inbox_prefix(self) -> str:
        """Of its own: a certificate lets nobody else listen there, and so read what it is answered."""
        return f"_INBOX.{self._key.id}"

    def sign(self, nonce: str) -> bytes:
        """Called before `jwt`."""
        try:
            self._jwt, self._key = read_creds(self._file)
        except SawyerError as error:
            log.warning("%s; the credentials read before are used", error.message)
        return signs(self._key)(nonce)

    def jwt(self) -> bytes:
        return self._jwt.encode()


def _key(file: Path, text: str, hint: str) -> Key:
    seed = _SEED.search(text)
    if seed is None:
        raise UsageError(f"{file} holds no seed of a NATS user", hint=hint)
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        raise NotAuthorised(f"{file} has mode {mode:04o}, expected 0600", hint=f"chmod 600 {file}")
    try:
        return Key.from_seed(seed.group())
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", hint=hint) from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="Check the path and whose it is.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not text", hint="Check the path.") from error


def _no_password() -> str:
    """Without it, OpenSSL would ask on the terminal."""
    raise ValueError("the key has a password")
