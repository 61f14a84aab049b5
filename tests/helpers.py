"""What tests share."""

from contextlib import contextmanager

import torch
from torch.utils.data import Dataset

from unlearnx.data import load_digits
from unlearnx.models import Training, digits_cnn

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# Rounding of one stored value; sums are held in float32 or better.
TOLERANCE = {
    torch.float64: dict(rtol=1e-12, atol=1e-12),
    torch.float32: dict(rtol=1e-5, atol=1e-6),
    torch.bfloat16: dict(rtol=1e-2, atol=1e-2),
    torch.float16: dict(rtol=2e-3, atol=2e-3),
}

SHAPES = [(1,), (3,), (129, 7), (0,), (2, 0, 3), (), (40_000,), (5, 3, 3, 3)]

# Tensors of a list, beside the 64 that one CUDA launch holds.
LIST_LENGTHS = [63, 64, 65, 128, 192, 199]


def many_shapes(n):
    """Shapes of `n` tensors with values, and of an empty one among them."""
    shapes = [(k + 1,) for k in range(n)]
    return [*shapes[: n // 2], (0,), *shapes[n // 2 :]]


def product_of(part, v):
    """Product of a mini-batch's curvature with one vector, or with several."""
    rows, single = part.layout.rows("v", v)
    return part.layout.vector(part.products(rows), single)


class Lines(Dataset):
    """Samples that are read one by one."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def tensors(shapes, dtype=torch.float32, device="cpu", low=-1.0, high=1.0):
    return [torch.empty(s, dtype=dtype, device=device).uniform_(low, high) for s in shapes]


def copies(tensors_):
    return [t.clone(memory_format=torch.preserve_format) for t in tensors_]


def assert_close(actual, expected, dtype):
    torch.testing.assert_close(actual.double(), expected.double(), **TOLERANCE[dtype])


@contextmanager
def threads(n):
    """What runs in here has `n` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network_that_knows_digits():
    """A network in eval mode that has learned the digits, and these."""
    s = load_digits()
    torch.manual_seed(0)
    model = digits_cnn().train()
    Training(15, lr=2e-3).run(model, (s.train_x, s.train_y))
    return model.eval(), s
