"""The device and the precision are those that the options name."""

import pytest
import torch

from helpers.training import (
    options,
)
from thawline.errors import ParameterError
from thawline.thaw.device import make_accelerator


def test_an_absent_device_is_refused_and_the_cpu_is_always_there() -> None:
    assert make_accelerator(options(device="cpu")).device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ParameterError, match=r"training\.device: 'cuda' is not available.*cpu"):
            make_accelerator(options(device="cuda"))


def test_precision_can_be_chosen_twice_in_one_process() -> None:
    assert make_accelerator(options(precision="bf16")).mixed_precision == "bf16"
    assert make_accelerator(options(precision="fp32")).mixed_precision == "no"
