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
    """A layer's weight is used a second time, outside of the layer's forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(F.linear(torch.tanh(self.layer(x)), self.layer.weight))


class Unknown(nn.Module):
    """A user's module with a parameter in a function that no rule covers."""

    def __init__(self):
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.rand(6)), nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(F.prelu(x, self.scale))


class TiedSequence(nn.Module):
    """Embedding and decoder of a language model, with tokens that occur twice, and padding counted from the end."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.last = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 4), nn.Linear(7, 3)

    def forward(self, x):
        h = torch.tanh(self.mix(F.embedding(x, self.embedding.weight, -7)))
        return self.last(F.linear(h, self.embedding.weight).mean(1)) + F.linear(h[:, 0], self.embedding.weight)[:, :3]


class Broadcast(nn.Module):
    """Parameters in functions of single entries: positions, a token of the class, norms and gates by hand."""

    def __init__(self):
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))
        self.numbered, self.norm, self.gemma = (
            nn.Embedding(9, 8),
            nn.Parameter(torch.rand(8)),
            nn.Parameter(torch.rand(8)),
        )
        self.gate, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(5, 1))
        self.temperature, self.last = nn.Parameter(torch.tensor(1.3)), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions[:, : x.shape[1]]
        x += self.numbered(torch.arange(x.shape[1])[None])
        x = self.norm * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
        x = x - torch.sigmoid(self.gate) * x.flip(1)
        x = torch.lerp(x, torch.tanh(x), self.gate.square().clamp(max=1))
        x = x.reshape(-1, 8) * (1 + self.gemma)
        x = (x.view(-1, 5, 8) + self.shift) / self.temperature
        return self.last(x).mean(1)


class Products(nn.Module):
    """Weights in products other than ``F.linear``."""

    def __init__(self):
        super().__init__()
        self.right, self.left = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(5, 4))
        self.mixed, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
        self.heads, self.batched = nn.Parameter(torch.randn(2, 4, 3)), nn.Parameter(torch.randn(2, 3, 3))
        self.joint, self.vector = nn.Bilinear(3, 3, 4), nn.Parameter(torch.randn(4))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.left @ (x @ self.right))  # (N, 5, 6)
        x = torch.addmm(self.bias, x.view(-1, 6), self.mixed, beta=0.5, alpha=2).view(-1, 5, 4)
        h = torch.einsum("...td,hdk->...htk", torch.tanh(x), self.heads)  # (N, 2, 5, 3)
        h = torch.tanh(torch.matmul(h, self.batched)) + h.unsqueeze(-1).matmul(torch.eye(1, dtype=h.dtype)).squeeze(-1)
        y = self.joint(h[:, 0], h[:, 1])
        return self.last(y.mean(1)) + (y @ self.vector).sum(1, keepdim=True)


class Derived(nn.Module):
    """Weights made of parameters: transposed, cut, packed, normalised, of low rank."""

    def __init__(self):
        super().__init__()
        self.plain, self.packed = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(18, 6))
        self.a, self.b, self.frozen = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2)), nn.Linear(6, 6)
        self.filter, self.size = nn.Parameter(torch.randn(4, 1, 6)), nn.Parameter(torch.rand(3))
        self.directions, self.flat = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(6, 2, 3))

    def forward(self, x):
        x = torch.tanh(x @ self.plain)
        q, k, v = (F.linear(x, w) for w in self.packed.chunk(3))
        x = x + torch.softmax(q @ k.mT, -1) @ v + F.linear(x, self.packed[:6])
        x = F.linear(torch.tanh(x), self.frozen.weight + 0.5 * self.b @ self.a, self.frozen.bias)
        x = torch.tanh(F.linear(x, self.flat.flatten(1)) + F.linear(x, self.plain[2:].T))
        x = F.conv1d(x.mT.reshape(len(x), 6, -1).mT.reshape(len(x), -1, 6), self.filter.expand(4, x.shape[1], 6))
        w = self.size[:, None] * F.normalize(self.directions, dim=1)
        return F.linear(x.repeat(1, 1, 6), w).mean(1)


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


class Recurrent(nn.Module):
    """Embedding, recurrent layers, and a linear layer on the last or on all steps."""

    def __init__(self, kind, *, batch_first=True, every_step=False, **settings):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.cells = kind(4, 5, batch_first=batch_first, **settings)
        width = 5 * (2 if settings.get("bidirectional") else 1)
        self.last, self.batch_first, self.every_step = nn.Linear(width, 3), batch_first, every_step

    def forward(self, x):
        h = self.embedding(x if self.batch_first else x.T)
        h = self.cells(h)[0]
        if self.every_step:
            return self.last(h).mean(1 if self.batch_first else 0)
        return self.last(h[:, -1] if self.batch_first else h[-1])


class Cells(nn.Module):
    """Recurrent cells in the model's own loop."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(7, 4), nn.Linear(5, 3)
        self.lstm, self.gru = nn.LSTMCell(4, 5), nn.GRUCell(5, 5)

    def forward(self, x):
        state = h = None
        for step in self.embedding(x).unbind(1):
            state = self.lstm(step, state)
            h = self.gru(state[0], h)
        return self.last(h)


