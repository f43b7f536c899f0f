"""What the families with grouped-query attention have in common: the sections of a trunk layer, its graph, its checks,
and the tensor names that most checkpoints use. A family says in its own file what it does otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final, Literal

from sawyer.errors import UnsupportedModel
from sawyer.model.checkpoint import TensorRef
from sawyer.model.families.config import flag
from sawyer.model.families.family import ExpertRefs, Sections, TensorMap
from sawyer.model.graphs import Norm
from sawyer.model.layout import FileShape, Section, all_experts, mlp_sections
from sawyer.model.trunk_graph import LayerGraphs, TrunkLayerGraph, grouped_query_attention
from sawyer.schemas.models import ModelLayout

HEAD_DIM_STEP: Final = 16
"""The rotary kernel of ONNX Runtime's GroupQueryAttention takes head sizes in steps of this."""
MAX_HEAD_DIM: Final = 512
"""Twice that of any model. There is a table of angles for every position of the context, and manifests come from
strangers."""
OPTIONS: Final = (
    "dense_ffn", "shared_ffn", "renormalise", "gate_norm", "gate_scale", "gate_groups", "clip_qkv", "qkv_bias",
    "latent", "yarn",
)  # fmt: skip
"""The fields of a layout that a family may do without."""


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What one layer's gate and experts are called below `model.layers.L.` where the experts stand one by one. `gates`:
    the first is also the one to miss."""

    gates: tuple[str, ...] = ("mlp.gate.weight",)
    expert: str = "mlp.experts.{expert}.{matrix}.weight"
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    """Gate, up and down."""


class GroupedFamily(ABC):
    """A family whose layers are: norm, grouped-query attention with half-split RoPE, norm, then softmax gate and SwiGLU
    experts or one dense SwiGLU MLP. `options`: the fields of OPTIONS that its layouts may have."""

    name: str
    norm: Norm = "rms"
    gated_shared: bool = False
    title: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()
    head_norms: ClassVar[Literal["head", "width"] | None] = None
    """Queries and keys are normed after projection: each head by itself, or the whole row."""
    expert_names: ClassVar[ExpertNames] = ExpertNames()

    @abstractmethod
    def layout(self, config: Mapping[str, Any]) -> ModelLayout:
        """See Family."""

    def gate_power(self, layout: ModelLayout) -> float | None:
        """The p of the p-norm that the chosen gate weights are divided by; None: they stay as they are."""
        return 1.0 if layout.renormalise else None

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """See Family."""
        return flag(config, "tie_word_embeddings", default=False)

    def check(self, layout: ModelLayout) -> None:
        """See Family."""
        foreign = [name for name in OPTIONS if name not in self.options and getattr(layout, name) is not None]
        sparse, dense = layout.moe_layers, len(layout.moe_layers) < layout.layers
        facts = (
            (layout.family == self.name, f"family is {layout.family}"),
            (layout.heads % layout.kv_heads == 0, f"{layout.heads} heads over {layout.kv_heads} key-value heads"),
            (layout.head_dim % HEAD_DIM_STEP == 0, f"head size {layout.head_dim}, not a multiple of {HEAD_DIM_STEP}"),
            (layout.head_dim <= MAX_HEAD_DIM, f"head size {layout.head_dim}, more than {MAX_HEAD_DIM}"),
            (layout.top_k <= layout.experts, f"top {layout.top_k} of {layout.experts} experts"),
            (not foreign, f"it has {', '.join(foreign)}"),
            (_ascend(sparse, layout.layers), f"layers with experts {sparse[:4]}... of {layout.layers}"),
            (not dense or "dense_ffn" in self.options, "a layer without experts"),
            (not dense or layout.dense_ffn is not None, "a layer without experts, and no width for it"),
        )
        for holds, problem in facts:
            if not holds:
                raise UnsupportedModel(f"not a {self.title} that can be computed: {problem}")

    def trunk_layer(self, layout: ModelLayout, layer: int) -> FileShape:
        """See Family."""
        hidden, width, kv_width = layout.hidden, layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
        gate = (Section("gate", (layout.experts, hidden)),)
        return FileShape(
            (
                Section("input_norm", (hidden,)),
                Section("qkv", (width + 2 * kv_width, hidden)),
                *([Section("qkv_bias", (width + 2 * kv_width,))] if layout.qkv_bias else []),
                *(Section(name, (size,)) for name, size in self._head_norm_sizes(layout)),
                Section("attention_out", (hidden, width)),
                Section("post_norm", (hidden,)),
                *(gate if layer in layout.moe_layers else mlp_sections(hidden, layout.dense_ffn or 0)),
            )
        )

    def trunk_graphs(self, layout: ModelLayout, layer: int) -> LayerGraphs:
        """See Family."""
        file = self.trunk_layer(layout, layer)
        project, finish, gate = (TrunkLayerGraph(layout, file, norm=self.norm) for _ in range(3))
        qkv = project.linear(project.norm("x", "input_norm"), "qkv", "qkv_bias" if layout.qkv_bias else "")
        project.rows(*self._normed(project, layout, qkv))
        attended = finish.linear(finish.attended(), "attention_out")
        alone = None
        if layer in layout.moe_layers:
            power = self.gate_power(layout)
            finish.end_with_gate(attended, power=power)
            alone = gate.gate_part(power=power)
        else:
            finish.end_with_mlp(attended, layout.dense_ffn or 0)
        return LayerGraphs(project.part(), grouped_query_attention(layout), finish.part(), alone)

    def tensors(self, layout: ModelLayout, names: Collection[str], *, tied: bool) -> TensorMap:
        """See Family."""
        ignored = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(layout.layers)}
        if tied:
            ignored.add("lm_head.weight")
        return TensorMap(
            embed=TensorRef.all_of("model.embed_tokens.weight", layout.vocab, layout.hidden),
            norm=TensorRef.all_of("model.norm.weight", layout.hidden),
            head=None if tied else TensorRef.all_of("lm_head.weight", layout.vocab, layout.hidden),
            layers=tuple(self._layer(layout, layer, names) for layer in range(layout.layers)),
            experts={
                (layer, expert): expert_refs(layout, layer, expert, names, self.expert_names)
                for layer, expert in all_experts(layout)
            },
            ignored=frozenset(ignored),
            shared={} if layout.shared_ffn is None else {layer: _shared(layout, layer) for layer in layout.moe_layers},
        )

    def _head_norm_sizes(self, layout: ModelLayout) -> tuple[tuple[str, int], ...]:
        if self.head_norms is None:
            return ()
        heads = (layout.heads, layout.kv_heads) if self.head_norms == "width" else (1, 1)
        return tuple((name, count * layout.head_dim) for name, count in zip(("q_norm", "k_norm"), heads, strict=True))

    def _normed(self, graph: TrunkLayerGraph, layout: ModelLayout, qkv: str) -> list[str]:
        """Queries, keys and values as attention takes them, in one piece if nothing is done to one of them alone."""
        if self.head_norms is None:
            return [graph.clip(qkv)]
        queries, keys, values = graph.split_qkv(qkv)
        if self.head_norms == "head":
            queries = graph.head_norm(queries, "q_norm", layout.heads)
            keys = graph.head_norm(keys, "k_norm", layout.kv_heads)
        else:
            queries, keys = graph.norm(queries, "q_norm"), graph.norm(keys, "k_norm")
        return [graph.clip(part) for part in (queries, keys, values)]

    def _layer(self, layout: ModelLayout, layer: int, names: Collection[str]) -> Sections:
        prefix, hidden = f"model.layers.{layer}.", layout.hidden
        width, kv_width = layout.heads * layout.head_dim, layout.kv_heads * layout.head_dim
        parts = (("q", width), ("k", kv_width), ("v", kv_width))
        attention = f"{prefix}self_attn."
        sections = {
            "input_norm": (TensorRef.all_of(f"{prefix}input_layernorm.weight", hidden),),
            "qkv": tuple(TensorRef.all_of(f"{attention}{part}_proj.weight", rows, hidden) for part, rows in parts),
            "attention_out": (TensorRef.all_of(f"{attention}o_proj.weight", hidden, width),),
            "post_norm": (TensorRef.all_of(f"{prefix}post_attention_layernorm.weight", hidden),),
        }
        if layout.qkv_bias:
            sections["qkv_bias"] = tuple(TensorRef.all_of(f"{attention}{part}_proj.bias", rows) for part, rows in parts)
        for name, size in self._head_norm_sizes(layout):
            sections[name] = (TensorRef.all_of(f"{attention}{name}.weight", size),)
        if layer not in layout.moe_layers:
            return {**sections, **mlp_refs(f"{prefix}mlp.", hidden, layout.dense_ffn or 0)}
        first, *others = (f"{prefix}{gate}" for gate in self.expert_names.gates)
        gate = next((other for other in others if other in names), first)
        return {**sections, "gate": (TensorRef.all_of(gate, layout.experts, hidden),)}


def expert_refs(layout: ModelLayout, layer: int, expert: int, names: Collection[str], own: ExpertNames) -> ExpertRefs:
    """One expert under its `own` names, or in the fused tensors of newer tools if the checkpoint's `names` say so."""
    prefix, hidden, ffn = f"model.layers.{layer}.", layout.hidden, layout.ffn
    fused = f"{prefix}mlp.experts.gate_up_proj"
    if fused in names:
        whole, part = (layout.experts, 2 * ffn, hidden), ffn * hidden
        down = f"{prefix}mlp.experts.down_proj"
        return ExpertRefs(
            gate=TensorRef(fused, whole, (ffn, hidden), 2 * expert * part),
            up=TensorRef(fused, whole, (ffn, hidden), (2 * expert + 1) * part),
            down=TensorRef(down, (layout.experts, hidden, ffn), (hidden, ffn), expert * part),
        )
    gate, up, down = (prefix + own.expert.format(expert=expert, matrix=matrix) for matrix in own.matrices)
    return ExpertRefs(
        gate=TensorRef.all_of(gate, ffn, hidden),
        up=TensorRef.all_of(up, ffn, hidden),
        down=TensorRef.all_of(down, hidden, ffn),
    )


def mlp_refs(prefix: str, hidden: int, width: int) -> dict[str, tuple[TensorRef, ...]]:
    """A SwiGLU MLP under the names of most checkpoints: the sections of `layout.mlp_sections`."""
    return {
        "gate_up": tuple(TensorRef.all_of(f"{prefix}{part}_proj.weight", width, hidden) for part in ("gate", "up")),
        "down": (TensorRef.all_of(f"{prefix}down_proj.weight", hidden, width),),
    }


def _shared(layout: ModelLayout, layer: int) -> Sections:
    """The expert that every token passes, and its own gate."""
    prefix = f"model.layers.{layer}.mlp.shared_expert"
    return {
        **mlp_refs(f"{prefix}.", layout.hidden, layout.shared_ffn or 0),
        "shared_gate": (TensorRef.all_of(f"{prefix}_gate.weight", 1, layout.hidden),),
    }


def _ascend(numbers: tuple[int, ...], end: int) -> bool:
    return numbers[-1] < end and all(first < second for first, second in pairwise(numbers))
