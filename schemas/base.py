"""What every schema here shares: two strict bases, the one canonical JSON encoding, and field types.

`Strict` (pydantic) is for messages and settings. `Fact` (msgspec) is for what is signed and kept in the book: the same
rules, several times faster to read, and a replay reads millions (docs/adr/0018). Both are immutable and take no unknown
field and no coercion.

Canonical JSON: keys sorted, no spaces, UTF-8, integers below 2^53, absent instead of null. For the types used here it
is byte-identical to RFC 8785 (JCS). Everything that is signed is signed over these bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, StringConstraints, ValidationError
from pydantic_core import CoreSchema, core_schema

from sawyer.errors import NotCanonical
from sawyer.ids import NETWORK_PATTERN, SLUG_PATTERN
from sawyer.schemas import texts

MAX_SAFE_INTEGER = 2**53 - 1
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are nothing: also for ten thousand brackets, which it reads one in another."""

Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER), msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER), msgspec.Meta(ge=1, le=MAX_SAFE_INTEGER)]
TimeMs = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER), msgspec.Meta(ge=0, le=MAX_SAFE_INTEGER)]
Slug = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
Network = Annotated[str, StringConstraints(pattern=NETWORK_PATTERN)]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RecurringSha256 = Annotated[Sha256, texts.Recurring]
"""A hash that many facts name."""
PublicKey = Annotated[str, StringConstraints(pattern=r"^[UO][A-Z2-7]{55}$")]
SignatureText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{85}[AQgw]==$")]
"""64 bytes in standard base64. The last letter carries 2 bits: four letters, so that a signature has one text."""
Text = Annotated[str, StringConstraints(max_length=4096)]


class Strict(BaseModel):
    """A message: immutable, no unknown fields, no coercion."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def canonical(self) -> bytes:
        """The one byte string that stands for this value."""
        return encode_canonical(self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """The value that `raw` stands for. Raises NotCanonical if `raw` is anything but its canonical encoding,
        which also catches duplicate keys, other key orders, nulls and white space."""
        try:
            value = cls.model_validate_json(raw)
        except ValidationError as error:
            raise NotCanonical(f"not a valid {cls.__name__}: {first_problem(error)}") from error
        if value.canonical() != raw:
            raise NotCanonical(f"not the canonical encoding of this {cls.__name__}")
        return value


class Fact(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, gc=False):
    """A statement that is signed and kept. Texts are checked wherever a value is made, numbers when bytes are read.
    A field with a default is absent where it has that value. Facts hold facts and plain values, never in a circle: so
    Python's collector need not know them."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        check = texts.compiled(cls)
        if check is not None:
            cls.__post_init__ = check  # type: ignore[attr-defined]

    def canonical(self) -> bytes:
        """The one byte string that stands for this value."""
        return _ENCODER.encode(self)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """The value that `raw` stands for. Raises NotCanonical if `raw` is anything but its canonical encoding."""
        value: Self = parse_as(cls, raw)
        return value

    def changed(self, **changes: Any) -> Self:
        """This fact with other values in some fields."""
        return msgspec.structs.replace(self, **changes)

    def plain(self) -> dict[str, Any]:
        """The same as plain JSON values: for printing, and inside messages."""
        return msgspec.to_builtins(self, enc_hook=_encode_other)  # type: ignore[no-any-return]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Inside a message: the same fields and rules, and the same name in its JSON Schema."""

        def made(twin: Strict) -> Any:
            return msgspec.convert(twin.model_dump(mode="json", exclude_none=True), source)

        def taken(value: Any, validated: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, cls) else validated(value)

        twin = handler.generate_schema(texts.model_of(source, Strict))
        read = core_schema.no_info_after_validator_function(made, twin)
        return core_schema.json_or_python_schema(  # a wrapped validator would read JSON's arrays as Python's lists
            json_schema=read,
            python_schema=core_schema.no_info_wrap_validator_function(taken, read),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda fact: fact.plain()),
        )


def parse_as(kind: Any, raw: bytes) -> Any:
    """`Fact.parse` for any type of fact, generic ones too (`Signed[InferenceRequested]`)."""
    name = getattr(kind, "__name__", str(kind))
    try:
        value = texts.decoder_of(kind).decode(raw)
    except UNREADABLE as error:
        raise NotCanonical(f"not a valid {name}: {error}") from error
    except ValidationError as error:
        raise NotCanonical(f"not a valid {name}: {first_problem(error)}") from error
    if _ENCODER.encode(value) != raw:
        raise NotCanonical(f"not the canonical encoding of this {name}")
    return value


def encode_canonical(value: Any) -> bytes:
    return _ENCODER.encode(value)


def first_problem(error: ValidationError) -> str:
    """`field.path: what is wrong`, of the first of pydantic's complaints."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "top level"
    return f"{where}: {first['msg']}"


def _encode_other(value: Any) -> Any:
    """A message inside a signed fact (a heartbeat)."""
    if isinstance(value, Strict):
        return value.model_dump(mode="json", exclude_none=True)
    raise TypeError(f"no canonical form of {type(value).__name__}")


_ENCODER = msgspec.json.Encoder(order="sorted", enc_hook=_encode_other)
