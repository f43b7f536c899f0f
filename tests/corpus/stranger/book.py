"""Bytes, signatures, chain, tree and checkpoints: sections B, E, S, T and C of docs/ledger-format.md. What may be said
and decided is in rules.py."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import re
from typing import Any, NoReturn

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError

Json = dict[str, Any]
MOST = 2**53 - 1

TEXTS = {
    "Slug": r"[a-z0-9][a-z0-9_-]{0,62}",
    "Network": r"[a-z0-9][a-z0-9.-]{0,62}/[a-z0-9-]{1,63}",
    "Hex32": r"[0-9a-f]{32}",
    "Sha256": r"[0-9a-f]{64}",
    "PublicKey": r"[UO][A-Z2-7]{55}",
    "SignatureText": r"[A-Za-z0-9+/]{85}[AQgw]==",
    "Kind": r"[a-z]+\.[a-z]+\.v[1-9][0-9]{0,3}",
    "VerifierKey": r"[a-z0-9][a-z0-9./-]{0,126}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}",
    "Device": r"[ -~]{0,128}",
    "TierName": r"([a-z0-9][a-z0-9_-]{0,62})?",
    "SealedText": r"[A-Za-z0-9+/=]{0,8192}",
    "SealNonce": r"[0-9a-f]{48}",
    "Stream": r"[a-z]+:[a-z0-9][a-z0-9_-]{0,62}",
    "Idem": r"[a-z]+:[A-Za-z0-9_:-]{1,160}",
    "Mode": "test|live",
    "Role": "router|ledger|operator",
    "Holder": "node|account",
    "Finish": "stop|length|cancelled",
}  # [B4], and the texts of which only a few are allowed
PARTS = {
    "Signature": "by Slug, key_id PublicKey, sig SignatureText, type Kind",
    "InferenceRequested": "account Slug, content Sha256, expires_ms Count, issued_ms Count, max_tokens Positive, "
    "model Slug, network Network, price_sheet Sha256, request Hex32, token_ceiling Positive",
    "WorkReceipted": "blocks Positive, counter Positive, experts 0-65536*ExpertRows, manifest Sha256, model Slug, "
    "network Network, node Slug, previous Sha256, request Hex32, root Sha256, rows Positive",
    "Order": "body InferenceRequested, signature Signature",
    "Receipt": "body WorkReceipted, signature Signature",
    "Sealed": "box SealedText, nonce SealNonce, subject Slug",
    "ModelPrice": "format Slug, model Slug, price_milli Positive, quant_milli Positive",
    "NodeRows": "node Slug, rows Positive",
    "NodeLatency": "node Slug, p95_us Positive",
    "BucketTokens": "grant Slug, tokens Positive",
    "HostCredit": "host Slug, measured_us Positive, node Slug, promised_us Count, rows Positive, sla_milli Count, "
    "work Count",
    "Frame": "attestations 1-4*Signature, body Any, decided Any, idem Idem, kind Kind, log Network, prev Sha256, "
    "seq Positive, stream Stream, ts_ms Count, v Count, version Positive",
}
KINDS = {
    "network.founded.v1": "founded_ms Count, ledger_vkey VerifierKey, mode Mode, network Network, operator PublicKey",
    "key.added.v1": "key PublicKey, name Slug, network Network, role Role",
    "key.rotated.v1": "key PublicKey, name Slug, network Network, role Holder",
    "key.revoked.v1": "key PublicKey, network Network, reason Slug, since_ms Count",
    "model.published.v1": "expert_parameters Positive, experts Positive, family Slug, format Slug, manifest Sha256, "
    "model Slug, moe_layers Positive, network Network, top_k Positive",
    "pricing.published.v1": "input_weight_milli Count, network Network, output_weight_milli Count, "
    "prices 1-4096*ModelPrice, sheet Slug",
    "node.registered.v1": "device Device, host Slug, key PublicKey, memory_mb Count, network Network, node Slug, "
    "promised_us Count",
    "account.opened.v1": "account Slug, key PublicKey, network Network",
    "tokens.granted.v1": "account Slug, expires_ms Count, grant Slug, mode Mode, network Network, paid_uusd Count, "
    "period_end_ms Count, sealed 0-4*Sealed, tier TierName, tokens Positive, valid_from_ms Count",
    "tokens.expired.v1": "account Slug, grant Slug, network Network, tokens Positive",
    "tokens.reserved.v1": "expires_ms Count, input_tokens Positive, manifest Sha256, network Network, request Order, "
    "tokens Positive",
    "inference.completed.v1": "fed_tokens Positive, finish Finish, input_tokens Positive, "
    "latencies 0-1024*NodeLatency, network Network, output_tokens Positive, receipts 0-1024*Receipt, request Order, "
    "unreceipted 0-1024*NodeRows",
    "reservation.voided.v1": "account Slug, network Network, reason Slug, request Hex32",
    "reservation.expired.v1": "account Slug, network Network, request Hex32",
    "snapshot.taken.v1": "digest Sha256, network Network, rows Positive, size Positive",
    "subject.erased.v1": "network Network, subject Slug",
}  # [K2]
DECIDED = {
    "held": "0-9999*BucketTokens", "debited": "0-9999*BucketTokens", "released": "0-9999*BucketTokens",
    "expired": "0-9999*BucketTokens", "credits": "0-1024*HostCredit",
}  # fmt: skip


class WrongBook(Exception):
    """This is no book, or not the one that was asked for."""


def wrong(why: str) -> NoReturn:
    raise WrongBook(why)


# --- B: bytes ---------------------------------------------------------------------------------------------------------


def written(value: Any) -> bytes:
    """The canonical form [B1]. Python sorts by code points, which for ASCII names is by bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read(raw: bytes) -> Json:
    """A canonical object [B1]."""
    try:
        value = json.loads(raw.decode())
        if not isinstance(value, dict) or written(value) != raw:
            wrong("not canonical JSON")
    except (ValueError, RecursionError) as error:
        wrong(f"not JSON: {error}")
    return value


