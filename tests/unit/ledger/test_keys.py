"""Keys of nodes, accounts and routers: taken, changed and revoked, and always judged at the entry where they sign."""

from __future__ import annotations

import pytest

from sawyer.errors import BadSignature, NotAuthorised, RefusedError, RequestConflict, Superseded
from sawyer.ledger import membership
from sawyer.ledger.commands import check, command
from sawyer.ledger.decide import decide
from sawyer.schemas.events import NodeRows


def refuse(judge, asked, error: type[RefusedError], match: str) -> RefusedError:
    with pytest.raises(error, match=match) as caught:
        decide(judge.state, asked, judge.scene.now_ms)
    return caught.value


def repeated(judge, asked) -> bool:
    return decide(judge.state, asked, judge.scene.now_ms).repeated


# --- key.rotated: a node or an account takes another key --------------------------------------------------------------


def test_order_by_the_old_key_is_refused_after_the_account_took_another_and_by_the_new_one_allowed(
    judge, scene
) -> None:
    judge.write(scene.rotate("account", "alice", "alice-2"))
    refuse(judge, scene.reserve(scene.order(1)), NotAuthorised, "not by the key of account alice")
    judge.write(scene.reserve(scene.order(1, key="alice-2")))


def test_request_that_was_ordered_with_the_old_key_is_completed_after_the_rotation(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), scene.rotate("account", "alice", "alice-2"), scene.complete(order))
    assert judge.state.balances.account("alice").consumed == 8


def test_receipt_by_the_old_key_is_refused_after_a_rotation_and_by_the_new_one_allowed(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), scene.rotate("node", "node-a", "node-a-2"))
    old = scene.complete(order, receipts=(scene.receipt(order, 56),))
    assert refuse(judge, old, NotAuthorised, "is signed by node-a with").details == {"node": "node-a"}
    judge.write(scene.complete(order, receipts=(scene.receipt(order, 56, key="node-a-2"),)))
    assert judge.state.payouts.hosts["bob"].rows == 56


def test_chain_of_receipts_goes_on_over_a_rotation(judge, scene) -> None:
    one, two = scene.order(1), scene.order(2)
    judge.write(scene.reserve(one), scene.reserve(two), scene.complete(one), scene.rotate("node", "node-a", "node-a-2"))
    judge.write(scene.complete(two, receipts=(scene.receipt(two, 56, key="node-a-2"),)))
    assert (judge.state.nodes.nodes["node-a"].counter, judge.state.nodes.nodes["node-a"].gaps) == (2, [])


def test_key_is_judged_at_the_entry_where_it_signs(judge, scene) -> None:
    """Before its rotation the new key is a stranger's, after it the old one is."""
    refuse(judge, scene.reserve(scene.order(key="alice-2")), NotAuthorised, "not by the key of account alice")
    judge.write(scene.reserve(scene.order(1)), scene.rotate("account", "alice", "alice-2"))
    judge.write(
        scene.reserve(scene.order(2, key="alice-2")), scene.rotate("account", "alice", "alice-3", old="alice-2")
    )
    refuse(judge, scene.reserve(scene.order(3, key="alice-2")), NotAuthorised, "not by the key of account alice")
    judge.write(scene.reserve(scene.order(3, key="alice-3")))


@pytest.mark.parametrize(("role", "name", "new"), [("account", "alice", "alice-2"), ("node", "node-a", "node-a-2")])
def test_rotation_that_the_old_key_did_not_sign_is_refused(judge, scene, role: str, name: str, new: str) -> None:
    asked = scene.rotate(role, name, new, old="mallory")
    refuse(judge, asked, NotAuthorised, f"expected the key of {role} {name}")


@pytest.mark.parametrize(("role", "name", "new"), [("account", "alice", "alice-2"), ("node", "node-a", "node-a-2")])
def test_rotation_to_a_key_that_did_not_sign_is_refused(judge, scene, role: str, name: str, new: str) -> None:
    """Nobody takes a key that they do not have."""
    refuse(judge, scene.rotate(role, name, new, also=name), NotAuthorised, "to prove that its holder agrees")


