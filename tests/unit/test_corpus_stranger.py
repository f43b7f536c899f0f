"""A verifier that was written from docs/ledger-format.md alone, against ours: it finds the same in every true book, and
refuses every book that replay refuses. Where the two differ, the page is wrong, or one of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus import cast, forgery, make, story, wandering
from corpus.forgery import Json, forged, place_anew, sign_anew
from corpus.recording import folded
from corpus.stranger import WrongBook, verify
from corpus.stranger.proofs import Note, extends, included

from sawyer.ledger.audit import Accounts
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.export import ndjson_line
from sawyer.ledger.replay import replay
from sawyer.ledger.source_ndjson import NdjsonSource

BOOKS = ("example", "book", "future")
SOURCES = Path(make.__file__).with_name("stranger")


def exported(rows: list[StoredRow]) -> bytes:
    return b"".join(map(ndjson_line, rows))


def ask(export: bytes) -> dict[str, Any]:
    return verify(export, cast.VKEYS[0], cast.OPERATOR)


def refused_by_replay(export: bytes, folder: Path) -> int | None:
    """The entry that replay names; None if it finds nothing wrong."""
    path = folder / "book.ndjson"
    path.write_bytes(export)
    problem = replay(NdjsonSource(path), key=cast.VKEYS[0], operator=cast.OPERATOR).problem
    return None if problem is None else problem.seq


def refused_by_stranger(export: bytes) -> int:
    """The entry in the line that the stranger names."""
    with pytest.raises(WrongBook) as caught:
        ask(export)
    number = int(str(caught.value).split()[1].rstrip(":"))
    return sum(not line.startswith(b'{"checkpoint"') for line in export.splitlines()[:number])


def test_stranger_knows_nothing_of_sawyer() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.iterdir() if path.suffix == ".py")
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"", "nacl"}


@pytest.mark.parametrize("name", BOOKS)
def test_stranger_finds_what_was_recorded(name: str) -> None:
    told = ask((make.PLACE / f"{name}.ndjson").read_bytes())
    expected = json.loads((make.PLACE / "recorded.json").read_text())[name]
    assert (told["entries"], told["root"], told["state"]) == (expected["entries"], expected["root"], expected["state"])
    assert sum(told["held"].values()) == sum(each["held"] for each in expected["balances"].values())


def test_stranger_sums_the_same_postings() -> None:
    accounts = Accounts()
    rows = story.whole()
    for row in rows:
        if not row.is_checkpoint:
            accounts.post(decode_entry(row.state))
    sums = {f"{account} {unit}": total for (account, unit), total in sorted(accounts.sums.items()) if total}
    assert ask(exported(rows))["sums"] == sums


@pytest.mark.parametrize("seed", range(6))
def test_stranger_agrees_about_a_book_of_random_commands(seed: int, tmp_path: Path) -> None:
    rows = wandering.book(random.Random(seed))
    export = exported(rows)
    told = ask(export)
    assert told["state"] == folded(rows).digest()
    assert refused_by_replay(export, tmp_path) is None


def test_stranger_says_so_as_a_program() -> None:
    def run(book: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stranger", str(book), cast.VKEYS[0], cast.OPERATOR],
            cwd=SOURCES.parent, check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    good, bad = run(make.PLACE / "example.ndjson"), run(make.PLACE / "recorded.json")
    assert (good.returncode, json.loads(good.stdout)["entries"]) == (0, 9)
    assert (bad.returncode, bad.stdout.splitlines()[0][:18]) == (3, "line 1: not JSON: ")


def test_stranger_accepts_our_proofs_and_cosignatures() -> None:
    def text(name: str) -> str:
        return (make.PLACE / name).read_text(encoding="utf-8")

    vkeys, old = list(cast.VKEYS), Note(text(f"checkpoint-{make.OLD_SIZE}.txt"))
    old.check(vkeys)
    newest = extends(text(f"consistency-{make.OLD_SIZE}.txt"), old, vkeys)
    entry = included(text(f"entry-{make.PROVEN_SEQ}.tlog-proof"), vkeys)
    assert (newest.size, entry["kind"]) == (36, "inference.completed.v1")
    cosigned = Note(text("cosigned.txt"))
    cosigned.check(vkeys)
    assert cosigned.cosigned_at(f"{cast.NETWORK}/witness/node-b", cast.KEYS["node-b"].id) == make.COSIGNED_S


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_no_flipped_bit_is_overlooked() -> None:
    export = (make.PLACE / "example.ndjson").read_bytes()
    chosen = random.Random(1)
    overlooked = []
    for at in [*range(1000), *range(1000, len(export), 5)]:  # replay's own test (test_mutation.py) leaves none out
        changed = bytearray(export)
        changed[at] ^= 1 << chosen.randrange(8)
        try:
            ask(bytes(changed))
        except WrongBook:
            continue
        overlooked.append(at)
    assert overlooked == []


LINES = (make.PLACE / "example.ndjson").read_bytes().splitlines(keepends=True)


def dropped(at: int) -> list[bytes]:
    return [*LINES[:at], *LINES[at + 1 :]]


def moved(at: int) -> list[bytes]:
    rest = dropped(at)
    rest.insert((at + 3) % len(LINES), LINES[at])
    return rest


def doubled(at: int) -> list[bytes]:
    return [*LINES[: at + 1], *LINES[at:]]


@pytest.mark.parametrize("at", range(len(LINES)))
@pytest.mark.parametrize("change", [dropped, moved, doubled])
def test_no_line_can_be_dropped_doubled_or_moved(change: Callable[[int], list[bytes]], at: int, tmp_path: Path) -> None:
    export = b"".join(change(at))
    if change is dropped and at in (1, 8):  # a checkpoint that a later one covers: its number is not in its line (F3)
        assert ask(export)["root"] == ask(b"".join(LINES))["root"]
        assert refused_by_replay(export, tmp_path) is None
        return
    with pytest.raises(WrongBook):
        ask(export)
    assert refused_by_replay(export, tmp_path) is not None


def test_line_that_is_cut_is_refused_by_both(tmp_path: Path) -> None:
    export = b"".join(LINES)[:-1]
    with pytest.raises(WrongBook, match="cut"):
        ask(export)
    assert refused_by_replay(export, tmp_path) is not None


@pytest.mark.parametrize(
    "other",
    [
        {"vkey": cast.VKEYS[1], "operator": cast.OPERATOR},
        {"vkey": cast.VKEYS[0], "operator": cast.KEYS["operator-2"].id},
    ],
    ids=["ledger", "operator"],
)
def test_book_of_other_keys_than_the_trusted_ones_is_refused(other: dict[str, str]) -> None:
    with pytest.raises(WrongBook):
        verify((make.PLACE / "book.ndjson").read_bytes(), **other)


# --- rules: everything is signed, chained and committed to ------------------------------------------------------------


def of_kind(entries: list[Json], kind: str, number: int = 0) -> Json:
    return [entry for entry in entries if entry["kind"].startswith(kind)][number]


def body(kind: str, number: int = 0, **changes: Any) -> forgery.Change:
    """Other words in a body, and its signatures by the same keys."""

    def change(entries: list[Json]) -> None:
        entry = of_kind(entries, kind, number)
        entry["body"] |= changes
        place_anew(entry)
        sign_anew(entry)

    return change


def order(kind: str, number: int = 0, **changes: Any) -> forgery.Change:
    """Other words in an order, both in the reservation and in what ends it."""

    def change(entries: list[Json]) -> None:
        reserved = of_kind(entries, "tokens.reserved", number)
        request = reserved["body"]["request"]["body"]["request"]
        for entry in entries:
            found = entry["body"].get("request")
            if isinstance(found, dict) and found["body"]["request"] == request and entry["kind"].startswith(kind):
                found["body"] |= changes
                sign_anew(entry)

    return change


def decided(kind: str, name: str, number: int = 0, part: int = 0, **changes: Any) -> forgery.Change:
    def change(entries: list[Json]) -> None:
        of_kind(entries, kind, number)["decided"][name][part] |= changes

    return change


def receipt(number: int, **changes: Any) -> forgery.Change:
    def change(entries: list[Json]) -> None:
        entry = of_kind(entries, "inference.completed", number)
        entry["body"]["receipts"][0]["body"] |= changes
        sign_anew(entry)

    return change


def signer(kind: str, key: str, number: int = 0, by: str = "") -> forgery.Change:
    def change(entries: list[Json]) -> None:
        entry = of_kind(entries, kind, number)
        entry["attestations"][0]["key_id"] = cast.KEYS[key].id
        if by:
            entry["attestations"][0]["by"] = by
        sign_anew(entry)

    return change


def frame(kind: str, number: int = 0, **changes: Any) -> forgery.Change:
    def change(entries: list[Json]) -> None:
        of_kind(entries, kind, number).update(changes)

    return change


def later(kind: str, number: int, ms: int) -> forgery.Change:
    def change(entries: list[Json]) -> None:
        of_kind(entries, kind, number)["ts_ms"] += ms

    return change


def without(kind: str, number: int = 0) -> forgery.Change:
    """An entry left out, and all the others renumbered: its successors have lost what they rest on."""

    def change(entries: list[Json]) -> None:
        gone = of_kind(entries, kind, number)
        entries.remove(gone)
        versions: dict[str, int] = {}
        for seq, entry in enumerate(entries, start=1):
            entry["seq"] = seq
            entry["version"] = versions[entry["stream"]] = versions.get(entry["stream"], 0) + 1

    return change


def held_of_another_bucket(entries: list[Json]) -> None:
    of_kind(entries, "tokens.reserved", 4)["decided"]["held"][0]["grant"] = "in-0002"


FORGERIES: dict[str, Callable[[list[Json]], None]] = {
    "debit of more than the price": decided("inference.completed", "debited", tokens=9),
    "debit of less than the price": decided("inference.completed", "debited", tokens=7),
    "release of more than was held": decided("inference.completed", "released", tokens=6),
    "debit from another bucket": decided("inference.completed", "debited", grant="in-0002"),
    "hold in another bucket": held_of_another_bucket,
    "hold of less than the price": decided("tokens.reserved", "held", tokens=12),
    "credit for more rows": decided("inference.completed", "credits", rows=41),
    "credit for more work": decided("inference.completed", "credits", work=9000),
    "credit at a better step": decided("inference.completed", "credits", number=1, sla_milli=1000),
    "credit for another host": decided("inference.completed", "credits", host="carol"),
    "credit by another promise": decided("inference.completed", "credits", promised_us=9999),
    "expired part that is called released": lambda entries: _rename(entries, "expired", "released"),
    "reservation at another price": body("tokens.reserved", tokens=12),
    "reservation beyond ten minutes": body("tokens.reserved", expires_ms=story.day(1, 2) + 660_001),
    "reservation for other weights": body("tokens.reserved", 3, manifest=cast.MANIFESTS["f32"]),
    "order above its ceiling": order("tokens.reserved", token_ceiling=12),
    "order that had expired": order("", expires_ms=story.day(1, 2)),
    "order from the future": order("", issued_ms=story.day(1, 2) + 60_001),
    "order that is good for too long": order("", issued_ms=story.day(1, 2) - 3_600_000),
    "order for a sheet that was replaced": order("", 3, price_sheet=cast.sheet_hash(story.JANUARY)),
    "order for an unknown model": order("", model="bronte"),
    "order that is another at the end": order("inference.completed", max_tokens=9),
    "completion with more tokens than ordered": body("inference.completed", output_tokens=9, fed_tokens=13),
    "completion with another count": body("inference.completed", input_tokens=4),
    "completion that fed more": body("inference.completed", fed_tokens=9),
    "completion without its receipts": body("inference.completed", receipts=[], latencies=[]),
    "latencies of another node": body("inference.completed", 1, latencies=[{"node": "node-b", "p95_us": 1}]),
    "receipt for other rows": receipt(0, rows=41),
    "receipt for another request": receipt(0, request="ff" * 16),
    "receipt over other weights": receipt(0, manifest="cc" * 32),
    "receipt that skips one and says otherwise": receipt(1, previous="cc" * 32),
    "receipt with a used counter": receipt(1, counter=1),
    "void by another router": signer("reservation.voided", "router-2", by="router-2"),
    "reservation by a revoked router": signer("tokens.reserved", "router", 3, by="router"),
    "reservation by nobody's key": signer("tokens.reserved", "bea"),
    "reservation under another name": signer("tokens.reserved", "router", by="bob"),
    "grant by the former operator": signer("tokens.granted", "operator", 1),
    "grant by the ledger": signer("tokens.granted", "ledger", by="ledger"),
    "expiry by the former ledger key": signer("tokens.expired", "ledger"),
    "hold that expires before its time": later("reservation.expired", 0, -1),
    "grant that expires before its time": later("tokens.expired", 0, -1),
    "expiry of less than is left": body("tokens.expired", tokens=1),
    "grant of a tier for less": body("tokens.granted", paid_uusd=4_999_999),
    "grant of more than the tier": body("tokens.granted", tokens=500_001, paid_uusd=5_000_010),
    "grant in another mode": body("tokens.granted", mode="live"),
    "grant that rolls over too long": body("tokens.granted", expires_ms=story.day(4, 1)),
    "grant to nobody": body("tokens.granted", account="zoe"),
    "price sheet with two prices": body("pricing.published", prices=2 * [
        {"format": "f32", "model": "austen", "price_milli": 1000, "quant_milli": 1000}]),
    "snapshot of another state": body("snapshot.taken", digest="cc" * 32),
    "snapshot of another size": body("snapshot.taken", size=17),
    "router's name for the operator's key": body("key.added", 2, name="ledger-2"),
    "revocation of a key in office": body("key.revoked", key=cast.KEYS["ledger"].id),
    "rotation to a key that a node has": body("key.rotated", key=cast.KEYS["node-b"].id),
    "erasure of nobody": body("subject.erased", subject="zoe"),
    "body of another network": body("account.opened", network="corpus-net/00000002"),
    "gap in the sequence": frame("account.opened", seq=9),
    "entry of another log": frame("account.opened", log="corpus-net/00000002"),
    "entry in another stream": frame("account.opened", stream="account:bea"),
    "version that skips one": frame("tokens.granted", version=3),
    "another idempotency key": frame("tokens.granted", idem="grant:in-0009"),
    "entry of another version": frame("tokens.granted", v=2),
    "time that runs backwards": later("tokens.granted", 0, -120_000),
    "grant that was never made": without("tokens.granted"),
    "account that was never opened": without("account.opened"),
    "router that was never added": without("key.added"),
    "release that was never said": without("reservation.voided"),
}  # fmt: skip


def _rename(entries: list[Json], old: str, new: str) -> None:
    for entry in entries:
        if old in entry["decided"]:
            entry["decided"][new] = entry["decided"].pop(old)


@pytest.mark.parametrize("lie", FORGERIES)
def test_lie_that_every_key_signed_is_refused_by_both(lie: str, tmp_path: Path) -> None:
    rows = story.whole()
    export = exported(forged(rows, FORGERIES[lie]))
    assert export != exported(rows)
    assert refused_by_stranger(export) == refused_by_replay(export, tmp_path)


def test_forging_nothing_makes_the_same_book() -> None:
    rows = story.whole()
    assert forged(rows, lambda entries: [sign_anew(entry) for entry in entries] and None) == rows
