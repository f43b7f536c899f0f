"""What an operator watches: top, metrics and trace, against a network that stays up."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from .conftest import TIMEOUT_S, environment, runner


@pytest.fixture
def alice(zygote, up, tmp_path):
    return runner(zygote, tmp_path, SAWYER_HOME=str(up), SAWYER_ACCOUNT="alice")


def test_trace_of_a_request_tells_layer_by_layer_where_its_time_went(alice):
    request = alice("generate", "It was a", "--max-tokens", 8, "--json").json["request"]
    done = alice("trace", request)
    assert done.code == 0, done.err
    for label in (
        "state     completed",
        "prefill",
        "hold tokens in the book",
        "attention and gates",
        "slowest",
        "node-2",
    ):
        assert label in done.out
    told = alice("trace", request, "--json").json
    assert [layer["layer"] for layer in told["layers"]] == [0, 1, 2, 3]
    assert all(layer["experts_us"] > 0 < layer["slowest_us"] for layer in told["layers"])


def test_trace_of_a_request_with_the_trunk_here_is_there_too(alice):
    request = alice("generate", "It was a", "--max-tokens", 8, "--trunk", "local", "--json").json["request"]
    told = alice("trace", request, "--json").json
    assert (told["state"], told["input_tokens"], told["output_tokens"]) == ("completed", 3, 8)
    assert all(layer["experts_us"] > 0 for layer in told["layers"])


def test_trace_of_an_unknown_request_is_refused_with_a_hint(alice):
    done = alice("trace", "ab" * 16)
    assert (done.code, "no router remembers" in done.err, "hint:" in done.err) == (5, True, True)


def test_top_once_shows_nodes_routers_and_the_hottest_experts(alice):
    alice("generate", "It was a", "--max-tokens", 4)
    shown = alice("top", "--once").out
    for label in ("Routers", "router-1", "Nodes", "node-2", "Hottest experts"):
        assert label in shown
    assert json.dumps(alice("top", "--json").json)


def test_top_on_a_terminal_goes_on_until_ctrl_c(tmp_path, up):
    master, slave = pty.openpty()
    environ = environment(tmp_path) | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    top = subprocess.Popen(
        [sys.executable, "-m", "sawyer", "top", "--home", str(up)], stdin=slave, stdout=slave, stderr=slave,
        env=environ, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    shown, until_s = b"", time.monotonic() + TIMEOUT_S
    while shown.count(b"Hottest") < 2 and time.monotonic() < until_s:
        if select.select([master], [], [], 0.2)[0]:
            shown += os.read(master, 65_536)
    assert shown.count(b"Hottest") >= 2, shown
    top.send_signal(signal.SIGINT)
    assert top.wait(TIMEOUT_S) in (0, 130)
    os.close(master)


def test_metrics_are_served_until_ctrl_c_and_other_pages_are_not_there(tmp_path, up):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = subprocess.Popen(
        [sys.executable, "-m", "sawyer", "metrics", "--listen", f"127.0.0.1:{port}", "--home", str(up)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        env=environment(tmp_path),
    )  # fmt: skip
    assert f"http://127.0.0.1:{port}/metrics" in serving.stdout.readline()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert "sawyer_router_requests_total" in answer.read().decode()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=TIMEOUT_S)
    serving.send_signal(signal.SIGINT)
    serving.communicate(timeout=TIMEOUT_S)
    assert serving.returncode in (0, 130)


def test_metrics_on_a_port_that_is_taken_are_refused_in_a_line(alice):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = alice("metrics", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.code != 0
    assert done.err.startswith("error:")
    assert "Traceback" not in done.err
