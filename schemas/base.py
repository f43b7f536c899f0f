"""What every schema here shares: the strict base model, the one canonical JSON encoding, and field types.

Canonical JSON: keys sorted, no spaces, UTF-8, integers below 2^53, absent instead of null. For the types used here it
is byte-identical to RFC 8785 (JCS). Everything that is signed is signed over these bytes.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sawyer.errors import NotCanonical
from sawyer.ids import SLUG_PATTERN

MAX_SAFE_INTEGER = 2**53 - 1

Count = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
Positive = Annotated[int, Field(ge=1, le=MAX_SAFE_INTEGER)]
TimeMs = Annotated[int, Field(ge=0, le=MAX_SAFE_INTEGER)]
Slug = Annotated[str, StringConstraints(pattern=SLUG_PATTERN)]
Network = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}/[a-z0-9-]{1,63}$")]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[UO][A-Z2-7]{55}$")]
SignatureText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{85}[AQgw]==$")]
"""64 bytes in standard base64. The last letter carries 2 bits: four letters, so that a signature has one text."""
Text = Annotated[str, StringConstraints(max_length=4096)]


class Strict(BaseModel):
    """Immutable, no unknown fields, no coercion."""

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


def encode_canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def first_problem(error: ValidationError) -> str:
    """`field.path: what is wrong`, of the first of pydantic's complaints."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "top level"
    return f"{where}: {first['msg']}"
