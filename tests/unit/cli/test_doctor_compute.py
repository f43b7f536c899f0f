"""What `sawyer doctor` says of where experts would run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from sawyer.cli import doctor_machine
from sawyer.cli.checks import FAIL, OK, WARN, Check
from sawyer.settings import Settings

Examine = Callable[[str, Collection[str]], Check]


@pytest.fixture
def examine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """The check for a device, as if these packages were installed."""

    def check(device: str, packages: Collection[str]) -> Check:
        monkeypatch.setattr(doctor_machine, "_version", lambda name: "1.31.1" if name in packages else "")
        return doctor_machine._check_compute(Settings.load(home=tmp_path, device=device))

    return check


def test_cpu_package_on_a_cpu_is_well(examine: Examine) -> None:
    assert examine("cpu", {"onnxruntime"}).state == OK


def test_gpu_package_that_runs_on_the_cpu_is_told_with_a_way_to_mend_it(examine: Examine) -> None:
    found = examine("auto", {"onnxruntime-gpu"})
    assert found.state == WARN
    assert "runs on CPUExecutionProvider" in found.found
    assert "not on CUDA" in found.found
    assert "nvidia-smi" in found.todo


def test_cuda_that_was_asked_for_and_does_not_run_fails(examine: Examine) -> None:
    found = examine("cuda", {"onnxruntime"})
    assert (found.state, "asked for CUDA" in found.found) == (FAIL, True)
    assert "sawyer[gpu]" in found.todo


def test_both_packages_at_once_fail_because_they_are_one_module(examine: Examine) -> None:
    found = examine("auto", {"onnxruntime", "onnxruntime-gpu"})
    assert (found.state, "both installed" in found.found) == (FAIL, True)
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found.todo
