"""Names: what may stand in a subject, and new ones that do not repeat."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sawyer.ids import is_slug, new_network_id, new_request_id
from sawyer.schemas.base import Hex32, Network, Slug

SLUG: TypeAdapter[str] = TypeAdapter(Slug)


@pytest.mark.parametrize("text", ["a", "0", "mixtral-8x7b", "node_1", "a" * 63])
def test_slug_is_accepted(text: str) -> None:
    assert is_slug(text)


@pytest.mark.parametrize("text", ["", "a\n", "A", "a.b", "a b", "*", ">", "-a", "_a", "é", "a\0", "\u0661", "a" * 64])
def test_what_could_leave_its_token_is_no_slug(text: str) -> None:
    assert not is_slug(text)


@given(st.text(max_size=70) | st.from_regex(r"[a-z0-9][a-z0-9_-]{0,70}\n?", fullmatch=True))
def test_slug_means_the_same_in_subjects_and_in_schemas(text: str) -> None:
    try:
        SLUG.validate_python(text)
    except ValidationError:
        assert not is_slug(text)
    else:
        assert is_slug(text)


def test_request_ids_are_16_random_bytes_in_hex() -> None:
    made = {new_request_id() for _ in range(100)}
    assert len(made) == 100
    assert [text for text in made if TypeAdapter(Hex32).validate_python(text) != text] == []


def test_network_id_is_its_name_and_a_random_part() -> None:
    made = new_network_id("home")
    assert re.fullmatch(r"home/[0-9a-f]{8}", made)
    assert TypeAdapter(Network).validate_python(made) == made
    assert new_network_id("home") != made
    assert new_network_id().startswith("sawyer-net/")
