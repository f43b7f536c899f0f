"""The tokenizer.json that a GGUF file's metadata stands for. Pure: no IO.

Two kinds of vocabularies are known: SentencePiece's (Mixtral), whose merges follow from the scores of its pieces, and
byte-level BPE with its merges, where a name says how text is cut into words first. Any other needs the tokenizer.json
of the original model beside the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec
import numpy as np

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model.gguf_header import Value

Metadata = Mapping[str, Value]

PREFIX: Final = "tokenizer.ggml."
WHOLE_KEY: Final = "tokenizer.huggingface.json"
BESIDE: Final = "Put the tokenizer.json of the original model beside the .gguf file."
LOW_LINE: Final = "\u2581"
"""What SentencePiece writes for a space."""
MAX_PIECE: Final = 64
"""Characters of a piece that can come from merges; longer ones are in no vocabulary we know."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
"""`token_type`; 6 is a byte."""

_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How vocabularies since GPT-4's cut text; DIGITS is how many of them stay together."""
_CUTS: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "gpt-2": None,
        "olmo": None,
        "qwen2": _WORDS.replace("DIGITS", ""),
        "dbrx": _WORDS.replace("DIGITS", "{1,3}"),
        "llama-bpe": _WORDS.replace("DIGITS", "{1,3}"),
    }
)
"""By `tokenizer.ggml.pre`: the words that text is cut into; None is GPT-2's own cut."""
_COMPOSED: Final = frozenset({"olmo", "qwen2"})
"""Whose text is brought into Unicode's form C first."""


MAX_MERGES: Final = 4_000_000
"""Several times as many as any vocabulary has: a short header could make its reader run out of memory."""


def tokenizer_json(metadata: Metadata) -> bytes:
    """The bytes of tokenizer.json. Raises UnsupportedModel for a kind that is not known, CheckpointCorrupt for a
    vocabulary that does not hold together."""
    whole = metadata.get(WHOLE_KEY)
    if isinstance(whole, str) and whole:
        return whole.encode()
    kind = metadata.get(f"{PREFIX}model")
    if isinstance(kind, str) and kind == "llama":
        return _serialised(_sentencepiece(metadata))
    if isinstance(kind, str) and kind == "gpt2":
        return _serialised(_byte_level(metadata))
    raise UnsupportedModel(f"the vocabulary {_short(kind)} of this GGUF file cannot be converted", hint=BESIDE)


def _serialised(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"version": "1.0", "truncation": None, "padding": None} | fields)


def _short(value: object) -> str:
    return repr(value)[:60]


class _Vocabulary:
    """The tokens with their types, checked against each other."""

    def __init__(self, metadata: Metadata) -> None:
        self.tokens = _strings(metadata, "tokens")
        types = metadata.get(f"{PREFIX}token_type")
        if types is None:
            types = np.full(len(self.tokens), _NORMAL)
        if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(self.tokens):
            raise CheckpointCorrupt(f"{PREFIX}token_type does not give each of {len(self.tokens)} tokens a type")
        self.types: list[int] = types.tolist()
        self.ids = {token: n for n, token in enumerate(self.tokens) if self.types[n] != _UNUSED}
        if len(self.ids) != len(self.tokens) - self.types.count(_UNUSED):
            raise CheckpointCorrupt(f"{PREFIX}tokens has a token twice")

    def added(self) -> list[dict[str, Any]]:
        """The tokens that are found in text before anything else, and those that are never text."""
        return [
            {
                "id": n, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": self.types[n] != _USER_DEFINED,
            }
            for n, token in enumerate(self.tokens)
            if self.types[n] in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
        ]  # fmt: skip

    def around(self, metadata: Metadata, *, bos: bool) -> dict[str, Any] | None:
        """The post-processor that puts tokens around a text. `bos`: what holds where the file says nothing."""
        first = self._token(metadata, "bos") if _flag(metadata, "add_bos_token", bos) else None
        last = self._token(metadata, "eos") if _flag(metadata, "add_eos_token", False) else None
        if first is None and last is None:
            return None
        sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
        single = [*_special(first), *sequence, *_special(last)]
        pair = [*single, *_special(first, 1), {"Sequence": {"id": "B", "type_id": 1}}, *_special(last, 1)]
        used = {one: {"id": one, "ids": [self.ids[one]], "tokens": [one]} for one in (first, last) if one is not None}
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": used}

    def _token(self, metadata: Metadata, name: str) -> str | None:
        number = metadata.get(f"{PREFIX}{name}_token_id")
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise CheckpointCorrupt(f"{PREFIX}{name}_token_id is {_short(number)}, which is no token")
        token = self.tokens[number]
        if token not in self.ids:
            raise CheckpointCorrupt(f"{PREFIX}{name}_token_id is {number}, which is not in use")
        return token


