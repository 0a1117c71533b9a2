"""Networks of a user's own, as `model.backbone=helpers.networks:NAME` names them."""

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
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1(self.input_norm(images))))
        return self.linear(self.pool(x).flatten(1))


class BranchedNet(SmallNet):
    """Its stages hand on lists of tensors, and one of them is a list of modules."""

    class Branches(nn.Sequential):
        def forward(self, parts: list[Tensor]) -> list[Tensor]:
            return [super().forward(parts[0]), parts[0]]

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.layer1 = self.Branches(*self.layer1)
        self.layer2 = nn.ModuleList([self.Branches(*self.layer2), nn.BatchNorm2d(2 * width)])

    def forward(self, images: Tensor) -> Tensor:
        branches, norm = self.layer2
        parts = branches(self.layer1([self.conv1(self.input_norm(images))]))
        return self.linear(self.pool(norm(parts[0])).flatten(1))


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
        conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())

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


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut without weights: every other pixel, zeros as channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.added:
            shortcut = x[:, :, :: self.stride, :: self.stride]
            half = self.added // 2
            shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, half, self.added - half))
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + shortcut).relu()


class CifarResNet20(nn.Module):
    """ResNet-20 for images of 32 px, with shortcuts of option A (He et al. 2016, section 4.2)."""

    def __init__(self, num_classes: int = 10, stem_stride: int = 1, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, 1)
        self.layer2 = self.stage(16, 32, 2)
        self.layer3 = self.stage(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = (BasicBlock(outputs, outputs, 1) for _ in range(2))
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn1(self.conv1(images)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


class ChannelwiseLinear(nn.Module):
    """Scales each channel before it weighs them for each class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.weight = nn.Parameter(torch.randn(num_classes, channels) / channels**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return (features * self.scale) @ self.weight.T


class ChannelwiseResNet(CifarResNet20):
    """The same with a head of its own kind, and a stem that may skip pixels."""

    head_name = "linear"

    def __init__(self, num_classes: int, stem_stride: int = 2) -> None:
        super().__init__(num_classes, stem_stride)
        self.linear = ChannelwiseLinear(64, num_classes)


class LostHead(CifarResNet20):
    """Names a classifier that it does not have."""

    head_name = "classify"


class TiedNet(SmallNet):
    """Two convolutions that are one, and so share their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer3 = self.stage(16, 16)
        self.layer4 = self.stage(16, 16)
        self.layer4[0] = self.layer3[0]

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1(self.input_norm(images))))
        return self.linear(self.pool(self.layer4(self.layer3(x))).flatten(1))


class BrightnessNet(nn.Module):
    """Decides by the mean of all pixels, so that a test can say how often it is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.mean(dim=(1, 2, 3))[:, None])


class LateReader(SmallNet):
    """Drops features in place and then reads them once more, where they are frozen already."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv1(self.input_norm(images))))
        x = self.pool(x).flatten(1)
        dropped = self.drop(x)
        return self.linear(dropped + 2 * x)
