"""The rules of a fact's text fields, compiled from its annotations; and the twins that let facts stand inside messages.

msgspec reads facts and checks their numbers in C, but runs a pattern through `re` at half a microsecond a field. Here a
text that was checked before costs a set lookup: names, keys and hashes of models come again and again in a book.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Callable
from typing import Any, Final, get_args, get_origin

import msgspec
from pydantic import BaseModel, StringConstraints, create_model

LONGEST_KNOWN: Final = 128
"""Characters. Texts are remembered before anybody's signature was verified: a stranger fills this, and no more."""
MOST_KNOWN: Final = 65_536
"""Texts that one rule remembers; then it starts anew."""
_HEX: Final = re.compile(r"\^\[0-9a-f\]\{(\d*[02468])\}\$")
"""Patterns of bytes as hexadecimal digits."""
_BASE64: Final = "==$"
"""How patterns of base64 end."""
Check = Callable[[Any], None]


class Recurring:
    """Marks a text field whose values come again and again, though its pattern is of hexadecimal digits."""


class Rule:
    """One pattern, and the texts that are known to fit it, if it `remembers` them: those of base64 and hexadecimal
    digits (hashes, request ids, signatures) seldom come again. `digits`: so many hexadecimal ones; 0 for any other
    pattern."""

    def __init__(self, pattern: str, recurring: bool) -> None:
        found = _HEX.fullmatch(pattern)
        self.pattern = pattern
        self.digits = int(found[1]) if found else 0
        self.remembers = recurring or not (found or pattern.endswith(_BASE64))
        self.known: set[str] = set()
        self.fits = re.compile(pattern).fullmatch

    def check(self, value: object, field: str) -> None:
        """Raises ValueError for a text that does not fit, and for what is no text."""
        if not isinstance(value, str) or self.fits(value) is None:
            raise ValueError(f"{field}: {str(value)[:80]!r} does not match {self.pattern}")
        if not self.remembers or len(value) > LONGEST_KNOWN:
            return
        if len(self.known) >= MOST_KNOWN:
            self.known.clear()
        self.known.add(value)


@functools.cache
def rule_of(pattern: str, recurring: bool = False) -> Rule:
    """The one rule of a pattern."""
    return Rule(pattern, recurring)


def compiled(kind: type) -> Check | None:
    """What raises ValueError if a text of such a fact breaks its pattern; None if no field has one. One straight
    expression of a lookup a field, at millions of facts; only if it does not hold, field after field is judged."""
    rules = [(field, rule_of(pattern, recurring)) for field, pattern, recurring in _patterns(kind)]
    if not rules:
        return None
    names: dict[str, Any] = {"judge": functools.partial(_judge, rules), "fromhex": bytes.fromhex}
    tests, digits = [], []
    for number, (field, rule) in enumerate(rules):
        value = f"fact.{field}"
        names |= {f"known{number}": rule.known, f"fits{number}": rule.fits}
        if rule.remembers:
            tests.append(f"{value} in known{number}")
        elif rule.digits:
            tests.append(f"len({value}) == {rule.digits}")
            digits.append(value)
        else:
            tests.append(f"fits{number}({value})")
    if digits:  # what comes out the same when it is read and written again: quicker to judge than by a pattern
        tests.append(f"fromhex(all_digits := {' + '.join(digits)}).hex() == all_digits")
    source = f"""
def compiled(fact):
    try:
        if {" and ".join(tests)}: return
    except (TypeError, ValueError):
        pass
    judge(fact)
"""
    exec(source, names)  # noqa: S102 (made of our own field names; dataclasses do the same)
    return typing.cast("Check", names["compiled"])


def _judge(rules: list[tuple[str, Rule]], fact: Any) -> None:
    for field, rule in rules:
        rule.check(getattr(fact, field), field)


def _patterns(kind: type) -> list[tuple[str, str, bool]]:
    """(field, pattern, whether its values recur) of every text field that has one."""
    found = []
    for field, hint in typing.get_type_hints(kind, include_extras=True).items():
        extras = getattr(hint, "__metadata__", ())
        for extra in extras:
            if isinstance(extra, StringConstraints) and isinstance(extra.pattern, str):
                found.append((field, extra.pattern, Recurring in extras))
    return found


@functools.cache
def decoder_of(kind: Any) -> msgspec.json.Decoder[Any]:
    """Reads this type of fact."""
    return msgspec.json.Decoder(kind, dec_hook=_decode_other)


def _decode_other(kind: Any, value: Any) -> Any:
    """A message inside a signed fact."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_validate_json(msgspec.json.encode(value))
    raise TypeError(f"no way to read a {kind}")


@functools.cache
def model_of(kind: Any, base: type[BaseModel]) -> type[BaseModel]:
    """The pydantic model with the fields and rules of this type of fact: for messages that hold one, and for its JSON
    Schema. Signed[Body] is named so."""
    origin = get_origin(kind) or kind
    hints = typing.get_type_hints(origin, include_extras=True)
    given = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=True))
    fields: dict[str, Any] = {}
    for info in msgspec.structs.fields(origin):
        default = ... if info.default is msgspec.NODEFAULT else info.default
        fields[info.name] = (_twin(given.get(hints[info.name], hints[info.name]), base), default)
    name = origin.__name__ + "".join(f"[{each.__name__}]" for each in given.values())
    return create_model(name, __base__=base, __doc__=origin.__doc__, __module__=origin.__module__, **fields)


def _twin(hint: Any, base: type[BaseModel]) -> Any:
    """The annotation with every fact in it replaced by its model."""
    origin = get_origin(hint)
    if _is_fact(origin or hint):
        return model_of(hint, base)
    if origin is typing.Annotated:
        inner, *extras = get_args(hint)
        return typing.Annotated[(_twin(inner, base), *(e for e in extras if not isinstance(e, msgspec.Meta)))]
    if origin is tuple:
        return tuple[tuple(each if each is ... else _twin(each, base) for each in get_args(hint))]  # type: ignore[misc]
    if origin is not None and type(None) in get_args(hint):
        (inner,) = (each for each in get_args(hint) if each is not type(None))
        return _twin(inner, base) | None
    return hint


def _is_fact(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
