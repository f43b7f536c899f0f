"""The arithmetic of the WAN benchmark: the physical bound, and what a burst is of it."""

from __future__ import annotations

import pytest

from sawyer.bench.machine import Machine
from sawyer.bench.wan_result import (
    Burst,
    Guessed,
    SpeculationResult,
    StreamsResult,
    WanResult,
    bound_tokens_per_second,
)
from sawyer.schemas.models import ModelLayout

MACHINE = Machine("a CPU", 2, "Linux", "CPython", "uvloop", 0.0, {})
LAYOUT = ModelLayout(
    family="mixtral", vocab=16, hidden=8, layers=3, heads=2, kv_heads=1, head_dim=4, ffn=8, experts=4, top_k=2,
    context=64, moe_layers=(1, 2), rms_eps="1e-05", rope_theta="10000.0", eos=(1,), dense_ffn=8,
)  # fmt: skip


@pytest.mark.parametrize(("layers", "rtt_s", "bound"), [(32, 0.03, 1.0417), (8, 0.03, 4.1667), (1, 0.5, 2.0)])
def test_bound_is_a_round_trip_a_layer(layers: int, rtt_s: float, bound: float) -> None:
    assert bound_tokens_per_second(layers, rtt_s) == pytest.approx(bound, abs=1e-4)


def test_burst_is_told_in_all_a_stream_and_of_the_bound() -> None:
    assert StreamsResult.of(Burst(4, 64, 8.0), 4.0) == StreamsResult(4, 64, 8.0, 8.0, 2.0, 0.5)


def test_text_with_guesses_is_told_beside_the_one_without() -> None:
    guessed = Guessed("repetitive", 41, without_s=10.0, with_s=4.0, drafted=40, accepted=30)
    assert SpeculationResult.of(guessed) == SpeculationResult("repetitive", 41, 4.0, 10.0, 2.5, 40, 30)


def test_only_layers_with_experts_cost_a_round_trip() -> None:
    result = WanResult.of(
        [Burst(1, 10, 2.0)], [], [0.031, 0.2, 0.030], LAYOUT, MACHINE, rtt_ms=50, mbit=0, loss_percent=0, model="m",
        nodes=2, quick=True,
    )  # fmt: skip
    assert (result.moe_layers, result.bound_tokens_per_second) == (2, 10.0)
    assert result.measured_rtt_ms == 31.0
    assert result.streams[0].of_bound == 0.5
