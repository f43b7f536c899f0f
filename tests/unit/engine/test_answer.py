"""An answer token by token: its text ends before the first stop string, however tokens spell it, and no earlier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.engine.answer import Answer, Sampled, StopHold, _Search
from sawyer.engine.experts import FAST
from sawyer.engine.local import LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.errors import UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.models import Format

EOS = (0,)

letters = st.sampled_from("ab\né🙂")
pieces_of_text = st.lists(st.text(letters, max_size=4), max_size=30)
stop_strings = st.lists(st.text(letters, min_size=1, max_size=5), min_size=1, max_size=4)


def cut(text: str, stops: list[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def answer(tokenizer: Tokenizer, max_tokens: int = 100, **params: Any) -> Answer:
    return Answer(GenerateParams(prompt="", max_tokens=max_tokens, **params), tokenizer, EOS)


def take_all(made: Answer, ids: list[int]) -> list[Sampled]:
    """The steps up to the one that ends the answer."""
    steps: list[Sampled] = []
    for token in ids:
        steps.append(made.take(token))
        if steps[-1].finish is not None:
            break
    return steps


def text_of(steps: list[Sampled]) -> str:
    return "".join(step.text for step in steps)


# --- text that is held back -------------------------------------------------------------------------------------------


@given(pieces_of_text, stop_strings)
def test_joined_pieces_are_the_text_cut_at_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    hold = StopHold(stops)
    out = [hold.push(piece) for piece in pieces]
    out.append(hold.flush())
    whole = "".join(pieces)
    assert "".join(out) == cut(whole, stops)
    assert hold.found == any(stop in whole for stop in stops)


@given(pieces_of_text, stop_strings)
def test_only_what_may_begin_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    hold = StopHold(stops)
    came = gone = ""
    for piece in pieces:
        gone += hold.push(piece)
        came += piece
        if hold.found:
            assert gone == cut(came, stops)
            return
        held = came[len(gone) :]
        assert came.startswith(gone)
        assert not held or any(stop.startswith(held) or held.startswith(stop) for stop in stops)


@given(pieces_of_text)
def test_text_without_stop_strings_passes_at_once(pieces: list[str]) -> None:
    hold = StopHold(())
    assert [hold.push(piece) for piece in pieces] == pieces
    assert (hold.flush(), hold.found) == ("", False)


@given(st.lists(st.text(st.sampled_from("ab"), max_size=6), max_size=30), st.integers(1, 40))
def test_long_stop_string_of_one_letter_is_found_where_it_begins(pieces: list[str], length: int) -> None:
    stops = ["a" * length + "b", "a" * (length + 1)]
    hold = StopHold(stops)
    out = [hold.push(piece) for piece in pieces]
    out.append(hold.flush())
    assert "".join(out) == cut("".join(pieces), stops)


def test_text_that_is_held_back_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    search = _Search.read
    monkeypatch.setattr(_Search, "read", lambda self, piece: (read.append(piece), search(self, piece))[1])
    hold = StopHold(["a" * 255 + "b"])
    assert [hold.push("aa") for _ in range(100)] == [""] * 100
    assert read == ["aa"] * 100
    assert hold.flush() == "a" * 200


def test_stop_string_ends_at_once_when_no_earlier_one_can_come() -> None:
    hold = StopHold(["\n\n", "\n"])
    assert (hold.push("It was\n"), hold.found) == ("It was", True)


def test_stop_string_inside_an_earlier_one_waits_for_it() -> None:
    hold = StopHold(["abcd", "bc"])
    assert (hold.push("xabc"), hold.found) == ("x", False)
    assert (hold.push("d"), hold.found) == ("", True)
    hold = StopHold(["abcd", "bc"])
    assert (hold.push("xabc"), hold.push("e"), hold.found) == ("x", "a", True)
    hold = StopHold(["abcd", "bc"])
    assert (hold.push("xabc"), hold.flush(), hold.found) == ("x", "a", True)


# --- tokens -----------------------------------------------------------------------------------------------------------


@given(data=st.data(), text=st.text(st.sampled_from("ab é🙂你\n"), min_size=1, max_size=20), stops=stop_strings)
def test_answer_ends_with_the_token_that_completes_the_stop_string(
    tokenizer: Tokenizer, data: st.DataObject, text: str, stops: list[str]
) -> None:
    """The demo's byte-level vocabulary: characters beyond ASCII are several tokens."""
    start = data.draw(st.integers(0, len(text) - 1))
    stops = [*stops, text[start : start + data.draw(st.integers(1, 6))]]
    ids = tokenizer.encode(text)
    steps = take_all(answer(tokenizer, max_tokens=len(ids), stop=tuple(stops)), ids)
    assert text_of(steps) == cut(text, stops)
    assert (steps[-1].finish, steps[-1].billed) == ("stop", True)


