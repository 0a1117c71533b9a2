"""The plain fine-tuning loop of many a tutorial, as well as it can be written without tricks.

Frozen parameters get no gradient and are not in the optimizer, nothing is computed in validation
that is not needed, and processes decode (two, if nothing else is said). What it does not do is what
Thawline adds.
"""

from __future__ import annotations

import copy

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from thawline.data.decoding import read_image
from thawline.data.transforms import Preprocessing


class Photographs(Dataset):
    """Images of a split, decoded and transformed whenever they are asked for."""

    def __init__(self, rows: pd.DataFrame, transform: v2.Compose) -> None:
        """Take the rows of a table of splits."""
        self.paths, self.labels = rows["path"].tolist(), rows["class_index"].tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, idx: int) -> tuple[torch.Tensor, int]:
        """Return an image (3, size, size) float32 and its class index."""
        return self.transform(read_image(self.paths[idx])), self.labels[idx]


def data_loaders(
    splits: pd.DataFrame, preprocessing: Preprocessing, batch_size: int, workers: int = 2
) -> dict[str, DataLoader]:
    """Return a loader for each split, with Thawline's default augmentation in training."""
    interpolation = v2.InterpolationMode(preprocessing.interpolation)
    to_tensor = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(preprocessing.mean, preprocessing.std),
    ]
    training = v2.Compose(
        [
            v2.RandomResizedCrop(preprocessing.size, interpolation=interpolation),
            v2.RandomRotation(15, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomHorizontalFlip(),
            *to_tensor,
        ]
    )
    evaluation = v2.Compose(
        [
            v2.Resize(preprocessing.resize, interpolation=interpolation),
            v2.CenterCrop(preprocessing.size),
            *to_tensor,
        ]
    )
    return {
        str(split): DataLoader(
            Photographs(rows, training if split == "train" else evaluation),
            batch_size,
            shuffle=split == "train",
            num_workers=workers,
        )
        for split, rows in splits.groupby("split")
    }


def train(
    network: nn.Module,
    splits: pd.DataFrame,
    preprocessing: Preprocessing,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 2,
) -> list[float]:
    """Train in place what requires gradients, keep the best epoch, return validation accuracies."""
    torch.manual_seed(seed)
    network.to(device)
    loaders = data_loaders(splits, preprocessing, batch_size, workers)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    best = copy.deepcopy(network.state_dict())
    accuracies: list[float] = []
    for _ in range(epochs):
        network.train()
        for images, labels in loaders["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        schedule.step()
        accuracy = measure(network, loaders["val"], device)
        if accuracy > max(accuracies, default=-1.0):
            best = copy.deepcopy(network.state_dict())
        accuracies.append(accuracy)
    network.load_state_dict(best)
    return accuracies


@torch.no_grad()
def measure(network: nn.Module, loader: DataLoader, device: str = "cpu") -> float:
    """Return the accuracy, 0 to 1."""
    network.eval()
    correct = torch.cat(
        [network(images.to(device)).argmax(dim=1).cpu() == labels for images, labels in loader]
    )
    return float(correct.float().mean())
