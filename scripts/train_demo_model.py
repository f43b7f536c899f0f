"""Trains the demo model: a small MixtralForCausalLM on plain text, saved in Hugging Face layout.

    python scripts/train_demo_model.py austen.txt OUT --minutes 62

Needs torch and transformers; nothing of Sawyer. Keeps the checkpoint with the best validation loss, in bfloat16, and
writes tokenizer.json and training.json beside it. The shipped checkpoint came from this recipe on 2 CPU cores; the text
and its licence are described in sawyer/demo_model/README.md. Runs are bounded by time, so two runs are not bit-equal.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral import modeling_mixtral

VOCABULARY = 2048
BATCH = 16
CONTEXT = 128
VALIDATION_BATCH = 8
VALIDATION_TOKENS = 20_000
WARMUP_STEPS = 100
STEPS_BETWEEN_VALIDATIONS = 200
BALANCE_WEIGHT = 0.02
"""Weight of the loss that keeps all experts in use."""
LAST_RATE = 0.03
"""The learning rate falls along a cosine to this part of its peak."""

CONFIG = {
    "vocab_size": VOCABULARY, "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok":
    2, "max_position_embeddings": 512, "tie_word_embeddings": True, "sliding_window": None, "rope_theta": 10_000.0,
    "router_aux_loss_coef": BALANCE_WEIGHT, "output_router_logits": True, "attention_dropout": 0.1, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
PROMPTS = ("Emma was", "It was a", '"My dear Mr. Bennet," said', "She had been walking")


@dataclass(frozen=True)
class Data:
    """The text as tokens: what is trained on, what is held out, and how many characters a token is."""

    train: torch.Tensor
    held_out: torch.Tensor
    characters_per_token: float


def paragraphs(path: Path) -> list[str]:
    """Running text: chapter headings and lines in capitals left out, white space evened."""
    text = path.read_text(encoding="utf-8").replace("\r", "").replace("_", "")
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if len(part) > 40 and not part.isupper()]


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: any text has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prepare(texts: list[str], tokenizer: Tokenizer) -> Data:
    text = "\n".join(texts)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    if len(tokens) < 2 * VALIDATION_TOKENS:
        raise SystemExit(f"the text has {len(tokens)} tokens; at least {2 * VALIDATION_TOKENS} are needed")
    return Data(tokens[:-VALIDATION_TOKENS], tokens[-VALIDATION_TOKENS:], len(text) / len(tokens))


@contextmanager
def fast_experts() -> Iterator[None]:
    """While training: experts on contiguous rows, bfloat16 matmuls. 2-3 times faster on a CPU than the eager loop."""
    eager = modeling_mixtral.MixtralExperts.forward
    modeling_mixtral.MixtralExperts.forward = _sorted_experts
    try:
        yield
    finally:
        modeling_mixtral.MixtralExperts.forward = eager


def _sorted_experts(self: Any, hidden: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    flat = index.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=self.num_experts).tolist()
    rows = torch.div(order, index.shape[1], rounding_mode="floor")
    outputs = []
    for expert, part in enumerate(hidden[rows].split(counts)):
        if counts[expert]:
            gate, up = F.linear(part.bfloat16(), self.gate_up_proj[expert].bfloat16()).chunk(2, -1)
            outputs.append(F.linear(F.silu(gate) * up, self.down_proj[expert].bfloat16()))
    weighted = torch.cat(outputs) * weight.reshape(-1)[order, None].bfloat16()
    return torch.zeros_like(hidden, dtype=torch.float32).index_add_(0, rows, weighted.float()).to(hidden.dtype)


class Training:
    """One run: the model, its optimizer, and the best checkpoint so far in `out`."""

    def __init__(self, data: Data, out: Path, seconds: float, peak_rate: float) -> None:
        config = MixtralConfig(**CONFIG)
        config._experts_implementation = "eager"
        self.model = MixtralForCausalLM(config)
        self.best = math.inf
        self.steps = 0
        self._data, self._out, self._seconds, self._peak_rate = data, out, seconds, peak_rate
        self._average: float | None = None
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=peak_rate, betas=(0.9, 0.95), weight_decay=0.1)
        self._random = torch.Generator().manual_seed(1)

    @property
    def epochs(self) -> float:
        return self.steps * BATCH * CONTEXT / len(self._data.train)

    def run(self) -> None:
        """Trains until the time is over."""
        begin = time.monotonic()
        self.model.train()
        while (elapsed := time.monotonic() - begin) < self._seconds:
            self._step(elapsed / self._seconds)
            if self.steps % STEPS_BETWEEN_VALIDATIONS == 0:
                loss = self._keep_if_best()
                print(
                    f"{elapsed:6.0f}s step {self.steps} epochs {self.epochs:.2f} "
                    f"train {self._average:.3f} validation {loss:.3f}",
                    flush=True,
                )
        self._keep_if_best()

    def _step(self, done: float) -> None:
        warm = min(1.0, (self.steps + 1) / WARMUP_STEPS)
        cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self._optimizer.param_groups:
            group["lr"] = self._peak_rate * warm * cosine
        train = self._data.train
        starts = torch.randint(0, len(train) - CONTEXT, (BATCH,), generator=self._random)
        rows = torch.stack([train[start : start + CONTEXT] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(rows, labels=rows, output_router_logits=True)
        self._optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.steps += 1
        loss = (output.loss - BALANCE_WEIGHT * output.aux_loss).item()
        self._average = loss if self._average is None else 0.98 * self._average + 0.02 * loss

    def _keep_if_best(self) -> float:
        loss = self._validation_loss()
        if loss < self.best:
            self.best = loss
            self.model.save_pretrained(self._out)
        return loss

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Nats a token."""
        self.model.eval()
        losses, held_out, size = [], self._data.held_out, CONTEXT * VALIDATION_BATCH
        for start in range(0, len(held_out) - size, size):
            rows = held_out[start : start + size].view(VALIDATION_BATCH, CONTEXT)
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(self.model(rows, labels=rows, output_router_logits=False).loss.item())
        self.model.train()
        return sum(losses) / len(losses)


def store_as_bfloat16(out: Path) -> None:
    """Half the size, and the same validation loss to four digits."""
    MixtralForCausalLM.from_pretrained(out, dtype=torch.bfloat16).save_pretrained(out)


def show_samples(out: Path, tokenizer: Tokenizer) -> None:
    """What the kept checkpoint writes."""
    model = MixtralForCausalLM.from_pretrained(out).eval()
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        sample = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=90, do_sample=True, temperature=0.7, top_k=40,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        print(">>", tokenizer.decode(sample[0].tolist()), "\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("out", type=Path, help="the folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=62)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    texts = paragraphs(arguments.text)
    tokenizer = train_tokenizer(texts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    data = prepare(texts, tokenizer)
    training = Training(data, arguments.out, arguments.minutes * 60, arguments.learning_rate)
    with fast_experts():
        training.run()
    store_as_bfloat16(arguments.out)
    report = {
        "steps": training.steps,
        "epochs": training.epochs,
        "validation_nats_per_token": training.best,
        "bits_per_character": training.best / math.log(2) / data.characters_per_token,
    }
    (arguments.out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)
    show_samples(arguments.out, tokenizer)


if __name__ == "__main__":
    main()
