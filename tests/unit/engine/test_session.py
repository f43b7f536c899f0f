"""Sessions: the pool, the provider, and what is said when something is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sawyer.engine import session
from sawyer.engine.experts import ExpertPool
from sawyer.engine.session import CPU, CUDA, configure, default_threads, device_name
from sawyer.errors import MissingExtra


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
