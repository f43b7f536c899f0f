"""Reading a checkpoint in Hugging Face layout: config.json and safetensors, by header and offset.

A checkpoint is downloaded from strangers: every size and offset is checked against the file before an array is made,
and only the bytes of the tensor asked for are read. What the tensors mean is for sawyer.model.families.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from sawyer.errors import CheckpointCorrupt, UsageError
from sawyer.model import chat
from sawyer.model.layout import TOKENIZER_FILE
from sawyer.schemas.models import ChatTemplate, GenerationDefaults

CONFIG_FILE: Final = "config.json"
GENERATION_FILE: Final = "generation_config.json"
TOKENIZER_CONFIG_FILE: Final = "tokenizer_config.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
OLD_TEMPLATE_FILE: Final = "chat_template.json"
TOKENS_FILE: Final = "special_tokens_map.json"
SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
MAX_JSON_BYTES: Final = 100_000_000
MAX_DIMENSIONS: Final = 8
SLICE_WEIGHTS: Final = 1 << 22
"""Weights of one slice of `stream`: 16 MiB of float32."""

_STORED: Final[dict[str, np.dtype[Any]]] = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A contiguous part of tensor `name`, whose shape is `whole`: the `shape` weights from flat index `start`.
    `transposed`: it is a matrix, and what is meant is its transpose."""

    name: str
    whole: tuple[int, ...]
    shape: tuple[int, ...]
    start: int = 0
    transposed: bool = False

    @classmethod
    def all_of(cls, name: str, *shape: int) -> TensorRef:
        return cls(name, shape, shape)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor stands. `offset` in bytes from the start of `file`."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    offset: int


