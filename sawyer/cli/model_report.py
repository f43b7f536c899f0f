"""How models are shown: a table of all, one of the catalogue, a page of one, and all of them as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sawyer.cli import output
from sawyer.cli.model_facts import FORMATS, ModelFacts, facts_of
from sawyer.cli.model_here import Local
from sawyer.cli.model_list import KnownModel
from sawyer.cli.sampling import described
from sawyer.model.catalog import catalogue_model, demo_checkpoint
from sawyer.model.checkpoint import Checkpoint
from sawyer.model.families import family_of
from sawyer.model.layout import CHAT_FILE, head_file
from sawyer.schemas.events import ModelPublished
from sawyer.schemas.models import Format, Manifest, ModelLayout

DEFAULT_FORMAT: Format = "q4"


def show_table(rows: Sequence[KnownModel]) -> None:
    """All of them, one a line."""
    columns = ("model", "format", "network", "price", "here", "size", "package", "manifest")
    output.table(columns, [_cells(row) for row in rows], numeric=("price", "size"))


def show_catalogue(rows: Sequence[KnownModel]) -> None:
    """The public models, smallest first, and what each would be as q4, trunk and experts."""
    shapes = [(row.model, shape) for row in rows if (shape := shape_of(row, None)) is not None]
    cells = [
        (
            model,
            layout.family,
            billions(facts.parameters),
            billions(facts.active_parameters),
            f"{layout.top_k} of {layout.experts}",
            size_text(facts.sizes["q4"].model_bytes),
            facts.round_trips,
        )
        for model, (layout, facts) in sorted(shapes, key=lambda each: each[1][1].parameters)
    ]
    columns = ("model", "family", "parameters", "active", "experts", "q4 size", "trips")
    output.table(columns, cells, numeric=("parameters", "active", "experts", "q4 size", "trips"))


def row_document(row: KnownModel) -> dict[str, object]:
    """One line of the table, for programs."""
    local = row.local
    return {
        "model": row.model,
        "format": row.format or None,
        "manifest": row.digest or None,
        "published": row.published is not None,
        "price": {"input": str(row.price.input), "output": str(row.price.output)} if row.price else None,
        "folder": str(local.folder) if local else None,
        "size_bytes": local.size_bytes if local else None,
        "missing_files": local.missing if local else None,
        "pulled": local.pulled if local else None,
        "offered": row.offered,
        "in_package": row.in_package,
        "hub_id": row.hub_id or None,
    }


def shape_of(row: KnownModel, format: Format | None) -> tuple[ModelLayout, ModelFacts] | None:
    """Layout and what follows from it: of the split model here, else of the config in the package, as it would be in
    this format; None where only the network has it, or has another model under that name."""
    if row.local is not None:
        manifest = row.local.manifest
        tied = head_file(manifest.trunk) not in {file.path for file in manifest.files}
        return manifest.layout, facts_of(manifest.layout, manifest.format, manifest.trunk, tied=tied)
    config = _config_of(row)
    if config is None:
        return None
    family = family_of(config)
    layout = family.layout(config)
    if row.published is not None and not _is_of(layout, row.published):
        return None
    stored = next((each for each in FORMATS if each == row.format), format or DEFAULT_FORMAT)
    return layout, facts_of(layout, stored, tied=family.is_tied(config))


def shape_document(shape: tuple[ModelLayout, ModelFacts] | None) -> dict[str, object]:
    """Layout and facts, for programs."""
    if shape is None:
        return {"layout": None, "facts": None}
    return {"layout": shape[0].model_dump(mode="json"), "facts": asdict(shape[1])}


def show_page(row: KnownModel, shape: tuple[ModelLayout, ModelFacts] | None) -> None:
    """Everything of one model."""
    pairs = [("model", row.model)]
    if row.hub_id:
        pairs.append(("config of", row.hub_id))
    pairs += [("manifest", row.digest or "none yet: it is not split"), ("where", _where(row))]
    if row.price is not None:
        pairs.append(("price", f"{row.price}, in budget tokens a text token"))
    if shape is not None:
        pairs += _shape_lines(*shape)
    elif row.published is not None:
        told = row.published
        pairs += [
            ("family", f"{told.family}, {told.format}"),
            ("experts", f"{told.experts} in each of {told.moe_layers} MoE layers, top {told.top_k}"),
            ("an expert", f"{told.expert_parameters:,} parameters"),
            ("a token", f"{told.moe_layers} round trips, {told.moe_layers * told.top_k} expert rows"),
        ]
    if row.local is not None and shape is not None:
        pairs += [*_use_lines(row.local), ("files", _files(row.local.manifest, shape[1]))]
    for name, value in pairs:
        output.line(f"{name:<11} {value}")
    if shape is not None:
        _show_sizes(shape[1])
        _show_speeds(shape[1])


def _use_lines(local: Local) -> list[tuple[str, str]]:
    """How it is best spoken with."""
    talks = any(file.path == CHAT_FILE for file in local.manifest.files)
    advice = described(local.manifest.generation)
    lines = [("chat", "answers in turns (chat template)" if talks else "continues text (no chat template)")]
    return [*lines, ("sampling", f"{advice} (its maker's)")] if advice else lines


def _config_of(row: KnownModel) -> Mapping[str, Any] | None:
    """The config that the package has of it, if any."""
    if row.in_package:
        return Checkpoint.open(demo_checkpoint()).config
    public = catalogue_model(row.model)
    return None if public is None else public.config


def _is_of(layout: ModelLayout, told: ModelPublished) -> bool:
    shape = (layout.family, len(layout.moe_layers), layout.experts, layout.top_k, layout.expert_parameters)
    return shape == (told.family, told.moe_layers, told.experts, told.top_k, told.expert_parameters)


def _shape_lines(layout: ModelLayout, facts: ModelFacts) -> list[tuple[str, str]]:
    nodes = f"{layout.top_k} nodes" if layout.top_k > 1 else "a node"
    lines = [
        ("family", layout.family),
        ("layers", f"{layout.layers}; {len(layout.moe_layers)} of them with {layout.experts} experts, top "
                   f"{layout.top_k}"),
        ("sizes", f"hidden {layout.hidden:,}, ffn {layout.ffn:,}, vocabulary {layout.vocab:,}, context "
                  f"{layout.context:,}"),
        ("attention", _attention(layout)),
        ("beside", _beside(layout)),
        ("parameters", f"{facts.parameters:,}; {facts.active_parameters:,} work on a token"),
        ("", f"trunk {facts.trunk_parameters:,}, an expert {facts.expert_parameters:,}"),
        ("a token", f"{facts.round_trips} round trips, {facts.rows_per_token} expert rows; bytes on the wire:"),
        ("", f"{facts.wire_bytes_least:,} from one node a layer, {facts.wire_bytes_most:,} from {nodes}"),
    ]  # fmt: skip
    return [(name, value) for name, value in lines if value]


def _attention(layout: ModelLayout) -> str:
    latent = layout.latent
    if latent is None:
        return f"{layout.heads} heads ({layout.kv_heads} for keys and values) of {layout.head_dim}"
    cached = latent.kv_rank + latent.rope_dim
    return f"{layout.heads} heads of {layout.head_dim}, latent: {cached} cached values a token and layer"


def _beside(layout: ModelLayout) -> str:
    """What the trunk computes that other models leave to experts, or do without."""
    parts = [f"a shared expert of ffn {layout.shared_ffn:,}"] if layout.shared_ffn else []
    dense = len(layout.dense_layers)
    if layout.dense_ffn and dense:
        parts.append(f"{dense} layer{'s' if dense > 1 else ''} without experts, of ffn {layout.dense_ffn:,}")
    return "; ".join(parts)


def _files(manifest: Manifest, facts: ModelFacts) -> str:
    return (
        f"trunk {size_text(facts.trunk_bytes)} in {manifest.trunk}, experts {size_text(facts.experts_bytes)} in "
        f"{manifest.format}, each {size_text(facts.expert_bytes)}"
    )


def _show_sizes(facts: ModelFacts) -> None:
    output.heading("Sizes: a router holds the trunk, a node one expert or more")
    columns = ("format", "trunk", "an expert", f"in {facts.round_trips} layers", "all experts", "together")
    sizes = [
        (each.trunk_bytes, each.expert_bytes, each.expert_of_all_layers_bytes, each.experts_bytes, each.model_bytes)
        for each in facts.sizes.values()
    ]
    rows = [(format, *map(size_text, row)) for format, row in zip(facts.sizes, sizes, strict=True)]
    output.table(columns, rows, numeric=columns[1:])


def _show_speeds(facts: ModelFacts) -> None:
    output.heading(f"Tokens/s at most, one after the other: 1 / ({facts.round_trips} x round trip)")
    columns = ("round trip", *(f"{trip_ms} ms" for trip_ms in facts.tokens_per_s))
    speeds = [f"{speed:.3g}" for speed in facts.tokens_per_s.values()]
    output.table(columns, [("tokens/s", *speeds)], numeric=columns[1:])


def _cells(row: KnownModel) -> tuple[object, ...]:
    return (
        row.model,
        row.format or "-",
        ("files" if row.offered else "published") if row.published else "-",
        row.price or "-",
        _state(row.local) if row.local else "-",
        size_text(row.local.size_bytes) if row.local else "-",
        "yes" if row.in_package else "-",
        row.digest[:16] or "-",
    )


def _state(local: Local) -> str:
    if local.pulled:
        return f"pulled {len(local.here)} of {len(local.manifest.files)}" if local.missing else "pulled"
    return "split" if not local.missing else f"{local.missing} of {len(local.manifest.files)} files missing"


def _where(row: KnownModel) -> str:
    files = "its files to pull" if row.offered else "no files to pull"
    places = [f"published on the network in {row.format}, {files}"] if row.published else []
    if row.local is not None:
        places.append(f"{_state(row.local)} in {row.local.folder} ({size_text(row.local.size_bytes)})")
    if row.in_package:
        places.append("checkpoint in the package")
    if row.hub_id:
        places.append(f"on the hub: sawyer models split {row.hub_id}")
    return "; ".join(places)


def size_text(size_bytes: int) -> str:
    """10.6 MB, or 29.4 GB."""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"


def billions(parameters: int) -> str:
    """46.7 B."""
    return f"{parameters / 1e9:,.1f} B"
