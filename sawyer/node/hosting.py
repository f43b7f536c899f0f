"""Which experts a node serves, as first choice and as replica. Pure."""

from __future__ import annotations

from sawyer.errors import UsageError
from sawyer.schemas.messages import HostedLayer
from sawyer.schemas.models import ModelLayout


def share(layout: ModelLayout, part: int, of: int) -> tuple[HostedLayer, ...]:
    """Part `part` (from 0) of `of` equal shares of every MoE layer: first choice for the experts e with e mod of ==
    part, replica for those with (e + 1) mod of == part, so that any one node may vanish. Raises UsageError."""
    if not 0 <= part < of:
        raise UsageError(f"share {part}/{of} does not exist", hint="Write PART/OF with 0 <= PART < OF, such as 0/2.")
    first = tuple(expert for expert in range(layout.experts) if expert % of == part)
    replica = tuple(expert for expert in range(layout.experts) if (expert + 1) % of == part and of > 1)
    return tuple(HostedLayer(layer=layer, first=first, replica=replica) for layer in layout.moe_layers)


def parse_share(text: str) -> tuple[int, int]:
    """`0/2` -> (0, 2). Raises UsageError."""
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal()):
        raise UsageError(f"{text!r} is not a share", hint="Write PART/OF, such as 0/2.")
    return int(part), int(of)


def pairs(layers: tuple[HostedLayer, ...]) -> list[tuple[int, int]]:
    """Every (layer, expert) that is served, first choice or replica, once."""
    return [(each.layer, expert) for each in layers for expert in sorted({*each.first, *each.replica})]