class Source(Protocol):
    """A checkpoint in any form, read as if it were a folder in Hugging Face layout."""

    folder: Path
    config: dict[str, Any]
    config_sha256: str
    identity: str
    """Changes whenever any of it does."""

    @property
    def tensors(self) -> Mapping[str, object]:
        """By their names in such a folder; what stands behind a name is the reader's own business."""
        ...

    def check(self, ref: TensorRef) -> None:
        """Raises CheckpointCorrupt unless the tensor is there, with the expected shape and a type we read."""
        ...

    def read(self, ref: TensorRef) -> NDArray[np.float32]:
        """The weights as float32, in shape `ref.shape`, or its reverse if transposed."""
        ...

    def stream(self, ref: TensorRef) -> Iterator[NDArray[np.float32]]:
        """The weights of `read` as flat slices, so that memory stays small however big the tensor."""
        ...

    def tokenizer(self) -> bytes:
        """The bytes of tokenizer.json."""
        ...

    def chat(self) -> ChatTemplate | None:
        """How the model reads a conversation; None if it was not taught one."""
        ...

    def generation(self) -> GenerationDefaults | None:
        """How its maker would have it sampled, where that was said."""
        ...


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class Checkpoint:
    """A checkpoint folder, its headers read and checked. Tensors are read one at a time."""

    def __init__(self, folder: Path, config_raw: bytes, tensors: Mapping[str, StoredTensor], identity: str) -> None:
        self.folder = folder
        self.config_sha256 = hashlib.sha256(config_raw).hexdigest()
        self.config: dict[str, Any] = _json(config_raw, folder / CONFIG_FILE, dict[str, Any])
        ends = _ends(folder / GENERATION_FILE)
        self.config |= ends
        self.tensors = tensors
        self.identity = identity
        """Changes whenever config, headers, sizes or modification times of the files do."""
        if ends:
            self.identity += f" {hashlib.sha256(repr(ends).encode()).hexdigest()}"

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads config and headers. Raises UsageError if there is no checkpoint, CheckpointCorrupt if it is broken."""
        if not (folder / CONFIG_FILE).is_file():
            raise UsageError(
                f"no checkpoint in {folder}: {CONFIG_FILE} is missing",
                hint="Give the folder that holds config.json and the .safetensors files.",
            )
        config_raw = _read_small(folder / CONFIG_FILE)
        shards = _shards(folder)
        identity = hashlib.sha256(config_raw)
        tensors: dict[str, StoredTensor] = {}
        for file, expected in shards.items():
            header_raw, found = read_header(file)
            if expected is not None and expected != found.keys():
                odd = min(expected ^ found.keys())
                raise CheckpointCorrupt(f"{file.name} and {INDEX_FILE} do not agree about tensor {odd!r}")
            tensors.update(found)
            status = file.stat()
            identity.update(f"{file.name} {status.st_size} {status.st_mtime_ns} ".encode())
            identity.update(hashlib.sha256(header_raw).digest())
        return cls(folder, config_raw, tensors, identity.hexdigest())

    def check(self, ref: TensorRef) -> None:
        """Raises CheckpointCorrupt unless the tensor is there, with the expected shape and a type we read."""
        stored = self.tensors.get(ref.name)
        if stored is None:
            raise CheckpointCorrupt(f"tensor {ref.name} is missing")
        if stored.shape != ref.whole:
            raise CheckpointCorrupt(f"tensor {ref.name}: expected shape {list(ref.whole)}, got {list(stored.shape)}")
        if stored.kind not in _STORED:
            raise CheckpointCorrupt(f"tensor {ref.name}: expected BF16, F16 or F32, got {stored.kind}")

    def read(self, ref: TensorRef) -> NDArray[np.float32]:
        """The weights as float32, in shape `ref.shape`, or its reverse if transposed. Raises CheckpointCorrupt for one
        that is not a finite number."""
        self.check(ref)
        weights = self._read_flat(ref.name, ref.start, prod(ref.shape)).reshape(ref.shape)
        return np.ascontiguousarray(weights.T) if ref.transposed else weights

    def stream(self, ref: TensorRef) -> Iterator[NDArray[np.float32]]:
        """The weights of `read` as flat slices of at most SLICE_WEIGHTS: memory stays small however big the tensor. A
        transposed one comes whole."""
        self.check(ref)
        if ref.transposed:
            yield self.read(ref).ravel()
            return
        total = prod(ref.shape)
        for done in range(0, total, SLICE_WEIGHTS):
            yield self._read_flat(ref.name, ref.start + done, min(SLICE_WEIGHTS, total - done))

    def tokenizer(self) -> bytes:
        """The bytes of tokenizer.json. Raises UsageError if there is none."""
        file = self.folder / TOKENIZER_FILE
        if not file.is_file():
            raise UsageError(f"no {TOKENIZER_FILE} in {self.folder}", hint="Download it with the checkpoint.")
        return _read_small(file)

    def chat(self) -> ChatTemplate | None:
        """Of chat_template.jinja, else of tokenizer_config.json or chat_template.json. Raises CheckpointCorrupt."""
        found, jinja = self._beside(TOKENIZER_CONFIG_FILE), self.folder / TEMPLATE_FILE
        if jinja.is_file():
            template: object = chat.text_of(_read_small(jinja), jinja.name)
        else:
            template = chat.template_in(found) or chat.template_in(self._beside(OLD_TEMPLATE_FILE))
        return chat.template_of(template, chat.tokens_in(found, self._beside(TOKENS_FILE)))

    def generation(self) -> GenerationDefaults | None:
        """Of generation_config.json. Raises CheckpointCorrupt."""
        return chat.defaults_in(self._beside(GENERATION_FILE))

    def _beside(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; an empty one if there is none."""
        file = self.folder / name
        found: dict[str, Any] = _json(_read_small(file), file, dict[str, Any]) if file.is_file() else {}
        return found

    def _read_flat(self, name: str, start: int, count: int) -> NDArray[np.float32]:
        stored = self.tensors[name]
        dtype = _STORED[stored.kind]
        raw = np.fromfile(stored.file, dtype, count, offset=stored.offset + start * dtype.itemsize)
        if len(raw) != count:
            raise CheckpointCorrupt(f"{stored.file.name} became shorter while it was read")
        weights: NDArray[np.float32] = (
            (raw.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of a float32
            if stored.kind == "BF16"
            else raw.astype(np.float32, copy=False)
        )
        if not np.isfinite(weights).all():
            raise CheckpointCorrupt(f"tensor {name} holds weights that are not finite numbers")
        return weights


def _ends(generation: Path) -> dict[str, Any]:
    """The tokens that end an answer, as transformers takes them: from generation_config.json, where it names any; some
    models have theirs only there, and chat models often one more."""
    if not generation.is_file():
        return {}
    found = _json(_read_small(generation), generation, dict[str, Any]).get("eos_token_id")
    return {} if found is None else {"eos_token_id": found}


def read_header(file: Path) -> tuple[bytes, dict[str, StoredTensor]]:
    """The raw header of one safetensors file and what it says. The format: 8 bytes header size, JSON header, data; the
    tensors fill the data without gap or overlap. Raises CheckpointCorrupt."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise CheckpointCorrupt(f"{file.name} is too short for a safetensors file ({size} bytes)")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointCorrupt(f"{file.name}: header of {length} bytes in a file of {size}")
        raw = stream.read(length)
    return raw, parse_header(file, raw, size)


def parse_header(file: Path, raw: bytes, size: int) -> dict[str, StoredTensor]:
    """What the raw header of a safetensors file says, whose size is `size`: the file itself may not be here yet. Raises
    CheckpointCorrupt."""
    length = len(raw)
    entries = _json(raw, file, dict[str, msgspec.Raw])
    entries.pop("__metadata__", None)
    parsed = {name: _json(bytes(entry), file, _Entry) for name, entry in entries.items()}
    _check_offsets(file, parsed, size - 8 - length)
    return {
        name: StoredTensor(file, entry.dtype, entry.shape, 8 + length + entry.data_offsets[0])
        for name, entry in parsed.items()
    }


def _check_offsets(file: Path, entries: Mapping[str, _Entry], data_bytes: int) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        if begin != position or end < begin:
            raise CheckpointCorrupt(f"{file.name}: tensor {name} at {begin}..{end}, expected it to start at {position}")
        if len(entry.shape) > MAX_DIMENSIONS or any(size < 0 for size in entry.shape):
            raise CheckpointCorrupt(f"{file.name}: tensor {name} has the impossible shape {list(entry.shape)}")
        stored = _STORED.get(entry.dtype)
        if stored is not None and end - begin != prod(entry.shape) * stored.itemsize:
            raise CheckpointCorrupt(
                f"{file.name}: tensor {name} of {entry.dtype} {list(entry.shape)} cannot be {end - begin} bytes"
            )
        position = end
    if position != data_bytes:
        raise CheckpointCorrupt(
            f"{file.name}: the header describes {position} bytes of data, the file has {data_bytes}"
        )


def _shards(folder: Path) -> dict[Path, set[str] | None]:
    """The files to read, and which tensors an index expects in each (None: no index)."""
    if (folder / SINGLE_FILE).is_file():
        return {folder / SINGLE_FILE: None}
    if not (folder / INDEX_FILE).is_file():
        raise UsageError(
            f"no weights in {folder}: neither {SINGLE_FILE} nor {INDEX_FILE} is there",
            hint="Only safetensors checkpoints can be split.",
        )
    shards: dict[Path, set[str] | None] = {}
    for name, tensors in read_index(folder / INDEX_FILE).items():
        if not (folder / name).is_file():
            raise CheckpointCorrupt(f"{name} is missing, and {INDEX_FILE} needs it for {next(iter(tensors))}")
        shards[folder / name] = set(tensors)
    return shards


def read_index(file: Path) -> dict[str, list[str]]:
    """The tensors of each file that an index names; the files may not be here. Raises CheckpointCorrupt."""
    shards: dict[str, list[str]] = {}
    for tensor, name in _json(_read_small(file), file, _Index).weight_map.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointCorrupt(f"{file.name} names {name!r}: not a safetensors file of this folder")
        shards.setdefault(name, []).append(tensor)
    return shards


def _read_small(file: Path) -> bytes:
    if file.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointCorrupt(f"{file.name} is larger than {MAX_JSON_BYTES} bytes")
    return file.read_bytes()


def _json(raw: bytes, file: Path, type: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointCorrupt(f"{file.name}: not what it should be: {error}") from error
