"""Models as they come: each beside an ordinary one with the same parameters and outputs, or with what refuses it."""

import threading
import warnings
from random import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def hidden(self, x):
        return self.a(x)

    def forward(self, x):
        return self.b(self.hidden(x).tanh())


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d, self.f = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8 * 25, 4)

    def rows(self, h):
        return h.flatten(1)

    def forward(self, x):
        return self.f(self.rows(F.max_pool2d(F.relu(self.d(F.relu(self.c(x)))), 2)))


class View(Images):
    def rows(self, h):
        return h.view(len(h), -1)


class ViewInTraining(Images):
    def rows(self, h):
        return h.view(len(h), -1) if self.training else h.flatten(1)


class AsItLies(Images):
    """Reads memory as it lies, which raises nothing in another order."""

    def rows(self, h):
        return torch.as_strided(h, (len(h), 200), (200, 1), h.storage_offset())


class OrderDependent(Images):
    def rows(self, h):
        return h.flatten(1) if h.is_contiguous() else h.permute(0, 2, 3, 1).flatten(1)


class Asserts(Images):
    def rows(self, h):
        assert h.is_contiguous()
        return h.flatten(1)


class Keeps(Layers):
    def hidden(self, x):
        self.kept = self.a(x)
        return self.kept


class Box:
    pass


class KeepsInObject(Layers):
    def __init__(self):
        super().__init__()
        self.box = Box()

    def hidden(self, x):
        self.box.kept = {"hidden": [self.a(x)]}
        return self.box.kept["hidden"][0]


class Locked(Layers):
    def __init__(self):
        super().__init__()
        self.locks = {"one": threading.Lock(), "two": threading.RLock(), "more": threading.Condition()}
        self.numpy = np

    def hidden(self, x):
        with self.locks["one"], self.locks["two"]:
            return self.a(x)


class Counts(Layers):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def hidden(self, x):
        self.calls += 1
        return self.a(x)


class Recorder(Layers):
    """A hook of its own keeps a mean of activations in a buffer, and the last ones."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.kept = {}

        def hook(module, args, output):
            self.mean += output.detach().mean(0)
            self.kept["last"] = output
            self.last = output.detach()

        self.a.register_forward_hook(hook)


class Around(nn.Module):
    """A network with a part in a wrapper."""

    def __init__(self, wrap):
        super().__init__()
        self.body, self.head = wrap(nn.Sequential(nn.Linear(6, 8), nn.Tanh())), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x))


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_in_place():
    model = network()
    model[0].compile(backend="eager")
    return model


def old_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 4))


def weight_norm():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 4))


def spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 4))


def untracked():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 4))


def quantised(part):
    """Integers in the place of the weights of a part, or of all linear layers."""
    return torch.ao.quantization.quantize_dynamic(network(), {part or nn.Linear}, dtype=torch.qint8)


def hooked():
    model = network()
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def patched():
    """Methods that were assigned from outside, as functions that hold the model or its layers."""
    model = network()
    model[0].forward = lambda x, model=model: F.linear(x, model[0].weight, model[0].bias)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    return model


def patched_by_name():
    """The same with the model as a global variable, as in a notebook."""
    scope = {"model": network()}
    exec("model.forward = lambda x: model[2](model[1](model[0](x)))", scope)
    return scope["model"]


class Configuration(dict):
    """Has no attribute that is no entry, not even the methods that copy.deepcopy looks for."""

    __getattr__ = dict.__getitem__


class Configured(Layers):
    def __init__(self):
        super().__init__()
        self.settings = Configuration(width=8)


def samples(model):
    """Samples (x, y) that the model takes."""
    generator = torch.Generator().manual_seed(0)
    images = any(isinstance(module, nn.Conv2d) for module in model.modules())
    shape = (3, 14, 14) if images else (6,)
    return torch.randn(20, *shape, generator=generator), torch.arange(20) % 4


def used(model):
    """The model after a training step's forward and backward pass, in eval mode, with what these left behind."""
    x, y = samples(model)
    F.cross_entropy(model(x), y).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


class Prototypes(Layers):
    """Returns besides what it has for all samples, as many rows as samples are tried."""

    def __init__(self):
        super().__init__()
        self.register_buffer("prototypes", torch.arange(12.0).view(3, 4))

    def forward(self, x):
        return super().forward(x), self.prototypes


