"""A receipt log in a folder of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sawyer.identity.keys import Key
from sawyer.ids import NetworkId, NodeId
from sawyer.node.receipts import ReceiptLog

NETWORK = NetworkId("sawyer-net/3f9a1c22")


@pytest.fixture
def new_log(keys: dict[str, Key], tmp_path: Path) -> Callable[[], ReceiptLog]:
    """The receipt log of node-a; again: the same node after a restart."""
    return lambda: ReceiptLog(NETWORK, NodeId("node-a"), keys["node-a"], tmp_path / "state" / "node-a.json")
