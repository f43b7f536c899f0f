"""The parts of docs/ledger-format.md that are made from the code: types, fields of every kind, and the worked example.

Each stands between `<!-- made: NAME -->` and `<!-- end: NAME -->`; corpus/make.py writes them, a test compares them.
"""

from __future__ import annotations

import base64
import hashlib
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec
from corpus import cast, story
from corpus.recording import folded
from pydantic import StringConstraints

from sawyer.ledger.checkpoint import Checkpoint, Verifier, signatures_of
from sawyer.ledger.commands import Claim, claims
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.export import ndjson_line
from sawyer.ledger.merkle import leaf_hash, node_hash
from sawyer.ledger.state import State
from sawyer.schemas import base, events, signed
from sawyer.schemas.signed import pre_image

PAGE: Final = Path(__file__).parents[2] / "docs" / "ledger-format.md"
_BLOCK: Final = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
_TYPES: Final[dict[str, tuple[Any, str]]] = {
    "Count": (base.Count, "also times, in milliseconds since 1970-01-01 UTC"),
    "Positive": (base.Positive, ""),
    "Slug": (base.Slug, "a name"),
    "Network": (base.Network, "the network's id"),
    "Hex32": (base.Hex32, "an id"),
    "Sha256": (base.Sha256, "a hash"),
    "PublicKey": (base.PublicKey, "an NKEY (S4)"),
    "SignatureText": (base.SignatureText, "64 bytes in base64"),
    "Kind": (signed.Kind, ""),
    "VerifierKey": (events.VerifierKey, "C2"),
    "Device": (events.Device, "printable ASCII, may be empty"),
    "TierName": (events.TierName, "may be empty"),
    "SealedText": (events.SealedText, "base64 of what is sealed"),
    "SealNonce": (events.SealNonce, "24 bytes"),
}  # fmt: skip
_PARTS: Final = (
    signed.Signed, signed.Signature, events.InferenceRequested, events.WorkReceipted, events.Sealed, events.ModelPrice,
    events.NodeRows, events.NodeLatency, events.BucketTokens, events.HostCredit,
)  # fmt: skip
_HEX_LINE: Final = 64


def blocks() -> dict[str, str]:
    """Name -> text, without its marks."""
    return {
        "types": "\n".join(_type_table()),
        "frame": "\n".join(_fields_table("field", _hints(events.EntryFrame))),
        "kinds": "\n".join(_kind_table()),
        "parts": "\n".join(_part_table()),
        "rows": "\n".join(_row_table()),
        "example": "\n".join(_example()),
    }


def filled(page: str) -> str:
    """The page with every made part as the code makes it."""
    made = blocks()
    return _BLOCK.sub(lambda found: f"{found[1]}\n{made[found[2]]}\n\n{found[3]}", page)


def write() -> bool:
    """True if the page changed."""
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if new != old:
        PAGE.write_text(new, encoding="utf-8")
    return new != old


# --- types and fields -------------------------------------------------------------------------------------------------


def _type_table() -> Iterator[str]:
    yield "| type | JSON | must match | what |"
    yield "| --- | --- | --- | --- |"
    for name, (hint, what) in _TYPES.items():
        kind, *extras = get_args(hint)
        if kind is int:
            (meta,) = (each for each in extras if isinstance(each, msgspec.Meta))
            yield f"| {name} | integer | {meta.ge} to {meta.le} | {what} |"
        else:
            yield f"| {name} | text | `{_pattern(extras)}` | {what} |"


def _pattern(extras: list[Any]) -> str:
    (pattern,) = (each.pattern for each in extras if isinstance(each, StringConstraints))
    return pattern.replace("|", "\\|")


def _kind_table() -> Iterator[str]:
    yield "| kind | fields of `body` |"
    yield "| --- | --- |"
    for kind, body in events.KINDS.items():
        yield f"| `{kind}` | {_fields(body)} |"


