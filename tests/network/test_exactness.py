"""The distributed run against the same model with all experts in this process: logits, not only ids. Over the float16
wire the reference rounds where the wire rounds."""

from __future__ import annotations

import numpy as np
import pytest

from sawyer.engine.experts import ExpertPool
from sawyer.engine.loaded import Engine
from sawyer.engine.local import LocalModel
from sawyer.ids import new_request_id
from sawyer.model.catalog import DEMO_MODEL
from sawyer.router.forward import Forward, Place
from sawyer.router.metering import Meter
from sawyer.router.scope import RequestScope

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

    place = _place(engine, len(ids) + 4)
    forward = Forward(engine.trunk, engine.compute, dispatcher)
    seen = [await forward.prompt(place, ids)]
    for _ in range(3):
        (logits,) = await forward.tokens([place], [int(seen[-1].argmax())])
        seen.append(logits)

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


def _place(engine: Engine, rows: int) -> Place:
    request = new_request_id()
    return Place(RequestScope(request, Meter(request, DEMO_MODEL)), engine.trunk.new_cache(rows))


async def test_rows_of_many_requests_in_one_pass_are_bit_for_bit_what_each_is_alone(founded):
    await founded.add_node("node-1", 0, 2)
    await founded.add_node("node-2", 1, 2)
    running = await founded.add_router()
    await founded.router_sees("node-1", "node-2")
    engine = running.part._engine
    forward = Forward(engine.trunk, engine.compute, running.part._dispatcher)
    prompts = [engine.tokenizer.encode(PROMPT)[: 3 + 17 * n] for n in range(9)]

    async def alone(ids: list[int]) -> list[np.ndarray]:
        place = _place(engine, len(ids) + 8)
        seen = [await forward.prompt(place, ids)]
        for _ in range(6):
            seen += await forward.tokens([place], [int(seen[-1].argmax())])
        return seen

    expected = [await alone(ids) for ids in prompts]
    places = [_place(engine, len(ids) + 8) for ids in prompts]
    seen = [[await forward.prompt(place, ids)] for place, ids in zip(places, prompts, strict=True)]
    for _ in range(6):
        told = await forward.tokens(places, [int(each[-1].argmax()) for each in seen])
        for each, logits in zip(seen, told, strict=True):
            each.append(logits)
    for together, single in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(np.stack(together), np.stack(single))
