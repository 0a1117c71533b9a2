"""A classifier comes back from disk as it was, with all that belongs to it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from thawline.errors import CheckpointError
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import Classifier, load_classifier, save_classifier
from thawline.networks.files import read_ancestors
from thawline.networks.libraries import implied_kwargs
from thawline.options import ModelOptions

SEEN = frozenset(f"{number:064x}" for number in range(5))
TRUSTED = ModelOptions(trust_code=True)  # to import the networks of these tests
PREPROCESSING = IMAGENET.model_copy(update={"size": 64, "resize": 73})


def make(**options: object) -> Classifier:
    model = ModelOptions(**{"backbone": "helpers.networks:SmallNet", "weights": "none", **options})
    network, _ = build_network(model, 2, 64, seed=3)
    network.to(memory_format=torch.channels_last)
    return Classifier(
        network.eval(), ("flower", "temple"), PREPROCESSING, model, {"epoch": 2}, SEEN
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a saved classifier."""
    save_classifier(make(), tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head": "mlp"},
        {"head_dropout": 0.2},
        {"log_probabilities": True},
        {"backbone": "squeezenet1_1"},
        {"backbone": "helpers.networks:ChannelwiseResNet", "head": "builtin"},
    ],
)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, options: dict) -> None:
    saved = make(**options)
    save_classifier(saved, tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier", TRUSTED)
    images = torch.randn(2, 3, 64, 64)
    tensors = loaded.network.state_dict()
    assert all(torch.equal(tensors[n], t) for n, t in saved.network.state_dict().items())
    torch.testing.assert_close(loaded.network(images), saved.network(images))
    assert not loaded.network.training
    for field in ("class_names", "preprocessing", "model", "training", "seen"):
        assert getattr(loaded, field) == getattr(saved, field)


def test_what_named_weights_change_but_tensors_is_rebuilt(tmp_path: Path) -> None:
    transforming = {"backbone_kwargs": {"transform_input": True}}
    saved = make(backbone="googlenet", **transforming)
    named = dataclasses.replace(saved, model=ModelOptions(backbone="googlenet"))  # its own weights
    save_classifier(named, tmp_path / "classifier")
    loaded, images = load_classifier(tmp_path / "classifier"), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.network(images), saved.network(images))
    from_file = dataclasses.replace(
        saved, model=ModelOptions(backbone="googlenet", weights="a.pth")
    )
    save_classifier(from_file, tmp_path / "from_file")
    loaded = load_classifier(tmp_path / "from_file")
    torch.testing.assert_close(loaded.network(images), saved.network(images))
    assert loaded.network.transform_input
    large = ModelOptions(backbone="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
    assert implied_kwargs(large) == {"image_size": 384}
    assert implied_kwargs(ModelOptions(backbone="googlenet", weights="none")) == {}
    assert implied_kwargs(ModelOptions(backbone="vit_b_16", weights="best.pth")) == {}


def test_the_files_can_be_read_without_thawline(folder: Path) -> None:
    description = json.loads((folder / "classifier.json").read_text())
    assert description["class_names"] == ["flower", "temple"]
    assert load_file(folder / "model.safetensors")["linear.weight"].shape == (2, 16)


def test_a_classifier_is_never_overwritten_nor_left_half_written(folder: Path) -> None:
    with pytest.raises(FileExistsError):
        save_classifier(make(), folder)
    broken = make()
    broken.training["not"] = object()  # JSON cannot hold it
    with pytest.raises(TypeError):
        save_classifier(broken, folder.with_name("other"))
    assert [p.name for p in folder.parent.iterdir()] == ["classifier"]


def test_another_format_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no classifier"):
        load_classifier(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99"):
        load_classifier(tmp_path)


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "classifier.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def test_versions_are_written_and_a_file_without_them_is_read(folder: Path) -> None:
    description = json.loads((folder / "classifier.json").read_text())
    assert description["versions"]["torch"] == version("torch")
    assert description["versions"].keys() == {"thawline", "torch", "torchvision", "timm", "python"}

    def as_before(description: dict) -> None:
        del description["versions"]
        description["format"] = 1
        for new in ("trust_pickle", "min_loaded", "reuse_head"):
            del description["model"][new]
        description["model"]["head_dropout"] = 0.4  # of the mlp that it is not

    edit(folder, as_before)
    loaded = load_classifier(folder, TRUSTED)
    assert torch.equal(loaded.network.linear.weight, make().network.linear.weight)


def test_the_file_that_it_was_fine_tuned_from_is_not_needed(folder: Path) -> None:
    edit(folder, lambda d: d["model"].update(weights="gone.pth", trust_pickle=True))
    assert load_classifier(folder, TRUSTED).model.weights == "gone.pth"


def test_a_classifier_imports_only_what_the_run_names_itself(folder: Path) -> None:
    marker = folder.with_name("marker")
    touch = {"args": ["touch", str(marker)]}
    command = {"backbone": "subprocess:check_call", "backbone_kwargs": touch}
    own = ModelOptions(backbone="helpers.networks:SmallNet")
    assert load_classifier(folder, own).model.backbone == "helpers.networks:SmallNet"
    other = ModelOptions(backbone="helpers.networks:ResidualNet")
    said = r"names the factory helpers.networks:SmallNet.*trust_code"
    for trusted in (None, ModelOptions(), other):
        with pytest.raises(CheckpointError, match=said):
            load_classifier(folder, trusted)
    for change in (command, command | {"trust_code": True}, command | {"trust_pickle": True}):
        edit(folder, lambda d, change=change: d["model"].update(change))
        for trusted in (None, ModelOptions(), own):
            with pytest.raises(CheckpointError, match="Nothing was imported"):
                load_classifier(folder, trusted)
    assert not marker.exists()


def test_weights_of_a_classifier_say_which_images_they_have_seen(
    folder: Path, tmp_path: Path
) -> None:
    weights = folder / "model.safetensors"
    link, renamed, copy = tmp_path / "link", folder / "best.safetensors", tmp_path / "a.safetensors"
    link.symlink_to(weights)
    for file in (renamed, copy):
        shutil.copy(weights, file)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "best.pth")
    for file in (weights, link, renamed):
        assert read_ancestors(ModelOptions(weights=str(file))) == SEEN
    (folder / "seen_images.txt").unlink()
    for file in (weights, link, renamed, copy):
        assert read_ancestors(ModelOptions(weights=str(file))) is None
    save_model(make().network, str(weights))  # as an earlier version wrote it
    assert read_ancestors(ModelOptions(weights=str(weights))) is None
    assert load_classifier(folder, TRUSTED).seen == frozenset()
    for other in ("default", "none", str(foreign), str(tmp_path / "best.pth")):
        assert read_ancestors(ModelOptions(weights=other)) == frozenset()


def test_trust_is_not_saved_with_a_classifier(tmp_path: Path) -> None:
    save_classifier(make(trust_code=True), tmp_path / "classifier")
    assert not load_classifier(tmp_path / "classifier", TRUSTED).model.trust_code


def test_a_damaged_classifier_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:-10], whole.replace(b"layer1", b"layer9")):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors' is damaged"):
            load_classifier(folder, TRUSTED)
    weights.unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        load_classifier(folder, TRUSTED)
    for key in ("model", "class_names", "format"):
        edit(folder, lambda description, key=key: description.pop(key))
        with pytest.raises(CheckpointError, match="contains no classifier"):
            load_classifier(folder, TRUSTED)


def test_arguments_that_no_network_takes_are_named(folder: Path) -> None:
    arguments = {"replace_stride_with_dilation": [True]}
    change = {"backbone": "resnet18", "arguments": arguments, "head": "linear"}
    edit(folder, lambda description: description["model"].update(change))
    said = r"classifier\.json' .*resnet18 cannot be built with.*stride"
    with pytest.raises(CheckpointError, match=said):
        load_classifier(folder)
