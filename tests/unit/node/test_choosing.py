"""What a node chooses to host: what the fewest hosts serve, as much as fits, and never more."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.engine.footprint import Footprint
from sawyer.errors import UsageError
from sawyer.node.choosing import NOBODY, Served, choose, parse_memory, size_text
from sawyer.node.hosting import pairs, parse_experts, written
from sawyer.schemas.models import ModelLayout

ONE = Footprint(kept_bytes=100, loading_bytes=50)
HOSTS = ("ann", "bob", "carl")


def layout(experts: int, moe_layers: tuple[int, ...]) -> ModelLayout:
    return ModelLayout(
        family="mixtral", vocab=96, hidden=32, layers=max(moe_layers) + 1, heads=4, kv_heads=2, head_dim=8, ffn=64,
        experts=experts, top_k=1, context=128, moe_layers=moe_layers, rms_eps="1e-05", rope_theta="10000.0", eos=(1,),
    )  # fmt: skip


MODEL = layout(8, (0, 1, 3))
EVERY = [(layer, expert) for layer in MODEL.moe_layers for expert in range(8)]


def served_by(*hosts: str, first: int = 1) -> Served:
    return Served(frozenset(hosts), len(hosts), first)


SERVED = st.builds(
    lambda hosts, more, first: Served(frozenset(hosts), len(hosts) + more * bool(hosts), first * bool(hosts)),
    st.sets(st.sampled_from(HOSTS)),
    st.integers(0, 2),
    st.integers(0, 1),
)
NETWORKS = st.dictionaries(st.sampled_from(EVERY), SERVED)


@given(served=NETWORKS, room=st.integers(1, 40), seed=st.sampled_from(["attic", "cellar"]))
def test_choice_fills_the_budget_with_what_the_fewest_hosts_serve(
    served: dict[tuple[int, int], Served], room: int, seed: str
) -> None:
    budget = ONE.room_for(room) + 99
    choice = choose(MODEL, served, ONE, budget, host="dora", seed=seed)
    chosen = set(pairs(choice.layers))
    assert choice.experts == len(chosen) == min(room, len(EVERY))
    assert choice.memory_bytes <= budget
    assert chosen <= set(EVERY)
    left = [len(served.get(pair, NOBODY).hosts) for pair in EVERY if pair not in chosen]
    assert max(len(served.get(pair, NOBODY).hosts) for pair in chosen) <= min(left, default=99)
    for each in choice.layers:
        assert not set(each.first) & set(each.replica)
        assert all(served.get((each.layer, expert), NOBODY).first == 0 for expert in each.first)
        assert all(served[each.layer, expert].first > 0 for expert in each.replica)
    assert choice == choose(MODEL, served, ONE, budget, host="dora", seed=seed)


@given(room=st.integers(1, 24), seed=st.text(max_size=8))
def test_choice_is_spread_evenly_over_layers_that_are_served_alike(room: int, seed: str) -> None:
    choice = choose(MODEL, {}, ONE, ONE.room_for(room), host="dora", seed=seed)
    counts = Counter(layer for layer, _ in pairs(choice.layers))
    assert max(counts.values()) - min(counts[layer] for layer in MODEL.moe_layers) <= 1


@given(rooms=st.lists(st.integers(1, 24), min_size=1, max_size=8))
def test_nodes_that_join_one_after_another_leave_nothing_unserved_while_there_is_room(rooms: list[int]) -> None:
    served: dict[tuple[int, int], Served] = {}
    for number, room in enumerate(rooms):
        host = f"host-{number}"
        choice = choose(MODEL, served, ONE, ONE.room_for(room), host=host, seed=host)
        for each in choice.layers:
            for expert in (*each.first, *each.replica):
                there = served.get((each.layer, expert), NOBODY)
                served[each.layer, expert] = Served(
                    there.hosts | {host}, there.nodes + 1, there.first + (expert in each.first)
                )
    assert len(served) == min(sum(rooms), len(EVERY))
    assert all(each.first == 1 for each in served.values())


def test_two_nodes_that_start_together_choose_differently() -> None:
    ours = choose(MODEL, {}, ONE, ONE.room_for(6), host="ann", seed="attic")
    theirs = choose(MODEL, {}, ONE, ONE.room_for(6), host="bob", seed="cellar")
    assert set(pairs(ours.layers)) != set(pairs(theirs.layers))


def test_expert_of_the_same_host_comes_after_one_of_another_host() -> None:
    served = {pair: served_by("ann" if pair[1] < 4 else "bob") for pair in EVERY}
    choice = choose(MODEL, served, ONE, ONE.room_for(12), host="ann", seed="attic")
    assert {expert for _, expert in pairs(choice.layers)} == {4, 5, 6, 7}


def test_second_node_of_one_host_counts_less_than_a_second_host() -> None:
    served = {pair: served_by("ann", "bob") for pair in EVERY} | {(1, 5): Served(frozenset({"ann"}), 3, 1)}
    choice = choose(MODEL, served, ONE, ONE.room_for(1), host="carl", seed="attic")
    assert pairs(choice.layers) == [(1, 5)]


def test_expert_that_has_only_replicas_gets_a_first_choice() -> None:
    served = {pair: served_by("ann", first=0) for pair in EVERY}
    choice = choose(MODEL, served, ONE, ONE.room_for(24), host="bob", seed="attic")
    assert [(each.first, each.replica) for each in choice.layers] == [(tuple(range(8)), ())] * 3


def test_budget_below_one_expert_is_refused_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"one expert takes 150 B of memory while it is loaded, and 149 B may be used"):
        choose(MODEL, {}, ONE, 149, host="ann", seed="attic")
    assert choose(MODEL, {}, ONE, 150, host="ann", seed="attic").experts == 1


def test_negative_budget_is_refused_as_nothing() -> None:
    with pytest.raises(UsageError, match="0 B may be used"):
        choose(MODEL, {}, ONE, -5, host="ann", seed="attic")


# --- written as --experts ---------------------------------------------------------------------------------------------


@given(st.sets(st.sampled_from(EVERY), min_size=1))
def test_written_experts_are_read_back(chosen: set[tuple[int, int]]) -> None:
    assert set(pairs(parse_experts(written(chosen, MODEL), MODEL))) == chosen


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        (EVERY, "*:*"),
        ([pair for pair in EVERY if pair[0] < 3], "0-1:*"),
        ([(0, 0), (0, 1), (0, 2), (0, 6)], "0:0-2,0:6"),
        ([(layer, 4) for layer in (0, 1, 3)], "*:4"),
        ([(0, 1), (3, 1), (1, 2)], "0:1,3:1,1:2"),
    ],
)
def test_experts_are_written_in_few_words(chosen: list[tuple[int, int]], text: str) -> None:
    assert written(chosen, MODEL) == text


# --- --max-memory -----------------------------------------------------------------------------------------------------

GB = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GB", 6 * GB), ("6 gb", 6 * GB), ("1.5G", 3 * GB // 2), ("512MiB", 512 * 2**20), ("75%", 12 * GB),
        ("0.5 %", 8 * GB // 100), ("100%", 16 * GB), ("700kB", 700_000), ("2TB", 2000 * GB), ("100B", 100),
        ("1Gi", 2**30),
    ],
)  # fmt: skip
def test_memory_is_read_as_it_is_written(text: str, expected: int) -> None:
    assert parse_memory(text, 16 * GB) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lots",
        "6",
        "0",
        "0GB",
        "0%",
        "101%",
        "-1GB",
        "6XB",
        "6i",
        "6iB",
        "6GBs",
        "1.2345GB",
        "GB",
        "0.0001B",
        "6,5GB",
        "٦GB",
    ],
)
def test_memory_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory") as error:
        parse_memory(text, 16 * GB)
    assert "GB" in error.value.hint or "%" in error.value.hint


@given(st.text(alphabet="0123456789.%kKmMgGtTiIbB ", max_size=8))
def test_any_text_is_an_amount_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_memory(text, 16 * GB) >= 1


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (683_123, "683 kB"), (999_600, "1.0 MB"), (3_240_000_000, "3.2 GB"),
     (99_600_000, "100 MB"), (5 * 10**13, "50.0 TB")],
)  # fmt: skip
def test_sizes_are_told_in_two_digits_or_three(size: int, text: str) -> None:
    assert size_text(size) == text
