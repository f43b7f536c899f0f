"""Rules of who belongs: founding, keys and roles, models, prices, nodes, accounts, grants. Pure; part of decide."""

from __future__ import annotations

from typing import Final

from sawyer.economy.periods import LONGEST_MONTH_MS
from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.economy.tiers import LIVE_PERIODS, TIERS
from sawyer.errors import BadSignature, NotAuthorised, RefusedError, Superseded, UnknownAccount
from sawyer.identity.keys import public_bytes
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow
from sawyer.projections.fold import ROWS_VERSION
from sawyer.projections.nodes import NodeRow
from sawyer.schemas.base import MAX_SAFE_INTEGER
from sawyer.schemas.events import (
    AccountOpened,
    Body,
    KeyAdded,
    KeyRevoked,
    KeyRotated,
    ModelPublished,
    NetworkFounded,
    NodeRegistered,
    PricingPublished,
    SnapshotTaken,
    SubjectErased,
    TokensExpired,
    TokensGranted,
)
from sawyer.schemas.messages import MAX_SUCCESSORS
from sawyer.schemas.signed import Signature

MAX_FORMER_KEYS: Final = 64
"""How often one node may change its key: all of them are remembered, so that nobody else takes one."""
MAX_GRANTED_TOKENS: Final = MAX_SAFE_INTEGER // UUSD_PER_TOKEN
"""Tokens one account may be granted in all: keeps every sum, in tokens and in uUSD, below 2^53."""


def authorise_founder(state: State, body: NetworkFounded, signer: Signature) -> None:
    """The founding entry is signed by the operator key that it names, which is the pinned one where one is pinned, and
    names the key this book is written with."""
    if not body.operator.startswith("O"):
        raise NotAuthorised("a network is founded by an operator key", hint="Operator keys start with O.")
    if state.operator and body.operator != state.operator:
        raise NotAuthorised(f"the founding names the operator {body.operator}, expected the pinned {state.operator}")
    _require_signer(state, signer, OPERATOR_NAME, body.operator, "the operator key that the founding names")
    if body.ledger_vkey != state.ledger_vkey:
        raise NotAuthorised(f"the founding names the ledger key {body.ledger_vkey}, this book has {state.ledger_vkey}")
    if Verifier.parse(body.ledger_vkey).name != body.network:
        raise NotAuthorised("the ledger key's name must be the network's")


def authorise_operator(state: State, signer: Signature) -> None:
    """Only the key that is the operator's at this entry."""
    _require_signer(state, signer, OPERATOR_NAME, state.registry.operator, "the network's operator")


def authorise_ledger(state: State, signer: Signature) -> None:
    """Only the key that is the ledger's at this entry."""
    _require_signer(state, signer, LEDGER_NAME, ledger_key(state), "the ledger")


def ledger_key(state: State) -> str:
    """The public key that speaks for the ledger now, and signs the checkpoints that cover later entries."""
    return state.registry.ledger or Verifier.parse(state.ledger_vkey).key_id


def authorise_revocation(state: State, body: KeyRevoked, signer: Signature) -> None:
    """The operator revokes any key, and who is known here their own; the operator's and the ledger's are replaced
    first, so that there is always one of each. Of a key that is revoked only the operator says more: since when it is
    in question. So a thief cannot settle that with a revocation of their own."""
    if body.key in (state.registry.operator, ledger_key(state)):
        raise RefusedError(
            "this key is in office: the network would be left without it",
            hint="Add its successor first; what the old key signed since may be put in question then.",
        )
    if signer.key_id != body.key:
        authorise_operator(state, signer)
        return
    refuse_revoked(state, body.key)
    if not _is_known(state, signer):
        raise NotAuthorised(f"nobody here has the key {body.key}", hint="What nobody uses needs no revocation.")


def _is_known(state: State, signer: Signature) -> bool:
    """The key of a router or a node, at any time, or now that of the account under whose name it signs."""
    key, account = signer.key_id, state.balances.account(signer.by)
    known = key in state.registry.keys or key in state.nodes.by_key
    return known or (account is not None and account.key == key)


def authorise_rotation(state: State, body: KeyRotated, attestations: tuple[Signature, ...]) -> None:
    """Signed by the key that the node or account has, and by the one it is to have, which nobody has had before."""
    old, new = attestations
    row = state.nodes.nodes.get(body.name) if body.role == "node" else state.balances.account(body.name)
    if row is None:
        raise NotAuthorised(f"there is no {body.role} {body.name}", details={body.role: body.name})
    if row.key == body.key:
        raise RefusedError(f"{body.role} {body.name} has this key already")
    _require_signer(state, old, body.name, row.key, f"the key of {body.role} {body.name}")
    _require_signer(state, new, body.name, body.key, "the new key, to prove that its holder agrees")
    if body.role == "node" and body.key in state.nodes.by_key:
        raise NotAuthorised(f"this key belongs to node {state.nodes.by_key[body.key]}", hint="A node has its own key.")
    if isinstance(row, NodeRow) and len(row.former) >= MAX_FORMER_KEYS:
        raise RefusedError(
            f"node {body.name} has changed its key {MAX_FORMER_KEYS} times", hint="Register a new node instead."
        )
    _check_participant(body.key)
    check_key(body)


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
    refuse_revoked(state, signer.key_id)


