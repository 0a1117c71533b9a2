"""What speaks for a class is found where it is, for every kind of network, which stays as it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from conftest import latest, report, run_kedro
from evaluation.test_predictions import untrained
from helpers.networks import BrightnessNet
from helpers.training import network_of, same
from thawline.data.sources import name_files
from thawline.data.transforms import evaluation_view, normalize
from thawline.errors import DataError, ParameterError
from thawline.evaluation.explanations import attribute, explain, find_spatial_stage
from thawline.evaluation.predictions import worst_first
from thawline.networks.building import build_network, pretrained_preprocessing
from thawline.networks.classifier import Classifier
from thawline.options import ExplainOptions, ModelOptions, TrainingOptions, validate_parameters
from thawline.pipelines.explain.nodes import explain_predictions
from thawline.reports.figures.attributions import overlay

METHODS = ("grad_cam", "guided_grad_cam", "integrated_gradients")
OPTIONS = TrainingOptions(num_workers=0, device="cpu")
ANT, BEE = 310, 309  # of ImageNet's classes


def build(backbone: str, size: int, **arguments: object) -> tuple[nn.Module, Tensor]:
    """Return a network with random weights in evaluation mode, and two images of noise."""
    options = ModelOptions(backbone=backbone, weights="none", backbone_kwargs=arguments)
    network, _ = build_network(options, 3, size, seed=0)
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return network.eval(), noise


@pytest.mark.parametrize(
    ("backbone", "size", "arguments", "module"),
    [
        ("timm/tf_efficientnet_lite0", 64, {}, "bn2"),
        ("resnet18", 64, {}, "layer4"),
        ("vgg11", 64, {}, "avgpool"),
        ("swin_t", 64, {}, "permute"),
        ("vit_b_16", 64, {"image_size": 64}, "encoder.layers.encoder_layer_10"),
        ("timm/convnext_atto", 64, {}, "norm_pre"),
        ("timm/vit_tiny_patch16_224", 64, {"img_size": 64}, "blocks.10"),
        ("timm/mobilenetv3_small_050", 64, {}, "blocks.5"),
        ("helpers.networks:SmallNet", 32, {}, "layer2"),
        ("helpers.networks:ResidualNet", 32, {}, "block2"),  # above it only the class token is read
        ("helpers.networks:SmallNet", 8, {}, "layer1"),  # layer2 yields a single place
    ],
)
def test_every_backbone_is_explained_at_its_last_spatial_stage(
    backbone: str, size: int, arguments: dict, module: str
) -> None:
    network, images = build(backbone, size, **arguments)
    assert find_spatial_stage(network, images[:1]) == module
    maps = attribute(network, images, [0, 1], "grad_cam")
    assert maps.shape == (2, size, size) and maps.dtype == torch.float32
    assert (maps >= 0).all() and (maps > 0).any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["resnet18", "timm/tf_efficientnet_lite0"])
def test_the_network_is_the_same_after_it_was_explained(backbone: str, method: str) -> None:
    network, images = build(backbone, 64)

    def facts() -> list:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        modules = [
            (name, type(module), getattr(module, "inplace", None), module.training)
            for name, module in network.named_modules()
        ]
        held = [len(getattr(module, kind)) for module in network.modules() for kind in hooks]
        return [*modules, held, [(p.requires_grad, p.grad) for p in network.parameters()]]

    before, state = facts(), {n: t.clone() for n, t in network.state_dict().items()}
    with torch.no_grad():
        answers = network(images)
    assert (attribute(network, images, [0, 1], method) > 0).any()
    assert facts() == before
    assert same(network.state_dict(), state)
    with torch.no_grad():
        assert torch.equal(network(images), answers)


class Redness(nn.Module):
    """Two classes, told apart by red pixels, through stages of maps or tokens of some layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, 2, 4, stride=4, bias=False))
        self.block = Layout(layout)
        self.linear = nn.Linear(2, 2, bias=False)
        red = torch.tensor([1.0, -1, -1]) / 16
        with torch.no_grad():
            self.patches[0].weight[:] = torch.stack([red, -red])[:, :, None, None]
            self.linear.weight.copy_(torch.eye(2))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.block.pool(self.block(self.patches(images).relu())))


