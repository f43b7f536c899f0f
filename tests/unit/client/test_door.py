"""Who asks, and where: what was given decides, and what was left out is what the command would use."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from sawyer.client.aio import AsyncClient
from sawyer.client.door import identity_of, target_of
from sawyer.contexts import DEFAULT_URL, Contexts, NatsTarget
from sawyer.errors import NotAuthorised, UsageError
from sawyer.identity.keys import Key, load_or_create
from sawyer.settings import Settings


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user with nothing of ours."""
    for name in ("HOME", "NATS", "CONTEXT", "CREDS", "ACCOUNT"):
        monkeypatch.delenv(f"SAWYER_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name: tmp_path / "data")
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    return tmp_path


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config file that nobody may look into."""

    def load(*_: object, **__: object) -> Settings:
        raise AssertionError("settings were read")

    monkeypatch.setattr(Settings, "load", load)


def add_context(user: Path, name: str, target: NatsTarget) -> None:
    Contexts(user / "config" / "sawyer").add(name, target)


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_settings")
def test_address_alone_is_taken_as_it_is_and_no_setting_is_read(keys: dict[str, Key]) -> None:
    creds = Path("alice.creds")
    assert target_of("nats://here:1", "", None) == NatsTarget(url="nats://here:1")
    assert target_of("nats://here:1", "", creds) == NatsTarget(url="nats://here:1", creds=creds)
    AsyncClient("nats://here:1", account="alice", key=keys["alice"])


@pytest.mark.usefixtures("no_settings")
def test_target_is_taken_as_it_is_but_for_credentials_given_beside_it() -> None:
    target = NatsTarget(url="tls://here:1", user="alice", password="secret", inbox_prefix="_INBOX_alice")
    assert target_of(target, "", None) is target
    assert target_of(target, "", Path("x.creds")) == target.with_creds(Path("x.creds"))


def test_target_beside_a_context_is_refused() -> None:
    with pytest.raises(UsageError, match="both") as refused:
        target_of(NatsTarget(), "prod", None)
    assert refused.value.hint


def test_context_is_looked_up_by_name(user: Path) -> None:
    add_context(user, "prod", NatsTarget(url="nats://prod:1", token="secret"))
    assert target_of(None, "prod", None) == NatsTarget(url="nats://prod:1", token="secret")
    assert target_of(None, "prod", Path("x.creds")).creds == Path("x.creds")
    assert target_of("nats://other:1", "prod", None) == NatsTarget(url="nats://other:1", token="secret")


def test_context_that_is_not_there_is_refused_naming_those_that_are(user: Path) -> None:
    add_context(user, "prod", NatsTarget())
    with pytest.raises(UsageError, match="test") as refused:
        target_of(None, "test", None)
    assert refused.value.hint == "Known: prod."


def test_nothing_given_is_what_the_command_would_use(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert target_of(None, "", None) == NatsTarget(url=DEFAULT_URL)
    monkeypatch.setenv("SAWYER_NATS", "nats://variable:1")
    assert target_of(None, "", None) == NatsTarget(url="nats://variable:1")
    monkeypatch.delenv("SAWYER_NATS")
    contexts = Contexts(user / "config" / "sawyer")
    contexts.add("prod", NatsTarget(url="nats://prod:1"))
    contexts.select("prod")
    assert target_of(None, "", None) == NatsTarget(url="nats://prod:1")


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_settings")
def test_account_and_key_that_are_given_are_taken_and_no_setting_is_read(keys: dict[str, Key], tmp_path: Path) -> None:
    assert identity_of("alice", keys["alice"]) == ("alice", keys["alice"])
    held = load_or_create(tmp_path / "bob.nk")
    assert identity_of("bob", tmp_path / "bob.nk")[1].id == held.id


def test_account_and_key_left_out_are_those_of_the_settings_and_the_home(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load_or_create(user / "data" / "keys" / "accounts" / "carol.nk")
    assert identity_of("carol", None)[1].id == held.id
    monkeypatch.setenv("SAWYER_ACCOUNT", "carol")
    account, key = identity_of(None, None)
    assert (account, key.id) == ("carol", held.id)


def test_key_file_that_is_not_there_is_told_and_not_made(user: Path) -> None:
    with pytest.raises(UsageError, match=r"carol\.nk") as refused:
        AsyncClient("nats://here:1", account="carol")
    assert refused.value.hint
    assert not (user / "data").exists()


def test_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "alice.nk"
    load_or_create(file)
    file.chmod(0o644)
    with pytest.raises(NotAuthorised, match="0644"):
        AsyncClient("nats://here:1", account="alice", key=file)


def test_key_is_made_in_its_file_only_on_demand(tmp_path: Path) -> None:
    file = tmp_path / "alice.nk"
    with pytest.raises(UsageError):
        Key.from_file(file)
    made = Key.from_file(file, create=True)
    assert file.stat().st_mode & 0o777 == 0o600
    assert Key.from_file(file).id == Key.from_file(file, create=True).id == made.id


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_timeout_that_is_none_is_refused(keys: dict[str, Key], timeout_s: float) -> None:
    with pytest.raises(UsageError, match="timeout_s"):
        AsyncClient("nats://here:1", account="alice", key=keys["alice"], timeout_s=timeout_s)
