"""An expert of random weights tells what a machine can do before any real one is there."""

from __future__ import annotations

import numpy as np
import pytest

from sawyer.engine.probe import ExpertProbe
from sawyer.engine.session import CPU
from sawyer.errors import MissingExtra
from sawyer.schemas.models import Format, ModelLayout

LAYOUT = ModelLayout(
    family="mixtral", vocab=96, hidden=64, layers=1, heads=4, kv_heads=2, head_dim=16, ffn=96, experts=8, top_k=2,
    context=128, moe_layers=(0,), rms_eps="1e-05", rope_theta="10000.0", eos=(1,),
)  # fmt: skip


@pytest.mark.parametrize("format", ["f32", "q8", "q4"])
@pytest.mark.parametrize("rows", [1, 32])
def test_probe_runs_rows_in_the_models_shape_and_format(format: Format, rows: int) -> None:
    probe = ExpertProbe(LAYOUT, format, device="cpu")
    answer = probe.run(np.ones((rows, LAYOUT.hidden), np.float32))
    assert answer.shape == (rows, LAYOUT.hidden)
    assert np.isfinite(answer).all()
    assert probe.provider == CPU


def test_format_that_cannot_run_on_this_device_is_said_at_once() -> None:
    with pytest.raises(MissingExtra, match="f16 run on CUDA alone") as error:
        ExpertProbe(LAYOUT, "f16", device="cpu")
    assert "q4 or q8" in error.value.hint