class Layout(nn.Module):
    """Puts maps into a layout, and weighs them there."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout, self.scale = layout, nn.Sequential(nn.Linear(2, 2, bias=False))
        nn.init.eye_(self.scale[0].weight)

    def forward(self, maps: Tensor) -> Tensor:
        last = maps.permute(0, 2, 3, 1)
        if self.layout == "tokens":
            tokens = last.flatten(1, 2)
            last = torch.cat([torch.zeros_like(tokens[:, :2]), tokens], dim=1)
        values = self.scale(last)
        return values.permute(0, 3, 1, 2) if self.layout == "maps" else values

    def pool(self, values: Tensor) -> Tensor:
        return values.mean(dim={"maps": (2, 3), "channels_last": (1, 2), "tokens": 1}[self.layout])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["maps", "channels_last", "tokens"])
def test_the_evidence_lies_where_it_was_planted(layout: str, method: str) -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 4:12, 20:28] = 1  # red, above and right of the middle
    (evidence,) = attribute(Redness(layout).eval(), image, [0], method)
    inside = evidence[2:14, 18:30].sum() / evidence.sum()
    assert inside > (0.7 if method == "grad_cam" else 0.99)
    peak = divmod(int(evidence.argmax()), 32)
    assert 4 <= peak[0] < 12 and 20 <= peak[1] < 28


def test_integrated_gradients_add_up_to_the_difference_of_the_answers() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 4:12, 20:28] = 1
    network = Redness("maps").eval()
    evidence = attribute(network, image, [0], "integrated_gradients")
    with torch.no_grad():
        answers = network(torch.cat([image, torch.zeros_like(image)]))[:, 0]
    assert float(evidence.sum()) == pytest.approx(float(answers[0] - answers[1]), rel=1e-3)


def test_a_network_without_a_spatial_stage_is_named_with_what_else_works() -> None:
    network, image = BrightnessNet().eval(), torch.ones(1, 3, 16, 16)
    with pytest.raises(ParameterError, match=r"no stage with spatial.*integrated_gradients"):
        attribute(network, image, [0], "grad_cam")
    assert attribute(network, image, [int(network(image).argmax())], METHODS[2]).shape[0] == 1


def central_mass(weights: str, photographs: list[tuple[Path, int]], seed: int = 0) -> float:
    """Return the mean share of Grad-CAM's mass in the central box of 0.7 × the side."""
    import timm

    from thawline.networks.libraries import load_bundled_weights

    torch.manual_seed(seed)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    if weights == "default":
        load_bundled_weights(network)
    preprocessing = pretrained_preprocessing(ModelOptions())
    views = torch.stack([evaluation_view(path, preprocessing) for path, _ in photographs])
    classes = [number for _, number in photographs]
    maps = attribute(network, normalize(views, preprocessing), classes, "grad_cam").double()
    edge = round(0.15 * maps.shape[1])
    inside = maps[:, edge:-edge, edge:-edge].sum(dim=(1, 2)) / maps.sum(dim=(1, 2)).clamp_min(1e-30)
    return float(inside.mean())


