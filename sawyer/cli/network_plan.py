"""Which processes the network of one home has, and how each is started. Owns no process, and starts none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sawyer.home import Home
from sawyer.model.catalog import DEMO_MODEL
from sawyer.settings import ENV_CONFIG

BOOKKEEPER: Final = "bookkeeper"
AUTHORITY: Final = "authority"
ROUTER: Final = "router-1"
READY_S: Final = 60.0
LOAD_BYTES_A_SECOND: Final = 50e6
"""How slowly a disk may give a model's files, to be verified, before a part counts as hung."""


@dataclass(frozen=True)
class Part:
    """One process: its name, the arguments of `sawyer` that make it, what its environment has beside ours. `threads`
    bounds numeric libraries; `ready_s` is how long it may take to be ready; `within`: what stands before the command,
    to run it elsewhere."""

    name: str
    arguments: tuple[str, ...]
    threads: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_s: float = READY_S
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkPlan:
    """A network on this machine: one bookkeeper, one router, some nodes with equal shares of the experts. `model`: its
    id, or the folder of a split model, of so many bytes; `config`: the config file that its parts read, too."""

    home: Home
    url: str
    nodes: int
    model: str = DEMO_MODEL
    model_bytes: int = 0
    threads: int = 1
    config: Path | None = None

    @property
    def bookkeeper(self) -> Part:
        return Part(BOOKKEEPER, (BOOKKEEPER, *self._common), environment=self._environment)

    @property
    def authority(self) -> Part:
        return Part(AUTHORITY, ("network", "serve", *self._common), environment=self._environment)

    @property
    def router(self) -> Part:
        return self._computing(ROUTER, "route", self.model, "--name", ROUTER)

    @property
    def node_parts(self) -> list[Part]:
        return [self._node(part) for part in range(self.nodes)]

    def _node(self, part: int) -> Part:
        name, host = f"node-{part + 1}", f"host-{part + 1}"
        return self._computing(
            name, "serve", self.model, "--name", name, "--host", host, "--share", f"{part}/{self.nodes}"
        )

    def _computing(self, name: str, *arguments: str) -> Part:
        whole = (*arguments, "--threads", str(self.threads), *self._common)
        patience_s = READY_S + self.model_bytes / LOAD_BYTES_A_SECOND
        return Part(name, whole, self.threads, self._environment, patience_s)

    @property
    def _common(self) -> tuple[str, ...]:
        return ("--home", str(self.home.path), "--nats", self.url)

    @property
    def _environment(self) -> dict[str, str]:
        return config_environment(self.config) if self.config else {}


def config_environment(file: Path) -> dict[str, str]:
    """What makes another process read this config file, too; nothing if there is none."""
    return {ENV_CONFIG: str(file)} if file.is_file() else {}
