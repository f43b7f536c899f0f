"""`sawyer models publish|pull|verify|rm`, and a router on a machine that has nothing: real processes, wrong files,
kills."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import nats
import pytest
from nats.aio.msg import Msg

from sawyer.bus import credentials
from sawyer.bus.connection import NatsBus
from sawyer.bus.objects import Bucket
from sawyer.bus.publishing import publish_files
from sawyer.bus.server import LocalServer
from sawyer.cli.founding import _published
from sawyer.contexts import NatsTarget
from sawyer.identity.envelope import sign
from sawyer.identity.keys import load
from sawyer.ids import NetworkId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.schemas.subjects import model_bucket

from .conftest import Done, runner, wait_until  # isort: skip


KILLS = 8
"""Tries to kill a process in the middle of what takes a tenth of a second."""


@pytest.fixture(scope="module")
def published(sawyer: Callable[..., Done], up: Path) -> dict:
    """The network's model, in its store."""
    done = sawyer("models", "publish", DEMO_MODEL, "--home", up, "--json")
    assert done.code == 0, done.err
    return done.json


@pytest.fixture
def member(up: Path) -> Path:
    """Credentials with which the server lets somebody in."""
    return up / "credentials" / "account-alice.creds"


@pytest.fixture
def guest(zygote, url: str, member: Path, tmp_path: Path) -> Callable[..., Done]:
    """A command of a member with a home of their own."""
    return runner(zygote, tmp_path, SAWYER_HOME=str(tmp_path / "guest"), SAWYER_NATS=url, SAWYER_CREDS=str(member))


@pytest.fixture
def pulled(guest: Callable[..., Done], published: dict) -> Path:
    """The folder of a guest who pulled some experts."""
    done = guest("models", "pull", DEMO_MODEL, "--experts", "0:0-2", "--json")
    assert done.code == 0, done.err
    assert done.json["files"] == done.json["files_here"] == 3
    return Path(done.json["folder"])


def test_second_publishing_says_that_it_is_published(sawyer, up: Path, published: dict) -> None:
    assert published["stored"]
    assert not published["recorded"], "`sawyer up` had put it into the book"
    done = sawyer("models", "publish", DEMO_MODEL, "--home", up)
    assert (done.code, "already published: 39 files" in done.out) == (0, True)


def test_pulled_experts_are_right_and_listed(guest, pulled: Path) -> None:
    assert sorted(file.name for file in pulled.rglob("*.bin")) == ["E0.q4.bin", "E1.q4.bin", "E2.q4.bin"]
    verified = guest("models", "verify", DEMO_MODEL, "--json")
    assert (verified.code, verified.json[0]["signed"], verified.json[0]["wrong"]) == (0, True, [])
    row = next(each for each in guest("models", "ls", "--json").json if each["model"] == DEMO_MODEL)
    assert (row["offered"], row["pulled"], row["missing_files"]) == (True, True, 36)
    assert "pulled 3 of 39" in guest("models", "ls").out
    assert "its files to pull" in guest("models", "show", DEMO_MODEL).out


def test_wrong_file_is_named_and_pulling_again_replaces_it(guest, pulled: Path) -> None:
    file = pulled / "experts/L0/E1.q4.bin"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    done = guest("models", "verify", DEMO_MODEL)
    assert done.code == 3
    assert str(file) in done.out
    assert "expected SHA-256" in done.out
    assert guest("models", "pull", DEMO_MODEL, "--experts", "0:1").code == 0
    assert file.read_bytes() == raw
    assert guest("models", "verify", DEMO_MODEL).code == 0


def test_manifest_that_was_exchanged_is_named(guest, pulled: Path) -> None:
    file = pulled / "published.json"
    file.write_bytes(file.read_bytes().replace(b'"top_k":2', b'"top_k":3'))
    done = guest("models", "verify", DEMO_MODEL)
    assert done.code == 3
    assert "neither this home's network nor its operator signed it" in done.out
    assert guest("models", "pull", DEMO_MODEL, "--experts", "0:1").code == 0
    assert guest("models", "verify", DEMO_MODEL).code == 0


@pytest.mark.parametrize("content", [None, "{}"])
def test_pulled_copy_without_its_manifest_is_damaged_and_can_be_deleted(
    guest, pulled: Path, content: str | None
) -> None:
    if content is None:
        (pulled / "manifest.json").unlink()
    else:
        (pulled / "manifest.json").write_text(content)
    done = guest("models", "verify", DEMO_MODEL)
    assert (done.code, "missing, broken or that of other weights" in done.out) == (3, True)
    assert guest("models", "rm", DEMO_MODEL, "--yes").code == 0
    assert not pulled.exists()


def test_copy_whose_proof_is_of_nobody_is_wrong_and_pulling_again_asks_the_book(guest, pulled: Path) -> None:
    proof = pulled / "published.tlog-proof"
    proof.write_text(proof.read_text().replace("c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v9"))
    assert guest("models", "verify", DEMO_MODEL).code == 3
    assert guest("models", "pull", DEMO_MODEL, "--experts", "0:1").code == 0
    assert guest("models", "verify", DEMO_MODEL).code == 0


