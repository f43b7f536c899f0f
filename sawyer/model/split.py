"""Splitting a checkpoint into trunk and experts, one file at a time.

Resumable: the manifest comes last, so a folder with a manifest is whole; a split that was stopped starts again where it
was. The same checkpoint always gives the same bytes. How files are written safely is in sawyer.model.writing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from sawyer.errors import CheckpointCorrupt, UsageError
from sawyer.ids import ModelId, is_slug
from sawyer.model.artifacts import expected_files
from sawyer.model.checkpoint import Checkpoint, TensorRef
from sawyer.model.families import family_of
from sawyer.model.families.family import ExpertRefs, TensorMap
from sawyer.model.layout import (
    EMBED_FILE,
    HEAD_FILE,
    NORM_FILE,
    TOKENIZER_FILE,
    FileShape,
    expert_file,
    shared_file,
    trunk_layer_file,
)
from sawyer.model.quantize import quantize_q4
from sawyer.model.supply import AllHere, Supply
from sawyer.model.writing import Chunk, Journal, only_writer, write_file
from sawyer.schemas.models import MANIFEST_FILE, FileDigest, Format, Manifest

BYTES_VERSION: Final = 1
"""Raise it when the bytes that a split writes change: a split begun by older code is then not continued."""


@dataclass(frozen=True, slots=True)
class SplitProgress:
    """How far a split is. `path` is the file in work; `kept`: it was there already, from a split that was stopped."""

    path: str
    kept: bool
    files_done: int
    files_total: int
    bytes_done: int
    bytes_total: int


Progress = Callable[[SplitProgress], None]


@dataclass(frozen=True, slots=True)
class _Planned:
    """One file to write. `sections()` gives the chunks of each section; they start at `offsets`."""

    path: str
    size_bytes: int
    offsets: tuple[int, ...]
    sections: Callable[[], Iterator[Iterable[Chunk]]]


def split(
    source: Path | Checkpoint,
    out: Path,
    *,
    model: ModelId,
    format: Format = "q4",
    progress: Progress | None = None,
    supply: Supply | None = None,
) -> Manifest:
    """Splits the checkpoint in `source` into the folder `out`. Peak memory is about one expert, whatever the model.

    `progress` is called after each chunk; what it raises stops the split, which can be continued later. `supply` brings
    files of the checkpoint that are not here yet, and decides in which order they are used. Raises UsageError (no
    checkpoint, `out` taken), UnsupportedModel, CheckpointCorrupt, Busy (another split is writing there).
    """
    if not is_slug(model):
        raise UsageError(f"{model!r} is not a model id", hint="Use lower-case letters, digits, - and _.")
    checkpoint = Checkpoint.open(source) if isinstance(source, Path) else source
    family = family_of(checkpoint.config)
    layout, tied = family.layout(checkpoint.config), family.is_tied(checkpoint.config)
    tensors = family.tensors(layout, checkpoint.tensors.keys(), tied=tied)
    check_tensors(checkpoint, tensors)
    plan = [*_plan(checkpoint, tensors, format, expected_files(layout, format, tied=tied))]
    with only_writer(out):
        if (out / MANIFEST_FILE).exists():
            raise UsageError(f"{out} already holds a split model", hint="Use it, delete it, or choose another folder.")
        journal = Journal(out, f"{BYTES_VERSION} {format} {checkpoint.identity}")
        supply = supply or AllHere()
        order = supply.schedule(out, {planned.path: planned.size_bytes for planned in plan}, tensors, format)
        planned_at = {planned.path: planned for planned in plan}
        written = _write_all(out, [planned_at[path] for path in order], journal, supply, progress or _silent)
        digests = {digest.path: digest for digest in written}
        files = tuple(digests[planned.path] for planned in plan)
        manifest = Manifest(
            v=1, model=model, format=format, layout=layout, config_sha256=checkpoint.config_sha256, files=files
        )
        write_file(out, MANIFEST_FILE, [(0, [manifest.canonical()])], lambda _: None)
        journal.remove()
    return manifest


def check_tensors(checkpoint: Checkpoint, tensors: TensorMap) -> None:
    """Every tensor the family expects is there, with its shape, and none is left over. Raises CheckpointCorrupt."""
    used = set(tensors.ignored)
    for ref in tensors.refs():
        checkpoint.check(ref)
        used.add(ref.name)
    left = sorted(checkpoint.tensors.keys() - used)
    if left:
        raise CheckpointCorrupt(
            f"tensor {left[0]} is left over ({len(left)} in all): without it the model would compute something else",
            hint="This checkpoint has parts that its family does not know: docs/models.md says how to add a family.",
        )


def _plan(
    checkpoint: Checkpoint, tensors: TensorMap, format: Format, shapes: Mapping[str, FileShape]
) -> Iterator[_Planned]:
    tokenizer = checkpoint.folder / TOKENIZER_FILE
    if not tokenizer.is_file():
        raise UsageError(f"no {TOKENIZER_FILE} in {checkpoint.folder}", hint="Download it with the checkpoint.")
    yield _Planned(TOKENIZER_FILE, tokenizer.stat().st_size, (0,), partial(_copied, tokenizer))
    sources = _sources(checkpoint, tensors, format, shapes)
    for path, shape in shapes.items():
        yield _Planned(path, shape.size_bytes, shape.offsets, sources[path])


def _sources(
    checkpoint: Checkpoint, tensors: TensorMap, format: Format, shapes: Mapping[str, FileShape]
) -> dict[str, Callable[[], Iterator[Iterable[Chunk]]]]:
    """How to make each weights file."""
    sources: dict[str, Callable[[], Iterator[Iterable[Chunk]]]] = {
        EMBED_FILE: partial(_stored, checkpoint, ((tensors.embed,),)),
        NORM_FILE: partial(_stored, checkpoint, ((tensors.norm,),)),
    }
    if tensors.head is not None:
        sources[HEAD_FILE] = partial(_stored, checkpoint, ((tensors.head,),))
    for layer, parts in enumerate(tensors.layers):
        path = trunk_layer_file(layer)
        sources[path] = partial(_stored, checkpoint, tuple(parts[section.name] for section in shapes[path].sections))
    for layer, parts in tensors.shared.items():
        path = shared_file(layer)
        sources[path] = partial(_stored, checkpoint, tuple(parts[section.name] for section in shapes[path].sections))
    for (layer, expert), refs in tensors.experts.items():
        sources[expert_file(layer, expert, format)] = partial(_expert, checkpoint, refs, format)
    return sources


def _copied(file: Path) -> Iterator[Iterable[Chunk]]:
    yield (file.read_bytes(),)


def _stored(checkpoint: Checkpoint, sections: tuple[tuple[TensorRef, ...], ...]) -> Iterator[Iterable[Chunk]]:
    """Sections that are tensors of the checkpoint, one after the other, in float32."""
    for refs in sections:
        yield chain.from_iterable(checkpoint.stream(ref) for ref in refs)


def _expert(checkpoint: Checkpoint, refs: ExpertRefs, format: Format) -> Iterator[Iterable[Chunk]]:
    """The sections of layout.expert_shape."""
    matrices = ((refs.gate, refs.up), (refs.down,))
    if format == "f32":
        yield from _stored(checkpoint, matrices)
        return
    for parts in matrices:
        quantized = [quantize_q4(checkpoint.read(ref)) for ref in parts]
        yield [packed for packed, _ in quantized]
        yield [scales for _, scales in quantized]


def _write_all(
    out: Path, plan: list[_Planned], journal: Journal, supply: Supply, progress: Progress
) -> Iterator[FileDigest]:
    total, before = sum(planned.size_bytes for planned in plan), 0
    for count, planned in enumerate(plan):
        path, kept = planned.path, journal.kept(planned.path)

        def report(written: int, path: str = path, files: int = count, at: int = before) -> None:
            progress(SplitProgress(path, False, files, len(plan), at + written, total))

        if kept is None:
            supply.before(path)
            digest = write_file(out, path, zip(planned.offsets, planned.sections(), strict=True), report)
            journal.append(digest)
        else:
            digest = kept
        before += digest.size_bytes
        supply.after(path)
        progress(SplitProgress(path, kept is not None, count + 1, len(plan), before, total))
        yield digest


def _silent(_: SplitProgress) -> None:
    """Nobody watches."""
