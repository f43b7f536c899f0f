"""Shares of a model: any two or more nodes cover every expert twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import UsageError
from sawyer.node.hosting import pairs, parse_share, share
from sawyer.schemas.messages import HostedLayer
from sawyer.schemas.models import ModelLayout


def layout(experts: int, moe_layers: tuple[int, ...]) -> ModelLayout:
    return ModelLayout(
        family="mixtral", vocab=96, hidden=32, layers=max(moe_layers) + 1, heads=4, kv_heads=2, head_dim=8, ffn=64,
        experts=experts, top_k=1, context=128, moe_layers=moe_layers, rms_eps="1e-05", rope_theta="10000.0", eos=(1,),
    )  # fmt: skip


LAYERS = st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True).map(lambda each: tuple(sorted(each)))


@given(of=st.integers(2, 12), experts=st.integers(1, 40), layers=LAYERS)
def test_every_expert_has_one_first_choice_and_a_replica_on_another_node(
    of: int, experts: int, layers: tuple[int, ...]
) -> None:
    shares = [share(layout(experts, layers), part, of) for part in range(of)]
    wanted = {(layer, expert): 1 for layer in layers for expert in range(experts)}
    first = Counter((each.layer, expert) for one in shares for each in one for expert in each.first)
    replica = Counter((each.layer, expert) for one in shares for each in one for expert in each.replica)
    assert first == wanted
    assert replica == wanted
    for one in shares:
        assert [each.layer for each in one] == list(layers)
        assert all(not set(each.first) & set(each.replica) for each in one)


@given(of=st.integers(2, 12), experts=st.integers(1, 40), gone=st.integers(0, 11))
def test_any_one_node_may_vanish(of: int, experts: int, gone: int) -> None:
    model = layout(experts, (0, 2))
    left = {pair for part in range(of) if part != gone % of for pair in pairs(share(model, part, of))}
    assert left == {(layer, expert) for layer in (0, 2) for expert in range(experts)}


@given(of=st.integers(2, 12), experts=st.integers(1, 40))
def test_shares_differ_by_one_expert_at_most(of: int, experts: int) -> None:
    sizes = [len(share(layout(experts, (0,)), part, of)[0].first) for part in range(of)]
    assert max(sizes) - min(sizes) <= 1


def test_one_node_alone_is_first_choice_for_everything() -> None:
    assert share(layout(3, (0, 1)), 0, 1) == (
        HostedLayer(layer=0, first=(0, 1, 2), replica=()),
        HostedLayer(layer=1, first=(0, 1, 2), replica=()),
    )


@pytest.mark.parametrize(("part", "of"), [(2, 2), (-1, 2), (0, 0), (5, 3)])
def test_share_that_does_not_exist_is_refused(part: int, of: int) -> None:
    with pytest.raises(UsageError, match=f"share {part}/{of}") as error:
        share(layout(4, (0,)), part, of)
    assert "0/2" in error.value.hint


@pytest.mark.parametrize(("text", "expected"), [("0/2", (0, 2)), ("11/12", (11, 12)), ("7/3", (7, 3))])
def test_parse_share_reads_both_numbers(text: str, expected: tuple[int, int]) -> None:
    assert parse_share(text) == expected


@pytest.mark.parametrize("text", ["", "/", "1", "1/", "/2", "a/b", "-1/2", "1/2/3", "1 / 2", "1.0/2"])
def test_parse_share_refuses_other_text(text: str) -> None:
    with pytest.raises(UsageError, match="is not a share"):
        parse_share(text)


def test_pairs_names_each_served_expert_once() -> None:
    layers = (HostedLayer(layer=3, first=(5, 1), replica=(1, 2)), HostedLayer(layer=4, first=(), replica=(0,)))
    assert pairs(layers) == [(3, 1), (3, 2), (3, 5), (4, 0)]