def test_rotation_signed_by_the_two_keys_in_the_wrong_order_is_refused(judge, scene) -> None:
    asked = scene.rotate("account", "alice", "alice-2", old="alice-2", also="alice")
    refuse(judge, asked, NotAuthorised, "expected the key of account alice")


@pytest.mark.parametrize("role", ["account", "node"])
def test_rotation_of_somebody_who_is_not_there_is_refused(judge, scene, role: str) -> None:
    refuse(judge, scene.rotate(role, "ghost", "alice-2", old="mallory"), NotAuthorised, f"there is no {role} ghost")


def test_rotation_under_a_stolen_name_is_refused(judge, scene) -> None:
    """Mallory has an account too, and signs with its key; the name is alice's."""
    judge.write(scene.account("mallory"))
    refuse(judge, scene.rotate("account", "alice", "alice-2", old="mallory"), NotAuthorised, "key of account alice")


def test_rotation_signed_as_somebody_else_is_refused(judge, scene) -> None:
    body = scene.rotate("account", "alice", "alice-2").body
    asked = check(command(body, "mallory", scene.keys["alice"], scene.keys["alice-2"]))
    refuse(judge, asked, NotAuthorised, "signed as mallory, expected alice")


def test_rotation_to_the_key_of_another_node_is_refused(judge, scene) -> None:
    refuse(judge, scene.rotate("node", "node-a", "node-b"), NotAuthorised, "belongs to node node-b")


@pytest.mark.parametrize("again", ["registered", "rotated"])
def test_key_that_a_node_once_had_is_nobody_elses(judge, scene, again: str) -> None:
    judge.write(scene.rotate("node", "node-a", "node-a-2"))
    if again == "registered":
        refuse(judge, scene.node("node-z", "bob", key="node-a"), NotAuthorised, "registered as node node-a")
    else:
        refuse(judge, scene.rotate("node", "node-b", "node-a"), NotAuthorised, "belongs to node node-a")


def test_rotation_to_a_key_of_small_order_never_passes_the_door(scene) -> None:
    from sawyer.identity.keys import encode_public

    weak = encode_public("U", bytes([1]) + bytes(31))
    made = command(
        scene.rotate("account", "alice", "alice-2").body.changed(key=weak), "alice", *[scene.keys["alice"]] * 2
    )
    old, new = made.attestations
    with pytest.raises(BadSignature):
        check(made.model_copy(update={"attestations": (old, new.changed(key_id=weak))}))


def test_rotation_to_the_key_that_is_there_already_is_refused(judge, scene) -> None:
    refuse(judge, scene.rotate("account", "alice", "alice"), RefusedError, "has this key already")


def test_rotation_twice_is_a_repeat(judge, scene) -> None:
    asked = scene.rotate("node", "node-a", "node-a-2")
    judge.write(asked)
    assert repeated(judge, asked)


def test_rotation_that_another_followed_is_no_repeat_but_superseded(judge, scene) -> None:
    first = scene.rotate("account", "alice", "alice-2")
    judge.write(first, scene.rotate("account", "alice", "alice-3", old="alice-2"))
    error = refuse(judge, first, Superseded, "by now")
    assert error.details == {"key": scene.keys["alice-3"].id}


def test_registration_and_opening_are_superseded_after_a_rotation(judge, scene) -> None:
    judge.write(scene.rotate("node", "node-a", "node-a-2"), scene.rotate("account", "alice", "alice-2"))
    for again in (scene.node("node-a", "bob"), scene.account()):
        assert "that it has now" in refuse(judge, again, Superseded, "by now").hint


def test_opening_an_account_with_its_key_of_today_is_a_repeat_and_with_a_strangers_is_not(judge, scene) -> None:
    judge.write(scene.rotate("account", "alice", "alice-2"))
    assert repeated(judge, scene.account("alice", "alice-2"))
    refuse(judge, scene.account("alice", "node-a"), RefusedError, "key")


# --- key.revoked ------------------------------------------------------------------------------------------------------


