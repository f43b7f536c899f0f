"""Splitting a checkpoint into trunk and experts, one file at a time.

Resumable: the manifest comes last, so a folder with a manifest is whole; a split that was stopped starts again where it
was, and one of some layers is completed by one of the others. The same checkpoint always gives the same bytes. How
files are written safely is in sawyer.model.writing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from sawyer.errors import CheckpointCorrupt, UsageError
from sawyer.ids import ModelId, is_slug
from sawyer.model.artifacts import expected_files
from sawyer.model.checkpoint import Source
from sawyer.model.codings import coded
from sawyer.model.families import family_of
from sawyer.model.families.family import TensorMap
from sawyer.model.layout import (
    CHAT_FILE,
    NORM_FILE,
    TOKENIZER_FILE,
    FileShape,
    check_bounds,
    embed_file,
    expert_file,
    head_file,
    shared_file,
    trunk_layer_file,
)
from sawyer.model.packing import Packer, Refs, cores
from sawyer.model.parts import Unfinished, check_layers, layers_of, span_text
from sawyer.model.sources import open_source
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
    """One file to write: what it holds, and the tensors that fill each of its plain sections."""

    path: str
    shape: FileShape
    refs: Refs

    def sections(self, packer: Packer) -> Iterator[tuple[int, Iterable[Chunk]]]:
        return zip(self.shape.offsets, packer.sections(self.shape, self.refs), strict=True)


@dataclass(frozen=True, slots=True)
class _Copied:
    """One file to write as it is."""

    path: str
    raw: bytes

    def sections(self, _: Packer) -> Iterator[tuple[int, Iterable[Chunk]]]:
        yield 0, (self.raw,)


def split(
    source: Path | Source,
    out: Path,
    *,
    model: ModelId,
    format: Format = "q4",
    trunk_format: Format = "f32",
    progress: Progress | None = None,
    supply: Supply | None = None,
) -> Manifest:
    """Splits the whole checkpoint: see `split_layers`."""
    done = split_layers(
        source, out, None, model=model, format=format, trunk_format=trunk_format, progress=progress, supply=supply
    )
    assert isinstance(done, Manifest), "nothing is missing where no layers were named"
    return done


def split_layers(
    source: Path | Source,
    out: Path,
    layers: range | None,
    *,
    model: ModelId,
    format: Format = "q4",
    trunk_format: Format = "f32",
    progress: Progress | None = None,
    supply: Supply | None = None,
) -> Manifest | Unfinished:
    """Splits the checkpoint in `source` into the folder `out`: experts in `format`, the trunk's matrices in
    `trunk_format`. All cores work; peak memory is some slices of a tensor, whatever the model. With `layers` it writes
    the files of these, and the manifest only if those of the others are there too: written here by other runs, or
    copied here together with their journals.

    `progress` is called after each chunk; what it raises stops the split, which can be continued later. `supply` brings
    files of the checkpoint that are not here yet, and decides in which order they are used. Raises UsageError (no
    checkpoint, no such layers, `out` taken), UnsupportedModel, CheckpointCorrupt, Busy (another split writes there).
    """
    if not is_slug(model):
        raise UsageError(f"{model!r} is not a model id", hint="Use lower-case letters, digits, - and _.")
    checkpoint: Source = open_source(source) if isinstance(source, Path) else source
    family = family_of(checkpoint.config)
    layout, tied = family.layout(checkpoint.config), family.is_tied(checkpoint.config)
    check_bounds(layout)  # before anything is counted up to a number of its config
    tensors = family.tensors(layout, checkpoint.tensors.keys(), tied=tied)
    check_tensors(checkpoint, tensors)
    layout = coded(layout, checkpoint, tensors) if format == "gguf" else layout
    plan = _plan(tensors, format, trunk_format, expected_files(layout, format, trunk_format, tied=tied))
    copied = _texts(checkpoint)
    of_layer = layers_of((each.path for each in plan), layout, trunk_format)
    check_layers(layers, layout)
    now = tuple(each for each in plan if layers is None or of_layer[each.path] in layers)
    sizes = {each.path: len(each.raw) for each in copied} | {each.path: each.shape.size_bytes for each in plan}
    work: dict[str, _Planned | _Copied] = {each.path: each for each in copied} | {each.path: each for each in now}
    with only_writer(out):
        if (out / MANIFEST_FILE).exists():
            raise UsageError(f"{out} already holds a split model", hint="Use it, delete it, or choose another folder.")
        job = _job(checkpoint, copied, format, trunk_format)
        journal = Journal(out, job, "" if layers is None else span_text(layers))
        supply = supply or AllHere()
        refs = {each.path: tuple(chain.from_iterable(each.refs)) for each in now}
        order = supply.schedule(out, {path: sizes[path] for path in work}, refs)
        with Packer(checkpoint, cores()) as packer:
            writing = _Writing(out, packer, journal, supply, progress or _silent)
            digests = {digest.path: digest for digest in writing.write([(work[path], sizes[path]) for path in order])}
        digests |= _finished(journal, sizes.keys() - work.keys())
        missing = sizes.keys() - digests.keys()
        if missing:
            return Unfinished(len(digests), tuple(sorted({of_layer[path] for path in missing})), journal.strange)
        manifest = Manifest(
            v=1, model=model, format=format, layout=layout, config_sha256=checkpoint.config_sha256,
            files=tuple(digests[path] for path in sizes),
            trunk_format=None if trunk_format == "f32" else trunk_format, generation=checkpoint.generation(),
        )  # fmt: skip
        write_file(out, MANIFEST_FILE, [(0, [manifest.canonical()])], lambda _: None)
        journal.remove()
    return manifest


def _job(checkpoint: Source, copied: Iterable[_Copied], format: Format, trunk_format: Format) -> str:
    """Everything that decides the bytes of the files."""
    texts = hashlib.sha256(b"".join(each.raw for each in copied)).hexdigest()
    job = f"{BYTES_VERSION} {format} {checkpoint.identity} {texts}"
    return job if trunk_format == "f32" else f"{job} trunk {trunk_format}"


def _finished(journal: Journal, paths: Collection[str]) -> dict[str, FileDigest]:
    """Those of the files that other runs finished. They are read only if none is missing: it may take long."""
    there = {path: digest for path in paths if (digest := journal.digest(path)) is not None}
    if len(there) < len(paths):
        return there
    return {path: digest for path in paths if (digest := journal.kept(path)) is not None}


def _texts(checkpoint: Source) -> tuple[_Copied, ...]:
    """What comes along as it is: the tokenizer, and how the model reads a conversation."""
    tokenizer, chat = _Copied(TOKENIZER_FILE, checkpoint.tokenizer()), checkpoint.chat()
    return (tokenizer,) if chat is None else (tokenizer, _Copied(CHAT_FILE, chat.canonical()))


def check_tensors(checkpoint: Source, tensors: TensorMap) -> None:
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


def _plan(tensors: TensorMap, format: Format, trunk: Format, shapes: Mapping[str, FileShape]) -> tuple[_Planned, ...]:
    """Every weights file, in the manifest's order."""
    refs: dict[str, Refs] = {embed_file(trunk): ((tensors.embed,),), NORM_FILE: ((tensors.norm,),)}
    if tensors.head is not None:
        refs[head_file(trunk)] = ((tensors.head,),)
    parts = {trunk_layer_file(layer, trunk): sections for layer, sections in enumerate(tensors.layers)}
    parts |= {shared_file(layer, trunk): sections for layer, sections in tensors.shared.items()}
    for path, sections in parts.items():
        refs[path] = tuple(sections[section.name] for section in shapes[path].plain)
    for (layer, expert), own in tensors.experts.items():
        path = expert_file(layer, expert, format)
        joined = len(shapes[path].plain) == 2
        refs[path] = ((own.gate, own.up), (own.down,)) if joined else ((own.gate,), (own.up,), (own.down,))
    return tuple(_Planned(path, shape, refs[path]) for path, shape in shapes.items())


@dataclass(frozen=True, slots=True)
class _Writing:
    """What writing the files takes."""

    out: Path
    packer: Packer
    journal: Journal
    supply: Supply
    progress: Progress

    def write(self, plan: list[tuple[_Planned | _Copied, int]]) -> Iterator[FileDigest]:
        """Each file with its size, in this order; the finished ones of an earlier run are kept."""
        total, before = sum(size for _, size in plan), 0
        for count, (planned, _) in enumerate(plan):
            path, kept = planned.path, self.journal.kept(planned.path)

            def report(written: int, path: str = path, files: int = count, at: int = before) -> None:
                self.progress(SplitProgress(path, False, files, len(plan), at + written, total))

            if kept is None:
                self.supply.before(path)
                digest = write_file(self.out, path, planned.sections(self.packer), report)
                self.journal.append(digest)
            else:
                digest = kept
            before += digest.size_bytes
            self.supply.after(path)
            self.progress(SplitProgress(path, kept is not None, count + 1, len(plan), before, total))
            yield digest


def _silent(_: SplitProgress) -> None:
    """Nobody watches."""
