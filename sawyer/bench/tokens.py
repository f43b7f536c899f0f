"""Tokens a second: the same prompt, the same files, once with every expert in this process and once over a network."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from sawyer.client.aio import AsyncClient
from sawyer.engine.experts import FAST, ExpertPool
from sawyer.engine.local import GREEDY, LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import all_experts
from sawyer.schemas.generation import GenerateParams


@dataclass(frozen=True, slots=True)
class Text:
    """One generation: its ids, and the speed from the first token to the last."""

    ids: tuple[int, ...]
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Texts:
    """Several generations at once: the ids of each, and the tokens of all by the time from the first prompt to the last
    token."""

    ids: tuple[tuple[int, ...], ...]
    tokens_per_second: float


class Local:
    """The whole model in this process, rounding rows where the wire would: it computes what the network computes."""

    def __init__(self, artifacts: Artifacts) -> None:
        """Verifies and loads; blocks."""
        pool = ExpertPool(artifacts, all_experts(artifacts.layout), accuracy_level=FAST, device="cpu")
        self._model = LocalModel(Trunk(artifacts), pool, wire_dtype=np.float16)
        self._tokenizer = Tokenizer(artifacts)

    def generate(self, prompt: str, tokens: int, params: GenerateParams = GREEDY) -> Text:
        """Of `params` how tokens are chosen. Blocks; run it in a thread."""
        ids: list[int] = []
        first_s = 0.0
        for token in self._model.stream(self._tokenizer.encode(prompt), tokens, params):
            first_s = first_s or perf_counter()
            ids.append(token)
        return Text(tuple(ids), (len(ids) - 1) / (perf_counter() - first_s))

    def generate_many(self, prompts: Sequence[str], tokens: int) -> Texts:
        """Greedy, all step by step together: experts and matrices once for the rows of all. Blocks."""
        started = perf_counter()
        prefixes = [self._tokenizer.encode(prompt) for prompt in prompts]
        caches = [self._model.trunk.new_cache(len(ids) + tokens) for ids in prefixes]
        said = [[int(self._model.prefill(ids, cache).argmax())] for ids, cache in zip(prefixes, caches, strict=True)]
        for _ in range(tokens - 1):
            logits = self._model.steps([each[-1] for each in said], caches)
            for each, token in zip(said, logits.argmax(axis=-1).tolist(), strict=True):
                each.append(token)
        eos = set(self._model.trunk.layout.eos)
        ended = [next((at for at, token in enumerate(each) if token in eos), tokens) for each in said]
        count = sum(ended)
        texts = tuple(tuple(each[:end]) for each, end in zip(said, ended, strict=True))
        return Texts(texts, count / (perf_counter() - started))


async def many_over_network(client: AsyncClient, model: ModelId, prompts: Sequence[str], tokens: int) -> Texts:
    """Greedy, billed, all at once, by this process's clock, one token a pass. Raises the typed error that a request
    met."""
    started = perf_counter()
    asked = [client.generate(each, model=model, max_tokens=tokens, speculate=False) for each in prompts]
    answers = await asyncio.gather(*asked)
    taken_s = perf_counter() - started
    return Texts(tuple(each.ids for each in answers), sum(len(each.ids) for each in answers) / taken_s)


async def over_network(client: AsyncClient, model: ModelId, prompt: str, tokens: int) -> Text:
    """Greedy, billed, by the router's clock: its decode time includes sending every token to the client. One token a
    pass: the texts of random weights go round, and guesses would flatter. Raises the typed error that the request met.
    """
    answer = await client.generate(prompt, model=model, max_tokens=tokens, speculate=False)
    return Text(answer.ids, (len(answer.ids) - 1) / (answer.usage.decode_us / 1e6))