def test_pulled_copy_is_deleted_only_when_somebody_says_so(guest, pulled: Path) -> None:
    refused = guest("models", "rm", DEMO_MODEL)
    assert (refused.code, "--yes" in refused.err, pulled.is_dir()) == (2, True, True)
    assert guest("models", "rm", DEMO_MODEL, "--yes").code == 0
    assert not pulled.exists()
    assert guest("models", "rm", DEMO_MODEL, "--yes").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("pull", "austin-8m"), 5, "It publishes: austen-8m (q4)"),
        (("pull", DEMO_MODEL, "--experts", "0:99"), 2, "no expert 99"),
        (("pull", DEMO_MODEL, "--share", "2/2"), 2, "share 2/2 does not exist"),
        (("pull", DEMO_MODEL, "--trunk", "--share", "0/2"), 2, "Give one of them"),
        (("publish", DEMO_MODEL), 5, "does not hold the operator's key"),
        (("rm", DEMO_MODEL, "--from-network", "--yes"), 5, "does not hold the operator's key"),
        (("rm", DEMO_MODEL, "--all", "--yes"), 2, "--from-network"),
        (("verify", "nothing"), 2, "there is no copy of nothing"),
    ],
)
def test_wrong_words_are_answered_with_the_right_ones(
    guest, published: dict, arguments: tuple[str, ...], code: int, told: str
) -> None:
    done = guest("models", *arguments)
    assert (done.code, told in done.err) == (code, True), done.err


def test_pull_over_the_limit_says_both_sizes(zygote, url: str, member: Path, published: dict, tmp_path: Path) -> None:
    small = runner(zygote, tmp_path, SAWYER_HOME=str(tmp_path / "h"), SAWYER_NATS=url, SAWYER_CACHE_LIMIT="1MB")
    done = small("models", "pull", DEMO_MODEL, "--creds", member)
    assert done.code == 1
    assert "7,816,985 bytes are wanted" in done.err
    assert "at most 1,000,000 bytes" in done.err
    assert "cache_limit" in done.err


def test_kill_of_a_pull_leaves_nothing_wrong_and_the_next_one_goes_on(
    started, url: str, member: Path, published: dict, tmp_path: Path
) -> None:
    home = tmp_path / "killed"
    arguments = ("models", "pull", DEMO_MODEL, "--home", home, "--nats", url, "--creds", member)
    process = started(*arguments)
    wait_until(lambda: any(home.rglob("*.bin")) or process.poll() is not None, "a first file")
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = next(home.glob("cache/models/*"))
    before = {file: file.stat().st_ino for file in folder.rglob("*.bin")}
    (folder / ".E0.q4.bin.killed.part").write_bytes(b"half")
    done = started(*arguments)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert "39 files" in out
    assert not list(folder.rglob("*.part"))
    assert {file: file.stat().st_ino for file in before} == before, "what was there was fetched again"
    checked = started("models", "verify", DEMO_MODEL, "--home", home)
    assert checked.communicate(timeout=60)
    assert checked.returncode == 0


def test_router_of_a_machine_that_has_nothing_pulls_the_trunk(
    sawyer, started, up: Path, url: str, tmp_path: Path
) -> None:
    """A key with its certificate, a pin, and the name of a model that the package does not have."""
    split = ("models", "split", demo_checkpoint(), "--name", "austen-again", "--home", up)
    for arguments in (split, ("models", "publish", "austen-again", "--home", up, "--json")):
        done = sawyer(*arguments)
        assert done.code == 0, done.err
    assert (done.json["stored"], done.json["recorded"]) == (True, True)
    home = tmp_path / "router"
    (home / "keys/routers").mkdir(parents=True, mode=0o700)
    key = home / "keys/routers/router-1.nk"
    key.write_bytes((up / "keys/routers/router-1.nk").read_bytes())
    key.chmod(0o600)
    (home / "network.json").write_bytes((up / "network.json").read_bytes())
    (home / "credentials").mkdir(mode=0o700)
    shutil.copy(up / "credentials/router-router-1.creds", home / "credentials")
    process = started("route", "austen-again", "--home", home, "--nats", url)
    wait_until(lambda: len([*home.glob("cache/models/*/trunk/*.bin")]) == 6 or process.poll() is not None, "a trunk")
    assert process.poll() is None, process.communicate()
    folder = next(home.glob("cache/models/austen-again-*"))
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "experts").exists()


def test_kill_of_a_publishing_leaves_nothing_wrong_and_the_next_one_goes_on(
    sawyer, started, guest, up: Path, published: dict
) -> None:
    (streams,) = up.glob("nats/jetstream/jetstream/A*/streams")
    for _ in range(KILLS):
        assert sawyer("models", "rm", DEMO_MODEL, "--from-network", "--all", "--yes", "--home", up).code == 0
        process = started("models", "publish", DEMO_MODEL, "--home", up)
        wait_until(lambda: any(streams.glob("OBJ_SAWYER_austen-8m_*/msgs/*.blk")), "a first chunk")
        process.send_signal(signal.SIGKILL)
        process.wait()
        meta = next(streams.glob("OBJ_SAWYER_austen-8m_*")) / "meta.inf"
        if not json.loads(meta.read_text())["sealed"]:
            break
    else:
        pytest.fail(f"killed {KILLS} times, and never in the middle")
    again = sawyer("models", "publish", DEMO_MODEL, "--home", up)
    assert again.code == 0, again.err
    assert guest("models", "pull", DEMO_MODEL).code == 0
    assert guest("models", "verify", DEMO_MODEL).code == 0


