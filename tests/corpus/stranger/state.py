"""The state of a book and its digest, by somebody else: every row of every view, written from section Z of
docs/ledger-format.md. So a `snapshot.taken` is checked too."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from .book import KINDS, Json, root_of, sha256, written
from .rules import Rules, expect

ROWS = 3
"""The version of the rows that are made here."""


class StateRules(Rules):
    """The rules, and the rows that follow."""

    def __init__(self, operator: str) -> None:
        super().__init__(operator)
        self.views: dict[str, dict[str, Json]] = {
            name: {} for name in ("audit_chain", "balances", "entries", "nodes", "payouts", "registry", "usage")
        }
        self._grants: dict[str, int] = defaultdict(int)
        self._successors = 0

    def digest(self) -> str:
        """[Z1]"""
        self._sum_up()
        lines = []
        for name, view in sorted(self.views.items()):
            rows = b""
            for key, row in sorted((key.encode(), written(row)) for key, row in view.items()):
                rows += b"%d:%s%d:%s" % (len(key), key, len(row), row)
            lines.append(f"{name} {sha256(rows).hex()}\n")
        return sha256("".join(lines).encode()).hex()

    def told(self) -> Json:
        return {**super().told(), "state": self.digest()}

    def tree(self, leaves: list[bytes]) -> None:
        """The tree over all entries so far [Z9]."""
        self.views["audit_chain"]["head"] |= {"leaf": leaves[-1].hex(), "root": root_of(leaves).hex()}

    def entry(self, entry: Json) -> None:
        """The rules first; a snapshot names the digest before it [D16]."""
        if entry["kind"] == "snapshot.taken.v1" and entry["body"]["rows"] == ROWS:
            expect(entry["body"]["digest"] == self.digest(), "another state than the snapshot's")
        super().entry(entry)
        self._chain(entry)
        if entry["kind"] in KINDS:
            self._keep(entry, entry["body"])

    # --- audit_chain and entries: Z8, Z9 ------------------------------------------------------------------------------

    def _chain(self, entry: Json) -> None:
        rows, kind, signature, stream = (
            self.views["audit_chain"],
            entry["kind"],
            entry["attestations"][0],
            entry["stream"],
        )
        rows["head"] = {"seq": entry["seq"], "ts_ms": entry["ts_ms"]}
        counted = rows.setdefault(f"kind:{kind}", {"entries": 0, "known": kind in KINDS})
        counted["entries"] += 1
        signer = rows.setdefault(f"signer:{signature['key_id']}", {"entries": 0})
        signer |= {"entries": signer["entries"] + 1, "by": signature["by"]}
        rows[f"stream:{stream}"] = {"version": entry["version"]}
        if kind in ("inference.completed.v1", "reservation.voided.v1", "reservation.expired.v1"):
            del rows[f"stream:{stream}"]
        if not stream.startswith("request:"):
            self.views["entries"][entry["idem"]] = {
                "seq": entry["seq"], "stream": stream, "version": entry["version"], "content": content(entry),
                "signer": signature["key_id"],
            }  # fmt: skip

    # --- registry and usage, entry by entry: Z3, Z7 -------------------------------------------------------------------

    def _keep(self, entry: Json, body: Json) -> None:
        rows, kind, seq = self.views["registry"], entry["kind"], entry["seq"]
        if kind == "network.founded.v1":
            rows["network"] = body
        elif kind == "key.added.v1":
            self._keep_key(entry, body)
        elif kind == "key.revoked.v1":
            row = rows.setdefault(f"revoked:{body['key']}", {"seq": seq, "since_ms": 0, "reason": body["reason"]})
            row["since_ms"] = min(filter(None, (row["since_ms"], body["since_ms"])), default=0)
        elif kind == "model.published.v1":
            rows[f"model:{body['model']}"] = {**body, "seq": seq}
            rows[f"manifest:{body['model']}:{body['manifest']}"] = {**body, "seq": seq}
        elif kind == "pricing.published.v1":
            if "pricing" in rows:
                rows[f"sheet:{rows['pricing']['sheet_sha256']}"]["superseded_ms"] = entry["ts_ms"]
            rows["pricing"] = {"sheet_sha256": self.newest_sheet}
            rows[f"sheet:{self.newest_sheet}"] = {"sheet": written(body).decode(), "seq": seq, "superseded_ms": 0}
        elif kind == "account.opened.v1":
            self.views["balances"][f"account:{body['account']}"] = {"seq": seq}
        elif kind == "tokens.granted.v1":
            self._grants[body["account"]] += 1
        elif kind == "inference.completed.v1":
            self._keep_use(entry, body)

    def _keep_key(self, entry: Json, body: Json) -> None:
        rows, role, seq, signature = self.views["registry"], body["role"], entry["seq"], entry["attestations"][0]
        rows[f"key:{body['key']}"] = {"role": role, "name": body["name"], "valid_from_seq": seq}
        if role != "router":
            self._successors += 1
            rows[f"holder:{role}"] = {"key": body["key"], "seq": seq}
            rows[f"successor:{self._successors:06d}"] = {
                "statement": written(body).decode(), "by": signature["by"], "key_id": signature["key_id"],
                "sig": signature["sig"],
            }  # fmt: skip

    def _keep_use(self, entry: Json, body: Json) -> None:
        day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=entry["ts_ms"])).strftime("%Y-%m-%d")
        used, paid, credits = self.views["usage"], self.views["payouts"], entry["decided"]["credits"]
        billed = sum(part["tokens"] for part in entry["decided"]["debited"])
        counts = {"input_tokens": body["input_tokens"], "output_tokens": body["output_tokens"], "billed_tokens": billed}
        increase(used, f"model:{body['request']['body']['model']}:{day}", {"requests": 1, **counts})
        for host in {each["host"] for each in credits}:
            mine = [each for each in credits if each["host"] == host]
            rows, work = (sum(each[name] for each in mine) for name in ("rows", "work"))
            weight = sum(each["work"] * each["sla_milli"] for each in mine)
            increase(used, f"host:{host}:{day}", {"requests": 1, "rows": rows, "work": str(work)})
            row = increase(
                paid, f"host:{host}", {"requests": 1, "rows": rows, "work": str(work), "weight_milli": str(weight)}
            )
            row["nodes"] = sorted({*row.get("nodes", ()), *(each["node"] for each in mine)})

    # --- what the rules know, as rows: Z4 to Z6 -----------------------------------------------------------------------

    def _sum_up(self) -> None:
        self._sum_up_nodes()
        self._sum_up_balances()
        self._sum_up_money()

    def _sum_up_nodes(self) -> None:
        for name, node in self.nodes.items():
            told = {word: node.body[word] for word in ("host", "device", "memory_mb", "promised_us")}
            gaps = [[counter, *known] for counter, known in sorted(node.gaps.items())]
            self.views["nodes"][name] = {
                **told, "key": node.key, "seq": node.seq, "counter": node.counter, "last_receipt": node.last,
                "gaps": gaps, "given_up": node.given_up, "former": node.former,
            }  # fmt: skip

    def _sum_up_balances(self) -> None:
        rows = self.views["balances"]
        for name, key in self.accounts.items():
            mine = [bucket for bucket in self.buckets.values() if bucket.account == name]
            rows[f"account:{name}"] |= {
                "key": key, "granted": sum(each.body["tokens"] for each in mine), "grants": self._grants[name],
                "held": sum(each.held for each in mine), "consumed": sum(each.consumed for each in mine),
                "expired": sum(each.expired for each in mine), "erased": name in self.erased,
            }  # fmt: skip
        for grant, bucket in self.buckets.items():
            told = {
                word: bucket.body[word] for word in ("tokens", "valid_from_ms", "period_end_ms", "expires_ms", "tier")
            }
            rows[f"bucket:{grant}"] = {
                **told, "grant": grant, "account": bucket.account, "seq": bucket.order[1], "held": bucket.held,
                "available": bucket.available, "consumed": bucket.consumed, "expired": bucket.expired,
            }  # fmt: skip
        for key in [key for key in rows if key.startswith("request:")]:
            del rows[key]
        for request, (entry, held) in self.open.items():
            rows[f"request:{request}"] = open_row(entry, held)

    def _sum_up_money(self) -> None:
        rows, totals = self.views["payouts"], {"earned_uusd": 0, "breakage_uusd": 0}
        for grant, bucket in self.buckets.items():
            paid = bucket.body["paid_uusd"]
            if paid:
                used = self.earned["revenue:usage", grant]
                lost = self.earned["revenue:breakage", grant]
                rows[f"grant:{grant}"] = {"paid_uusd": paid, "earned_uusd": used, "breakage_uusd": lost}
                totals = {"earned_uusd": totals["earned_uusd"] + used, "breakage_uusd": totals["breakage_uusd"] + lost}
        if any(totals.values()):
            rows["pool"] = {name: str(total) for name, total in totals.items()}


def open_row(entry: Json, held: list[tuple[str, int]]) -> Json:
    """A request that holds tokens [Z5]."""
    body = entry["body"]
    order = body["request"]["body"]
    return {
        "status": "held", "account": order["account"], "order": sha256(written(body["request"])).hex(),
        "content": order["content"], "manifest": body["manifest"], "router": entry["attestations"][0]["key_id"],
        "input_tokens": body["input_tokens"], "expires_ms": body["expires_ms"], "held": [list(part) for part in held],
        "seq": entry["seq"], "reserved": content(entry), "output_tokens": 0, "billed_tokens": 0, "ended": "",
    }  # fmt: skip


def content(entry: Json) -> str:
    """The content hash of an entry [Z5]."""
    return sha256(entry["kind"].encode(), b"\0", written(entry["body"])).hex()


def increase(rows: dict[str, Json], key: str, amounts: Json) -> Json:
    """Add to a row's numbers, which may be decimal text; the row."""
    row = rows.setdefault(key, {})
    for name, amount in amounts.items():
        total: Any = int(row.get(name, 0)) + int(amount)
        row[name] = str(total) if isinstance(amount, str) else total
    return row
