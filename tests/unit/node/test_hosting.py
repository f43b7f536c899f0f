"""Shares of a model: any two or more nodes cover every expert twice."""

from __future__ import annotations

import random as random_module
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import UsageError
from sawyer.node.hosting import in_preference, pairs, parse_experts, parse_share, share, without
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


# --- --experts ------------------------------------------------------------------------------------------------------

MODEL = layout(8, (0, 1, 2, 5))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:0", {(0, 0)}),
        ("0:0-3,1:4", {(0, 0), (0, 1), (0, 2), (0, 3), (1, 4)}),
        ("5:*", {(5, expert) for expert in range(8)}),
        ("*:7", {(layer, 7) for layer in (0, 1, 2, 5)}),
        ("0-2:6-7", {(layer, expert) for layer in (0, 1, 2) for expert in (6, 7)}),
        ("0:1,0:1-2,0:1", {(0, 1), (0, 2)}),
        ("*:*", {(layer, expert) for layer in (0, 1, 2, 5) for expert in range(8)}),
    ],
)
def test_parse_experts_reads_layers_and_experts(text: str, expected: set[tuple[int, int]]) -> None:
    layers = parse_experts(text, MODEL)
    assert set(pairs(layers)) == expected
    assert all(not each.replica for each in layers)
    assert [each.layer for each in layers] == sorted({layer for layer, _ in expected})


@given(st.sets(st.tuples(st.sampled_from(MODEL.moe_layers), st.integers(0, 7)), min_size=1), st.randoms())
def test_parse_experts_reads_back_any_choice_in_any_order(
    chosen: set[tuple[int, int]], random: random_module.Random
) -> None:
    written = [f"{layer}:{expert}" for layer, expert in sorted(chosen)]
    random.shuffle(written)
    assert set(pairs(parse_experts(",".join(written), MODEL))) == chosen


@given(st.text(alphabet="0123456789:,-* x", max_size=20) | st.text(max_size=10))
def test_parse_experts_reads_any_text_or_says_what_is_wrong_with_it(text: str) -> None:
    said = ""
    try:
        chosen = set(pairs(parse_experts(text, MODEL)))
    except UsageError as error:
        chosen, said = set(), f"{error.message} {error.hint}"
    assert chosen <= {(layer, expert) for layer in MODEL.moe_layers for expert in range(8)}
    assert bool(chosen) != ("position" in said)


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "'' at position 1 of --experts is not LAYERS:EXPERTS", "0:0-3"),
        ("0:0,", "'' at position 5", "0:0-3"),
        ("0:0,1", "'1' at position 5", "0:0-3"),
        ("0:0,x:1", "'x' at position 5 of --experts is no layer", "0:0-3"),
        ("0:0,1:y", "'y' at position 7 of --experts is no expert", "0:0-3"),
        ("0:", "'' at position 3", "0:0-3"),
        ("0:1:2", "'1:2' at position 3", "0:0-3"),
        ("0:-1", "'-1' at position 3", "0:0-3"),
        ("0:3-1", "'3-1' at position 3 of --experts runs backwards", "0:0-3"),
        ("0: 1", "' 1' at position 3", "0:0-3"),
        ("3:0", "this model has no layer 3", "layers 0-2, 5"),
        ("0-5:0", "this model has no layer 3", "layers 0-2, 5"),
        ("7:0", "this model has no layer 7", "layers 0-2, 5"),
        ("0:8", "'8' at position 3 of --experts: this model has no expert 8", "experts 0-7"),
        ("0:5-9", "this model has no expert 8", "experts 0-7"),
        ("0:0-999999999", "this model has no expert 8", "experts 0-7"),
        ("0:99999999999999999999", "is no expert", "0:0-3"),
    ],
)
def test_parse_experts_says_where_the_text_is_wrong_and_what_there_is(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_experts(text, MODEL)
    assert says in error.value.message
    assert hint in error.value.hint


PROMISED = (HostedLayer(layer=0, first=(3, 1), replica=(0,)), HostedLayer(layer=5, first=(2,), replica=(1, 2)))


def test_experts_of_first_choice_come_before_replicas_and_each_once() -> None:
    assert in_preference(PROMISED) == [(0, 1), (0, 3), (5, 2), (0, 0), (5, 1)]
    assert sorted(in_preference(PROMISED)) == sorted(pairs(PROMISED))


def test_experts_that_cannot_be_served_are_left_out_of_what_is_promised() -> None:
    left = without(PROMISED, {(0, 3), (5, 2)})
    assert left == (
        HostedLayer(layer=0, first=(1,), replica=(0,)),
        HostedLayer(layer=5, first=(), replica=(1,)),
    )
    assert without(PROMISED, frozenset()) is PROMISED
