"""Rules of who belongs: founding, keys and roles, models, prices, nodes, accounts, grants. Pure; part of decide."""

from __future__ import annotations

from typing import Final

from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.errors import BadSignature, NotAuthorised, RefusedError, Superseded, UnknownAccount
from sawyer.identity.keys import public_bytes
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME
from sawyer.ledger.state import State
from sawyer.schemas.base import MAX_SAFE_INTEGER
from sawyer.schemas.events import (
    AccountOpened,
    Body,
    KeyAdded,
    ModelPublished,
    NetworkFounded,
    NodeRegistered,
    PricingPublished,
    TokensGranted,
)
from sawyer.schemas.signed import Signature

MAX_GRANTED_TOKENS: Final = MAX_SAFE_INTEGER // UUSD_PER_TOKEN
"""Tokens one account may be granted in all: keeps every sum, in tokens and in uUSD, below 2^53."""


def authorise_founder(state: State, body: NetworkFounded, signer: Signature) -> None:
    """The founding entry is signed by the operator key that it names, which is the pinned one where one is pinned, and
    names the key this book is written with."""
    if not body.operator.startswith("O"):
        raise NotAuthorised("a network is founded by an operator key", hint="Operator keys start with O.")
    if state.operator and body.operator != state.operator:
        raise NotAuthorised(f"the founding names the operator {body.operator}, expected the pinned {state.operator}")
    _require_signer(signer, OPERATOR_NAME, body.operator, "the operator key that the founding names")
    if body.ledger_vkey != state.ledger_vkey:
        raise NotAuthorised(f"the founding names the ledger key {body.ledger_vkey}, this book has {state.ledger_vkey}")
    if Verifier.parse(body.ledger_vkey).name != body.network:
        raise NotAuthorised("the ledger key's name must be the network's")


def authorise_operator(state: State, signer: Signature) -> None:
    """Only the operator key that the founding names."""
    network = state.registry.network
    operator = network.operator if network else ""
    _require_signer(signer, OPERATOR_NAME, operator, "the network's operator")


def authorise_ledger(state: State, signer: Signature) -> None:
    """Only the key that signs this book's checkpoints."""
    _require_signer(signer, LEDGER_NAME, Verifier.parse(state.ledger_vkey).key_id, "the ledger")


def authorise_router(state: State, signer: Signature) -> None:
    """Any key that the operator gave the role of a router, under the name it was given."""
    key = state.registry.keys.get(signer.key_id)
    if key is None or key.role != "router":
        raise NotAuthorised(
            f"{signer.key_id} is not a router's key",
            hint="The operator adds a router's key first.",
            details={"key": signer.key_id},
        )
    if key.name != signer.by:
        raise NotAuthorised(f"{signer.key_id} is the key of {key.name}, and signed as {signer.by}")


def authorise_node(state: State, body: NodeRegistered, signer: Signature) -> None:
    """Proof of possession: signed by the key it names. A node id and a key belong to one registration each."""
    _require_signer(signer, body.node, body.key, f"the key of node {body.node}")
    row = state.nodes.nodes.get(body.node)
    if row is not None and row.key != body.key:
        raise NotAuthorised(
            f"node {body.node} is registered with another key, in entry {row.seq}",
            hint="Choose another node name, or use the key it was registered with.",
            details={"entry": str(row.seq)},
        )
    other = state.nodes.by_key.get(body.key, body.node)
    if other != body.node:
        raise NotAuthorised(f"this key is registered as node {other}", hint="A node has its own key.")


def authorise_account(state: State, body: AccountOpened, signer: Signature) -> None:
    """Proof of possession: signed by the key it names. An account has one key."""
    _require_signer(signer, body.account, body.key, f"the key of account {body.account}")
    row = state.balances.account(body.account)
    if row is not None and row.key != body.key:
        raise NotAuthorised(
            f"account {body.account} is opened with another key, in entry {row.seq}",
            hint="Choose another account name, or use the key it was opened with.",
            details={"entry": str(row.seq)},
        )


def check_key(body: KeyAdded) -> None:
    """A role is never given to a key that libsodium refuses: one signature of it could fit many statements."""
    try:
        public_bytes(body.key)
    except BadSignature as error:
        raise NotAuthorised(error.message) from error


def check_grant(state: State, body: TokensGranted) -> None:
    """A grant goes to an account, runs forwards in time, and is money exactly where the network is (mode)."""
    account = state.balances.account(body.account)
    if account is None:
        raise UnknownAccount(f"no account {body.account}", details={"account": body.account})
    if body.expires_ms <= body.valid_from_ms:
        raise RefusedError("a grant must expire after it becomes valid")
    network = state.registry.network
    if network is not None and body.mode != network.mode:
        raise RefusedError(f"a {body.mode} grant in a {network.mode} network")
    if account.granted + body.tokens > MAX_GRANTED_TOKENS or body.paid_uusd > MAX_SAFE_INTEGER:
        raise RefusedError(f"an account may be granted {MAX_GRANTED_TOKENS} tokens in all")


def check_still_current(state: State, body: Body) -> None:
    """Publishing the same thing again is a repeat only while it is the newest. Raises Superseded: an acknowledgement
    would say that the network went back to it."""
    match body:
        case PricingPublished() if body != state.registry.pricing:
            raise Superseded(
                f"price sheet {body.sheet} was published before and replaced since",
                hint="Publish the same prices under a new sheet name.",
            )
        case ModelPublished() if body != state.registry.models[body.model]:
            raise Superseded(
                f"manifest {body.manifest[:16]} of model {body.model} was published before and replaced since",
                hint="Split these weights again under a new model name, and publish that.",
            )


def _require_signer(signer: Signature, name: str, key_id: str, who: str) -> None:
    if signer.key_id != key_id:
        raise NotAuthorised(
            f"signed by {signer.key_id}, expected {who} ({key_id or 'none yet'})", details={"key": signer.key_id}
        )
    if signer.by != name:
        raise NotAuthorised(f"signed as {signer.by}, expected {name}")
