"""Nothing needs a GPU, and the device is asked for in one place."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ralm import device
from ralm.device import best_device, each_on_a_core, resolve_dtype
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


@pytest.mark.parametrize("is_fast", [True, False])
def test_bf16_without_units_for_it_is_told(
    is_fast: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It was silently fifty times slower on processors without AVX-512."""
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: is_fast)
    monkeypatch.delenv("RALM_PRECISION", raising=False)
    caplog.set_level("WARNING", logger=device.__name__)
    assert resolve_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if is_fast else torch.float32)
    assert resolve_dtype("fp32", torch.device("cpu")) == torch.float32
    assert not caplog.records
    assert resolve_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert ["found no units for it on this cpu" in record.getMessage() for record in caplog.records] == [True] * (
        not is_fast
    )


def test_flash_attention_is_asked_of_torch_and_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    has, gpu = {"built": True, "capability": (8, 0)}, torch.device("cuda")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: has["built"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: has["capability"])
    assert device.has_flash_attention(gpu, torch.bfloat16, 64)
    assert device.has_flash_attention(gpu, torch.float16, 256)
    assert not device.has_flash_attention(torch.device("cpu"), torch.bfloat16, 64)
    assert not device.has_flash_attention(gpu, torch.float32, 64)
    assert not any(device.has_flash_attention(gpu, torch.bfloat16, size) for size in (12, 264))
    for name, missing in (("capability", (7, 5)), ("built", False)):
        with monkeypatch.context() as patch:
            patch.setitem(has, name, missing)
            assert not device.has_flash_attention(gpu, torch.bfloat16, 64)


@pytest.mark.parametrize("folder", ["ralm", "components", "pipelines"])
def test_no_module_moves_anything_to_cuda_itself(folder: str) -> None:
    """Defect 23, for the whole code: a device is handed on, or asked for in `ralm/device.py`."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path != ROOT / "ralm" / "device.py":
            found = re.findall(r"\.cuda\(|torch\.cuda\.|device=\"cuda|to\(\"cuda", path.read_text(encoding="utf-8"))
            assert not found, f"{path.relative_to(ROOT)}: {found}"


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_cores_work_side_by_side_each_alone_and_leave_no_trace(three_threads: None) -> None:
    meet = threading.Barrier(3, timeout=20)

    def threads_of(item: int) -> tuple[int, int]:
        meet.wait()  # only three at once get past
        return item, torch.get_num_threads()

    assert list(each_on_a_core(threads_of, range(9))) == [(item, 1) for item in range(9)]
    found: list[int] = []
    for _ in range(2):
        new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        new.start()
        new.join()
    assert (torch.get_num_threads(), found) == (3, [3, 3])


def test_an_error_on_a_core_ends_the_others_work_and_is_raised(three_threads: None) -> None:
    started: list[int] = []

    def divide(item: int) -> int:
        started.append(item)
        return 6 // item

    with pytest.raises(ZeroDivisionError):
        list(each_on_a_core(divide, [3, 0, *range(1, 100)]))
    assert len(started) < 20
    assert torch.get_num_threads() == 3


def test_what_is_left_is_not_done_when_results_of_cores_are_no_longer_wanted(three_threads: None) -> None:
    started: list[int] = []
    results = each_on_a_core(started.append, range(100))
    next(results)
    results.close()
    assert len(started) < 20