class SelfAttention(nn.Module):
    """Attention that returns its weights, with masks and samples in the second dimension, and cross-attention."""

    def __init__(self, cross=False, **settings):
        super().__init__()
        self.attention, self.last, self.cross = nn.MultiheadAttention(8, 2, **settings), nn.Linear(8, 3), cross

    def forward(self, x):
        x = x.transpose(0, 1)
        causal = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), 1)
        other = x.flip(0) if self.cross else x
        padding = torch.zeros(x.shape[1], len(x), dtype=torch.bool)
        padding[:, -1] = True
        y, weights = self.attention(x, other, other, key_padding_mask=padding, attn_mask=causal)
        return self.last(y.mean(0)) + weights.square().sum((1, 2))[:, None] * torch.arange(3)


class Transformer(nn.Module):
    """torch's encoder layers, which have a fast path in eval mode."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.last = nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm(self.encoder(x)).mean(1))


class Decoder(nn.Module):
    """torch's decoder layers, which look at another sequence, and at themselves from left to right."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, dropout=0.1)
        self.decoder, self.start, self.last = nn.TransformerDecoder(layer, 2), nn.Embedding(3, 8), nn.Linear(8, 3)

    def forward(self, x):
        start = self.start.weight.unsqueeze(0).expand(len(x), -1, -1)
        mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype)
        return self.last(self.decoder(start, x, tgt_mask=mask)).mean(1)


class Unused(nn.Module):
    """A head whose output is not used, and a parameter that is not used."""

    def __init__(self):
        super().__init__()
        self.body, self.last, self.extra = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = self.body(x).relu()
        self.extra(h)
        return self.last(h)


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
    "layer norm": (
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 5), nn.LayerNorm(5), nn.Flatten(), nn.Linear(15, 3)),
        lambda: torch.randn(9, 3, 4, dtype=torch.float64),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)),
        _images,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ),
        _images,
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)),
        lambda: torch.randn(9, 2, 3, 3, 3, dtype=torch.float64),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), _tokens),
    "lstm, two layers, both directions": (
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True, every_step=True),
        _tokens,
    ),
    "lstm, steps first": (lambda: Recurrent(nn.LSTM, batch_first=False, every_step=True, bias=False), _tokens),
    "rnn": (lambda: Recurrent(nn.RNN, num_layers=2, nonlinearity="relu", bidirectional=True), _tokens),
    "gru": (lambda: Recurrent(nn.GRU), _tokens),
    "gru, two layers, both directions": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), _tokens),
    "gru, no bias": (lambda: Recurrent(nn.GRU, bias=False, batch_first=False, every_step=True), _tokens),
    "cells": (Cells, _tokens),
    "self-attention": (SelfAttention, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "cross-attention": (lambda: SelfAttention(cross=True), lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "cross-attention, projections apart": (
        lambda: SelfAttention(cross=True, kdim=8, vdim=8),
        lambda: torch.randn(9, 4, 8, dtype=torch.float64),
    ),
    "decoder": (Decoder, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "transformer": (Transformer, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "unused": (Unused, _rows),
    "shared layer": (SharedLayer, _rows),
    "tied weights": (TiedWeights, _tokens),
    "tied sequence": (TiedSequence, lambda: torch.randint(4, (9, 5))),
    "broadcast": (Broadcast, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "products": (Products, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "derived": (Derived, lambda: torch.randn(9, 4, 8, dtype=torch.float64)),
    "hidden use": (HiddenUse, _rows),
    "unknown": (Unknown, _rows),
}


# Parameters that no rule covers: they go through vmap(grad), and are exact too.
BY_VMAP = {"conv3d": {"0.weight", "0.bias"}, "unknown": {"scale"}}


def build(name):
    """Model, x and y of an entry of the zoo."""
    torch.manual_seed(0)
    make, inputs = ZOO[name]
    model = _randomise_statistics(make().double().eval())
    return model, inputs(), torch.randint(3, (9,))


def sample_gradients(model, loss_fn, x, y):
    """The reference: every sample's gradient by a backward pass of its own."""
    rows = []
    for i in range(len(x)):
        params = dict(model.named_parameters())
        loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
        gradients = torch.autograd.grad(loss, list(params.values()), materialize_grads=True, allow_unused=True)
        rows.append(dict(zip(params, gradients, strict=True)))
    return {name: torch.stack([r[name] for r in rows]) for name in rows[0]}
