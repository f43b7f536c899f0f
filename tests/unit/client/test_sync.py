"""The blocking client: the same client, waited for. Over a stub network, with real threads and real signals."""

from __future__ import annotations

import inspect
import itertools
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.client.aio import AsyncClient
from sawyer.client.stream import RESENDS
from sawyer.client.sync import Client
from sawyer.errors import BudgetTooSmall, Cancelled, ExpertUnavailable, NoAnswer, NobodyServes, UsageError
from sawyer.identity.keys import Key
from sawyer.testing import StubNetwork

MODEL = "stub"
PATIENCE_S = 30.0


def threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name == "sawyer-loop"}


@pytest.fixture
def stub() -> Iterator[StubNetwork]:
    with StubNetwork(lambda prompt, _: f"{prompt} rainy day") as running:
        yield running


@pytest.fixture
def client(stub: StubNetwork) -> Iterator[Client]:
    with stub.client() as connected:
        yield connected


class Gate:
    """An answer that waits after its first token, until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, *_: object) -> Iterator[str]:
        yield "one "
        assert self.opened.wait(PATIENCE_S)
        yield from itertools.repeat("more ")


@pytest.fixture
def gate(stub: StubNetwork) -> Iterator[Gate]:
    made = Gate()
    stub.answering = made
    yield made
    made.opened.set()


# --- the same client --------------------------------------------------------------------------------------------------


def test_answer_balance_models_and_account_are_those_of_the_async_client(client: Client, stub: StubNetwork) -> None:
    answer = client.generate("It was a", model=MODEL, max_tokens=5)
    assert (answer.text, answer.finish, answer.usage.billed_tokens) == ("It was a rainy day", "length", 8)
    assert client.balance() == stub.balance() == client.account().balance
    assert [offer.model for offer in client.models()] == [each.model for each in client.network().models] == [MODEL]
    assert client.open_account().seq == client.account().opened


def test_stream_gives_pieces_and_then_what_the_async_one_does(client: Client) -> None:
    with client.stream("It was", model=MODEL, max_tokens=3, trace=True, logprobs=1) as stream:
        assert stream.usage is None
        assert list(stream) == ["It ", "was ", "rainy "]
        assert list(stream) == []
    assert (stream.finish, stream.repeated, len(stream.ids), len(stream.logprobs)) == ("length", False, 3, 3)
    assert stream.accepted is not None
    assert stream.usage is not None
    assert stream.accepted.held_tokens == stream.usage.billed_tokens == 5
    assert len(stream.traces) == 3 * 2
    assert len(stream.request) == 32


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_options_are_those_of_the_async_client(method: str) -> None:
    asked, taken = inspect.signature(AsyncClient.stream), inspect.signature(getattr(Client, method))
    assert taken.parameters == asked.parameters


def test_every_method_of_the_async_client_is_there() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)


def test_errors_are_typed_and_come_after_the_text_so_far(client: Client, stub: StubNetwork) -> None:
    def breaking(*_: object) -> Iterator[str]:
        yield "one "
        raise ExpertUnavailable("layer 0", experts=((0, 2),))

    stub.answering = breaking
    pieces = []
    with pytest.raises(ExpertUnavailable) as failed, client.stream("Emma", model=MODEL) as stream:
        pieces.extend(stream)
    assert failed.value.experts == ((0, 2),)
    with pytest.raises(BudgetTooSmall):
        client.generate("Emma was", model=MODEL, token_ceiling=1)
    assert stub.balance().consumed == 0


def test_silence_is_no_answer_after_the_resends(stub: StubNetwork) -> None:
    def silent(*_: object) -> Iterator[str]:
        yield "one "
        raise NoAnswer("gone")

    stub.answering = silent
    with stub.client(timeout_s=0.05) as client, client.stream("Emma", model=MODEL) as stream:
        pieces = iter(stream)
        assert next(pieces) == "one "
        with pytest.raises(NoAnswer):
            next(pieces)
    assert len(stub.requests) == 1 + RESENDS
    assert len({each.canonical() for each in stub.requests}) == 1


# --- threads and loops ------------------------------------------------------------------------------------------------


async def test_client_works_where_an_event_loop_runs_already(stub: StubNetwork) -> None:
    with stub.client() as client, client.stream("It was", model=MODEL, max_tokens=2) as stream:
        assert "".join(stream) == "It was "


def test_several_threads_use_one_client(client: Client) -> None:
    prompts = [f"prompt {number}" for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: client.generate(prompt, model=MODEL), prompts))
    assert [answer.text for answer in answers] == [f"{prompt} rainy day" for prompt in prompts]


def test_client_takes_one_thread_and_gives_it_back(stub: StubNetwork) -> None:
    before = threads()
    with stub.client():
        assert len(threads() - before) == 1
    assert threads() == before


def test_connect_that_fails_leaves_no_thread_behind(keys: dict[str, Key]) -> None:
    before = threads()
    client = Client(account="alice", key=keys["alice"], bus=MemoryBus(MemoryNetwork()))
    with pytest.raises(NobodyServes):
        client.connect()
    assert threads() == before


def test_client_that_is_not_connected_says_how_to_connect(keys: dict[str, Key]) -> None:
    client = Client("nats://127.0.0.1:1", account="alice", key=keys["alice"])
    with pytest.raises(UsageError, match="not connected") as refused:
        client.balance()
    assert refused.value.hint == "Use it as `with Client(...) as client:`."


def test_closed_client_says_so_and_stays_closed(stub: StubNetwork) -> None:
    with stub.client() as client:
        stream = client.stream("Emma", model=MODEL)
    client.close()
    for call in (client.balance, client.connect, lambda: client.generate("Emma", model=MODEL), stream.__enter__):
        with pytest.raises(UsageError, match="closed") as refused:
            call()
        assert refused.value.hint
    with pytest.raises(UsageError, match="closed"):
        list(stream)


def test_closing_cancels_what_another_thread_waits_for(stub: StubNetwork, gate: Gate) -> None:
    with ThreadPoolExecutor(1) as pool, stub.client() as client:
        reading = threading.Event()

        def read() -> None:
            with client.stream("Emma", model=MODEL) as stream:
                for _ in stream:
                    reading.set()

        waiting = pool.submit(read)
        assert reading.wait(PATIENCE_S)
        client.close()
        assert isinstance(waiting.exception(PATIENCE_S), Cancelled)


# --- cancelled and interrupted ----------------------------------------------------------------------------------------


def test_cancel_goes_on_to_the_rest_and_the_bill(client: Client, gate: Gate) -> None:
    with client.stream("Emma", model=MODEL) as stream:
        pieces = iter(stream)
        assert next(pieces) == "one "
        stream.cancel()
        gate.opened.set()
        rest = stream.result()
    assert (rest.text, rest.finish, rest.usage.billed_tokens) == ("more ", "cancelled", 3)


def test_leaving_the_block_cancels(client: Client, stub: StubNetwork, gate: Gate) -> None:
    with client.stream("Emma", model=MODEL, max_tokens=4000) as stream:
        for _ in stream:
            break
    gate.opened.set()
    again = client.stream("Emma", model=MODEL, max_tokens=4000, request_id=stream.request)
    with again:
        assert again.result().finish == "cancelled"
    assert stub.balance().consumed == 3


PROGRAM = """
import itertools, threading
from sawyer.testing import StubNetwork

