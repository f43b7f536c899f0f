"""schemas/asyncapi.yaml: valid AsyncAPI 3.0, fresh, and the whole bus: nothing missing, nothing dangling."""

from __future__ import annotations

import copy
import json
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jsonschema import Draft7Validator

from sawyer.errors import Busy, MissingExtra
from sawyer.ids import RequestId
from sawyer.schemas import asyncapi, events, generate, messages, sessions, shapes, subjects, tensors
from sawyer.schemas.base import Strict
from sawyer.schemas.exchanges import EXCHANGES, ROLES, VERBS, Command
from sawyer.schemas.messages import Accepted, InferMessage, LedgerReply
from sawyer.schemas.signed import Signed

OFFICIAL = Path(__file__).resolve().parents[2] / "vendored" / "asyncapi" / "asyncapi-3.0.0.json"
ON_DISK = generate.FOLDER.with_name(generate.ASYNCAPI)
NOT_SENT = {events.ReservationExpired, events.TokensExpired, events.SnapshotTaken}
"""The ledger's own word: nobody asks for it."""
UNKNOWN_TO_DRAFT_7 = {"prefixItems", "$defs", "discriminator", "default", "title"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return yaml.safe_load(ON_DISK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def official() -> Draft7Validator:
    return Draft7Validator(json.loads(OFFICIAL.read_text(encoding="utf-8")))


def test_committed_document_is_the_generated_one() -> None:
    assert ON_DISK.read_text(encoding="utf-8") == asyncapi.render(), "run: python -m sawyer.schemas.generate"


def test_yaml_reads_back_as_the_document(document: dict[str, Any]) -> None:
    assert document == asyncapi.document()


def test_document_keeps_the_official_schema(document: dict[str, Any], official: Draft7Validator) -> None:
    assert [f"{'/'.join(map(str, each.path))}: {each.message}" for each in official.iter_errors(document)] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("operations", "send_activation", "action"), "shout"),
        (("operations", "send_finish", "reply", "channel"), "#/channels/inbox"),
        (("operations", "receive_generation", "bindings", "nats", "queue"), 7),
        (("channels", "infer", "parameters", "model", "schema"), {"type": "string"}),
        (("components", "schemas", "Vitals", "required"), "all"),
        (("info", "version"), 1),
    ],
)
def test_official_schema_refuses_a_document_that_is_broken(
    document: dict[str, Any], official: Draft7Validator, path: tuple[str, ...], value: Any
) -> None:
    broken = copy.deepcopy(document)
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert not official.is_valid(broken)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert [at for at in _references(document) if _find(document, at) is None] == []


def test_every_component_is_used(document: dict[str, Any]) -> None:
    used = set(_references(document))
    every = {f"#/components/{kind}/{name}" for kind, found in document["components"].items() for name in found}
    assert every - used == set()


def test_every_channel_is_sent_to_received_from_or_answered_in(document: dict[str, Any]) -> None:
    actions: dict[str, set[str]] = {}
    for operation in document["operations"].values():
        actions.setdefault(operation["channel"]["$ref"], set()).add(operation["action"])
        if "reply" in operation:
            actions.setdefault(operation["reply"]["channel"]["$ref"], set()).add("reply")
    expected = {f"#/channels/{name}": {"send", "receive"} for name in document["channels"] if name != asyncapi.INBOX}
    assert actions == {**expected, f"#/channels/{asyncapi.INBOX}": {"reply"}}


def test_every_operation_takes_its_messages_from_its_channel(document: dict[str, Any]) -> None:
    for name, operation in document["operations"].items():
        for part in (operation, operation.get("reply", operation)):
            channel = part["channel"]["$ref"]
            assert part["messages"], name
            assert all(each["$ref"].startswith(f"{channel}/messages/") for each in part["messages"]), name


def test_every_operation_names_roles_that_are_introduced(document: dict[str, Any]) -> None:
    assert [tag["name"] for tag in document["info"]["tags"]] == list(ROLES)
    used = {tag["name"] for operation in document["operations"].values() for tag in operation["tags"]}
    assert used == set(ROLES)


OURS = [row for row in subjects.ALL if row[0].startswith(subjects.PREFIX)]


