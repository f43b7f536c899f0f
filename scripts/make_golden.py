"""Makes the golden files of tests/unit/engine/golden: tiny random Mixtral checkpoints and what transformers computes.

    python scripts/make_golden.py tests/unit/engine/golden

Needs torch, transformers and tokenizers; run it again only when a case is added. tests/parity imports CASES, build and
Reference from here and compares live. Weights are drawn wide (initializer_range 0.15, norms from 0.5 to 1.5): with the
default 0.02 the logits are near zero and prove nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM

DEMO_PROMPTS = ("Emma was", "It was a truth", '"My dear Mr. Bennet," said')
DEMO_STEPS = 24
GREEDY_STEPS = 8


@dataclass(frozen=True)
class Case:
    """One tiny model. `config` overrides the base; `prompt_tokens` is longer than a prefill chunk in one case."""

    name: str
    seed: int
    prompt_tokens: int
    config: dict[str, Any] = field(default_factory=dict)


BASE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 192,
    "initializer_range": 0.15, "bos_token_id": 1, "eos_token_id": 95, "sliding_window": None,
}  # fmt: skip
CASES = (
    Case("grouped", seed=1, prompt_tokens=24, config={
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None, "rope_theta": 1e6,
    }),
    Case("one-kv-head-tied", seed=2, prompt_tokens=150, config={
        "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True, "rope_theta": 1e4,
    }),
    Case("top-3-of-5", seed=3, prompt_tokens=20, config={
        "num_attention_heads": 2, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 3,
        "rms_norm_eps": 1e-6, "rope_theta": 5e5,
    }),
)  # fmt: skip


def build(case: Case) -> MixtralForCausalLM:
    """The case's model, random and reproducible, in float32."""
    torch.manual_seed(case.seed)
    model = MixtralForCausalLM(MixtralConfig(**{**BASE, **case.config})).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def prompt_ids(case: Case) -> list[int]:
    """A random prompt of the case."""
    ids: list[int] = np.random.default_rng(case.seed).integers(2, 90, case.prompt_tokens).tolist()
    return ids


class Reference:
    """What transformers computes."""

    def __init__(self, model: MixtralForCausalLM) -> None:
        self._model = model

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """[T, V] of a prompt, in one go."""
        return self._model(torch.tensor([ids])).logits[0].numpy()  # type: ignore[no-any-return]

    @torch.no_grad()
    def greedy(self, ids: list[int], steps: int) -> tuple[list[int], np.ndarray[Any, Any]]:
        """`steps` greedy ids (end of sequence is a token as any other) and the logits [steps, V] they were taken from,
        step by step with transformers' own cache."""
        taken: list[int] = []
        rows: list[np.ndarray[Any, Any]] = []
        output = self._model(torch.tensor([ids]), use_cache=True)
        for _ in range(steps):
            rows.append(output.logits[0, -1].numpy())
            taken.append(int(rows[-1].argmax()))
            output = self._model(torch.tensor([taken[-1:]]), past_key_values=output.past_key_values, use_cache=True)
        return taken, np.stack(rows)


def save_checkpoint(model: MixtralForCausalLM, folder: Path, **options: Any) -> None:
    """Hugging Face layout, with a tokenizer of one token a number."""
    model.save_pretrained(folder, **options)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(96)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_case(case: Case, folder: Path) -> None:
    """Checkpoint and expected.npz of one case."""
    model = build(case)
    save_checkpoint(model, folder)
    ids = prompt_ids(case)
    reference = Reference(model)
    taken, rows = reference.greedy(ids, GREEDY_STEPS)
    np.savez_compressed(
        folder / "expected.npz", ids=ids, logits=reference.logits(ids), greedy=taken, greedy_logits=rows
    )


def write_demo(folder: Path) -> None:
    """Greedy ids of the demo model: float32 by transformers. The q4 ids are Sawyer's own, of the day they were made."""
    from sawyer.engine.experts import ExpertPool
    from sawyer.engine.local import LocalModel
    from sawyer.engine.tokenizer import Tokenizer as ModelTokenizer
    from sawyer.engine.trunk import Trunk
    from sawyer.model.artifacts import Artifacts
    from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
    from sawyer.model.layout import all_experts
    from sawyer.model.split import split

    reference = Reference(MixtralForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval())
    split(demo_checkpoint(), folder / "q4", model=DEMO_MODEL, format="q4")
    artifacts = Artifacts.open(folder / "q4")
    tokenizer = ModelTokenizer(artifacts)
    model = LocalModel(Trunk(artifacts), ExpertPool(artifacts, all_experts(artifacts.layout), device="cpu"))
    prompts = []
    for prompt in DEMO_PROMPTS:
        ids = tokenizer.encode(prompt)
        f32, _ = reference.greedy(ids, DEMO_STEPS)
        prompts.append({"prompt": prompt, "ids": ids, "f32": f32, "q4": model.generate(ids, DEMO_STEPS)})
    lines = ",\n".join(json.dumps(prompt) for prompt in prompts)
    (folder / "austen-8m.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="tests/unit/engine/golden")
    out: Path = parser.parse_args().out
    for case in CASES:
        write_case(case, out / case.name)
        print(f"{case.name}: {sum(file.stat().st_size for file in (out / case.name).iterdir())} bytes")
    with tempfile.TemporaryDirectory() as scratch:
        write_demo(Path(scratch))
        (Path(scratch) / "austen-8m.json").replace(out / "austen-8m.json")
    print("demo model done")


if __name__ == "__main__":
    main()
