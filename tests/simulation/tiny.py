"""A real model that is as small as a model can be: split and loaded once a process, whatever runs on it. Also what one
machine says to a prompt, which is what any network must say."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from sawyer.bench import synthetic
from sawyer.bench.synthetic import Shape, write_checkpoint
from sawyer.engine.answer import Sampled
from sawyer.engine.experts import EXACT, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.offload import Offload
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import all_experts
from sawyer.model.split import split
from sawyer.router.generation import Engine
from sawyer.schemas.generation import GenerateParams

MODEL: Final = ModelId("tiny")
SHAPE: Final = Shape(hidden=32, ffn=32, layers=2, experts=4, vocab=96, context=64)
WEIGHT_SCALE: Final = 0.4
"""So big that every expert matters: one that is left out, or is another's, changes the text (a test says so)."""


@dataclass(frozen=True)
class Said:
    """What one machine says: a piece of text, and the ids that are billed, at each step."""

    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    steps: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Tiny:
    """The model's files, and what was loaded of them."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(synthetic, "WEIGHT_SCALE", WEIGHT_SCALE)
            write_checkpoint(folder / "checkpoint", SHAPE)
        split(folder / "checkpoint", folder / "split", model=MODEL, format="f32")
        self.artifacts = Artifacts.open(folder / "split")
        self._engine = Engine.load(self.artifacts)
        self._engine.compute.shutdown()
        self._pools: dict[tuple[tuple[int, int], ...], ExpertPool] = {}
        self._said: dict[GenerateParams, Said] = {}

    def engine(self) -> Engine:
        """For one router: what is loaded is shared, the thread is its own."""
        return replace(self._engine, compute=Offload("trunk"))

    def pool(self, _: Artifacts, hosted: Iterable[tuple[int, int]], **__: object) -> ExpertPool:
        """In place of ExpertPool, for a node: loaded when first asked for."""
        order = tuple(hosted)
        if order not in self._pools:
            self._pools[order] = ExpertPool(self.artifacts, order, accuracy_level=EXACT, device="cpu")
        return self._pools[order]

    def said_alone(self, params: GenerateParams) -> Said:
        """By one machine, which rounds rows where the wire does."""
        if params not in self._said:
            self._said[params] = _said(list(self._answer(params, lambda pool: pool)))
        return self._said[params]

    def said_with(self, params: GenerateParams, change: Callable[[ExpertPool], ExpertPool]) -> Said:
        """By one machine whose experts are changed."""
        return _said(list(self._answer(params, change)))

    def _answer(self, params: GenerateParams, change: Callable[[ExpertPool], ExpertPool]) -> Iterable[Sampled]:
        pool = change(self.pool(self.artifacts, all_experts(self.artifacts.layout)))
        model = LocalModel(self._engine.trunk, pool, wire_dtype=np.float16)
        tokenizer = self._engine.tokenizer
        return model.answer(tokenizer.encode(params.prompt or ""), params, tokenizer)


def _said(sampled: list[Sampled]) -> Said:
    ids = tuple(each.token for each in sampled if each.billed)
    return Said(tuple(each.text for each in sampled if each.text), ids, len(sampled))


@functools.cache
def tiny() -> Tiny:
    """The one of this process. Its files are gone when the process is."""
    folder = tempfile.TemporaryDirectory(prefix="sawyer-tiny-")
    made = Tiny(Path(folder.name))
    made.folder = folder  # type: ignore[attr-defined]  # as long as the model
    return made
