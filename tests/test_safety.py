"""What belongs to the user stays as it was, whatever the model does, and what cannot be right is refused."""

import copy
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request, metrics
from unlearnx._memory_order import may_reorder
from unlearnx.curvature import CurvatureOperator, fisher_diagonal, grad_difference, per_sample_grad_difference
from unlearnx.methods import (
    SCRUB,
    SSD,
    BadTeacher,
    FineTune,
    FirstOrder,
    FisherMasking,
    GradientAscent,
    RandomPerturbation,
    SalUn,
    SecondOrder,
)


class Shifts(nn.Module):
    """Changes its input in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x.sub_(1.0).relu_())


class Copies(Shifts):
    """The same function, which leaves its input alone."""

    def forward(self, x):
        return super().forward(x.clone())


def data(n=60):
    torch.manual_seed(0)
    return torch.randn(n, 6) + 1, torch.arange(n) % 4


def pair():
    torch.manual_seed(1)
    shifts, plain = Shifts(), Copies()
    plain.load_state_dict(shifts.state_dict())
    return shifts.eval(), plain.eval()


def same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return all(same(a[k], b[k]) for k in a)
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-6)


def labels_overwritten(output, y):
    losses = F.cross_entropy(output, y.clone(), reduction="none")
    y.zero_()
    return losses


READS = {
    "accuracy": lambda m, d: metrics.accuracy(m, d),
    "mean loss": lambda m, d: metrics.mean_loss(m, F.cross_entropy, d),
    "confusion": lambda m, d: metrics.confusion_matrix(m, d),
    "probabilities": lambda m, d: metrics.probabilities(m, d),
    "gradients": lambda m, d: grad_difference(m, F.cross_entropy, d),
    "differences": lambda m, d: grad_difference(m, F.cross_entropy, d, (d[0], 3 - d[1])),
    "per sample": lambda m, d: per_sample_grad_difference(m, F.cross_entropy, d),
    "fisher": lambda m, d: fisher_diagonal(m, F.cross_entropy, d),
    "batch fisher": lambda m, d: fisher_diagonal(m, F.cross_entropy, d, fisher_type="batch", batch_size=7),
    "ggn": lambda m, d: CurvatureOperator(m, F.cross_entropy, d).matvec(
        {k: torch.ones_like(p) for k, p in m.named_parameters()}
    ),
}
METHODS = [
    SSD(alpha=2.0),
    FineTune(),
    FirstOrder(steps=1),
    SecondOrder(steps=1),
    FisherMasking(ratio=0.1),
    GradientAscent(),
    SalUn(epochs=1),
    BadTeacher(),
    SCRUB(),
    RandomPerturbation(),
]


@pytest.mark.parametrize("read", READS)
def test_inputs_belong_to_the_user(read):
    (shifts, plain), (x, y) = pair(), data()
    before = x.clone(), y.clone()
    got = READS[read](shifts, (x, y))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert same(got, READS[read](plain, (x, y)))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_methods_leave_inputs_alone(method):
    (shifts, plain), (x, y) = pair(), data()
    before = x.clone()
    got, expected = (method(m, Request.remove((x, y), range(6))).model.state_dict() for m in (shifts, plain))
    assert torch.equal(x, before)
    assert same(dict(got), dict(expected))


def test_losses_leave_labels_alone():
    (_, plain), (x, y) = pair(), data()
    before = y.clone()
    got = fisher_diagonal(plain, labels_overwritten, (x, y))
    assert torch.equal(y, before)
    assert same(got, fisher_diagonal(plain, F.cross_entropy, (x, y)))


def test_compiled_models():
    """Curvature of a compiled model is that of the model, under the compiled one's names."""
    (_, plain), (x, y) = pair(), data()
    compiled = torch.compile(plain, backend="eager")
    v = {k: torch.ones_like(p) for k, p in plain.named_parameters()}
    for kind in ("ggn", "hessian"):
        expected = CurvatureOperator(plain, F.cross_entropy, (x, y), kind=kind).matvec(v)
        got = CurvatureOperator(compiled, F.cross_entropy, (x, y), kind=kind).matvec(
            {f"_orig_mod.{k}": t for k, t in v.items()}
        )
        assert same({k.removeprefix("_orig_mod."): t for k, t in got.items()}, expected)
        assert any(t.norm() > 0 for t in got.values())
    outcome = SSD(alpha=2.0)(compiled, Request.remove((x, y), range(6)))
    expected = SSD(alpha=2.0)(plain, Request.remove((x, y), range(6)))
    assert same(outcome.model(x), expected.model(x))


