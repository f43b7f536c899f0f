"""Makes schemas/asyncapi.yaml and the JSON Schema files in schemas/json/. Tests fail when files and models differ.

python -m sawyer.schemas.generate
"""

from __future__ import annotations

import json
from pathlib import Path

from sawyer.schemas import asyncapi, events, messages, metrics, models, sessions, traces
from sawyer.schemas.shapes import Shaped, model_of

FOLDER = Path(__file__).resolve().parent / "json"
ASYNCAPI = "asyncapi.yaml"
"""Stands beside the folder."""

_MESSAGES = (*messages.MESSAGES, *sessions.MESSAGES, *metrics.MESSAGES, *traces.MESSAGES)


def documents() -> dict[str, str]:
    """File name -> the JSON Schema text it must hold."""
    return {name: _render(model) for name, model in _published().items()}


def write(folder: Path = FOLDER) -> None:
    """Make the folder hold exactly these documents, and write the AsyncAPI document beside it. Raises MissingExtra."""
    bus = asyncapi.render()
    folder.mkdir(exist_ok=True)
    wanted = documents()
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    folder.with_name(ASYNCAPI).write_text(bus, encoding="utf-8")


def _published() -> dict[str, Shaped]:
    found: dict[str, Shaped] = {f"event.{kind}.json": body for kind, body in events.KINDS.items()}
    found[f"statement.{events.REQUEST_KIND}.json"] = events.InferenceRequested
    found[f"statement.{events.RECEIPT_KIND}.json"] = events.WorkReceipted
    found["entry.json"] = events.EntryFrame
    found["decided.json"] = events.Decided
    found["manifest.json"] = models.Manifest
    found |= {f"message.{message.__name__}.json": message for message in _MESSAGES}
    return found


def _render(shaped: Shaped) -> str:
    return json.dumps(model_of(shaped).model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    write()
