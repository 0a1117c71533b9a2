"""How the part above the thaw line is computed is timed, remembered, and changes nothing else."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from thawline.options import TrainingOptions
from thawline.thaw.device import Accelerator
from thawline.training.fastest import FILE, Way, computed, find_fastest, possible_precisions

BF16 = Accelerator(torch.device("cpu"), torch.bfloat16)  # a CPU that computes bf16
FP32 = Accelerator(torch.device("cpu"), torch.float32)
EAGER = TrainingOptions(compile=False)
MANY = 10**9  # steps, so that a phase of any network is long
BOUNDARY = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class OnlyBf16(nn.Module):
    """Raises what a device without a kernel for a precision raises."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        if logits.dtype == torch.float32:
            raise RuntimeError("there is no kernel for float32")
        return logits


def _fail() -> None:
    raise RuntimeError("out of memory")


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2)
    )


def test_the_device_and_the_parameters_say_which_precisions_are_possible() -> None:
    assert possible_precisions(EAGER, BF16) == ["bf16", "fp32"]
    assert possible_precisions(EAGER, FP32) == ["fp32"]
    assert possible_precisions(TrainingOptions(precision="bf16"), BF16) == ["bf16"]


def test_a_short_phase_is_computed_as_the_hardware_suggests(tmp_path: Path) -> None:
    way = find_fastest(small(), BOUNDARY, BF16, EAGER, steps=3, folder=tmp_path)
    assert way == Way("bf16")


def test_a_phase_near_a_minute_is_computed_again_as_at_first(tmp_path: Path) -> None:
    find = partial(find_fastest, small(), BOUNDARY, BF16, EAGER, folder=tmp_path)
    assert find(steps=3) == Way("bf16")
    (key,) = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({key: ["fp32", False]}))  # its first step was slower
    assert find(steps=3) == Way("fp32")
    assert find(steps=4) == Way("bf16")


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("")
    found = find_fastest(OnlyBf16(), BOUNDARY, BF16, EAGER, MANY, tmp_path / "full" / "store")
    assert found == Way("bf16")


def test_cached_bf16_activations_can_be_computed_on_in_fp32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    cached = tuple(tensor.bfloat16() for tensor in BOUNDARY)
    find_fastest(small(), cached, BF16, EAGER, MANY, tmp_path)
    assert "cannot be timed" not in caplog.text and "fp32" in caplog.text


def test_the_network_and_the_random_generators_stay_as_they_are(tmp_path: Path) -> None:
    network = small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.get_rng_state()
    find_fastest(network, BOUNDARY, BF16, EAGER, MANY, tmp_path)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_fails_is_left_out(tmp_path: Path) -> None:
    assert find_fastest(OnlyBf16(), BOUNDARY, BF16, EAGER, MANY, tmp_path) == Way("bf16")
    assert find_fastest(OnlyBf16(), BOUNDARY, FP32, TrainingOptions(), MANY, None) == Way("fp32")


def test_what_fails_leaves_no_gradients() -> None:
    network = OnlyBf16()
    network.linear.register_full_backward_hook(lambda *_: _fail())
    assert find_fastest(network, BOUNDARY, BF16, EAGER, MANY, None) == Way("bf16")
    assert network.linear.weight.grad is None


def test_what_was_found_is_taken_again_for_the_same_network_and_shapes(tmp_path: Path) -> None:
    assert find_fastest(OnlyBf16(), BOUNDARY, BF16, EAGER, MANY, tmp_path) == Way("bf16")
    found = json.loads((tmp_path / FILE).read_text())
    assert list(found.values()) == [["bf16", False]]
    (tmp_path / FILE).write_text(json.dumps({key: ["fp32", True] for key in found}))
    assert find_fastest(OnlyBf16(), BOUNDARY, BF16, EAGER, MANY, tmp_path) == Way("fp32", True)
    other = (BOUNDARY[0][:2],)
    assert find_fastest(OnlyBf16(), other, BF16, EAGER, MANY, tmp_path) == Way("bf16")


def test_nothing_is_timed_where_the_parameters_leave_no_choice(tmp_path: Path) -> None:
    options = TrainingOptions(precision="bf16", compile=True)
    boundary = (torch.empty(0),)  # of which no step could be taken
    assert find_fastest(small(), boundary, BF16, options, MANY, tmp_path) == Way("bf16", True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler of C++")
def test_a_compiled_part_has_the_same_outputs_and_gradients_to_rounding() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    results = []
    for way in (Way("fp32"), Way("fp32", True)):
        network.zero_grad()
        outputs = computed(network, way)(*BOUNDARY)
        outputs.square().sum().backward()
        results.append([outputs.detach(), *(p.grad.clone() for p in network.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
