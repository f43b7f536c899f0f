"""What a book comes to: what is recorded beside the corpus, and must stay so for ever."""

from __future__ import annotations

from typing import Any

from corpus import cast

from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow


def folded(rows: list[StoredRow]) -> State:
    """The state after these rows; they are ours, and nothing is verified."""
    state = State(cast.NETWORK, cast.VKEYS[0], cast.OPERATOR)
    for row in rows:
        if not row.is_checkpoint:
            state.apply(decode_entry(row.state))
    return state


def recorded(rows: list[StoredRow]) -> dict[str, Any]:
    """What a book comes to: what must stay so for ever."""
    state = folded(rows)
    now_ms = state.audit.head.ts_ms
    accounts = {
        key.removeprefix("account:"): row for key, row in state.balances.rows.items() if isinstance(row, AccountRow)
    }
    return {
        "entries": state.tree.size,
        "checkpoints": sum(row.is_checkpoint for row in rows),
        "root": state.tree.root().hex(),
        "state": state.digest(),
        "views": {fold.name: fold.digest() for fold in state.folds},
        "balances": {
            name: {
                "granted": row.granted, "available": state.balances.available(name, now_ms), "held": row.held,
                "consumed": row.consumed, "expired": row.expired,
            }
            for name, row in accounts.items()
        },
        "hosts": {host: {"rows": row.rows, "work": row.work} for host, row in state.payouts.hosts.items()},
        "earned_uusd": state.payouts.earned_uusd,
        "breakage_uusd": state.payouts.breakage_uusd,
    }  # fmt: skip
