"""The rules of facts: kept where a value is made and where bytes are read, and the same ones that pydantic keeps."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import StringConstraints, ValidationError

from sawyer.errors import NotCanonical
from sawyer.schemas import events, texts
from sawyer.schemas.base import Fact, Sha256, Slug, Strict, encode_canonical, parse_as
from sawyer.schemas.signed import Signature, Signed

STRANGE_TEXTS = (
    "", "a", "A", "0", "-", "_a", "a.b", "a b", "a\n", "\na", "a\x00", "é", "٣" * 32, "0f" * 16, "0F" * 16, "0f" * 32,
    "0f" * 32 + "\n", " " + "0f" * 31 + "f", "0f" * 33, "a" * 63, "a" * 64, "a" * 129, "A" * 8193, "U" + "A" * 55,
    "O" + "A" * 55, "X" + "A" * 55, "U" + "a" * 55, "A" * 85 + "A==", "A" * 85 + "B==", "net/one", "net/one\n",
    "Net/one", "net/one+0a1b2c3d+" + "A" * 44, "tokens.granted.v1", "tokens.granted.v0", "ü" * 64, "\N{GRINNING FACE}",
)  # fmt: skip
NO_TEXTS = (5, 0, True, None, 1.5, b"0f" * 16, ["a"], {"a": "b"})
LEAVES: Any = st.one_of(
    st.sampled_from([0, 1, -1, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), True, False, None, 1.5, [], {}, [1]]),
    st.sampled_from(STRANGE_TEXTS), st.integers(), st.text(max_size=5),
)  # fmt: skip


def facts_in(value: object) -> Iterator[Fact]:
    """A fact and every fact inside it."""
    if isinstance(value, Fact):
        yield value
        for field in type(value).__struct_fields__:
            yield from facts_in(getattr(value, field))
    elif isinstance(value, tuple):
        for each in value:
            yield from facts_in(each)


def patterns_of(kind: type) -> dict[str, str]:
    """Field -> pattern, as the annotations say."""
    return {
        field: str(extra.pattern)
        for field, hint in typing.get_type_hints(kind, include_extras=True).items()
        for extra in getattr(hint, "__metadata__", ())
        if isinstance(extra, StringConstraints)
    }


@pytest.fixture(scope="module")
def samples(event_examples: dict[str, Fact]) -> dict[type, Fact]:
    """One valid value of every type of fact that an event, or what the ledger decides about it, holds."""
    sealed = events.Sealed(subject="alice", nonce="0a" * 24, box="c2VhbGVk")
    part = events.BucketTokens(grant="january", tokens=8)
    credit = events.HostCredit(
        host="bob", node="node-a", rows=12, work=2652, sla_milli=900, measured_us=1_500, promised_us=1_000
    )
    decided = events.Decided(held=(part,), debited=(part,), released=(), expired=(part,), credits=(credit,))
    return {type(fact): fact for body in (*event_examples.values(), sealed, decided) for fact in facts_in(body)}


def test_samples_have_every_fact_that_the_book_can_hold(samples: dict[type, Fact]) -> None:
    wanted = {*events.KIND_OF, events.Sealed, events.Decided, events.BucketTokens, events.HostCredit, Signature, Signed}
    assert wanted <= samples.keys()
    assert sum(len(patterns_of(kind)) for kind in samples) > 60


def test_every_pattern_is_kept_where_a_fact_is_made(samples: dict[type, Fact]) -> None:
    for kind, sample in samples.items():
        for field, pattern in patterns_of(kind).items():
            for text in STRANGE_TEXTS:
                if re.fullmatch(pattern, text):
                    assert getattr(sample.changed(**{field: text}), field) == text
                else:
                    with pytest.raises(ValueError, match=f"{field}: "):
                        sample.changed(**{field: text})


def test_what_is_no_text_is_refused_where_a_fact_is_made(samples: dict[type, Fact]) -> None:
    for kind, sample in samples.items():
        for field in patterns_of(kind):
            for value in NO_TEXTS:
                with pytest.raises(ValueError, match=f"{field}: "):
                    sample.changed(**{field: value})


def test_every_pattern_is_kept_where_bytes_are_read(samples: dict[type, Fact]) -> None:
    for kind, sample in samples.items():
        if kind is Signed:
            continue
        for field, pattern in patterns_of(kind).items():
            for text in STRANGE_TEXTS:
                raw = encode_canonical({**sample.plain(), field: text})
                if re.fullmatch(pattern, text):
                    assert getattr(kind.parse(raw), field) == text
                else:
                    with pytest.raises(NotCanonical, match=field):
                        kind.parse(raw)


def test_rule_is_kept_when_it_forgets_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MOST_KNOWN", 2)

    class Named(Fact, frozen=True):
        """A name."""

        name: Slug
        digest: Sha256

    for number in range(9):
        assert Named(name=f"name-{number}", digest="0f" * 32).name == f"name-{number}"
    assert len(texts.rule_of(patterns_of(Named)["name"]).known) <= 2
    for _ in range(2):
        with pytest.raises(ValueError, match="name: 'Name' does not match"):
            Named(name="Name", digest="0f" * 32)


def test_hash_that_was_right_once_is_not_remembered() -> None:
    """They come once: a memory of them would only grow."""
    rule = texts.rule_of(patterns_of(events.WorkReceipted)["root"])
    assert (rule.remembers, rule.known) == (False, set())


def test_facts_do_not_change(samples: dict[type, Fact]) -> None:
    for sample in samples.values():
        field = type(sample).__struct_fields__[0]
        with pytest.raises(AttributeError):
            setattr(sample, field, getattr(sample, field))


# --- random changes ---------------------------------------------------------------------------------------------------


def judged(kind: Any, raw: bytes) -> object | None:
    """The fact in these bytes; None if they are refused, in the one way in which that is said."""
    try:
        return parse_as(kind, raw)
    except NotCanonical:
        return None


def pydantic_accepts(kind: Any, raw: bytes) -> bool:
    """The twin's judgement of the same bytes: valid, and the one encoding."""
    try:
        value = texts.model_of(kind, Strict).model_validate_json(raw)
        return encode_canonical(value.model_dump(mode="json", exclude_none=True)) == raw
    except (ValidationError, UnicodeEncodeError):
        return False


