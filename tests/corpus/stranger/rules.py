"""What may be decided, by somebody else: authority, prices, buckets, requests, credits and postings, written from
docs/ledger-format.md alone. Names in brackets are the page's rules."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from .book import Json, nkey_of, public_key, sha256, verifier_key, written, wrong

DAY_MS = 86_400_000
MONTH_MS = 31 * DAY_MS
TIERS = {"explorer": 500_000, "builder": 2_000_000, "operator": 5_000_000}
MOST_GRANTED = (2**53 - 1) // 10
MOST = 2**53 - 1
MOST_GAPS = 256
ZEROS = "0" * 64
Parts = list[tuple[str, int]]


def expect(holds: object, why: str) -> None:
    """Nothing that does not hold may stand in a book."""
    if not holds:
        wrong(why)


@dataclass
class Bucket:
    """[D7] `order` sorts the buckets of an account."""

    grant: str
    account: str
    order: tuple[int, int]
    body: Json
    available: int
    held: int = 0
    consumed: int = 0
    expired: int = 0

    def is_live(self, now_ms: int) -> bool:
        return bool(self.body["valid_from_ms"] <= now_ms < self.body["expires_ms"])


@dataclass
class Node:
    """[D15] `gaps`: counter -> [hash, previous], "" where not known."""

    body: Json
    seq: int
    key: str
    former: list[str] = field(default_factory=list)
    counter: int = 0
    last: str = ZEROS
    gaps: dict[int, list[str]] = field(default_factory=dict)
    given_up: int = 0

    def receive(self, receipt: Json) -> None:
        """Take a receipt in, if it fits."""
        body, digest = receipt["body"], sha256(written(receipt)).hex()
        counter, previous = body["counter"], body["previous"]
        if counter > self.counter:
            skipped = range(self.counter + 1, counter)
            expect(len(skipped) <= MOST_GAPS, "a receipt that skips too many")
            expect(skipped or previous == self.last, "a receipt that does not follow its node's last")
            self.gaps |= {each: ["", ""] for each in skipped}
            if skipped:
                self.gaps[skipped[0]][1] = self.last
                self.gaps[skipped[-1]][0] = previous
            while len(self.gaps) > MOST_GAPS:
                self.given_up = min(self.gaps)
                del self.gaps[self.given_up]
            self.counter, self.last = counter, digest
            return
        expect(counter in self.gaps, "a receipt that came before")
        known = self.gaps.pop(counter)
        expect(known[0] in ("", digest) and known[1] in ("", previous), "a receipt that does not fit its neighbours")
        if counter - 1 in self.gaps:
            self.gaps[counter - 1][0] = previous
        if counter + 1 in self.gaps:
            self.gaps[counter + 1][1] = digest


class Rules:
    """All that was said so far, and what it came to."""

    def __init__(self, operator: str) -> None:
        self.operator = operator
        self.ledger = ""
        self.founding: Json = {}
        self.roles: dict[str, tuple[str, str]] = {}
        self.revoked: set[str] = set()
        self.models: dict[str, Json] = {}
        self.manifests: dict[tuple[str, str], Json] = {}
        self.sheets: dict[str, Json] = {}
        self.replaced_ms: dict[str, int] = {}
        self.newest_sheet = ""
        self.nodes: dict[str, Node] = {}
        self.accounts: dict[str, str] = {}
        self.erased: set[str] = set()
        self.buckets: dict[str, Bucket] = {}
        self.requests: dict[str, Json] = {}
        self.open: dict[str, tuple[Json, Parts]] = {}
        self.sums: dict[tuple[str, str], int] = defaultdict(int)
        self.earned: dict[tuple[str, str], int] = defaultdict(int)
        self.hosts: dict[str, int] = defaultdict(int)

    def told(self) -> Json:
        """What the book comes to."""
        live = sorted(self.buckets.items())
        return {
            "available": {name: bucket.available for name, bucket in live},
            "held": {name: bucket.held for name, bucket in live},
            "sums": {f"{name} {unit}": total for (name, unit), total in sorted(self.sums.items()) if total},
            "hosts": dict(self.hosts),
        }

    def entry(self, entry: Json) -> None:
        """Judge an entry whose bytes, place and signatures hold, and take it in."""
        verb = entry["kind"].replace(".", "_")
        rule = getattr(self, verb, None)
        if rule is None:
            expect(self.founding, "a book begins with its founding")
            return
        expect(bool(self.founding) != (verb == "network_founded_v1"), "a book begins with its founding, and has one")
        decided = rule(entry, entry["body"]) or {}
        expect(entry["decided"] == decided, f"expected the decision {decided}")
        for name, total in self.sums.items():
            signed = -total if name[0].startswith("deferred:") else total
            expect(signed >= 0 or not name[0].startswith(("user:", "deferred:")), f"{name[0]} falls to {total}")

    # --- who may say it, and where it stands: K1, S5 to S9 ------------------------------------------------------------

    def place(self, entry: Json, stream: str, idem: str) -> None:
        expect((entry["stream"], entry["idem"]) == (stream, idem), f"expected stream {stream} and idem {idem}")

    def signed(self, signature: Json, name: str, key: str) -> None:
        expect((signature["by"], signature["key_id"]) == (name, key), f"not signed by {name} with {key}")
        expect(key not in self.revoked, f"{key} was revoked")

    def by_operator(self, entry: Json) -> None:
        self.signed(entry["attestations"][0], "operator", self.operator)

    def by_ledger(self, entry: Json) -> None:
        self.signed(entry["attestations"][0], "ledger", self.ledger)

    def by_router(self, entry: Json) -> None:
        signature = entry["attestations"][0]
        role, name = self.roles.get(signature["key_id"], ("", ""))
        expect(role == "router", "not signed with a router's key")
        self.signed(signature, name, signature["key_id"])

    def has_key(self, key: str, node: str) -> bool:
        """Whether another node has, or had, this key."""
        return any(name != node and key in (each.key, *each.former) for name, each in self.nodes.items())

    # --- members: D1 to D5, D16 ---------------------------------------------------------------------------------------

    def network_founded_v1(self, entry: Json, body: Json) -> None:
        self.place(entry, "network:founding", "found:network")
        expect(body["operator"] == (self.operator or body["operator"]), "founded by somebody else")
        name, public = verifier_key(body["ledger_vkey"])
        expect(name == body["network"] and body["operator"][0] == "O", "not a founding of this network")
        self.operator, self.ledger, self.founding = body["operator"], nkey_of(public), body
        self.by_operator(entry)

    def key_added_v1(self, entry: Json, body: Json) -> None:
        key, role, name = body["key"], body["role"], body["name"]
        self.place(entry, "network:keys", f"key:{key}")
        self.by_operator(entry)
        public_key(key)
        expect((key[0] == "O") == (role == "operator") and role in (name, "router"), "not a key or name for this role")
        expect(key not in (self.operator, self.ledger) and key not in self.revoked, "a key in office, or revoked")
        self.roles[key] = (role, name)
        self.operator = key if role == "operator" else self.operator
        self.ledger = key if role == "ledger" else self.ledger

    def key_revoked_v1(self, entry: Json, body: Json) -> None:
        key, signature = body["key"], entry["attestations"][0]
        self.place(entry, "network:keys", f"revoke:{key}:{body['since_ms']}")
        expect(key not in (self.operator, self.ledger), "a key in office")
        if signature["key_id"] == key and key not in self.revoked:
            self.signed(signature, signature["by"], key)
            nodes = {each for node in self.nodes.values() for each in (node.key, *node.former)}
            expect(key in self.roles or key in nodes or key == self.accounts.get(signature["by"]), "nobody's key")
        else:
            self.by_operator(entry)
        self.revoked.add(key)

    def key_rotated_v1(self, entry: Json, body: Json) -> None:
        name, key, (old, new) = body["name"], body["key"], entry["attestations"]
        self.place(entry, f"{body['role']}:{name}", f"rotate:{key}")
        node = self.nodes.get(name) if body["role"] == "node" else None
        expect(node or (body["role"] == "account" and name in self.accounts), "nobody of this name")
        before = node.key if node else self.accounts[name]
        expect(before != key, "the key that it has")
        self.signed(old, name, before)
        self.signed(new, name, key)
        if node is None:
            self.accounts[name] = key
            return
        expect(key not in node.former and not self.has_key(key, name), "a key that a node had")
        node.former.append(node.key)
        node.key = key

    def model_published_v1(self, entry: Json, body: Json) -> None:
        self.place(entry, "network:models", f"model:{body['model']}:{body['manifest'][:16]}")
        self.by_operator(entry)
        self.models[body["model"]] = self.manifests[body["model"], body["manifest"]] = body

    def pricing_published_v1(self, entry: Json, body: Json) -> None:
        name = sha256(written(body)).hex()
        self.place(entry, "network:pricing", f"pricing:{name[:16]}")
        self.by_operator(entry)
        named = [(price["model"], price["format"]) for price in body["prices"]]
        expect(len(set(named)) == len(named), "two prices for one model and format")
        if self.newest_sheet:
            self.replaced_ms[self.newest_sheet] = entry["ts_ms"]
        self.sheets[name], self.newest_sheet = body, name

    def node_registered_v1(self, entry: Json, body: Json) -> None:
        name, key = body["node"], body["key"]
        self.place(entry, f"node:{name}", f"node:{name}")
        self.signed(entry["attestations"][0], name, key)
        expect(not self.has_key(key, name), "the key of another node")
        self.nodes[name] = Node(body, entry["seq"], key)

    def account_opened_v1(self, entry: Json, body: Json) -> None:
        name = body["account"]
        self.place(entry, f"account:{name}", f"account:{name}")
        self.signed(entry["attestations"][0], name, body["key"])
        self.accounts[name] = body["key"]

    def subject_erased_v1(self, entry: Json, body: Json) -> None:
        self.place(entry, f"account:{body['subject']}", f"erase:{body['subject']}")
        self.by_operator(entry)
        expect(body["subject"] in self.accounts, "no such account")
        self.erased.add(body["subject"])

    def snapshot_taken_v1(self, entry: Json, body: Json) -> None:
        self.place(entry, "ledger:snapshots", f"snapshot:{body['size']}")
        self.by_ledger(entry)
        expect(body["size"] == entry["seq"] - 1, "a snapshot of another size")

    # --- grants: D6 to D8 ---------------------------------------------------------------------------------------------

    def tokens_granted_v1(self, entry: Json, body: Json) -> None:
        account, grant, tokens = body["account"], body["grant"], body["tokens"]
        self.place(entry, f"account:{account}", f"grant:{grant}")
        self.by_operator(entry)
        expect(account in self.accounts, "no such account")
        expect(body["valid_from_ms"] < body["period_end_ms"] <= body["expires_ms"], "a grant that ends too early")
        expect(body["mode"] == self.founding["mode"], "a grant in another mode")
        mine = [bucket for bucket in self.buckets.values() if bucket.account == account]
        expect(
            sum(each.body["tokens"] for each in mine) + tokens <= MOST_GRANTED, "more than one account may be granted"
        )
        expect(all(each["subject"] == account for each in body["sealed"]), "sealed for somebody else")
        expect(not body["sealed"] or account not in self.erased, "sealed for who was erased")
        if body["tier"]:
            self._check_tier(body, [each.body for each in mine if each.available or each.held])
        self.buckets[grant] = Bucket(grant, account, (body["expires_ms"], entry["seq"]), body, tokens)
        self.move("tokens:issued", f"user:{account}:bucket:{grant}:available", "tokens", tokens)
        self.move(f"deferred:{grant}", "stripe:clearing", "uusd", body["paid_uusd"])

    def _check_tier(self, body: Json, live: list[Json]) -> None:
        start, middle, end = body["valid_from_ms"], body["period_end_ms"], body["expires_ms"]
        expect(body["tokens"] <= TIERS.get(body["tier"], 0), "not a tier, or more than it has")
        expect(body["paid_uusd"] == 10 * body["tokens"], "not the price of a tier")
        expect(middle - start <= MONTH_MS and 1 <= end - middle <= MONTH_MS, "not a month and one to roll over")
        tiered = [each for each in live if each["tier"]]
        for at_ms in {start, *(each["valid_from_ms"] for each in tiered if start < each["valid_from_ms"] < end)}:
            beside = [each for each in tiered if each["valid_from_ms"] <= at_ms < each["expires_ms"]]
            expect(len({middle, *(each["period_end_ms"] for each in beside)}) <= 2, "more than two periods at once")

    def tokens_expired_v1(self, entry: Json, body: Json) -> None:
        account, grant = body["account"], body["grant"]
        self.place(entry, f"account:{account}", f"lapse:{grant}")
        self.by_ledger(entry)
        bucket = self.buckets.get(grant)
        expect(bucket and bucket.account == account, "no such grant")
        assert bucket is not None
        expect(bucket.body["expires_ms"] <= entry["ts_ms"], "a grant that runs on")
        expect(body["tokens"] == bucket.available, "another number than is left")
        bucket.available, bucket.expired = 0, bucket.expired + body["tokens"]
        self.move(f"user:{account}:bucket:{grant}:available", "tokens:expired", "tokens", body["tokens"])
        self.earn("revenue:breakage", grant, body["tokens"])

    # --- requests: D9 to D15 ------------------------------------------------------------------------------------------

    def tokens_reserved_v1(self, entry: Json, body: Json) -> Json:
        order, now_ms = body["request"]["body"], entry["ts_ms"]
        request, account = order["request"], order["account"]
        self.place(entry, f"request:{request}", f"reserve:{request}")
        self.by_router(entry)
        expect(request not in self.requests, "reserved for before")
        expect(account in self.accounts, "no such account")
        self.signed(body["request"]["signature"], account, self.accounts[account])
        expect(order["network"] == body["network"], "an order for another network")
        expect(order["issued_ms"] - 60_000 <= now_ms < order["expires_ms"], "an order before or after its time")
        expect(order["expires_ms"] - order["issued_ms"] <= 3_600_000, "an order for too long")
        expect(order["model"] in self.models, "no such model")
        expect(body["manifest"] == self.models[order["model"]]["manifest"], "not the newest weights")
        sheet = order["price_sheet"]
        expect(sheet in self.sheets, "no such sheet")
        expect(self.replaced_ms.get(sheet, order["issued_ms"]) >= order["issued_ms"], "a sheet that was replaced")
        price = self.price(order, body["manifest"], body["input_tokens"], order["max_tokens"])
        expect(price == body["tokens"] <= order["token_ceiling"], f"expected {price} tokens, within the ceiling")
        expect(now_ms < body["expires_ms"] <= now_ms + 660_000, "a hold for too long")
        held = self.take(account, price, now_ms)
        self.requests[request] = entry
        self.open[request] = (entry, held)
        return {"held": listed(held)}

    def price(self, order: Json, manifest: str, input_tokens: int, output_tokens: int) -> int:
        """[D9]"""
        sheet, fmt = self.sheets[order["price_sheet"]], self.manifests[order["model"], manifest]["format"]
        found = [each for each in sheet["prices"] if (each["model"], each["format"]) == (order["model"], fmt)]
        expect(found, "a sheet without a price for this")
        weighted = input_tokens * sheet["input_weight_milli"] + output_tokens * sheet["output_weight_milli"]
        return int(-(-weighted * found[0]["price_milli"] * found[0]["quant_milli"] // 10**9))

    def take(self, account: str, tokens: int, now_ms: int) -> Parts:
        """[D10] From the live buckets, in order."""
        held = []
        mine = [each for each in self.buckets.values() if each.account == account and each.is_live(now_ms)]
        for bucket in sorted(mine, key=lambda each: each.order):
            part = min(tokens, bucket.available)
            if part:
                held.append((bucket.grant, part))
                tokens -= part
                bucket.available -= part
                bucket.held += part
                place = f"user:{account}:bucket:{bucket.grant}"
                self.move(f"{place}:available", f"{place}:held", "tokens", part)
        expect(not tokens, "more than the buckets have")
        return held

    def ending(self, entry: Json, verb: str, request: str, account: str) -> tuple[Json, Parts]:
        """[D11] The open hold that this entry ends."""
        self.place(entry, f"request:{request}", f"{verb}:{request}")
        expect(request in self.open, "nothing is held for this request")
        reserved, held = self.open.pop(request)
        expect(reserved["body"]["request"]["body"]["account"] == account, "the request of another account")
        if verb != "expire":
            self.by_router(entry)
            ours, theirs = entry["attestations"][0]["key_id"], reserved["attestations"][0]["key_id"]
            expect(ours == theirs, "another router's request")
        return reserved, held

    def reservation_voided_v1(self, entry: Json, body: Json) -> Json:
        _, held = self.ending(entry, "void", body["request"], body["account"])
        return self.give_back(body["account"], held, entry["ts_ms"])

    def reservation_expired_v1(self, entry: Json, body: Json) -> Json:
        self.by_ledger(entry)
        reserved, held = self.ending(entry, "expire", body["request"], body["account"])
        expect(reserved["body"]["expires_ms"] <= entry["ts_ms"], "a hold that runs on")
        return self.give_back(body["account"], held, entry["ts_ms"])

    def give_back(self, account: str, parts: Parts, now_ms: int) -> Json:
        """[D13]"""
        decided: Json = {"released": []}
        for grant, tokens in parts:
            bucket, place = self.buckets[grant], f"user:{account}:bucket:{grant}"
            bucket.held -= tokens
            if bucket.body["expires_ms"] <= now_ms:
                bucket.expired += tokens
                self.move(f"{place}:held", "tokens:expired", "tokens", tokens)
                self.earn("revenue:breakage", grant, tokens)
                decided.setdefault("expired", []).append({"grant": grant, "tokens": tokens})
            else:
                bucket.available += tokens
                self.move(f"{place}:held", f"{place}:available", "tokens", tokens)
                decided["released"].append({"grant": grant, "tokens": tokens})
        return decided

    def inference_completed_v1(self, entry: Json, body: Json) -> Json:
        order = body["request"]["body"]
        account = order["account"]
        reserved, held = self.ending(entry, "complete", order["request"], account)
        was = reserved["body"]
        expect(was["request"] == body["request"], "not the order that was reserved for")
        expect(was["input_tokens"] == body["input_tokens"], "another count than was reserved for")
        expect(body["output_tokens"] <= order["max_tokens"], "more than was ordered")
        left = self.price(order, was["manifest"], body["input_tokens"], body["output_tokens"])
        debited, rest = [], []
        for grant, tokens in held:
            used = min(left, tokens)
            left -= used
            debited += [(grant, used)] if used else []
            rest += [(grant, tokens - used)] if used < tokens else []
        for grant, tokens in debited:
            self.buckets[grant].held -= tokens
            self.buckets[grant].consumed += tokens
            self.move(f"user:{account}:bucket:{grant}:held", "tokens:consumed", "tokens", tokens)
            self.earn("revenue:usage", grant, tokens)
        back = self.give_back(account, rest, entry["ts_ms"])
        credits = self.credit(body, self.manifests[order["model"], was["manifest"]])
        return {"debited": listed(debited), "credits": credits, **back}

    def credit(self, body: Json, model: Json) -> list[Json]:
        """[D12, D14]"""
        counted, receipts = (
            body["input_tokens"] + body["output_tokens"] - 1,
            [each["body"] for each in body["receipts"]],
        )
        expect(counted <= body["fed_tokens"] <= counted + 8, "fed what was not counted")
        nodes = [each["node"] for each in (*receipts, *body["unreceipted"])]
        expect(len(set(nodes)) == len(nodes) and self.nodes.keys() >= set(nodes), "a node twice, or not registered")
        rows = sum(each["rows"] for each in (*receipts, *body["unreceipted"]))
        expect(rows == body["fed_tokens"] * model["moe_layers"] * model["top_k"], "another number of rows than it cost")
        named = [each["node"] for each in body["latencies"]]
        expect(named == [each["node"] for each in receipts], "latencies of others than have receipts")
        return [
            self.credit_one(receipt, model, body["request"]["body"], latency["p95_us"])
            for receipt, latency in zip(body["receipts"], body["latencies"], strict=True)
        ]

    def credit_one(self, receipt: Json, model: Json, order: Json, measured_us: int) -> Json:
        """[D14, D15]"""
        body = receipt["body"]
        node = self.nodes[body["node"]]
        self.signed(receipt["signature"], body["node"], node.key)
        asked = (order["network"], order["request"], order["model"], model["manifest"])
        said = (body["network"], body["request"], body["model"], body["manifest"])
        expect(said == asked and sum(each[2] for each in body["experts"]) == body["rows"], "a receipt for other work")
        node.receive(receipt)
        work, promised_us = body["rows"] * (model["expert_parameters"] // 1000), node.body["promised_us"]
        expect(work <= MOST, "too much work")
        steps = ((1, 1000), (2, 900), (4, 500))
        sla = next((milli for times, milli in steps if measured_us <= times * promised_us), 0) if promised_us else 1000
        self.hosts[node.body["host"]] += work * sla
        return {
            "host": node.body["host"], "measured_us": measured_us, "node": body["node"], "promised_us": promised_us,
            "rows": body["rows"], "sla_milli": sla, "work": work,
        }  # fmt: skip

    # --- P: postings --------------------------------------------------------------------------------------------------

    def move(self, source: str, target: str, unit: str, amount: int) -> None:
        """[P1]"""
        self.sums[source, unit] -= amount
        self.sums[target, unit] += amount

    def earn(self, revenue: str, grant: str, tokens: int) -> None:
        """[P1] Ten uUSD a token, of what was paid."""
        amount = min(10 * tokens, -self.sums[f"deferred:{grant}", "uusd"])
        self.earned[revenue, grant] += amount
        self.move(revenue, f"deferred:{grant}", "uusd", amount)


def listed(parts: Parts) -> list[Json]:
    return [{"grant": grant, "tokens": tokens} for grant, tokens in parts]
