"""Making the arrays of a file from the tensors of a checkpoint: slice by slice, on all cores, in bounded memory.

A slice is some rows of a matrix. Threads read and pack slices while the caller writes earlier ones: NumPy and hashlib
let others run meanwhile. The arrays come in the order of the file, whichever thread is first.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import prod
from types import TracebackType
from typing import Final, Self

import numpy as np

from sawyer.errors import CheckpointCorrupt, UnsupportedModel
from sawyer.model.checkpoint import Source, TensorRef
from sawyer.model.gguf import Gguf
from sawyer.model.gguf_repack import repack
from sawyer.model.layout import BLOCK, Array, FileShape, Section, stored_sections
from sawyer.model.quantize import packed
from sawyer.schemas.models import Format

SLICE_WEIGHTS: Final = 1 << 20
"""Weights of one slice: 4 MiB of float32."""
SLICES_AHEAD: Final = 4
"""Slices a thread has under way or waiting to be written."""
MAX_THREADS: Final = 8
"""So many keep one writer and one disk busy; more would only take memory: about 30 MB each."""

_Make = Callable[[], tuple[Array, ...]]
Refs = Sequence[tuple[TensorRef, ...]]
"""For each plain section of a file, the tensors that fill it one after the other."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """One job: the arrays that a part of plain section `section` adds to the arrays it is stored as."""

    section: int
    make: _Make


def cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


class Packer:
    """Makes files of one checkpoint in so many threads, MAX_THREADS at most. A context: it ends its threads."""

    def __init__(self, checkpoint: Source, threads: int) -> None:
        self._checkpoint = checkpoint
        threads = min(threads, MAX_THREADS)
        self._most = threads * SLICES_AHEAD
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="split")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def sections(self, file: FileShape, refs: Refs) -> Iterator[Iterable[Array]]:
        """The chunks of each stored section, in order; each is to be read to its end before the next. Raises
        CheckpointCorrupt, UnsupportedModel."""
        made = self._in_order(self._slices(file, refs))
        for number, group in groupby(made, key=lambda each: each[0]):
            later: list[list[Array]] = [[] for _ in stored_sections(file.plain[number], file.format)[1:]]
            yield _first_arrays(group, later)
            yield from later

    def _in_order(self, slices: Iterable[_Slice]) -> Iterator[tuple[int, tuple[Array, ...]]]:
        """What the slices make, a bounded number of them ahead."""
        waiting: deque[tuple[int, Future[tuple[Array, ...]]]] = deque()
        try:
            for each in slices:
                if len(waiting) >= self._most:
                    number, future = waiting.popleft()
                    yield number, future.result()
                waiting.append((each.section, self._threads.submit(each.make)))
            while waiting:
                number, future = waiting.popleft()
                yield number, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    def _slices(self, file: FileShape, refs: Refs) -> Iterator[_Slice]:
        for number, (section, parts) in enumerate(zip(file.plain, refs, strict=True)):
            kept = stored_sections(section, file.format) == (section,)
            for ref in parts:
                if file.format == "gguf" and not kept:
                    makes = self._as_stored(ref)
                else:
                    makes = (self._columns if ref.transposed else self._rows)(ref, "f32" if kept else file.format)
                yield from (_Slice(number, make) for make in makes)

    def _rows(self, ref: TensorRef, format: Format) -> Iterator[_Make]:
        return (partial(self._packed, part, format) for part in _row_slices(ref))

    def _as_stored(self, ref: TensorRef) -> Iterator[_Make]:
        """Quantised blocks, without quantising again."""
        assert isinstance(self._checkpoint, Gguf), "only a GGUF file has codings"
        return (partial(_repacked, self._checkpoint, part) for part in _row_slices(ref))

    def _columns(self, ref: TensorRef, format: Format) -> Iterator[_Make]:
        """The tensor's rows are columns of what is stored: the slices fill whole arrays, which the last one gives."""
        rows, columns = ref.shape
        wholes = tuple(
            np.empty(each.shape, each.dtype) for each in stored_sections(Section(ref.name, (columns, rows)), format)
        )
        for first, count in _spans(rows, max(1, SLICE_WEIGHTS // columns // BLOCK) * BLOCK):
            part = TensorRef(ref.name, ref.whole, (count, columns), ref.start + first * columns, transposed=True)
            into = tuple(
                whole[:, _scaled(whole, first, rows) : _scaled(whole, first + count, rows)] for whole in wholes
            )
            yield partial(self._fill, part, format, into, wholes if first + count == rows else ())

    def _fill(
        self, part: TensorRef, format: Format, into: tuple[Array, ...], give: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        for target, array in zip(into, self._packed(part, format), strict=True):
            target[...] = array
        return give

    def _packed(self, part: TensorRef, format: Format) -> tuple[Array, ...]:
        arrays = packed(self._checkpoint.read(part), format)
        if format == "f16" and not np.isfinite(arrays[0]).all():
            raise UnsupportedModel(
                f"tensor {part.name} holds weights that are too large for format f16",
                hint="q8 and f32 hold them; an embedding is float16 in every trunk format but f32.",
            )
        return arrays


def _row_slices(ref: TensorRef) -> Iterator[TensorRef]:
    columns = ref.shape[-1]
    for first, rows in _spans(prod(ref.shape) // columns, max(1, SLICE_WEIGHTS // columns)):
        yield TensorRef(ref.name, ref.whole, (rows, columns), ref.start + first * columns)


def _repacked(file: Gguf, part: TensorRef) -> tuple[Array, ...]:
    matrix = repack(*file.blocks(part))
    arrays = (matrix.scales,) if matrix.offsets is None else (matrix.scales, matrix.offsets)
    if not all(np.isfinite(each).all() for each in arrays):
        raise CheckpointCorrupt(f"tensor {part.name} holds weights that are not finite numbers")
    return matrix.packed, *arrays


def _spans(count: int, step: int) -> Iterator[tuple[int, int]]:
    """(first, how many), of `step` at most."""
    return ((first, min(step, count - first)) for first in range(0, count, step))


def _scaled(whole: Array, column: int, columns: int) -> int:
    """Where a column of a matrix stands on the second axis of an array that stores it, in blocks or as it is."""
    width: int = whole.shape[1]
    return column * width // columns


def _first_arrays(group: Iterable[tuple[int, tuple[Array, ...]]], later: Sequence[list[Array]]) -> Iterator[Array]:
    """The first array of each slice, as it comes; the others are kept in `later`."""
    for _, arrays in group:
        for kept, array in zip(later, arrays[1:], strict=False):
            kept.append(array)
        yield from arrays[:1]
