"""How models are shown: a table of all, a page of one, and both as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from sawyer.cli import output
from sawyer.cli.model_facts import ModelFacts, facts_of
from sawyer.cli.model_list import KnownModel, Local
from sawyer.model.catalog import demo_checkpoint
from sawyer.model.checkpoint import Checkpoint
from sawyer.model.families import family_of
from sawyer.model.layout import HEAD_FILE
from sawyer.schemas.events import ModelPublished
from sawyer.schemas.models import Format, ModelLayout

DEFAULT_FORMAT: Format = "q4"


def show_table(rows: Sequence[KnownModel]) -> None:
    """All of them, one a line."""
    columns = ("model", "format", "network", "price", "here", "size", "package", "manifest")
    output.table(columns, [_cells(row) for row in rows], numeric=("price", "size"))


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
        "in_package": row.in_catalogue,
    }


def shape_of(row: KnownModel, format: Format | None) -> tuple[ModelLayout, ModelFacts] | None:
    """Layout and what follows from it: of the split model here, else of the package's checkpoint, as it would be in
    this format; None where only the network has it, or has another model under that name."""
    if row.local is not None:
        manifest = row.local.manifest
        tied = HEAD_FILE not in {file.path for file in manifest.files}
        return manifest.layout, facts_of(manifest.layout, manifest.format, tied=tied)
    if not row.in_catalogue:
        return None
    config = Checkpoint.open(demo_checkpoint()).config
    family = family_of(config)
    layout = family.layout(config)
    if row.published is not None and not _is_of(layout, row.published):
        return None
    return layout, facts_of(layout, format or DEFAULT_FORMAT, tied=family.is_tied(config))


def shape_document(shape: tuple[ModelLayout, ModelFacts] | None) -> dict[str, object]:
    """Layout and facts, for programs."""
    if shape is None:
        return {"layout": None, "facts": None}
    return {"layout": shape[0].model_dump(mode="json"), "facts": asdict(shape[1])}


def show_page(row: KnownModel, shape: tuple[ModelLayout, ModelFacts] | None, format: Format | None) -> None:
    """Everything of one model."""
    pairs = [("model", row.model), ("manifest", row.digest or "none yet: it is not split"), ("where", _where(row))]
    if row.price is not None:
        pairs.append(("price", f"{row.price}, in budget tokens a text token"))
    if shape is not None:
        pairs += _shape_lines(*shape, row.format or format or DEFAULT_FORMAT)
    elif row.published is not None:
        told = row.published
        pairs += [
            ("family", f"{told.family}, {told.format}"),
            ("experts", f"{told.experts} in each of {told.moe_layers} MoE layers, top {told.top_k}"),
            ("an expert", f"{told.expert_parameters:,} parameters"),
            ("a token", f"{told.moe_layers} round trips, {told.moe_layers * told.top_k} expert rows"),
        ]
    for name, value in pairs:
        output.line(f"{name:<11} {value}")


def _is_of(layout: ModelLayout, told: ModelPublished) -> bool:
    shape = (layout.family, len(layout.moe_layers), layout.experts, layout.top_k, layout.expert_parameters)
    return shape == (told.family, told.moe_layers, told.experts, told.top_k, told.expert_parameters)


def _shape_lines(layout: ModelLayout, facts: ModelFacts, format: str) -> list[tuple[str, str]]:
    nodes = f"{layout.top_k} nodes" if layout.top_k > 1 else "a node"
    return [
        ("family", f"{layout.family}, experts in {format}"),
        ("layers", f"{layout.layers}; {len(layout.moe_layers)} of them with {layout.experts} experts, top "
                   f"{layout.top_k}"),
        ("sizes", f"hidden {layout.hidden:,}, ffn {layout.ffn:,}, {layout.heads} heads ({layout.kv_heads} for keys and "
                  f"values) of {layout.head_dim}, vocabulary {layout.vocab:,}, context {layout.context:,}"),
        ("parameters", f"{facts.parameters:,}: trunk {facts.trunk_parameters:,}, an expert "
                       f"{facts.expert_parameters:,}; {facts.active_parameters:,} work on a token"),
        ("files", f"trunk {megabytes(facts.trunk_bytes)}, experts {megabytes(facts.experts_bytes)}, "
                  f"each {megabytes(facts.expert_bytes)}"),
        ("a token", f"{facts.round_trips} round trips, {facts.rows_per_token} expert rows, on the wire "
                    f"{facts.wire_bytes_least:,} bytes from one node, {facts.wire_bytes_most:,} from {nodes} a layer"),
    ]  # fmt: skip


def _cells(row: KnownModel) -> tuple[object, ...]:
    return (
        row.model,
        row.format or "-",
        "published" if row.published else "-",
        row.price or "-",
        _state(row.local) if row.local else "-",
        megabytes(row.local.size_bytes) if row.local else "-",
        "yes" if row.in_catalogue else "-",
        row.digest[:16] or "-",
    )


def _state(local: Local) -> str:
    return "split" if not local.missing else f"{local.missing} of {len(local.manifest.files)} files missing"


def _where(row: KnownModel) -> str:
    places = ["published on the network"] if row.published else []
    if row.local is not None:
        places.append(f"{_state(row.local)} in {row.local.folder} ({megabytes(row.local.size_bytes)})")
    if row.in_catalogue:
        places.append("checkpoint in the package")
    return "; ".join(places)


def megabytes(size_bytes: int) -> str:
    """10.6 MB."""
    return f"{size_bytes / 1e6:,.1f} MB"
