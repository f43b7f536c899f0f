"""`sawyer doctor`: says what is so, what is wrong and what to do, whatever state it finds."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sawyer.bus import server
from sawyer.bus.membership import write_credentials
from sawyer.bus.server import LocalServer
from sawyer.cli.checks import FAIL, OK, WARN, Check
from sawyer.cli.doctor_machine import check_home, check_settings
from sawyer.cli.doctor_network import MAX_CLOCK_DIFFERENCE_MS, _check_clock, _no_server
from sawyer.errors import MissingExtra, ServerUnreachable, UsageError
from sawyer.home import Home
from sawyer.identity.certificate import certificate_jwt
from sawyer.identity.keys import Key, load_or_create
from sawyer.settings import Settings

from .conftest import TIMEOUT_S, Done, environment
from .test_commands import _without

NOBODY = "nats://127.0.0.1:1"


@pytest.fixture
def doctor(tmp_path: Path) -> Callable[..., Done]:
    """The command, as JSON, of a user with nothing; `checks(done)` reads what it found."""

    def run(*arguments: str | Path, program: tuple[str, ...] = ("-m", "sawyer"), **variables: str) -> Done:
        done = subprocess.run(
            [sys.executable, *program, "doctor", "--json", *map(str, arguments)],
            check=False, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
            env=environment(tmp_path) | variables,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        found = Done(done.returncode, done.stdout, done.stderr)
        assert found.json["ok"] == (found.code == 0)
        for check in found.json["checks"]:
            assert (check["todo"] == "") == (check["state"] == OK), check
        return found

    return run


def checks(done: Done) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in done.json["checks"]}


# --- a network that is well -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def up(sawyer: Callable[..., Done], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a network that runs while this module's tests do; alice has a budget there."""
    home = tmp_path_factory.mktemp("up") / "home"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    done = sawyer("up", "-d", "--listen", listen, "--account", "alice", "--home", home)
    assert done.code == 0, done.err
    yield home
    sawyer("down", "--home", home)


def test_everything_is_ok_in_the_home_of_a_network_that_is_well(doctor, up):
    done = doctor("--home", up, "--account", "alice")
    assert done.code == 0, done.out
    found = checks(done)
    url = json.loads((up / "running.json").read_text())["url"]
    for name, words in {
        "config file": "none", "context": "none is in force", "python": "3.", "packages": "nats-py",
        "compute": "runs on", "nats-server": "2.", "memory": "MiB free", "threads": "cores", "home": str(up),
        "disk": "MiB free",
        "pin": "sawyer-net/", "keys": "alice", "models": "austen-8m-q4", "book": "entries", "lock": url,
        "credentials": "operator-operator.creds", "nats": f"{url} (the network that runs in {up})",
        "bookkeeper": "sawyer-net/",
        "clock": "s ", "routers": "every expert is served", "account": "alice: ",
    }.items():  # fmt: skip
        assert words in found[name]["found"], found[name]
        assert found[name]["state"] in (OK, WARN if name in ("memory", "disk") else OK), found[name]
    settings = {each["name"]: each for each in done.json["settings"]}
    assert settings["home"] == {"name": "home", "value": str(up), "source": "--home"}
    assert settings["account"]["source"] == "--account"


def test_text_shows_settings_checks_and_what_to_do(sawyer, up):
    done = sawyer("doctor", "--home", up, "--account", "bob")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split() == ["setting", "value", "decided", "by"]
    assert any(line.startswith("warn  account ") for line in lines)
    assert any("sawyer account open bob" in line for line in lines[lines.index("What to do") :])
    assert lines[-1].endswith("0 fail")


