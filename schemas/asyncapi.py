"""The whole bus as one AsyncAPI 3.0 document, made from exchanges.py and the models. Writes no file: generate.py does.

Two operations an exchange, `send_...` and `receive_...`, tagged with the roles that do them: AsyncAPI describes one
application, and this is a conversation of several. Extensions: `x-statement` is the media type that a signature covers,
`x-header` and `x-then` are the bytes of an activation message, `x-codes` are the known error codes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from sawyer.errors import BY_CODE, MissingExtra
from sawyer.schemas import subjects, tensors
from sawyer.schemas.certificates import REQUESTED_KIND, REVOKED_KIND, CertificateRequested, CertificateRevoked
from sawyer.schemas.events import KIND_OF, command_word
from sawyer.schemas.exchanges import COPIED_ROWS, EXCHANGES, ROLES, VERBS, Command, Exchange, Micro, Payload, Plain
from sawyer.schemas.messages import HEARTBEAT_KIND, ErrorBody, Heartbeat, LedgerCommand
from sawyer.schemas.session_rows import HiddenRows, SummedRows
from sawyer.schemas.shapes import Shaped, is_shaped, name_of, ref, shapes
from sawyer.schemas.signed import media_type
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest

Node: TypeAlias = dict[str, Any]

HEADING: Final = "# Written by: python -m sawyer.schemas.generate\n"
INBOX: Final = "inbox"
NATS_BINDING: Final = "0.1.0"
LINE: Final = 120
ABOUT: Final = (
    "Every message between the parts of a Sawyer network, over NATS. JSON is canonical: keys sorted, no white space, "
    "UTF-8, integers below 2^53, no floats, absent instead of null. Activations are binary. A reply goes to the NATS "
    "reply subject of what it answers. A signature covers the DSSE pre-authentication encoding of a body's canonical "
    "bytes under the media type in x-statement. Only copied rows have NATS headers. docs/protocol.md explains it, "
    "with worked examples."
)
_STATEMENTS: Final[tuple[tuple[Shaped, str], ...]] = (
    *KIND_OF.items(),
    (Heartbeat, HEARTBEAT_KIND),
    (CertificateRequested, REQUESTED_KIND),
    (CertificateRevoked, REVOKED_KIND),
)
_TYPES: Final = {"B": "u8", "H": "u16", "I": "u32"}
_PARAMETERS: Final = {
    "node": ("A node, as it is registered.", "node-1"),
    "model": ("A published model.", "austen-8m"),
    "router": ("A router's name in the book.", "router-1"),
    "layer": ("The layer's number in the model.", "3"),
    "expert": ("The first of the experts that the message is for.", "5"),
    "request": ("A request id: 32 hexadecimal digits.", "0f" * 16),
    "verb": ("Who is there, what it answers, or what came of it.", "PING"),
    "service": ("A kind of program: sawyer-node, sawyer-router or sawyer-bookkeeper.", "sawyer-node"),
    "instance": ("A program's name in the book.", "node-1"),
    "network": ("A network's name, with __ for each . in it and _ for its /.", "sawyer-net_3f9a1c00"),
    "row": ("What the row holds.", "entry"),
    "command": ("The first two words of the event's kind: tokens.reserved.v1 is tokens-reserved.", "tokens-reserved"),
}
_ACTIVATIONS: Final[dict[type, str]] = {
    ActivationRequest: "Rows, each once, and which of them each expert works on.",
    ActivationReply: "What each expert made of its rows, one block an expert: no sums over experts.",
    ActivationError: "The node, or the router, refuses, and says why.",
    HiddenRows: "Rows that enter the experts of one layer, of a client that runs the trunk itself.",
    SummedRows: "What the experts add to each of these rows: the weighted sum of their blocks.",
}
_FIELDS: Final[dict[str, tuple[object, object, object]]] = {
    "magic": (tensors.MAGIC.decode(),) * 3,
    "version": (tensors.VERSION,) * 3,
    "kind": (int(tensors.Kind.REQUEST), int(tensors.Kind.REPLY), int(tensors.Kind.ERROR)),
    "dtype": (", ".join(f"{each.value} {tensors.NUMPY[each].name}" for each in tensors.Dtype),) * 3,
    "flags": (f"{tensors.FLAG_REPLY_F32}: answer in float32", 0, 0),
    "word_a": ("deadline, milliseconds from arrival", "computed, microseconds", 0),
    "word_b": (0, "waited, microseconds", 0),
    "manifest": (f"first {tensors.MANIFEST_PREFIX_BYTES} bytes of its SHA-256", "as asked", "zeros"),
    "layer": (f"below {tensors.MAX_LAYERS}", "as asked", 0),
    "experts": (f"in the table: 1 to {tensors.MAX_EXPERTS}", f"in the table: 1 to {tensors.MAX_EXPERTS}", 0),
    "hidden": (f"values in a row: 1 to {tensors.MAX_HIDDEN}", "as asked", 0),
    "rows": (f"1 to {tensors.MAX_ROWS}", f"in all blocks: 1 to {tensors.MAX_ROWS}", 0),
    "indices": ("row indices: at least 1", 0, 0),
    "parts": (f"requests that the rows are of: 1 to {tensors.MAX_PARTS}", "as asked", 0),
}
"""Field of an activation's header -> what it is in a request, a reply and an error: a constant, or words."""
_SESSION_FIELDS: Final[dict[str, object]] = {
    "magic": tensors.MAGIC.decode(), "version": tensors.VERSION, "dtype": f"{tensors.Dtype.F32.value} float32",
    "manifest": f"first {tensors.MANIFEST_PREFIX_BYTES} bytes of its SHA-256", "layer": f"below {tensors.MAX_LAYERS}",
    "hidden": f"values in a row: 1 to {tensors.MAX_HIDDEN}", "rows": f"1 to {tensors.MAX_ROWS}", "parts": 1,
}  # fmt: skip
"""The same for what a session's two messages have; other fields are 0."""
_PART_TEXT: Final = ", ".join(f"{name} {_TYPES.get(code, f'bytes[{code[:-1]}]')}" for name, code in tensors.PART_FIELDS)
_THEN: Final[dict[type, list[str]]] = {
    ActivationRequest: [
        f"parts x ({_PART_TEXT}): one a request; its rows follow those of the parts before",
        "experts x (expert u32, its row count u32), experts ascending",
        "indices x u32: for each expert, in that order, the rows it works on",
        "rows x hidden x dtype: each row once",
    ],
    ActivationReply: [
        "the parts, as asked",
        "experts x (expert u32, its row count u32), experts ascending",
        "rows x hidden x dtype: one block an expert, in that order",
    ],
    ActivationError: ["an ErrorBody as canonical JSON (components/schemas/ErrorBody)"],
    HiddenRows: [f"({_PART_TEXT}): the session as its grant, the step as its sequence", "rows x hidden x float32"],
    SummedRows: [f"({_PART_TEXT}): as asked", "rows x hidden x float32: for each row, in the order asked"],
}


