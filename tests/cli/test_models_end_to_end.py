"""A checkpoint as transformers saved it, to text as transformers says it: split and published by an operator, pulled by
two fresh nodes and asked, every step a command of a person with a home of their own."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sawyer.home import Home
from sawyer.model.families import FAMILIES

from .conftest import Done, Zygote, runner, wait_until

GOLDEN = Path(__file__).parents[1] / "unit" / "engine" / "golden"
CASES = {
    "mixtral": "grouped",
    "qwen2_moe": "qwen2-moe",
    "deepseek_v2": "deepseek-full",
    "dbrx": "dbrx",
    "olmoe": "olmoe-clipped",
    "qwen3_moe": "qwen3-moe-dense-layers",
}


def test_every_family_goes_all_the_way():
    assert CASES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", CASES)
def test_published_model_says_what_transformers_says_when_two_fresh_nodes_have_pulled_it(
    family: str, up: Path, zygote: Zygote, sawyer: Callable[..., Done], invited: Callable[..., Path],
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path,
) -> None:  # fmt: skip
    source = GOLDEN / CASES[family]
    model = f"tiny-{CASES[family]}"
    assert sawyer("models", "split", source, "--name", model, "--format", "f32", "--home", up).code == 0
    published = sawyer("models", "publish", model, "--json", "--home", up)
    assert published.code == 0, published.err

    nodes = []
    for part in range(2):
        home, name = tmp_path / f"home-{part}", f"{model}-{part}"
        token = invited("--host", "maria", "--name", name)
        assert runner(zygote, tmp_path)("register", "--join", token, "--home", home).code == 0
        nodes.append(started("serve", model, "--share", f"{part}/2", "--name", name, "--home", home))
    router = started("route", model, "--wire", "f32", "--home", up)
    for part in (*nodes, router):
        ready = part.stdout.readline()
        assert ready.startswith("ready: "), part.communicate()[1]

    with np.load(source / "expected.npz") as expected:
        prompt, greedy = " ".join(map(str, expected["ids"])), expected["greedy"].tolist()
    ends = json.loads((source / "config.json").read_text())["eos_token_id"]
    spoken = list(itertools.takewhile(lambda token: token != ends, greedy))
    limits = ("--max-tokens", str(len(greedy)), "--json", "--account", "alice", "--home", up)
    answer = sawyer("generate", prompt, "--model", model, *limits)
    assert answer.code == 0, answer.err
    assert answer.json["ids"] == spoken
    assert {node["node"] for node in answer.json["usage"]["nodes"]} == {f"{model}-0", f"{model}-1"}
    for part in range(2):
        (pulled,) = Home(tmp_path / f"home-{part}").cache.glob(f"{model}-*")
        assert not (pulled / "trunk").exists(), "a node has no use for the trunk"
    assert sawyer("ledger", "replay", "--home", up).code == 0
    for part in (*nodes, router):
        part.terminate()
    wait_until(lambda: all(part.poll() == 0 for part in (*nodes, router)), "all parts to end")
