"""Networks of the experiments."""

from __future__ import annotations

from torch import nn

VGG_PARAMETERS = 1_798_282


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)]


def vgg_cifar10() -> nn.Sequential:
    """The VGG of the CIFAR-10 poisoning study: (N, 3, 32, 32) to logits (N, 10), 1,798,282 parameters.

    Three blocks of two 3x3 convolutions with 128 filters, each followed by ReLU and BatchNorm, then max-pooling
    and dropout; a dense layer of 512 units with ReLU and BatchNorm; the output layer.

    Source: Warnecke et al., "Machine Unlearning of Features and Labels", NDSS 2023, public code.

    Example:
        >>> sum(p.numel() for p in vgg_cifar10().parameters())
        1798282
    """
    layers: list[nn.Module] = []
    for inputs, dropout in ((3, 0.1), (128, 0.1), (128, 0.2)):
        layers += [*_convolution(inputs, 128), *_convolution(128, 128), nn.MaxPool2d(2), nn.Dropout(dropout)]
    layers += [nn.Flatten(), nn.Linear(2048, 512), nn.ReLU(), nn.BatchNorm1d(512), nn.Linear(512, 10)]
    network = nn.Sequential(*layers)
    assert sum(p.numel() for p in network.parameters()) == VGG_PARAMETERS
    return network


def digits_cnn() -> nn.Sequential:
    """A small convolutional network for 8x8 digits: (N, 1, 8, 8) to logits (N, 10).

    Example:
        >>> digits_cnn()(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        *_convolution(1, 32),
        *_convolution(32, 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mnist_cnn() -> nn.Sequential:
    """A small convolutional network for 28x28 digits: (N, 1, 28, 28) to logits (N, 10), 114,314 parameters.

    Example:
        >>> mnist_cnn()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
