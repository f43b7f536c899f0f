"""What an order, a reservation and a receipt are worth over time: prices, weights and routers change around them."""

from __future__ import annotations

import pytest

from sawyer.errors import NotAuthorised, RefusedError, RequestConflict, Superseded, WrongManifest
from sawyer.ledger.billing import CLOCK_SLACK_MS, ORDER_LIMIT_MS
from sawyer.ledger.decide import decide
from sawyer.projections.nodes import MAX_GAPS
from sawyer.schemas.events import KeyAdded, NodeRows

NEWER = "cd" * 32


def refuse(judge, asked, error: type[RefusedError], match: str) -> RefusedError:
    with pytest.raises(error, match=match) as caught:
        decide(judge.state, asked, judge.scene.now_ms)
    return caught.value


@pytest.fixture
def dearer(scene):
    """The command to publish a price sheet that asks five times as much."""
    return scene.say(scene.sheet.changed(sheet="dearer", input_weight_milli=5_000), "operator")


@pytest.fixture
def newer(scene):
    """The command to publish other weights of the same model, twice as deep."""
    return scene.say(scene.model.changed(manifest=NEWER, moe_layers=8), "operator")


# --- how long an order is good ----------------------------------------------------------------------------------------


def test_order_from_the_future_is_refused_beyond_the_slack(judge, scene) -> None:
    late_ms = scene.now_ms + CLOCK_SLACK_MS
    judge.write(scene.reserve(scene.order(1, issued_ms=late_ms, expires_ms=late_ms + 1)))
    order = scene.order(2, issued_ms=late_ms + 1, expires_ms=late_ms + 2)
    refuse(judge, scene.reserve(order), RefusedError, "issued 60001 ms from now")


def test_order_that_is_good_for_ever_is_refused(judge, scene) -> None:
    judge.write(scene.reserve(scene.order(1, expires_ms=scene.now_ms + ORDER_LIMIT_MS)))
    order = scene.order(2, expires_ms=scene.now_ms + ORDER_LIMIT_MS + 1)
    refuse(judge, scene.reserve(order), RefusedError, "good for 3600000 ms at most")


def test_order_dated_back_to_an_older_price_is_refused_as_good_for_too_long(judge, scene, dearer) -> None:
    judge.write(dearer)
    order = scene.order(issued_ms=0, expires_ms=scene.now_ms + 1)
    refuse(judge, scene.reserve(order), RefusedError, "at most")


def test_order_signed_after_its_price_sheet_was_replaced_is_refused(judge, scene, dearer) -> None:
    judge.write(dearer)
    scene.now_ms += 1
    error = refuse(judge, scene.reserve(scene.order()), RefusedError, "was replaced before the order was signed")
    assert "current prices" in error.hint


def test_order_signed_before_its_price_sheet_was_replaced_is_billed_at_the_price_it_saw(judge, scene, dearer) -> None:
    order = scene.order()
    scene.now_ms += 1
    judge.write(dearer)
    judge.write(scene.reserve(order))
    (entry,) = judge.write(scene.complete(order))
    assert sum(part.tokens for part in entry.decided.debited) == 8


# --- publishing again -------------------------------------------------------------------------------------------------


def test_sheet_published_again_after_another_is_refused_and_the_newest_is_a_repeat(judge, scene, dearer) -> None:
    judge.write(dearer)
    error = refuse(judge, scene.say(scene.sheet, "operator"), Superseded, "sheet 2026-01 was published before")
    assert "new sheet name" in error.hint
    assert decide(judge.state, dearer, scene.now_ms).repeated


def test_same_prices_under_a_new_sheet_name_are_in_force_again(judge, scene, dearer) -> None:
    judge.write(dearer)
    judge.write(scene.say(scene.sheet.changed(sheet="2026-01-again"), "operator"))
    assert judge.state.registry.pricing.sheet == "2026-01-again"


def test_manifest_published_again_after_another_is_refused_and_the_newest_is_a_repeat(judge, scene, newer) -> None:
    judge.write(newer)
    error = refuse(judge, scene.say(scene.model, "operator"), Superseded, "manifest abab.* was published before")
    assert "new model name" in error.hint
    assert decide(judge.state, newer, scene.now_ms).repeated


# --- the weights of a request -----------------------------------------------------------------------------------------


def test_reserve_for_weights_that_are_not_the_newest_is_refused(judge, scene, newer) -> None:
    judge.write(newer)
    refuse(judge, scene.reserve(scene.order()), WrongManifest, "the newest of model austen is cdcd")
    judge.write(scene.reserve(scene.order(), manifest=NEWER))


