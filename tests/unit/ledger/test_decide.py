"""The rules, one attack or mistake a test. `judge` sits in an opened network; alice has 500,000 tokens."""

from __future__ import annotations

import pytest

from sawyer.errors import (
    AlreadyCompleted,
    BudgetTooSmall,
    NotAuthorised,
    RefusedError,
    RequestConflict,
    UnknownAccount,
    UnknownModel,
)
from sawyer.ledger.decide import decide
from sawyer.schemas.events import KeyAdded, NodeRows


def refuse(
    judge, asked, error: type[RefusedError], match: str | None = None, now_ms: int | None = None
) -> RefusedError:
    at_ms = judge.scene.now_ms if now_ms is None else now_ms
    with pytest.raises(error, match=match) as caught:
        decide(judge.state, asked, at_ms)
    return caught.value


# --- membership -------------------------------------------------------------------------------------------------------


def test_nothing_happens_before_the_founding(empty_judge, scene) -> None:
    refuse(empty_judge, scene.account(), RefusedError, "not founded yet")


def test_founding_by_a_key_it_does_not_name_is_refused(empty_judge, scene) -> None:
    body = scene.founding().body
    refuse(empty_judge, scene.say(body, "mallory", by="operator"), NotAuthorised, "expected the operator key")


def test_founding_by_a_participants_key_is_refused(empty_judge, scene) -> None:
    body = scene.founding().body.changed(operator=scene.keys["mallory"].id)
    refuse(empty_judge, scene.say(body, "mallory", by="operator"), NotAuthorised, "by an operator key")


def test_founding_with_another_ledger_key_is_refused(empty_judge, scene) -> None:
    scene.keys = {**scene.keys, "ledger": scene.keys["mallory"]}
    refuse(empty_judge, scene.founding(), NotAuthorised, "names the ledger key")


def test_second_founding_is_refused_and_the_same_is_a_repeat(judge, scene) -> None:
    same = scene.founding()
    later = same.body.changed(founded_ms=scene.now_ms + 1)
    assert decide(judge.state, same, scene.now_ms).repeated
    refuse(judge, scene.say(later, "operator"), RequestConflict, "found:network")


def test_command_for_another_network_is_refused(judge, scene) -> None:
    scene.network = "sawyer-net/ffffffff"
    refuse(judge, scene.account("dave", "mallory"), NotAuthorised, "the command is for sawyer-net/ffffffff")


@pytest.mark.parametrize("what", ["key", "model", "sheet", "grant"])
def test_operators_facts_signed_by_another_are_refused(judge, scene, what: str) -> None:
    body = {
        "key": KeyAdded(network=scene.network, role="router", name="evil", key=scene.keys["mallory"].id),
        "model": scene.model.changed(manifest="cd" * 32),
        "sheet": scene.sheet.changed(sheet="cheap"),
        "grant": scene.grant("gift", 1).body,
    }[what]
    refuse(judge, scene.say(body, "mallory", by="operator"), NotAuthorised, "expected the network's operator")


def test_operators_key_under_another_name_is_refused(judge, scene) -> None:
    refuse(judge, scene.say(scene.grant("gift", 1).body, "operator", by="alice"), NotAuthorised, "signed as alice")


def test_role_for_a_key_of_small_order_is_refused(judge, scene) -> None:
    from sawyer.identity.keys import encode_public

    weak = encode_public("U", bytes([1]) + bytes(31))
    body = KeyAdded(network=scene.network, role="router", name="weak", key=weak)
    refuse(judge, scene.say(body, "operator"), NotAuthorised, "not a valid Ed25519 point")


def test_node_registered_without_its_key_is_refused(judge, scene) -> None:
    body = scene.node("node-c", "dave", key="mallory").body.changed(key=scene.keys["alice"].id)
    refuse(judge, scene.say(body, "mallory", by="node-c"), NotAuthorised, "the key of node node-c")


def test_node_taken_over_with_another_key_is_refused(judge, scene) -> None:
    refuse(judge, scene.node("node-a", "mallory", key="mallory"), NotAuthorised, "registered with another key")


def test_node_key_registered_under_a_second_name_is_refused(judge, scene) -> None:
    refuse(judge, scene.node("node-z", "bob", key="node-a"), NotAuthorised, "registered as node node-a")


