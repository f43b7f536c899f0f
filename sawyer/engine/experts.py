"""The experts that this process hosts: verified, loaded, ready to run.

Row exactness: on the CPU the answer for a row does not depend on the rows it travels with, bit for bit; so joined
runs, hedges and fallbacks change nothing. Some kernels take another path for a single row: there a lone row runs as
two. On CUDA, whose libraries choose kernels by the number of rows, nothing is promised, and `row_exact` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sawyer.engine.session import CPU, CUDA, Device, Session, running_provider
from sawyer.errors import MalformedMessage, MissingExtra, UnknownExpert, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.model.graphs import expert_graph

FAST: Final = 4
"""accuracy_level of q4 and q8 in production: rows are rounded to int8 and multiplied in integers."""
EXACT: Final = 0
"""accuracy_level of q4 and q8 in parity tests: the dequantised weights times float32 rows."""


class ExpertPool:
    """Sessions of the hosted experts. Immutable after loading; `run` may be called from any thread. `row_exact`: the
    answer for a row does not depend on the rows beside it."""

    def __init__(
        self,
        artifacts: Artifacts,
        hosted: Iterable[tuple[int, int]],
        *,
        accuracy_level: int = FAST,
        device: Device = "auto",
    ) -> None:
        """`hosted` are (layer, expert) pairs. Raises UsageError if there are none, UnknownExpert, ArtifactCorrupt,
        MissingExtra (device "cuda" without CUDA, or experts in f16 without CUDA)."""
        self.hosted = tuple(sorted(set(hosted)))
        if not self.hosted:
            raise UsageError("no experts to host", hint="Name at least one layer and expert.")
        self.hidden = artifacts.layout.hidden
        format = artifacts.manifest.format
        graph = expert_graph(artifacts.layout, format, accuracy_level=accuracy_level)
        if format == "f16" and device == "cpu":
            raise _needs_cuda(CPU)
        self._sessions: dict[tuple[int, int], Session] = {}
        for pair in self.hosted:
            session = Session(graph, artifacts.read_expert(*pair), device=device)
            if format == "f16" and running_provider(session) != CUDA:
                raise _needs_cuda(running_provider(session))
            self._sessions[pair] = session
        self.provider = running_provider(self._sessions[self.hosted[0]])
        exact_kernel = format == "f32" or accuracy_level == FAST
        self.row_exact = self.provider == CPU
        self._pairs_lone_rows = self.provider != CPU or not exact_kernel

    def run(self, layer: int, expert: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """[T, H] float32 -> [T, H] float32, without the gate weight. Blocking. Raises UnknownExpert if not hosted,
        MalformedMessage for rows of another width."""
        session = self._sessions.get((layer, expert))
        if session is None:
            raise UnknownExpert(f"expert {expert} of layer {layer} is not hosted here")
        if rows.ndim != 2 or rows.shape[1] != self.hidden:
            raise MalformedMessage(f"expected rows of {self.hidden} values, got shape {list(rows.shape)}")
        if len(rows) == 1 and self._pairs_lone_rows:
            return session.run({"x": np.repeat(rows, 2, axis=0)})[0][:1]
        return session.run({"x": rows})[0]


def _needs_cuda(provider: str) -> MissingExtra:
    return MissingExtra(
        f"experts in f16 run on CUDA alone, and sessions run here on {provider}",
        hint="Serve the model in q4 or q8 here: half the memory or less, and no slower. For CUDA: pip uninstall "
        "onnxruntime; pip install 'sawyer[gpu]'.",
    )
