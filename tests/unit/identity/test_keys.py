"""NKEYs: the vectors of NATS's own libraries, the checksum, weak points, and key files that nobody else can read."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import BadSignature, NotAuthorised, UsageError
from sawyer.identity.keys import Key, encode_public, load, load_or_create, public_bytes, verify

# The example user of the NATS documentation (nats-io/nats.py, nats.go and others test with it): seed, public key, and
# its signature over the nonce `DhXdTMAeiHhLDig`. The second is the vector of the Elixir nkeys package.
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
NONCE_SIGNATURE = "WosANJXgeyxerXFo0twRiMG+/ZjYp1K/46bFeFax705yFTCTjM18jWl01gGYk4KKbadiHd+hP3WgUQ2iLZUAAA=="
SEED_2 = "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU"
PUBLIC_2 = "UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L"

# Points whose order divides 8, or that have more than one encoding: one signature could fit many messages.
WEAK_POINTS = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    b"\xff" * 32,
]


@pytest.mark.parametrize(("seed", "public"), [(SEED, PUBLIC), (SEED_2, PUBLIC_2)])
def test_seed_and_public_key_match_the_nats_vectors(seed: str, public: str) -> None:
    key = Key.from_seed(seed)
    assert (key.kind, key.id, key.seed) == ("U", public, seed)
    assert encode_public("U", public_bytes(public)) == public


def test_signature_over_a_nonce_matches_the_nats_vector() -> None:
    assert base64.b64encode(Key.from_seed(SEED).sign(b"DhXdTMAeiHhLDig")).decode() == NONCE_SIGNATURE
    assert verify(public_bytes(PUBLIC), b"DhXdTMAeiHhLDig", base64.b64decode(NONCE_SIGNATURE))


def test_public_key_matches_test_1_of_rfc_8032() -> None:
    # RFC 8032 section 7.1, TEST 1: the empty message.
    key = Key.from_raw(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


@given(st.binary(min_size=32, max_size=32), st.sampled_from(["U", "O"]))
def test_any_key_survives_its_seed_and_its_public_form(raw: bytes, kind: str) -> None:
    key = Key.from_raw(raw, kind)  # type: ignore[arg-type]
    again = Key.from_seed(key.seed)
    assert (again.kind, again.public, again.seed) == (kind, key.public, key.seed)
    assert (key.id[0], key.seed[:2], len(key.id), len(key.seed)) == (kind, "S" + kind, 56, 58)
    assert public_bytes(key.id) == key.public


def test_generated_keys_differ() -> None:
    assert Key.generate().id != Key.generate().id


def test_repr_of_a_key_shows_no_secret() -> None:
    key = Key.from_seed(SEED)
    assert repr(key) == str(key) == f"Key({PUBLIC})"


@given(st.integers(0, 57), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_seed_with_one_changed_letter_is_refused(position: int, letter: str) -> None:
    changed = SEED[:position] + letter + SEED[position + 1 :]
    if base64.b32decode(changed + "======") == base64.b32decode(SEED + "======"):
        return  # 58 letters hold 290 bits, a seed 288: the last letter has two spare ones
    with pytest.raises(UsageError):
        Key.from_seed(changed)


@given(st.integers(0, 55), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_public_key_with_one_changed_letter_is_refused(position: int, letter: str) -> None:
    changed = PUBLIC[:position] + letter + PUBLIC[position + 1 :]
    if changed != PUBLIC:
        with pytest.raises(BadSignature):
            public_bytes(changed)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "checksum"),
        ("SU", "checksum"),
        ("not base32!", "not base32"),
        ("ü" * 58, "not base32"),
        (SEED.lower(), "not base32"),
        (SEED[:-1], "not base32|checksum"),
        (SEED[:-2] + "XX", "checksum"),
        (PUBLIC, "not an NKEY seed"),
    ],
)
def test_text_that_is_no_seed_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Key.from_seed(text)


def test_seed_of_a_kind_that_sawyer_does_not_use_is_refused() -> None:
    server = 13 << 3  # NKEY prefix byte of a server, `N`
    payload = bytes([18 << 3 | server >> 5, (server & 31) << 3]) + bytes(32)
    text = base64.b32encode(payload + binascii.crc_hqx(payload, 0).to_bytes(2, "little")).rstrip(b"=").decode()
    assert text.startswith("SN")
    with pytest.raises(UsageError, match="of a kind that Sawyer does not use"):
        Key.from_seed(text)


@pytest.mark.parametrize("text", ["", "U", SEED, "U" + "A" * 55, "ü" * 56, "A" * 100_000])
def test_text_that_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(BadSignature, match="is not a public key"):
        public_bytes(text)


@pytest.mark.parametrize("point", WEAK_POINTS, ids=lambda point: point.hex()[:8])
def test_point_of_small_order_or_without_canonical_form_is_refused(point: bytes) -> None:
    with pytest.raises(BadSignature, match="not a valid Ed25519 point"):
        public_bytes(encode_public("U", point))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_verify_of_a_signature_that_is_none_is_false(signature: bytes) -> None:
    assert verify(public_bytes(PUBLIC), b"message", signature) is False


def test_verify_of_another_message_or_key_is_false() -> None:
    key, other = Key.from_seed(SEED), Key.from_seed(SEED_2)
    signature = key.sign(b"message")
    assert verify(key.public, b"message", signature)
    assert not verify(key.public, b"messagE", signature)
    assert not verify(other.public, b"message", signature)


def test_key_file_is_made_private_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "home" / "keys" / "node.nk"
    key = load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_text(encoding="ascii") == key.seed + "\n"
    assert names_in(path.parent) == ["node.nk"]  # no draft is left


def test_key_file_is_read_back_and_never_made_twice(tmp_path: Path) -> None:
    path = tmp_path / "operator.nk"
    first = load_or_create(path, "O")
    assert first.kind == "O"
    assert load_or_create(path, "O").seed == load(path).seed == first.seed


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o610])
def test_key_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.nk"
    load_or_create(path)
    path.chmod(mode)
    for read in (load, load_or_create):
        with pytest.raises(NotAuthorised, match=f"mode {mode:04o}, expected 0600") as caught:
            read(path)
        assert caught.value.hint == f"chmod 600 {path}"


def test_missing_key_file_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no key file") as caught:
        load(tmp_path / "none.nk")
    assert caught.value.hint


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\xfe\x00", SEED.encode() + b"\n" + SEED.encode()])
def test_file_that_holds_no_seed_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.nk"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (load, load_or_create):
        with pytest.raises(UsageError):
            read(path)
    assert path.read_bytes() == content


def test_draft_that_a_crash_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".node.nk.{os.getpid()}").write_text("half a ke", encoding="ascii")
    assert load_or_create(tmp_path / "node.nk").id


def test_two_processes_that_create_one_key_file_get_the_same_key(tmp_path: Path) -> None:
    context = get_context("spawn")
    with context.Pool(2) as pool:
        for turn in range(10):
            path = tmp_path / f"{turn}.nk"
            made = pool.map(load_or_create, [path] * 4, chunksize=1)
            assert {key.seed for key in made} == {load(path).seed}
    assert names_in(tmp_path) == [f"{turn}.nk" for turn in range(10)]


def test_key_file_that_appears_after_the_look_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process wins between our look and our link: its key is the key."""
    path = tmp_path / "node.nk"
    link = os.link

    def beaten(source: Path, target: Path, **options: int) -> None:
        monkeypatch.setattr(os, "link", link)
        load_or_create(target)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", beaten)
    assert load_or_create(path).seed == load(path).seed
    assert names_in(tmp_path) == ["node.nk"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
