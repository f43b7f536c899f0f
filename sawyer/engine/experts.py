"""The experts that this process hosts: those that were asked for last are loaded, as many as memory has room for.

Row exactness: on the CPU the answer for a row does not depend on the rows it travels with, bit for bit; so joined
runs, hedges and fallbacks change nothing, and neither does loading an expert again. Some kernels take another path for
a single row: there a lone row runs as two. On CUDA, whose libraries choose kernels by the number of rows, nothing is
promised, and `row_exact` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.allocator import give_back_freed
from sawyer.engine.footprint import expert_footprint
from sawyer.engine.session import CPU, CUDA, Device, Session, running_provider
from sawyer.errors import MalformedMessage, MissingExtra, SawyerError, UnknownExpert, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.model.graphs import expert_graph
from sawyer.model.layout import Array, FileShape, expert_shape
from sawyer.schemas.models import Format, ModelLayout

FAST: Final = 4
"""accuracy_level of q4 and q8 in production: rows are rounded to int8 and multiplied in integers."""
EXACT: Final = 0
"""accuracy_level of q4 and q8 in parity tests: the dequantised weights times float32 rows."""

log = logging.getLogger(__name__)

Read = Callable[[int, int], Mapping[str, Array]]
"""(layer, expert) -> the verified sections of its file. Raises ArtifactCorrupt."""


@dataclass(eq=False, slots=True)
class _Loaded:
    """A session, and how many threads run it now."""

    session: Session
    users: int = 0


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """How many experts are hosted and loaded; how often one was loaded and dropped since the pool was made, and how
    long the loading took."""

    hosted: int
    loaded: int
    loads: int
    drops: int
    loading_s: float


class ExpertPool:
    """Sessions of the hosted experts, loaded on first use; who was used least recently is dropped where room is short.
    Every method may be called from any thread. `row_exact`: the answer for a row does not depend on the rows beside
    it."""

    def __init__(
        self,
        artifacts: Artifacts,
        hosted: Iterable[tuple[int, int]],
        *,
        accuracy_level: int = FAST,
        device: Device = "auto",
        limit_bytes: int | None = None,
        lacking: Callable[[int], int] = lambda _: 0,
        read: Read | None = None,
    ) -> None:
        """Loads `hosted` (layer, expert) pairs in their order, as many as fit. `limit_bytes` bounds what all loaded
        ones take (sawyer.engine.footprint), `lacking(bytes)` says by how much the machine is short of so many more; one
        expert is loaded whatever they say. Raises UsageError if there are none, UnknownExpert, MissingExtra (device
        "cuda" without CUDA, or experts in f16 without CUDA), and what `read` raises (ArtifactCorrupt)."""
        order = list(dict.fromkeys(hosted))
        if not order:
            raise UsageError("no experts to host", hint="Name at least one layer and expert.")
        self.hosted = tuple(sorted(order))
        self._artifacts = artifacts
        self._is_bounded = limit_bytes is not None
        self.hidden = artifacts.layout.hidden
        format = artifacts.manifest.format
        _check_known(artifacts, self.hosted)
        if format == "f16" and device == "cpu":
            raise _needs_cuda(CPU)
        self._format, self._device = format, device
        self._graphs = _graphs(artifacts.layout, format, accuracy_level)
        self._read = read or artifacts.read_expert
        self._lacking = lacking
        self._footprint = footprint = expert_footprint(artifacts.layout, format, accuracy_level=accuracy_level)
        self._needed_bytes = footprint.kept_bytes + footprint.loading_bytes
        self._most = len(order) if limit_bytes is None else footprint.fit(limit_bytes)
        self._known = frozenset(order)
        self._loaded: dict[tuple[int, int], _Loaded] = {}
        """In the order of their last use."""
        self._lock, self._loading = Lock(), Lock()
        self._loads = self._drops = 0
        self._loading_s = 0.0
        self.provider = ""
        for pair in order:
            if self._loaded and (len(self._loaded) >= self._most or self._short_bytes(self._needed_bytes)):
                break
            self._let_go(self._take(pair))
        exact_kernel = format == "f32" or accuracy_level == FAST
        self.row_exact = self.provider == CPU
        self._pairs_lone_rows = self.provider != CPU or not exact_kernel

    @property
    def counts(self) -> PoolCounts:
        return PoolCounts(len(self.hosted), len(self._loaded), self._loads, self._drops, self._loading_s)

    @property
    def uses_main_memory(self) -> bool:
        """Dropping experts frees it. On CUDA they take the GPU's."""
        return self.provider != CUDA

    def is_loaded(self, layer: int, expert: int) -> bool:
        """Whether it runs without being loaded first."""
        return (layer, expert) in self._loaded

    def run(self, layer: int, expert: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T, H] float32 -> [T, H] float32, without the gate weight. Blocking. Raises UnknownExpert if not hosted,
        MalformedMessage for rows of another width, and what reading raises if it must be loaded (ArtifactCorrupt)."""
        if (layer, expert) not in self._known:
            raise UnknownExpert(f"expert {expert} of layer {layer} is not hosted here")
        if rows.ndim != 2 or rows.shape[1] != self.hidden:
            raise MalformedMessage(f"expected rows of {self.hidden} values, got shape {list(rows.shape)}")
        held = self._take((layer, expert))
        try:
            if len(rows) == 1 and self._pairs_lone_rows:
                return held.session.run({"x": np.repeat(rows, 2, axis=0)})[0][:1]
            return held.session.run({"x": rows})[0]
        finally:
            self._let_go(held)

    def hosts(self, pair: tuple[int, int]) -> bool:
        """Whether this (layer, expert) may be run."""
        return pair in self._known

    def adopt(self, layer: int, expert: int) -> None:
        """Host one more, loaded and run once when this returns. Blocking. Raises UnknownExpert, and what reading
        raises; then it is not hosted."""
        pair = layer, expert
        _check_known(self._artifacts, [pair])
        self._host(self._known | {pair})
        try:
            self.run(layer, expert, np.zeros((1, self.hidden), np.float32))
        except BaseException:
            self.give_up(layer, expert)
            raise

    def give_up(self, layer: int, expert: int) -> None:
        """Host it no more; runs under way end as they would. One is left."""
        known = self._known - {(layer, expert)}
        if not known:
            return
        self._host(known)
        with self._lock:
            held = self._loaded.get((layer, expert))
            if held is not None and not held.users:
                del self._loaded[layer, expert]
        del held
        give_back_freed()

    def _host(self, known: frozenset[tuple[int, int]]) -> None:
        with self._lock:
            if not self._is_bounded:
                self._most = max(1, self._most + len(known) - len(self._known))
            self._known, self.hosted = known, tuple(sorted(known))

    def relieve(self, lacking_bytes: int) -> int:
        """Give so much memory back, as far as experts that nobody uses now take it: all but the one used last. Returns
        how many were dropped. Blocking, milliseconds."""
        return self._drop(-(-lacking_bytes // self._footprint.kept_bytes), keep=1)

    def _take(self, pair: tuple[int, int]) -> _Loaded:
        """The loaded expert, which stays so until `_let_go`."""
        held = self._find(pair)
        if held is not None:
            return held
        with self._loading:
            held = self._find(pair)
            if held is None:  # else another thread has loaded it meanwhile
                held = self._load(pair)
        return held

    def _find(self, pair: tuple[int, int]) -> _Loaded | None:
        with self._lock:
            held = self._loaded.pop(pair, None)
            if held is not None:
                self._loaded[pair] = held
                held.users += 1
            return held

    def _let_go(self, held: _Loaded) -> None:
        with self._lock:
            held.users -= 1
            beyond = len(self._loaded) - self._most
        if beyond > 0:
            self._drop(beyond)

    def _load(self, pair: tuple[int, int]) -> _Loaded:
        started_s, short = perf_counter(), self._short_bytes(self._needed_bytes)
        weights = self._read(*pair)  # first: nobody makes room for an expert whose file is wrong
        self._drop(max(len(self._loaded) + 1 - self._most, -(-short // self._footprint.kept_bytes)))
        held = _Loaded(self._open(self._graphs[pair[0]], weights), users=1)
        del weights  # before what was freed is given back
        with self._lock:
            self._loaded[pair] = held
            self._loads += 1
            self._loading_s += perf_counter() - started_s
        give_back_freed()
        return held

    def _open(self, graph: bytes, weights: Mapping[str, Array]) -> Session:
        session = self._made(graph, weights)
        self.provider = self.provider or running_provider(session)
        if self._format == "f16" and running_provider(session) != CUDA:
            raise _needs_cuda(running_provider(session))
        return session

    def _made(self, graph: bytes, weights: Mapping[str, Array]) -> Session:
        """ONNX Runtime has no type for "no memory left", on a GPU above all: what fails twice, and not for a reason
        that has one, counts as that, and as many as are loaded then are the most from then on."""
        try:
            return Session(graph, weights, device=self._device)
        except SawyerError:
            raise
        except Exception as error:  # noqa: BLE001  (raised below if it did not pass)
            log.debug("an expert did not load: %s", error)
        try:
            return Session(graph, weights, device=self._device)
        except Exception:
            with self._lock:
                self._most = max(1, len(self._loaded))
            if not self._drop(max(1, self._most // 4)):
                raise
        return Session(graph, weights, device=self._device)

    def _short_bytes(self, needed_bytes: int) -> int:
        return self._lacking(needed_bytes) if self.uses_main_memory else 0

    def _drop(self, count: int, keep: int = 0) -> int:
        """At most so many, the one used least recently first; none that is in use, and `keep` stay."""
        with self._lock:
            count = max(0, min(count, len(self._loaded) - keep))
            idle = [pair for pair, held in self._loaded.items() if not held.users][:count]
            dropped = [self._loaded.pop(pair) for pair in idle]
            self._drops += len(idle)
        if dropped:
            dropped.clear()  # frees them, which takes a while: nobody waits for the lock meanwhile
            give_back_freed()
        return len(idle)


def _graphs(layout: ModelLayout, format: Format, accuracy_level: int) -> dict[int, bytes]:
    """By layer. They differ in format gguf alone, and there few of them do."""
    if format != "gguf":
        return dict.fromkeys(layout.moe_layers, expert_graph(layout, format, accuracy_level=accuracy_level))
    made: dict[FileShape, bytes] = {}
    for layer in layout.moe_layers:
        shape = expert_shape(layout, format, layer)
        if shape not in made:
            made[shape] = expert_graph(layout, format, accuracy_level=accuracy_level, layer=layer)
    return {layer: made[expert_shape(layout, format, layer)] for layer in layout.moe_layers}


def _check_known(artifacts: Artifacts, hosted: Iterable[tuple[int, int]]) -> None:
    layers = frozenset(artifacts.layout.moe_layers)
    for layer, expert in hosted:
        if layer not in layers or not 0 <= expert < artifacts.layout.experts:
            raise UnknownExpert(f"{artifacts.manifest.model} has no expert {expert} in layer {layer}")


def _needs_cuda(provider: str) -> MissingExtra:
    return MissingExtra(
        f"experts in f16 run on CUDA alone, and sessions run here on {provider}",
        hint="Serve the model in q4 or q8 here: half the memory or less, and no slower. For CUDA: pip uninstall "
        "onnxruntime; pip install 'sawyer[gpu]'.",
    )