def authorise_node(state: State, body: NodeRegistered, signer: Signature) -> None:
    """Proof of possession: signed by the key it names. A node id and a key belong to one registration each."""
    _require_signer(state, signer, body.node, body.key, f"the key of node {body.node}")
    _check_participant(body.key)
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
    _require_signer(state, signer, body.account, body.key, f"the key of account {body.account}")
    _check_participant(body.key)
    row = state.balances.account(body.account)
    if row is not None and row.key != body.key:
        raise NotAuthorised(
            f"account {body.account} is opened with another key, in entry {row.seq}",
            hint="Choose another account name, or use the key it was opened with.",
            details={"entry": str(row.seq)},
        )


def _check_participant(key: str) -> None:
    """The same 32 bytes can be written as a participant's key and as an operator's: only one of them counts here."""
    if not key.startswith("U"):
        raise NotAuthorised(f"{key} is no participant's key", hint="Keys of nodes and accounts start with U.")


def check_key(body: KeyAdded | KeyRotated) -> None:
    """A role is never given to a key that libsodium refuses: one signature of it could fit many statements."""
    try:
        public_bytes(body.key)
    except BadSignature as error:
        raise NotAuthorised(error.message) from error


def check_added_key(state: State, body: KeyAdded) -> None:
    """Roles that only one may have are named by their role, and the operator's key is an operator's."""
    check_key(body)
    name = {"operator": OPERATOR_NAME, "ledger": LEDGER_NAME}.get(body.role, body.name)
    if body.name != name:
        raise RefusedError(f"the {body.role}'s key has the name {name}, got {body.name}")
    if (body.role == "operator") != body.key.startswith("O"):
        raise RefusedError(f"{body.key} is not a key for the role {body.role}", hint="Operator keys start with O.")
    if body.key in (state.registry.operator, ledger_key(state)):
        raise RefusedError(f"{body.key} is in office already")
    if body.role != "router" and len(state.registry.successors) >= MAX_SUCCESSORS:
        raise RefusedError(f"the operator's and the ledger's key were replaced {MAX_SUCCESSORS} times already")
    refuse_revoked(state, body.key)


def check_prices(body: PricingPublished) -> None:
    """One price for a model and format."""
    seen: set[tuple[str, str]] = set()
    for price in body.prices:
        if (price.model, price.format) in seen:
            raise RefusedError(f"the sheet has two prices for model {price.model} in format {price.format}")
        seen.add((price.model, price.format))


def check_grant(state: State, body: TokensGranted) -> None:
    """A grant goes to an account, runs forwards in time, and is money exactly where the network is (mode). Source of
    the
    rules: docs/token-economics.md."""
    account = state.balances.account(body.account)
    if account is None:
        raise UnknownAccount(f"no account {body.account}", details={"account": body.account})
    if not body.valid_from_ms < body.period_end_ms <= body.expires_ms:
        raise RefusedError("a grant must expire after it becomes valid, and not before its period ends")
    network = state.registry.network
    if network is not None and body.mode != network.mode:
        raise RefusedError(f"a {body.mode} grant in a {network.mode} network")
    if account.granted + body.tokens > MAX_GRANTED_TOKENS:
        raise RefusedError(f"an account may be granted {MAX_GRANTED_TOKENS} tokens in all")
    _check_sealed(account, body)
    if body.tier:
        _check_tier(state, body)


def _check_sealed(account: AccountRow, body: TokensGranted) -> None:
    if body.sealed and account.erased:
        raise RefusedError(f"account {body.account} is erased: nothing more may be sealed for it")
    if any(each.subject != body.account for each in body.sealed):
        raise RefusedError("what a grant seals is about its own account")


def _check_tier(state: State, body: TokensGranted) -> None:
    """One paid period of a tier (or the rest of one, at an upgrade): 10 uUSD a token, a month long, and spendable for a
    month more; at most two periods live at once."""
    tier = TIERS.get(body.tier)
    if tier is None:
        raise RefusedError(f"there is no tier {body.tier}", hint=f"Tiers: {', '.join(TIERS)}.")
    if body.tokens > tier.tokens or body.paid_uusd != body.tokens * UUSD_PER_TOKEN:
        raise RefusedError(
            f"tier {body.tier} grants at most {tier.tokens} tokens for {UUSD_PER_TOKEN} uUSD each, "
            f"got {body.tokens} for {body.paid_uusd}"
        )
    period_ms, rolled_ms = body.period_end_ms - body.valid_from_ms, body.expires_ms - body.period_end_ms
    if period_ms > LONGEST_MONTH_MS or not 0 < rolled_ms <= LONGEST_MONTH_MS:
        raise RefusedError("a paid period is a month at most, and what is left of it lives one month more, not longer")
    if _live_periods(state, body) > LIVE_PERIODS:
        raise RefusedError(f"at most {LIVE_PERIODS} paid periods may be live at once: roll-over does not compound")


