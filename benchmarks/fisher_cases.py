"""Models of the Fisher benchmarks, and the ways others take to their diagonals."""

import copy

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from benchmarks import comparison
from benchmarks.comparison import GivesSomethingElse
from unlearnx.models import vgg_cifar10


class CharLSTM(nn.Module):
    """Embedding, LSTM, and a decoder of its last state."""

    def __init__(self, lstm=nn.LSTM):
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(60, 64), nn.Linear(256, 60)
        self.lstm = lstm(64, 256, batch_first=True)

    def forward(self, x):
        return self.decoder(self.lstm(self.embedding(x))[0][:, -1])


class Attention(nn.Module):
    """Self-attention from plain linear layers, as every library supports them."""

    def __init__(self, width, heads):
        super().__init__()
        self.project, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = self.project(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))


class VisionTransformer(nn.Module):
    """One block of ViT-tiny, with a classifier on the first token."""

    def __init__(self, width=192, heads=3):
        super().__init__()
        self.norm, self.attention, self.norm_mlp = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return self.head((x + self.mlp(self.norm_mlp(x)))[:, 0])


def build(name, n, device="cpu"):
    """Model in eval mode, x and y of n samples."""
    torch.manual_seed(0)
    if name == "vgg":
        model, x, classes = vgg_cifar10(), torch.randn(n, 3, 32, 32), 10
    elif name == "char-lstm":
        model, x, classes = CharLSTM(), torch.randint(60, (n, 24)), 60
    elif name == "vit":
        model, x, classes = VisionTransformer(), torch.randn(n, 65, 192), 10
    else:
        model, x, classes = nn.Linear(3000, 2), torch.randn(n, 3000), 2
    return model.eval().to(device), x.to(device), torch.randint(classes, (n,), device=device)


def forward_backward(model, x, y):
    """The unit: what one step of ordinary training costs, without the step."""

    def run():
        return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    return run


def one_by_one(model, x, y):
    """A loop over single samples."""
    parameters = list(model.parameters())

    def run():
        total = [torch.zeros_like(p) for p in parameters]
        for i in range(len(x)):
            gradients = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters)
            torch._foreach_addcmul_(total, gradients, gradients)
        return total

    return run


def vmapped(chunk):
    """torch.func, `chunk` samples at a time."""

    def make(model, x, y):
        values = {name: p.detach() for name, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def loss(values, x, y):
            return F.cross_entropy(functional_call(model, (values, buffers), (x[None],)), y[None])

        def run():
            total = {name: torch.zeros_like(v) for name, v in values.items()}
            for s in range(0, len(x), chunk):
                rows = vmap(grad(loss), in_dims=(None, 0, 0))(values, x[s : s + chunk], y[s : s + chunk])
                for name, row in rows.items():
                    total[name] += row.square().sum(0)
            return list(total.values())

        return run

    return make


def opacus(model, x, y):
    """Per-sample gradients of every layer stored at once."""
    from opacus.grad_sample import GradSampleModule
    from opacus.layers import DPLSTM

    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise NotImplementedError("Opacus refuses BatchNorm")
    own = dict(model.named_parameters())
    if isinstance(model, CharLSTM):  # Opacus has an LSTM of its own, with the same parameters in another order
        model = CharLSTM(DPLSTM)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(own[name])
    parameters = dict(model.named_parameters())
    # It looks at layers in train mode only; none of these models has one that minds.
    wrapped = GradSampleModule(model.train(), loss_reduction="sum")

    def run():
        wrapped.zero_grad()
        F.cross_entropy(wrapped(x), y, reduction="sum").backward()
        result = [parameters[name].grad_sample.square().sum(0) for name in own]
        for p in wrapped.parameters():
            p.grad_sample = None
        return result

    return run


def backpack(model, x, y):
    """BackPACK's extension for this very quantity."""
    from backpack import backpack as extensions
    from backpack import extend
    from backpack.extensions import SumGradSquared

    if not isinstance(model, (nn.Sequential, nn.Linear)):
        raise NotImplementedError("BackPACK needs modules all the way")
    extended = extend(model)
    loss = extend(nn.CrossEntropyLoss(reduction="sum"))

    def run():
        extended.zero_grad()
        with extensions(SumGradSquared()):
            loss(extended(x), y).backward()
        return [p.sum_grad_squared for p in extended.parameters()]

    return run


def nngeometry(model, x, y):
    """The diagonal of its second-moment matrix of gradients."""
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    backend = TorchHooksJacobianBackend(
        model=model,
        function=lambda x, y: F.cross_entropy(model(x), y, reduction="none")[:, None],
        layer_collection=LayerCollection.from_model(model),
    )

    def run():
        diagonal = PMatDiag(generator=backend, examples=loader).get_diag() * len(x)  # it is a mean
        return [part.view_as(p) for p, part in zip(model.parameters(), diagonal.split(sizes), strict=True)]

    sizes = [p.numel() for p in model.parameters()]
    return run


RIVALS = {
    "batch size 1": one_by_one,
    "vmap(grad), 4": vmapped(4),
    "vmap(grad), 16": vmapped(16),
    "vmap(grad), 64": vmapped(64),
    "Opacus": opacus,
    "BackPACK": backpack,
    "nngeometry": nngeometry,
}


def available(model, x, y):
    """The rivals that are installed, take the model and give its diagonal; what is wrong with the others."""
    expected = one_by_one(model, x[:4], y[:4])()

    def attempt(make):
        got = make(copy.deepcopy(model), x[:4], y[:4])()  # some leave hooks behind
        run = make(copy.deepcopy(model), x, y)
        if not all((a - b).norm() <= 1e-2 * b.norm() for a, b in zip(got, expected, strict=True)):
            raise GivesSomethingElse
        return run

    return comparison.available(RIVALS, attempt)
