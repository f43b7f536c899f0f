"""Tokens a second: the same prompt, the same files, once with every expert in this process and once over a network."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from sawyer.client.aio import AsyncClient
from sawyer.engine.experts import FAST, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import all_experts


@dataclass(frozen=True, slots=True)
class Text:
    """One generation: its ids, and the speed from the first token to the last."""

    ids: tuple[int, ...]
    tokens_per_second: float


class Local:
    """The whole model in this process, rounding rows where the wire would: it computes what the network computes."""

    def __init__(self, artifacts: Artifacts) -> None:
        """Verifies and loads; blocks."""
        pool = ExpertPool(artifacts, all_experts(artifacts.layout), accuracy_level=FAST, device="cpu")
        self._model = LocalModel(Trunk(artifacts), pool, wire_dtype=np.float16)
        self._tokenizer = Tokenizer(artifacts)

    def generate(self, prompt: str, tokens: int) -> Text:
        """Greedy. Blocks; run it in a thread."""
        ids: list[int] = []
        first_s = 0.0
        for token in self._model.stream(self._tokenizer.encode(prompt), tokens):
            first_s = first_s or perf_counter()
            ids.append(token)
        return Text(tuple(ids), (len(ids) - 1) / (perf_counter() - first_s))


async def over_network(client: AsyncClient, model: ModelId, prompt: str, tokens: int) -> Text:
    """Greedy, billed, by the router's clock: its decode time includes sending every token to the client. Raises the
    typed error that the request met."""
    answer = await client.generate(prompt, model=model, max_tokens=tokens)
    return Text(answer.ids, (len(answer.ids) - 1) / (answer.usage.decode_us / 1e6))
