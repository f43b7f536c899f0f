"""Reading a GGUF file as if it were a checkpoint folder: config, tensors under hub names, tokenizer.

A Source like sawyer.model.checkpoint.Checkpoint: tensors are decoded to float32 slice by slice, straight from the file.
What its parts mean is for gguf_header, gguf_blocks, gguf_config, gguf_names and gguf_tokenizer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from sawyer.errors import CheckpointCorrupt, UnsupportedModel, UsageError
from sawyer.model import chat
from sawyer.model.checkpoint import SLICE_WEIGHTS, TensorRef
from sawyer.model.gguf_blocks import QUANTISED, READABLE, BlockType, decode
from sawyer.model.gguf_config import Metadata, architecture_of, config_of
from sawyer.model.gguf_header import GgufHeader, GgufTensor, read_header
from sawyer.model.gguf_names import Part, Rearrange, View, views
from sawyer.model.gguf_tokenizer import tokenizer_json
from sawyer.model.layout import TOKENIZER_FILE
from sawyer.schemas.models import ChatTemplate, Coding, GenerationDefaults

SUFFIX: Final = ".gguf"
CHAT_TEMPLATE_KEY: Final = "tokenizer.chat_template"
_TOKEN_IDS: Final[Mapping[str, str]] = {
    "bos_token": "tokenizer.ggml.bos_token_id", "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id", "pad_token": "tokenizer.ggml.padding_token_id",
}  # fmt: skip
_SAMPLING: Final[Mapping[str, str]] = {
    "temperature": "general.sampling.temp", "top_k": "general.sampling.top_k", "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p", "repetition_penalty": "general.sampling.penalty_repeat",
}  # fmt: skip
MAX_PARTS: Final = 1000
MAX_TOKENIZER_BYTES: Final = 100_000_000
_DECODED_AT_ONCE: Final = 1 << 18
"""Weights: a megabyte of float32, so that the passes over it stay in cache."""
_PART: Final = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")

Floats = NDArray[np.float32]
_NOTHING: Final[Floats] = np.empty(0, np.float32)


class Gguf:
    """A model in one GGUF file, or in the parts of one, headers read and checked."""

    def __init__(self, file: Path, metadata: Metadata, stored: Mapping[str, GgufTensor], identity: str) -> None:
        """Raises UnsupportedModel or CheckpointCorrupt for metadata that make no model."""
        self.file = file
        self.folder = file.parent
        self.metadata = metadata
        self.config: dict[str, Any] = config_of(metadata, stored)
        self.config_sha256 = hashlib.sha256(msgspec.json.encode(self.config, order="sorted")).hexdigest()
        self.tensors: Mapping[str, View] = views(architecture_of(metadata), self.config, stored)
        self.identity = identity
        """Changes whenever headers, sizes or modification times of the files do."""
        self._stored = stored
        self._keeping = Lock()
        self._kept = (("", 0), _NOTHING)

    @classmethod
    def open(cls, file: Path) -> Gguf:
        """Reads the headers. Of a model in parts, `file` is any of them. Raises UsageError if there is no such file,
        UnsupportedModel, CheckpointCorrupt."""
        if not file.is_file():
            raise UsageError(f"no file {file}", hint="Give a .gguf file, or the folder of a safetensors checkpoint.")
        identity = hashlib.sha256()
        stored: dict[str, GgufTensor] = {}
        metadata: Metadata = {}
        for number, part in enumerate(_parts(file)):
            header = read_header(part)
            metadata = header.metadata if number == 0 else metadata
            _check_part(part, header, number)
            if twice := stored.keys() & header.tensors.keys():
                raise CheckpointCorrupt(f"{part.name} has tensor {min(twice)}, which an earlier part has too")
            stored |= header.tensors
            status = part.stat()
            identity.update(f"{part.name} {status.st_size} {status.st_mtime_ns} ".encode() + header.sha256)
        return cls(file, metadata, stored, identity.hexdigest())

    def chat(self) -> ChatTemplate | None:
        """The template in the file. Raises CheckpointCorrupt."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        ids = {name: self.metadata.get(key) for name, key in _TOKEN_IDS.items()}
        named = {
            name: tokens[at]
            for name, at in ids.items()
            if isinstance(tokens, list) and isinstance(at, int) and 0 <= at < len(tokens)
        }
        return chat.template_of(self.metadata.get(CHAT_TEMPLATE_KEY), chat.tokens_in(named))

    def generation(self) -> GenerationDefaults | None:
        """What the file recommends under `general.sampling`."""
        told = {name: self.metadata[key] for name, key in _SAMPLING.items() if key in self.metadata}
        return chat.defaults_in({"do_sample": True, **told} if told else {})

    def tokenizer(self) -> bytes:
        """The bytes of tokenizer.json: of the one beside the file if there is one, else made of the metadata. Raises
        UnsupportedModel, CheckpointCorrupt."""
        beside = self.folder / TOKENIZER_FILE
        if not beside.is_file():
            return tokenizer_json(self.metadata)
        if beside.stat().st_size > MAX_TOKENIZER_BYTES:
            raise CheckpointCorrupt(f"{beside.name} is larger than {MAX_TOKENIZER_BYTES} bytes")
        return beside.read_bytes()

    def check(self, ref: TensorRef) -> None:
        """Raises CheckpointCorrupt unless the tensor is there, with the expected shape; UnsupportedModel unless its
        blocks are of a type that we read."""
        view = self.tensors.get(ref.name)
        if view is None:
            raise CheckpointCorrupt(f"tensor {ref.name} is missing")
        if view.shape != ref.whole:
            raise CheckpointCorrupt(f"tensor {ref.name}: expected shape {list(ref.whole)}, got {list(view.shape)}")
        for part in view.parts:
            kind = self._stored[part.tensor].kind.name
            if kind not in READABLE:
                raise UnsupportedModel(
                    f"tensor {part.tensor} is stored as {kind}; read are only {', '.join(sorted(READABLE))}",
                    hint="Take another file of this model, such as Q4_K_M, Q6_K or Q8_0.",
                )

    def read(self, ref: TensorRef) -> Floats:
        """The weights as float32, in shape `ref.shape`, or its reverse if transposed. Raises CheckpointCorrupt for one
        that is not a finite number."""
        self.check(ref)
        weights = self._flat(ref.name, ref.start, prod(ref.shape)).reshape(ref.shape)
        return np.ascontiguousarray(weights.T) if ref.transposed else weights

    def stream(self, ref: TensorRef) -> Iterator[Floats]:
        """The weights of `read` as flat slices of at most SLICE_WEIGHTS; a transposed one comes whole. Memory stays at
        a slice, or at a group of the tensor (a head, an expert) where the converter rearranged it."""
        self.check(ref)
        if ref.transposed:
            yield self.read(ref).ravel()
            return
        start, end, step = ref.start, ref.start + prod(ref.shape), self._step(self.tensors[ref.name])
        while start < end:
            until = min(end, start - start % step + step)
            weights = self._flat(ref.name, start, until - start)
            for done in range(0, len(weights), SLICE_WEIGHTS):
                yield weights[done : done + SLICE_WEIGHTS]
            start = until

    def coding(self, ref: TensorRef) -> Coding:
        """What `blocks` has of a matrix that stands in rows of whole quantised blocks; f32 for any other."""
        self.check(ref)
        view = self.tensors[ref.name]
        kind = self._stored[view.parts[0].tensor].kind
        whole = not ref.shape[-1] % kind.weights and not (view.parts[0].start + ref.start) % kind.weights
        if view.rearrange is not None or ref.transposed or kind.name not in QUANTISED or not whole:
            return "f32"
        return cast(Coding, kind.name)

    def blocks(self, ref: TensorRef) -> tuple[BlockType, NDArray[np.uint8]]:
        """The stored bytes of a matrix [rows, bytes of a row] and their type, for formats that take quantised weights
        as they are. Raises UnsupportedModel where the converter rearranged the tensor."""
        self.check(ref)
        view = self.tensors[ref.name]
        stored, columns = self._stored[view.parts[0].tensor], ref.shape[-1]
        start = view.parts[0].start + ref.start
        if view.rearrange is not None or ref.transposed or columns % stored.kind.weights or start % stored.kind.weights:
            raise UnsupportedModel(f"tensor {ref.name} does not stand in the file in rows of whole blocks")
        raw = _raw(stored, start // stored.kind.weights, prod(ref.shape) // stored.kind.weights)
        return stored.kind, raw.reshape(-1, columns // stored.kind.weights * stored.kind.size_bytes)

    def _step(self, view: View) -> int:
        """Weights to read at once: whole blocks and whole groups, so that nothing is decoded twice."""
        group = view.group if view.rearrange is not None else 1
        return max(1, SLICE_WEIGHTS // group) * group

    def _flat(self, name: str, start: int, count: int) -> Floats:
        view = self.tensors[name]
        if view.rearrange is None:
            return self._part(name, view.parts[0], start, count)
        size, end = view.group, start + count
        first, last = start // size, -(-end // size)
        if size <= SLICE_WEIGHTS:
            return self._groups(name, view.rearrange, first, last)[start - first * size : end - first * size]
        pieces = [
            self._kept_group(name, view.rearrange, number)[max(0, start - number * size) : end - number * size]
            for number in range(first, last)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _kept_group(self, name: str, rearrange: Rearrange, number: int) -> Floats:
        """A group that is larger than a slice, which is an expert of DBRX. It is kept until another is asked for, so
        that its slices do not each decode all of it."""
        with self._keeping:
            if self._kept[0] != (name, number):
                self._kept = (("", 0), _NOTHING)  # two of them at once would be twice the memory
                self._kept = ((name, number), self._groups(name, rearrange, number, number + 1))
            return self._kept[1]

    def _groups(self, name: str, rearrange: Rearrange, first: int, last: int) -> Floats:
        """Whole groups of a tensor that the converter rearranged, as the checkpoint had them."""
        count = last - first
        parts = [
            self._part(name, part, first * part.group, count * part.group).reshape(count, part.group)
            for part in self.tensors[name].parts
        ]
        return rearrange(parts).reshape(-1)

    def _part(self, name: str, part: Part, start: int, count: int) -> Floats:
        """Weights of a part from flat index `start` of it on, whatever block that falls into. Only whole blocks can be
        decoded, a cacheful at a time."""
        stored, weights = self._stored[part.tensor], np.empty(count, np.float32)
        kind, done = stored.kind, 0
        while done < count:
            block, skipped = divmod(part.start + start + done, kind.weights)
            wanted = min(count - done, _DECODED_AT_ONCE)
            decoded = decode(kind, _raw(stored, block, -(-(skipped + wanted) // kind.weights)))
            weights[done : done + wanted] = decoded[skipped : skipped + wanted]
            if not np.isfinite(weights[done : done + wanted]).all():
                raise CheckpointCorrupt(f"tensor {name} holds weights that are not finite numbers")
            done += wanted
        return weights


def _raw(stored: GgufTensor, block: int, count: int) -> NDArray[np.uint8]:
    size = count * stored.kind.size_bytes
    raw = np.fromfile(stored.file, np.uint8, size, offset=stored.offset + block * stored.kind.size_bytes)
    if len(raw) != size:
        raise CheckpointCorrupt(f"{stored.file.name} became shorter while it was read")
    return raw


def _parts(file: Path) -> Sequence[Path]:
    """The files of a model that llama.cpp's gguf-split cut into parts, in order; or the file alone."""
    named = _PART.fullmatch(file.name)
    if named is None:
        return (file,)
    count = int(named[3])
    if not 1 <= int(named[2]) <= count <= MAX_PARTS:
        raise UsageError(f"{file.name} is no part of {count}", hint="Rename the file as it was published.")
    parts = [file.with_name(f"{named[1]}-{number:05}-of-{count:05}{SUFFIX}") for number in range(1, count + 1)]
    for part in parts:
        if not part.is_file():
            raise UsageError(f"{part.name} is missing beside {file.name}", hint="Download all parts of the model.")
    return parts


def _check_part(file: Path, header: GgufHeader, number: int) -> None:
    """Raises CheckpointCorrupt unless the file says that it is the part that its name says."""
    named = _PART.fullmatch(file.name)
    said, count = header.metadata.get("split.no", 0), header.metadata.get("split.count", 0)
    expected = (number, int(named[3])) if named else (number, 1)
    if not isinstance(said, int) or not isinstance(count, int) or (said, count or 1) != expected:
        raise CheckpointCorrupt(f"{file.name} says that it is part {said!r:.40} of {count!r:.40}, counted from 0")
