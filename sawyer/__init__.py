"""Sawyer: volunteer Mixture-of-Experts inference. This is the public door; everything else may move.

Names are loaded when they are first used, so that `import sawyer` needs neither NATS nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sawyer.client.aio import AsyncClient
    from sawyer.client.stream import Generation, TextStream
    from sawyer.errors import (
        AlreadyCompleted,
        BudgetTooSmall,
        ExpertUnavailable,
        RefusedError,
        SawyerError,
        UnreachableError,
        UsageError,
        VerificationError,
    )
    from sawyer.identity.keys import Key
    from sawyer.schemas.messages import BalanceReply, Usage

__all__ = [
    "AlreadyCompleted",
    "AsyncClient",
    "BalanceReply",
    "BudgetTooSmall",
    "ExpertUnavailable",
    "Generation",
    "Key",
    "RefusedError",
    "SawyerError",
    "TextStream",
    "UnreachableError",
    "Usage",
    "UsageError",
    "VerificationError",
    "__version__",
]

__version__ = importlib.metadata.version("sawyer")

_HOME_OF = {
    "AsyncClient": "sawyer.client.aio",
    "Generation": "sawyer.client.stream",
    "TextStream": "sawyer.client.stream",
    "Key": "sawyer.identity.keys",
    "BalanceReply": "sawyer.schemas.messages",
    "Usage": "sawyer.schemas.messages",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sawyer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF.get(name, "sawyer.errors")), name)