def _part_table() -> Iterator[str]:
    yield "| part | fields |"
    yield "| --- | --- |"
    for part in _PARTS:
        yield f"| {part.__name__} | {_fields(part)} |"
    yield "| ExpertRows | a list of three: layer Count, expert Count, rows Positive |"
    yield f"| `decided` | {_fields(events.Decided)}; each is there only where D says so |"


def _row_table() -> Iterator[str]:
    yield "| view | key | fields of the row |"
    yield "| --- | --- | --- |"
    for view in sorted(State("", "", "").folds, key=lambda view: view.name):
        for word, row in sorted(view.row_types.items()):
            key = {"": "any", "head": "`head`", "network": "`network`", "pricing": "`pricing`", "pool": "`pool`"}
            fields = ", ".join(f"`{name}`" for name in sorted(row.__struct_fields__))
            yield f"| {view.name} | {key.get(word, f'`{word}:`')} | {fields} |"


def _fields_table(title: str, hints: dict[str, Any]) -> Iterator[str]:
    yield f"| {title} | type |"
    yield "| --- | --- |"
    for name in sorted(hints):
        yield f"| `{name}` | {_shown(hints[name])} |"


def _fields(kind: type) -> str:
    hints = _hints(kind)
    return ", ".join(f"`{name}` {_shown(hints[name])}" for name in sorted(hints))


def _hints(kind: type) -> dict[str, Any]:
    names = getattr(kind, "__struct_fields__", None) or kind.model_fields  # type: ignore[attr-defined]
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in names}


def _shown(hint: Any) -> str:
    """A field's type in words."""
    for name, (known, _) in _TYPES.items():
        if _same(hint, known):
            return name
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        inner, *extras = arguments
        if inner is str:
            return f"text `{_pattern(extras)}`"
        return f"{_bounds(extras)} {_shown(get_args(inner)[0])}"
    if origin is Literal:
        return " or ".join(f'`"{each}"`' if isinstance(each, str) else f"`{each}`" for each in arguments)
    if hint == events.ExpertRows:
        return "ExpertRows"
    if origin is tuple:
        return f"list of {_shown(arguments[0])}"
    if type(None) in arguments:
        return _shown(arguments[0])
    if origin is signed.Signed:
        return f"Signed {arguments[0].__name__}"
    if origin is dict:
        return "object"
    return "object: what was said" if isinstance(hint, typing.TypeVar) else hint.__name__


def _same(hint: Any, known: Any) -> bool:
    """Of two annotated types; pydantic changes what it has made a field of."""
    rules = [
        [(getattr(each, "pattern", ""), getattr(each, "ge", None)) for each in get_args(one)] for one in (hint, known)
    ]
    return get_origin(hint) is typing.Annotated and get_args(hint)[0] is get_args(known)[0] and rules[0] == rules[1]


def _bounds(extras: list[Any]) -> str:
    bounds = [bound for each in extras for bound in getattr(each, "metadata", ())]
    least = next((each.min_length for each in bounds if hasattr(each, "min_length")), 0)
    most = next(each.max_length for each in bounds if hasattr(each, "max_length"))
    return f"list of {least} to {most}"


# --- the worked example -----------------------------------------------------------------------------------------------


def _example() -> Iterator[str]:
    rows = story.example()
    yield from _example_keys()
    checkpoints = 0
    for number, row in enumerate(rows, start=1):
        if row.is_checkpoint:
            checkpoints += 1
            yield from _example_checkpoint(number, row, checkpoints)
        else:
            yield from _example_entry(number, row)
    yield from _example_tree([leaf_hash(row.state) for row in rows if not row.is_checkpoint])
    yield from _example_end()


def _example_keys() -> Iterator[str]:
    yield "| who | secret: 32 times | public key | NKEY |"
    yield "| --- | --- | --- | --- |"
    for name in ("operator", "ledger", "router", "node-a", "alice"):
        key = cast.KEYS[name]
        yield f"| {name} | `{cast.SECRETS[name]:02x}` | `{key.public.hex()}` | `{key.id}` |"
    verifier = Verifier.parse(cast.VKEYS[0])
    yield f"\nThe ledger's verifier key is `{verifier.vkey}`, its key hash `{verifier.key_hash.hex()}`."