def check_plain(value: Any) -> None:
    """What the values of any kind may be [B1, B2, E7]."""
    if isinstance(value, dict):
        if not all(map(str.isascii, value)):
            wrong("a name that is not ASCII")
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            check_plain(each)
    elif isinstance(value, int) and abs(value) <= MOST:
        return
    elif not isinstance(value, str):
        wrong(f"a value that may not be: {value!r}")


def check_fields(value: Any, fields: str) -> None:
    """An object with exactly these fields [B3, B4]."""
    types = types_of(fields)
    if not isinstance(value, dict) or value.keys() != types.keys():
        wrong(f"expected the fields {', '.join(types)}")
    for name, kind in types.items():
        check_value(value[name], kind)


@functools.cache
def types_of(fields: str) -> dict[str, str]:
    return dict(each.split(" ") for each in fields.split(", "))


def check_value(value: Any, kind: str) -> None:
    """One value of a type [B4]."""
    bounds, _, item = kind.rpartition("*")
    if bounds:
        least, most = map(int, bounds.split("-"))
        if not isinstance(value, list) or not least <= len(value) <= most:
            wrong(f"expected a list of {bounds}")
        for each in value:
            check_value(each, item)
    elif kind == "ExpertRows":
        if not isinstance(value, list) or len(value) != 3:
            wrong("expected layer, expert and rows")
        for each, part in zip(value, ("Count", "Count", "Positive"), strict=True):
            check_value(each, part)
    elif kind in ("Count", "Positive"):
        if type(value) is not int or not (kind == "Positive") <= value <= MOST:
            wrong(f"expected a {kind}, got {value!r}")
    elif kind in PARTS:
        check_fields(value, PARTS[kind])
    elif kind == "Any":
        if not isinstance(value, dict):
            wrong("expected an object")
    elif not isinstance(value, str) or re.fullmatch(TEXTS[kind], value) is None:
        wrong(f"expected a {kind}, got {value!r}")


def from_base64(text: str) -> bytes:
    """Standard base64 without spare bits [B2]."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        wrong(f"not base64: {error}")
    if base64.b64encode(raw).decode() != text:
        wrong("base64 with spare bits")
    return raw


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


# --- S: signatures ----------------------------------------------------------------------------------------------------


def public_key(nkey: str) -> bytes:
    """The 32 bytes of an NKEY [S4], a valid point [S3]."""
    try:
        raw = base64.b32decode(nkey)
    except binascii.Error as error:
        wrong(f"not an NKEY: {error}")
    if len(raw) != 35 or raw[0] != {"U": 0xA0, "O": 0x70}.get(nkey[0]):
        wrong(f"{nkey} is not the key of a participant or an operator")
    if binascii.crc_hqx(raw[:33], 0).to_bytes(2, "little") != raw[33:]:
        wrong(f"{nkey} has a wrong checksum")
    if not crypto_core_ed25519_is_valid_point(raw[1:33]):
        wrong(f"{nkey} is no valid point")
    return raw[1:33]


def nkey_of(public: bytes) -> str:
    """A participant's NKEY."""
    raw = b"\xa0" + public
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode()


def check_ed25519(public: bytes, message: bytes, signature: bytes) -> None:
    try:
        crypto_sign_open(signature + message, public)
    except (BadSignatureError, ValueError):
        wrong("a signature that does not verify")


def check_signature(signature: Json, kind: str, body: Json) -> None:
    """[S1, S2]"""
    if signature["type"] != kind:
        wrong(f"expected a signature of {kind}")
    name, signed = f"application/vnd.sawyer.{kind}+json".encode(), written(body)
    image = b"DSSEv1 %d %s %d %s" % (len(name), name, len(signed), signed)
    check_ed25519(public_key(signature["key_id"]), image, from_base64(signature["sig"]))


# --- T, C: tree and checkpoints ---------------------------------------------------------------------------------------


def root_of(leaves: list[bytes]) -> bytes:
    """[T2]"""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\x01", root_of(leaves[:split]), root_of(leaves[split:]))


def key_hash(name: str, public: bytes) -> bytes:
    """[C2]"""
    return sha256(name.encode(), b"\n\x01", public)[:4]


