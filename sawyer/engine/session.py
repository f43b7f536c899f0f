"""ONNX Runtime: its one thread pool, its sessions, and the truth about where they run.

ONNX Runtime has one global pool a process, made once: the only process-wide state of this package lives here. Sessions
with pools of their own would spin against each other (p95 of 74 ms instead of 0.2 ms with 64 sessions).
"""

from __future__ import annotations

import io
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stdout
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
FATAL_ONLY: Final = 4
CUDA_HINT: Final = (
    "Choose --device cpu or auto (SAWYER_DEVICE), or mend it: nvidia-smi tells whether the driver is well; then pip "
    "uninstall onnxruntime onnxruntime-gpu, and pip install 'sawyer[gpu]'."
)
"""The two packages are one module, so one of them alone may be installed."""

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
    """One loaded graph."""

    def __init__(
        self,
        graph: bytes,
        weights: Mapping[str, Array],
        *,
        shared: Mapping[str, Array] = MappingProxyType({}),
        device: Device = "cpu",
    ) -> None:
        """`weights` fill the graph's external initializers by name; ONNX Runtime makes a copy of them, and nobody holds
        theirs (AddExternalInitializers in onnxruntime_c_api.h: "buffers can then be deallocated"). `shared` are
        inputs that are the same in every run, which many sessions can have without one. Raises MissingExtra if `device`
        is "cuda" and sessions cannot run there."""
        configure(default_threads())
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = ERRORS_ONLY
        self.shared = dict(shared)
        options.add_external_initializers(list(weights), [shared_value(one) for one in weights.values()])
        self.raw = onnxruntime.InferenceSession(graph, options, providers=_providers(device))
        self.inputs: tuple[str, ...] = tuple(each.name for each in self.raw.get_inputs())
        self.outputs: tuple[str, ...] = tuple(output.name for output in self.raw.get_outputs())
        if device == "cuda" and running_provider(self) != CUDA:
            raise MissingExtra(
                f"asked for CUDA, but sessions run on {running_provider(self)}{why_not_cuda()}", hint=CUDA_HINT
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


def may_run_cuda() -> bool:
    """Whether the ONNX Runtime that is installed is the one for GPUs. Whether sessions run there, only a session
    tells."""
    return CUDA in onnxruntime.get_available_providers()


def why_not_cuda() -> str:
    """Behind "sessions run on the CPU": why that is, as far as it can be told."""
    if not may_run_cuda():
        return ": this onnxruntime is the one for CPUs"
    lacking = _preload_libraries()
    if lacking:
        return f": {lacking} cannot be loaded"
    return "" if _nvidia_smi("name") else ": no NVIDIA driver answers"


def device_memory_bytes() -> tuple[int, int] | None:
    """(total, free) of the GPU on which CUDA sessions run, as its driver tells; None where there is none to ask."""
    told = re.fullmatch(r"(\d+), (\d+)", _nvidia_smi("memory.total,memory.free", "nounits"))
    return None if told is None else (int(told[1]) << 20, int(told[2]) << 20)


def _providers(device: Device) -> list[Any]:
    """On CUDA float32 is multiplied as float32, never as TF32, whose mantissa has 10 bits: `use_tf32` is on by default
    (onnxruntime pull request 19357)."""
    if device == "cpu" or not may_run_cuda():
        return [CPU]
    _preload_libraries()
    return [(CUDA, {"use_tf32": "0"}), CPU]


@cache
def _preload_libraries() -> str:
    """CUDA and cuDNN from the pip packages, which are on no search path. Returns the first that cannot be loaded, or
    nothing: ONNX Runtime prints it on stdout, where data goes, and once more when sessions cannot be made."""
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    if not hasattr(onnxruntime, "preload_dlls"):
        return ""
    told = io.StringIO()
    with redirect_stdout(told):
        onnxruntime.preload_dlls()
    lacking = re.search(r"Failed to load ([^\s:]+)", told.getvalue())
    return lacking[1] if lacking else ""


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
    return _nvidia_smi("name") or "unknown CUDA device"


def _first_gpu() -> str:
    """The GPU on which sessions run, as nvidia-smi takes it: the first that CUDA_VISIBLE_DEVICES names."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return first if re.fullmatch(r"\d{1,4}|GPU-[0-9a-f-]{8,36}", first, re.ASCII) else "0"


def _nvidia_smi(asked: str, *formats: str) -> str:
    """What the driver's own tool says of the GPU in use; nothing where it is not there."""
    form = ",".join(("csv", "noheader", *formats))
    query = ["nvidia-smi", f"--query-gpu={asked}", f"--format={form}", f"--id={_first_gpu()}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
