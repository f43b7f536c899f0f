"""Makes the golden files of tests/unit/engine/golden: tiny random checkpoints and what transformers computes.

    python scripts/make_golden.py tests/unit/engine/golden             every case, and the demo model
    python scripts/make_golden.py tests/unit/engine/golden dbrx olmoe  the cases of these names alone

Needs torch, transformers and tokenizers; run it again only when a case is added. tests/parity imports CASES, build and
Reference from here and compares live. A family: its base configuration in BASES, and cases that cover its options.
Weights are drawn wide (initializer_range 0.15, norms from 0.5 to 1.5, biases from -0.5 to 0.5): with the default 0.02
the logits are near zero and prove nothing. Seeds are such that greedy decoding does not repeat one token.
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
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DEMO_PROMPTS = ("Emma was", "It was a truth", '"My dear Mr. Bennet," said')
DEMO_STEPS = 24
GREEDY_STEPS = 8


@dataclass(frozen=True)
class Case:
    """One tiny model. `config` overrides the base of its family; `prompt_tokens` is longer than a prefill chunk in one
    case or two."""

    name: str
    seed: int
    prompt_tokens: int
    config: dict[str, Any] = field(default_factory=dict)
    family: str = "mixtral"


COMMON: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_experts_per_tok": 2, "max_position_embeddings": 192, "initializer_range": 0.15, "bos_token_id": 1,
    "eos_token_id": 95,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "mixtral": {
        **COMMON, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4,
        "sliding_window": None,
    },
    "qwen2_moe": {
        **COMMON, "intermediate_size": 24, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 20,
        "num_experts": 3,
    },
    "qwen3_moe": {**COMMON, "intermediate_size": 48, "moe_intermediate_size": 16, "num_experts": 4, "head_dim": 16},
    "olmoe": {**COMMON, "intermediate_size": 16, "num_experts": 4, "pad_token_id": 0},
    "deepseek_v2": {
        **COMMON, "num_key_value_heads": 2, "intermediate_size": 24, "moe_intermediate_size": 12, "n_routed_experts": 4,
        "n_shared_experts": 2, "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 12, "first_k_dense_replace": 1,
    },
    "dbrx": {
        "vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 192, "initializer_range": 0.15,
        "bos_token_id": 1, "eos_token_id": 95,
    },
}  # fmt: skip
CASES: tuple[Case, ...] = (
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
    Case("qwen2-moe", family="qwen2_moe", seed=201, prompt_tokens=24, config={
        "num_hidden_layers": 3, "mlp_only_layers": [1], "rope_theta": 1e6,
    }),
    Case("qwen2-moe-renormalised", family="qwen2_moe", seed=202, prompt_tokens=20, config={
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "norm_topk_prob": True, "qkv_bias": False,
        "decoder_sparse_step": 2, "num_experts": 5, "num_experts_per_tok": 3, "tie_word_embeddings": True,
        "use_sliding_window": True, "sliding_window": 48, "rope_theta": 1e4,
    }),
    Case("qwen3-moe", family="qwen3_moe", seed=91, prompt_tokens=20, config={
        "num_attention_heads": 4, "num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": True,
        "rope_theta": 1e6,
    }),
    Case("qwen3-moe-dense-layers", family="qwen3_moe", seed=512, prompt_tokens=24, config={
        "mlp_only_layers": [0], "num_key_value_heads": 2, "head_dim": 32,
        "tie_word_embeddings": True, "rope_theta": 1e7,
    }),
    Case("olmoe", family="olmoe", seed=211, prompt_tokens=24, config={
        "num_key_value_heads": None, "num_experts": 5, "num_experts_per_tok": 3,
    }),
    Case("olmoe-clipped", family="olmoe", seed=312, prompt_tokens=20, config={
        "clip_qkv": 0.7, "norm_topk_prob": True, "tie_word_embeddings": True, "rope_theta": 5e5,
    }),
    Case("deepseek-lite", family="deepseek_v2", seed=61, prompt_tokens=134, config={
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 6.0, "original_max_position_embeddings": 32,
            "beta_fast": 2, "beta_slow": 0.5, "mscale": 0.707, "mscale_all_dim": 0.707,
        },
    }),
    Case("deepseek-lite-two-scales", family="deepseek_v2", seed=62, prompt_tokens=30, config={
        "num_attention_heads": 4, "num_key_value_heads": 4, "qk_rope_head_dim": 16, "n_shared_experts": 1,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 64,
            "mscale": 1.3, "mscale_all_dim": 0.6,
        },
    }),
    Case("deepseek-full", family="deepseek_v2", seed=63, prompt_tokens=24, config={
        "q_lora_rank": 12, "n_routed_experts": 8, "num_experts_per_tok": 3, "routed_scaling_factor": 16.0,
        "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 6.0, "original_max_position_embeddings": 32,
        },
    }),
    Case("deepseek-without-yarn", family="deepseek_v2", seed=64, prompt_tokens=20, config={
        "num_hidden_layers": 1, "first_k_dense_replace": 0, "qk_nope_head_dim": 12, "v_head_dim": 8,
        "q_lora_rank": 8, "n_routed_experts": 6, "num_experts_per_tok": 3, "rope_parameters": {"rope_theta": 1e4},
    }),
    Case("dbrx", family="dbrx", seed=251, prompt_tokens=24, config={
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 0.8, "rope_theta": 5e5},
        "ffn_config": {
            "ffn_hidden_size": 16, "moe_num_experts": 5, "moe_top_k": 3, "moe_normalize_expert_weights": 1.0,
        },
    }),
    Case("dbrx-2-norm", family="dbrx", seed=102, prompt_tokens=20, config={
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {
            "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": 2.0,
        },
    }),
    Case("dbrx-weights-as-they-are", family="dbrx", seed=63, prompt_tokens=130, config={
        "n_layers": 1, "attn_config": {"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 5e5},
        "ffn_config": {
            "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "moe_normalize_expert_weights": None,
        },
    }),
)  # fmt: skip


def build(case: Case) -> PreTrainedModel:
    """The case's model, random and reproducible, in float32."""
    config = {**BASES[case.family], **case.config}
    if case.family == "dbrx":  # transformers 5 ignores the theta of attn_config, older releases know no other
        config["rope_theta"] = config["attn_config"]["rope_theta"]
    torch.manual_seed(case.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(case.family, **config)).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name.split(".")[-2] and parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith(".bias"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def prompt_ids(case: Case) -> list[int]:
    """A random prompt of the case."""
    ids: list[int] = np.random.default_rng(case.seed).integers(2, 90, case.prompt_tokens).tolist()
    return ids


class Reference:
    """What transformers computes."""

    def __init__(self, model: PreTrainedModel) -> None:
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
            output = self._model(torch.tensor([taken[-1:]]), cache=output.past_key_values, use_cache=True)
        return taken, np.stack(rows)


def save_checkpoint(model: PreTrainedModel, folder: Path, **options: Any) -> None:
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

    reference = Reference(AutoModelForCausalLM.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval())
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
    parser.add_argument("names", nargs="*", help="cases; none: all of them, and the demo model")
    asked = parser.parse_args()
    out: Path = asked.out
    for case in CASES:
        if not asked.names or case.name in asked.names:
            write_case(case, out / case.name)
            print(f"{case.name}: {sum(file.stat().st_size for file in (out / case.name).iterdir())} bytes")
    if asked.names:
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_demo(Path(scratch))
        (Path(scratch) / "austen-8m.json").replace(out / "austen-8m.json")
    print("demo model done")


if __name__ == "__main__":
    main()
