"""A receipt log in a folder of the test, and the demo model split for real."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from sawyer.identity.keys import Key
from sawyer.ids import NetworkId, NodeId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.split import split
from sawyer.node.receipts import ReceiptLog
from sawyer.schemas.models import Format

NETWORK = NetworkId("sawyer-net/3f9a1c22")


@pytest.fixture
def new_log(keys: dict[str, Key], tmp_path: Path) -> Callable[[], ReceiptLog]:
    """The receipt log of node-a; again: the same node after a restart."""
    return lambda: ReceiptLog(NETWORK, NodeId("node-a"), keys["node-a"], tmp_path / "state" / "node-a.json")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Artifacts]:
    """The demo model, split into a format (once)."""

    @functools.cache
    def in_format(format: Format) -> Artifacts:
        out = tmp_path_factory.mktemp(f"austen-{format}")
        split(demo_checkpoint(), out, model=DEMO_MODEL, format=format)
        return Artifacts.open(out)

    return in_format
