"""Makes tests/unit/engine/templates/golden.json: conversations as transformers renders them.

    python scripts/make_chat_golden.py tests/unit/engine/templates

Needs transformers (make parity has it); run it again only when a template or a conversation is added. The templates are
beside it, one a file: those of well-known models (every-extension.jinja is ours). tests/parity/test_chat.py compares
with what transformers says today.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

DEMO_TOKENIZER = Path(__file__).parents[1] / "sawyer" / "demo_model" / "checkpoint" / "tokenizer.json"
BOS, EOS = "<s>", "</s>"
SPECIAL = [BOS, EOS, "<|im_start|>", "<|im_end|>"]
CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "one turn": [{"role": "user", "content": "Who was Emma?"}],
    "system": [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Who was Emma?"},
    ],
    "three turns": [
        {"role": "user", "content": "Hello  "},
        {"role": "assistant", "content": " Good day to you."},
        {"role": "user", "content": 'A "quoted" <b>word</b> & an é, 漢字, 🙂\n\nand a line'},
    ],
    "system and three turns": [
        {"role": "system", "content": "You answer as Mr. Knightley would."},
        {"role": "user", "content": "Is Harriet amiable?"},
        {"role": "assistant", "content": "She is."},
        {"role": "user", "content": ""},
    ],
    "wrong order": [
        {"role": "user", "content": "One"},
        {"role": "user", "content": "Two"},
    ],
}


def tokenizer_json() -> str:
    """The demo model's tokenizer with special tokens of chat models, and one that is put before every prompt."""
    raw = Tokenizer.from_file(str(DEMO_TOKENIZER))
    raw.add_special_tokens(SPECIAL)
    raw.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, raw.token_to_id(BOS))])
    return str(raw.to_str())


def told(template: str) -> dict[str, Any]:
    """What transformers makes of each conversation: text and ids, or why the template refuses it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer_json()), bos_token=BOS, eos_token=EOS, chat_template=template
    )
    found: dict[str, Any] = {}
    for name, messages in CONVERSATIONS.items():
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            found[name] = {"refused": error.message}
            continue
        ids = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        found[name] = {"text": text, "ids": list(ids)}
    return found


def golden(folder: Path) -> dict[str, Any]:
    """All that golden.json holds."""
    return {
        "special": SPECIAL,
        "conversations": CONVERSATIONS,
        "templates": {file.stem: told(file.read_text()) for file in sorted(folder.glob("*.jinja"))},
    }


def main() -> None:
    """Write golden.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "golden.json").write_text(json.dumps(golden(folder), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