def _special(token: str | None, sequence: int = 0) -> list[dict[str, Any]]:
    return [] if token is None else [{"SpecialToken": {"id": token, "type_id": sequence}}]


def _flag(metadata: Metadata, name: str, default: bool) -> bool:
    value = metadata.get(f"{PREFIX}{name}", default)
    return value if isinstance(value, bool) else default


def _strings(metadata: Metadata, name: str) -> list[str]:
    values = metadata.get(f"{PREFIX}{name}")
    if not isinstance(values, list):
        raise CheckpointCorrupt(f"{PREFIX}{name} is missing, or no list of strings", hint=BESIDE)
    return values


def _sentencepiece(metadata: Metadata) -> dict[str, Any]:
    vocabulary = _Vocabulary(metadata)
    scores = metadata.get(f"{PREFIX}scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(vocabulary.tokens) or not np.isfinite(scores).all():
        raise CheckpointCorrupt(f"{PREFIX}scores does not give each of {len(vocabulary.tokens)} tokens a number")
    unknown = next((token for token, n in vocabulary.ids.items() if vocabulary.types[n] == _UNKNOWN), None)
    prefixed = _flag(metadata, "add_space_prefix", True)
    spaces: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": LOW_LINE}]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": LOW_LINE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefixed:
        spaces.insert(0, {"type": "Prepend", "prepend": LOW_LINE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "post_processor": vocabulary.around(metadata, bos=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, _merges_by_score(vocabulary, scores.tolist()), unknown) | {"byte_fallback": True},
    }


def _merges_by_score(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[tuple[str, str]]:
    """SentencePiece always merges the pair whose whole has the best score: the merges are all the ways to make a piece
    of two others, the best piece first."""
    pieces = {
        token: n for token, n in vocabulary.ids.items() if vocabulary.types[n] in (_NORMAL, _USER_DEFINED) and token
    }
    ordered = sorted(pieces, key=lambda piece: -scores[pieces[piece]])
    merges: list[tuple[str, str]] = []
    for piece in ordered:
        merges += _ways(piece, pieces)
        if len(merges) > MAX_MERGES:
            raise CheckpointCorrupt(f"the pieces of this GGUF file make more than {MAX_MERGES} merges")
    return merges


def _ways(piece: str, pieces: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The two parts of a piece, wherever both are pieces; the earliest parts of the vocabulary first."""
    if len(piece) > MAX_PIECE:
        return
    cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    yield from sorted(
        ((left, right) for left, right in cuts if left in pieces and right in pieces),
        key=lambda pair: (pieces[pair[0]], pieces[pair[1]]),
    )


def _byte_level(metadata: Metadata) -> dict[str, Any]:
    name = metadata.get(f"{PREFIX}pre")
    if not isinstance(name, str) or name not in _CUTS:
        raise UnsupportedModel(
            f"this GGUF file cuts text into words as {_short(name)}, which is not known here", hint=BESIDE
        )
    vocabulary = _Vocabulary(metadata)
    merges = [tuple(merge.split(" ")) for merge in _strings(metadata, "merges")]
    if not all(len(pair) == 2 and "".join(pair) in vocabulary.ids for pair in merges):
        raise CheckpointCorrupt(f"{PREFIX}merges has a merge that is no pair, or makes no token")
    words = _CUTS[name]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words is None}
    cut = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    return {
        "added_tokens": vocabulary.added(),
        "normalizer": {"type": "NFC"} if name in _COMPOSED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [bytes_only] if words is None else [cut, bytes_only]},
        "post_processor": vocabulary.around(metadata, bos=False),
        "decoder": bytes_only,
        "model": _bpe(vocabulary, merges, None) | {"ignore_merges": name == "llama-bpe"},
    }


def _bpe(vocabulary: _Vocabulary, merges: Sequence[tuple[str, ...]], unknown: str | None) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": unknown is not None, "byte_fallback": False,
        "vocab": vocabulary.ids, "merges": merges,
    }  # fmt: skip
