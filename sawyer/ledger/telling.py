"""Rows of the projections as they are told to those who ask. Pure."""

from __future__ import annotations

from sawyer.ids import NetworkId
from sawyer.projections.balances import BucketRow
from sawyer.projections.fold import Entry
from sawyer.projections.nodes import NodeRow
from sawyer.schemas.events import NodeRegistered
from sawyer.schemas.messages import AccountBucket, EntryRef


def registered(network: NetworkId, node: str, row: NodeRow) -> NodeRegistered:
    """A node, as it registered, with its key of now."""
    return NodeRegistered(
        network=network, node=node, host=row.host, key=row.key, device=row.device, memory_mb=row.memory_mb,
        promised_us=row.promised_us,
    )  # fmt: skip


def bucket(row: BucketRow) -> AccountBucket:
    """What is left of a grant."""
    return AccountBucket(
        grant=row.grant,
        tier=row.tier,
        granted=row.tokens,
        available=row.available,
        held=row.held,
        consumed=row.consumed,
        expired=row.expired,
        valid_from_ms=row.valid_from_ms,
        expires_ms=row.expires_ms,
        seq=row.seq,
    )


def ref(entry: Entry) -> EntryRef:
    """Where an entry stands."""
    return EntryRef(seq=entry.seq, leaf=entry.leaf, kind=entry.kind, ts_ms=entry.ts_ms, decided=entry.decided)
