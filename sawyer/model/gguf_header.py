"""The header of a GGUF file: its metadata, and where its tensors stand.

Files come from strangers: a count, a length or an offset is believed only after the file proved large enough for it,
and nothing is allocated before. What the metadata means is for sawyer.model.gguf_config, what blocks mean for
sawyer.model.gguf_blocks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model.gguf_blocks import BLOCK_TYPES, BlockType

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
"""Version 1 had short lengths and lived for some weeks."""
MAX_HEADER_BYTES: Final = 100_000_000
"""A vocabulary of 260,000 tokens with its merges takes 15 million."""
MAX_KEYS: Final = 1 << 16
MAX_TENSORS: Final = 1 << 17
MAX_STRINGS: Final = 1 << 21
"""Strings of all arrays together: each costs more memory than it takes in the file."""
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1 << 16
DEFAULT_ALIGNMENT: Final = 32
ALIGNMENT_KEY: Final = "general.alignment"

Value = int | float | bool | str | list[str] | NDArray[np.generic]
"""A value of the metadata; arrays of numbers are numpy arrays, arrays of strings are lists."""

_BOOL: Final = 7
_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final[Mapping[int, np.dtype[np.generic]]] = {
    kind: np.dtype(name)
    for kind, name in (
        (0, "u1"), (1, "i1"), (2, "<u2"), (3, "<i2"), (4, "<u4"), (5, "<i4"), (6, "<f4"), (_BOOL, "u1"),
        (10, "<u8"), (11, "<i8"), (12, "<f8"),
    )
}  # fmt: skip
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_LEAST_KEY_BYTES: Final = 8 + 4 + 1
_LEAST_TENSOR_BYTES: Final = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor stands: `offset` bytes from the start of `file`. `shape` is in the order of numpy, rows first; the
    file says it the other way round."""

    file: Path
    kind: BlockType
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) // self.kind.weights * self.kind.size_bytes


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What one file says about itself. `sha256` is that of the header's bytes."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    sha256: bytes