def verifier_key(text: str) -> tuple[str, bytes]:
    """(name, public key) of a verifier key [C2]."""
    name, hashed, encoded = text.split("+", 2)
    raw = from_base64(encoded)
    if raw[:1] != b"\x01" or len(raw) != 33 or key_hash(name, raw[1:]).hex() != hashed:
        wrong(f"{text} is not a verifier key")
    public_key(nkey_of(raw[1:]))
    return name, raw[1:]


def checkpoint(note: str, name: str, public: bytes) -> tuple[int, bytes]:
    """(size, root) of a checkpoint that has exactly this one signature [C1, C3]."""
    found = re.fullmatch(r"(([^\n]*)\n(0|[1-9][0-9]{0,15})\n([^\n]*)\n)\n\u2014 ([^\n ]*) ([^\n]*)\n", note)
    if found is None or (found[2], found[5]) != (name, name):
        wrong("not a checkpoint of this network with its one signature")
    root, line = from_base64(found[4]), from_base64(found[6])
    if len(root) != 32 or line[:4] != key_hash(name, public):
        wrong("not signed with the key that is the ledger's")
    check_ed25519(public, found[1].encode(), line[4:])
    return int(found[3]), root


# --- the book ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads rows one after the other. Give each verified entry of a known kind to `judge`."""

    def __init__(self, vkey: str, judge: Any) -> None:
        self.network, self.signer = verifier_key(vkey)
        """`signer`: the key of the next checkpoint [C4]."""
        self.judge = judge
        self.leaves: list[bytes] = []
        self.versions: dict[str, int] = {}
        self.idems: set[str] = set()
        self.time_ms = 0
        self.covered = 0
        self.signatures = 0

    def line(self, line: bytes) -> None:
        """One line of an export [F3]."""
        row = read(line)
        if row.keys() != {"checkpoint"}:
            self.entry(line, row)
        elif isinstance(row["checkpoint"], str):
            self.note(row["checkpoint"])
        else:
            wrong("a checkpoint that is no text")

    def note(self, note: str) -> None:
        """[C3, C4]"""
        size, root = checkpoint(note, self.network, self.signer)
        if not self.covered < size == len(self.leaves):
            wrong(f"a checkpoint of {size} entries after {len(self.leaves)}, {self.covered} covered")
        if root != root_of(self.leaves):
            wrong(f"another tree than the checkpoint of {size} entries signs")
        self.covered, self.signer = size, public_key(self.judge.ledger)

    def entry(self, raw: bytes, entry: Json) -> None:
        """[E, S2], then the rules."""
        check_plain(entry)
        check_fields(entry, PARTS["Frame"])
        kind, body = entry["kind"], entry["body"]
        known = kind in KINDS
        if known:
            check_fields(body, KINDS[kind])
            for name, value in entry["decided"].items():
                check_value(value, DECIDED.get(name) or wrong(f"an unknown decision {name}"))
        self.chain(entry, known)
        if known and len(entry["attestations"]) != (2 if kind == "key.rotated.v1" else 1):
            wrong("too many or too few attestations")
        for signature in entry["attestations"]:
            self.signed(signature, kind, body)
        if kind in ("tokens.reserved.v1", "inference.completed.v1"):
            self.signed(body["request"]["signature"], "inference.requested.v1", body["request"]["body"])
        for receipt in body["receipts"] if kind == "inference.completed.v1" else ():
            self.signed(receipt["signature"], "work.receipted.v1", receipt["body"])
        self.judge.entry(entry)
        self.leaves.append(sha256(b"\x00", raw))
        self.judge.tree(self.leaves)

    def chain(self, entry: Json, known: bool) -> None:
        """[E2 to E6]"""
        prev = self.leaves[-1].hex() if self.leaves else "0" * 64
        expected = (1, self.network, len(self.leaves) + 1, prev)
        if (entry["v"], entry["log"], entry["seq"], entry["prev"]) != expected:
            wrong(f"expected v, log, seq and prev {expected}")
        if entry["ts_ms"] < self.time_ms:
            wrong("time runs backwards")
        self.time_ms = entry["ts_ms"]
        stream, of_request = entry["stream"], entry["stream"].startswith("request:")
        version = self.versions.get(stream, 0) + 1
        if entry["version"] != version and (known or not of_request):
            wrong(f"expected version {version} of {stream}")
        self.versions[stream] = entry["version"]
        if entry["idem"] in self.idems:
            wrong(f"the idempotency key {entry['idem']} was used before")
        if not of_request:
            self.idems.add(entry["idem"])
        if known and entry["body"]["network"] != self.network:
            wrong("a body of another network")

    def signed(self, signature: Json, kind: str, body: Json) -> None:
        check_signature(signature, kind, body)
        self.signatures += 1

    def end(self) -> None:
        """[C3]"""
        if not self.leaves or self.covered != len(self.leaves):
            wrong(f"of {len(self.leaves)} entries {self.covered} are covered by a checkpoint")


def lines_of(raw: bytes) -> list[bytes]:
    """The lines of an export [F3]."""
    if raw and not raw.endswith(b"\n"):
        wrong("the last line is cut")
    return raw.split(b"\n")[:-1]
