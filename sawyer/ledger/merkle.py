"""The Merkle tree of RFC 6962 section 2.1 (= RFC 9162): hashes, roots, inclusion and consistency proofs. Pure.

Knows nothing of entries: leaves are byte strings or their leaf hashes, all hashes are 32 bytes. A tree keeps the root
of each complete block of BLOCK_LEAVES leaves, not the leaves: who asks for a proof brings those of at most two blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sawyer.errors import NotCanonical

HASH_BYTES: Final = 32
BLOCK_LEAVES: Final = 256
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
_SIZE_BYTES: Final = 8
_BLOCK_BITS: Final = 8
_IN_BLOCK: Final = BLOCK_LEAVES - 1

Leaves = Callable[[int, int], Sequence[bytes]]
"""(first, count) -> the leaf hashes number first (from 0) to first + count - 1; never of more than one block."""


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def tree_root(leaves: Iterable[bytes]) -> bytes:
    """The root over leaf hashes. Pairs level by level: a node without a right neighbour is its own parent, which is
    what the RFC's split at the largest power of two comes to."""
    level = list(leaves)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        single = level[-1:] if len(level) & 1 else []
        level = [*map(node_hash, level[::2], level[1::2]), *single]
    return level[0]


class Tree:
    """A tree that only grows: `size` leaves, 32 bytes kept for each BLOCK_LEAVES of them."""

    __slots__ = ("_blocks", "_high", "_low", "size")

    def __init__(self) -> None:
        self.size = 0
        self._blocks = bytearray()
        self._high: list[bytes] = []
        """Roots of the complete subtrees over complete blocks, the largest first."""
        self._low: list[bytes] = []
        """The same over the leaves of the block that is not complete yet."""

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash: one hash a leaf on average, at most log2(size)."""
        low, place = self._low, self.size & _IN_BLOCK
        self.size += 1
        while place & 1:
            leaf = hashlib.sha256(b"\x01" + low.pop() + leaf).digest()
            place >>= 1
        if self.size & _IN_BLOCK:
            low.append(leaf)
        else:
            self._append_block(leaf)

    def root(self) -> bytes:
        """The root over all leaves; at most log2(size) hashes."""
        peaks = [*self._high, *self._low]
        if not peaks:
            return EMPTY_ROOT
        root = peaks.pop()
        while peaks:
            root = node_hash(peaks.pop(), root)
        return root

    def root_at(self, size: int, leaves: Leaves) -> bytes:
        """The root that the tree had at this size. Raises ValueError for a size that it has not reached."""
        if not 0 <= size <= self.size:
            raise ValueError(f"no root of size {size}: the tree has {self.size}")
        return self._range_roots([(0, size)], leaves)[0] if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int, leaves: Leaves) -> list[bytes]:
        """PATH(index, D[size]) of RFC 6962 section 2.1.1: the siblings from the leaf up. Raises ValueError."""
        if not 0 <= index < size <= self.size:
            raise ValueError(f"no inclusion of leaf {index} in size {size}: the tree has {self.size}")
        return self._range_roots(_path(index, size), leaves)

    def consistency(self, old_size: int, new_size: int, leaves: Leaves) -> list[bytes]:
        """PROOF(old_size, D[new_size]) of RFC 6962 section 2.1.2. Raises ValueError."""
        if not 0 < old_size <= new_size <= self.size:
            raise ValueError(f"no consistency from size {old_size} to {new_size}: the tree has {self.size}")
        return self._range_roots(_proof(old_size, new_size), leaves)

    def dump(self) -> bytes:
        """All of the tree as bytes: size (8, big-endian), the root of each complete block, then the roots of the
        complete subtrees in the block under way, the largest first."""
        return self.size.to_bytes(_SIZE_BYTES, "big") + bytes(self._blocks) + b"".join(self._low)

    @classmethod
    def load(cls, dump: bytes) -> Tree:
        """The tree in a dump. Its root is computed from these bytes: compare it with a signed one. Raises NotCanonical
        for bytes that no tree dumps."""
        size = int.from_bytes(dump[:_SIZE_BYTES], "big")
        blocks, peaks = size >> _BLOCK_BITS, (size & _IN_BLOCK).bit_count()
        if len(dump) != _SIZE_BYTES + HASH_BYTES * (blocks + peaks):
            raise NotCanonical(f"not the dump of a tree of {size} leaves: it has {len(dump)} bytes")
        hashes = _hashes(dump[_SIZE_BYTES:])
        tree = cls()
        for block in hashes[:blocks]:
            tree.size += BLOCK_LEAVES
            tree._append_block(block)
        tree._low = hashes[blocks:]
        tree.size = size
        return tree

    def _append_block(self, block: bytes) -> None:
        """Take in the root of the block that has just become complete; `size` counts it already."""
        self._blocks += block
        place = (self.size >> _BLOCK_BITS) - 1
        while place & 1:
            block = node_hash(self._high.pop(), block)
            place >>= 1
        self._high.append(block)

    def _range_roots(self, ranges: Iterable[tuple[int, int]], leaves: Leaves) -> list[bytes]:
        """The roots over leaves first to end - 1, each range as the RFC cuts them: one that spans blocks begins with a
        block."""
        known: dict[int, Sequence[bytes]] = {}

        def of_block(number: int) -> Sequence[bytes]:
            first = number << _BLOCK_BITS
            if number not in known:
                known[number] = leaves(first, min(BLOCK_LEAVES, self.size - first))
            return known[number]

        def root(first: int, end: int) -> bytes:
            block, last, rest = first >> _BLOCK_BITS, end >> _BLOCK_BITS, end & _IN_BLOCK
            if first & _IN_BLOCK:
                start = first & _IN_BLOCK
                return tree_root(of_block(block)[start : start + end - first])
            whole = _hashes(self._blocks[block * HASH_BYTES : last * HASH_BYTES])
            return tree_root([*whole, tree_root(of_block(last)[:rest])] if rest else whole)

        return [root(first, end) for first, end in ranges]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162 section 2.1.3.2: True if `leaf` (a leaf hash) is number `index` (from 0) of the tree."""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = node_hash(sibling, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found == root


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """RFC 9162 section 2.1.4.2: True if the new tree is the old one with leaves added at the end."""
    if not 0 < old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new = node_hash(new, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == old_root and new == new_root


def _path(index: int, size: int) -> list[tuple[int, int]]:
    """The ranges whose roots are PATH(index, D[size])."""
    first, end, ranges = 0, size, []
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    return ranges[::-1]


def _proof(old_size: int, new_size: int) -> list[tuple[int, int]]:
    """The ranges whose roots are PROOF(old_size, D[new_size])."""
    first, end, ranges = 0, new_size, []
    while end != old_size:
        middle = first + _split(end - first)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first:  # else the verifier has this root already
        ranges.append((first, end))
    return ranges[::-1]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _hashes(joined: bytes | bytearray) -> list[bytes]:
    return [bytes(joined[at : at + HASH_BYTES]) for at in range(0, len(joined), HASH_BYTES)]
