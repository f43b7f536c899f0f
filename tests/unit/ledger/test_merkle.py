"""The tree against the vectors of certificate-transparency (the RFC 6962 reference), and against its own definition."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import NotCanonical
from sawyer.ledger import merkle
from sawyer.ledger.merkle import BLOCK_LEAVES, Tree

LEAVES = [
    merkle.leaf_hash(bytes.fromhex(data))
    for data in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
CONSISTENCY = {
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
MANY = [merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(1100)]
SIZES = st.integers(1, len(MANY))
AT_BLOCK_BORDERS = [at for block in range(0, len(MANY), BLOCK_LEAVES) for at in (block - 1, block, block + 1) if at > 0]


# --- the definition, word for word ------------------------------------------------------------------------------------


def defined_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    k = defined_split(len(leaves))
    return merkle.node_hash(defined_root(leaves[:k]), defined_root(leaves[k:]))


def defined_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = defined_split(len(leaves))
    if index < k:
        return [*defined_path(index, leaves[:k]), defined_root(leaves[k:])]
    return [*defined_path(index - k, leaves[k:]), defined_root(leaves[:k])]


def defined_proof(size: int, leaves: Sequence[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of section 2.1.2."""
    if size == len(leaves):
        return [] if whole else [defined_root(leaves)]
    k = defined_split(len(leaves))
    if size <= k:
        return [*defined_proof(size, leaves[:k], whole), defined_root(leaves[k:])]
    return [*defined_proof(size - k, leaves[k:], whole=False), defined_root(leaves[:k])]


def defined_split(size: int) -> int:
    k = 1
    while k * 2 < size:
        k *= 2
    return k


# --- a tree, and who knows its leaves ---------------------------------------------------------------------------------


