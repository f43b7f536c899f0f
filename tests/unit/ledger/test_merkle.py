"""The tree against the vectors of certificate-transparency (the RFC 6962 reference), and against its own definition."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.ledger import merkle

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


def _hex(hashes: list[bytes]) -> list[str]:
    return [value.hex() for value in hashes]


def _leaves(size: int) -> list[bytes]:
    return [merkle.leaf_hash(number.to_bytes(4, "big")) for number in range(size)]


def test_root_of_empty_tree_is_hash_of_nothing() -> None:
    assert merkle.tree_root([]) == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_root_equals_reference_vector(size: int) -> None:
    assert merkle.tree_root(LEAVES[:size]).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("place", "proof"), INCLUSION.items())
def test_inclusion_proof_equals_reference_vector(place: tuple[int, int], proof: list[str]) -> None:
    assert _hex(merkle.inclusion_proof(LEAVES[: place[1]], place[0])) == proof


@pytest.mark.parametrize(("sizes", "proof"), CONSISTENCY.items())
def test_consistency_proof_equals_reference_vector(sizes: tuple[int, int], proof: list[str]) -> None:
    assert _hex(merkle.consistency_proof(LEAVES[: sizes[1]], sizes[0])) == proof


@pytest.mark.parametrize("size", range(1, 34))
def test_inclusion_of_every_leaf_verifies_and_of_no_other_place(size: int) -> None:
    leaves = _leaves(size)
    root = merkle.tree_root(leaves)
    for index, leaf in enumerate(leaves):
        proof = merkle.inclusion_proof(leaves, index)
        places = [at for at in range(size + 1) if merkle.verify_inclusion(leaf, at, size, proof, root)]
        assert places == [index]


@pytest.mark.parametrize("size", range(1, 34))
def test_consistency_from_every_size_verifies_and_not_with_other_roots(size: int) -> None:
    leaves = _leaves(size)
    root = merkle.tree_root(leaves)
    for old in range(1, size + 1):
        proof = merkle.consistency_proof(leaves, old)
        old_root = merkle.tree_root(leaves[:old])
        assert merkle.verify_consistency(old, old_root, size, root, proof)
        assert not merkle.verify_consistency(old, merkle.leaf_hash(b"x"), size, root, proof)
        assert not merkle.verify_consistency(old, old_root, size, merkle.leaf_hash(b"x"), proof)
        assert not merkle.verify_consistency(old, old_root, size, root, [*proof, root])


@given(st.integers(1, 200), st.data())
def test_changed_proof_never_verifies(size: int, data: st.DataObject) -> None:
    leaves = _leaves(size)
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_proof(leaves, index)
    root = merkle.tree_root(leaves)
    assert merkle.verify_inclusion(leaves[index], index, size, proof, root)
    assert not merkle.verify_inclusion(merkle.leaf_hash(b"forged"), index, size, proof, root)
    assert not merkle.verify_inclusion(leaves[index], index, size, [*proof, root], root)
    for at in range(len(proof)):
        changed = [*proof[:at], hashlib.sha256(proof[at]).digest(), *proof[at + 1 :]]
        assert not merkle.verify_inclusion(leaves[index], index, size, changed, root)
        assert not merkle.verify_inclusion(leaves[index], index, size, proof[:at], root)


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_growing_tree_has_the_root_of_the_recursive_definition(data: list[bytes]) -> None:
    def defined(leaves: list[bytes]) -> bytes:
        if len(leaves) < 2:
            return leaves[0] if leaves else merkle.EMPTY_ROOT
        k = 1
        while k * 2 < len(leaves):
            k *= 2
        return merkle.node_hash(defined(leaves[:k]), defined(leaves[k:]))

    leaves = [merkle.leaf_hash(item) for item in data]
    assert merkle.tree_root(leaves) == defined(leaves)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (3, 3), (-1, 3)])
def test_inclusion_proof_outside_the_tree_is_refused(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        merkle.inclusion_proof(_leaves(size), index)
    assert not merkle.verify_inclusion(LEAVES[0], index, size, [], LEAVES[0])


@pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3)])
def test_consistency_proof_from_nothing_or_from_the_future_is_refused(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="consistency"):
        merkle.consistency_proof(_leaves(new), old)
    assert not merkle.verify_consistency(old, LEAVES[0], new, LEAVES[0], [])
