"""What is sealed is read with its subject's key, and with nothing else; a key that was destroyed never comes back."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import NotAuthorised, RefusedError, UsageError, VerificationError
from sawyer.identity import sealing
from sawyer.identity.sealing import MAX_NOTE_BYTES, SubjectKey, destroy, is_erased, open_sealed, seal
from sawyer.schemas.events import Sealed

KEY, OTHER = SubjectKey(b"k" * 32), SubjectKey(b"o" * 32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "subjects" / "alice.key"


@given(texts, texts)
def test_sealed_text_is_read_with_its_key_and_survives_the_book(text: str, about: str) -> None:
    sealed = seal(text, "alice", KEY, about)
    assert open_sealed(Sealed.parse(sealed.canonical()), KEY) == text


def test_longest_note_fits_into_an_event_and_a_longer_one_is_refused() -> None:
    sealed = seal("x" * MAX_NOTE_BYTES, "alice", KEY)
    assert Sealed.parse(sealed.canonical()) == sealed
    with pytest.raises(UsageError, match="at most 4096 bytes, got 4098"):
        seal("x" * (MAX_NOTE_BYTES - 1) + "\u20ac", "alice", KEY)


def test_other_key_opens_nothing() -> None:
    with pytest.raises(VerificationError, match="the key of alice does not open"):
        open_sealed(seal("Jane", "alice", KEY), OTHER)


def test_every_altered_byte_of_a_box_and_its_nonce_is_found() -> None:
    sealed = seal("Jane", "alice", KEY)
    box, nonce = base64.b64decode(sealed.box), bytes.fromhex(sealed.nonce)
    for at in range(len(box)):
        other = base64.b64encode(bytes([*box[:at], box[at] ^ 1, *box[at + 1 :]])).decode()
        with pytest.raises(VerificationError):
            open_sealed(sealed.changed(box=other), KEY)
    for at in range(len(nonce)):
        with pytest.raises(VerificationError):
            open_sealed(sealed.changed(nonce=bytes([*nonce[:at], nonce[at] ^ 1, *nonce[at + 1 :]]).hex()), KEY)


@pytest.mark.parametrize("box", ["", "A", "AAAA", "====", "A" * 21])
def test_box_that_is_no_box_is_refused(box: str) -> None:
    with pytest.raises(VerificationError):
        open_sealed(Sealed(subject="alice", nonce="00" * 24, box=box), KEY)


def test_same_note_about_the_same_thing_is_the_same_bytes_and_nothing_else_shares_its_nonce() -> None:
    first = seal("Jane", "alice", KEY, "january")
    assert seal("Jane", "alice", KEY, "january") == first
    others = [
        seal("Jane", "alice", KEY, "february"),
        seal("Joan", "alice", KEY, "january"),
        seal("Jane", "alice", OTHER, "january"),
        seal("yJane", "alice", KEY, "januar"),
    ]
    assert first.nonce not in {each.nonce for each in others}


def test_key_file_is_made_once_for_its_user_alone(file: Path) -> None:
    assert SubjectKey.load(file) is None
    made = SubjectKey.load_or_create(file)
    assert SubjectKey.load_or_create(file) == SubjectKey.load(file) == made
    assert file.stat().st_mode & 0o777 == 0o600
    assert made.raw.hex() not in repr(made)


def test_key_file_that_others_may_read_or_that_holds_no_key_is_refused(file: Path) -> None:
    SubjectKey.load_or_create(file)
    file.chmod(0o644)
    with pytest.raises(NotAuthorised, match="0644"):
        SubjectKey.load(file)
    for content in (b"", b"abcd\n", b"no hex", b"\xff\xfe"):
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(UsageError, match="not a subject's key"):
            SubjectKey.load(file)


def test_destroyed_key_is_gone_for_good_and_destroying_it_again_changes_nothing(file: Path) -> None:
    sealed = seal("Jane", "alice", SubjectKey.load_or_create(file))
    for _ in range(2):
        destroy(file)
        assert is_erased(file)
        assert not file.exists()
        with pytest.raises(RefusedError, match="alice is erased"):
            SubjectKey.load_or_create(file)
    with pytest.raises(VerificationError):
        open_sealed(sealed, SubjectKey(b"x" * 32))


def test_subject_that_never_had_a_key_can_be_erased(file: Path) -> None:
    destroy(file)
    assert is_erased(file)


def test_key_file_is_overwritten_before_it_is_removed(file: Path) -> None:
    SubjectKey.load_or_create(file)
    held = file.with_suffix(".link")
    held.hardlink_to(file)
    destroy(file)
    assert held.read_bytes() == bytes(65)


def test_erasure_cut_short_after_its_mark_lets_nobody_seal_and_is_finished_by_doing_it_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SubjectKey.load_or_create(file)

    def die(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sealing.durable, "destroy", die)
    with pytest.raises(KeyboardInterrupt):
        destroy(file)
    monkeypatch.undo()
    with pytest.raises(RefusedError):
        SubjectKey.load_or_create(file)
    destroy(file)
    assert not file.exists()