def test_node_registered_again_is_a_repeat_and_with_other_facts_a_conflict(judge, scene) -> None:
    assert decide(judge.state, scene.node("node-a", "bob"), scene.now_ms).repeated
    refuse(judge, scene.node("node-a", "carol"), RequestConflict)


def test_account_taken_over_with_another_key_is_refused(judge, scene) -> None:
    refuse(judge, scene.account("alice", "mallory"), NotAuthorised, "opened with another key")


def test_account_opened_again_with_its_key_is_a_repeat(judge, scene) -> None:
    assert decide(judge.state, scene.account(), scene.now_ms).repeated


def test_grant_to_nobody_is_refused(judge, scene) -> None:
    refuse(judge, scene.grant("gift", 1, account="nobody"), UnknownAccount)


def test_grant_that_ends_before_it_starts_is_refused(judge, scene) -> None:
    refuse(judge, scene.grant("gift", 1, start_ms=5, end_ms=5), RefusedError, "must expire after")


def test_grant_of_live_money_in_a_test_network_is_refused(judge, scene) -> None:
    body = scene.grant("gift", 1).body.changed(mode="live")
    refuse(judge, scene.say(body, "operator"), RefusedError, "live grant in a test network")


def test_grant_beyond_what_sums_can_hold_is_refused(judge, scene) -> None:
    refuse(judge, scene.grant("gift", 900_719_925_474_099, paid_uusd=0), RefusedError, "in all")


def test_grant_id_used_for_another_account_is_a_conflict(judge, scene) -> None:
    judge.write(scene.account("dave", "mallory"))
    refuse(judge, scene.grant("january", 500_000, account="dave"), RequestConflict)


def test_same_manifest_with_other_parameters_is_a_conflict(judge, scene) -> None:
    more = scene.model.changed(expert_parameters=999_999_999)
    refuse(judge, scene.say(more, "operator"), RequestConflict)


# --- reserve ----------------------------------------------------------------------------------------------------------


def test_reserve_by_somebody_who_is_no_router_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(), signer="mallory"), NotAuthorised, "not a router's key")


def test_reserve_by_a_router_under_anothers_name_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(), by="router-2"), NotAuthorised, "signed as router-2")


def test_reserve_for_an_order_that_the_account_did_not_sign_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(key="mallory")), NotAuthorised, "not by the key of account alice")


def test_reserve_for_an_order_of_another_network_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(network="sawyer-net/ffffffff")), NotAuthorised, "for network")


def test_reserve_for_an_order_of_an_unknown_account_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(account="nobody")), UnknownAccount)


@pytest.mark.parametrize("late_ms", [0, 1, 10_000])
def test_reserve_for_an_expired_order_is_refused(judge, scene, late_ms: int) -> None:
    asked = scene.reserve(scene.order())
    refuse(judge, asked, RefusedError, "the order expired", now_ms=scene.now_ms + 60_000 + late_ms)


def test_reserve_for_an_unknown_model_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(model="gpt-9")), UnknownModel)


def test_reserve_under_a_price_sheet_nobody_published_is_refused(judge, scene) -> None:
    refuse(judge, scene.reserve(scene.order(price_sheet="00" * 32)), RefusedError, "is not published here")


def test_reserve_under_an_older_published_sheet_holds_its_price(judge, scene) -> None:
    dearer = scene.sheet.changed(sheet="dearer", input_weight_milli=9_000)
    judge.write(scene.say(dearer, "operator"))
    (entry,) = judge.write(scene.reserve(scene.order()))
    assert sum(part.tokens for part in entry.decided.held) == 8


@pytest.mark.parametrize("tokens", [1, 7, 9])
def test_reserve_of_another_amount_than_the_price_is_refused(judge, scene, tokens: int) -> None:
    refuse(judge, scene.reserve(scene.order(), tokens=tokens), RefusedError, f"cost 8, not {tokens}")


def test_reserve_above_the_clients_ceiling_is_refused(judge, scene) -> None:
    error = refuse(judge, scene.reserve(scene.order(token_ceiling=7)), BudgetTooSmall, "the client allows 7")
    assert error.details == {"needed": "8", "available": "7"}


def test_reserve_above_the_balance_is_refused_with_both_numbers(judge, scene) -> None:
    error = refuse(judge, scene.reserve(scene.order(max_tokens=500_000)), BudgetTooSmall)
    assert error.details == {"needed": "500005", "available": "500000"}
    assert "500005" in error.message
    assert "500000" in error.message


