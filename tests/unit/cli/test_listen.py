"""Where the NATS server of `sawyer up` listens: the same place each time, and never another program's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sawyer.cli import up_run
from sawyer.cli.up_run import choose_listen
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
    monkeypatch.setattr(up_run, "DEFAULT_LISTEN", taken)
    first = choose_listen(home, "")
    assert first != taken
    assert choose_listen(home, "") == first


def test_wanted_address_replaces_the_kept_one(home: Home) -> None:
    first, second = up_run._free_port(), up_run._free_port()
    choose_listen(home, first)
    assert choose_listen(home, second) == second
    assert choose_listen(home, "") == second


def test_taken_address_is_refused_and_not_kept(home: Home, taken: str) -> None:
    with pytest.raises(UsageError, match=f"{taken} is taken") as error:
        choose_listen(home, taken)
    assert "--listen" in error.value.hint
    assert not (home.path / up_run.LISTEN_FILE).exists()


@pytest.mark.parametrize("text", ["4222", "host", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "203.0.113.7:4222"])
def test_address_that_is_none_of_this_machine_is_refused(home: Home, text: str) -> None:
    with pytest.raises(UsageError) as error:
        choose_listen(home, text)
    assert error.value.hint


@pytest.mark.parametrize(
    ("listen", "found"),
    [("0.0.0.0:4222", "127.0.0.1:4222"), ("127.0.0.1:5", "127.0.0.1:5"), ("[::]:7", "127.0.0.1:7")],
)
def test_parts_of_this_machine_reach_a_server_that_listens_everywhere(listen: str, found: str) -> None:
    assert up_run._reachable(listen) == found