def test_exchanges_cover_the_table_of_subjects_and_nothing_else() -> None:
    covered = {row: [each for each in EXCHANGES if _is_of(each.subject, row[0])] for row in OURS}
    assert [row for row, exchanges in covered.items() if not exchanges] == []
    assert sum(map(len, covered.values())) == sum(each.subject.startswith(subjects.PREFIX) for each in EXCHANGES)


def test_exchanges_and_the_table_of_subjects_name_the_same_roles() -> None:
    for pattern, senders, receivers, _ in OURS:
        found = [each for each in EXCHANGES if _is_of(each.subject, pattern)]
        assert {role for each in found for role in each.receivers} == set(receivers.split(", ")), pattern
        if senders != "any":
            assert {role for each in found for role in each.senders} == set(senders.split(", ")), pattern


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("named", [(), ("sawyer-node",), ("sawyer-node", "node-1")])
def test_every_question_of_discovery_is_in_one_channel(
    document: dict[str, Any], verb: Any, named: tuple[str, ...]
) -> None:
    subject = subjects.discovery(verb, *named)
    addresses = [channel["address"] or "" for channel in document["channels"].values()]
    assert (
        len([each for each in addresses if re.fullmatch(re.sub(r"\\{\w+\\}", "[^.]+", re.escape(each)), subject)]) == 1
    )


def test_every_parameter_of_an_address_is_described(document: dict[str, Any]) -> None:
    for name, channel in document["channels"].items():
        in_address = re.findall(r"\{(\w+)\}", channel["address"] or "")
        assert in_address == list(channel.get("parameters", {})), name


def test_queue_groups_are_bound_where_one_of_many_answers(document: dict[str, Any]) -> None:
    bound = {
        name: each["bindings"]["nats"]["queue"] for name, each in document["operations"].items() if "bindings" in each
    }
    assert bound == dict.fromkeys(["receive_generation", "receive_session", "receive_echo"], subjects.ROUTERS)


def test_every_published_message_is_on_the_bus(document: dict[str, Any]) -> None:
    assert {message.__name__ for message in (*messages.MESSAGES, *sessions.MESSAGES)} - set(
        document["components"]["schemas"]
    ) == set()


def test_every_event_can_be_asked_for_by_one_role(document: dict[str, Any]) -> None:
    asked = [payload.body for each in EXCHANGES for payload in each.payloads if isinstance(payload, Command)]
    assert len(set(asked)) == len(asked)
    assert set(asked) == set(events.KINDS.values()) - NOT_SENT
    words = document["channels"]["ledger"]["parameters"]["command"]["enum"]
    assert sorted(words) == sorted(events.command_word(events.KIND_OF[body]) for body in asked)


def test_every_signed_statement_says_what_its_signature_covers(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    signed = {name: schema.get("x-statement", "") for name, schema in schemas.items() if name.startswith("Signed")}
    assert signed == {
        "SignedCertificateRequested": "application/vnd.sawyer.certificate.requested.v1+json",
        "SignedCertificateRevoked": "application/vnd.sawyer.certificate.revoked.v1+json",
        "SignedKeyAdded": "application/vnd.sawyer.key.added.v1+json",
        "SignedHeartbeat": "application/vnd.sawyer.node.beat.v1+json",
        "SignedInferenceRequested": "application/vnd.sawyer.inference.requested.v1+json",
        "SignedWorkReceipted": "application/vnd.sawyer.work.receipted.v1+json",
    }


def test_schemas_say_nothing_that_draft_7_does_not_know(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        Draft7Validator.check_schema(schema)
        assert UNKNOWN_TO_DRAFT_7.isdisjoint(_keywords(schema)), name
        assert shapes.NULL not in _dicts(schema), name


MESSAGE = InferMessage(e=Accepted(n=0, router="router-1", input_tokens=3, held_tokens=9))
TRACE = InferMessage(e=messages.Trace(n=1, step=0, layer=1, calls=()))
FINISH = messages.Finish(request="0f" * 16, model="austen", used=((1, 4), (6, 6)))
REFUSED = LedgerReply.refused(Busy("full"))


@pytest.mark.parametrize("message", [MESSAGE, TRACE, FINISH, REFUSED], ids=lambda each: type(each).__name__)
def test_schema_takes_what_a_model_writes(document: dict[str, Any], message: Strict) -> None:
    assert _problems(document, type(message), json.loads(message.canonical())) == []


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (REFUSED, {"entry": None}),
        (FINISH, {"used": [[1, 4, 5]]}),
        (FINISH, {"request": "0F" * 16}),
        (MESSAGE, {"e": {"event": "delta", "n": 0}}),
        (MESSAGE, {"e": {**json.loads(MESSAGE.canonical())["e"], "event": "surprise"}}),
        (FINISH, {"more": 1}),
    ],
)
def test_schema_refuses_what_is_not_canonical_or_not_that_message(
    document: dict[str, Any], message: Strict, change: dict[str, Any]
) -> None:
    assert _problems(document, type(message), {**json.loads(message.canonical()), **change}) != []


