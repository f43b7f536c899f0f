"""Who and what belongs to the network: founding, keys and roles, models, price sheets. Not its nodes and accounts."""

from __future__ import annotations

from typing import ClassVar

from sawyer.economy.pricing import sheet_hash
from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import KeyAdded, KeyRevoked, ModelPublished, NetworkFounded, PricingPublished
from sawyer.schemas.signed import Signature, Signed

NETWORK: str = "network"
PRICING: str = "pricing"


class NetworkRow(Row):
    """As it was founded: `operator` and `ledger_vkey` are the first keys, which everything later follows from."""

    network: str
    operator: str
    ledger_vkey: str
    mode: str
    founded_ms: int


class KeyRow(Row):
    """Key `key:<public key>`: what the operator gave it."""

    role: str
    name: str
    valid_from_seq: int


class RevokedRow(Row):
    """Key `revoked:<public key>`: since entry `seq` it may sign nothing. `since_ms`: what it signed from then on is in
    question; 0 if nothing is."""

    seq: int
    since_ms: int
    reason: str


class HolderRow(Row):
    """Keys `holder:operator` and `holder:ledger`: the key that has this role now. `seq`: the entry that gave it."""

    key: str
    seq: int


class SuccessorRow(Row):
    """Key `successor:<n>`, n = 1, 2, ...: a signed `key.added.v1`, word for word, that gave the role of the operator or
    the
    ledger to a new key. Who trusts the founding keys trusts the newest by these."""

    statement: str
    by: str
    key_id: str
    sig: str


class ModelRow(Row):
    """One manifest published under a model id. Key `model:<id>` is the newest, `manifest:<id>:<sha256>` each."""

    model: str
    network: str
    manifest: str
    family: str
    format: str
    moe_layers: int
    experts: int
    top_k: int
    expert_parameters: int
    seq: int


class SheetRow(Row):
    """Key `sheet:<sha256>`. `sheet` is the canonical signed body itself, `superseded_ms` when a newer one replaced it;
    0 while it is in force."""

    sheet: str
    seq: int
    superseded_ms: int = 0


class PricingRow(Row):
    """Which sheet is the newest."""

    sheet_sha256: str


class Registry(Fold):
    """The network's members but for nodes and accounts; typed attributes beside the rows."""

    name: ClassVar[str] = "registry"
    row_types: ClassVar[dict[str, type[Row]]] = {
        NETWORK: NetworkRow, "key": KeyRow, "revoked": RevokedRow, "holder": HolderRow, "successor": SuccessorRow,
        "model": ModelRow, "manifest": ModelRow, "sheet": SheetRow, PRICING: PricingRow,
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.network: NetworkRow | None = None
        self.keys: dict[str, KeyRow] = {}
        self.revoked: dict[str, RevokedRow] = {}
        self.operator = ""
        self.ledger = ""
        """The public keys that have these roles now; "" before the founding, for the ledger until it is rotated."""
        self.successors: list[Signed[KeyAdded]] = []
        self.models: dict[str, ModelPublished] = {}
        self.manifests: dict[tuple[str, str], ModelPublished] = {}
        self.sheets: dict[str, PricingPublished] = {}
        self.pricing: PricingPublished | None = None
        self._sheet_rows: dict[str, SheetRow] = {}

    def superseded_ms(self, sheet: str) -> int:
        """When a newer price sheet replaced this one; 0 if none did, or if it was never published."""
        row = self._sheet_rows.get(sheet)
        return row.superseded_ms if row else 0

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        match entry.body:
            case NetworkFounded() as body:
                founded = NetworkRow(body.network, body.operator, body.ledger_vkey, body.mode, body.founded_ms)
                self._take(NETWORK, founded)
            case KeyAdded() as body:
                self._add_key(body, entry)
            case KeyRevoked() as body:
                self._revoke(body, entry.seq)
            case ModelPublished() as body:
                self._publish_model(body, entry.seq)
            case PricingPublished() as body:
                self._publish_sheet(body, entry)

    def restore(self, key: str, row: Row) -> None:
        """See Fold.restore. Rows come in order of their keys: `pricing` before the sheets."""
        super().restore(key, row)
        self._know(key, row)

    def _take(self, key: str, row: Row) -> None:
        self.put(key, row)
        self._know(key, row)

    def _know(self, key: str, row: Row) -> None:
        """Set the typed attributes that a row stands for."""
        word, _, name = key.partition(":")
        match row:
            case NetworkRow():
                self.network = row
                self.operator = self.operator or row.operator
            case KeyRow():
                self.keys[name] = row
            case RevokedRow():
                self.revoked[name] = row
            case HolderRow() if name == "operator":
                self.operator = row.key
            case HolderRow():
                self.ledger = row.key
            case SuccessorRow():
                self.successors.append(_successor(row))
            case ModelRow():
                model = _model(row)
                self.manifests[row.model, row.manifest] = model
                if word == "model":
                    self.models[name] = model
            case SheetRow():
                self._sheet_rows[name] = row
                self.sheets[name] = PricingPublished.parse(row.sheet.encode())
                if self._newest_sheet() == name:
                    self.pricing = self.sheets[name]

    def _newest_sheet(self) -> str:
        row = self.rows.get(PRICING)
        return row.sheet_sha256 if isinstance(row, PricingRow) else ""

    def _add_key(self, body: KeyAdded, entry: Entry) -> None:
        self._take(f"key:{body.key}", KeyRow(body.role, body.name, entry.seq))
        if body.role in ("operator", "ledger"):
            signature = entry.signer
            row = SuccessorRow(entry.statement.decode(), signature.by, signature.key_id, signature.sig)
            self._take(f"successor:{len(self.successors) + 1:06d}", row)
            self._take(f"holder:{body.role}", HolderRow(body.key, entry.seq))

    def _revoke(self, body: KeyRevoked, seq: int) -> None:
        """The first word ends the key; later ones may only put more of it in question."""
        row = self.revoked.get(body.key) or RevokedRow(seq, 0, body.reason)
        dates = [at_ms for at_ms in (row.since_ms, body.since_ms) if at_ms]
        self._take(f"revoked:{body.key}", RevokedRow(row.seq, min(dates, default=0), row.reason))

    def _publish_model(self, body: ModelPublished, seq: int) -> None:
        row = ModelRow(
            body.model,
            body.network,
            body.manifest,
            body.family,
            body.format,
            body.moe_layers,
            body.experts,
            body.top_k,
            body.expert_parameters,
            seq,
        )
        self._take(f"manifest:{body.model}:{body.manifest}", row)
        self._take(f"model:{body.model}", row)

    def _publish_sheet(self, body: PricingPublished, entry: Entry) -> None:
        name = sheet_hash(body)
        if self.pricing is not None:
            earlier = sheet_hash(self.pricing)
            self._sheet_rows[earlier].superseded_ms = entry.ts_ms
            self.changed.add(f"sheet:{earlier}")
        self.put(PRICING, PricingRow(name))
        self._take(f"sheet:{name}", SheetRow(body.canonical().decode(), entry.seq))


def _model(row: ModelRow) -> ModelPublished:
    return ModelPublished(
        network=row.network,
        model=row.model,
        manifest=row.manifest,
        family=row.family,
        format=row.format,
        moe_layers=row.moe_layers,
        experts=row.experts,
        top_k=row.top_k,
        expert_parameters=row.expert_parameters,
    )


def _successor(row: SuccessorRow) -> Signed[KeyAdded]:
    signature = Signature(by=row.by, key_id=row.key_id, type="key.added.v1", sig=row.sig)
    return Signed(body=KeyAdded.parse(row.statement.encode()), signature=signature)
