"""A split model on disk: `manifest.json` and the files it names. Reading verifies first.

Nothing is used before its SHA-256 matched the manifest, and the bytes that were hashed are the bytes that are used.
Paths come from the layout, never from a message or from a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from sawyer.errors import ArtifactCorrupt, NotCanonical, UnknownExpert, UsageError
from sawyer.model.families import family_named
from sawyer.model.layout import (
    CHAT_FILE,
    NORM_FILE,
    TOKENIZER_FILE,
    Array,
    FileShape,
    check_bounds,
    check_codings,
    embed_file,
    expert_file,
    file_shapes,
    head_file,
    shared_file,
    shared_shape,
    trunk_layer_file,
)
from sawyer.schemas.models import MANIFEST_FILE, ChatTemplate, FileDigest, Format, Manifest, ModelLayout

MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024


class Artifacts:
    """An opened folder. Weights files may be absent (a node holds some experts): a read says so."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises ArtifactCorrupt if the manifest does not name exactly the files of its own layout and format."""
        self.folder = folder
        self.manifest = manifest
        self.digest = manifest.digest()
        """Hex SHA-256 of the manifest: names these exact weights."""
        self._files = {file.path: file for file in manifest.files}
        self.tied = head_file(manifest.trunk) not in self._files
        self._shapes = expected_files(manifest.layout, manifest.format, manifest.trunk, tied=self.tied)
        _check_files(manifest, self._files, self._shapes)

    @classmethod
    def open(cls, folder: Path) -> Artifacts:
        """Raises UsageError (no split model there), ArtifactCorrupt or UnsupportedModel (a wrong manifest)."""
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise UsageError(
                f"no split model in {folder}: {MANIFEST_FILE} is missing", hint="Split or pull the model first."
            )
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactCorrupt(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
        try:
            manifest = Manifest.parse(path.read_bytes())
        except NotCanonical as error:
            raise ArtifactCorrupt(f"{path}: {error.message}") from error
        return cls(folder, manifest)

    @property
    def layout(self) -> ModelLayout:
        return self.manifest.layout

    def read_expert(self, layer: int, expert: int) -> dict[str, Array]:
        """The sections of one expert (see layout.expert_shape), verified. Raises UnknownExpert, ArtifactCorrupt."""
        if layer not in self.layout.moe_layers or not 0 <= expert < self.layout.experts:
            raise UnknownExpert(f"{self.manifest.model} has no expert {expert} in layer {layer}")
        return self._read(expert_file(layer, expert, self.manifest.format))

    def read_trunk_layer(self, layer: int) -> dict[str, Array]:
        """The sections of one trunk layer, verified. Raises ArtifactCorrupt."""
        return self._read(trunk_layer_file(layer, self.manifest.trunk))

    def read_shared(self, layer: int) -> dict[str, Array]:
        """The sections of the shared expert of a MoE layer, verified. Raises UnknownExpert, ArtifactCorrupt."""
        path = shared_file(layer, self.manifest.trunk)
        if path not in self._files:
            raise UnknownExpert(f"{self.manifest.model} has no shared expert in layer {layer}")
        return self._read(path)

    def read_embed(self) -> Array:
        """[V, H], float32 or float16, verified. Raises ArtifactCorrupt."""
        return self._read(embed_file(self.manifest.trunk))["embed"]

    def read_norm(self) -> Array:
        """The final norm [H] float32, verified. Raises ArtifactCorrupt."""
        return self._read(NORM_FILE)["norm"]

    def read_head(self) -> dict[str, Array] | None:
        """The sections of the head [V, H], verified; None where the embedding is the head. Raises ArtifactCorrupt."""
        return None if self.tied else self._read(head_file(self.manifest.trunk))

    def read_tokenizer(self) -> bytes:
        """The bytes of tokenizer.json, verified. Raises ArtifactCorrupt."""
        return read_verified(self.folder, self._files[TOKENIZER_FILE])

    def read_chat(self) -> ChatTemplate | None:
        """The chat template, verified; None for a model without. Raises ArtifactCorrupt."""
        if CHAT_FILE not in self._files:
            return None
        try:
            return ChatTemplate.parse(read_verified(self.folder, self._files[CHAT_FILE]))
        except NotCanonical as error:
            raise ArtifactCorrupt(f"{self.folder / CHAT_FILE}: {error.message}") from error

    def verify(self) -> None:
        """Reads every file of the manifest. Raises ArtifactCorrupt for the first that is missing or different."""
        for file in self.manifest.files:
            check_file(self.folder, file)

    def _read(self, path: str) -> dict[str, Array]:
        return self._shapes[path].view(read_verified(self.folder, self._files[path]))


def expected_files(layout: ModelLayout, format: Format, trunk: Format, *, tied: bool) -> Mapping[str, FileShape]:
    """The weights files of a model by path, its experts in `format` and its trunk in `trunk`. Raises UnsupportedModel
    if no family here computes this layout, or a format does not fit it."""
    check_bounds(layout)
    check_codings(layout, format, trunk)
    family = family_named(layout.family)
    family.check(layout)
    kinds = {layer in layout.moe_layers: layer for layer in (*layout.dense_layers[:1], layout.moe_layers[0])}
    layers = {sparse: family.trunk_layer(layout, layer) for sparse, layer in kinds.items()}
    sparse = frozenset(layout.moe_layers)
    return file_shapes(
        layout,
        format,
        trunk,
        trunk_layer=lambda layer: layers[layer in sparse],
        shared=shared_shape(layout, gated=family.gated_shared),
        tied=tied,
    )


def read_verified(folder: Path, file: FileDigest) -> bytes:
    """The bytes of a file, if they are the ones the manifest names. Raises ArtifactCorrupt, which names the file."""
    with _opened(folder, file) as stream:
        raw = stream.read(file.size_bytes)
    _compare(folder, file, hashlib.sha256(raw).hexdigest())
    return raw


def check_file(folder: Path, file: FileDigest) -> None:
    """Raises ArtifactCorrupt unless the bytes of the file are the ones the manifest names. Reads it piece by piece, so
    that memory stays small however big it is."""
    with _opened(folder, file) as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
    _compare(folder, file, got)


@contextmanager
def _opened(folder: Path, file: FileDigest) -> Iterator[BufferedReader]:
    """The file, which has its size. Raises ArtifactCorrupt, also for what goes wrong with it in here."""
    path = folder / file.path
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if size != file.size_bytes:
                raise ArtifactCorrupt(f"{path}: expected {file.size_bytes} bytes, got {size}")
            stream.seek(0)
            yield stream
    except OSError as error:
        raise ArtifactCorrupt(f"{path}: cannot be read: {error.strerror}") from error


def _compare(folder: Path, file: FileDigest, got: str) -> None:
    if got != file.sha256:
        raise ArtifactCorrupt(f"{folder / file.path}: expected SHA-256 {file.sha256}, got {got}")


def _check_files(manifest: Manifest, named: Mapping[str, FileDigest], shapes: Mapping[str, FileShape]) -> None:
    expected = {*shapes, TOKENIZER_FILE}
    if len(named) != len(manifest.files) or named.keys() - {CHAT_FILE} != expected:
        odd = min((named.keys() - {CHAT_FILE}) ^ expected, default="a file twice")
        raise ArtifactCorrupt(f"the manifest does not name the files of its own layout: {odd}")
    for path, shape in shapes.items():
        if named[path].size_bytes != shape.size_bytes:
            raise ArtifactCorrupt(
                f"{path}: its layout makes {shape.size_bytes} bytes, the manifest says {named[path].size_bytes}"
            )
