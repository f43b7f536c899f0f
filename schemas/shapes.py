"""The models as JSON Schema of what is really sent: draft-07, the canonical form, shared shapes named once.

pydantic describes what it would accept. On the bus everything is canonical: what has a value is there, absent stands
for null. So a field with a default is required here, and no field may be null. AsyncAPI wants draft-07, where a
fixed-length list is `items` as a list.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias, TypeGuard, cast, get_origin

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from sawyer.schemas import base, events, signed, texts
from sawyer.schemas.base import Fact, Strict

Schema: TypeAlias = dict[str, Any]
Shaped: TypeAlias = type[Strict] | type[Fact]
"""What has a schema: a message, or a fact."""

AT: Final = "#/components/schemas/"
NULL: Final[Schema] = {"type": "null"}
_SHARED: Final[dict[str, tuple[Any, str]]] = {
    "Count": (base.Count, "0 or more. Integers stay below 2^53, where every JSON reader is exact."),
    "Positive": (base.Positive, "1 or more."),
    "Slug": (base.Slug, "A name: at most 63 characters, one token of a subject."),
    "Network": (base.Network, "A network, such as sawyer-net/3f9a1c00: a name, then a random part."),
    "Hex32": (base.Hex32, "16 bytes: an id."),
    "Sha256": (base.Sha256, "32 bytes: a hash."),
    "PublicKey": (base.PublicKey, "An Ed25519 public key as an NKEY: U for participants, O for the operator."),
    "SignatureText": (base.SignatureText, "64 bytes in standard base64."),
    "Text": (base.Text, "Text for people."),
    "Kind": (signed.Kind, "The kind of a statement or an event, with its version."),
    "VerifierKey": (events.VerifierKey, "A C2SP signed-note verifier key."),
}
_ORDER: Final = ("description", "type", "const", "enum", "required", "properties")
_NOISE: Final = frozenset({"title", "default", "discriminator"})


def shapes(models: Iterable[Shaped]) -> dict[str, Schema]:
    """Name -> schema of these models, of every model inside them, and of the shared types of their fields."""
    wanted: list[tuple[type[Strict], Literal["validation"]]] = [(model_of(each), "validation") for each in models]
    _, document = models_json_schema(wanted, ref_template=AT + "{model}")
    shared = {name: {"description": what, **_plain(kind)} for name, (kind, what) in _SHARED.items()}
    found = {_name(key): _shape(schema) for key, schema in document["$defs"].items()}
    return dict(sorted((shared | found).items()))


def is_shaped(payload: object) -> TypeGuard[Shaped]:
    """True for messages and facts, generic ones too (`Signed[Heartbeat]`)."""
    kind = get_origin(payload) or payload
    return isinstance(kind, type) and issubclass(kind, Strict | Fact)


def model_of(shaped: Shaped) -> type[Strict]:
    """The pydantic model: a message is one, a fact has a twin."""
    if isinstance(shaped, type) and issubclass(shaped, Strict):
        return shaped
    return cast("type[Strict]", texts.model_of(shaped, Strict))


def ref(shaped: Shaped) -> Schema:
    """A reference to its schema."""
    return {"$ref": AT + name_of(shaped)}


def name_of(shaped: Shaped) -> str:
    """Its name among the schemas: `Signed[Heartbeat]` is `SignedHeartbeat`."""
    return model_of(shaped).__name__.replace("[", "").replace("]", "")


def _shape(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_shape(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: value for key, value in _without_null(schema).items() if key not in _NOISE}
    if "$ref" in schema:
        return {"$ref": AT + _name(schema["$ref"].removeprefix(AT))}
    if shared := _shared_names().get(_frozen(schema)):
        return {"$ref": AT + shared}
    return _ordered({key: _part(key, value) for key, value in _fixed_length(_required(schema)).items()})


def _part(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: _shape(each) for name, each in value.items()}
    if key == "description":
        return " ".join(value.split())
    return _shape(value)


def _without_null(schema: Schema) -> Schema:
    """`anyOf: [this, null]` -> this."""
    if NULL not in schema.get("anyOf", ()):
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    choices = [each for each in schema["anyOf"] if each != NULL]
    return {**rest, **choices[0]} if len(choices) == 1 else {**rest, "anyOf": choices}


def _required(schema: Schema) -> Schema:
    """Every field but those that may be null: these are absent when they have no value."""
    fields = schema.get("properties", {})
    required = [name for name, field in fields.items() if NULL not in field.get("anyOf", ())]
    rest = {key: value for key, value in schema.items() if key != "required"}
    return {**rest, "required": required} if required else rest


def _fixed_length(schema: Schema) -> Schema:
    """Draft 2020-12 says `prefixItems`."""
    if "prefixItems" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "prefixItems"}
    return {**rest, "items": schema["prefixItems"], "additionalItems": False}


def _ordered(schema: Schema) -> Schema:
    keys = [*(key for key in _ORDER if key in schema), *(key for key in schema if key not in _ORDER)]
    return {key: schema[key] for key in keys}


@functools.cache
def _shared_names() -> dict[str, str]:
    return {_frozen(_plain(kind)): name for name, (kind, _) in _SHARED.items()}


def _plain(kind: Any) -> Schema:
    return TypeAdapter(kind).json_schema()


def _frozen(schema: Schema) -> str:
    return repr(sorted(schema.items()))


def _name(key: str) -> str:
    return key.replace("_", "")
