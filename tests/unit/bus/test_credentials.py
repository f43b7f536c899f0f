"""NATS servers that ask who connects: the right credentials connect, wrong ones are named and never told."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from sawyer.bus import server
from sawyer.bus.connection import NatsBus
from sawyer.bus.credentials import read_creds, read_nkey
from sawyer.bus.server import LocalServer
from sawyer.contexts import NatsTarget
from sawyer.errors import ServerUnreachable, UsageError
from sawyer.identity.keys import Key, _encode

Serve = Callable[[str], str]
SECRET = "s3cret-never-told"


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server with these lines in its configuration; returns HOST:PORT."""
    plain = server._CONFIG
    with contextlib.ExitStack() as stack:

        def start(lines: str) -> str:
            monkeypatch.setattr(server, "_CONFIG", plain + lines.replace("{", "{{").replace("}", "}}"))
            return stack.enter_context(LocalServer.start(tmp_path / "nats")).url.partition("://")[2]

        yield start


async def talks(target: NatsTarget) -> bool:
    """One message to itself, over a connection of its own."""
    bus = await NatsBus.connect(target, name="test")
    try:
        await bus.flush()
        return True
    finally:
        await bus.close()


# --- user, token, address ---------------------------------------------------------------------------------------------

USERS = f'authorization {{ users: [{{user: maria, password: "{SECRET}"}}, {{user: guest, password: ""}}] }}'
TOKEN = f'authorization {{ token: "{SECRET}" }}'


async def test_user_and_password_connect(serve: Serve) -> None:
    url = serve(USERS)
    assert await talks(NatsTarget(url=f"nats://{url}", user="maria", password=SECRET))
    assert await talks(NatsTarget(url=f"nats://maria:{SECRET}@{url}"))
    assert await talks(NatsTarget(url=f"nats://{url}", user="guest"))


async def test_token_connects(serve: Serve) -> None:
    url = serve(TOKEN)
    assert await talks(NatsTarget(url=url, token=SECRET))
    assert await talks(NatsTarget(url=f"nats://{SECRET}@{url}"))


@pytest.mark.parametrize(
    ("lines", "target", "named"),
    [
        (USERS, NatsTarget(), "no credentials"),
        (USERS, NatsTarget(user="maria", password=SECRET + "x"), "user maria"),
        (USERS, NatsTarget(token=SECRET), "a token"),
        (TOKEN, NatsTarget(token=SECRET + "x"), "a token"),
        (TOKEN, NatsTarget(), "no credentials"),
    ],
)
async def test_refusal_names_the_credential_and_not_the_secret(
    serve: Serve, lines: str, target: NatsTarget, named: str
) -> None:
    url = serve(lines)
    with pytest.raises(ServerUnreachable, match="refused us") as error:
        await NatsBus.connect(replace(target, url=f"nats://{url}"), name="test")
    assert f"connecting with {named} " in error.value.message
    assert url in error.value.message
    assert "Authorization Violation" in error.value.message
    assert SECRET not in error.value.message
    assert "--creds" in error.value.hint


async def test_refused_address_is_told_without_the_secret_in_it(serve: Serve) -> None:
    url = serve(USERS)
    with pytest.raises(ServerUnreachable, match="what stands in the address") as error:
        await NatsBus.connect(f"nats://maria:{SECRET}x@{url}", name="test")
    assert f"nats://***@{url}" in error.value.message
    assert SECRET not in error.value.message


async def test_address_that_is_none_is_told_without_the_secret_in_it() -> None:
    with pytest.raises(UsageError, match="not the address") as error:
        await NatsBus.connect(f"http://maria:{SECRET}@here", name="test")
    assert SECRET not in str(error.value)


async def test_second_server_of_a_list_is_found_when_the_first_is_down(serve: Serve) -> None:
    assert await talks(NatsTarget(url=f"nats://127.0.0.1:1,nats://{serve('')}"))


@pytest.mark.parametrize("url", ["nats://127.0.0.1:1,", "nats://127.0.0.1:1,http://127.0.0.1:2"])
async def test_list_with_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not the address"):
        await NatsBus.connect(url, name="test")


@pytest.mark.parametrize("prefix", ["a b", "a.*", ">", "a..b", ".a", "a."])
async def test_inbox_prefix_that_is_no_subject_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="inbox"):
        await NatsBus.connect(NatsTarget(inbox_prefix=prefix), name="test")


async def test_inbox_begins_as_the_target_says(serve: Serve) -> None:
    bus = await NatsBus.connect(NatsTarget(url=serve(""), inbox_prefix="_INBOX_maria.x"), name="test")
    try:
        assert bus.new_inbox().startswith("_INBOX_maria.x.")
    finally:
        await bus.close()