def test_request_is_judged_by_the_weights_it_was_reserved_for_though_newer_ones_came(judge, scene, newer) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), newer)
    without_receipts = scene.complete(order, receipts=(), unreceipted=(NodeRows(node="node-a", rows=112),))
    refuse(judge, without_receipts, RefusedError, "cost 56 expert rows")
    (entry,) = judge.write(scene.complete(order))
    assert [(credit.rows, credit.work) for credit in entry.decided.credits] == [(56, 56 * 221)]


def test_receipt_over_newer_weights_than_reserved_is_refused_and_names_its_node(judge, scene, newer) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), newer)
    asked = scene.complete(order, receipts=(scene.receipt(order, 56, manifest=NEWER),))
    assert refuse(judge, asked, NotAuthorised, "reserved for abab").details == {"node": "node-a"}


# --- two routers ------------------------------------------------------------------------------------------------------


def test_second_router_does_not_get_the_first_ones_hold_as_its_own(judge, scene) -> None:
    second = scene.keys["mallory"]
    judge.write(
        scene.say(KeyAdded(network=scene.network, role="router", name="router-2", key=second.id), "operator"),
        scene.reserve(scene.order()),
    )
    refuse(judge, scene.reserve(scene.order(), signer="mallory", by="router-2"), NotAuthorised, "another router")
    assert decide(judge.state, scene.reserve(scene.order()), scene.now_ms).repeated


# --- gaps between receipts --------------------------------------------------------------------------------------------


def _book(judge, scene, number: int, receipt) -> None:
    judge.write(scene.complete(scene.order(number), receipts=(receipt,)))


def _receipt(scene, number: int, counter: int):
    return scene.receipt(scene.order(number), 56, counter=counter, previous="12" * 32)


@pytest.fixture
def busy(judge, scene):
    """A judge who holds tokens for the orders 1 to 4."""
    judge.write(*(scene.reserve(scene.order(number)) for number in range(1, 5)))
    return judge


def test_receipt_that_skips_more_than_the_book_waits_for_is_refused(busy, scene) -> None:
    asked = scene.complete(scene.order(1), receipts=(_receipt(scene, 1, MAX_GAPS + 2),))
    assert refuse(busy, asked, NotAuthorised, "skips 257 receipts").details == {"node": "node-a"}
    _book(busy, scene, 1, _receipt(scene, 1, MAX_GAPS + 1))
    assert len(busy.state.nodes.nodes["node-a"].gaps) == MAX_GAPS


def test_receipt_with_the_highest_counter_of_all_is_refused_and_the_node_earns_on(busy, scene) -> None:
    """It would leave no counter for the receipts after it."""
    asked = scene.complete(scene.order(1), receipts=(_receipt(scene, 1, 2**53 - 1),))
    refuse(busy, asked, NotAuthorised, "may be missing")
    busy.write(scene.complete(scene.order(1)))


def test_receipt_that_was_given_up_is_refused_by_that_name(busy, scene) -> None:
    _book(busy, scene, 1, _receipt(scene, 1, MAX_GAPS + 1))
    _book(busy, scene, 2, _receipt(scene, 2, MAX_GAPS + 4))
    node = busy.state.nodes.nodes["node-a"]
    assert (len(node.gaps), node.gaps[0].counter, node.given_up) == (MAX_GAPS, 3, 2)
    asked = scene.complete(scene.order(3), receipts=(_receipt(scene, 3, 2),))
    refuse(busy, asked, NotAuthorised, "was given up")
    again = scene.complete(scene.order(3), receipts=(_receipt(scene, 3, MAX_GAPS + 1),))
    refuse(busy, again, NotAuthorised, "which was used before")
    _book(busy, scene, 3, _receipt(scene, 3, 3))


def test_reserve_of_the_same_request_with_other_facts_is_a_conflict(busy, scene) -> None:
    refuse(busy, scene.reserve(scene.order(1), input_tokens=4), RequestConflict, "says something else")


def test_reserve_again_by_a_router_that_was_started_anew_is_the_hold_that_stands(busy, scene) -> None:
    """Its client sent the order again, and it cannot know until when it held the tokens in its last life."""
    order = scene.order(1)
    first = busy.state.request(order.body.request)
    assert decide(busy.state, scene.reserve(order, hold_ms=500_000), scene.now_ms).repeated
    assert busy.state.request(order.body.request) == first
