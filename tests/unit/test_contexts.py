"""Contexts: in the form of the nats CLI (natscontext in nats-io/jsm.go), secrets in files of their own."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from sawyer.contexts import DEFAULT_URL, Contexts, NatsTarget, without_secret
from sawyer.errors import UsageError

AS_THE_CLI_WRITES = {
    "description": "", "url": "nats://demo.nats.io", "socks_proxy": "", "token": "", "user": "", "password": "",
    "creds": "", "nkey": "", "cert": "", "key": "", "ca": "", "nsc": "", "jetstream_domain": "",
    "jetstream_api_prefix": "", "jetstream_event_prefix": "", "inbox_prefix": "", "user_jwt": "", "color_scheme": "",
    "tls_first": False,
}  # fmt: skip


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    return Contexts(tmp_path / "sawyer", tmp_path / "nats" / "context")


def cli_writes(tmp_path: Path, name: str, **fields: object) -> Path:
    file = tmp_path / "nats" / "context" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(AS_THE_CLI_WRITES | fields))
    return file


# --- those of the nats CLI --------------------------------------------------------------------------------------------


def test_contexts_of_the_nats_cli_are_found_in_the_users_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for base in (tmp_path / "xdg", tmp_path / "home" / ".config"):
        folder = base / "nats" / "context"
        folder.mkdir(parents=True)
        (folder / f"{base.parent.name}.json").write_text(json.dumps(AS_THE_CLI_WRITES))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert Contexts(tmp_path / "x").names() == ["home"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert Contexts(tmp_path / "x").names() == [tmp_path.name]


def test_context_of_the_nats_cli_is_read_whole(
    contexts: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/maria")
    monkeypatch.setenv("KEYS", "/keys")
    file = cli_writes(
        tmp_path, "prod", description="ours", url="tls://a:4222,tls://b:4222", creds="~/prod.creds",
        ca="$KEYS/ca.pem", cert="file:///keys/c.pem", key="${KEYS}/c.key", inbox_prefix="_INBOX_m", tls_first=True,
        color_scheme="blue", windows_cert_store="", some_new_field=3,
    )  # fmt: skip
    found = contexts.read("prod")
    assert (found.name, found.file, found.owner, found.description) == ("prod", file, "nats", "ours")
    assert found.target == NatsTarget(
        url="tls://a:4222,tls://b:4222", creds=Path("/home/maria/prod.creds"), ca=Path("/keys/ca.pem"),
        cert=Path("/keys/c.pem"), key=Path("/keys/c.key"), inbox_prefix="_INBOX_m", tls_first=True,
    )  # fmt: skip
    assert found.target.servers == ["tls://a:4222", "tls://b:4222"]


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({"url": ""}, NatsTarget(url=DEFAULT_URL)),
        ({"user": "u", "password": "p"}, NatsTarget(user="u", password="p")),
        ({"token": "t"}, NatsTarget(token="t")),
        ({"nkey": "/n.nk"}, NatsTarget(nkey=Path("/n.nk"))),
        ({"user": "u", "password": "p", "creds": "/c", "token": "t"}, NatsTarget(user="u", password="p")),
        ({"creds": "/c", "nkey": "/n", "token": "t"}, NatsTarget(creds=Path("/c"))),
        ({"nkey": "/n", "token": "t"}, NatsTarget(nkey=Path("/n"))),
        ({"password": "p"}, NatsTarget()),
    ],
    ids=str,
)
def test_of_several_credentials_the_one_counts_that_counts_in_the_nats_cli(
    contexts: Contexts, tmp_path: Path, fields: dict[str, str], target: NatsTarget
) -> None:
    cli_writes(tmp_path, "x", **({"url": ""} | fields))
    assert contexts.read("x").target == target


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nsc": "nsc://op/acc/user"}, "nsc"),
        ({"socks_proxy": "socks5://h:1"}, "socks_proxy"),
        ({"user_jwt": "eyJ"}, "user_jwt"),
        ({"user_seed": "SUA"}, "user_seed"),
        ({"windows_cert_store": "user"}, "windows_cert_store"),
        ({"creds": "op://vault/item"}, "op:"),
        ({"password": "env://PASSWORD", "user": "u"}, "env:"),
        ({"token": "data:;base64,AAAA"}, "data:"),
        ({"nkey": "NSC://x"}, "NSC:"),
        ({"url": 3}, "url must be text"),
        ({"creds": ["a"]}, "creds must be text"),
        ({"tls_first": "yes"}, "tls_first must be"),
    ],
    ids=str,
)
def test_context_that_means_what_sawyer_cannot_do_is_refused_naming_the_field(
    contexts: Contexts, tmp_path: Path, fields: dict[str, object], words: str
) -> None:
    file = cli_writes(tmp_path, "x", **fields)
    with pytest.raises(UsageError) as error:
        contexts.read("x")
    assert words in error.value.message
    assert str(file) in error.value.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1, column 1"),
        (b'{\n "url": x}', "line 2, column 9"),
        (b"[]", "JSON object"),
        (b"\xff", "cannot read"),
    ],
)
def test_file_that_is_no_context_is_named(contexts: Contexts, tmp_path: Path, content: bytes, words: str) -> None:
    file = cli_writes(tmp_path, "x")
    file.write_bytes(content)
    with pytest.raises(UsageError, match=words) as error:
        contexts.read("x")
    assert "x" in error.value.message
    assert error.value.hint


# --- our own ----------------------------------------------------------------------------------------------------------

FULL = NatsTarget(
    url="tls://h:1", user="u", password="p", ca=Path("/ca"), cert=Path("/cert"), key=Path("/key"), inbox_prefix="_I",
    tls_first=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "target",
    [FULL, NatsTarget(token="t"), NatsTarget(creds=Path("/c")), NatsTarget(nkey=Path("/n")), NatsTarget()],
    ids=lambda target: target.credential,
)
def test_context_is_read_back_as_added_from_a_private_file(contexts: Contexts, target: NatsTarget) -> None:
    file = contexts.add("mine", target, "a word")
    found = contexts.read("mine")
    assert (found.target, found.owner, found.description) == (target, "sawyer", "a word")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.parent.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["mine.json"]


def test_context_that_is_there_is_not_overwritten(contexts: Contexts) -> None:
    contexts.add("mine", NatsTarget(url="nats://first"))
    with pytest.raises(UsageError, match="there already") as error:
        contexts.add("mine", NatsTarget(url="nats://second"))
    assert "sawyer context rm mine" in error.value.hint
    assert contexts.read("mine").target.url == "nats://first"


def test_our_own_context_counts_before_one_of_the_nats_cli(contexts: Contexts, tmp_path: Path) -> None:
    cli_writes(tmp_path, "prod")
    cli_writes(tmp_path, "demo")
    contexts.add("prod", NatsTarget(url="nats://ours"))
    assert contexts.names() == ["demo", "prod"]
    assert contexts.read("prod").target.url == "nats://ours"
    contexts.remove("prod")
    assert contexts.read("prod").owner == "nats"


def test_context_of_the_nats_cli_is_never_removed(contexts: Contexts, tmp_path: Path) -> None:
    file = cli_writes(tmp_path, "prod")
    with pytest.raises(UsageError, match="belongs to the nats CLI"):
        contexts.remove("prod")
    assert file.exists()


@pytest.mark.parametrize("name", ["", ".x", "-", "-x", "a/b", "../x", "a b", "a\\b", "a\n", "x" * 65])
def test_name_that_is_no_plain_file_name_is_refused_everywhere(contexts: Contexts, tmp_path: Path, name: str) -> None:
    for use in (contexts.read, contexts.remove, lambda name: contexts.add(name, NatsTarget())):
        with pytest.raises(UsageError, match="cannot name a context"):
            use(name)
    assert list(tmp_path.iterdir()) == []


def test_names_leave_out_what_cannot_be_one(contexts: Contexts, tmp_path: Path) -> None:
    folder = cli_writes(tmp_path, "good").parent
    for file in ("a b.json", ".hidden.json", "notes.txt"):
        (folder / file).write_text("{}")
    assert contexts.names() == ["good"]


# --- selecting --------------------------------------------------------------------------------------------------------


def test_selection_is_kept_until_another_or_none(contexts: Contexts, tmp_path: Path) -> None:
    assert contexts.selected() == ""
    contexts.select("")
    contexts.add("one", NatsTarget())
    cli_writes(tmp_path, "two")
    for name in ("one", "two", ""):
        contexts.select(name)
        assert contexts.selected() == name
    assert sorted(path.name for path in (tmp_path / "sawyer").iterdir()) == ["contexts"]


def test_selection_is_private(contexts: Contexts) -> None:
    contexts.add("one", NatsTarget())
    contexts.select("one")
    assert stat.S_IMODE(contexts.selection_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["missing", "broken"])
def test_context_that_cannot_be_used_cannot_be_selected(contexts: Contexts, tmp_path: Path, name: str) -> None:
    contexts.add("one", NatsTarget())
    contexts.select("one")
    cli_writes(tmp_path, "broken", nsc="nsc://x")
    with pytest.raises(UsageError):
        contexts.select(name)
    assert contexts.selected() == "one"


def test_removing_the_selected_context_forgets_the_selection(contexts: Contexts) -> None:
    for name in ("one", "two"):
        contexts.add(name, NatsTarget())
    contexts.select("one")
    contexts.remove("two")
    assert contexts.selected() == "one"
    contexts.remove("one")
    assert (contexts.selected(), contexts.names()) == ("", [])


def test_selection_that_cannot_be_read_is_named(contexts: Contexts) -> None:
    contexts.selection_file.parent.mkdir()
    contexts.selection_file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"context\.txt"):
        contexts.selected()


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "credential"),
    [
        (NatsTarget(), "no credentials"),
        (NatsTarget(creds=Path("/c")), "creds /c"),
        (NatsTarget(nkey=Path("/n")), "nkey /n"),
        (NatsTarget(user="u", password="hidden"), "user u"),
        (NatsTarget(token="hidden"), "a token"),
        (NatsTarget(url="nats://u:hidden@h"), "what stands in the address"),
        (NatsTarget(cert=Path("/c")), "certificate /c"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_credential_is_named_and_no_secret_is_told(target: NatsTarget, credential: str) -> None:
    assert target.credential == credential
    assert "hidden" not in f"{target!r} {target.address}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://h:4222", "nats://h:4222"),
        ("nats://u:p@h:4222", "nats://***@h:4222"),
        ("nats://token@h", "nats://***@h"),
        ("u:p@h", "***@h"),
        ("nats://u:p/q,r:s//@h", "nats://***@h"),
        ("nats://u:a@b@h", "nats://***@h"),
        ("nats://a,nats://u:p@b", "nats://***@b"),
    ],
)
def test_address_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert without_secret(url) == shown


def test_target_with_two_proofs_is_refused() -> None:
    with pytest.raises(UsageError, match="user and token"):
        NatsTarget(user="u", token="t")


def test_creds_replace_every_other_proof_and_nothing_else() -> None:
    target = FULL.with_creds(Path("/c"))
    assert (target.credential, target.password, target.ca) == ("creds /c", "", FULL.ca)
