"""ONNX Runtime: its one thread pool, its sessions, and the truth about where they run.

ONNX Runtime has one global pool a process, made once: the only process-wide state of this package lives here. Sessions
with pools of their own would spin against each other (p95 of 74 ms instead of 0.2 ms with 64 sessions).
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, Final, Literal

from numpy.typing import NDArray

from sawyer.errors import MissingExtra
from sawyer.model.layout import Array

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
"""ONNX Runtime 1.32 keeps a device id and usage events under ~/.cache and sends them to its maker, unless this is set
before it is loaded. What runs here is nobody else's business."""

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtra(
        "onnxruntime is not installed, and this computes", hint="pip install 'sawyer[cpu]' (or 'sawyer[gpu]')"
    ) from error

Device = Literal["cpu", "cuda", "auto"]
CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
ERRORS_ONLY: Final = 3

_pool_lock: Final = Lock()
_pool_threads: list[int] = []


def configure(threads: int) -> int:
    """Makes the process-wide pool with this many threads; call it before the first session. Returns the size in force:
    the first call decides, later ones change nothing."""
    with _pool_lock:
        if not _pool_threads:
            onnxruntime.set_global_thread_pool_sizes(max(1, threads), 1)
            _pool_threads.append(max(1, threads))
        return _pool_threads[0]


def default_threads() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


class Session:
    """One loaded graph. Holds the weights' memory, because ONNX Runtime does not."""

    def __init__(
        self,
        graph: bytes,
        weights: Mapping[str, Array],
        *,
        shared: Mapping[str, Array] = MappingProxyType({}),
        device: Device = "cpu",
    ) -> None:
        """`weights` fill the graph's external initializers by name; ONNX Runtime makes a copy of them. `shared` are
        inputs that are the same in every run, which many sessions can have without one. Raises MissingExtra if `device`
        is "cuda" and sessions cannot run there."""
        configure(default_threads())
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = ERRORS_ONLY
        self._weights = dict(weights)
        self.shared = dict(shared)
        options.add_external_initializers(list(weights), [shared_value(one) for one in weights.values()])
        self.raw = onnxruntime.InferenceSession(graph, options, providers=_providers(device))
        self.outputs: tuple[str, ...] = tuple(output.name for output in self.raw.get_outputs())
        if device == "cuda" and running_provider(self) != CUDA:
            raise MissingExtra(
                f"asked for CUDA, but sessions run on {running_provider(self)}",
                hint="pip uninstall onnxruntime; pip install 'sawyer[gpu]', and check the driver with nvidia-smi.",
            )

    def run(self, inputs: Mapping[str, Array]) -> list[NDArray[Any]]:
        """The outputs in the order of `self.outputs`. Thread safe; other threads run meanwhile."""
        outputs: list[NDArray[Any]] = self.raw.run(None, {**self.shared, **inputs})
        return outputs


def shared_value(array: Array) -> Any:
    """An OrtValue over the array's own memory, without a copy. The caller keeps the array alive."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def running_provider(session: Session) -> str:
    """Where a session really runs. ONNX Runtime falls back silently; only a created session tells."""
    return str(session.raw.get_providers()[0])


def device_name(provider: str) -> str:
    """The name of the processor behind a provider, for people: "AMD EPYC 7763", "NVIDIA H100"; as a node may say it,
    printable and short."""
    name = _gpu_name() if provider == CUDA else _cpu_name()
    return "".join(each if " " <= each <= "~" else "?" for each in name)[:128]


def _providers(device: Device) -> list[str]:
    if device == "cpu" or CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    _preload_libraries()
    return [CUDA, CPU]


@cache
def _preload_libraries() -> None:
    """CUDA and cuDNN from the pip packages, which are on no search path."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


@cache
def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown CPU"


@cache
def _gpu_name() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown CUDA device"
    return done.stdout.strip() or "unknown CUDA device"