def test_stop_string_inside_one_tokens_text_gives_what_stands_before_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("It was the window")
    pieces = [tokenizer.decode([token]) for token in ids]
    longest = max(pieces, key=len)
    steps = take_all(answer(tokenizer, stop=(longest[2:4],)), ids)
    assert text_of(steps) == cut("It was the window", [longest[2:4]])
    assert steps[-1].text.endswith(longest[:2])


def test_every_token_of_a_stop_string_is_billed_and_an_end_token_is_not(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Emma was obliged")
    steps = take_all(answer(tokenizer, stop=("was obliged",)), ids)
    assert [step.token for step in steps] == ids
    assert all(step.billed for step in steps)
    steps = take_all(answer(tokenizer, stop=("was obliged",)), [*ids[:2], EOS[0], ids[2]])
    assert [step.billed for step in steps] == [True, True, False]
    assert steps[-1].finish == "stop"
    assert text_of(steps) == tokenizer.decode(ids[:2])


@pytest.mark.parametrize("ending", ["length", "cancelled"])
def test_held_text_is_released_when_the_answer_is_ended(tokenizer: Tokenizer, ending: Any) -> None:
    made = answer(tokenizer, stop=("Emma was never",))
    first, *_, last = tokenizer.encode("Emma was")
    assert made.take(first).text == ""
    ended = made.take(last, None, ending)
    assert (ended.text, ended.finish) == (tokenizer.decode([first, last]), ending)


def test_held_text_is_released_at_the_last_token_allowed(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Emma was")
    steps = take_all(answer(tokenizer, len(ids), stop=("Emma was never",)), ids)
    assert (text_of(steps), steps[-1].finish) == ("Emma was", "length")


@pytest.mark.parametrize("ending", [None, "length", "cancelled"])
def test_stop_string_completed_by_the_last_token_is_a_stop(tokenizer: Tokenizer, ending: Any) -> None:
    *before, last = tokenizer.encode("Emma was")
    made = answer(tokenizer, len(before) + 1, stop=("Emma was",))
    assert [made.take(token).text for token in before] == [""] * len(before)
    assert made.take(last, None, ending) == Sampled(last, "", "stop", billed=True)


def test_half_a_character_at_the_end_is_replaced_and_searched_too(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂")[:-1]
    steps = take_all(answer(tokenizer, len(ids)), ids)
    assert (text_of(steps), steps[-1].finish) == ("a�", "length")
    steps = take_all(answer(tokenizer, len(ids), stop=("�",)), ids)
    assert (text_of(steps), steps[-1].finish) == ("a", "stop")


def test_stop_string_of_byte_tokens_is_found_when_their_run_ends(byte_fallback: Tokenizer) -> None:
    run = [9 + byte for byte in "🙂".encode()]
    steps = take_all(answer(byte_fallback, stop=("🙂",)), [2, *run, 4, 4])
    assert (text_of(steps), steps[-1].finish, len(steps)) == ("the", "stop", 6)
    steps = take_all(answer(byte_fallback, 5, stop=("🙂",)), [2, *run])
    assert (text_of(steps), steps[-1].finish) == ("the", "stop")


# --- one machine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_machine(demo: Callable[[Format], Artifacts], load: Callable[..., LocalModel]) -> LocalModel:
    return load(demo("q4"), FAST, wire_dtype=np.float16)


def test_local_answer_is_the_generated_text_up_to_the_stop_string(
    one_machine: LocalModel, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("Emma was")
    whole = one_machine.generate(ids, 40)
    stop = tokenizer.decode(whole)[30:36]
    steps = [*one_machine.answer(ids, GenerateParams(prompt="", max_tokens=40, stop=(stop,), logprobs=3), tokenizer)]
    assert text_of(steps) == tokenizer.decode(whole).partition(stop)[0]
    assert [step.token for step in steps] == whole[: len(steps)]
    assert steps[-1].finish == "stop"
    for step in steps:
        assert step.logprob is not None
        assert step.logprob.top[0] == (step.token, step.logprob.surprise_micro), "greedy takes the likeliest"


def test_local_ids_alone_know_no_stop_strings(one_machine: LocalModel) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        one_machine.generate([1, 2], 2, GenerateParams(prompt="", max_tokens=2, stop=("a",)))


@pytest.mark.parametrize("prompt", ["It was a", "Emma was", "I am very"])
def test_repetition_penalty_makes_the_demo_model_repeat_itself_less(
    one_machine: LocalModel, tokenizer: Tokenizer, prompt: str
) -> None:
    def repeated(penalty_milli: int) -> float:
        """The share of runs of three ids that were there before."""
        params = GenerateParams(prompt="", max_tokens=100, repetition_penalty_milli=penalty_milli)
        ids = one_machine.generate(tokenizer.encode(prompt), 100, params)
        runs = list(zip(ids, ids[1:], ids[2:], strict=False))
        return 1 - len(set(runs)) / len(runs)

    assert repeated(1000) > 0.1
    assert repeated(1300) < 0.02