def _example_entry(number: int, row: StoredRow) -> Iterator[str]:
    entry = decode_entry(row.state)
    yield f"\n### Row {number}: entry {entry.seq}, `{entry.kind}`\n"
    yield f"```json\n{row.state.decode()}\n```\n"
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        yield from _example_claim(claim)
    if entry.seq == 1:
        image = pre_image(entry.kind, entry.statement)
        yield f"\nThis pre-image, all {len(image)} bytes of it:\n\n```\n{_hex(image)}\n```\n"
    yield f"- leaf hash `{entry.leaf}`, of {len(row.state)} bytes"


def _example_claim(claim: Claim) -> Iterator[str]:
    image = pre_image(claim.kind, claim.statement)
    head = image[: len(image) - len(claim.statement)].decode()
    raw = base64.b64decode(claim.signature.sig)
    yield f"- signed by {claim.signature.by}: `{head}` and then the {len(claim.statement)} bytes of the body;"
    yield f"  SHA-256 of all {len(image)} bytes `{hashlib.sha256(image).hexdigest()}`,"
    yield f"  signature `{raw.hex()}`"


def _example_checkpoint(number: int, row: StoredRow, count: int) -> Iterator[str]:
    note = row.state.decode()
    checkpoint = Checkpoint.read(note)
    (line,) = signatures_of(note)
    yield f"\n### Row {number}: checkpoint {count}, of {checkpoint.size} entries\n"
    yield f"```\n{note}```\n"
    yield f"- root `{checkpoint.root.hex()}`"
    body = checkpoint.body.encode()
    yield f"- signed are the first {len(body)} bytes, three lines with their line feeds: `{body.hex()}`"
    yield f"- the line of the signature holds key hash `{line.key_hash.hex()}` and signature `{line.signature.hex()}`"
    yield f"- in an export this row is the line `{_line(row)}`"


def _line(row: StoredRow) -> str:
    return ndjson_line(row).decode().rstrip("\n")


def _example_tree(leaves: list[bytes]) -> Iterator[str]:
    """Every inner node of the tree, from left to right and upwards."""
    yield f"\n### The tree over these {len(leaves)} entries\n"
    yield "| leaves | hash |"
    yield "| --- | --- |"
    nodes = [((number, number), leaf) for number, leaf in enumerate(leaves, start=1)]
    while len(nodes) > 1:
        paired = []
        for left, right in zip(nodes[::2], nodes[1::2], strict=False):
            span, made = (left[0][0], right[0][1]), node_hash(left[1], right[1])
            yield f"| {span[0]} to {span[1]} | `{made.hex()}` |"
            paired.append((span, made))
        nodes = [*paired, *(nodes[-1:] if len(nodes) % 2 else [])]


def _example_end() -> Iterator[str]:
    """What the book comes to."""
    rows = story.example()
    state = folded(rows)
    yield "\n### What it comes to\n"
    account, bucket = state.balances.account("alice"), state.balances.bucket("in-0001")
    assert account is not None
    assert bucket is not None
    yield (
        f"alice was granted {account.granted} tokens, {bucket.available} are left, {account.consumed} consumed, none "
        "held. "
        f"The debit earned {state.payouts.earned_uusd} uUSD of the {500_000 * 10} that were paid. "
        f"bob's weight is {state.payouts.hosts['bob'].work}. The state's digest (Z1) is `{state.digest()}`, "
        "over these lines:\n"
    )
    lines = (f"{fold.name} {fold.digest()}" for fold in sorted(state.folds, key=lambda fold: fold.name))
    yield "```\n" + "\n".join(lines) + "\n```"
    yield "\nand these rows:\n"
    yield "```"
    for fold in sorted(state.folds, key=lambda fold: fold.name):
        for key, raw in fold.encoded_rows():
            yield f"{fold.name} {key} {raw.decode()}"
    yield "```"


def _hex(raw: bytes) -> str:
    return "\n".join(textwrap.wrap(raw.hex(), _HEX_LINE))