def test_grad_cam_of_ants_and_bees_lies_in_the_middle_and_that_of_random_weights_does_not(
    hymenoptera: Path,
) -> None:
    photographs = [
        (path, number)
        for folder, number in (("ants", ANT), ("bees", BEE))
        for path in sorted((hymenoptera / "val" / folder).glob("*.jpg"))[:10]
    ]
    assert central_mass("default", photographs) >= 0.68  # 0.740 on 2026-11-21
    assert central_mass("none", photographs) <= 0.63  # 0.573


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.5, 1)), min_size=1), st.integers(1, 12))
def test_the_worst_are_the_most_confident_mistakes_then_the_least_certain_right_ones(
    answers: list[tuple[bool, float]], count: int
) -> None:
    predictions = pd.DataFrame(
        {
            "path": [str(idx) for idx in range(len(answers))],
            "label": "a",
            "prediction": ["a" if right else "b" for right, _ in answers],
            "probability_a": [p if right else 1 - p for right, p in answers],
            "probability_b": [1 - p if right else p for right, p in answers],
        }
    )
    chosen = [answers[int(path)] for path in worst_first(predictions)["path"].head(count)]
    assert len(chosen) == min(count, len(answers))
    assert chosen == sorted(answers, key=lambda a: (a[0], a[1] if a[0] else -a[1]))[: len(chosen)]


def classifier(network: nn.Module) -> Classifier:
    return replace(untrained(("flower", "temple"), 32, 32), network=network)


def test_named_images_are_explained_with_the_label_that_is_known(
    splits: pd.DataFrame, photos: Path, tmp_path: Path
) -> None:
    unknown = tmp_path / "my photo.png"
    Image.new("RGBA", (50, 20), "red").save(unknown)
    options = ExplainOptions(images=("flower/03.jpg", str(unknown)), count=1)
    table, picture = explain_predictions(
        classifier(network_of()), splits, pd.DataFrame(), options, OPTIONS, photos
    )
    assert [Path(path).name for path in table["path"]] == ["03.jpg", "my photo.png"]
    assert table["label"].tolist() == ["flower", ""]
    assert table["probability"].between(0.5, 1).all()
    assert picture.width > 4 * 200


def test_a_network_that_grad_cam_does_not_fit_gets_a_picture_that_says_so(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    options = ExplainOptions(images=(splits["path"].iloc[0],))
    table, picture = explain_predictions(
        classifier(BrightnessNet()), splits, pd.DataFrame(), options, OPTIONS, Path()
    )
    assert table.empty and picture.width > 100
    assert "integrated_gradients" in caplog.text


def test_files_that_are_not_there_or_no_images_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"explain.images: 'nowhere.jpg' does not exist"):
        name_files(["nowhere.jpg"], base=tmp_path)
    images = pd.DataFrame({"path": name_files(["broken.jpg"], base=tmp_path), "label": ""})
    with pytest.raises(DataError, match=r"explain.images: .*broken.jpg' cannot be read"):
        explain(classifier(BrightnessNet()), images, "grad_cam", OPTIONS)


def test_paths_come_from_the_command_line_separated_by_blanks() -> None:
    assert ExplainOptions(images="a.jpg b/c.png").images == ("a.jpg", "b/c.png")
    assert ExplainOptions(images="worst").images == "worst"
    raw = {"strategies": {"head_only": {"phases": [{"trainable": "all", "epochs": 1, "lr": 0.1}]}}}
    for images in ("", []):
        with pytest.raises(ParameterError, match=r"explain.images: the list is empty"):
            validate_parameters(raw | {"explain": {"images": images}})


def test_more_evidence_is_lighter_also_in_gray() -> None:
    evidence = torch.linspace(0, 1, 64).repeat(64, 1)
    light = np.asarray(overlay(Image.new("RGB", (64, 64), "gray"), evidence).convert("L"))
    assert (np.diff(light[0].astype(int)) >= 0).all()
    assert light[0, -1] > light[0, 0] + 60


@pytest.mark.xdist_group("finished project")
def test_finetune_explains_and_the_pipeline_explain_does_so_alone(finished_project: Path) -> None:
    before = Image.open(latest(finished_project, "08_reporting/attributions.png"))
    named = report(finished_project, "explained_images.csv")["path"].head(2).tolist()
    given = f"--params=explain.images={' '.join(named)},explain.method=integrated_gradients"
    run_kedro(finished_project, "run", "--pipeline=explain", given)
    assert report(finished_project, "explained_images.csv")["path"].tolist() == named
    after = Image.open(latest(finished_project, "08_reporting/attributions.png"))
    assert after.height < before.height
