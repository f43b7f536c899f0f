"""Sessions: the pool, the provider, and what is said when something is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
    user = {**kept, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=user)
    assert "-1." in done.stdout, done.stderr
    assert list(tmp_path.rglob("*")) == []
