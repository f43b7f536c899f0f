"""What a machine may give to experts: of which memory, how much, and whether one fits, before one is tried."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sawyer.cli import serve_plan
from sawyer.cli.serve_plan import budget_of
from sawyer.engine import probe, session
from sawyer.engine.footprint import Footprint
from sawyer.errors import UsageError
from sawyer.node import memory
from sawyer.node.memory import Memory, MiB
from sawyer.node.pressure import lacking_bytes
from sawyer.schemas.models import ModelLayout

LAYOUT = ModelLayout(
    family="mixtral", vocab=96, hidden=64, layers=1, heads=4, kv_heads=2, head_dim=16, ffn=96, experts=8, top_k=2,
    context=128, moe_layers=(0,), rms_eps="1e-05", rope_theta="10000.0", eos=(1,),
)  # fmt: skip
MODEL = SimpleNamespace(layout=LAYOUT, manifest=SimpleNamespace(format="q4"))


@pytest.mark.parametrize(
    ("total_mb", "free_mb", "budget_mb"),
    [(64_000, 8000, 5952), (16_000, 10_000, 8000), (8000, 300, 0), (1000, 500, 400), (1000, 200, 136)],
)
def test_default_on_the_cpu_leaves_free_what_must_stay_free(total_mb: int, free_mb: int, budget_mb: int) -> None:
    machine = Memory(total_mb * MiB, free_mb * MiB)
    budget, _ = budget_of(machine, "", on_cpu=True)
    assert budget == budget_mb * MiB
    one = Footprint(10 * MiB, 10 * MiB)
    if budget >= one.room_for(1):
        last = Memory(machine.total_bytes, machine.free_bytes - (one.fit(budget) - 1) * one.kept_bytes)
        assert lacking_bytes(last, one.room_for(1)) == 0, "the last one that was chosen is loaded too"


def test_gpu_keeps_nothing_free_for_others() -> None:
    assert budget_of(Memory(80_000 * MiB, 1000 * MiB), "", on_cpu=False) == (800 * MiB, "80 % of what is free")


def test_part_of_the_memory_is_of_that_where_experts_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = probe.ExpertProbe.__init__

    def on_cuda(self: probe.ExpertProbe, *arguments: object, **settings: object) -> None:
        run(self, *arguments, **settings)  # type: ignore[arg-type]
        self.provider = session.CUDA

    monkeypatch.setattr(probe.ExpertProbe, "__init__", on_cuda)
    monkeypatch.setattr(session, "device_memory_bytes", lambda: (80_000 * MiB, 70_000 * MiB))
    found = serve_plan.measure(MODEL, "cpu", 1, "75%")  # type: ignore[arg-type]
    assert (found.total_bytes, found.budget_bytes) == (80_000 * MiB, 60_000 * MiB)


@pytest.mark.parametrize(("max_memory", "free_bytes"), [("1kB", 1 << 40), ("", 1000), ("2GB", 1000)])
def test_expert_that_cannot_fit_is_refused_before_one_is_tried(
    max_memory: str, free_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(probe, "ExpertProbe", lambda *arguments, **_: tried.append(arguments))
    monkeypatch.setattr(memory, "read_memory", lambda: Memory(1 << 41, free_bytes))
    with pytest.raises(UsageError, match=r"one expert takes .* and .* may be used"):
        serve_plan.measure(MODEL, "cpu", 1, max_memory)  # type: ignore[arg-type]
    assert tried == []