async def test_server_says_what_it_is(serve: Serve) -> None:
    bus = await NatsBus.connect(serve(""), name="test")
    try:
        assert bus.server.version.startswith("2.")
        assert bus.server.max_payload_bytes == 8 * 2**20
        assert bus.server.jetstream
        assert not bus.server.encrypted
    finally:
        await bus.close()


# --- nkeys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def key() -> Key:
    return Key.generate()


@pytest.fixture
def seed(tmp_path: Path, key: Key) -> Path:
    file = tmp_path / "user.nk"
    file.write_text(f"# a comment\n{key.seed}\n")
    file.chmod(0o600)
    return file


async def test_nkey_connects(serve: Serve, key: Key, seed: Path) -> None:
    url = serve(f"authorization {{ users: [{{nkey: {key.id}}}] }}")
    assert await talks(NatsTarget(url=url, nkey=seed))


async def test_refused_nkey_is_named_by_its_file(serve: Serve, seed: Path) -> None:
    url = serve(f"authorization {{ users: [{{nkey: {Key.generate().id}}}] }}")
    with pytest.raises(ServerUnreachable, match=f"connecting with nkey {seed} "):
        await NatsBus.connect(NatsTarget(url=url, nkey=seed), name="test")


# --- credentials files: operator, account and user are JWTs -----------------------------------------------------------

UNLIMITED = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}


@dataclass(frozen=True)
class Signer:
    """An operator ("O", 14) or an account ("A", 0) of a NATS with JWTs."""

    prefix: int
    signing: SigningKey

    @property
    def id(self) -> str:
        return _encode(bytes([self.prefix << 3]) + bytes(self.signing.verify_key))

    def jwt(self, subject: str, name: str, nats: dict[str, object], expires: int = 0) -> str:
        claims = {"iss": self.id, "sub": subject, "name": name, "iat": 1, "jti": name, "nats": {**nats, "version": 2}}
        if expires:
            claims["exp"] = expires
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, claims]
        text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        return f"{text}.{_base64(self.signing.sign(text.encode()).signature)}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


OPERATOR, ACCOUNT = Signer(14, SigningKey(b"\1" * 32)), Signer(0, SigningKey(b"\2" * 32))


def trusting_server() -> str:
    """The configuration of a server that trusts our operator."""
    operator = OPERATOR.jwt(OPERATOR.id, "operator", {"type": "operator"})
    account = OPERATOR.jwt(ACCOUNT.id, "account", {"type": "account", "limits": {**UNLIMITED, "wildcards": True}})
    lines = f'operator: "{operator}"\nresolver: MEMORY\nresolver_preload: {{ {ACCOUNT.id}: "{account}" }}\n'
    return "\njetstream: disabled\n" + lines


def write_creds(file: Path, key: Key, *, signer: Signer = ACCOUNT, expires: int = 0, end: str = "\n") -> None:
    jwt = signer.jwt(key.id, "maria", {"type": "user", "subs": -1, "data": -1, "payload": -1}, expires)
    lines = ["-----BEGIN NATS USER JWT-----", jwt, "------END NATS USER JWT------", "", "*** IMPORTANT ***", "",
             "-----BEGIN USER NKEY SEED-----", key.seed, "------END USER NKEY SEED------", ""]  # fmt: skip
    file.write_text(end.join(lines), newline="")
    file.chmod(0o600)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
async def test_credentials_file_connects(serve: Serve, tmp_path: Path, key: Key, end: str) -> None:
    creds = tmp_path / "maria.creds"
    write_creds(creds, key, end=end)
    assert await talks(NatsTarget(url=serve(trusting_server()), creds=creds))


@pytest.mark.parametrize(
    "wrong", [{"signer": Signer(0, SigningKey(b"\3" * 32))}, {"expires": 2}], ids=["another account's", "expired"]
)
async def test_refused_credentials_file_is_named(
    serve: Serve, tmp_path: Path, key: Key, wrong: dict[str, object]
) -> None:
    creds = tmp_path / "maria.creds"
    write_creds(creds, key, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ServerUnreachable, match=f"connecting with creds {creds} ") as error:
        await NatsBus.connect(NatsTarget(url=serve(trusting_server()), creds=creds), name="test")
    assert key.seed not in error.value.message


