"""The exception tree: every class crosses the wire as itself, is drawn in the docstring, ends in its exit code."""

from __future__ import annotations

import re

import pytest

from sawyer import errors
from sawyer.errors import BookCorrupt, ExpertUnavailable, SawyerError, from_code
from sawyer.ids import is_slug


def tree(root: type[SawyerError] = SawyerError) -> list[type[SawyerError]]:
    """Only what errors.py defines: a test of another module may have made its own subclass."""
    below = [found for child in root.__subclasses__() if child.__module__ == errors.__name__ for found in tree(child)]
    return [root, *below]


EVERY = tree()
EXIT_CODES = {
    "UsageError": 2,
    "VerificationError": 3,
    "UnreachableError": 4,
    "RefusedError": 5,
}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_crosses_the_wire_as_itself(kind: type[SawyerError]) -> None:
    got = from_code(kind.code, "what happened", "what to do", {"fact": "7"})
    assert type(got) is kind
    assert (got.message, got.hint, got.details, str(got)) == (
        "what happened",
        "what to do",
        {"fact": "7"},
        "what happened",
    )


def test_codes_are_unique_and_fit_the_wire() -> None:
    codes = [kind.code for kind in EVERY]
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if not is_slug(code)] == []


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_exit_code_follows_the_branch_of_the_tree(kind: type[SawyerError]) -> None:
    branch = [EXIT_CODES[base.__name__] for base in kind.__mro__ if base.__name__ in EXIT_CODES]
    assert kind.exit_code == (branch[0] if branch else 1)


def test_exit_codes_are_the_published_ones() -> None:
    found = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert found == {
        "EXIT_DONE": 0, "EXIT_FAILED": 1, "EXIT_USAGE": 2, "EXIT_WRONG": 3, "EXIT_UNREACHABLE": 4, "EXIT_REFUSED": 5,
        "EXIT_INTERRUPTED": 130,
    }  # fmt: skip


def test_docstring_draws_every_error_and_no_other() -> None:
    drawn = set()
    for line in (errors.__doc__ or "").splitlines():
        if names := re.match(r"[ │├└─]*((?:[A-Z]\w+)(?:, [A-Z]\w+)*)(?:  |$)", line):
            drawn |= set(names.group(1).split(", "))
    assert drawn == {kind.__name__ for kind in EVERY}


def test_hint_is_the_given_one_or_the_default_of_its_class() -> None:
    assert errors.Busy("full").hint == errors.Busy.default_hint != ""
    assert errors.Busy("full", hint="wait").hint == "wait"
    assert from_code("busy", "full", "", {}).hint == errors.Busy.default_hint


def test_expert_unavailable_keeps_its_experts_across_the_wire() -> None:
    sent = ExpertUnavailable("gone", experts=((0, 7), (31, 2)), details={"model": "austen"})
    assert sent.details == {"experts": "0:7 31:2", "model": "austen"}
    got = from_code(sent.code, sent.message, sent.hint, sent.details)
    assert isinstance(got, ExpertUnavailable)
    assert got.experts == ((0, 7), (31, 2))


@pytest.mark.parametrize(("seq", "signer"), [(12, "router"), (0, ""), (None, "router"), (None, "")])
def test_book_corrupt_keeps_entry_and_signer_across_the_wire(seq: int | None, signer: str) -> None:
    sent = BookCorrupt("entry 12 does not hold", seq=seq, signer=signer)
    got = from_code(sent.code, sent.message, sent.hint, sent.details)
    assert isinstance(got, BookCorrupt)
    assert (got.seq, got.signer) == (seq, signer)


@pytest.mark.parametrize(
    ("message", "seq", "told"),
    [
        ("the tree differs", 12, "entry 12: the tree differs"),
        ("entry 12: bad", 12, "entry 12: bad"),
        ("the book ends at entry 12", 12, "the book ends at entry 12"),
        ("entry 120 follows", 12, "entry 12: entry 120 follows"),
        ("the book is empty", 0, "the book is empty"),
        ("no table", None, "no table"),
    ],
)
def test_book_corrupt_names_its_entry_in_the_text_once(message: str, seq: int | None, told: str) -> None:
    assert BookCorrupt(message, seq=seq).message == told


@pytest.mark.parametrize(
    "text", ["", "x", "1.5", "-1", " 1", "1:2:3", "1:", ":", "1:2,3:4", "٣:٣", "9" * 5000, "1" + ":2 1" * 9]
)
def test_details_that_are_not_what_they_should_be_raise_nothing(text: str) -> None:
    unavailable = from_code("expert_unavailable", "gone", "", {"experts": text})
    corrupt = from_code("book_corrupt", "bad", "", {"seq": text})
    assert isinstance(unavailable, ExpertUnavailable)
    assert isinstance(corrupt, BookCorrupt)
    assert (unavailable.experts, unavailable.details) == ((), {"experts": text})
    assert (corrupt.seq, corrupt.details) == (None, {"seq": text})


def test_unknown_code_becomes_a_plain_error_that_keeps_its_words() -> None:
    got = from_code("invented_later", "no", "ask", {"a": "b"})
    assert type(got) is SawyerError
    assert (got.message, got.hint, got.details, got.exit_code) == ("no", "ask", {"a": "b"}, 1)
