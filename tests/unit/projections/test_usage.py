"""What was used, by model, host and day: sums that say what the entries say, cut at midnight UTC."""

from __future__ import annotations

import pytest

from sawyer.economy.periods import DAY_MS
from sawyer.projections.usage import HostDayRow, ModelDayRow
from sawyer.schemas.events import NodeRows

MIDNIGHT_MS = 1_700_006_400_000
"""2023-11-15 00:00 UTC."""


@pytest.fixture
def late(scene, judge_of):
    """A judge of an open network, a millisecond before midnight."""
    scene.now_ms = MIDNIGHT_MS - 1
    judge = judge_of(scene)
    judge.write(*scene.opening())
    return judge


def served(judge, scene, number: int, **changes: object) -> None:
    order = scene.order(number)
    judge.write(scene.reserve(order), scene.complete(order, **changes))


def test_usage_of_a_day_is_that_of_the_entries_before_midnight_utc(late, scene) -> None:
    served(late, scene, 1)
    scene.now_ms += 1
    served(late, scene, 2, output_tokens=1)
    served(late, scene, 3, output_tokens=2)
    assert late.state.usage.rows == {
        "model:austen:2023-11-14": ModelDayRow(1, 5, 3, 8),
        "model:austen:2023-11-15": ModelDayRow(2, 10, 3, 13),
        "host:bob:2023-11-14": HostDayRow(1, 56, str(56 * 221)),
        "host:bob:2023-11-15": HostDayRow(2, 40 + 48, str(88 * 221)),
    }


def test_request_counts_on_the_day_on_which_it_ended(late, scene) -> None:
    order = scene.order()
    late.write(scene.reserve(order))
    scene.now_ms += 1
    late.write(scene.complete(order))
    assert sorted(late.state.usage.rows) == ["host:bob:2023-11-15", "model:austen:2023-11-15"]


def test_voided_and_expired_requests_use_nothing(late, scene) -> None:
    for number, end in ((1, scene.void), (2, scene.expiry)):
        order = scene.order(number)
        late.write(scene.reserve(order))
        late.write(end(order), now_ms=scene.now_ms + DAY_MS)
    assert late.state.usage.rows == {}


def test_host_with_two_nodes_in_one_request_is_counted_once_with_the_rows_of_both(judge, scene) -> None:
    judge.write(scene.node("node-c", "bob", key="mallory"))
    order = scene.order()
    receipts = (scene.receipt(order, 40), scene.receipt(order, 10, node="node-c", key="mallory"))
    rest = (NodeRows(node="node-b", rows=6),)
    judge.write(scene.reserve(order), scene.complete(order, receipts=receipts, unreceipted=rest))
    (host,) = [row for key, row in judge.state.usage.rows.items() if key.startswith("host:")]
    assert host == HostDayRow(1, 50, str(50 * 221))


def test_usage_sums_to_what_accounts_consumed_and_hosts_were_credited(judge, scene) -> None:
    for number in range(1, 6):
        served(judge, scene, number, output_tokens=1 + number % 3)
        scene.now_ms += DAY_MS // 2
    models = [row for row in judge.state.usage.rows.values() if isinstance(row, ModelDayRow)]
    hosts = [row for row in judge.state.usage.rows.values() if isinstance(row, HostDayRow)]
    assert sum(row.billed_tokens for row in models) == judge.state.balances.account("alice").consumed
    assert sum(int(row.work) for row in hosts) == int(judge.state.payouts.hosts["bob"].work)
    assert sum(row.requests for row in models) == 5
