"""Sessions: the pool, the provider, and what is said when something is not installed."""

from __future__ import annotations

import subprocess
import sys

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
