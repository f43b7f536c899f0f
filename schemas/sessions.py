"""Messages between a router and a client that runs the trunk itself: the prompt stays with the client, and the router
sees hidden rows, which are binary (tensors.py)."""

from __future__ import annotations

from typing import Final, Literal

from sawyer.schemas.base import Count, Hex32, Positive, Sha256, Slug, Strict
from sawyer.schemas.events import InferenceRequested
from sawyer.schemas.messages import Usage
from sawyer.schemas.signed import Signed


class SessionOpen(Strict):
    """Client -> routers of a model: hold the tokens of this order, and ask experts for me. `manifest` names the
    client's trunk. The prompt has `rows` rows, of which `input_tokens` are billed: special tokens are free, few as they
    are."""

    order: Signed[InferenceRequested]
    manifest: Sha256
    rows: Positive
    input_tokens: Positive


class SessionOpened(Strict):
    """Tokens are held. `session` is a secret: whoever knows it may use them up."""

    router: Slug
    session: Hex32
    held_tokens: Count


class SessionClose(Strict):
    """The client is done. `end_token`: the last token it sampled is one that ends a text, which is free."""

    session: Hex32
    finish: Literal["stop", "length", "cancelled"]
    end_token: bool = False


class SessionClosed(Strict):
    """The bill. `finish` is not what the client said if the router had ended the session before."""

    finish: Literal["stop", "length", "cancelled"]
    usage: Usage


MESSAGES: Final[tuple[type[Strict], ...]] = (SessionOpen, SessionOpened, SessionClose, SessionClosed)
