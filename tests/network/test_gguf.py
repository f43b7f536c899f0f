"""A GGUF file whose experts keep their blocks: split exactly, hosted by two nodes, asked over real sockets."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import gguf_files

from sawyer.engine.experts import ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.gguf import Gguf
from sawyer.model.layout import all_experts
from sawyer.model.split import split

GROUPED = Path(__file__).parents[1] / "unit" / "engine" / "golden" / "grouped"
MODEL = ModelId("tiny")
PROMPT = [5, 17, 40, 3, 21]
TOKENS = 12


async def test_network_gives_the_ids_that_one_machine_gives_with_the_same_blocks(founded_with, tmp_path):
    config = json.loads((GROUPED / "config.json").read_text())
    tensors = gguf_files.in_types(gguf_files.mixtral_tensors(config, gguf_files.hub_tensors(GROUPED)), gguf_files.MIXED)
    shutil.copy(GROUPED / "tokenizer.json", tmp_path)
    metadata = gguf_files.mixtral_metadata(config)
    file = gguf_files.write_gguf(tmp_path / "tiny.gguf", "llama", metadata, tensors)
    split(Gguf.open(file), tmp_path / "split", model=MODEL, format="gguf")
    artifacts = Artifacts.open(tmp_path / "split")
    pool = ExpertPool(artifacts, all_experts(artifacts.layout), device="cpu")
    expected = LocalModel(Trunk(artifacts), pool).generate(PROMPT, TOKENS)

    network = await founded_with(artifacts)
    await network.add_node("node-1", 0, 2)
    await network.add_node("node-2", 1, 2)
    await network.add_router(wide=True)
    await network.router_sees("node-1", "node-2")
    async with network.client() as client:
        answer = await client.generate(" ".join(map(str, PROMPT)), model=MODEL, max_tokens=TOKENS)

    spoken = itertools.takewhile(lambda token: token not in artifacts.layout.eos, expected)
    assert list(answer.ids) == list(spoken)
    assert {node.node for node in answer.usage.nodes} == {"node-1", "node-2"}
    assert (await network.audit()).ok
