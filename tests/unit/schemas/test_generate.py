"""The JSON Schema files say what the models say."""

from __future__ import annotations

import json
from pathlib import Path

from sawyer.schemas import events, generate, messages


def test_files_in_schemas_json_are_the_generated_ones() -> None:
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in generate.FOLDER.iterdir()}
    wanted = generate.documents()
    assert sorted(on_disk) == sorted(wanted), "run: python -m sawyer.schemas.generate"
    stale = [name for name in wanted if on_disk[name] != wanted[name]]
    assert stale == [], "run: python -m sawyer.schemas.generate"


def test_every_event_statement_and_message_is_published() -> None:
    names = set(generate.documents())
    assert {f"event.{kind}.json" for kind in events.KINDS} <= names
    assert {f"message.{message.__name__}.json" for message in messages.MESSAGES} <= names
    assert {"entry.json", "manifest.json", "decided.json"} <= names


def test_every_schema_forbids_unknown_fields() -> None:
    for name, text in generate.documents().items():
        document = json.loads(text)
        for model in (document, *document.get("$defs", {}).values()):
            if model.get("type") == "object" and "properties" in model:
                assert model["additionalProperties"] is False, name


def test_write_makes_the_folder_hold_exactly_these_files(tmp_path: Path) -> None:
    folder = tmp_path / "json"
    generate.write(folder)
    (folder / "event.gone.v1.json").write_text("{}", encoding="utf-8")
    (folder / "entry.json").write_text("{}", encoding="utf-8")
    generate.write(folder)
    assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == generate.documents()
