"""The bytes that are signed, against the vector of the DSSE specification, and the texts a signature may have."""

from __future__ import annotations

import base64

import pytest

from sawyer.errors import NotCanonical
from sawyer.schemas import signed
from sawyer.schemas.signed import Signature, media_type, pre_image

KEY_ID = "U" + "A" * 55


def signature(sig: str) -> Signature:
    return Signature(by="alice", key_id=KEY_ID, type="account.opened.v1", sig=sig)


def test_pre_image_is_the_vector_of_the_dsse_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    # https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, "Test Vectors"
    monkeypatch.setattr(signed, "media_type", lambda kind: kind)
    assert (
        pre_image("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_pre_image_of_a_kind_names_its_media_type() -> None:
    assert media_type("account.opened.v1") == "application/vnd.sawyer.account.opened.v1+json"
    assert pre_image("a.b.v1", b"{}") == b"DSSEv1 34 application/vnd.sawyer.a.b.v1+json 2 {}"


def test_pre_image_counts_bytes_not_characters() -> None:
    assert pre_image("a.b.v1", "é€".encode()).endswith(b" 5 \xc3\xa9\xe2\x82\xac")


def test_pre_images_of_moved_borders_differ() -> None:
    assert pre_image("a.b.v1", b"2 {}") != pre_image("a.b.v1 2", b"{}")


def test_signature_has_exactly_one_text() -> None:
    text = base64.b64encode(bytes(range(64))).decode()
    assert signature(text).sig == text
    same_bytes = text[:85] + chr(ord(text[85]) + 1) + "=="
    assert base64.b64decode(same_bytes) == bytes(range(64))
    with pytest.raises(ValueError, match="sig"):
        signature(same_bytes)


@pytest.mark.parametrize("text", ["", "A" * 86, "A" * 88, "A" * 85 + "===", "-" + "A" * 85 + "==", "A" * 86 + "==\n"])
def test_signature_text_that_is_not_64_bytes_of_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="sig"):
        signature(text)


@pytest.mark.parametrize(
    "kind", ["account.opened", "account.opened.v0", "Account.opened.v1", "account.opened.v1 ", "a.v1"]
)
def test_signature_over_something_that_is_no_kind_is_refused(kind: str) -> None:
    fields = signature("A" * 86 + "==").canonical()
    with pytest.raises(NotCanonical, match="type"):
        Signature.parse(fields.replace(b"account.opened.v1", kind.encode()))