def test_revoked_router_may_do_nothing_more_and_its_hold_expires(judge, scene) -> None:
    order = scene.order(1)
    judge.write(scene.reserve(order), scene.revoke("router"))
    for asked in (scene.reserve(scene.order(2)), scene.complete(order), scene.void(order)):
        error = refuse(judge, asked, NotAuthorised, r"revoked in entry 10 \(stolen\)")
        assert error.details == {"entry": "10", "key": scene.keys["router"].id}
    judge.write(scene.expiry(order), now_ms=scene.now_ms + 600_000)
    assert judge.state.balances.account("alice").held == 0


def test_receipts_by_a_revoked_key_are_refused_and_the_router_lists_the_rows_as_unreceipted(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), scene.revoke("node-a"))
    refuse(judge, scene.complete(order, receipts=(scene.receipt(order, 56),)), NotAuthorised, "key that was revoked")
    judge.write(scene.complete(order, receipts=(), unreceipted=(NodeRows(node="node-a", rows=56),)))
    assert judge.state.payouts.hosts == {}


def test_revoked_node_may_not_register_again_nor_rotate(judge, scene) -> None:
    judge.write(scene.revoke("node-a"))
    refuse(judge, scene.node("node-a", "bob"), NotAuthorised, "was revoked")
    refuse(judge, scene.rotate("node", "node-a", "node-a-2"), NotAuthorised, "was revoked")


def test_orders_of_an_account_whose_key_was_revoked_are_refused(judge, scene) -> None:
    judge.write(scene.revoke("alice"))
    refuse(judge, scene.reserve(scene.order()), NotAuthorised, "was revoked")
    refuse(judge, scene.account(), NotAuthorised, "was revoked")
    refuse(judge, scene.rotate("account", "alice", "alice-2"), NotAuthorised, "was revoked")


def test_key_may_revoke_itself(judge, scene) -> None:
    judge.write(scene.revoke("node-a", by="node-a"))
    refuse(judge, scene.node("node-a", "bob"), NotAuthorised, "was revoked")


def test_key_revoked_by_a_third_party_is_refused(judge, scene) -> None:
    refuse(judge, scene.revoke("node-a", by="mallory"), NotAuthorised, "expected the network's operator")


@pytest.mark.parametrize("key", ["operator", "ledger"])
@pytest.mark.parametrize("by", ["operator", "itself"])
def test_key_in_office_is_not_revoked_before_it_has_a_successor(judge, scene, key: str, by: str) -> None:
    asked = scene.revoke(key, by=key if by == "itself" else "operator")
    assert "successor" in refuse(judge, asked, RefusedError, "in office").hint


@pytest.mark.parametrize("role", ["operator", "ledger"])
def test_former_key_of_an_office_is_revoked_by_its_successors_operator(judge, scene, role: str) -> None:
    judge.write(scene.add_key(role, f"{role}-2"))
    operator = "operator-2" if role == "operator" else "operator"
    judge.write(scene.revoke(role, by=operator, name="operator", since_ms=scene.now_ms - 5))
    row = judge.state.registry.revoked[scene.keys[role].id]
    assert (row.seq, row.since_ms, row.reason) == (10, scene.now_ms - 5, "stolen")
    again = scene.add_key(role, role, by=operator)
    refuse(judge, again, NotAuthorised, "was revoked")


def test_revoked_key_is_given_no_role_again(judge, scene) -> None:
    judge.write(scene.revoke("router-2"))
    refuse(judge, scene.add_key("router", "router-2"), NotAuthorised, "was revoked")


def test_rotation_to_a_revoked_key_is_refused(judge, scene) -> None:
    judge.write(scene.revoke("alice-2"))
    refuse(judge, scene.rotate("account", "alice", "alice-2"), NotAuthorised, "was revoked")


@pytest.mark.parametrize("by", ["operator", "node-a"])
def test_revocation_twice_is_a_repeat(judge, scene, by: str) -> None:
    asked = scene.revoke("node-a", by=by)
    judge.write(asked)
    assert repeated(judge, asked)