async def test_credentials_that_were_replaced_are_used_at_the_next_connect(tmp_path: Path, key: Key) -> None:
    from sawyer.bus.credentials import options

    creds = tmp_path / "maria.creds"
    write_creds(creds, key)
    given = options(NatsTarget(creds=creds))
    later = Key.generate()
    write_creds(creds, later)
    assert base64.b64decode(given["signature_cb"]("nonce")) == later.sign(b"nonce")
    assert given["user_jwt_cb"]().decode() == read_creds(creds)[0]
    creds.write_text("half a fi")
    assert base64.b64decode(given["signature_cb"]("nonce")) == later.sign(b"nonce")


@pytest.mark.parametrize("content", [b"", b"-----BEGIN NATS USER JWT-----\n", b"\xff\xfe", b"eyJ0 not decorated"])
def test_file_that_holds_no_credentials_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.creds"
    file.write_bytes(content)
    file.chmod(0o600)
    for read in (read_creds, read_nkey):
        with pytest.raises(UsageError, match=str(file)):
            read(file)


def test_seed_that_was_mistyped_is_refused_and_not_told(tmp_path: Path, key: Key) -> None:
    file = tmp_path / "x.nk"
    wrong = key.seed[:10] + ("A" if key.seed[10] != "A" else "B") + key.seed[11:]
    file.write_text(wrong)
    file.chmod(0o600)
    with pytest.raises(UsageError, match=r"x\.nk") as error:
        read_nkey(file)
    assert wrong not in error.value.message + error.value.hint


@pytest.mark.parametrize("field", ["creds", "nkey", "ca", "cert"])
async def test_file_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UsageError, match=f"cannot read {missing}: No such file"):
        await NatsBus.connect(NatsTarget(**{field: missing}), name="test")  # type: ignore[arg-type]


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of a server on 127.0.0.1 and of a client; `locked.key` has a password."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=our CA")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    for name in ("server", "client"):
        names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
        openssl(*new, *signed, *names, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    openssl("ec", "-in", "client.key", "-out", "locked.key", "-aes256", "-passout", "pass:x")
    return folder


def tls_server(folder: Path, more: str = "") -> str:
    return f'\ntls {{ cert_file: "{folder}/server.pem", key_file: "{folder}/server.key" {more} }}\n'


async def test_server_with_a_certificate_of_our_ca_is_trusted(serve: Serve, certificates: Path) -> None:
    url, ca = serve(tls_server(certificates)), certificates / "ca.pem"
    assert await talks(NatsTarget(url=f"tls://{url}", ca=ca))
    assert await talks(NatsTarget(url=f"nats://{url}", ca=ca))


async def test_server_with_a_certificate_of_an_unknown_ca_is_not_trusted(serve: Serve, certificates: Path) -> None:
    url = serve(tls_server(certificates))
    for scheme in ("tls", "nats"):
        with pytest.raises(ServerUnreachable, match="CERTIFICATE_VERIFY_FAILED") as error:
            await NatsBus.connect(f"{scheme}://{url}", name="test")
        assert "ca" in error.value.hint


async def test_server_that_asks_for_a_certificate_gets_ours(serve: Serve, certificates: Path) -> None:
    ca = certificates / "ca.pem"
    url = serve(tls_server(certificates, f', ca_file: "{ca}", verify: true'))
    ours = NatsTarget(url=url, ca=ca, cert=certificates / "client.pem", key=certificates / "client.key")
    assert await talks(ours)
    with pytest.raises(ServerUnreachable, match="no NATS server answers"):
        await NatsBus.connect(NatsTarget(url=url, ca=ca), name="test")


async def test_handshake_before_the_first_word_is_done_if_the_target_says_so(serve: Serve, certificates: Path) -> None:
    url = serve(tls_server(certificates, ", handshake_first: true"))
    assert await talks(NatsTarget(url=url, ca=certificates / "ca.pem", tls_first=True))


@pytest.mark.parametrize("how", ["scheme", "ca"])
async def test_nothing_is_told_to_a_server_without_tls_when_tls_was_asked_for(
    serve: Serve, certificates: Path, how: str
) -> None:
    url = serve(USERS)
    target = NatsTarget(url=f"tls://{url}") if how == "scheme" else NatsTarget(url=url, ca=certificates / "ca.pem")
    with pytest.raises(ServerUnreachable, match="offers no TLS"):
        await NatsBus.connect(replace(target, user="maria", password=SECRET), name="test")


@pytest.mark.parametrize("key_file", ["locked.key", "server.key", "ca.pem"])
async def test_tls_files_that_do_not_fit_are_named(certificates: Path, key_file: str) -> None:
    target = NatsTarget(cert=certificates / "client.pem", key=certificates / key_file)
    with pytest.raises(UsageError, match=key_file):
        await NatsBus.connect(target, name="test")
