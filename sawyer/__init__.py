"""Sawyer: volunteer Mixture-of-Experts inference. This is the public door; everything else may move, but for
`sawyer.testing`.

Names are loaded when they are first used, so that `import sawyer` needs neither NATS nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sawyer.client.aio import AsyncClient
    from sawyer.client.offer import OfferedModel
    from sawyer.client.stream import Generation, TextStream, TokenLogprob
    from sawyer.client.sync import BlockingTextStream, Client
    from sawyer.contexts import NatsTarget
    from sawyer.errors import (
        AlreadyCompleted,
        ArtifactCorrupt,
        BadSignature,
        BookCorrupt,
        BudgetTooSmall,
        Busy,
        Cancelled,
        CertificateRefused,
        ChatTemplateBroken,
        CheckpointCorrupt,
        ClockWrong,
        ConversationRefused,
        CopyDiffers,
        ExpertUnavailable,
        MalformedMessage,
        MissingExtra,
        NameTaken,
        NoAnswer,
        NobodyServes,
        NoChatTemplate,
        NoCopy,
        NoSpace,
        NoStore,
        NotAuthorised,
        NotCanonical,
        NotExtended,
        PromptEmpty,
        PromptTooLong,
        RefusedError,
        RequestConflict,
        RetiredKey,
        RolledBack,
        SawyerError,
        ServerUnreachable,
        SessionEnded,
        SplitView,
        Superseded,
        UnknownAccount,
        UnknownExpert,
        UnknownModel,
        UnknownRequest,
        UnreachableError,
        UnsupportedModel,
        UsageError,
        VerificationError,
        ViewDiffers,
        WriterFenced,
        WrongManifest,
    )
    from sawyer.identity.keys import Key
    from sawyer.schemas.messages import AccountReply, BalanceReply, Usage

__all__ = [
    "AccountReply",
    "AlreadyCompleted",
    "ArtifactCorrupt",
    "AsyncClient",
    "BadSignature",
    "BalanceReply",
    "BlockingTextStream",
    "BookCorrupt",
    "BudgetTooSmall",
    "Busy",
    "Cancelled",
    "CertificateRefused",
    "ChatTemplateBroken",
    "CheckpointCorrupt",
    "Client",
    "ClockWrong",
    "ConversationRefused",
    "CopyDiffers",
    "ExpertUnavailable",
    "Generation",
    "Key",
    "MalformedMessage",
    "MissingExtra",
    "NameTaken",
    "NatsTarget",
    "NoAnswer",
    "NoChatTemplate",
    "NoCopy",
    "NoSpace",
    "NoStore",
    "NobodyServes",
    "NotAuthorised",
    "NotCanonical",
    "NotExtended",
    "OfferedModel",
    "PromptEmpty",
    "PromptTooLong",
    "RefusedError",
    "RequestConflict",
    "RetiredKey",
    "RolledBack",
    "SawyerError",
    "ServerUnreachable",
    "SessionEnded",
    "SplitView",
    "Superseded",
    "TextStream",
    "TokenLogprob",
    "UnknownAccount",
    "UnknownExpert",
    "UnknownModel",
    "UnknownRequest",
    "UnreachableError",
    "UnsupportedModel",
    "Usage",
    "UsageError",
    "VerificationError",
    "ViewDiffers",
    "WriterFenced",
    "WrongManifest",
    "__version__",
]

__version__ = importlib.metadata.version("sawyer")

_HOME_OF = {
    "AsyncClient": "sawyer.client.aio",
    "OfferedModel": "sawyer.client.offer",
    "Generation": "sawyer.client.stream",
    "TextStream": "sawyer.client.stream",
    "TokenLogprob": "sawyer.client.stream",
    "BlockingTextStream": "sawyer.client.sync",
    "Client": "sawyer.client.sync",
    "NatsTarget": "sawyer.contexts",
    "Key": "sawyer.identity.keys",
    "AccountReply": "sawyer.schemas.messages",
    "BalanceReply": "sawyer.schemas.messages",
    "Usage": "sawyer.schemas.messages",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sawyer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF.get(name, "sawyer.errors")), name)
