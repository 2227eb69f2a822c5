"""Nothing needs a GPU, and the device is asked for in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ralm.device import best_device, resolve_dtype
from ralm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 23: CUDA was hard-coded."""
    monkeypatch.delenv("RALM_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")
    monkeypatch.setenv("RALM_DEVICE", "cuda")
    with pytest.raises(ConfigError, match="RALM_DEVICE=cuda: this machine has no CUDA device"):
        best_device()
    monkeypatch.setenv("RALM_DEVICE", "abacus")
    with pytest.raises(ConfigError, match="expected a device such as cpu or cuda:0, found 'abacus'"):
        best_device()
    assert resolve_dtype("fp32", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("folder", ["ralm", "components", "pipelines"])
def test_no_module_moves_anything_to_cuda_itself(folder: str) -> None:
    """Defect 23, for the whole code: a device is handed on, or asked for in `ralm/device.py`."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path != ROOT / "ralm" / "device.py":
            found = re.findall(r"\.cuda\(|torch\.cuda\.|device=\"cuda|to\(\"cuda", path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found}"