def document() -> Node:
    """The AsyncAPI document as plain data, in the order it is to be written in."""
    return {
        "asyncapi": "3.0.0",
        "id": "urn:" + subjects.PREFIX.replace(".", ":"),
        "info": {
            "title": "Sawyer",
            "version": subjects.PREFIX.rpartition(".")[2],
            "description": ABOUT,
            "license": {"name": "BUSL-1.1", "url": "https://spdx.org/licenses/BUSL-1.1.html"},
            "tags": [{"name": role, "description": what} for role, what in ROLES.items()],
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "{address}",
                "protocol": "nats",
                "description": "The network's NATS server, or a cluster of them. It may want credentials.",
                "variables": {"address": {"default": "127.0.0.1:4222", "description": "Host and port."}},
            }
        },
        "channels": _channels(),
        "operations": {name: operation for each in EXCHANGES for name, operation in _operations(each)},
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def render() -> str:
    """The document as YAML. The same models give the same bytes. Raises MissingExtra without PyYAML."""
    try:
        import yaml  # noqa: PLC0415  # development only: nobody who runs Sawyer needs it
    except ImportError as error:
        raise MissingExtra("PyYAML is not installed", hint="pip install -e '.[dev]' installs it.") from error

    class Dumper(yaml.SafeDumper):
        """Short collections of plain values stand on one line; nothing is written as an alias."""

        def ignore_aliases(self, _: Any) -> bool:
            return True

        def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
            node = super().represent_mapping(tag, mapping, flow_style)
            node.flow_style = _is_plain(mapping.values()) and len(repr(mapping)) < LINE - 20
            return node

        def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
            node = super().represent_sequence(tag, sequence, flow_style)
            node.flow_style = _is_plain(sequence) and " " not in "".join(map(str, sequence))
            return node

    text: str = yaml.dump(document(), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=LINE)
    return HEADING + text


