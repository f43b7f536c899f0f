"""From measured rounds to the result that people and programs read."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from sawyer.bench.layer_calls import Calls, message_bytes
from sawyer.bench.machine import this_machine
from sawyer.bench.result import BenchResult, ModelResult, Rounds
from sawyer.bench.timing import Quantiles, Spread, ratios
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.tensors import HEADER_BYTES, PART_BYTES

LAYOUT = ModelLayout(
    family="mixtral", vocab=64, hidden=64, layers=2, heads=1, kv_heads=1, head_dim=64, ffn=96, experts=4, top_k=2,
    context=64, moe_layers=(0, 1), rms_eps="1e-05", rope_theta="1000000.0", eos=(), bos=None,
)  # fmt: skip


def calls(rows: int, wall_us: float, compute_us: float = 100) -> Calls:
    return Calls(rows, 2, [wall_us] * 4, [compute_us] * 4)


def result(call_us: float) -> BenchResult:
    """Of two rounds, the second twice as slow as the first in everything but layer calls."""
    rounds = Rounds(
        "tiny", LAYOUT, 8, 16, local=[200, 100], distributed=[100, 50], local_streams=[500, 250],
        distributed_streams=[450, 225], single=[calls(1, call_us)] * 2,
        plain_us=[[400, 500, 600]] * 2, gathered_us=[[100, 250, 300]] * 2,
        four_plain_us=[[1000, 800]] * 2, four_own_us=[[300, 420]] * 2, batches={32: [calls(32, 2 * call_us)] * 2},
    )  # fmt: skip
    models = (ModelResult.of(rounds),)
    threads = {"in_process": 2, "node": 1, "router": 1}
    return BenchResult.of(models, this_machine("asyncio"), quick=True, nodes=2, threads=threads, rounds=2)


def test_spread_is_median_lowest_and_highest() -> None:
    assert Spread.of([3, 1, 2.00004]) == Spread(2.0, 1, 3)


def test_quantiles_are_measured_values() -> None:
    assert Quantiles.of(list(range(1, 101))) == Quantiles(51, 96, 100)
    assert Quantiles.of([7]) == Quantiles(7, 7, 7)


def test_ratio_is_taken_round_by_round_so_that_a_slow_round_cancels_out() -> None:
    assert ratios([100, 50], [200, 100]) == [0.5, 0.5]
    assert result(1000).models[0].ratio == Spread(0.5, 0.5, 0.5)


def test_communication_is_what_is_not_compute_and_is_held_against_plain_requests() -> None:
    model = result(1000).models[0]
    assert (model.compute_us.median, model.communication_us.median, model.plain_us.median) == (100, 900, 500)
    assert (model.communication_ratio.median, model.gathered_ratio.median) == (1.8, 0.5)


def test_activations_count_every_expert_of_a_row_and_rows_count_once() -> None:
    model = result(1000).models[0]
    assert model.activations_per_second.median == 2000
    assert model.batches[0].rows_per_second.median == 16_000
    assert model.batches[0].activations_per_second.median == 32_000


@pytest.mark.parametrize(("call_us", "met"), [(1500, [True, True]), (2500, [False, True]), (3500, [False, False])])
def test_goals_say_what_was_got_and_whether_it_was_met(call_us: float, met: list[bool]) -> None:
    goals = result(call_us).goals
    assert [goal.met for goal in goals] == [*met, True, True, True, True]
    assert [goal.got for goal in goals] == [int(2e6 / call_us), int(call_us), 0.5, 0.9, 4.5, 0.4]


def test_json_names_ratio_and_activations_at_the_top() -> None:
    held = json.loads(json.dumps(asdict(result(1000))))
    assert (held["ratio"], held["activations_per_second"], held["v"]) == (0.5, 2000, 1)
    assert held["machine"]["packages"]["sawyer"]
    assert held["machine"]["cores"] >= 1


FIRST_BYTES = HEADER_BYTES + PART_BYTES


def test_message_bytes_are_header_table_index_and_row() -> None:
    assert message_bytes(64) == (FIRST_BYTES + 8 + 4 + 128, FIRST_BYTES + 8 + 128)
