"""The manifest of a split model: its layout, its format, and the SHA-256 of every file."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from sawyer.schemas.base import Count, Positive, Sha256, Slug, Strict, Text

Format = Literal["f32", "q8", "q4", "f16", "gguf"]
"""`gguf` is of experts alone: each matrix as the GGUF file had it, which the layout's `codings` say."""
Coding = Literal["f32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
"""Float32, or the levels and scales of GGUF's blocks of that name."""
MANIFEST_FILE: Final = "manifest.json"
MAX_TEMPLATE_CHARS: Final = 1_000_000
MAX_CODINGS: Final = 1024
"""More layers than a message can name."""

FilePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){0,3}$")
]
"""Relative, forward slashes, no `..`, no hidden names."""


class LatentAttention(Strict):
    """Sizes of DeepSeek's multi-head latent attention: the cache holds `kv_rank` + `rope_dim` values a token, whatever
    the heads. `q_rank` is absent where queries are projected directly."""

    kv_rank: Positive
    nope_dim: Positive
    rope_dim: Positive
    value_dim: Positive
    q_rank: Positive | None = None


class Yarn(Strict):
    """RoPE stretched beyond the context it was trained for. Source: arXiv 2309.00071, as transformers reads it."""

    factor: Text
    original_context: Positive
    beta_fast: Text
    beta_slow: Text
    mscale: Text | None = None
    mscale_all_dim: Text | None = None


class GateGroups(Strict):
    """Experts in `groups` groups of equal size; a token's come from the `top` groups with the likeliest experts."""

    groups: Positive
    top: Positive


class ExpertCodings(Strict):
    """How the three matrices of a layer's experts are stored in format gguf: in one file there are often two types."""

    gate: Coding
    up: Coding
    down: Coding


class ModelLayout(Strict):
    """Shapes and constants of a decoder with MoE layers. Real numbers travel as decimal text, so that the canonical
    JSON holds no floats: `rms_eps` "1e-05", `rope_theta` "10000.0". What a family always does alike is not here; an
    option is absent where a model does without.

    `dense_ffn`: of the layers without experts. `shared_ffn`: of the expert that every token passes, in all MoE layers.
    `renormalise`: the chosen gate weights are divided by their p-norm, `gate_norm` (a family's own where absent).
    `gate_scale`: what they are multiplied with after that. `clip_qkv`: queries, keys and values are cut there.
    `codings`: one for each of `moe_layers`, of a model whose experts are in format gguf."""

    family: Slug
    vocab: Positive
    hidden: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    ffn: Positive
    experts: Positive
    top_k: Positive
    context: Positive
    moe_layers: Annotated[tuple[Count, ...], Field(min_length=1)]
    rms_eps: Text
    rope_theta: Text
    eos: tuple[Count, ...]
    bos: Count | None = None
    dense_ffn: Positive | None = None
    shared_ffn: Positive | None = None
    renormalise: bool | None = None
    gate_norm: Text | None = None
    gate_scale: Text | None = None
    gate_groups: GateGroups | None = None
    clip_qkv: Text | None = None
    qkv_bias: bool | None = None
    latent: LatentAttention | None = None
    yarn: Yarn | None = None
    codings: Annotated[tuple[ExpertCodings, ...], Field(min_length=1, max_length=MAX_CODINGS)] | None = None

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """The layers without experts."""
        sparse = frozenset(self.moe_layers)
        return tuple(layer for layer in range(self.layers) if layer not in sparse)

    @property
    def expert_parameters(self) -> int:
        """Weights of one SwiGLU expert: gate, up and down."""
        return 3 * self.hidden * self.ffn

    @property
    def rows_per_token(self) -> int:
        """Expert rows that one token costs on its way through the model."""
        return len(self.moe_layers) * self.top_k


class GenerationDefaults(Strict):
    """How a model's maker would have it sampled; what is absent was not said. `temperature_milli` 0 is greedy. As in
    messages.GenerateParams."""

    temperature_milli: Annotated[int, Field(ge=0, le=100_000)] | None = None
    top_k: Count | None = None
    top_p_milli: Annotated[int, Field(ge=1, le=1000)] | None = None
    min_p_milli: Annotated[int, Field(ge=0, le=1000)] | None = None
    repetition_penalty_milli: Annotated[int, Field(ge=100, le=10_000)] | None = None


class ChatTemplate(Strict):
    """How a model was taught to read a conversation: a Jinja template, and the special tokens that it may name, such as
    `bos_token`."""

    template: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEMPLATE_CHARS)]
    tokens: dict[Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,32}$")], Text] = Field(default_factory=dict)


class FileDigest(Strict):
    path: FilePath
    size_bytes: Count
    sha256: Sha256


class Manifest(Strict):
    """What `sawyer models split` made. `format` is that of the experts, `trunk_format` that of the trunk's matrices
    (absent: f32). `config_sha256` is the digest of the checkpoint's config.json. `generation`: how the model is best
    sampled, where its maker said so."""

    v: Literal[1]
    model: Slug
    format: Format
    layout: ModelLayout
    config_sha256: Sha256
    files: Annotated[tuple[FileDigest, ...], Field(min_length=1, max_length=1_000_000)]
    trunk_format: Format | None = None
    generation: GenerationDefaults | None = None

    @property
    def trunk(self) -> Format:
        """The format of the trunk's matrices."""
        return self.trunk_format or "f32"

    def digest(self) -> str:
        """SHA-256 of the canonical manifest: names these exact weights."""
        return hashlib.sha256(self.canonical()).hexdigest()