def test_threads_share_a_model():
    (_, plain), (x, y) = pair(), data()
    model = nn.Sequential(plain, nn.Tanh(), nn.Linear(4, 4)).train()
    work = {
        "fisher": lambda: fisher_diagonal(model, F.cross_entropy, (x, y)),
        "last layer": lambda: fisher_diagonal(model, F.cross_entropy, (x, y), params="last:2"),
        "gradient": lambda: grad_difference(model, F.cross_entropy, (x, y), params="last:2"),
        "accuracy": lambda: metrics.accuracy(model, (x, y)),
    }
    expected = {name: f() for name, f in work.items()}
    wrong = []

    def job(name):
        for _ in range(10):
            try:
                if not same(work[name](), expected[name]):
                    wrong.append(name)
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=job, args=(name,)) for name in [*work, *work]]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert all(type(p) is nn.Parameter and p.requires_grad for p in model.parameters())
    assert all(m.training for m in model if m is not plain)
    copy.deepcopy(model)


def test_penalties_in_the_loss():
    """The gradient of a set counts them, what is told of single samples refuses them."""
    (_, model), (x, y) = pair(), data()

    def penalised(output, y):
        return F.cross_entropy(output, y) + 0.5 * sum(p.square().sum() for p in model.parameters())

    expected = torch.autograd.grad(60 * penalised(model(x), y), list(model.parameters()))
    got = grad_difference(model, penalised, (x, y), batch_size=17)
    assert same(got, dict(zip(got, expected, strict=True)))
    for refuse in (
        lambda: fisher_diagonal(model, penalised, (x, y)),
        lambda: CurvatureOperator(model, penalised, (x, y)),
        lambda: FineTune(loss_fn=penalised)(model, Request.remove((x, y), [0])),
    ):
        with pytest.raises(ValueError, match="loss_fn: depends on the model's parameters themselves"):
            refuse()
    assert all(p.grad is None for p in model.parameters())


def test_what_changes_nothing_is_not_applied():
    (_, model), d = pair(), data()
    for method in (GradientAscent(lr=0.0), RandomPerturbation(beta=0.0)):
        info = method(model, Request.remove(d, range(6))).info
        assert not info["applied"]
        assert info["reason"] == "no parameter changed"


def test_random_models_are_refused():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(F.dropout(x, 0.5))

    with pytest.raises(ValueError, match="model: gave other outputs for the same samples"):
        fisher_diagonal(Drops().eval(), F.cross_entropy, data())


def test_trying_a_model_leaves_random_numbers_alone():
    (_, model), d = pair(), data()
    state = torch.get_rng_state()
    grad_difference(model, F.cross_entropy, d)
    assert torch.equal(torch.get_rng_state(), state)


CRASHES = """
import torch
from torch import nn
from torch.nn import functional as F
from unlearnx import Request
from unlearnx.curvature import fisher_diagonal
from unlearnx.methods import SCRUB, FineTune, SecondOrder
torch.set_num_threads(2)
torch.manual_seed(0)
class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, {channels}, 3, padding=1), nn.Conv2d({channels}, 16, 1, stride=2)
        self.c = nn.Conv2d(16, 8, 3, padding=1)
        self.d = nn.Linear(8, 4)
    def forward(self, x):
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu().mean((2, 3)))
x, y = torch.randn(42, 3, 32, 32), torch.arange(42) % 4
request = Request.remove((x, y), range(5))
for method in (FineTune(batch_size=7), SecondOrder(steps=1, batch_size=7), SCRUB(batch_size=7)):
    outcome = method(Narrow().eval(), request)
    assert all(p.isfinite().all() for p in outcome.model.parameters())
print("done")
"""


