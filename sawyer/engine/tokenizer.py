"""Text to token ids and back, through the model's own tokenizer.json. The only file that imports tokenizers."""

from __future__ import annotations

import codecs
import json
import os
import re
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from sawyer.errors import ArtifactCorrupt, MissingExtra
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import TOKENIZER_FILE

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it has threads of its own, and fears every fork

try:
    import tokenizers
except ImportError as error:
    raise MissingExtra("tokenizers is not installed, and this computes", hint="pip install 'sawyer[cpu]'") from error

_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of byte-fallback vocabularies: one byte of a character that has no token."""


_NO_SPACE_BEFORE: Final = {"prepend": "", "prepend_scheme": "never", "add_prefix_space": False}
"""How the steps of a tokenizer are told to put no space before a text."""


class Tokenizer:
    """The tokenizer of one model. Thread safe."""

    def __init__(self, artifacts: Artifacts) -> None:
        """Raises ArtifactCorrupt if tokenizer.json is not the one of the manifest, or cannot be read."""
        self._load(artifacts.read_tokenizer())

    @classmethod
    def from_json(cls, raw: bytes) -> Tokenizer:
        """From the bytes of a tokenizer.json. Raises ArtifactCorrupt if they cannot be read."""
        tokenizer = cls.__new__(cls)
        tokenizer._load(raw)
        return tokenizer

    def _load(self, raw: bytes) -> None:
        try:
            self.raw: Any = tokenizers.Tokenizer.from_buffer(raw)
            decoder = json.loads(raw).get("decoder") or {}
        except Exception as problem:
            raise ArtifactCorrupt(f"{TOKENIZER_FILE} cannot be read: {problem}") from problem
        self.raw.no_truncation()
        self.raw.no_padding()
        self.is_byte_level = decoder.get("type") == "ByteLevel"
        unknown = getattr(self.raw.model, "unk_token", None)
        self._unknown = None if unknown is None else self.raw.token_to_id(unknown)
        self._plain: Any = None
        self._lock = threading.Lock()
        added = self.raw.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        self._added = {i: token.content for i, token in added.items() if i != self._unknown}

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the special tokens that the model expects around it."""
        ids: list[int] = _encoded(self.raw, [text], add_special_tokens=True)[0].ids
        return ids

    def encode_as_written(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each of these texts, which write their special tokens themselves: none is added."""
        return [each.ids for each in _encoded(self.raw, texts)]

    def encode_as_characters(self, text: str) -> list[int]:
        """The ids of a text inside another, in which nothing is an added token, special or not, whatever it spells."""
        plain = self._without_added()
        ids: list[int] = _encoded(plain, [text])[0].ids
        if self._added.keys().isdisjoint(ids):
            return ids
        alone = (each for character in _encoded(plain, list(text)) for each in character.ids)  # merges spell it, too
        return [each for each in alone if each not in self._added]

    def marks_in(self, template: str) -> frozenset[int]:
        """The added tokens that a chat template writes and that are not special, such as `<think>`. Words and spaces
        are none: everybody writes those."""
        return frozenset(
            i
            for i, text in self._added.items()
            if i not in self.special and text in template and not text.isalnum() and not text.isspace()
        )

    def special_in(self, text: str, marks: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
        """Where this text spells special tokens or one of these `marks`: (begin, end). A character that has no token
        spells none."""
        found = _encoded(self.raw, [text])[0]
        wanted = self.special | marks
        if wanted.isdisjoint(found.ids):
            return []
        return [
            (begin, end)
            for token, (begin, end) in zip(found.ids, found.offsets, strict=True)
            if token in wanted and (token != self._unknown or self.raw.id_to_token(token) in text[begin:end])
        ]

    def _without_added(self) -> Any:
        """A second tokenizer, for which nothing is an added token, and no text a beginning; made when it is needed."""
        with self._lock:
            if self._plain is None:
                told = json.loads(self.raw.to_str())
                for each in told["added_tokens"]:
                    each["special"] = True
                for step in (told["normalizer"] or {}, told["pre_tokenizer"] or {}):
                    for each in (step, *step.get("normalizers", ()), *step.get("pretokenizers", ())):
                        each |= {name: value for name, value in _NO_SPACE_BEFORE.items() if name in each}
                self._plain = tokenizers.Tokenizer.from_str(json.dumps(told))
                self._plain.encode_special_tokens = True
        return self._plain

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens, and ids that are no tokens, stand for nothing."""
        text: str = self.raw.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self)


class TextStream:
    """Text of ids that come one by one. What `push` and the final `flush` return is, joined, `decode` of all ids; each
    piece holds whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder: _ByteLevelStream | _WindowStream
        self._decoder = _ByteLevelStream(tokenizer) if tokenizer.is_byte_level else _WindowStream(tokenizer)

    def push(self, token: int) -> str:
        """The text that is certain after this id: often the token's, "" inside a character."""
        return self._decoder.push(token)

    def flush(self) -> str:
        """What was held back. Ends the stream."""
        return self._decoder.flush()


class _ByteLevelStream:
    """Byte-level BPE: a token is bytes, and text is the UTF-8 of all bytes, invalid parts replaced."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        text = None if token in self._tokenizer.special else self._tokenizer.raw.id_to_token(token)
        return "" if text is None else self._utf8.decode(_token_bytes(text))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowStream:
    """Any other decoder: text is the growth of decode over a window of the last plain token and what came after.

    Byte-fallback tokens are held back until their run ends: only the whole run says whether it is valid UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor: list[int] = []
        self._held: list[int] = []

    def push(self, token: int) -> str:
        text = None if token in self._tokenizer.special else self._tokenizer.raw.id_to_token(token)
        if text is None:
            return ""
        self._held.append(token)
        return "" if _BYTE_TOKEN.fullmatch(text) else self.flush()

    def flush(self) -> str:
        if not self._held:
            return ""
        before = self._tokenizer.decode(self._anchor)
        after = self._tokenizer.decode([*self._anchor, *self._held])
        self._anchor, self._held = self._held[-1:], []
        return after[len(before) :]


def _encoded(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Any]:
    """The encodings of texts. As a batch, also of one: only then is the interpreter free for others meanwhile."""
    encodings: list[Any] = tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
    return encodings


def _token_bytes(token: str) -> bytes:
    """The bytes that a byte-level token stands for; one with other characters (an added token) stands for itself."""
    alphabet = _byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: printable Latin-1 characters are themselves, the rest follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
