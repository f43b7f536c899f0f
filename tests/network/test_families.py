"""A tiny checkpoint of each family, as transformers saved it: split, hosted by two nodes, asked over real sockets."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.families import FAMILIES
from sawyer.model.split import split

GOLDEN = Path(__file__).parents[1] / "unit" / "engine" / "golden"
CASES = {
    "mixtral": "grouped",
    "qwen2_moe": "qwen2-moe",
    "deepseek_v2": "deepseek-full",
    "dbrx": "dbrx",
    "olmoe": "olmoe-clipped",
    "qwen3_moe": "qwen3-moe-dense-layers",
}


def test_every_family_is_asked_over_the_network():
    models = {json.loads((GOLDEN / case / "config.json").read_text())["model_type"] for case in CASES.values()}
    assert models == CASES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", CASES)
async def test_network_gives_the_greedy_ids_of_transformers(founded_with, tmp_path, family):
    source, model = GOLDEN / CASES[family], ModelId(CASES[family])
    split(source, tmp_path / "split", model=model, format="f32")
    network = await founded_with(Artifacts.open(tmp_path / "split"))
    await network.add_node("node-1", 0, 2)
    await network.add_node("node-2", 1, 2)
    await network.add_router(wide=True)
    await network.router_sees("node-1", "node-2")
    with np.load(source / "expected.npz") as expected:
        prompt, greedy = " ".join(map(str, expected["ids"])), expected["greedy"].tolist()
    layout = network.artifacts.layout
    spoken = list(itertools.takewhile(lambda token: token not in layout.eos, greedy))
    async with network.client() as client:
        answer = await client.generate(prompt, model=model, max_tokens=len(greedy))
    async with network.client(trunk=network.artifacts.folder) as client:
        local = await client.generate(prompt, model=model, max_tokens=len(greedy))
    assert list(answer.ids) == list(local.ids) == spoken
    assert answer.usage.billed_tokens == local.usage.billed_tokens
    fed = len(prompt.split()) + min(len(spoken), len(greedy) - 1)  # the last of as many as were asked for is not fed
    assert sum(node.rows for node in answer.usage.nodes) == fed * layout.rows_per_token
    assert (await network.audit()).ok
