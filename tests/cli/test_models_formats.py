"""`sawyer models split` into other formats than the usual ones, as a person sees it."""

from __future__ import annotations

from sawyer.model.catalog import demo_checkpoint


def test_split_says_both_formats_and_writes_both(sawyer, tmp_path):
    out = tmp_path / "home" / "models" / "austen-8m-q8"
    home = ("--home", tmp_path / "home")
    done = sawyer(
        "models", "split", demo_checkpoint(), "--name", "austen-8m", "--format", "q8", "--trunk-format", "q4", *home
    )
    assert done.code == 0, done.err
    assert "austen-8m (q8, trunk q4)" in done.out
    assert (out / "trunk" / "L3.q4.bin").is_file()
    assert (out / "experts" / "L3" / "E7.q8.bin").is_file()


def test_format_that_there_is_not_is_refused_with_those_that_there_are(sawyer, tmp_path):
    done = sawyer("models", "split", demo_checkpoint(), "--trunk-format", "q5", "--out", tmp_path / "out")
    assert done.code == 2
    assert "unknown format 'q5'" in done.err
    assert "q8, q4, f32, f16" in done.err
    assert not (tmp_path / "out").exists()