opened = threading.Event()

def answering(prompt, params):
    yield "one "
    print("waiting", flush=True)
    assert opened.wait(60)
    yield from itertools.repeat("more ")

with StubNetwork(answering) as network, network.client() as client:
    request, pieces = "0f" * 16, []
    try:
        {use}
    except KeyboardInterrupt:
        print("interrupted", pieces)
    opened.set()
    print(client.generate("Emma", model="stub", request_id=request).finish)
    print(network.balance().consumed, network.balance().held)
"""
GENERATING = 'client.generate("Emma", model="stub", request_id=request)'
STREAMING = """\
with client.stream("Emma", model="stub", request_id=request) as stream:
            pieces.extend(stream)"""
READING_ON = """\
with client.stream("Emma", model="stub", request_id=request) as stream:
            try:
                pieces.extend(stream)
            except KeyboardInterrupt:
                stream.cancel()
                opened.set()
                pieces.extend(stream)
                print(stream.finish, stream.usage.billed_tokens)
                raise"""


def interrupted(use: str, tmp_path: Path) -> list[str]:
    """What a program prints that is sent SIGINT, as by Ctrl-C, while it waits for the second piece."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(use=use), encoding="utf-8")
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == "waiting\n"
            running.send_signal(signal.SIGINT)
            printed, _ = running.communicate(timeout=PATIENCE_S)
        finally:
            running.kill()
    assert running.returncode == 0
    return printed.splitlines()


@pytest.mark.parametrize("use", [GENERATING, STREAMING], ids=["generate", "stream"])
def test_keyboard_interrupt_ends_the_wait_and_cancels_the_request(tmp_path: Path, use: str) -> None:
    """It ends while the answer still waits: nothing else lets it go on."""
    first, *rest = interrupted(use, tmp_path)
    assert first.startswith("interrupted")
    assert rest == ["cancelled", "3 0"]


def test_interrupted_stream_can_be_cancelled_and_read_to_its_bill(tmp_path: Path) -> None:
    printed = interrupted(READING_ON, tmp_path)
    assert printed == ["cancelled 3", "interrupted ['one ', 'more ']", "cancelled", "3 0"]


def test_client_that_is_never_closed_does_not_keep_the_program_alive() -> None:
    program = (
        "from sawyer.testing import StubNetwork\n"
        "network = StubNetwork().__enter__()\n"
        "client = network.client()\n"
        "client.connect()\n"
        "print(client.generate('Emma', model='stub').text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert (done.stdout, done.stderr) == ("Emma\n", "")
