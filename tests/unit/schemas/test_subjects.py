"""Subjects: the table says what the builders make, and no name can reach outside its token."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import UsageError
from sawyer.ids import ModelId, NetworkId, NodeId, RequestId
from sawyer.schemas import subjects

NODE, MODEL, REQUEST = NodeId("node-a"), ModelId("austen"), RequestId("0f" * 16)
NETWORK = NetworkId("sawyer-net/3f9a1c00")

BUILT = {
    "expert": subjects.expert(NODE, MODEL, 3, 7),
    "finish": subjects.finish(NODE),
    "heartbeat": subjects.heartbeat(NODE),
    "roll_call": subjects.roll_call(),
    "infer": subjects.infer(MODEL),
    "open_session": subjects.open_session(MODEL),
    "activate": subjects.activate("router-1"),
    "close_session": subjects.close_session("router-1"),
    "echo": subjects.echo(MODEL),
    "cancel": subjects.cancel(REQUEST),
    "ledger": subjects.ledger("append"),
    "ledger_copy": subjects.ledger_copy(NETWORK, "entry"),
    "query": subjects.query("balance"),
    "network": subjects.network("join"),
}
WILDCARDS = {
    "experts_of": (subjects.experts_of(NODE, MODEL), "expert"),
    "all_heartbeats": (subjects.all_heartbeats(), "heartbeat"),
    "all_cancels": (subjects.all_cancels(), "cancel"),
    "all_ledger": (subjects.all_ledger(), "ledger"),
    "all_ledger_copies": (subjects.all_ledger_copies(NETWORK), "ledger_copy"),
}
TAKES_A_NAME: list[Callable[[str], str]] = [
    lambda text: subjects.expert(NodeId(text), MODEL, 0, 0),
    lambda text: subjects.expert(NODE, ModelId(text), 0, 0),
    lambda text: subjects.experts_of(NodeId(text), MODEL),
    lambda text: subjects.experts_of(NODE, ModelId(text)),
    lambda text: subjects.finish(NodeId(text)),
    lambda text: subjects.heartbeat(NodeId(text)),
    lambda text: subjects.infer(ModelId(text)),
    lambda text: subjects.cancel(RequestId(text)),
    lambda text: subjects.echo(ModelId(text)),
    lambda text: subjects.open_session(ModelId(text)),
    subjects.activate,
    subjects.close_session,
    subjects.ledger,
    subjects.query,
    subjects.network,
]


def test_every_builder_is_checked_here() -> None:
    found = {name for name, value in vars(subjects).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert found - {"is_slug", "discovery", "network_token", "network_of", "model_bucket", "is_bucket_of"} == set(
        BUILT
    ) | set(WILDCARDS)


@pytest.mark.parametrize(
    ("named", "subject"),
    [
        ((), "$SRV.PING"),
        (("sawyer-node",), "$SRV.PING.sawyer-node"),
        (("sawyer-node", "node-a"), "$SRV.PING.sawyer-node.node-a"),
    ],
)
def test_discovery_asks_all_a_kind_or_one(named: tuple[str, ...], subject: str) -> None:
    assert subjects.discovery("PING", *named) == subject


@pytest.mark.parametrize("named", [("*",), ("sawyer-node", ">"), ("a.b",), ("sawyer-node", "a b")])
def test_discovery_refuses_a_name_that_is_no_token(named: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="cannot stand in a subject"):
        subjects.discovery("PING", *named)


def test_every_built_subject_matches_exactly_one_row_of_the_table() -> None:
    rows = [re.compile(re.sub(r"<\w+>", "[a-z0-9_-]+", re.escape(pattern))) for pattern, *_ in subjects.ALL]
    matched = {name: [row for row in rows if row.fullmatch(subject)] for name, subject in BUILT.items()}
    assert {name: len(found) for name, found in matched.items()} == dict.fromkeys(BUILT, 1)
    assert len({found[0].pattern for found in matched.values()}) == len(subjects.ALL)


def test_every_wildcard_covers_its_subject_and_no_other() -> None:
    covered = {
        name: {other for other, subject in BUILT.items() if _covers(wildcard, subject)}
        for name, (wildcard, _) in WILDCARDS.items()
    }
    assert covered == {name: {of} for name, (_, of) in WILDCARDS.items()}


@pytest.mark.parametrize("text", ["", ".", "a.b", "*", ">", "a b", "a\n", "a\r\nPUB x 1", "A", "é", "-a", "a" * 64])
@pytest.mark.parametrize("build", TAKES_A_NAME)
def test_builder_refuses_a_name_that_is_no_token(build: Callable[[str], str], text: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a subject"):
        build(text)


@given(st.text(max_size=80), st.sampled_from(TAKES_A_NAME))
def test_builder_keeps_any_accepted_name_in_one_token(text: str, build: Callable[[str], str]) -> None:
    try:
        subject = build(text)
    except UsageError:
        return
    assert text in subject.split(".")
    assert re.fullmatch(r"[a-z0-9_.>-]+", subject)


@given(st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,20}/[a-z0-9-]{1,20}\Z"))
def test_network_is_one_token_and_read_back_from_it(network: str) -> None:
    token = subjects.network_token(NetworkId(network))
    assert re.fullmatch("[a-z0-9_-]+", token)
    assert subjects.network_of(token) == network


@pytest.mark.parametrize("network", ["a/" + "b" * 62, "A/b", "a/b c", "a/*", "a/>"])
def test_network_that_is_no_token_is_refused(network: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a subject"):
        subjects.ledger_copy(NetworkId(network), "entry")


def _covers(wildcard: str, subject: str) -> bool:
    """NATS matching: `*` is one token, `>` at the end is one or more."""
    wanted, tokens = wildcard.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(tokens) >= len(wanted) and _covers(".".join(wanted[:-1]), ".".join(tokens[: len(wanted) - 1]))
    return len(wanted) == len(tokens) and all(a in ("*", b) for a, b in zip(wanted, tokens, strict=True))


def test_bucket_is_named_after_model_and_weights() -> None:
    assert subjects.model_bucket("austen-8m", "14fa" * 16) == "SAWYER_austen-8m_14fa14fa14fa14fa"


@pytest.mark.parametrize("model", ["", "a.b", "*", "a b", "../a"])
def test_bucket_of_a_name_that_is_no_token_is_refused(model: str) -> None:
    with pytest.raises(UsageError, match="cannot stand in a subject"):
        subjects.model_bucket(model, "14fa" * 16)


@pytest.mark.parametrize(
    ("bucket", "is_one"),
    [
        ("SAWYER_grp_14fa14fa14fa14fa", True),
        ("SAWYER_grp-b_14fa14fa14fa14fa", False),
        ("SAWYER_grp_backup", False),
        ("SAWYER_grp_14FA14FA14FA14FA", False),
        ("SAWYER_grp_14fa14fa14fa14fa1", False),
        ("sawyer_grp_14fa14fa14fa14fa", False),
    ],
)
def test_bucket_is_of_a_model_only_if_its_name_is_made_so(bucket: str, is_one: bool) -> None:
    assert subjects.is_bucket_of("grp", bucket) is is_one
