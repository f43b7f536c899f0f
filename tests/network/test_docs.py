"""The Python in the documentation runs as it stands, against a real network."""

from __future__ import annotations

import asyncio
import re
import shutil
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _block(page: str) -> str:
    """The first Python block of a page."""
    found = re.search(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


async def test_example_of_the_client_page_runs(network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(network.home.key("alice"), tmp_path / "alice.nk")
    code = _block("docs/client.md").replace("nats://127.0.0.1:4222", network.url)
    scope: dict[str, object] = {}
    exec(f"async def example():\n{textwrap.indent(code, '    ')}", scope)
    await scope["example"]()
    assert "tokens, debited in entry" in capsys.readouterr().out


async def test_example_of_the_readme_runs(network, capsys):
    key = str(network.home.key("alice"))
    code = _block("README.md").replace("nats://127.0.0.1:4222", network.url)
    code = code.replace("~/.local/share/sawyer/demo/keys/alice.nk", key)
    await asyncio.to_thread(exec, code, {"__name__": "__main__"})
    assert " tokens, entry " in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/client.md"])
def test_page_has_a_python_example(page):
    assert "AsyncClient" in _block(page)