def _live_periods(state: State, body: TokensGranted) -> int:
    """The most paid periods that are live at one moment of this grant's life: invoices may be paid in any order."""
    others = [
        bucket
        for bucket in state.balances.buckets(body.account)
        if bucket.tier and bucket.valid_from_ms < body.expires_ms and body.valid_from_ms < bucket.expires_ms
    ]
    moments = {max(body.valid_from_ms, bucket.valid_from_ms) for bucket in others} | {body.valid_from_ms}
    return max(
        len({b.period_end_ms for b in others if b.valid_from_ms <= at_ms < b.expires_ms} | {body.period_end_ms})
        for at_ms in moments
    )


def check_lapse(state: State, body: TokensExpired, now_ms: int) -> None:
    """A grant ends with exactly what is left in its bucket, not before its time."""
    row = state.balances.bucket(body.grant)
    if row is None or row.account != body.account:
        raise RefusedError(f"account {body.account} has no grant {body.grant}")
    if now_ms < row.expires_ms:
        raise RefusedError(f"grant {body.grant} runs until {row.expires_ms}, and it is {now_ms}")
    if body.tokens != row.available:
        raise RefusedError(f"grant {body.grant} has {row.available} tokens left, not {body.tokens}")


def check_snapshot(state: State, body: SnapshotTaken) -> None:
    """The ledger may commit only to what its book comes to."""
    if body.size != state.tree.size:
        raise RefusedError(f"a snapshot of {body.size} entries, and the book has {state.tree.size}")
    if body.rows != ROWS_VERSION:
        return  # of another Sawyer's rows: only that can tell, and no writer of ours starts from it
    digest = state.digest()
    if body.digest != digest:
        raise RefusedError(f"the entries come to {digest}, the snapshot says {body.digest}")


def check_erasure(state: State, body: SubjectErased) -> None:
    """Only an account that is there can be erased."""
    if state.balances.account(body.subject) is None:
        raise UnknownAccount(f"no account {body.subject}", details={"account": body.subject})


def check_still_current(state: State, body: Body) -> None:
    """Saying the same thing again is a repeat only while it is the newest of its kind. Raises Superseded: an
    acknowledgement would say that the network went back to it. Raises NotAuthorised for a key that was revoked."""
    match body:
        case NodeRegistered() | AccountOpened() | KeyRotated():
            _check_still_key(body, state)
        case KeyAdded(role="router"):
            refuse_revoked(state, body.key)
        case KeyAdded() if body.key not in (state.registry.operator, ledger_key(state)):
            raise Superseded(
                f"{body.key} had the role {body.role}, and another key has it now",
                hint="Give the role to a key that never had it.",
            )
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


def _check_still_key(body: NodeRegistered | AccountOpened | KeyRotated, state: State) -> None:
    """The key that a node or an account took is still the one it has."""
    role, name = _role_and_name(body)
    row = state.nodes.nodes.get(name) if role == "node" else state.balances.account(name)
    if row is not None and row.key != body.key:
        raise Superseded(
            f"{role} {name} had the key {body.key}, and has {row.key} by now",
            hint="Use the key that it has now.",
            details={"key": row.key},
        )
    refuse_revoked(state, body.key)


def _role_and_name(body: NodeRegistered | AccountOpened | KeyRotated) -> tuple[str, str]:
    match body:
        case NodeRegistered():
            return "node", body.node
        case AccountOpened():
            return "account", body.account
        case KeyRotated():
            return body.role, body.name


def refuse_revoked(state: State, key: str) -> None:
    """Raises NotAuthorised if this key may not sign any more."""
    if key in state.registry.revoked:
        raise _revoked(state, key)


def _revoked(state: State, key: str) -> NotAuthorised:
    row = state.registry.revoked[key]
    return NotAuthorised(
        f"{key} was revoked in entry {row.seq} ({row.reason})",
        hint="Use the key that replaced it.",
        details={"entry": str(row.seq), "key": key},
    )


def _require_signer(state: State, signer: Signature, name: str, key_id: str, who: str) -> None:
    if signer.key_id != key_id:
        raise NotAuthorised(
            f"signed by {signer.key_id}, expected {who} ({key_id or 'none yet'})", details={"key": signer.key_id}
        )
    if signer.by != name:
        raise NotAuthorised(f"signed as {signer.by}, expected {name}")
    refuse_revoked(state, signer.key_id)
