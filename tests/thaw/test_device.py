"""The device and the precision are those that the options name; freed memory is kept."""

import platform
from pathlib import Path

import pytest
import torch

from conftest import child_process
from helpers.training import options
from thawline.errors import ParameterError
from thawline.thaw.device import keep_freed_memory, make_accelerator

MB = 2**20


def _use_tensors(file: Path, keep: bool) -> None:
    import resource  # which Windows lacks

    if keep:
        keep_freed_memory()
    for _ in range(20):  # until what lies between them has found its place
        torch.ones(64 * MB, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 * MB, dtype=torch.uint8)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    file.write_text(str(pages * resource.getpagesize() // MB))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
@pytest.mark.parametrize(("keep", "least", "most"), [(True, 0, 128), (False, 600, 10_000)])
def test_memory_is_asked_for_once(tmp_path: Path, keep: bool, least: int, most: int) -> None:
    process = child_process(_use_tensors, tmp_path / "mb", keep)
    process.start()
    process.join()
    assert least <= int((tmp_path / "mb").read_text()) <= most


def test_where_it_cannot_be_told_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Musl:
        """A C library without mallopt."""

    monkeypatch.setattr("ctypes.CDLL", lambda _: Musl())
    keep_freed_memory()


def test_an_absent_device_is_refused_and_the_cpu_is_always_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert make_accelerator(options(device="cpu")).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError, match=r"training\.device: 'cuda' is not available.*cpu"):
        make_accelerator(options(device="cuda"))


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_computes_bf16_if_its_instructions_do(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert make_accelerator(options(device="cpu", precision="auto")).dtype == dtype


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_bf16_unless_it_would_emulate_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return has_bf16 or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert make_accelerator(options(device="cuda", precision="auto")).dtype == dtype


def test_precision_can_be_chosen_twice_in_one_process() -> None:
    assert make_accelerator(options(precision="bf16")).dtype == torch.bfloat16
    assert make_accelerator(options(precision="fp32")).dtype == torch.float32
