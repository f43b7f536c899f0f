"""The faults of a chaos run: the same seed the same faults, every kind before any comes twice, one at a time."""

from __future__ import annotations

import pytest

from sawyer.bench.chaos_plan import KINDS, LASTS_S, REST_S, STARTS_S, schedule

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_same_seed_gives_the_same_faults_and_a_longer_run_only_more_of_them(seed: int) -> None:
    short, long = schedule(seed, 20, 3, KINDS), schedule(seed, 60, 3, KINDS)
    assert short == schedule(seed, 20, 3, KINDS)
    assert long[: len(short)] == short
    assert len(long) > len(short)


def test_other_seeds_give_other_faults() -> None:
    assert len({schedule(seed, 30, 3, KINDS) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_kind_comes_once_before_any_comes_twice_even_in_the_shortest_run(seed: int) -> None:
    assert sorted(each.kind for each in schedule(seed, 0, 2, KINDS)) == sorted(KINDS)
    kinds = [each.kind for each in schedule(seed, 300, 2, KINDS)]
    for first in range(0, len(kinds) - len(KINDS), len(KINDS)):
        assert set(kinds[first : first + len(KINDS)]) == set(KINDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_only_kinds_that_were_asked_for_come_with_a_node_where_one_is_meant(seed: int) -> None:
    faults = schedule(seed, 200, 3, ("slow_node", "kill_bookkeeper"))
    assert {each.kind for each in faults} == {"slow_node", "kill_bookkeeper"}
    assert {each.node for each in faults if each.kind == "slow_node"} == {0, 1, 2}
    assert {each.node for each in faults if each.kind == "kill_bookkeeper"} == {None}


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_fit_into_the_time_and_last_within_their_bounds(seed: int) -> None:
    faults = schedule(seed, 120, 3, KINDS)
    assert sum(each.rest_s + each.lasts_s + STARTS_S[each.kind] for each in faults) <= 120
    for each in faults:
        assert REST_S[0] <= each.rest_s <= REST_S[1]
        assert LASTS_S[each.kind][0] <= each.lasts_s <= LASTS_S[each.kind][1]
