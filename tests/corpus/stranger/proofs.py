"""Proofs that left the book: section R of docs/ledger-format.md, and the verifications of RFC 9162 that it names."""

from __future__ import annotations

import re

from .book import Json, WrongBook, check_ed25519, from_base64, key_hash, public_key, read, sha256, verifier_key, wrong

_NOTE = re.compile(r"((?P<name>[^\n]+)\n(?P<size>0|[1-9][0-9]*)\n(?P<root>[^\n]+)\n)\n(?P<lines>(?:\u2014 [^\n]+\n)+)")


class Note:
    """A checkpoint with any number of signatures [C1, C5]."""

    def __init__(self, text: str) -> None:
        found = _NOTE.fullmatch(text)
        if found is None:
            raise WrongBook("not a checkpoint")
        self.name, self.size, self.root = found["name"], int(found["size"]), from_base64(found["root"])
        self.body = found[1]
        parts = [line.split(" ") for line in found["lines"].splitlines()]
        self.signatures = [(name, from_base64(encoded)) for _, name, encoded in parts]

    def check(self, vkeys: list[str]) -> None:
        """Signed with one of these keys of the ledger."""
        for vkey in vkeys:
            name, public = verifier_key(vkey)
            for signer, raw in self.signatures:
                if (signer, name, raw[:4]) == (name, self.name, key_hash(name, public)):
                    return check_ed25519(public, self.body.encode(), raw[4:])
        return wrong("not signed with any of these keys")

    def cosigned_at(self, witness: str, node_key: str) -> int:
        """POSIX seconds at which this witness cosigned, with this node's key [R3]."""
        public = public_key(node_key)
        hashed = sha256(witness.encode(), b"\n\x04", public)[:4]
        for signer, raw in self.signatures:
            if (signer, raw[:4], len(raw)) == (witness, hashed, 76):
                at_s = int.from_bytes(raw[4:12], "big")
                check_ed25519(public, f"cosignature/v1\ntime {at_s}\n{self.body}".encode(), raw[12:])
                return at_s
        return wrong("not cosigned by this witness")


def included(proof: str, vkeys: list[str]) -> Json:
    """The entry that an inclusion proof proves [R1]."""
    head, _, text = proof.partition("\n\n")
    header, extra, index, *hashes = head.split("\n")
    if header != "c2sp.org/tlog-proof@v1" or extra[:6] != "extra " or index[:6] != "index ":
        wrong("not an inclusion proof")
    note, raw, place = Note(text), from_base64(extra[6:]), int(index[6:])
    note.check(vkeys)
    found, last = sha256(b"\x00", raw), note.size - 1
    at = place
    for sibling in map(from_base64, hashes):
        if at % 2 or at == last:
            found = sha256(b"\x01", sibling, found)
            while at % 2 == 0 and at:
                at, last = at // 2, last // 2
        else:
            found = sha256(b"\x01", found, sibling)
        at, last = at // 2, last // 2
    entry = read(raw)
    if last or found != note.root or entry["seq"] != place + 1:
        wrong("not in the tree that the checkpoint signs")
    return entry


def extends(proof: str, old: Note, vkeys: list[str]) -> Note:
    """The newer checkpoint, whose tree begins with all of the old one [R2]."""
    head, _, text = proof.partition("\n\n")
    first, *encoded = head.split("\n")
    note, hashes = Note(text), [from_base64(each) for each in encoded]
    note.check(vkeys)
    if first != f"old {old.size}" or not 0 < old.size < note.size:
        wrong("not a proof from this size")
    if old.size & (old.size - 1) == 0:
        hashes.insert(0, old.root)
    at, last = old.size - 1, note.size - 1
    while at % 2:
        at, last = at // 2, last // 2
    before = after = hashes[0]
    for sibling in hashes[1:]:
        if at % 2 or at == last:
            before, after = sha256(b"\x01", sibling, before), sha256(b"\x01", sibling, after)
            while at % 2 == 0 and at:
                at, last = at // 2, last // 2
        else:
            after = sha256(b"\x01", after, sibling)
        at, last = at // 2, last // 2
    if last or (before, after) != (old.root, note.root):
        wrong("nothing shows that the one tree extends the other")
    return note