@pytest.mark.parametrize(("hold_ms", "allowed"), [(0, False), (1, True), (660_000, True), (660_001, False)])
def test_hold_ends_in_the_future_and_within_ten_minutes_and_slack(judge, scene, hold_ms: int, allowed: bool) -> None:
    asked = scene.reserve(scene.order(), hold_ms=hold_ms)
    if allowed:
        judge.write(asked)
    else:
        refuse(judge, asked, RefusedError, "a hold ends within")


def test_reserve_takes_no_bucket_before_its_time_or_after_its_end(empty_judge, scene) -> None:
    empty_judge.write(
        *scene.members(), scene.grant("past", 100, start_ms=-9, end_ms=0), scene.grant("next", 100, start_ms=1)
    )
    refuse(empty_judge, scene.reserve(scene.order()), BudgetTooSmall, "alice has 0")


def test_worked_example_of_two_months_pays_from_the_older_first(empty_judge, scene) -> None:
    day = 86_400_000
    judge = empty_judge
    judge.write(*scene.members(), scene.grant("january", 500_000, end_ms=59 * day))
    order = scene.order(1, max_tokens=119_995)
    judge.write(scene.reserve(order), scene.complete(order, output_tokens=99_995))
    assert judge.state.balances.available("alice", scene.now_ms) == 400_000
    judge.write(scene.grant("february", 500_000, start_ms=31 * day, end_ms=90 * day))
    scene.now_ms += 31 * day
    order = scene.order(2, max_tokens=449_995)
    judge.write(scene.reserve(order))
    (entry,) = judge.write(scene.complete(order, output_tokens=449_995))
    assert [(part.grant, part.tokens) for part in entry.decided.debited] == [("january", 400_000), ("february", 50_000)]
    assert judge.state.balances.available("alice", scene.now_ms) == 450_000
    assert judge.state.balances.available("alice", scene.now_ms + 59 * day - 1) == 450_000
    assert judge.state.balances.available("alice", scene.now_ms + 59 * day) == 0


def test_tokens_released_to_an_expired_bucket_cannot_be_spent(empty_judge, scene) -> None:
    judge = empty_judge
    judge.write(*scene.members(), scene.grant("short", 8, end_ms=1_000))
    order = scene.order()
    judge.write(scene.reserve(order))
    judge.write(scene.complete(order, output_tokens=1), now_ms=scene.now_ms + 1_000)
    assert judge.state.balances.available("alice", scene.now_ms + 1_000) == 0


# --- complete ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(judge, scene):
    """A judge who has seen alice's order 1 reserved."""
    judge.write(scene.reserve(scene.order()))
    return judge


def test_complete_without_a_reservation_is_refused(judge, scene) -> None:
    refuse(judge, scene.complete(scene.order()), RefusedError, "no reservation")


def test_complete_by_another_router_is_refused(held, scene) -> None:
    held.write(
        scene.say(
            KeyAdded(network=scene.network, role="router", name="router", key=scene.keys["mallory"].id), "operator"
        )
    )
    refuse(held, scene.complete(scene.order(), signer="mallory"), NotAuthorised, "another router reserved")


def test_complete_of_a_changed_order_is_refused(held, scene) -> None:
    refuse(held, scene.complete(scene.order(max_tokens=4)), RequestConflict, "not the one that was reserved")


def test_complete_with_more_output_than_ordered_is_refused(held, scene) -> None:
    refuse(held, scene.complete(scene.order(), output_tokens=4), RefusedError, "ordered at most 3")


def test_complete_with_other_input_than_reserved_is_refused(held, scene) -> None:
    refuse(held, scene.complete(scene.order(), input_tokens=4), RefusedError, "reserved for 5")


@pytest.mark.parametrize(("fed", "allowed"), [(6, False), (7, True), (15, True), (16, False)])
def test_fed_tokens_are_the_counted_and_a_few_free_ones(held, scene, fed: int, allowed: bool) -> None:
    asked = scene.complete(scene.order(), fed_tokens=fed)
    if allowed:
        held.write(asked)
    else:
        refuse(held, asked, RefusedError, "counted tokens were fed")


@pytest.mark.parametrize("rows", [55, 57])
def test_rows_that_do_not_add_up_are_refused(held, scene, rows: int) -> None:
    order = scene.order()
    asked = scene.complete(order, receipts=(scene.receipt(order, rows),))
    refuse(held, asked, RefusedError, f"cost 56 expert rows, .* add up to {rows}")


