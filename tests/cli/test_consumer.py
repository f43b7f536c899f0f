"""What a consumer does: open an account, ask, chat, look at balances and models; against a network that stays up."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import TIMEOUT_S, Done, Zygote, environment, runner, wait_until

CONTEXT = 512
"""Of the demo model."""


@pytest.fixture
def alice(zygote: Zygote, up: Path, tmp_path: Path) -> Callable[..., Done]:
    """`alice("generate", "It was a", text="stdin")`: a command of hers in the home of the network."""
    return runner(zygote, tmp_path, SAWYER_HOME=str(up), SAWYER_ACCOUNT="alice")


def _started(user: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sawyer", *arguments, "--home", str(home), "--account", "alice"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(user), stdin=subprocess.DEVNULL,
    )  # fmt: skip


# --- generate ---------------------------------------------------------------------------------------------------------


def test_generate_prints_the_text_and_nothing_else(alice):
    done = alice("generate", "It was a", "--max-tokens", 12)
    assert done.code == 0
    assert done.err == ""
    asked = alice("generate", "It was a", "--max-tokens", 12, "--json").json
    assert done.out == asked["text"]
    assert done.out.startswith(" ")


def test_generate_verbose_says_on_stderr_what_it_cost(alice):
    done = alice("generate", "It was a", "--max-tokens", 4, "-v")
    assert "3 in + 4 out: 7 tokens billed" in done.err
    assert " left" in done.err
    assert "billed" not in done.out


def test_generate_json_is_one_object_that_agrees_with_the_balance(alice):
    before = alice("balance", "--json").json["available"]
    done = alice("generate", "It was a", "--max-tokens", 4, "--json")
    answer = done.json
    assert (answer["finish"], answer["model"], len(answer["ids"])) == ("length", "austen-8m", 4)
    assert answer["usage"]["billed_tokens"] == 7
    assert answer["balance"] == before - 7 == alice("balance", "--json").json["available"]


def test_generate_with_the_trunk_here_says_and_costs_the_same(alice):
    hosted, local = (
        alice("generate", "It was a", "--max-tokens", 12, "--json", "--trunk", trunk).json
        for trunk in ("hosted", "local")
    )
    assert (local["ids"], local["text"]) == (hosted["ids"], hosted["text"])
    assert local["usage"]["billed_tokens"] == hosted["usage"]["billed_tokens"] == 15


def test_chat_with_the_trunk_here_answers(alice):
    said = [
        alice("chat", "--greedy", "--max-tokens", 8, "--trunk", trunk, text="It was a\n")
        for trunk in ("hosted", "local")
    ]
    assert said[0].out == said[1].out != ""


def test_trunk_at_no_place_is_refused(alice):
    done = alice("generate", "It was a", "--trunk", "moon")
    assert (done.code, "unknown trunk 'moon'" in done.err) == (2, True)


def test_interrupted_generation_with_the_trunk_here_is_billed_what_came(tmp_path, up, alice):
    before = alice("balance", "--json").json
    asking = _started(tmp_path, up, "generate", "It was a", "--max-tokens", "450", "--trunk", "local", "-v")
    assert asking.stdout.read(1)
    asking.send_signal(signal.SIGINT)
    _, err = asking.communicate(timeout=TIMEOUT_S)
    assert asking.returncode == 130
    assert "interrupted: 3 in + " in err
    after = alice("balance", "--json").json
    assert after["held"] == 0
    assert 3 < before["available"] - after["available"] < 453


def test_generate_reads_the_prompt_from_stdin_without_its_last_newline(alice):
    said = alice("generate", "It was a", "--max-tokens", 8)
    piped = alice("generate", "-", "--max-tokens", 8, text="It was a\n")
    assert piped.out == said.out


def test_generate_with_a_seed_repeats_itself_and_with_another_does_not(alice):
    texts = [alice("generate", "It was a", "--max-tokens", 24, "--seed", seed).out for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_generate_ends_before_the_stop_text(alice):
    text = alice("generate", "It was a", "--max-tokens", 12).out
    word = text.split()[2]
    stopped = alice("generate", "It was a", "--max-tokens", 12, "--stop", word, "--json").json
    assert stopped["text"] == text[: text.index(word)]
    assert stopped["finish"] == "stop"


def test_generate_logprobs_come_one_a_token(alice):
    answer = alice("generate", "It was a", "--max-tokens", 3, "--json", "--logprobs", 2).json
    assert [each["token"] for each in answer["logprobs"]] == answer["ids"]
    assert all(len(each["top"]) == 2 and each["logprob"] <= 0 for each in answer["logprobs"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("",), 2, "the prompt is empty"),
        (("x", "--greedy", "--temperature", "1"), 2, "exclude each other"),
        (("x", "--greedy", "--top-k", "3"), 2, "--top-k changes nothing"),
        (("x", "--logprobs", "2"), 2, "Add --json"),
        (("x", "--max-tokens", "0"), 2, "--max-tokens"),
        (("x", "--max-tokens", "600"), 2, "over the context of 512"),
        (("x", "--model", "frob"), 5, "Published: austen-8m"),
    ],
)
def test_generate_of_what_makes_no_sense_says_so(alice, arguments, code, words):
    done = alice("generate", *arguments)
    assert done.code == code
    assert words in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_interrupted_generate_bills_what_was_delivered_and_exits_130(up, alice, tmp_path):
    before = alice("balance", "--json").json["available"]
    process = _started(tmp_path, up, "generate", "It was a", "--max-tokens", "500")
    assert process.stdout is not None
    assert process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    after = alice("balance", "--json").json
    assert f"{before - after['available']:,} tokens billed" in err
    assert after["held"] == 0
    assert 3 < before - after["available"] < 500


def test_generate_whose_reader_goes_away_ends_quietly_and_stops_the_work(up, alice, tmp_path):
    process = _started(tmp_path, up, "generate", "It was a", "--max-tokens", "500")
    assert process.stdout is not None
    assert process.stdout.read(10)
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert err == ""
    deadline = time.monotonic() + TIMEOUT_S
    while alice("balance", "--json").json["held"]:
        assert time.monotonic() < deadline, "the request goes on without a reader"


# --- accounts ---------------------------------------------------------------------------------------------------------


def test_newcomer_opens_an_account_is_granted_tokens_and_generates(alice, guest, invited, tmp_path):
    opened = guest("account", "open", "gwen", "--join", invited("--account", "gwen"))
    assert opened.code == 0, opened.err
    assert "its certificate is good until" in opened.err
    assert "account grant gwen" in opened.err
    refused = guest("generate", "It was", "--account", "gwen")
    assert refused.code == 5
    assert "has 0" in refused.err
    assert alice("account", "grant", "gwen", 100, "--json").json["balance"]["available"] == 100
    answer = guest("generate", "It was", "--account", "gwen", "--max-tokens", 3, "--json").json
    assert answer["balance"] == 100 - answer["usage"]["billed_tokens"]
    shown = guest("account", "show", "gwen", "--json").json
    assert [each["granted"] for each in shown["buckets"]] == [100]
    assert stat.S_IMODE((tmp_path / "guest" / "keys" / "accounts" / "gwen.nk").stat().st_mode) == 0o600


def test_stranger_without_an_invitation_is_refused_and_told_how_to_join(guest):
    done = guest("account", "open", "stranger")
    assert done.code == 4
    assert "refused us, connecting with no credentials" in done.err
    assert "--join" in done.err


def test_account_opened_again_is_the_same_account(guest, invited):
    first = guest("account", "open", "ada", "--join", invited("--account", "ada"), "--json").json
    again = guest("account", "open", "ada", "--json").json
    assert (first["key"], first["entry"]) == (again["key"], again["entry"])


def test_account_whose_name_is_taken_is_refused_and_leaves_no_key(guest, invited, tmp_path):
    done = guest("account", "open", "alice", "--join", invited("--account", "alice"))
    assert done.code == 5
    assert "there is another account alice already" in done.err
    assert not (tmp_path / "guest" / "keys" / "accounts" / "alice.nk").exists()


def test_account_with_a_name_that_cannot_be_is_refused(guest):
    assert guest("account", "open", "Al Ice").code == 2


def test_grant_without_the_operators_key_is_refused(guest, invited):
    assert guest("account", "open", "mal", "--join", invited("--account", "mal")).code == 0
    done = guest("account", "grant", "mal", 100)
    assert done.code == 5
    assert "operator" in done.err


def test_grant_to_nobody_says_who_must_open_the_account(alice):
    done = alice("account", "grant", "nobody", 5)
    assert done.code == 5
    assert "sawyer account open nobody" in done.err


@pytest.mark.parametrize("command", [("generate", "x"), ("chat",)])
def test_command_of_an_account_that_was_never_opened_says_what_to_do(guest, command):
    done = guest(*command, "--account", "ghost")
    assert done.code == 2
    assert "sawyer account open ghost" in done.err


def test_network_that_is_not_the_pinned_one_is_used_by_no_command(guest, invited, tmp_path):
    assert guest("account", "open", "eve", "--join", invited("--account", "eve")).code == 0
    file = tmp_path / "guest" / "network.json"
    pin = json.loads(file.read_text())
    file.write_text(json.dumps({**pin, "network": "sawyer-net/ffffffff"}))
    eve = ("--account", "eve")
    generate, opening = ("generate", "x", *eve), ("account", "open", "eve")
    for command in (generate, opening, ("chat", *eve), ("balance", *eve), ("models", "ls")):
        done = guest(*command)
        assert done.code == 3, command
        assert "sawyer-net/ffffffff" in done.err


def test_balance_without_a_server_exits_4_and_says_where_the_address_is_from(up, sawyer):
    done = sawyer("balance", "--home", up, "--account", "alice", "--nats", "nats://127.0.0.1:1")
    assert done.code == 4
    assert "from: --nats" in done.err


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_are_listed_once_with_price_and_place(alice):
    rows = alice("models", "ls", "--json").json
    assert [(row["model"], row["format"], row["published"], row["in_package"]) for row in rows] == [
        ("austen-8m", "q4", True, True)
    ]
    assert rows[0]["price"] == {"input": "1", "output": "1"}
    assert rows[0]["missing_files"] == 0


def test_models_without_a_network_are_those_of_this_machine(sawyer, demo_home, tmp_path):
    alone = ("--nats", "nats://127.0.0.1:1")
    here = sawyer("models", "ls", "--home", demo_home, *alone)
    assert here.code == 0
    assert "only what is on this machine" in here.err
    assert "split" in here.out
    nothing = sawyer("models", "ls", "--json", "--home", tmp_path, *alone).json
    assert [(row["model"], row["in_package"], row["folder"]) for row in nothing] == [("austen-8m", True, None)]


def test_model_page_says_what_a_token_costs(alice):
    shown = alice("models", "show", "austen-8m", "--json").json
    assert shown["facts"]["round_trips"] == 4
    assert shown["facts"]["expert_parameters"] == 3 * 192 * 384
    assert "4 round trips" in alice("models", "show", "austen-8m").out


def test_public_models_are_shown_without_a_network_and_listed_without_asking_for_one(sawyer, tmp_path):
    alone = ("--home", tmp_path, "--nats", "nats://127.0.0.1:1")
    shown = sawyer("models", "show", "mixtral-8x7b", *alone)
    assert (shown.code, "46,702,792,704" in shown.out) == (0, True)
    assert sawyer("models", "show", "dbrx", "--json", *alone).json["facts"]["round_trips"] == 40
    listed = sawyer("models", "ls", "--catalogue", *alone)
    assert (listed.code, listed.err, "deepseek-v2-lite" in listed.out) == (0, "", True)
    assert len(sawyer("models", "ls", "--catalogue", "--json", *alone).json) == len(listed.out.splitlines()) - 1


def test_model_that_nobody_has_is_named(alice):
    done = alice("models", "show", "frob")
    assert done.code == 2
    assert "frob" in done.err


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_from_a_pipe_prints_an_answer_a_line_and_remembers(alice, tmp_path):
    file = tmp_path / "saved.txt"
    done = alice("chat", "--greedy", "--max-tokens", 6, text=f"It was a\n/save {file}\nShe\n/balance\n")
    assert done.code == 0, done.err
    first = alice("generate", "It was a", "--max-tokens", 6).out
    second = alice("generate", f"It was a{first}\n\nShe", "--max-tokens", 6).out
    answers = f"{first}\n{second}\n"
    assert done.out.startswith(answers)
    assert "tokens available" in done.out[len(answers) :]
    assert "base model: it continues the text" in done.err
    assert file.read_text() == f"It was a{first}\n"


def test_chat_goes_on_after_an_error_and_exits_with_its_code(alice):
    done = alice("chat", "--greedy", "--max-tokens", 4, text="/nope\n/retry\nIt was a\n/quit\nnever read\n")
    assert done.code == 2
    assert "/nope" in done.err
    assert len(done.out.splitlines()) == 1


def test_chat_retry_takes_the_answer_back_and_clear_forgets_all(alice):
    done = alice("chat", "--greedy", "--max-tokens", 6, text="It was a\n/retry\n/clear\nIt was a\n")
    lines = done.out.splitlines()
    assert len(lines) == 3
    assert lines[0] == lines[1] == lines[2]


def test_chat_over_a_full_context_forgets_the_oldest_and_says_so(alice):
    line = "She went to the house and looked at the garden of her uncle, and thought of nothing else.\n"
    done = alice("chat", "--max-tokens", 100, text=line * 6)
    assert done.code == 0, done.err
    assert "the context is full: the oldest turn" in done.err
    assert len([each for each in done.err.splitlines() if "context is full" in each]) < 6


def test_chat_with_one_line_over_the_context_says_so_and_lives(alice):
    done = alice("chat", "--greedy", "--max-tokens", 4, text="very " * 600 + "\nIt was a\n")
    assert done.code == 2
    assert f"over the context of {CONTEXT}" in done.err
    assert len(done.out.splitlines()) == 1


class Terminal:
    """`sawyer chat` at a terminal of 120 columns: what a person types and reads."""

    def __init__(self, user: Path, home: Path, *arguments: str) -> None:
        self._read, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sawyer", "chat", "--home", str(home), "--account", "alice", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env={**environment(user), "TERM": "dumb"}, close_fds=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._read, text.encode())

    def until(self, text: str) -> str:
        """What came up to and with this text; it is seen once."""
        while text not in self.seen:
            ready, _, _ = select.select([self._read], [], [], TIMEOUT_S)
            assert ready, f"waited for {text!r}, saw {self.seen!r}"
            self.seen += os.read(self._read, 4096).decode(errors="replace")
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def interrupt_waiting(self) -> None:
        """Ctrl-C at the prompt. Only when the program waits for a key: between the prompt and that, readline leaves a
        signal lying until the next key."""
        status = Path(f"/proc/{self.process.pid}/stat")
        wait_until(lambda: status.read_text().rsplit(")", 1)[1].split()[0] == "S", "chat to wait for a key")
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._read)


@pytest.fixture
def terminal(up: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def chat(*arguments: str) -> Terminal:
        opened.append(Terminal(tmp_path, up, *arguments))
        return opened[-1]

    yield chat
    for each in opened:
        each.close()


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal, up):
    chat = terminal("--max-tokens", "450")
    chat.until("> ")
    chat.type("It was a\n")
    chat.until("It was a")
    chat.until(" ")
    chat.process.send_signal(signal.SIGINT)
    assert "tokens billed" in chat.until("[stopped: ") + chat.until("left]")
    chat.until("> ")
    chat.type("/balance\n")
    chat.until("tokens available")
    chat.until("> ")
    chat.type("\x04")
    assert chat.process.wait(TIMEOUT_S) == 0
    history = up / "chat_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert history.read_text().splitlines()[-2:] == ["It was a", "/balance"]


def test_ctrl_c_at_the_prompt_says_how_to_end_and_twice_ends(terminal):
    chat = terminal()
    chat.until("> ")
    chat.interrupt_waiting()
    chat.until("Ctrl-D or /quit ends")
    chat.until("> ")
    chat.interrupt_waiting()
    assert chat.process.wait(TIMEOUT_S) == 130
