"""How a home joins a network of others: what it trusts, what it remembers, and that what it says next works."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.bus import server
from sawyer.bus.server import LocalServer
from sawyer.home import Home
from sawyer.identity.keys import Key, load
from sawyer.ledger.checkpoint import vkey_of

from .conftest import TIMEOUT_S, Done, environment

SECRET = "s3cret-never-told"


@pytest.fixture
def user(tmp_path: Path) -> Callable[..., Done]:
    """`user("register", ..., text="stdin")`: a command of somebody who has nothing yet."""

    def run(*arguments: str | Path, text: str = "") -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "sawyer", *map(str, arguments)],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S, input=text, env=environment(tmp_path),
        )  # fmt: skip
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def founder(demo_home: Path, tmp_path: Path) -> Home:
    """A copy of the demo's home, which keeps the book of the network that is joined."""
    copy = tmp_path / "founder"
    shutil.copytree(demo_home, copy, ignore=shutil.ignore_patterns("nats", "logs", "lock", "running.json", "models"))
    return Home(copy)


@contextlib.contextmanager
def _kept(started: Callable[..., subprocess.Popen[str]], founder: Home, folder: Path, proof: str) -> Iterator[str]:
    with LocalServer.start(folder) as local:
        address = local.url.replace("nats://", f"nats://{proof}")
        keeper = started("bookkeeper", "--home", founder.path, "--nats", address)
        assert keeper.stdout is not None
        assert keeper.stdout.readline().startswith("ready: ")
        yield local.url


@pytest.fixture
def url(started: Callable[..., subprocess.Popen[str]], founder: Home, tmp_path: Path) -> Iterator[str]:
    """The address of the network's server, which lets everybody in."""
    with _kept(started, founder, tmp_path / "nats", "") as url:
        yield url


@pytest.fixture
def guarded(
    started: Callable[..., subprocess.Popen[str]], founder: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The address of the network's server, which lets in only maria, by her password."""
    users = f'authorization {{{{ users: [{{{{user: maria, password: "{SECRET}"}}}}] }}}}'
    monkeypatch.setattr(server, "_CONFIG", server._CONFIG + users)
    with _kept(started, founder, tmp_path / "nats", f"maria:{SECRET}@") as url:
        yield url


def command_after(word: str, said: str) -> list[str]:
    """The arguments of the `sawyer` command that was told after this word."""
    found = re.search(rf"{word}\s+sawyer (.*)", said)
    assert found, said
    return shlex.split(found[1])


def serves(started: Callable[..., subprocess.Popen[str]], arguments: list[str]) -> bool:
    process = started(*arguments, "--threads", "1")
    assert process.stdout is not None
    return process.stdout.readline().startswith("ready: ")


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_plain_address_is_remembered_and_the_next_command_needs_none(user, started, url, tmp_path):
    done = user("register", "--nats", url, "--name", "attic", "--home", tmp_path / "my home")
    assert done.code == 0, done.err
    assert Home(tmp_path / "my home").joined_at() == url
    told = command_after("next:", done.err)
    assert "--nats" not in told
    assert serves(started, told)


def test_address_with_a_password_is_not_kept_and_the_context_that_is_proposed_works(user, started, guarded, tmp_path):
    home = tmp_path / "home"
    secret = guarded.replace("nats://", f"nats://maria:{SECRET}@")
    done = user("register", "--nats", secret, "--name", "attic", "--home", home)
    assert done.code == 0, done.err
    assert not Home(home).joined_file.exists()
    proposed = [{"NAME": "prod", "USER": "maria"}.get(word, word) for word in command_after("context:\n", done.err)]
    added = user(*proposed, text=SECRET + "\n")
    assert added.code == 0, added.err
    assert serves(started, command_after("next:", done.err))


def test_context_is_named_again_instead_of_its_masked_address(user, started, guarded, tmp_path):
    home = tmp_path / "home"
    context = ("context", "add", "prod", "--nats", guarded, "--user", "maria", "--home", home)
    assert user(*context, text=SECRET + "\n").code == 0
    done = user("register", "--context", "prod", "--name", "attic", "--home", home)
    assert done.code == 0, done.err
    assert not Home(home).joined_file.exists()
    assert "sawyer context select prod --home" in done.err
    told = command_after("next:", done.err)
    assert told[told.index("--context") + 1] == "prod"
    assert serves(started, told)


def test_selected_context_needs_no_word_the_next_time(user, guarded, tmp_path):
    home = tmp_path / "home"
    user("context", "add", "prod", "--nats", guarded, "--user", "maria", "--select", "--home", home, text=SECRET + "\n")
    done = user("account", "open", "gwen", "--home", home)
    assert done.code == 0, done.err
    assert not Home(home).joined_file.exists()
    assert "sawyer context" not in done.err
    assert user("balance", "--account", "gwen", "--home", home).code == 0


def test_address_beside_a_selected_context_is_told_again(user, started, url, tmp_path):
    home = tmp_path / "home"
    assert user("context", "add", "other", "--nats", "nats://127.0.0.1:1", "--select", "--home", home).code == 0
    done = user("register", "--nats", url, "--name", "attic", "--home", home)
    assert done.code == 0, done.err
    assert "sawyer context select - --home" in done.err
    told = command_after("next:", done.err)
    assert told[told.index("--nats") + 1] == url
    assert serves(started, told)


# --- what is trusted --------------------------------------------------------------------------------------------------


def test_key_that_was_given_is_the_only_one_taken(user, founder, url, tmp_path):
    pin = founder.pin()
    home = Home(tmp_path / "home")
    wrong = vkey_of(pin.network, Key.generate())
    for key, code in (("garbage", 2), (wrong, 3)):
        done = user("register", "--nats", url, "--name", "attic", "--key", key, "--home", home.path)
        assert done.code == code, done.err
        assert not home.path.exists()
    done = user("register", "--nats", url, "--name", "attic", "--key", pin.ledger_vkey, "--home", home.path)
    assert done.code == 0, done.err
    assert home.pin() == pin
    assert "Nobody vouched" not in done.err


def test_one_name_in_two_roles_is_two_keys(user, founder, url):
    home = founder.path
    operator = load(founder.operator_key)
    for name in ("operator", "alice"):
        done = user("register", "--nats", url, "--name", name, "--home", home)
        assert done.code == 0, done.err
        assert load(founder.node_key(name)).id in done.out
    assert user("account", "open", "operator", "--nats", url, "--home", home).code == 0
    assert load(founder.operator_key).id == operator.id
    keys = [founder.operator_key, founder.account_key("operator"), founder.node_key("operator")]
    assert len({load(file).id for file in keys}) == 3


def test_up_in_a_home_that_joined_a_network_is_refused_and_makes_no_key(user, url, tmp_path):
    home = Home(tmp_path / "home")
    assert user("account", "open", "gwen", "--nats", url, "--home", home.path).code == 0
    done = user("up", "--listen", "127.0.0.1:0", "--home", home.path)
    assert done.code == 2
    assert "joined network" in done.err
    assert "sawyer serve" in done.err
    assert not home.operator_key.exists()
