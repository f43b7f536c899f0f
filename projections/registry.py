"""Who and what belongs to the network: founding, role keys, models, price sheets. Not its nodes and accounts."""

from __future__ import annotations

from typing import ClassVar

from sawyer.economy.pricing import sheet_hash
from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import KeyAdded, ModelPublished, NetworkFounded, PricingPublished

NETWORK: str = "network"
PRICING: str = "pricing"


class NetworkRow(Row):
    network: str
    operator: str
    ledger_vkey: str
    mode: str
    founded_ms: int


class KeyRow(Row):
    role: str
    name: str
    valid_from_seq: int


class ModelRow(Row):
    """One manifest published under a model id. Key `model:<id>` is the newest, `manifest:<id>:<sha256>` each."""

    model: str
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

    def __init__(self) -> None:
        super().__init__()
        self.network: NetworkRow | None = None
        self.keys: dict[str, KeyRow] = {}
        self.models: dict[str, ModelPublished] = {}
        self.manifests: dict[tuple[str, str], ModelPublished] = {}
        self.sheets: dict[str, PricingPublished] = {}
        self.pricing: PricingPublished | None = None
        self._sheet_rows: dict[str, SheetRow] = {}

    def superseded_ms(self, sheet: str) -> int:
        """When a newer price sheet replaced this one; 0 if none did, or if it was never published."""
        row = self._sheet_rows.get(sheet)
        return row.superseded_ms if row else 0

    def apply(self, entry: Entry) -> set[str]:
        """See Fold.apply."""
        match entry.body:
            case NetworkFounded() as body:
                return self._found(body)
            case KeyAdded() as body:
                row = KeyRow(body.role, body.name, entry.seq)
                self.keys[body.key] = row
                return self._put({f"key:{body.key}": row})
            case ModelPublished() as body:
                return self._publish_model(body, entry.seq)
            case PricingPublished() as body:
                return self._publish_sheet(body, entry)
        return set()

    def _found(self, body: NetworkFounded) -> set[str]:
        self.network = NetworkRow(body.network, body.operator, body.ledger_vkey, body.mode, body.founded_ms)
        return self._put({NETWORK: self.network})

    def _publish_model(self, body: ModelPublished, seq: int) -> set[str]:
        self.models[body.model] = body
        self.manifests[body.model, body.manifest] = body
        row = ModelRow(
            body.model,
            body.manifest,
            body.family,
            body.format,
            body.moe_layers,
            body.experts,
            body.top_k,
            body.expert_parameters,
            seq,
        )
        return self._put({f"model:{body.model}": row, f"manifest:{body.model}:{body.manifest}": row})

    def _publish_sheet(self, body: PricingPublished, entry: Entry) -> set[str]:
        name = sheet_hash(body)
        changed: dict[str, Row] = {}
        if self.pricing is not None:
            earlier = sheet_hash(self.pricing)
            self._sheet_rows[earlier].superseded_ms = entry.ts_ms
            changed[f"sheet:{earlier}"] = self._sheet_rows[earlier]
        self.sheets[name] = self.pricing = body
        self._sheet_rows[name] = SheetRow(body.canonical().decode(), entry.seq)
        return self._put({**changed, f"sheet:{name}": self._sheet_rows[name], PRICING: PricingRow(name)})

    def _put(self, rows: dict[str, Row]) -> set[str]:
        self.rows.update(rows)
        return set(rows)
