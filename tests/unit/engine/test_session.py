"""Sessions: the pool, the provider, and what is said when something is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sawyer.engine import session
from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.engine.session import CPU, CUDA, Session, configure, default_threads, device_memory_bytes, device_name
from sawyer.errors import MissingExtra
from sawyer.model.artifacts import Artifacts
from sawyer.model.graphs import expert_graph
from sawyer.schemas.models import Format


def test_first_configure_decides_the_size_of_the_pool() -> None:
    in_force = configure(default_threads())
    assert configure(in_force + 5) == in_force


def test_device_has_a_name() -> None:
    assert device_name(CPU)
    assert device_name(CUDA)


def test_cuda_that_is_not_there_is_said(demo: object) -> None:
    with pytest.raises(MissingExtra, match=CPU) as caught:
        ExpertPool(demo("q4"), [(0, 0)], device="cuda")  # type: ignore[operator]
    assert "sawyer[gpu]" in caught.value.hint


@pytest.mark.parametrize("format", ["f32", "q4", "q8"])
@pytest.mark.parametrize("accuracy_level", [EXACT, FAST])
def test_weights_may_be_overwritten_once_a_session_is_made(
    format: Format, accuracy_level: int, demo: Callable[[Format], Artifacts]
) -> None:
    """Nobody holds them: half the memory of an expert."""
    artifacts = demo(format)
    weights = {name: array.copy() for name, array in artifacts.read_expert(0, 0).items()}
    made = Session(expert_graph(artifacts.layout, format, accuracy_level=accuracy_level), weights)
    for array in weights.values():
        array[:] = 1
    rows = np.random.default_rng(3).standard_normal((9, artifacts.layout.hidden), dtype=np.float32)
    expected = ExpertPool(artifacts, [(0, 0)], accuracy_level=accuracy_level, device="cpu").run(0, 0, rows)
    for count in (9, 2):
        assert np.array_equal(made.run({"x": rows[:count]})[0], expected[:count])


@pytest.mark.parametrize(
    ("missing", "module"), [("onnxruntime", "sawyer.engine.experts"), ("tokenizers", "sawyer.engine.tokenizer")]
)
def test_missing_package_says_which_extra_to_install(missing: str, module: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from sawyer.errors import MissingExtra\n"
        f"try:\n    import {module}\nexcept MissingExtra as error:\n    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sawyer[cpu]'" in done.stdout


def test_model_files_need_no_onnxruntime_and_no_tokenizers() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['tokenizers'] = None\n"
        "import sawyer.model.split, sawyer.model.catalog, sawyer.model.graphs\n"
        "import sawyer.engine.combine, sawyer.engine.sampling\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An nvidia-smi that says this."""

    def saying(text: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{text}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return saying


@pytest.mark.parametrize(
    ("says", "bytes_told"),
    [("81559, 80994", (81559 << 20, 80994 << 20)), ("[N/A], [N/A]", None), ("No devices were found", None), ("", None)],
)
def test_memory_of_the_gpu_is_told_where_its_driver_tells_it(
    driver: Callable[[str], None], says: str, bytes_told: tuple[int, int] | None
) -> None:
    driver(says)
    assert device_memory_bytes() == bytes_told


@pytest.mark.parametrize(
    ("visible", "asked"),
    [(None, "0"), ("", "0"), ("3,1", "3"), ("GPU-8932f937-d72c", "GPU-8932f937-d72c"), ("--help", "0"), ("-1", "0")],
)
def test_gpu_that_is_asked_is_the_first_that_is_visible(
    visible: str | None, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert session._first_gpu() == asked


def test_memory_of_a_gpu_that_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device_memory_bytes() is None


def test_name_of_a_processor_is_told_as_a_message_may_carry_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_cpu_name", lambda: "Intel\N{REGISTERED SIGN} \x1b[2J" + "x" * 200)
    assert device_name(CPU) == ("Intel? ?[2J" + "x" * 200)[:128]


def test_loading_the_runtime_keeps_no_device_id_and_no_usage_events(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 would make ~/.cache/Microsoft and talk to its maker."""
    program = (
        "import numpy as np; from sawyer.engine.session import Session; import onnx.helper as h; "
        "v = h.make_tensor_value_info('x', 1, [1]); w = h.make_tensor_value_info('y', 1, [1]); "
        "m = h.make_model(h.make_graph([h.make_node('Neg', ['x'], ['y'])], 'g', [v], [w]), ir_version=10, "
        "opset_imports=[h.make_opsetid('', 21)]); "
        "print(Session(m.SerializeToString(), {}).run({'x': np.ones(1, np.float32)}))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    user = {**kept, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=user)
    assert "-1." in done.stdout, done.stderr
    assert list(tmp_path.rglob("*")) == []
