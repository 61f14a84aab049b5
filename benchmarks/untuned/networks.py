"""Networks of the study that the package does not bring: an LSTM, a transformer, a narrow ResNet and an MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlearnx.models.resnets import Residual, block


class RowLSTM(nn.Module):
    """An LSTM that reads an image (N, 1, H, W) row by row; logits (N, classes) from its last state."""

    def __init__(self, width: int, hidden: int = 64, classes: int = 10):
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x.squeeze(1))
        return self.head(states[:, -1])


class PatchTransformer(nn.Module):
    """A transformer over patches of an image (N, 1, H, W); logits (N, classes) from the mean of its tokens."""

    def __init__(self, size: tuple[int, int], patch: tuple[int, int], width: int = 32, classes: int = 10):
        super().__init__()
        self.cut = nn.Conv2d(1, width, patch, patch)
        tokens = (size[0] // patch[0]) * (size[1] // patch[1])
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.blocks(tokens).mean(1))


def one_logit_mlp(features: int) -> nn.Sequential:
    """(N, features) to the logit of a yes, (N,)."""
    hidden = [nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(64, 1), nn.Flatten(0))


def narrow_resnet(width: int = 8) -> nn.Sequential:
    """Seven convolutions with BatchNorm: (N, 1, 28, 28) to logits (N, 10)."""
    stages = [nn.Sequential(block(i, o, 2), Residual(o)) for i, o in ((1, width), (width, 2 * width))]
    top = [block(2 * width, 4 * width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*stages, *top)
