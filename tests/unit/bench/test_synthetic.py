"""Synthetic checkpoints are real ones: they split, load and generate."""

from __future__ import annotations

from pathlib import Path

from sawyer.bench.synthetic import Shape, prompt, write_checkpoint
from sawyer.bench.tokens import Local
from sawyer.engine.tokenizer import Tokenizer
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.split import split

SHAPE = Shape(hidden=64, ffn=96, layers=2, experts=4, vocab=64, context=64)


def made(folder: Path) -> Artifacts:
    split(write_checkpoint(folder / "checkpoint", SHAPE), folder / "split", model=ModelId("tiny"), format="q4")
    return Artifacts.open(folder / "split")


def test_checkpoint_splits_into_the_shape_that_was_asked_for(tmp_path: Path) -> None:
    layout = made(tmp_path).layout
    assert (layout.hidden, layout.ffn, layout.layers, layout.experts, layout.top_k) == (64, 96, 2, 4, 2)
    assert layout.moe_layers == (0, 1)
    assert layout.eos == ()


def test_same_shape_gives_the_same_model(tmp_path: Path) -> None:
    assert made(tmp_path / "one").digest == made(tmp_path / "two").digest


def test_prompt_has_one_token_a_word(tmp_path: Path) -> None:
    assert Tokenizer(made(tmp_path)).encode(prompt(5, first=3)) == [3, 4, 5, 6, 7]


def test_model_in_process_generates_as_many_tokens_as_asked_for(tmp_path: Path) -> None:
    local = Local(made(tmp_path))
    text = local.generate(prompt(3), 12)
    assert len(text.ids) == 12
    assert text.tokens_per_second > 0
    assert local.generate(prompt(3), 12).ids == text.ids
