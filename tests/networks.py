"""Networks of a user's own, as `model.backbone=networks:NAME` names them."""

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


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


class ResidualNet(nn.Module):
    """Residual links, a concatenation, sizes, bare parameters, and dropout in three manners."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=4)
        self.block1 = self.block(width)
        self.block2 = self.block(width)
        self.scale = nn.Parameter(torch.full((1, width, 1, 1), 0.5))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.mix = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.drop_path = StochasticDepth(0.3, mode="row")
        self.linear = nn.Linear(2 * width, 10)

    @staticmethod
    def block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.drop_path(self.block1(x))
        x = x * self.scale + self.block2(x)
        batch, width, _, _ = x.shape
        tokens = x.reshape(batch, width, -1).transpose(1, 2)
        tokens = torch.cat([self.token.expand(batch, -1, -1), tokens], dim=1)
        mixed, _ = self.mix(tokens, tokens, tokens, need_weights=False)
        mixed = nn.functional.dropout(mixed, 0.1, self.training)
        if self.training:
            mixed = mixed * 1.0
        return self.linear(torch.cat([mixed[:, 0], x.mean(dim=(2, 3))], dim=1))


class NoisyNet(SmallNet):
    """Adds noise to what a frozen layer yields, in evaluation too."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer1(self.conv1(images))
        x = self.layer2(x + 0.1 * torch.randn_like(x))
        return self.linear(self.pool(x).flatten(1))


class BranchingNet(SmallNet):
    """Takes a way that depends on the values of its input, so that it cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.mean() > 0 else -images)
