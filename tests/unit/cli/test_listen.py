"""Where the NATS server of `sawyer up` listens: the same place each time, and never another program's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sawyer.cli import up_run
from sawyer.cli.up_run import Listen, choose_listen
from sawyer.errors import UsageError
from sawyer.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def taken() -> Iterator[str]:
    """An address on which somebody listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield f"127.0.0.1:{other.getsockname()[1]}"


def test_address_is_kept_for_the_next_time(home: Home, monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    monkeypatch.setattr(up_run, "DEFAULT_LISTEN", Listen.parse(taken, "test"))
    first = choose_listen(home, "")
    assert str(first) != taken
    assert choose_listen(home, "") == first


def test_wanted_address_replaces_the_kept_one(home: Home) -> None:
    first, second = (f"127.0.0.1:{up_run._free_port()}" for _ in range(2))
    choose_listen(home, first)
    assert str(choose_listen(home, second)) == second
    assert str(choose_listen(home, "")) == second


def test_taken_address_is_refused_and_not_kept(home: Home, taken: str) -> None:
    with pytest.raises(UsageError, match=f"{taken} is taken") as error:
        choose_listen(home, taken)
    assert "--listen" in error.value.hint
    assert not (home.path / up_run.LISTEN_FILE).exists()


@pytest.mark.parametrize(
    "text",
    ["4222", "host", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:x", "127.0.0.1: 42", "203.0.113.7:4222",
     "::1:4999"],
)  # fmt: skip
def test_address_that_is_none_of_this_machine_is_refused(home: Home, text: str) -> None:
    with pytest.raises(UsageError) as error:
        choose_listen(home, text)
    assert error.value.hint


def test_kept_address_that_is_none_names_its_file(home: Home) -> None:
    home.path.mkdir()
    (home.path / up_run.LISTEN_FILE).write_text("nonsense")
    with pytest.raises(UsageError, match=r"listen\.txt"):
        choose_listen(home, "")


@pytest.mark.parametrize(
    ("listen", "local", "is_open"),
    [
        ("0.0.0.0:4222", "127.0.0.1:4222", True),
        (":4222", "127.0.0.1:4222", True),
        ("[::]:7", "127.0.0.1:7", True),
        ("127.0.0.1:5", "127.0.0.1:5", False),
        ("[::1]:5", "[::1]:5", False),
        ("192.168.1.4:5", "192.168.1.4:5", True),
    ],
)
def test_parts_of_this_machine_reach_it_and_openness_is_known(listen: str, local: str, is_open: bool) -> None:
    parsed = Listen.parse(listen, "test")
    assert (parsed.local, parsed.is_open) == (local, is_open)
    assert Listen.parse(str(parsed), "test").port == parsed.port