def test_schema_wants_every_field_that_canonical_json_writes(document: dict[str, Any]) -> None:
    without = {"prompt": "Emma", "max_tokens": 3}
    written = json.loads(messages.GenerateParams.model_validate(without).canonical())
    assert _problems(document, messages.GenerateParams, written) == []
    assert _problems(document, messages.GenerateParams, without) != []


def test_header_of_an_activation_is_where_the_document_says(document: dict[str, Any]) -> None:
    request = tensors.ActivationRequest(
        parts=(tensors.Part(RequestId("0f" * 16), 7, 3),), manifest=b"manifest", layer=2,
        rows=np.ones((3, 4), np.float16), work=((5, np.array([0, 2], np.uint32)),), deadline_ms=250,
    )  # fmt: skip
    raw = tensors.encode_request(request)
    found = {}
    for field in document["components"]["messages"]["ActivationRequest"]["payload"]["x-header"]:
        found[field["field"]] = struct.unpack_from(_code(field["type"]), raw, field["at"])[0]
        if isinstance(field["is"], int):
            assert found[field["field"]] == field["is"], field
    assert found["magic"] == tensors.MAGIC
    expected = {"parts": 1, "word_a": 250, "manifest": b"manifest", "layer": 2, "experts": 1, "hidden": 4, "rows": 3,
                "indices": 2}  # fmt: skip
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("message", ["ActivationRequest", "ActivationReply", "ActivationError"])
def test_header_of_an_activation_has_no_gaps(document: dict[str, Any], message: str) -> None:
    payload = document["components"]["messages"][message]["payload"]
    sizes = [
        int(re.sub(r"\D", "", field["type"])) // (1 if "[" in field["type"] else 8) for field in payload["x-header"]
    ]
    assert [field["at"] for field in payload["x-header"]] == [sum(sizes[:index]) for index in range(len(sizes))]
    assert sum(sizes) == payload["minLength"] == tensors.HEADER_BYTES


def test_render_without_pyyaml_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtra, match="PyYAML") as caught:
        asyncapi.render()
    assert "[dev]" in caught.value.hint


def test_name_of_a_signed_statement_is_one_word() -> None:
    assert shapes.name_of(Signed[messages.Heartbeat]) == "SignedHeartbeat"


def _problems(document: dict[str, Any], model: type[Strict], value: Any) -> list[str]:
    schema = {**shapes.ref(model), "components": document["components"]}
    return [error.message for error in Draft7Validator(schema).iter_errors(value)]


def _code(kind: str) -> str:
    """`u16` or `bytes[8]`, for the struct module."""
    return {"u8": "<B", "u16": "<H", "u32": "<I"}.get(kind) or re.sub(r"bytes\[(\d+)\]", r"\1s", kind)


def _is_of(subject: str, pattern: str) -> bool:
    """Whether this subject, which may have parameters of its own, is one of the pattern's."""
    return re.fullmatch(re.sub(r"<\w+>", r"(<\\w+>|[^.<>]+)", re.escape(pattern)), subject) is not None


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _dicts(value)


def _keywords(schema: Any) -> Iterator[str]:
    """Of a schema and those in it; the names of properties are none."""
    for key, value in schema.items():
        yield key
        inner = value.values() if key == "properties" else value if isinstance(value, list) else [value]
        for each in inner:
            if isinstance(each, dict):
                yield from _keywords(each)


def _references(document: dict[str, Any]) -> Iterator[str]:
    return (node["$ref"] for node in _dicts(document) if isinstance(node.get("$ref"), str))


def _find(document: dict[str, Any], at: str) -> Any:
    node: Any = document
    for key in at.removeprefix("#/").split("/"):
        node = node.get(key) if isinstance(node, dict) else None
    return node