def test_home_of_another_network_fails(doctor, up, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    pin = (up / "network.json").read_text()
    (home / "network.json").write_text(pin.replace("sawyer-net/", "sawyer-net/0000", 1))
    url = json.loads((up / "running.json").read_text())["url"]
    done = doctor("--home", home, "--nats", url, "--creds", up / "credentials" / "account-alice.creds")
    assert done.code == 1
    assert "is pinned to sawyer-net/0000" in checks(done)["bookkeeper"]["found"]


def test_account_whose_key_lies_elsewhere_is_a_warning(doctor, up, tmp_path):
    url = json.loads((up / "running.json").read_text())["url"]
    creds = up / "credentials" / "account-alice.creds"
    done = doctor("--home", tmp_path / "home", "--nats", url, "--creds", creds, "--account", "alice")
    assert done.code == 0
    assert "its key is not in this home" in checks(done)["account"]["found"]
    assert not (tmp_path / "home").exists()


# --- a network that is not --------------------------------------------------------------------------------------------


def test_server_that_is_down_fails_and_says_who_named_it(doctor):
    done = doctor(SAWYER_NATS=NOBODY)
    assert done.code == 1
    nats = checks(done)["nats"]
    assert nats["state"] == FAIL
    assert "SAWYER_NATS says to use it" in nats["found"]
    assert "bookkeeper" not in checks(done)


def test_nothing_at_the_default_address_is_no_failure() -> None:
    error = ServerUnreachable("no NATS server answers")
    assert _no_server(error, "default").state == WARN
    assert _no_server(error, "--nats").state == FAIL


@pytest.mark.parametrize(
    ("lines", "name", "words"),
    [
        ("", "bookkeeper", "none answers"),
        ("max_payload: 1MB\n", "nats", "1048576 bytes"),
        ("authorization {{ token: x }}\n", "nats", "refused us"),
        ("jetstream: disabled\n", "nats", "JetStream off"),
    ],
)
def test_server_alone_is_judged(doctor, tmp_path, monkeypatch, lines, name, words):
    directive = re.match(r"\w*", lines).group() or "none"  # on one line, or a block
    kept = re.sub(rf"(?ms)^{directive}(:[^\n]*| {{{{.*?^}}}})\n", "", server._CONFIG)
    monkeypatch.setattr(server, "_CONFIG", kept + lines)
    with LocalServer.start(tmp_path / "nats") as local:
        done = doctor("--nats", local.url)
    assert done.code == 1
    assert words in checks(done)[name]["found"]
    assert checks(done)[name]["state"] == (OK if "JetStream" in words else FAIL)


@pytest.mark.parametrize(
    ("ahead_ms", "state"),
    [(0, OK), (-29_999, OK), (40_000, WARN), (-40_000, WARN), (MAX_CLOCK_DIFFERENCE_MS, FAIL), (-(10**9), FAIL)],
)
def test_clocks_that_differ_are_told(ahead_ms: int, state: str) -> None:
    check = _check_clock(ahead_ms)
    assert check.state == state
    assert ("ahead" in check.found) == (ahead_ms > 0)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_broken_config_file_is_a_finding_among_others(doctor, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("nats = nats://h\n")
    done = doctor("--home", home, "--nats", NOBODY, SAWYER_DEVICE="tpu", SAWYER_ACOUNT="x")
    assert done.code == 1
    told = [(each["state"], each["found"]) for each in done.json["checks"] if each["name"] == "settings"]
    assert [state for state, _ in told] == [FAIL, FAIL, WARN]
    assert f"{home}/config.toml: Invalid value (at line 1, column 8)" in told[0][1]
    assert "device is 'tpu' (SAWYER_DEVICE)" in told[1][1]
    assert "SAWYER_ACOUNT" in told[2][1]
    assert "python" in checks(done)


def test_context_in_force_is_tried_and_its_secrets_are_not_told(doctor, tmp_path):
    file = tmp_path / "config" / "nats" / "context" / "prod.json"
    file.parent.mkdir(parents=True)
    creds = tmp_path / "x.creds"
    creds.write_text("hidden")
    creds.chmod(0o644)
    file.write_text(json.dumps({"url": f"nats://maria:hidden@{NOBODY[7:]}", "creds": str(creds)}))
    done = doctor("--context", "prod")
    assert done.code == 1
    assert "hidden" not in done.out
    assert "prod: nats://***@127.0.0.1:1" in checks(done)["context"]["found"]
    assert "mode 0644" in checks(done)["credentials"]["found"]
    assert "holds no user JWT" in checks(done)["nats"]["found"]


def test_context_that_is_not_there_fails(doctor):
    done = doctor("--context", "nowhere")
    assert done.code == 1
    for name in ("context", "nats"):
        assert "no context 'nowhere'" in checks(done)[name]["found"]


# --- this machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["onnxruntime", "nats"])
def test_package_that_cannot_be_imported_is_told(doctor, package):
    done = doctor("--nats", NOBODY, program=_without(package))
    assert done.code == 1
    found = checks(done)
    assert found["python"]["state"] == OK
    if package == "onnxruntime":
        assert found["compute"]["state"] == WARN
        assert "pip install 'sawyer[cpu]'" in found["compute"]["todo"]


def test_nats_server_that_is_none_fails(doctor, tmp_path):
    done = doctor("--nats", NOBODY, SAWYER_NATS_SERVER="/bin/true")
    assert checks(done)["nats-server"]["state"] == FAIL
    done = doctor("--nats", NOBODY, SAWYER_NATS_SERVER=str(tmp_path / "none"))
    assert "not an executable file" in checks(done)["nats-server"]["found"]


def test_more_threads_than_cores_are_a_warning(doctor):
    assert checks(doctor("--nats", NOBODY, SAWYER_THREADS="4000"))["threads"]["state"] == WARN


def test_cuda_that_is_not_there_fails_only_if_it_was_asked_for(doctor):
    done = doctor("--nats", NOBODY, SAWYER_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    assert checks(done)["compute"]["state"] == FAIL
    assert "CUDA" in checks(done)["compute"]["found"]


# --- the home ---------------------------------------------------------------------------------------------------------


def of(home: Path) -> dict[str, Check]:
    return {check.name: check for check in check_home(Settings.load({}, home=home))}


def test_home_that_is_not_there_yet_is_fine_and_is_not_made(tmp_path: Path) -> None:
    found = of(tmp_path / "new" / "home")
    assert found["home"].state == OK
    assert str(tmp_path) in found["disk"].found
    assert list(tmp_path.iterdir()) == []


def test_home_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert of(tmp_path / "file")["home"].state == FAIL


def test_home_of_somebody_else_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert of(tmp_path)["home"].state == WARN
    assert "belongs to" in of(tmp_path)["home"].found


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_home_in_which_others_may_write_is_a_warning(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert f"chmod 700 {tmp_path}" in of(tmp_path)["home"].todo


def test_every_bad_key_file_is_named(demo_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo_home / "keys", home / "keys")
    assert of(home)["keys"].state == OK
    (home / "keys" / "accounts" / "alice.nk").chmod(0o640)
    (home / "keys" / "nodes" / "node-1.nk").write_text("SUnonsense")
    keys = of(home)["keys"]
    assert keys.state == FAIL
    assert "alice.nk has mode 0640" in keys.found
    assert "NKEY" in keys.found
    assert "chmod 600" in keys.todo


def test_certificate_that_is_of_no_use_is_named_with_what_to_do(demo_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo_home / "credentials", home / "credentials")
    whole = of(home)["certificates"]
    assert whole.state == OK
    assert "node node-1" in whole.found
    (home / "credentials" / "node-node-1.creds").chmod(0o644)
    (home / "credentials" / "node-node-2.creds").write_text("torn")
    bad = of(home)["certificates"]
    assert bad.state == FAIL
    assert "node node-1: " in bad.found
    assert "mode 0644, expected 0600" in bad.found
    assert "node node-2: " in bad.found
    assert "--join" in bad.todo


def test_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    home, now_s = Home(tmp_path / "home"), int(time.time())
    key, signer = Key.generate(), Key.generate("A")
    for name, life_s, state in (("a", 3600, WARN), ("b", -1, FAIL)):
        token = certificate_jwt(signer, signer.id, key.id, name, now_s=now_s - 10, expires_s=now_s + life_s)
        write_credentials(home.credentials("node", name), token, key)
        assert of(home.path)["certificates"].state == state


def test_keys_are_named_with_their_role(demo_home: Path) -> None:
    assert of(demo_home)["keys"].found == (
        "accounts/alice, authority, connects, ledger, nodes/node-1, nodes/node-2, operator, routers/router-1"
    )


@pytest.mark.parametrize("role", ["operator", "ledger"])
def test_founding_keys_that_are_lost_or_of_a_stranger_are_told(demo_home: Path, tmp_path: Path, role: str) -> None:
    home = tmp_path / "home"
    shutil.copytree(demo_home, home, ignore=shutil.ignore_patterns("nats", "models"))
    assert of(home)["founding keys"].state == OK
    file = home / "keys" / f"{role}.nk"
    file.unlink()
    lost = of(home)["founding keys"]
    assert lost.state == (WARN if role == "operator" else FAIL)
    assert str(file) in lost.found
    load_or_create(file, "O" if role == "operator" else "U")
    assert of(home)["founding keys"].state == FAIL
    assert f"not the {role} key" in of(home)["founding keys"].found


def test_home_that_joined_a_network_needs_no_founding_keys(demo_home: Path, tmp_path: Path) -> None:
    shutil.copy(demo_home / "network.json", tmp_path)
    assert of(tmp_path)["founding keys"].state == OK


def test_book_is_told_by_size_and_head(demo_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert of(home)["book"].found.startswith("none")
    for name in ("book.sqlite", "views.sqlite"):
        shutil.copy(demo_home / name, home / name)
    assert "entries, 0." in of(home)["book"].found
    assert "not verified" in of(home)["book"].found
    (home / "views.sqlite").write_bytes(b"no database at all" * 100)
    assert of(home)["book"].state == FAIL
    (home / "views.sqlite").unlink()
    assert of(home)["book"].state == WARN


@pytest.mark.parametrize("content", ["{", "[]"])
def test_pin_that_cannot_be_read_fails(tmp_path: Path, content: str) -> None:
    (tmp_path / "network.json").write_text(content)
    assert of(tmp_path)["pin"].state == FAIL


def test_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert of(tmp_path)["disk"].state == FAIL


# --- checks that fail themselves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (UsageError("what", hint="do"), FAIL, "what"),
        (MissingExtra("what", hint="do"), WARN, "what"),
        (PermissionError(13, "Permission denied", "/x"), FAIL, "/x: Permission denied"),
        (ValueError("odd"), FAIL, "the check failed itself (ValueError: odd)"),
    ],
)
def test_check_that_met_an_error_says_so(error: Exception, state: str, words: str) -> None:
    check = Check.of("x", error)
    assert (check.state, check.found) == (state, words)
    assert check.todo


def test_variables_that_somebody_reads_are_not_told(tmp_path: Path) -> None:
    environ = {"SAWYER_NATS": "nats://h", "SAWYER_HOME": str(tmp_path), "OTHER": "x"}
    assert {check.state for check in check_settings(Settings.load(environ), [], environ)} == {OK}
