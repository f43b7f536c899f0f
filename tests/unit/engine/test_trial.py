"""The smallest session tells where sessions run."""

from __future__ import annotations

import pytest

from sawyer.engine import session
from sawyer.engine.session import CPU
from sawyer.engine.trial import try_device
from sawyer.errors import MissingExtra


def test_session_on_the_processor_says_so() -> None:
    provider, processor = try_device("cpu")
    assert provider == CPU
    assert processor


def test_device_that_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.onnxruntime, "get_available_providers", lambda: [CPU])
    assert try_device("auto")[0] == CPU
    with pytest.raises(MissingExtra, match="CUDA"):
        try_device("cuda")
