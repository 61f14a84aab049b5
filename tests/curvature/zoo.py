"""Small models of every kind that the curvature engines have to get right, in float64 and eval mode."""

import torch
from torch import nn
from torch.nn import functional as F


class SharedLayer(nn.Module):
    """A linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.shared(torch.tanh(self.shared(self.first(x).relu()))))


class TiedWeights(nn.Module):
    """Embedding and decoder share their weight, once as a parameter, once by name."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(torch.tanh(self.embedding(x)).mean(1))


class HiddenUse(nn.Module):
    """The weight of a known layer is used once more, outside of its forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(F.linear(torch.tanh(self.layer(x)), self.layer.weight))


class Unknown(nn.Module):
    """A module with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.rand(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(torch.sin(self.scale * x))


class Residual(nn.Module):
    """In-place activations and a skip connection."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.a(x))
        return self.c(self.relu(self.b(h) + h).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block on sequences."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.last = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), nn.Linear(8, 3)

    def forward(self, x):
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.last((x + self.mlp(x)).mean(1))


def _randomise_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def _images():
    return torch.randn(9, 2, 6, 6, dtype=torch.float64)


def _rows():
    return torch.randn(9, 6, dtype=torch.float64)


def _tokens():
    return torch.randint(7, (9, 5))


ZOO = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), _rows),
    "sequence": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Flatten(), nn.Linear(12, 3)),
        lambda: torch.randn(9, 3, 4, dtype=torch.float64),
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
            nn.GroupNorm(3, 6),
            nn.Flatten(),
            nn.Linear(54, 3),
            nn.BatchNorm1d(3),
        ),
        _images,
    ),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(3, 3, 3, padding="same"),
            nn.Flatten(),
            nn.Linear(108, 3),
        ),
        _images,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),
        lambda: torch.randn(9, 2, 8, dtype=torch.float64),
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Flatten(), nn.Linear(20, 3)), _tokens),
    "attention": (Attention, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "residual": (Residual, _images),
    "shared layer": (SharedLayer, _rows),
    "tied weights": (TiedWeights, _tokens),
    "hidden use": (HiddenUse, _rows),
    "unknown": (Unknown, _rows),
}


def build(name):
    """Model, x and y of an entry of the zoo."""
    torch.manual_seed(0)
    make, inputs = ZOO[name]
    model = _randomise_statistics(make().double().eval())
    return model, inputs(), torch.randint(3, (9,))


def sample_gradients(model, loss_fn, x, y):
    """Gradient of every sample alone: the reference, one ordinary backward pass each."""
    rows = []
    for i in range(len(x)):
        params = dict(model.named_parameters())
        loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(params.values()), materialize_grads=True, allow_unused=True)
        rows.append(dict(zip(params, gradients, strict=True)))
    return {name: torch.stack([r[name] for r in rows]) for name in rows[0]}
