"""Trunks that this client runs itself: found on this machine, loaded once, kept until the client is closed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from sawyer.errors import SawyerError, UsageError, WrongManifest
from sawyer.home import Home
from sawyer.schemas.models import MANIFEST_FILE

if TYPE_CHECKING:
    from sawyer.engine.loaded import Engine
    from sawyer.model.artifacts import Artifacts


class Trunks:
    """Those of one client. `folder`: of a split or pulled model; without one they are looked for in the home."""

    def __init__(self, home: Home, folder: Path | None) -> None:
        self._home = home
        self._folder = folder
        self._loading: dict[str, asyncio.Task[Engine]] = {}

    async def load(self, model: str, manifest: str) -> Engine:
        """The trunk of the weights with this manifest; who asks meanwhile gets the same. Raises UsageError if it is not
        on this machine, WrongManifest if the folder has other weights, ArtifactCorrupt."""
        loading = self._loading.get(manifest)
        if loading is None or (loading.done() and (loading.cancelled() or loading.exception())):
            loading = asyncio.create_task(asyncio.to_thread(self._load, model, manifest), name=f"loading {model}")
            self._loading[manifest] = loading
        return await asyncio.shield(loading)

    async def close(self) -> None:
        """Idempotent."""
        loading, self._loading = self._loading, {}
        for each in await asyncio.gather(*loading.values(), return_exceptions=True):
            if not isinstance(each, BaseException):
                each.close()

    def _load(self, model: str, manifest: str) -> Engine:
        from sawyer.engine.loaded import Engine  # noqa: PLC0415  (only who runs a trunk needs ONNX Runtime)

        return Engine.load(self._found(model, manifest))

    def _found(self, model: str, manifest: str) -> Artifacts:
        from sawyer.model.artifacts import Artifacts  # noqa: PLC0415

        if self._folder is not None:
            artifacts = Artifacts.open(self._folder)
            if artifacts.digest != manifest:
                raise WrongManifest(
                    f"{self._folder} has manifest {artifacts.digest[:16]}, the network publishes {manifest[:16]}",
                    hint=f"Get the trunk that it publishes: sawyer models pull {model} --trunk",
                )
            return artifacts
        for place in (self._home.models, self._home.cache):
            for file in sorted(place.glob(f"*/{MANIFEST_FILE}")):
                try:
                    artifacts = Artifacts.open(file.parent)
                except SawyerError:  # somebody else's trouble: another may be whole
                    continue
                if artifacts.digest == manifest:
                    return artifacts
        raise UsageError(
            f"the trunk of {model} is not in {self._home.path}", hint=f"sawyer models pull {model} --trunk"
        )