class FunctionalDropout(Layers):
    def hidden(self, x):
        return F.dropout(self.a(x), 0.5)


class RareDropout(Layers):
    def hidden(self, x):
        return F.dropout(self.a(x), 0.01)


class LayerDrop(Layers):
    def hidden(self, x):
        return self.a(x) if random() < 0.8 else 0 * self.a(x)


class NumpyNoise(Layers):
    def hidden(self, x):
        return self.a(x) + float(np.random.rand())  # noqa: NPY002


class OwnGenerator(Layers):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def hidden(self, x):
        return self.a(x) + 0.1 * torch.randn(8, generator=self.generator)


class LongRows(nn.Module):
    """Rows that every call makes shorter."""

    def __init__(self, longest=1.0):
        super().__init__()
        self.e, self.b = nn.Embedding(9, 8, max_norm=longest), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.e((3 * x.abs()).long().clamp(max=8)).mean(1))


def scaled_by_frequency():
    model = LongRows()
    model.e.max_norm, model.e.scale_grad_by_freq = None, True
    return model


def sparse():
    model = LongRows()
    model.e.max_norm, model.e.sparse = None, True
    return model


class Constrained(Layers):
    """Keeps the rows of its weight short, as networks for EEG do."""

    def __init__(self, longest=0.1):
        super().__init__()
        self.longest = longest

    def hidden(self, x):
        self.a.weight.data = self.a.weight.data.renorm(2, 0, self.longest)
        return self.a(x)


class ConstrainedInPlace(Constrained):
    def hidden(self, x):
        with torch.no_grad():
            self.a.weight.renorm_(2, 0, self.longest)
        return self.a(x)


class Reentrant(Layers):
    def hidden(self, x):
        return checkpoint(torch.tanh, self.a(x), use_reentrant=True)


class Once(torch.autograd.Function):
    """A tangent hyperbolic whose backward pass has no derivative."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return dy * (1 - y * y)


class InNumpy(Once):
    """The same, with a backward pass that torch does not see."""

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return torch.from_numpy(dy.detach().numpy() * (1 - y.detach().numpy() ** 2))


class InTorch(Once):
    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return dy * (1 - y * y)


class DifferentiableOnce(Layers):
    def __init__(self, function=Once):
        super().__init__()
        self.function = function

    def hidden(self, x):
        return self.function.apply(self.a(x))


class Remembers(Layers):
    """Subtracts a running mean that it changes in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def hidden(self, x):
        h = self.a(x)
        self.mean.mul_(0.5).add_(h.detach().mean(0), alpha=0.5)
        return h - self.mean


class BatchMean(Layers):
    def hidden(self, x):
        h = self.a(x)
        return h - h.mean(0)


class BatchMax(Layers):
    """The largest entry may be that of the very sample that is looked at."""

    def hidden(self, x):
        h = self.a(x)
        return h / h.abs().max()


class FirstSample(Layers):
    def hidden(self, x):
        h = self.a(x)
        return h + h[:1]


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.weight).abs()


class Iterates(Layers):
    def __init__(self):
        super().__init__()
        self.stream = (i for i in range(3))


class Same(nn.Linear):
    """As a large frozen part may be shared by copies; this one is not frozen."""

    def __deepcopy__(self, memo):
        return self


class Anew(nn.Linear):
    def __deepcopy__(self, memo):
        return Anew(self.in_features, self.out_features)


class Forgetful(nn.Linear):
    def __getstate__(self):
        return {**vars(self), "_parameters": {}}


def with_part(kind):
    return Around(lambda _: nn.Sequential(kind(6, 8), nn.Tanh()))


class BuiltWhenCalled(Layers):
    """Makes a layer when its input is there, as many did before torch had lazy modules."""

    def hidden(self, x):
        if not hasattr(self, "more"):
            self.more = nn.Linear(x.shape[1], 8)
        return self.a(x) + self.more(x)


class NeverCopied(Layers):
    def __deepcopy__(self, memo):
        raise RuntimeError("not to be copied")


def made_in_inference_mode():
    with torch.inference_mode():
        return network()
