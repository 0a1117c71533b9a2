"""Networks of a user's own, as `model.backbone=networks:NAME` names them."""

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """A stem, two stages with batch norm and dropout, and a classifier that is called `linear`."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm2d(3, affine=False)
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.layer1 = self.stage(width, width)
        self.layer2 = self.stage(width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * width, 10)

    @staticmethod
    def stage(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Dropout(0.2),
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1(self.input_norm(images))))
        return self.linear(self.pool(x).flatten(1))


class SoftmaxNet(SmallNet):
    """The mistake of many a tutorial: a softmax under cross-entropy."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(dim=1)


class RestlessNet(SmallNet):
    """Writes to one of its own weights in every pass, frozen or not."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv1.weight += 1e-3
        return super().forward(images)
