"""Canonical JSON: one value, one byte string, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import NotCanonical
from sawyer.schemas.base import MAX_SAFE_INTEGER, Count, Slug, Strict, Text, encode_canonical


class Sample(Strict):
    """A small schema with an optional field."""

    name: Slug
    size: Count
    note: Text | None = None


samples = st.builds(
    Sample,
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
    size=st.integers(0, MAX_SAFE_INTEGER),
    note=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)


@given(samples)
def test_parse_returns_the_value_that_canonical_wrote(sample: Sample) -> None:
    assert Sample.parse(sample.canonical()) == sample


def test_canonical_sorts_keys_and_leaves_absent_fields_out() -> None:
    assert Sample(size=7, name="a").canonical() == b'{"name":"a","size":7}'
    assert Sample(size=7, name="a", note="é").canonical() == '{"name":"a","note":"é","size":7}'.encode()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b'{"name":"a","name":"a","size":7}', "not the canonical encoding"),
        (b'{"name":"a","size":7,"size":8}', "not the canonical encoding"),
        (b'{"size":7,"name":"a"}', "not the canonical encoding"),
        (b'{"name":"a", "size":7}', "not the canonical encoding"),
        (b'{"name":"a","size":7}\n', "not the canonical encoding"),
        (b'{"name":"\\u0061","size":7}', "not the canonical encoding"),
        (b'{"name":"a","note":null,"size":7}', "not the canonical encoding"),
        (b'{"name":"a","size":-0}', "not the canonical encoding"),
        (b'{"name":"a","size":7.0}', "size: "),
        (b'{"name":"a","size":7e0}', "size: "),
        (b'{"name":"a","size":"7"}', "size: "),
        (b'{"name":"a","size":true}', "size: "),
        (b'{"name":"a","size":NaN}', "size: "),
        (b'{"name":"a","size":-1}', "size: "),
        (b'{"name":"a","size":9007199254740992}', "size: "),
        (b'{"name":"a","size":' + b"9" * 5000 + b"}", "out of range"),
        (b'{"name":"a","other":1,"size":7}', "other: "),
        (b'{"name":"a\\n","size":7}', "name: "),
        (b'{"name":"A","size":7}', "name: "),
        (b'{"name":"a","note":"\\ud800","size":7}', "Invalid JSON"),
        (b'{"name":"a"}', "size: "),
        (b"[]", "top level"),
        (b"null", "top level"),
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 10_000, "Invalid JSON"),
    ],
)
def test_parse_refuses_what_is_not_the_one_encoding(raw: bytes, why: str) -> None:
    with pytest.raises(NotCanonical, match=why):
        Sample.parse(raw)


@given(samples, st.data())
def test_parse_of_changed_bytes_refuses_or_means_exactly_these_bytes(sample: Sample, data: st.DataObject) -> None:
    raw = bytearray(sample.canonical())
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        value = Sample.parse(bytes(raw))
    except NotCanonical:
        return
    assert value.canonical() == bytes(raw)


@given(st.binary(max_size=200))
def test_parse_of_random_bytes_raises_nothing_but_not_canonical(raw: bytes) -> None:
    with pytest.raises(NotCanonical):
        Sample.parse(raw)


def test_values_are_immutable_and_never_coerced() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Sample(name="a", size=7).size = 8  # type: ignore[misc]
    with pytest.raises(ValueError, match="valid integer"):
        Sample(name="a", size="7")  # type: ignore[arg-type]


def test_encode_canonical_matches_the_rfc_8785_string_rules() -> None:
    # RFC 8785 section 3.2.2.2: short escapes where JSON has them, \\u00xx for other controls, everything else verbatim.
    assert encode_canonical('\u20ac$\x0f\nA\'B"\\\\"/') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()
