"""JSON messages: commitments open only to what was committed, errors keep their type, streams carry typed events."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sawyer.errors import Busy, NotCanonical, RequestConflict, SawyerError
from sawyer.schemas import messages
from sawyer.schemas.base import Fact, Strict, encode_canonical
from sawyer.schemas.generation import MAX_MESSAGES, ChatMessage, GenerateParams
from sawyer.schemas.messages import ErrorBody, InferMessage
from sawyer.schemas.models import GenerationDefaults

SALT = "5a" * 32

EVENTS = {
    "accepted": {"n": 0, "router": "router", "input_tokens": 5, "held_tokens": 8},
    "delta": {"n": 1, "text": " é", "ids": [3, 4]},
    "trace": {
        "n": 2, "step": 0, "layer": 1,
        "calls": [{"node": "node-a", "experts": [1, 3], "rows": 12, "round_trip_us": 900, "compute_us": 400}],
    },
    "done": {
        "n": 3, "finish": "length",
        "usage": {
            "input_tokens": 5, "output_tokens": 3, "billed_tokens": 8, "entry": 9, "prefill_us": 10, "decode_us": 20,
            "speculative": True, "drafted_tokens": 4, "accepted_tokens": 2,
            "nodes": [{"node": "node-a", "host": "bob", "rows": 12, "receipted": True}],
            "takeovers": [{"lost": "node-b", "by": "node-a", "reason": "no_answer", "step": 1, "layer": 2}],
        },
    },
    "failed": {"n": 3, "error": {"code": "busy", "message": "full", "hint": "later", "details": {"queue": "64"}}},
}  # fmt: skip


def test_commitment_is_sha256_over_salt_and_canonical_parameters() -> None:
    params = GenerateParams(prompt="Emma", max_tokens=3)
    written = (
        b'{"max_tokens":3,"min_p_milli":0,"prompt":"Emma","repetition_penalty_milli":1000,"seed":0,"stop":[],'
        b'"temperature_milli":0,"top_k":0,"top_p_milli":1000}'
    )
    assert params.canonical() == written
    assert params.commitment(SALT) == hashlib.sha256(bytes.fromhex(SALT) + written).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Emma "},
        {"max_tokens": 4},
        {"temperature_milli": 1},
        {"top_k": 1},
        {"top_p_milli": 999},
        {"seed": 1},
        {"min_p_milli": 1},
        {"repetition_penalty_milli": 1001},
        {"stop": ("a",)},
        {"logprobs": 0},
        {"from_model": ("temperature",)},
        {"prompt": None, "messages": (ChatMessage(role="user", content="Emma"),)},
    ],
)
def test_commitment_differs_when_any_parameter_differs(change: dict[str, object]) -> None:
    params = GenerateParams(prompt="Emma", max_tokens=3)
    assert params.model_copy(update=change).commitment(SALT) != params.commitment(SALT)


def test_commitment_covers_role_text_and_order_of_every_message() -> None:
    def committed(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        params = GenerateParams.model_validate_json(json.dumps({"messages": messages, "max_tokens": 3}))
        assert GenerateParams.parse(params.canonical()) == params
        return params.commitment(SALT)

    talks = [
        (("user", "a"), ("assistant", "b")), (("user", "b"), ("assistant", "a")), (("assistant", "a"), ("user", "b")),
        (("user", "ab"), ("assistant", "")), (("system", "a"), ("assistant", "b")),
    ]  # fmt: skip
    assert len({committed(*talk) for talk in talks}) == len(talks)


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, {"messages": []},
        {"messages": [{"role": "tool", "content": "a"}]}, {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "a", "name": "x"}]},
        {"messages": [{"role": "user", "content": ["a"]}]},
        {"messages": [{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1)},
        {"prompt": "a", "from_model": ["seed"]}, {"prompt": "a", "from_model": []},
    ],
)  # fmt: skip
def test_neither_or_both_of_prompt_and_messages_and_messages_that_are_none_are_refused(
    asked: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        GenerateParams.model_validate_json(json.dumps({"max_tokens": 3, **asked}))


def test_what_is_left_to_the_model_is_what_its_maker_said_where_he_did() -> None:
    said = GenerationDefaults(temperature_milli=600, top_k=20)
    left = GenerateParams(
        prompt="a", max_tokens=1, temperature_milli=800, top_p_milli=900, from_model=("temperature", "top_p")
    )
    settled = left.settled(said)
    assert (settled.temperature_milli, settled.top_k, settled.top_p_milli) == (600, 0, 900)
    assert left.settled(None) == left
    assert GenerateParams(prompt="a", max_tokens=1).settled(said) == GenerateParams(prompt="a", max_tokens=1)


def test_commitment_differs_with_the_salt() -> None:
    params = GenerateParams(prompt="Emma", max_tokens=3)
    assert params.commitment("5b" * 32) != params.commitment(SALT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature_milli", -1), ("temperature_milli", 0.7), ("temperature_milli", 100_001), ("top_p_milli", 0),
        ("top_p_milli", 1001), ("max_tokens", 0), ("seed", -1), ("prompt", "x" * 1_000_001),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        GenerateParams.model_validate({"prompt": "Emma", "max_tokens": 3, field: value})


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_every_stream_event_round_trips(event: str) -> None:
    message = InferMessage.model_validate_json(encode_canonical({"e": {"event": event, **EVENTS[event]}}))
    assert message.e.event == event
    assert message.e.model_dump(mode="json", include=set(EVENTS[event])) == EVENTS[event]
    assert InferMessage.parse(message.canonical()) == message


def test_stream_event_of_an_unknown_name_or_with_the_fields_of_another_is_refused() -> None:
    with pytest.raises(NotCanonical, match="e: "):
        InferMessage.parse(encode_canonical({"e": {"event": "surprise", "n": 0}}))
    with pytest.raises(NotCanonical, match=r"e\.delta"):
        InferMessage.parse(encode_canonical({"e": {"event": "delta", **EVENTS["accepted"]}}))


def test_error_body_carries_code_message_hint_and_details() -> None:
    sent = RequestConflict("other content", details={"entry": "9"})
    got = ErrorBody.parse(ErrorBody.of(sent).canonical()).to_error()
    assert isinstance(got, RequestConflict)
    assert (got.message, got.hint, got.details) == (sent.message, sent.hint, sent.details)


def test_error_body_of_a_code_from_the_future_is_a_plain_error() -> None:
    got = ErrorBody(code="invented_later", message="no", hint="wait").to_error()
    assert type(got) is SawyerError
    assert (got.message, got.hint) == ("no", "wait")


def test_error_bodies_do_not_share_their_details() -> None:
    one, two = ErrorBody(code="busy", message=""), ErrorBody(code="busy", message="")
    assert one.details is not two.details


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii"), max_size=9), st.text(st.characters(codec="utf-8"), max_size=9)
    )
)
def test_error_details_of_any_text_survive_the_wire(details: dict[str, str]) -> None:
    body = ErrorBody.of(Busy("full", details=details))
    assert ErrorBody.parse(body.canonical()).to_error().details == details


def test_every_published_message_is_strict_and_immutable() -> None:
    for message in messages.MESSAGES:
        assert issubclass(message, Strict | Fact)
        if issubclass(message, Strict):
            assert message.model_config == Strict.model_config
        else:
            assert message.__struct_config__.frozen
            assert message.__struct_config__.forbid_unknown_fields
    assert len(set(messages.MESSAGES)) == len(messages.MESSAGES)


def test_finish_with_more_runs_than_the_limit_is_refused() -> None:
    with pytest.raises(ValidationError, match="used"):
        messages.Finish(request="0f" * 16, model="austen", used=((1, 1),) * 65_537)


VITALS = dict.fromkeys(
    ("memory_total_mb", "memory_free_mb", "loaded", "loads", "drops", "queue", "answers", "refused", "rows", "runs",
     "latency_p50_us", "latency_p95_us", "rows_per_second", "round_trip_us", "kilobytes_per_second"), 0,
) | {"version": "0.1", "provider": "CPUExecutionProvider", "device": "AMD EPYC 7763", "threads": 1}  # fmt: skip


@pytest.mark.parametrize("field", ["version", "provider", "device"])
@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "x" * 129, "Intel\N{REGISTERED SIGN}"])
def test_vitals_that_could_steer_a_terminal_or_fill_it_are_refused(field: str, hostile: str) -> None:
    assert messages.Vitals.model_validate(VITALS)
    with pytest.raises(ValidationError, match=field):
        messages.Vitals.model_validate(VITALS | {field: hostile})