class Asked:
    """Gives the leaves of a tree, and remembers for which blocks it was asked."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.leaves = leaves
        self.blocks: set[int] = set()

    def __call__(self, first: int, count: int) -> Sequence[bytes]:
        blocks = {first // BLOCK_LEAVES, (first + count - 1) // BLOCK_LEAVES}
        assert len(blocks) == 1, "a question stays inside one block"
        self.blocks |= blocks
        found = self.leaves[first : first + count]
        assert len(found) == count, "nobody is asked for leaves that are not there"
        return found


def grown(leaves: Sequence[bytes]) -> Tree:
    tree = Tree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


TREE = grown(MANY)


def hexed(hashes: Sequence[bytes]) -> list[str]:
    return [value.hex() for value in hashes]


def test_root_of_empty_tree_is_hash_of_nothing() -> None:
    nothing = hashlib.sha256(b"").digest()
    assert merkle.tree_root([]) == Tree().root() == TREE.root_at(0, Asked(MANY)) == nothing


@pytest.mark.parametrize("size", range(1, 9))
def test_root_equals_reference_vector(size: int) -> None:
    assert merkle.tree_root(LEAVES[:size]).hex() == ROOTS[size - 1]
    assert grown(LEAVES[:size]).root().hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("place", "proof"), INCLUSION.items())
def test_inclusion_proof_equals_reference_vector(place: tuple[int, int], proof: list[str]) -> None:
    assert hexed(grown(LEAVES).inclusion(*place, Asked(LEAVES))) == proof


@pytest.mark.parametrize(("sizes", "proof"), CONSISTENCY.items())
def test_consistency_proof_equals_reference_vector(sizes: tuple[int, int], proof: list[str]) -> None:
    assert hexed(grown(LEAVES).consistency(*sizes, Asked(LEAVES))) == proof


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_root_is_that_of_the_recursive_definition(data: list[bytes]) -> None:
    leaves = [merkle.leaf_hash(item) for item in data]
    assert merkle.tree_root(leaves) == grown(leaves).root() == defined_root(leaves)


@given(SIZES, SIZES)
def test_root_at_any_size_is_that_of_the_recursive_definition(size: int, at: int) -> None:
    tree, at = grown(MANY[:size]), min(size, at)
    asked = Asked(MANY[:size])
    assert tree.root_at(at, asked) == defined_root(MANY[:at])
    assert asked.blocks == ({at // BLOCK_LEAVES} if at % BLOCK_LEAVES else set())


@given(SIZES, st.data())
def test_inclusion_proof_is_that_of_the_recursive_definition(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    asked = Asked(MANY)
    proof = TREE.inclusion(index, size, asked)
    assert proof == defined_path(index, MANY[:size])
    assert asked.blocks <= {index // BLOCK_LEAVES, size // BLOCK_LEAVES}
    assert merkle.verify_inclusion(MANY[index], index, size, proof, defined_root(MANY[:size]))


@given(SIZES, SIZES)
def test_consistency_proof_is_that_of_the_recursive_definition(one: int, other: int) -> None:
    old, new = sorted((one, other))
    asked = Asked(MANY)
    proof = TREE.consistency(old, new, asked)
    assert proof == defined_proof(old, MANY[:new])
    assert asked.blocks <= {(old - 1) // BLOCK_LEAVES, new // BLOCK_LEAVES}
    assert merkle.verify_consistency(old, defined_root(MANY[:old]), new, defined_root(MANY[:new]), proof)


@pytest.mark.parametrize("new", AT_BLOCK_BORDERS)
def test_proofs_at_block_borders_verify(new: int) -> None:
    root = defined_root(MANY[:new])
    for old in [at for at in AT_BLOCK_BORDERS if at <= new]:
        proof = TREE.consistency(old, new, Asked(MANY))
        assert merkle.verify_consistency(old, defined_root(MANY[:old]), new, root, proof)
        path = TREE.inclusion(old - 1, new, Asked(MANY))
        assert merkle.verify_inclusion(MANY[old - 1], old - 1, new, path, root)


@pytest.mark.parametrize("size", range(1, 34))
def test_inclusion_of_every_leaf_verifies_and_of_no_other_place(size: int) -> None:
    root = defined_root(MANY[:size])
    for index, leaf in enumerate(MANY[:size]):
        proof = TREE.inclusion(index, size, Asked(MANY))
        places = [at for at in range(size + 1) if merkle.verify_inclusion(leaf, at, size, proof, root)]
        assert places == [index]


@pytest.mark.parametrize("size", range(1, 34))
def test_consistency_from_every_size_verifies_and_not_with_other_roots(size: int) -> None:
    root = defined_root(MANY[:size])
    for old in range(1, size + 1):
        proof = TREE.consistency(old, size, Asked(MANY))
        old_root = defined_root(MANY[:old])
        assert merkle.verify_consistency(old, old_root, size, root, proof)
        assert not merkle.verify_consistency(old, merkle.leaf_hash(b"x"), size, root, proof)
        assert not merkle.verify_consistency(old, old_root, size, merkle.leaf_hash(b"x"), proof)
        assert not merkle.verify_consistency(old, old_root, size, root, [*proof, root])


@given(st.integers(1, 200), st.data())
def test_changed_proof_never_verifies(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, root, leaf = TREE.inclusion(index, size, Asked(MANY)), defined_root(MANY[:size]), MANY[index]
    assert not merkle.verify_inclusion(merkle.leaf_hash(b"forged"), index, size, proof, root)
    assert not merkle.verify_inclusion(leaf, index, size, [*proof, root], root)
    for at in range(len(proof)):
        changed = [*proof[:at], hashlib.sha256(proof[at]).digest(), *proof[at + 1 :]]
        assert not merkle.verify_inclusion(leaf, index, size, changed, root)
        assert not merkle.verify_inclusion(leaf, index, size, proof[:at], root)


@given(st.integers(0, len(MANY)), st.integers(0, 300))
def test_tree_loaded_from_its_dump_goes_on_as_if_nothing_happened(size: int, more: int) -> None:
    tree = grown(MANY[:size])
    loaded = Tree.load(tree.dump())
    for leaf in MANY[size : size + more]:
        tree.append(leaf)
        loaded.append(leaf)
    assert (loaded.size, loaded.root(), loaded.dump()) == (tree.size, tree.root(), tree.dump())
    if loaded.size:
        assert loaded.inclusion(0, loaded.size, Asked(MANY)) == tree.inclusion(0, tree.size, Asked(MANY))


def test_dump_takes_32_bytes_a_block_and_a_peak() -> None:
    assert [len(grown(MANY[:size]).dump()) for size in (0, 1, 255, 256, 1024, 1027)] == [
        8, 8 + 32, 8 + 8 * 32, 8 + 32, 8 + 4 * 32, 8 + 6 * 32,
    ]  # fmt: skip


@pytest.mark.parametrize("dump", [b"", b"\0" * 7, b"\xff" * 8, bytes(7) + b"\1", bytes(8) + b"x", bytes(40)])
def test_dump_of_no_tree_is_refused(dump: bytes) -> None:
    with pytest.raises(NotCanonical, match="not the dump of a tree"):
        Tree.load(dump)


def test_every_changed_byte_of_a_dump_is_refused_or_gives_another_root() -> None:
    dump, root = grown(MANY[:777]).dump(), grown(MANY[:777]).root()
    undetected = []
    for at in range(len(dump)):
        try:
            loaded = Tree.load(dump[:at] + bytes([dump[at] ^ 1]) + dump[at + 1 :])
        except NotCanonical:
            continue
        if loaded.root() == root:
            undetected.append(at)
    assert undetected == []


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3), (0, 1101)])
def test_inclusion_proof_outside_the_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no inclusion"):
        TREE.inclusion(index, size, Asked(MANY))
    assert not merkle.verify_inclusion(LEAVES[0], index, size, [], LEAVES[0])


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3), (-1, 3), (3, 1101)])
def test_consistency_proof_from_nothing_or_from_the_future_is_refused(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="no consistency"):
        TREE.consistency(old, new, Asked(MANY))
    assert not merkle.verify_consistency(old, LEAVES[0], new, LEAVES[0], [])


@pytest.mark.parametrize("size", [-1, 1101])
def test_root_of_a_size_that_was_never_reached_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="no root"):
        TREE.root_at(size, Asked(MANY))
