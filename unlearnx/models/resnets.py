"""Residual networks for images of 32x32 pixels."""

from __future__ import annotations

from torch import Tensor, nn

from unlearnx._checks import check_at_least_one


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with BatchNorm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """Two such blocks with a way around them."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(block(channels, channels), block(channels, channels))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.body(x)


def resnet9(classes: int = 10, width: int = 32) -> nn.Sequential:
    """A network that trains in minutes: (N, 3, 32, 32) to logits (N, classes), 1,646,122 parameters for ten classes.

    Convolutions start by passing on their inputs, which shortens training.

    Args:
        classes: number of classes.
        width: channels of the first layer; the last ones have eight times as many.

    Raises:
        ValueError: a number is below one.

    Source: after the ResNet-9 of Page, "How to Train Your ResNet", 2018.

    Example:
        >>> sum(p.numel() for p in resnet9().parameters())
        1646122
    """
    check_at_least_one(classes=classes, width=width)
    w = width
    network = nn.Sequential(
        *(block(3, w), block(w, 2 * w), nn.MaxPool2d(2), Residual(2 * w)),
        *(block(2 * w, 4 * w), nn.MaxPool2d(2), block(4 * w, 8 * w), nn.MaxPool2d(2), Residual(8 * w)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8 * w, classes)),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            nn.init.dirac_(module.weight.data[: module.in_channels])
    return network


class _BasicBlock(nn.Module):
    """Two convolutions with a way around them, with torchvision's names."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            around = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(around, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + around)


class _ResNet(nn.Module):
    """Stages of basic blocks behind a 3x3 convolution, with torchvision's names."""

    def __init__(self, widths: tuple[int, ...], blocks: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(widths[0]), nn.ReLU()
        self._stages = [f"layer{i + 1}" for i in range(len(widths))]
        inputs = widths[0]
        for i, (name, width) in enumerate(zip(self._stages, widths, strict=True)):
            first = _BasicBlock(inputs, width, 1 if i == 0 else 2)
            self.add_module(name, nn.Sequential(first, *(_BasicBlock(width, width, 1) for _ in range(blocks - 1))))
            inputs = width
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self._stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def resnet18(classes: int = 10) -> nn.Module:
    """The ResNet-18 of the field's tables: (N, 3, 32, 32) to logits (N, classes).

    It has 11,173,962 parameters for ten classes. A 3x3 convolution stands in the place of the first one and of
    max-pooling, as is usual for small images. Parameters have torchvision's names, so that state dicts of such networks
    load.

    Raises:
        ValueError: `classes` is below one.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.

    Example:
        >>> sum(p.numel() for p in resnet18().parameters())
        11173962
    """
    check_at_least_one(classes=classes)
    return _ResNet((64, 128, 256, 512), 2, classes)


def resnet20(classes: int = 10) -> nn.Module:
    """A ResNet-20: (N, 3, 32, 32) to logits (N, classes), 272,474 parameters for ten classes.

    Ways around a change of size are 1x1 convolutions. Parameters have torchvision's names, so that the usual pretrained
    state dicts load.

    Raises:
        ValueError: `classes` is below one.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Example:
        >>> sum(p.numel() for p in resnet20().parameters())
        272474
    """
    check_at_least_one(classes=classes)
    return _ResNet((16, 32, 64), 3, classes)
