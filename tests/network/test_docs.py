"""The Python in the documentation runs as it stands, against a real network."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRINTED = {
    "docs/client.md": [
        "tokens, debited in entry",
        "100 tokens in and 100 out cost 200",
        "cancelled ",
        "'",
        "A heroine.",
        " tokens billed",
        "for 15 tokens",
        "all good",
    ],
    "README.md": [" tokens, entry "],
}
"""What each example of a page must print, in order."""


def _examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def _cases() -> list[tuple[str, int]]:
    return [(page, number) for page in PRINTED for number in range(len(_examples(page)))]


@pytest.mark.parametrize(("page", "number"), _cases())
async def test_example_runs_and_prints(page, number, network, tmp_path, monkeypatch, capsys):
    """As the user of a home: with its settings in the environment, and the key file beside the program."""
    key = network.home.account_key("alice")
    shutil.copy(key, tmp_path / "alice.nk")
    shutil.copytree(network.artifacts.folder, network.home.models / network.artifacts.folder.name)
    monkeypatch.chdir(tmp_path)
    for name, value in {"HOME": network.home.path, "NATS": network.url, "ACCOUNT": "alice"}.items():
        monkeypatch.setenv(f"SAWYER_{name}", str(value))
    code = _examples(page)[number].replace("nats://127.0.0.1:4222", network.url)
    code = code.replace("~/.local/share/sawyer/demo/keys/accounts/alice.nk", str(key))
    await asyncio.to_thread(exec, code, {"__name__": "__main__"})
    assert PRINTED[page][number] in capsys.readouterr().out


@pytest.mark.parametrize("page", PRINTED)
def test_every_example_of_a_page_is_known(page):
    assert len(_examples(page)) == len(PRINTED[page])