@pytest.mark.parametrize("channels", [8, 12])
def test_no_memory_order_that_torch_cannot_take(channels):
    code = CRASHES.format(channels=channels)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.split() == ["done"]


@pytest.mark.parametrize(
    ("layer", "may"),
    [
        (nn.Conv2d(8, 4, 1, stride=2), False),
        (nn.Conv2d(12, 4, 1, stride=(1, 2)), False),
        (nn.Conv2d(16, 4, 1, stride=2), True),
        (nn.Conv2d(8, 4, 1), True),
        (nn.Conv2d(8, 4, 3, stride=2), True),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 1, stride=2)), False),
        (nn.Linear(8, 4), True),
    ],
)
def test_which_models_are_reordered(layer, may):
    assert may_reorder(nn.Sequential(layer, nn.ReLU())) == may


def test_a_fork_after_the_import_runs():
    code = (
        "import os, numpy, torch\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "import unlearnx.ops\n"
        "assert len(os.listdir('/proc/self/task')) == before\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    torch.randn(600, 600) @ torch.randn(600, 600); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"OMP_NUM_THREADS": "4"}
    )
    assert done.returncode == 0, done.stderr


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.w).abs()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x, y: fisher_diagonal(m, F.cross_entropy, (x.double(), y)),
            "^data: expected samples that the model",
        ),
        (
            lambda m, x, y: fisher_diagonal(m, F.cross_entropy, (x, y.int())),
            "^data: expected labels that loss_fn takes",
        ),
        (lambda m, x, y: fisher_diagonal(m, F.cross_entropy, (x, y + 9)), "^data: expected labels that loss_fn takes"),
        (lambda m, x, y: fisher_diagonal(m, F.cross_entropy, x), "^data: expected a pair"),
        (lambda m, x, y: fisher_diagonal(m, None, (x, y)), "^loss_fn is None, expected a function"),
        (lambda m, x, y: fisher_diagonal(None, F.cross_entropy, (x, y)), "^model is None, expected a torch.nn.Module"),
        (lambda m, x, y: fisher_diagonal(m, lambda o, t: 1.0, (x, y)), "^loss_fn: returned float"),
        (lambda m, x, y: fisher_diagonal(m, F.cross_entropy, (x, y), batch_size="7"), "^batch_size is '7'"),
        (
            lambda m, x, y: fisher_diagonal(Complex(), F.cross_entropy, (x, y)),
            "^model: parameter 'w' is of torch.complex64",
        ),
        (lambda m, x, y: SSD(autocast=torch.int8), "^autocast is torch.int8"),
        (lambda m, x, y: FineTune(epochs=1.5), "^epochs is 1.5, expected an integer"),
        (lambda m, x, y: SSD(loss_fn=None), "^loss_fn is None"),
        (lambda m, x, y: metrics.accuracy(m, (x * torch.nan, y)), "^model: returned scores that are NaN"),
        (lambda m, x, y: metrics.interclass_confusion(m, (x, y), (1, 9)), r"^classes is \(1, 9\)"),
        (lambda m, x, y: metrics.confusion_matrix(m, (x, y), classes=2), "^classes is 2, expected more than"),
        (lambda m, x, y: metrics.confusion_matrix(m, (x, y - 100)), "^data: label -99 is out of range for 4 classes"),
    ],
)
def test_errors_name_the_argument(call, message):
    (_, model), (x, y) = pair(), data()
    with pytest.raises((TypeError, ValueError), match=message):
        call(model, x, y)
