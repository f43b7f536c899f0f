"""The distributed run against the same model with all experts in this process: logits, not only ids. Over the float16
wire the reference rounds where the wire rounds."""

from __future__ import annotations

import numpy as np
import pytest

from sawyer.engine.experts import ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.ids import new_request_id
from sawyer.model.catalog import DEMO_MODEL
from sawyer.router.dispatch import RequestScope
from sawyer.router.generation import Generation
from sawyer.router.metering import Meter
from sawyer.schemas.generation import GenerateParams

PROMPT = '"My dear Mr. Bennet," said his lady to him one day, "have you heard that Netherfield is let?" ' * 6


@pytest.mark.parametrize("wide", [True, False], ids=["float32 wire", "float16 wire"])
async def test_logits_of_the_distributed_run_equal_one_machine(founded, demo_q4, wide):
    await founded.add_node("node-1", 0, 2)
    await founded.add_node("node-2", 1, 2)
    running = await founded.add_router(wide=wide)
    await founded.router_sees("node-1", "node-2")
    engine, dispatcher = running.part._engine, running.part._dispatcher
    ids = engine.tokenizer.encode(PROMPT)
    assert len(ids) > 128, "more than one prefill chunk"

    request = new_request_id()
    scope = RequestScope(request, Meter(request, DEMO_MODEL))
    generation = Generation(engine, dispatcher, scope, GenerateParams(prompt=PROMPT, max_tokens=1))
    seen: list[np.ndarray] = []

    class Recorder:
        def sample(self, logits: np.ndarray) -> tuple[int, None]:
            seen.append(logits)
            return int(logits.argmax()), None

    generation._cache = engine.trunk.new_cache(len(ids) + 4)
    token, _ = await generation._forward(ids, Recorder())
    for _ in range(3):
        token, _ = await generation._forward([token], Recorder())

    pairs = [(layer, expert) for layer in demo_q4.layout.moe_layers for expert in range(demo_q4.layout.experts)]
    local = LocalModel(
        engine.trunk, ExpertPool(demo_q4, pairs, device="cpu"), wire_dtype=np.float32 if wide else np.float16
    )
    cache = engine.trunk.new_cache(len(ids) + 4)
    expected = local.prefill(ids, cache)
    for logits in seen:
        assert np.abs(logits - expected).max() <= 1e-4
        assert logits.argmax() == expected.argmax()
        expected = local.step(int(expected.argmax()), cache)