def channel_of(subject: str) -> str:
    """The name of a channel: `sawyer.v1.node.<node>.finish` -> `node_finish`. Where the subject is not ours, with its
    parameters: `$SRV.<verb>` -> `srv_verb`."""
    if not subject.startswith(subjects.PREFIX):
        return re.sub(r"\W+", "_", subject).strip("_").lower()
    tokens = subject.removeprefix(f"{subjects.PREFIX}.").split(".")
    return "_".join(token for token in tokens if not token.startswith("<"))


# --- channels and operations ------------------------------------------------------------------------------------------


def _channels() -> Node:
    found: dict[str, list[Exchange]] = {}
    for each in EXCHANGES:
        found.setdefault(channel_of(each.subject), []).append(each)
    channels = {name: _channel(exchanges) for name, exchanges in found.items()}
    replies = [payload for each in EXCHANGES for payload in each.replies]
    channels[INBOX] = {
        "address": None,
        "title": "The sender's inbox",
        "description": "A subject of the sender's own, _INBOX and a random part, given as the NATS reply subject.",
        "messages": _references("#/components/messages", replies),
    }
    return channels


def _channel(exchanges: list[Exchange]) -> Node:
    subject = exchanges[0].subject
    channel: Node = {
        "address": subject.replace("<", "{").replace(">", "}"),
        "messages": _references("#/components/messages", [each for one in exchanges for each in one.payloads]),
    }
    parameters = {each: _parameter(each, exchanges) for each in re.findall(r"<(\w+)>", subject)}
    return {**channel, "parameters": parameters} if parameters else channel


def _parameter(name: str, exchanges: list[Exchange]) -> Node:
    what, example = _PARAMETERS[name]
    payloads = [payload for each in exchanges for payload in each.payloads]
    words = [command_word(KIND_OF[each.body]) for each in payloads if isinstance(each, Command)]
    choices = {"command": words, "verb": list(VERBS), "row": list(COPIED_ROWS)}.get(name)
    return {"description": what, **({"enum": choices} if choices else {}), "examples": [example]}


def _operations(exchange: Exchange) -> list[tuple[str, Node]]:
    sending = _operation(exchange, "send", exchange.senders)
    receiving = _operation(exchange, "receive", exchange.receivers)
    if exchange.queue:
        receiving["bindings"] = {"nats": {"queue": exchange.queue, "bindingVersion": NATS_BINDING}}
    return [(f"send_{exchange.name}", sending), (f"receive_{exchange.name}", receiving)]


def _operation(exchange: Exchange, action: str, roles: tuple[str, ...]) -> Node:
    channel = f"#/channels/{channel_of(exchange.subject)}"
    operation: Node = {
        "action": action,
        "channel": {"$ref": channel},
        "summary": exchange.what,
        "tags": [{"name": role} for role in roles],
        "messages": list(_references(f"{channel}/messages", exchange.payloads).values()),
    }
    if exchange.replies:
        replies = list(_references(f"#/channels/{INBOX}/messages", exchange.replies).values())
        operation["reply"] = {"channel": {"$ref": f"#/channels/{INBOX}"}, "messages": replies}
    if exchange.stream:
        operation["x-stream"] = True
    return operation