def test_unreceipted_rows_count_and_earn_nothing(held, scene) -> None:
    order = scene.order()
    rest = (NodeRows(node="node-b", rows=16),)
    (entry,) = held.write(scene.complete(order, receipts=(scene.receipt(order, 40),), unreceipted=rest))
    assert [(credit.node, credit.rows) for credit in entry.decided.credits] == [("node-a", 40)]


def test_unreceipted_rows_of_an_unknown_node_are_refused(held, scene) -> None:
    asked = scene.complete(scene.order(), receipts=(), unreceipted=(NodeRows(node="ghost", rows=56),))
    refuse(held, asked, NotAuthorised, "ghost is not registered")


def test_node_receipted_and_unreceipted_at_once_is_refused(held, scene) -> None:
    order = scene.order()
    rest = (NodeRows(node="node-a", rows=16),)
    refuse(held, scene.complete(order, receipts=(scene.receipt(order, 40),), unreceipted=rest), RefusedError, "once")


def test_two_receipts_of_one_node_are_refused(held, scene) -> None:
    order = scene.order()
    receipts = (scene.receipt(order, 28), scene.receipt(order, 28, counter=2))
    refuse(held, scene.complete(order, receipts=receipts), RefusedError, "once")


def test_receipt_signed_by_another_key_is_refused_and_names_its_node(held, scene) -> None:
    order = scene.order()
    error = refuse(held, scene.complete(order, receipts=(scene.receipt(order, 56, key="mallory"),)), NotAuthorised)
    assert error.details == {"node": "node-a"}


@pytest.mark.parametrize(
    "changes",
    [{"request": "00" * 16}, {"model": "other"}, {"network": "sawyer-net/ffffffff"}, {"experts": ((0, 1, 55),)}],
    ids=lambda changes: next(iter(changes)),
)
def test_receipt_for_something_else_is_refused(held, scene, changes: dict[str, object]) -> None:
    order = scene.order()
    refuse(
        held, scene.complete(order, receipts=(scene.receipt(order, 56, **changes),)), NotAuthorised, "receipt of node"
    )


def test_receipt_over_unpublished_weights_is_refused(held, scene) -> None:
    order = scene.order()
    receipt = scene.receipt(order, 56, manifest="cd" * 32)
    refuse(held, scene.complete(order, receipts=(receipt,)), NotAuthorised, "is over manifest cdcd")


def test_receipt_counted_twice_is_refused(held, scene) -> None:
    held.write(scene.complete(scene.order(1)))
    order = scene.order(2)
    held.write(scene.reserve(order))
    receipt = scene.receipt(order, 56, counter=1, previous="00" * 32)
    refuse(held, scene.complete(order, receipts=(receipt,)), NotAuthorised, "counter 1, which was used before")


def test_receipt_that_hides_its_predecessor_is_refused(held, scene) -> None:
    held.write(scene.complete(scene.order(1)))
    order = scene.order(2)
    held.write(scene.reserve(order))
    receipt = scene.receipt(order, 56, previous="12" * 32)
    refuse(held, scene.complete(order, receipts=(receipt,)), NotAuthorised, "does not follow receipt 1")


def test_receipt_after_an_undelivered_one_is_allowed(held, scene) -> None:
    held.write(scene.complete(scene.order(1)))
    order = scene.order(2)
    held.write(scene.reserve(order))
    held.write(scene.complete(order, receipts=(scene.receipt(order, 56, counter=3, previous="12" * 32),)))
    assert held.state.nodes.nodes["node-a"].counter == 3


def test_receipts_booked_in_another_order_than_signed_are_all_credited(held, scene) -> None:
    chain = scene.chain_of_receipts(4)
    for at in (0, 3, 1, 2):
        held.write(scene.reserve(chain[at][0])) if at else None
        held.write(scene.complete(chain[at][0], receipts=(chain[at][1],)))
    node = held.state.nodes.nodes["node-a"]
    assert (node.counter, node.gaps) == (4, [])


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 3, 2, 1), (0, 3, 1, 2)])
def test_receipt_that_does_not_fit_the_gap_it_fills_is_refused(held, scene, order) -> None:
    chain = scene.chain_of_receipts(4)
    for at in order[:-1]:
        held.write(scene.reserve(chain[at][0])) if at else None
        held.write(scene.complete(chain[at][0], receipts=(chain[at][1],)))
    last_order, last = chain[order[-1]]
    held.write(scene.reserve(last_order))
    forged = scene.receipt(last_order, 56, counter=last.body.counter, previous="12" * 32)
    refuse(held, scene.complete(last_order, receipts=(forged,)), NotAuthorised, "receipt")
    held.write(scene.complete(last_order, receipts=(last,)))