@pytest.mark.parametrize(("dates", "since_ms"), [((0, 9), 9), ((9, 0), 9), ((9, 5), 5), ((5, 9), 5), ((0, 0), 0)])
def test_later_revocations_only_put_more_of_a_key_in_question(judge, scene, dates, since_ms: int) -> None:
    first, second = (scene.revoke("node-a", since_ms=date) for date in dates)
    judge.write(first)
    if first.content != second.content:
        judge.write(second)
    row = judge.state.registry.revoked[scene.keys["node-a"].id]
    assert (row.seq, row.since_ms) == (9, since_ms)


def test_same_revocation_for_another_reason_is_a_conflict(judge, scene) -> None:
    judge.write(scene.revoke("node-a"))
    body = scene.revoke("node-a").body.changed(reason="lost")
    refuse(judge, scene.say(body, "operator"), RequestConflict, "entry 9 says something else")


def test_revoked_key_does_not_speak_for_itself_any_more(judge, scene) -> None:
    """A thief who revoked it has settled nothing: since when it is in question says the operator."""
    judge.write(scene.revoke("node-a", by="node-a"))
    asked = scene.revoke("node-a", by="node-a", since_ms=1)
    refuse(judge, asked, NotAuthorised, r"revoked in entry 9 \(stolen\)")
    judge.write(scene.revoke("node-a", since_ms=1))


def test_key_that_nobody_here_has_revokes_nothing(judge, scene) -> None:
    """Or anybody could fill the book with keys made up for it."""
    refuse(judge, scene.revoke("mallory", by="mallory"), NotAuthorised, "nobody here has the key")
    refuse(judge, scene.revoke("alice", by="alice", name="bob"), NotAuthorised, "nobody here has the key")


def test_former_key_of_a_node_may_still_revoke_itself(judge, scene) -> None:
    """It is found stolen after the rotation: its receipts of before are in question."""
    judge.write(scene.rotate("node", "node-a", "node-a-2"), scene.revoke("node-a", by="node-a", since_ms=1))
    assert judge.state.registry.revoked[scene.keys["node-a"].id].since_ms == 1


def test_router_key_added_again_after_its_revocation_is_no_repeat(judge, scene) -> None:
    judge.write(scene.revoke("router"))
    refuse(judge, scene.add_key("router", "router"), NotAuthorised, "was revoked")


def test_revoked_routers_are_no_members(book, scene) -> None:
    replies = book.commit([scene.add_key("router", "router-2"), scene.revoke("router")], scene.now_ms)
    assert [reply.error for reply in replies] == [None, None]
    assert book.members().routers == (("router-2", scene.keys["router-2"].id),)


# --- one key, one name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["node", "account", "rotation"])
def test_participant_whose_key_is_written_as_an_operators_is_refused(judge, scene, what: str) -> None:
    """The same 32 bytes under two names would be two keys: one of them revoked, the other not."""
    scene.keys = {**scene.keys, "fresh": scene.keys["operator-2"]}
    asked = {
        "node": lambda: scene.node("node-z", "zoe", key="fresh"),
        "account": lambda: scene.account("zoe", "fresh"),
        "rotation": lambda: scene.rotate("account", "alice", "fresh"),
    }[what]()
    refuse(judge, asked, NotAuthorised, "is no participant's key")


def test_node_changes_its_key_so_many_times_and_not_more(judge, scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MAX_FORMER_KEYS", 1)
    judge.write(scene.rotate("node", "node-a", "node-a-2"))
    refuse(judge, scene.rotate("node", "node-a", "node-a-3", old="node-a-2"), RefusedError, "changed its key 1 times")


def test_revoking_one_router_leaves_the_others_at_work(judge, scene) -> None:
    judge.write(scene.add_key("router", "router-2"), scene.revoke("router"))
    judge.write(scene.reserve(scene.order(), signer="router-2", by="router-2"))


def test_what_a_key_signed_before_its_revocation_stands(judge, scene) -> None:
    order = scene.order()
    judge.write(scene.reserve(order), scene.complete(order), scene.revoke("node-a", since_ms=1))
    assert judge.state.payouts.hosts["bob"].rows == 56
