"""The first entries of every simulated book: the network, its router, its model and prices, accounts with budgets."""

from __future__ import annotations

from typing import Final

from simulation.parts import NETWORK, key_of, open_book
from simulation.plan import ACCOUNTS, ROUTER
from simulation.tiny import MODEL, Tiny
from virtual_time import START_MS

from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import OPERATOR_NAME, command
from sawyer.ledger.store import Store
from sawyer.schemas.events import (
    AccountOpened,
    Body,
    KeyAdded,
    ModelPrice,
    ModelPublished,
    NetworkFounded,
    PricingPublished,
    TokensGranted,
)

GRANT_MS: Final = 30 * 24 * 3600 * 1000
VKEY: Final = vkey_of(NETWORK, key_of("ledger"))


def found(store: Store, tiny: Tiny, budget_tokens: int) -> None:
    """Writes them; everybody's keys are the simulation's own."""
    book = open_book(store)
    operator = key_of("operator")
    said: list[tuple[Body, str, Key]] = [(body, OPERATOR_NAME, operator) for body in _network(tiny)]
    said += [
        (AccountOpened(network=NETWORK, account=each, key=key_of(each).id), each, key_of(each)) for each in ACCOUNTS
    ]
    said += [(_grant(each, budget_tokens), OPERATOR_NAME, operator) for each in ACCOUNTS]
    replies = book.commit([book.verify(command(*each)) for each in said], START_MS)
    assert not [reply.error for reply in replies if reply.error is not None]


def _network(tiny: Tiny) -> list[Body]:
    layout, format = tiny.artifacts.layout, tiny.artifacts.manifest.format
    price = ModelPrice(model=MODEL, format=format, price_milli=1000, quant_milli=1000)
    return [
        NetworkFounded(
            network=NETWORK, operator=key_of("operator").id, ledger_vkey=VKEY, mode="test", founded_ms=START_MS
        ),
        KeyAdded(network=NETWORK, role="router", name=ROUTER, key=key_of(ROUTER).id),
        ModelPublished(
            network=NETWORK,
            model=MODEL,
            manifest=tiny.artifacts.digest,
            family=layout.family,
            format=format,
            moe_layers=len(layout.moe_layers),
            experts=layout.experts,
            top_k=layout.top_k,
            expert_parameters=layout.expert_parameters,
        ),
        PricingPublished(
            network=NETWORK, sheet="sim", input_weight_milli=1000, output_weight_milli=1000, prices=(price,)
        ),
    ]


def _grant(account: str, tokens: int) -> TokensGranted:
    return TokensGranted(
        network=NETWORK,
        account=account,
        grant=f"{account}-1",
        tier="",
        tokens=tokens,
        valid_from_ms=START_MS,
        period_end_ms=START_MS + GRANT_MS,
        expires_ms=START_MS + GRANT_MS,
        paid_uusd=0,
        mode="test",
        sealed=(),
    )