def read_header(file: Path) -> GgufHeader:
    """Raises CheckpointCorrupt for a header that is broken or does not fit its file, UnsupportedModel for a version
    that is not read."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        cursor = _Cursor(stream, file, size)
        tensor_count, key_count = _counts(cursor)
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = cursor.text("the name of a key")
            if key in metadata:
                raise cursor.corrupt(f"has the key {key!r} twice")
            metadata[key] = cursor.value(key)
        alignment = _alignment(cursor, metadata)
        infos: dict[str, tuple[BlockType, tuple[int, ...], int]] = {}
        for _ in range(tensor_count):
            name = cursor.text("the name of a tensor")
            if name in infos:
                raise cursor.corrupt(f"has tensor {name!r} twice")
            infos[name] = _info(cursor, name)
        data_start = cursor.position + -cursor.position % alignment
        stream.seek(0)
        sha256 = hashlib.sha256(stream.read(cursor.position)).digest()
    tensors = {
        name: GgufTensor(file, kind, shape, data_start + offset) for name, (kind, shape, offset) in infos.items()
    }
    _check_places(cursor, tensors, alignment, size)
    return GgufHeader(metadata, tensors, sha256)


class _Cursor:
    """Reads forward through a header that claims anything."""

    def __init__(self, stream: BinaryIO, file: Path, size: int) -> None:
        self._stream = stream
        self._file = file
        self._end = min(size, MAX_HEADER_BYTES)
        self._strings = 0
        self.position = 0

    def corrupt(self, problem: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"{self._file.name} {problem}")

    @property
    def left(self) -> int:
        """Bytes that the header can still have."""
        return self._end - self.position

    def take(self, count: int, what: str) -> bytes:
        """The next bytes; refused before they are read if there cannot be so many."""
        if count > self.left:
            raise self.corrupt(f"is cut off or lies: {what} is {count} bytes, and {self.left} can follow")
        raw = self._stream.read(count)
        if len(raw) != count:
            raise self.corrupt("became shorter while it was read")
        self.position += count
        return raw

    def u32(self, what: str) -> int:
        number: int = _U32.unpack(self.take(4, what))[0]
        return number

    def u64(self, what: str) -> int:
        number: int = _U64.unpack(self.take(8, what))[0]
        return number

    def text(self, what: str) -> str:
        """A name: it must be text."""
        try:
            return self.take(self.u64(what), what).decode()
        except UnicodeDecodeError as error:
            raise self.corrupt(f"is broken: {what} is not UTF-8") from error

    def value(self, key: str) -> Value:
        """The value of a key, with its type before it."""
        kind = self.u32(key)
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        dtype = self._dtype(kind, key)
        number = np.frombuffer(self.take(dtype.itemsize, key), dtype)[0]
        if kind == _BOOL:
            return bool(number)
        if dtype.kind == "f":  # the shortest decimal of a float32: 1e-05, as config.json would have it
            return float(str(number))
        return int(number)

    def _string(self, key: str) -> str:
        """Names of models and people are in all encodings: what is not UTF-8 is replaced."""
        return self.take(self.u64(key), key).decode(errors="replace")

    def _array(self, key: str) -> Value:
        kind, count = self.u32(key), self.u64(key)
        if kind != _STRING:
            dtype = self._dtype(kind, key)
            return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
        self._strings += count
        if count * 8 > self.left or self._strings > MAX_STRINGS:
            raise self.corrupt(f"cannot hold {count} strings of {key}")
        return [self._string(key) for _ in range(count)]

    def _dtype(self, kind: int, key: str) -> np.dtype[np.generic]:
        dtype = _NUMBERS.get(kind)
        if dtype is None:
            raise self.corrupt(f"has a value of the unknown type {kind} for {key}")
        return dtype


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and keys, as far as the file can hold them."""
    if cursor.take(min(4, cursor.left), "the magic") != MAGIC:
        raise cursor.corrupt("is not a GGUF file: it does not start with GGUF")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        problem = "is written for big-endian machines" if swapped else f"is GGUF version {version}"
        raise UnsupportedModel(
            cursor.corrupt(f"{problem}; read are versions 2 and 3, little-endian").message,
            hint="Convert the model again with a current llama.cpp.",
        )
    tensors, keys = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    for count, least, most, what in (
        (tensors, _LEAST_TENSOR_BYTES, MAX_TENSORS, "tensors"),
        (keys, _LEAST_KEY_BYTES, MAX_KEYS, "keys"),
    ):
        if count > most or count * least > cursor.left:
            raise cursor.corrupt(f"claims {count} {what}, more than it can hold")
    return tensors, keys


def _alignment(cursor: _Cursor, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.corrupt(f"has the impossible alignment {alignment!r}")
    return alignment


def _info(cursor: _Cursor, name: str) -> tuple[BlockType, tuple[int, ...], int]:
    """Type, shape, and offset from the start of the data."""
    count = cursor.u32(name)
    if not 1 <= count <= MAX_DIMENSIONS:
        raise cursor.corrupt(f"gives tensor {name} {count} dimensions")
    shape = tuple(reversed(struct.unpack(f"<{count}Q", cursor.take(8 * count, name))))
    number, offset = cursor.u32(name), cursor.u64(name)
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        raise cursor.corrupt(f"has tensor {name} in the unknown type {number}")
    if 0 in shape or shape[-1] % kind.weights:
        raise cursor.corrupt(f"has tensor {name} of {kind.name} in the impossible shape {list(shape)}")
    return kind, shape, offset


def _check_places(cursor: _Cursor, tensors: Mapping[str, GgufTensor], alignment: int, size: int) -> None:
    """Each tensor is inside the file, aligned, and shares no byte with another."""
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset % alignment:
            raise cursor.corrupt(f"has tensor {name} at {tensor.offset}, not aligned to {alignment}")
        if tensor.offset < end:
            raise cursor.corrupt(f"has tensors {before} and {name} in the same place")
        end, before = tensor.offset + tensor.size_bytes, name
        if end > size:
            raise cursor.corrupt(f"has tensor {name} until byte {end}, and is {size} bytes long")
