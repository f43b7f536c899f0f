"""Text that is broken between words while it comes: nothing is lost, no line is too long, pieces do not matter."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sawyer.cli.wrapping import WordWrap

TEXTS = st.text(st.sampled_from("ab \n.é漢"), max_size=80)


def wrapped(pieces: list[str], width: int) -> str:
    wrap = WordWrap(width)
    return "".join(wrap.push(piece) for piece in pieces) + wrap.flush()


def test_line_is_broken_between_words_and_the_blank_is_gone() -> None:
    assert wrapped(["It was a pity that he should be"], 12) == "It was a\npity that he\nshould be"


def test_word_that_comes_in_pieces_is_kept_together() -> None:
    wrap = WordWrap(8)
    assert [wrap.push(piece) for piece in ("It wa", "s a pi", "ty", " t")] == ["It", " was a", "", "\npity"]
    assert wrap.flush() == " t"


def test_word_longer_than_a_line_stands_alone() -> None:
    assert wrapped(["a incomprehensibilities b"], 8) == "a\nincomprehensibilities\nb"


def test_column_that_is_taken_already_counts() -> None:
    wrap = WordWrap(10, column=8)
    assert wrap.push(" pity ") + wrap.flush() == "\npity "


@given(TEXTS, st.integers(1, 30))
def test_words_and_line_breaks_of_the_text_survive(text: str, width: int) -> None:
    shown = wrapped([text], width)
    assert shown.split() == text.split()
    assert len(shown.splitlines()) >= len(text.splitlines())


@given(TEXTS, st.lists(st.integers(0, 80)), st.integers(1, 30))
def test_pieces_do_not_matter(text: str, cuts: list[int], width: int) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert wrapped(pieces, width) == wrapped([text], width)


@given(TEXTS, st.integers(2, 30))
def test_no_line_with_two_words_is_too_long(text: str, width: int) -> None:
    for line in wrapped([text], width).split("\n"):
        assert cell_len(line.rstrip()) <= width or len(line.split()) <= 1
