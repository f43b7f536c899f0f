"""The files of the experts that a node serves: all of them here and verified before one is promised, and a wrong one
brought again while the node serves. Owns which experts cannot be served because of their files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from typing import Final

from sawyer.errors import ArtifactCorrupt, SawyerError
from sawyer.model.files import ModelFiles
from sawyer.model.layout import Array, expert_file

START_PATIENCE_S: Final = 600.0
SERVING_PATIENCE_S: Final = 5.0
"""How long a request waits for a file that is brought again, and those behind it with it. The file may come later."""
MEND_EVERY_S: Final = 30.0

log = logging.getLogger(__name__)

Pair = tuple[int, int]


class ExpertReader:
    """Reads experts for a pool, in any thread but the loop's. Make it where the loop runs."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._loop = asyncio.get_running_loop()
        self._broken: dict[Pair, tuple[str, str]] = {}
        """Message and hint: an error would keep the bytes alive that its traceback knows."""
        self.patience_s = START_PATIENCE_S

    @property
    def broken(self) -> frozenset[Pair]:
        """Experts whose files are wrong, also after they were brought again."""
        return frozenset(self._broken)

    async def bring(self, pairs: Iterable[Pair]) -> None:
        """Returns when the files of these (layer, expert) pairs are here. Raises ArtifactCorrupt, UnreachableError."""
        await self._files.bring([self._path(pair) for pair in pairs])

    def read(self, layer: int, expert: int) -> dict[str, Array]:
        """The verified sections of its file, which is brought once more if it is wrong. Blocking. Raises
        ArtifactCorrupt, which names the file; while it is wrong, at once."""
        pair = layer, expert
        known = self._broken.get(pair)
        if known is not None:
            raise ArtifactCorrupt(known[0], hint=known[1])
        try:
            return self._files.artifacts.read_expert(layer, expert)
        except ArtifactCorrupt as error:
            wrong = str(error)
        try:
            self._bring_again(pair)
            sections = self._files.artifacts.read_expert(layer, expert)
        except ArtifactCorrupt as error:
            log.error("%s; expert %d of layer %d is not served until its file is right", error, expert, layer)
            told = self._as_told(error)
            self._broken[pair] = told.message, told.hint
            raise told from None
        log.warning("%s; it was asked for once more, and is right now", wrong)
        return sections

    async def mend(self) -> None:
        """Until cancelled: files that are wrong are brought and read again and again, and served when they are
        right."""
        while True:
            await asyncio.sleep(MEND_EVERY_S)
            for pair in sorted(self._broken):
                try:
                    await self._files.bring([self._path(pair)], suspect=True)
                    await asyncio.to_thread(self._files.artifacts.read_expert, *pair)
                except (SawyerError, OSError) as error:
                    log.debug("still wrong: %s", error)
                else:
                    del self._broken[pair]
                    log.warning("expert %d of layer %d is served again: its file is right", pair[1], pair[0])

    def _bring_again(self, pair: Pair) -> None:
        path = self._path(pair)
        coming: Future[None] = asyncio.run_coroutine_threadsafe(self._files.bring([path], suspect=True), self._loop)
        try:
            coming.result(self.patience_s)
        except TimeoutError as error:
            raise ArtifactCorrupt(f"{path}: wrong bytes here, and its new copy is still on the way") from error
        except CancelledError as error:
            raise ArtifactCorrupt(f"{path}: wrong bytes here, and the node ends") from error
        except ArtifactCorrupt:
            raise
        except SawyerError as error:
            raise ArtifactCorrupt(f"{path}: wrong bytes here, and no other copy: {error.message}") from error
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise ArtifactCorrupt(f"{path}: wrong bytes here, and a new copy cannot be kept: {why}") from error

    def _path(self, pair: Pair) -> str:
        return expert_file(*pair, self._files.artifacts.manifest.format)

    def _as_told(self, error: ArtifactCorrupt) -> ArtifactCorrupt:
        """To whoever asks over the network: the file by its name in the model, not where this machine has it."""
        return ArtifactCorrupt(error.message.replace(f"{self._files.artifacts.folder}/", ""), hint=error.hint)
