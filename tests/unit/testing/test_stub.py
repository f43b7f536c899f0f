"""The stub network's own ways: what it says, how it fails, and that it is a network. What it shares with a real one is
in tests/network/test_stub_contract.py."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import pytest

from sawyer.client.stream import RESENDS
from sawyer.clock import ManualClock
from sawyer.errors import (
    BudgetTooSmall,
    Busy,
    ExpertUnavailable,
    NoAnswer,
    RefusedError,
    SawyerError,
    UnknownAccount,
    UsageError,
    WrongManifest,
)
from sawyer.ids import new_request_id
from sawyer.ledger.book import Book
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.replay import replay
from sawyer.schemas.generation import GenerateParams
from sawyer.testing import StubNetwork
from sawyer.testing.words import words


@pytest.fixture
def stub() -> Iterator[StubNetwork]:
    with StubNetwork() as running:
        yield running


def test_text_of_an_answer_is_given_word_by_word_and_echoes_by_default(stub: StubNetwork) -> None:
    with stub.client() as client, client.stream("It  was\na day", model="stub") as stream:
        assert list(stream) == ["It  ", "was\n", "a ", "day"]
    assert stream.finish == "stop"
    assert stream.usage is not None
    assert (stream.usage.input_tokens, stream.usage.output_tokens) == (4, 4)


@pytest.mark.parametrize("text", ["", " ", "one", " one  two ", "a\n\nb", "é 漢字"])
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(words(text)) == text


def test_pieces_of_an_answer_are_its_tokens(stub: StubNetwork) -> None:
    stub.answering = lambda prompt, params: ["a b", "", "c"]
    with stub.client() as client:
        answer = client.generate("Emma", model="stub")
    assert (answer.text, len(answer.ids), answer.usage.billed_tokens) == ("a bc", 3, 4)


def test_answer_is_given_prompt_and_parameters(stub: StubNetwork) -> None:
    def tell(prompt: str, params: GenerateParams) -> str:
        return f"{prompt} {params.temperature_milli} {params.seed}"

    stub.answering = tell
    with stub.client() as client:
        assert client.generate("Emma", model="stub", temperature=0.5, seed=7).text == "Emma 500 7"
    (request,) = stub.requests
    assert (request.params.prompt, request.order.body.account) == ("Emma", "alice")


def test_endless_answer_ends_with_max_tokens(stub: StubNetwork) -> None:
    stub.answering = lambda prompt, params: itertools.repeat("very ")
    with stub.client() as client:
        answer = client.generate("Emma", model="stub", max_tokens=5)
    assert (answer.text, answer.finish) == ("very " * 5, "length")


def test_empty_answer_costs_nothing(stub: StubNetwork) -> None:
    stub.answering = lambda prompt, params: ""
    with stub.client() as client:
        answer = client.generate("Emma", model="stub")
    assert (answer.text, answer.finish, answer.usage.billed_tokens) == ("", "stop", 0)
    assert (stub.balance().consumed, stub.balance().held) == (0, 0)


@pytest.mark.parametrize(
    "error", [ExpertUnavailable("layer 0", experts=((0, 1),)), Busy("full"), WrongManifest("other weights")]
)
def test_typed_error_of_an_answer_is_what_the_client_meets(stub: StubNetwork, error: SawyerError) -> None:
    def fail(prompt: str, params: GenerateParams) -> str:
        raise error

    stub.answering = fail
    request = new_request_id()
    with stub.client() as client:
        with pytest.raises(type(error), match=error.message) as met:
            client.generate("Emma", model="stub", request_id=request)
        assert met.value.hint == error.hint
    assert (stub.balance().consumed, stub.balance().held) == (0, 0)


def test_answer_that_fails_otherwise_is_told_and_bills_nothing(
    stub: StubNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(prompt: str, params: GenerateParams) -> Iterator[str]:
        yield "one "
        raise ZeroDivisionError("by zero")

    stub.answering = fail
    with stub.client() as client, pytest.raises(SawyerError, match="by zero"):
        client.generate("Emma", model="stub")
    assert (stub.balance().consumed, stub.balance().held) == (0, 0)
    assert "ZeroDivisionError" in caplog.text


def test_router_that_falls_silent_keeps_its_hold_until_it_expires() -> None:
    def fall_silent(prompt: str, params: GenerateParams) -> Iterator[str]:
        yield "one "
        raise NoAnswer("silence")

    clock = ManualClock()
    with StubNetwork(fall_silent, clock=clock) as stub:
        with stub.client(timeout_s=0.02) as client, pytest.raises(NoAnswer):
            client.generate("Emma", model="stub")
        assert len(stub.requests) == 1 + RESENDS
        assert stub.balance().held == 65


def test_each_account_has_a_budget_of_its_own(stub: StubNetwork) -> None:
    with stub.client("alice", budget_tokens=10) as alice, stub.client("bob", budget_tokens=0) as bob:
        assert alice.generate("Emma", model="stub", max_tokens=4).usage.billed_tokens == 2
        with pytest.raises(BudgetTooSmall):
            alice.generate("Emma", model="stub", max_tokens=8)
        with pytest.raises(BudgetTooSmall):
            bob.generate("Emma", model="stub", max_tokens=4)
        stub.grant("bob", 5)
        assert bob.generate("Emma", model="stub", max_tokens=4).usage.billed_tokens == 2
    assert (stub.balance("alice").available, stub.balance("bob").available) == (8, 3)


def test_clients_of_one_account_share_its_key_and_its_budget(stub: StubNetwork) -> None:
    with stub.client(budget_tokens=10) as first, stub.client(budget_tokens=99) as second:
        first.generate("Emma", model="stub", max_tokens=4)
        assert first.account() == second.account()
        assert second.balance().granted == 10


async def test_both_clients_meet_the_same_network(stub: StubNetwork) -> None:
    request = new_request_id()
    with stub.client() as waiting:
        first = waiting.generate("Emma", model="stub", request_id=request)
    async with stub.async_client() as awaiting:
        again = await awaiting.generate("Emma", model="stub", request_id=request)
        assert await awaiting.balance() == stub.balance()
    assert (first.usage, again.repeated) == (again.usage, True)


def test_price_and_name_of_the_model_are_the_callers() -> None:
    with StubNetwork(model="austen-8m", price_milli=2500) as stub, stub.client() as client:
        (offer,) = client.models()
        assert (offer.model, stub.model, offer.price(1, 1)) == ("austen-8m", "austen-8m", 5)
        assert client.generate("Emma", model="austen-8m").usage.billed_tokens == 5


def test_grants_expire_by_the_networks_clock() -> None:
    clock = ManualClock()
    with StubNetwork(clock=clock) as stub, stub.client() as client:
        assert client.balance().available == 100_000
        clock.advance(31 * 24 * 3600 * 1000)
        assert client.balance().available == 0


@dataclass
class Rows:
    """A book to replay that lies in no file."""

    book: Book

    def size_rows(self) -> int:
        return self.book.size

    def rows(self) -> Generator[StoredRow, None, None]:
        yield from self.book._store.rows()


def test_book_of_a_stub_replays(stub: StubNetwork) -> None:
    """Every receipt, debit and checkpoint is a real one."""
    with stub.client() as client:
        for prompt in ("It was", "Emma was", ""):
            try:
                client.generate(prompt, model="stub", max_tokens=4)
            except UsageError:
                assert prompt == ""
    report = replay(Rows(stub._book), key=stub._book.vkey, operator=stub._operator.id)
    assert report.ok
    assert [row.consumed for row in report.balances] == [stub.balance().consumed] == [8]


@pytest.mark.parametrize("model", ["", "Austen", "a.b"])
def test_name_that_no_model_can_have_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="model"):
        StubNetwork(model=model)


def test_network_that_does_not_run_says_how_to_run_it(stub: StubNetwork) -> None:
    ended = StubNetwork()
    for call in (ended.client, ended.async_client, ended.bus, ended.start_router):
        with pytest.raises(UsageError, match="does not run") as refused:
            call()
        assert "with StubNetwork" in refused.value.hint
    with pytest.raises(UnknownAccount):
        stub.balance("nobody")
    with pytest.raises(RefusedError):
        stub.grant("nobody", 1)