def _references(at: str, payloads: tuple[Payload, ...] | list[Payload]) -> Node:
    return {name: {"$ref": f"{at}/{name}"} for name in map(_message_name, payloads)}


# --- messages ---------------------------------------------------------------------------------------------------------


def _messages() -> Node:
    every = [payload for each in EXCHANGES for payload in (*each.payloads, *each.replies)]
    return dict(sorted((_message_name(each), _message(each)) for each in every))


def _message_name(payload: Payload) -> str:
    if isinstance(payload, Plain):
        return payload.name
    if isinstance(payload, Command):
        return payload.body.__name__
    if isinstance(payload, Micro):
        return f"Micro{payload.verb.capitalize()}"
    return name_of(payload) if is_shaped(payload) else payload.__name__


def _message(payload: Payload) -> Node:
    if isinstance(payload, Plain):
        limit = {} if payload.at_most is None else {"maxLength": payload.at_most}
        return _binary(payload.what, limit)
    if isinstance(payload, Command):
        return _command(payload)
    if isinstance(payload, Micro):
        return _micro(payload)
    if is_shaped(payload):
        return {"payload": ref(payload)}
    return _activation(payload)


def _command(command: Command) -> Node:
    kind = KIND_OF[command.body]
    narrowed = {"properties": {"kind": {"const": kind}, "body": ref(command.body)}}
    return {
        "title": kind,
        "payload": {"allOf": [ref(LedgerCommand), narrowed]},
        "x-statement": media_type(kind),
    }


def _micro(reply: Micro) -> Node:
    text: Node = {"type": "string"}
    fields = {"type": {"const": reply.type}, "name": text, "id": text, "version": text, "metadata": {"type": "object"}}
    return {"title": reply.type, "payload": {"type": "object", "required": list(fields), "properties": fields}}


def _activation(message: type) -> Node:
    layout = {"minLength": tensors.HEADER_BYTES, "x-header": _header(message), "x-then": _THEN[message]}
    return _binary(f"{_ACTIVATIONS[message]} Little-endian, no padding.", layout)


def _header(message: type) -> list[Node]:
    column = list(_ACTIVATIONS).index(message)
    if issubclass(message, HiddenRows | SummedRows):
        said = {name: _SESSION_FIELDS.get(name, 0) for name in _FIELDS} | {"kind": int(message.kind)}
    else:
        said = {name: columns[column] for name, columns in _FIELDS.items()}
    fields, offset = [], 0
    for name, code in tensors.HEADER_FIELDS:
        size = struct.calcsize(f"<{code}")
        kind = _TYPES.get(code, f"bytes[{size}]")
        fields.append({"at": offset, "type": kind, "field": name, "is": said[name]})
        offset += size
    return fields


def _binary(what: str, schema: Node) -> Node:
    return {
        "contentType": "application/octet-stream",
        "summary": what,
        "payload": {"type": "string", "format": "binary", **schema},
    }


# --- schemas ----------------------------------------------------------------------------------------------------------


def _schemas() -> Node:
    payloads = [payload for each in EXCHANGES for payload in (*each.payloads, *each.replies)]
    models: set[Shaped] = {LedgerCommand, ErrorBody}
    models |= {each.body for each in payloads if isinstance(each, Command)}
    models |= {each for each in payloads if is_shaped(each)}
    found = shapes(sorted(models, key=name_of))
    for body, kind in _STATEMENTS:
        if f"Signed{body.__name__}" in found:
            found[f"Signed{body.__name__}"]["x-statement"] = media_type(kind)
    found["ErrorBody"]["x-codes"] = sorted(BY_CODE)
    return found


def _is_plain(values: Iterable[Any]) -> bool:
    return all(not isinstance(value, dict | list) for value in values)