def test_complete_after_void_is_refused(held, scene) -> None:
    held.write(scene.void(scene.order()))
    refuse(held, scene.complete(scene.order()), RequestConflict, "voided in entry 10")


def test_complete_twice_with_other_usage_is_refused(held, scene) -> None:
    held.write(scene.complete(scene.order()))
    refuse(held, scene.complete(scene.order(), output_tokens=2), RequestConflict)


def test_complete_after_the_hold_was_due_but_before_its_expiry_entry_posts(held, scene) -> None:
    (entry,) = held.write(scene.complete(scene.order()), now_ms=scene.now_ms + 700_000)
    assert sum(part.tokens for part in entry.decided.debited) == 8


# --- ends -------------------------------------------------------------------------------------------------------------


def test_void_releases_the_hold_in_full(held, scene) -> None:
    (entry,) = held.write(scene.void(scene.order()))
    assert [(part.grant, part.tokens) for part in entry.decided.released] == [("january", 8)]
    assert held.state.balances.available("alice", scene.now_ms) == 500_000


def test_void_of_a_completed_request_is_refused_with_the_bill(held, scene) -> None:
    held.write(scene.complete(scene.order(), output_tokens=2))
    error = refuse(held, scene.void(scene.order()), AlreadyCompleted)
    assert error.details == {"entry": "10", "input_tokens": "5", "output_tokens": "2", "billed_tokens": "7"}


def test_void_twice_is_a_repeat_and_for_another_reason_a_conflict(held, scene) -> None:
    held.write(scene.void(scene.order()))
    assert decide(held.state, scene.void(scene.order()), scene.now_ms).repeated
    refuse(held, scene.void(scene.order(), reason="busy"), RequestConflict)


def test_reserve_again_after_completion_returns_the_bill(held, scene) -> None:
    held.write(scene.complete(scene.order(), output_tokens=2))
    for again in (scene.reserve(scene.order()), scene.reserve(scene.order(), hold_ms=500_000)):
        error = refuse(held, again, AlreadyCompleted)
        assert error.details == {"entry": "10", "input_tokens": "5", "output_tokens": "2", "billed_tokens": "7"}


def test_reserve_of_another_order_under_a_completed_request_id_is_a_conflict(held, scene) -> None:
    held.write(scene.complete(scene.order()))
    refuse(held, scene.reserve(scene.order(content="ee" * 32)), RequestConflict)


def test_reserve_of_a_completed_order_signed_anew_returns_the_bill(held, scene) -> None:
    """A client that starts again signs its order with a new expiry: still the same request."""
    held.write(scene.complete(scene.order()))
    scene.now_ms += 3_600_000
    refuse(held, scene.reserve(scene.order()), AlreadyCompleted)


def test_reserve_again_after_void_is_never_a_repeat(held, scene) -> None:
    held.write(scene.void(scene.order()))
    refuse(held, scene.reserve(scene.order()), RequestConflict, "voided in entry 10")


def test_expiry_before_its_time_is_refused(held, scene) -> None:
    refuse(held, scene.expiry(scene.order()), RefusedError, "the hold runs until", now_ms=scene.now_ms + 599_999)


@pytest.mark.parametrize("key", ["router", "operator", "mallory"])
def test_expiry_by_any_key_but_the_ledgers_is_refused(held, scene, key: str) -> None:
    asked = scene.expiry(scene.order(), key=key)
    refuse(held, asked, NotAuthorised, "expected the ledger", now_ms=scene.now_ms + 600_000)


def test_expiry_at_its_time_releases_and_ends_the_request(held, scene) -> None:
    held.write(scene.expiry(scene.order()), now_ms=scene.now_ms + 600_000)
    assert held.state.balances.available("alice", scene.now_ms) == 500_000
    assert held.state.balances.open_requests == {}
    refuse(held, scene.complete(scene.order()), RequestConflict, "expired in entry 10")