def test_split_is_published_by_its_folder_and_a_folder_without_one_is_named(sawyer, up: Path, published: dict) -> None:
    done = sawyer("models", "publish", up / f"models/{DEMO_MODEL}-q4", "--home", up, "--json")
    assert (done.code, done.json["manifest"]) == (0, published["manifest"])
    none = sawyer("models", "publish", up / "logs", "--home", up)
    assert (none.code, "no split model" in none.err) == (2, True), none.err


def test_weights_that_were_replaced_are_refused_before_a_file_is_sent(sawyer, up: Path) -> None:
    for format in ("q4", "q8"):
        split = ("models", "split", demo_checkpoint(), "--name", "austen-twice", "--format", format, "--home", up)
        publish = ("models", "publish", "austen-twice", "--format", format, "--home", up)
        for arguments in (split, publish):
            done = sawyer(*arguments)
            assert done.code == 0, done.err
    assert "this replaces it" in done.err
    gone = sawyer("models", "rm", "austen-twice", "--from-network", "--yes", "--home", up)
    assert (gone.code, gone.out.count("deleted")) == (0, 1), gone.err
    back = sawyer("models", "publish", "austen-twice", "--format", "q4", "--home", up)
    assert (back.code, "replaced since" in back.err) == (5, True), back.err
    assert len([*up.glob("nats/jetstream/jetstream/A*/streams/OBJ_SAWYER_austen-twice_*")]) == 1


async def _inside(url: str, member: Path) -> nats.NATS:
    """A member's connection to the network."""
    proof = credentials.options(NatsTarget(creds=member))
    return await nats.connect(url, **proof)


async def test_weights_that_only_a_stolen_key_signed_are_refused_whatever_the_network_names(
    up: Path, url: str, member: Path, published: dict, tmp_path: Path, started
) -> None:
    """A server between a guest and the network: it names weights that the operator's key signed and the book does not
    have, has their files, and answers with the proof of others."""
    forged = Artifacts.open(Path(shutil.copytree(up / f"models/{DEMO_MODEL}-q4", tmp_path / "forged")))
    manifest = forged.manifest.model_copy(update={"config_sha256": "0" * 64})
    (forged.folder / "manifest.json").write_bytes(manifest.canonical())
    forged = Artifacts.open(forged.folder)
    body = _published(NetworkId(json.loads((up / "network.json").read_text())["network"]), manifest)
    statement = sign(body, "model.published.v1", "operator", load(up / "keys/operator.nk")).canonical()
    with LocalServer.start(tmp_path / "nats") as server:
        evil, real = await NatsBus.connect(server.url, name="evil"), await _inside(url, member)
        theirs = await nats.connect(server.url)

        async def relay(message: Msg) -> None:
            asked = message.data.replace(forged.digest.encode(), published["manifest"].encode())
            reply = await real.request(message.subject, asked, timeout=5)
            told = reply.data.replace(published["manifest"].encode(), forged.digest.encode())
            await theirs.publish(message.reply, told if message.subject.endswith(".network") else reply.data)

        await theirs.subscribe("sawyer.v1.query.*", cb=relay)
        await theirs.flush()
        assert await publish_files(Bucket(evil, model_bucket(DEMO_MODEL, forged.digest)), forged, statement)
        home = tmp_path / "deceived"
        process = started("models", "pull", DEMO_MODEL, "--home", home, "--nats", server.url)
        out, err = await asyncio.to_thread(process.communicate, None, 60)
        for connection in (evil, real, theirs):
            await connection.close()
    assert (process.returncode, out) == (3, "")
    assert "does not publish" in err, err
    assert not [*home.rglob("*.bin")]


def test_operator_takes_a_model_out_of_the_store_and_puts_it_back(sawyer, guest, up: Path, published: dict) -> None:
    kept = sawyer("models", "rm", DEMO_MODEL, "--from-network", "--yes", "--home", up)
    assert (kept.code, "no superseded weights" in kept.err) == (5, True)
    gone = sawyer("models", "rm", DEMO_MODEL, "--from-network", "--all", "--yes", "--home", up)
    assert (gone.code, "the book still names" in gone.err) == (0, True)
    lacking = guest("models", "pull", DEMO_MODEL)
    assert (lacking.code, "sawyer models publish" in lacking.err) == (4, True)
    again = sawyer("models", "publish", DEMO_MODEL, "--home", up, "--json")
    assert json.loads(again.out)["stored"]
    assert guest("models", "pull", DEMO_MODEL).code == 0
