"""What a host is credited: rows, weights of the model, and the step that the measured latency reached."""

from __future__ import annotations

import pytest

from sawyer.economy.allocation import split
from sawyer.errors import NotAuthorised, RefusedError
from sawyer.ledger.decide import decide
from sawyer.schemas.events import NodeLatency, NodeRows

PROMISED_US = 2_000


def refuse(judge, asked, error: type[RefusedError], match: str) -> None:
    with pytest.raises(error, match=match):
        decide(judge.state, asked, judge.scene.now_ms)


@pytest.fixture
def promising(scene, empty_judge):
    """An open network whose node-c, of host dora, promises 2 ms."""
    scene.keys = {**scene.keys, "node-c": scene.keys["mallory"]}
    empty_judge.write(*scene.opening(), scene.node("node-c", "dora", promised_us=PROMISED_US))
    return empty_judge


def completed(judge, scene, number: int, p95_us: int, node: str = "node-c"):
    order = scene.order(number)
    receipts = (scene.delivered(scene.receipt(order, 56, node=node)),)
    (_, entry) = judge.write(scene.reserve(order), scene.complete(order, receipts=receipts, p95_us=p95_us))
    return entry.decided.credits[0]


@pytest.mark.parametrize(
    ("p95_us", "milli"),
    [(1, 1000), (2_000, 1000), (2_001, 900), (4_000, 900), (4_001, 500), (8_000, 500), (8_001, 0), (10**9, 0)],
)
def test_credit_counts_by_the_step_that_the_measured_latency_reached(promising, scene, p95_us: int, milli: int) -> None:
    credit = completed(promising, scene, 1, p95_us)
    assert (credit.sla_milli, credit.measured_us, credit.promised_us) == (milli, p95_us, PROMISED_US)
    assert (credit.rows, credit.work) == (56, 56 * 221)


def test_node_that_promised_nothing_counts_in_full_however_slow(promising, scene) -> None:
    credit = completed(promising, scene, 1, 10**9, node="node-a")
    assert (credit.sla_milli, credit.promised_us) == (1000, 0)


def test_work_that_came_too_late_is_kept_and_weighs_nothing(promising, scene) -> None:
    completed(promising, scene, 1, PROMISED_US)
    completed(promising, scene, 2, 5 * PROMISED_US)
    host = promising.state.payouts.hosts["dora"]
    assert (host.requests, host.rows, host.work) == (2, 112, str(112 * 221))
    assert host.weight_milli == str(56 * 221 * 1000)


def test_pool_is_split_by_work_times_step(promising, scene) -> None:
    """Two hosts of equal work, one at the full step and one at nine tenths of it."""
    completed(promising, scene, 1, 1, node="node-a")
    completed(promising, scene, 2, PROMISED_US + 1)
    weights = {name: int(row.weight_milli) for name, row in promising.state.payouts.hosts.items()}
    assert weights == {"bob": 56 * 221 * 1000, "dora": 56 * 221 * 900}
    assert split(1_900, weights) == {"bob": 1_000, "dora": 900}


def test_what_a_host_says_of_its_machine_changes_no_credit(judge, scene) -> None:
    """The predecessor multiplied pay by the VRAM that hosts declared."""
    scene.keys = {**scene.keys, "node-c": scene.keys["mallory"]}
    body = scene.node("node-c", "dora").body.changed(memory_mb=2**40, device="8 x H100")
    judge.write(scene.say(body, "node-c"))
    for number, node in enumerate(("node-a", "node-c")):
        completed(judge, scene, number, 1_000, node=node)
    bob, dora = judge.state.payouts.hosts["bob"], judge.state.payouts.hosts["dora"]
    assert (bob.work, bob.weight_milli) == (dora.work, dora.weight_milli)


@pytest.mark.parametrize(
    "latencies",
    [
        (),
        (NodeLatency(node="node-b", p95_us=1),),
        (NodeLatency(node="node-a", p95_us=1), NodeLatency(node="node-b", p95_us=1)),
        (NodeLatency(node="node-a", p95_us=1),) * 2,
    ],
    ids=["none", "of another node", "of one too many", "twice"],
)
def test_latencies_that_do_not_match_the_receipts_are_refused(judge, scene, latencies) -> None:
    order = scene.order()
    judge.write(scene.reserve(order))
    body = scene.complete(order).body.changed(latencies=latencies)
    refuse(judge, scene.say(body, "router"), RefusedError, "in order of the receipts")


def test_latencies_in_another_order_than_the_receipts_are_refused(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order))
    receipts = (scene.receipt(order, 40), scene.receipt(order, 16, node="node-b"))
    body = scene.complete(order, receipts=receipts).body
    turned = body.changed(latencies=body.latencies[::-1])
    refuse(judge, scene.say(turned, "router"), RefusedError, "in order of the receipts")
    judge.write(scene.say(body, "router"))


def test_latency_of_a_node_without_a_receipt_is_refused(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order))
    rest = (NodeRows(node="node-a", rows=56),)
    body = scene.complete(order, receipts=(), unreceipted=rest).body
    asked = scene.say(body.changed(latencies=(NodeLatency(node="node-a", p95_us=1),)), "router")
    refuse(judge, asked, RefusedError, "in order of the receipts")


def test_work_of_one_entry_stays_below_what_json_integers_hold(judge, scene) -> None:
    """A model with absurd parameters: the credit is refused, and its rows may be listed as unreceipted."""
    big = scene.model.changed(model="titan", manifest="ef" * 32, expert_parameters=2**53 - 1)
    sheet = scene.sheet.changed(sheet="titans", prices=(scene.sheet.prices[0].changed(model="titan"),))
    judge.write(scene.say(big, "operator"), scene.say(sheet, "operator"))
    from sawyer.economy.pricing import sheet_hash

    order = scene.order(model="titan", price_sheet=sheet_hash(sheet), max_tokens=200)
    body = scene.reserve(order, manifest="ef" * 32).body.changed(tokens=205)
    judge.write(scene.say(body, "router"))
    rows = (5 + 200 - 1) * 8
    receipt = scene.receipt(order, rows, model="titan", manifest="ef" * 32)
    asked = scene.complete(order, output_tokens=200, receipts=(receipt,))
    refuse(judge, asked, NotAuthorised, "more work than one entry can hold")
