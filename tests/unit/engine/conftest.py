"""Split models for engine tests: the golden checkpoints and the demo model, split once a test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from sawyer.engine.experts import EXACT, ExpertPool
from sawyer.engine.local import LocalModel
from sawyer.engine.tokenizer import Tokenizer
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.layout import all_experts
from sawyer.model.split import split
from sawyer.schemas.models import Format

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


@dataclass(frozen=True)
class Golden:
    """One golden case: its split model and what transformers computed."""

    artifacts: Artifacts
    ids: list[int]
    logits: np.ndarray[Any, Any]
    greedy: list[int]
    greedy_logits: np.ndarray[Any, Any]


@pytest.fixture(scope="session", params=CASES)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = GOLDEN / request.param
    out = tmp_path_factory.mktemp(request.param)
    split(folder, out, model=ModelId(request.param), format="f32")
    with np.load(folder / "expected.npz") as expected:
        return Golden(
            artifacts=Artifacts.open(out),
            ids=expected["ids"].tolist(),
            logits=expected["logits"],
            greedy=expected["greedy"].tolist(),
            greedy_logits=expected["greedy_logits"],
        )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Artifacts]:
    """The demo model, split into a format."""
    opened: dict[Format, Artifacts] = {}

    def in_format(format: Format) -> Artifacts:
        if format not in opened:
            out = tmp_path_factory.mktemp(f"austen-{format}")
            split(demo_checkpoint(), out, model=DEMO_MODEL, format=format)
            opened[format] = Artifacts.open(out)
        return opened[format]

    return in_format


@pytest.fixture(scope="session")
def load() -> Callable[..., LocalModel]:
    """A whole model in this process."""

    def loaded(artifacts: Artifacts, accuracy_level: int = EXACT, **options: Any) -> LocalModel:
        pool = ExpertPool(artifacts, all_experts(artifacts.layout), accuracy_level=accuracy_level, device="cpu")
        return LocalModel(Trunk(artifacts), pool, **options)

    return loaded


@pytest.fixture(scope="session")
def tokenizer(demo: Callable[[Format], Artifacts]) -> Tokenizer:
    return Tokenizer(demo("q4"))


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    """A vocabulary as Mixtral's: words with a low line for a space, and a token for each byte."""
    words = ["<unk>", "<s>", "▁the", "▁", "cat", "é", "▁你", "ing", "�"]
    vocabulary = {word: n for n, word in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    raw = RawTokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    raw.add_special_tokens(["<unk>", "<s>"])
    strip = decoders.Strip(content=" ", left=1, right=0)
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return Tokenizer.from_json(raw.to_str().encode())