def mutated(raw: bytes, data: st.DataObject) -> bytes:
    """Some bytes changed, left out or put in, anywhere."""
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        how = data.draw(st.sampled_from(["set", "flip", "drop", "put", "copy"]))
        if how == "set":
            changed[at] = data.draw(st.sampled_from(b'0123456789abcfU"{}[]:,. \\\n\x00\xff-e'))
        elif how == "flip":
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "drop":
            del changed[at : at + data.draw(st.integers(1, 4))]
        elif how == "put":
            changed[at:at] = data.draw(st.binary(min_size=1, max_size=3))
        else:
            changed[at:at] = changed[max(0, at - 12) : at]
        if not changed:
            return b""
    return bytes(changed)


def replanted(value: Any, data: st.DataObject) -> Any:
    """The same JSON value with one leaf or branch replaced, left out or added, anywhere."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        if not data.draw(st.integers(0, 9)):
            return {name: each for name, each in value.items() if name != key} | data.draw(
                st.sampled_from([{}, {"extra": 1}])
            )
        return {**value, key: replanted(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 5)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], replanted(value[at], data), *value[at + 1 :]]
    return data.draw(LEAVES)


many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(data=st.data())
def test_changed_bytes_are_refused_or_are_the_one_encoding_of_another_fact(samples, data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from([each for each in samples.values() if type(each) is not Signed]))
    raw = mutated(sample.canonical(), data)
    found = judged(type(sample), raw)
    if found is not None:
        assert found.canonical() == raw
        assert (found == sample) == (raw == sample.canonical())


@many
@given(data=st.data())
def test_changed_bytes_are_judged_as_pydantic_judges_them(samples, data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from([each for each in samples.values() if type(each) is not Signed]))
    raw = mutated(sample.canonical(), data)
    assert (judged(type(sample), raw) is not None) == pydantic_accepts(type(sample), raw)


@many
@given(data=st.data())
def test_changed_values_are_judged_as_pydantic_judges_them(samples, data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from([each for each in samples.values() if type(each) is not Signed]))
    try:
        raw = encode_canonical(replanted(sample.plain(), data))
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError):
        return  # no JSON at all
    found = judged(type(sample), raw)
    assert (found is not None) == pydantic_accepts(type(sample), raw)
    if found is not None:
        assert found.canonical() == raw


@pytest.mark.parametrize("kind", sorted(events.KINDS))
def test_every_event_is_what_pydantic_reads(kind: str, event_examples: dict[str, Fact]) -> None:
    body = event_examples[kind]
    twin = texts.model_of(type(body), Strict).model_validate_json(body.canonical())
    assert encode_canonical(twin.model_dump(mode="json", exclude_none=True)) == body.canonical()
    assert msgspec.convert(twin.model_dump(mode="json", exclude_none=True), type(body)) == body
