"""Models of all kinds give the numbers of an ordinary model, and stay as they are, or are refused by name."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models import odd_models as odd
from unlearnx import Request
from unlearnx.attribution import linear_influence
from unlearnx.curvature import CurvatureOperator, fisher_diagonal, grad_difference, per_sample_grad_difference
from unlearnx.methods import SSD, FineTune, FirstOrder, SalUn, SecondOrder
from unlearnx.metrics import accuracy, mean_loss

SAME = {
    "view": (odd.View, odd.Images),
    "view in train mode": (odd.ViewInTraining, odd.Images),
    "memory as it lies": (odd.AsItLies, odd.Images),
    "order asked for": (odd.OrderDependent, odd.Images),
    "order asserted": (odd.Asserts, odd.Images),
    "kept activations": (lambda: odd.used(odd.Keeps()), odd.Layers),
    "activations kept in an object": (lambda: odd.used(odd.KeepsInObject()), odd.Layers),
    "locks and modules": (odd.Locked, odd.Layers),
    "counter": (odd.Counts, odd.Layers),
    "hook that keeps": (odd.Recorder, odd.Layers),
    "patched": (odd.patched, odd.network),
    "constraint that is met": (lambda: odd.Constrained(9.0), odd.Layers),
    "constraint in place that is met": (lambda: odd.ConstrainedInPlace(9.0), odd.Layers),
    "compiled": (lambda: odd.compiled(odd.network()), odd.network),
    "compiled in place": (odd.compiled_in_place, odd.network),
    "compiled part": (lambda: odd.Around(odd.compiled), lambda: odd.Around(lambda module: module)),
    "DataParallel": (lambda: nn.DataParallel(odd.network()), odd.network),
    "part in DataParallel": (lambda: odd.Around(nn.DataParallel), lambda: odd.Around(lambda module: module)),
    "compiled DataParallel": (lambda: odd.compiled(nn.DataParallel(odd.network())), odd.network),
    "DataParallel of compiled": (lambda: nn.DataParallel(odd.compiled(odd.network())), odd.network),
}


def ones(model):
    return {name: torch.ones_like(p) for name, p in model.named_parameters() if p.requires_grad}


ENGINES = {
    "fisher": lambda model, data: fisher_diagonal(model, F.cross_entropy, data),
    "fisher of the head": lambda model, data: fisher_diagonal(model, F.cross_entropy, data, params="last:2"),
    "difference": lambda model, data: grad_difference(model, F.cross_entropy, data),
    "each difference": lambda model, data: per_sample_grad_difference(model, F.cross_entropy, data),
    "ggn": lambda model, data: CurvatureOperator(model, F.cross_entropy, data).matvec(ones(model)),
    "hessian": lambda model, data: CurvatureOperator(model, F.cross_entropy, data, kind="hessian").matvec(ones(model)),
    "influence": lambda model, data: {"": linear_influence(model, F.cross_entropy, data, data, damping=0.1)},
    "loss": lambda model, data: {"": torch.tensor(mean_loss(model, F.cross_entropy, data))},
    "fine-tuning": lambda model, data: dict(
        FineTune(epochs=1, max_increase=9.0)(model, Request.remove(data, range(3))).model.named_parameters()
    ),
    "first order": lambda model, data: dict(
        FirstOrder(1e-3, max_increase=9.0)(model, Request.remove(data, range(3))).model.named_parameters()
    ),
    "second order": lambda model, data: dict(
        SecondOrder(max_increase=9.0)(model, Request.remove(data, range(3))).model.named_parameters()
    ),
}


def plain(name):
    return name.replace("_orig_mod.", "").replace("module.", "")


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (id(t), t.detach().clone(), t.requires_grad) for name, t in tensors.items()}


def assert_unchanged(model, before):
    now = state(model)
    assert now.keys() == before.keys()
    for name, (identity, value, requires_grad) in now.items():
        assert (identity, requires_grad) == (before[name][0], before[name][2]), name
        assert torch.equal(value, before[name][1]), name


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", SAME)
def test_the_numbers_are_those_of_an_ordinary_model(kind, engine):
    make, ordinary = SAME[kind]
    torch.manual_seed(0)
    model = make().eval()
    twin = ordinary().eval()
    twin.load_state_dict({plain(name): t for name, t in model.state_dict().items() if name not in ("calls", "mean")})
    data, before = odd.samples(model), state(model)
    got, expected = ENGINES[engine](model, data), ENGINES[engine](twin, data)
    assert [plain(name) for name in got] == list(expected)
    for (name, value), other in zip(got.items(), expected.values(), strict=True):
        assert (value - other).norm() <= 2e-3 * other.norm(), name
    assert_unchanged(model, before)


@pytest.mark.parametrize("kind", [kind for kind in SAME if "ompiled" in kind or "DataParallel" in kind])
def test_wrappers_are_put_back(kind):
    model = SAME[kind][0]().eval()
    x, _ = data = odd.samples(model)
    result = FineTune(epochs=1, max_increase=9.0)(model, Request.remove(data, range(3))).model
    assert [(n, type(m)) for n, m in result.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    for own, module in zip(result.modules(), model.modules(), strict=True):
        assert (own._compiled_call_impl is None) == (module._compiled_call_impl is None)
    assert not torch.equal(result(x), model(x))
    model.load_state_dict(result.state_dict())
    torch.testing.assert_close(model(x), result(x))


REFUSED = {
    "functional dropout": (odd.FunctionalDropout, "gave other outputs for the same samples"),
    "rare dropout": (odd.RareDropout, "gave other outputs for the same samples"),
    "layer drop": (odd.LayerDrop, "gave other outputs for the same samples"),
    "numpy": (odd.NumpyNoise, "gave other outputs for the same samples"),
    "own generator": (odd.OwnGenerator, "gave other outputs for the same samples"),
    "running mean": (odd.Remembers, "writes to its buffer 'mean'"),
    "mean of the batch": (odd.BatchMean, "for a sample alone than together with others"),
    "maximum of the batch": (odd.BatchMax, "for a sample alone than together with others"),
    "first of the batch": (odd.FirstSample, "for a sample alone than together with others"),
    "built when called": (odd.BuiltWhenCalled, "makes its module 'more' when it is called"),
    "long rows": (odd.LongRows, "changes its parameter 'e.weight' when called"),
    "constraint": (odd.Constrained, "changes its parameter 'a.weight' when called"),
    "constraint in place": (odd.ConstrainedInPlace, "changes its parameter 'a.weight' when called"),
    "reentrant checkpoint": (odd.Reentrant, "calls torch.utils.checkpoint with use_reentrant=True"),
    "scaled by frequency": (odd.scaled_by_frequency, "scales gradients by how often a token is in the batch"),
    "complex": (odd.Complex, "parameter 'weight' is of torch.complex64"),
    "inference": (odd.made_in_inference_mode, "parameter '0.weight' was made inside torch.inference_mode"),
    "meta": (lambda: odd.network().to("meta"), "parameter '0.weight' is on the meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), "parameter '0.weight' is not initialised yet"),
    "quantised": (lambda: odd.quantised(""), "Linear '0' is quantised, which rules out gradients"),
    "quantised part": (lambda: odd.quantised("0"), "Linear '0' is quantised, which rules out gradients"),
    "batch statistics": (odd.untracked, "BatchNorm1d '1' normalises by the statistics of the batch in eval mode too"),
    "scripted": (lambda: torch.jit.script(odd.network()), "compiled by torch.jit"),
    "scripted part": (lambda: odd.Around(torch.jit.script), "RecursiveScriptModule 'body' is compiled by torch.jit"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_right_answer_is_refused(kind):
    make, message = REFUSED[kind]
    model = make().eval()
    data = odd.samples(odd.Layers())
    before = None if kind in ("meta", "lazy") else state(model)
    calls = [*list(ENGINES.values())[:6], lambda m, d: SSD(alpha=2.0)(m, Request.remove(d, range(3)))]
    for call in calls:
        with pytest.raises(ValueError, match=f"^model: .*{message}"):
            call(model, data)
    if before is not None:
        assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (odd.Iterates, "^model: attribute 'stream' of Iterates holds a generator"),
        (odd.Configured, "^model: attribute 'settings' of Configured cannot be copied"),
        (odd.patched_by_name, "^model: Sequential cannot be copied.*by its global name 'model'"),
        (
            lambda: odd.with_part(odd.Same),
            "^model: cannot be copied.*gives the same memory for the parameter 'body.0.w",
        ),
        (lambda: odd.with_part(odd.Anew), "^model: cannot be copied.*gives other values of the parameter 'body.0.wei"),
        (lambda: odd.with_part(odd.Forgetful), "^model: cannot be copied.*gives 2 parameters in place of 4"),
        (odd.NeverCopied, "^model: NeverCopied cannot be copied.*RuntimeError: not to be copied"),
        (lambda: nn.Sequential(odd.Iterates()), "^model: attribute 'stream' of Iterates '0' holds a generator"),
    ],
)
def test_what_cannot_be_copied_is_named(make, message):
    model = make().eval()
    data = odd.samples(model)
    assert fisher_diagonal(model, F.cross_entropy, data).keys() == dict(model.named_parameters()).keys()
    for method in (SSD(alpha=2.0), FineTune()):
        with pytest.raises(ValueError, match=message):
            method(model, Request.remove(data, range(3)))


def test_a_frozen_part_may_be_shared_by_copies():
    model = odd.with_part(odd.Same).eval()
    model.body.requires_grad_(False)
    data, before = odd.samples(model), state(model)
    result = FineTune(epochs=1, max_increase=9.0)(model, Request.remove(data, range(3))).model
    assert result.body[0] is model.body[0]
    assert not torch.equal(result.head.weight, model.head.weight)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "make",
    [odd.old_weight_norm, odd.weight_norm, odd.spectral_norm, odd.hooked],
)
def test_gradients_are_those_of_autograd(make):
    torch.manual_seed(0)
    model = odd.used(make())
    x, y = odd.samples(model)
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = [torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters) for i in range(len(x))]
    got = fisher_diagonal(model, F.cross_entropy, (x, y))
    for k, name in enumerate(names):
        expected = torch.stack([row[k] for row in rows]).square().mean(0)
        torch.testing.assert_close(got[name], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("engine", ["hessian", "ggn"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (odd.Once, "^model: it, or loss_fn, calls a function that is marked as once_differentiable"),
        (odd.InNumpy, "^model: calls an autograd function of its own whose backward pass has no derivative"),
    ],
)
def test_products_need_second_derivatives(engine, function, message):
    """torch leaves out what a function that is differentiable once adds to a second derivative, and says nothing."""
    model = odd.DifferentiableOnce(function).eval()
    data = odd.samples(model)
    with pytest.raises(ValueError, match=message):
        ENGINES[engine](model, data)
    operator = CurvatureOperator(model, F.cross_entropy, data, kind=engine, params=["a.weight"])
    with pytest.raises(ValueError, match=message):
        operator.matvec({"a.weight": torch.ones(8, 6)})
    assert fisher_diagonal(model, F.cross_entropy, data).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("engine", ["fisher", "hessian", "ggn"])
def test_functions_with_second_derivatives_are_taken(engine):
    class Ordinary(odd.Layers):
        def hidden(self, x):
            return self.a(x).tanh()

    model, ordinary = odd.DifferentiableOnce(odd.InTorch).eval(), Ordinary().eval()
    ordinary.load_state_dict(model.state_dict())
    data = odd.samples(model)
    got, expected = ENGINES[engine](model, data), ENGINES[engine](ordinary, data)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_transforms_inside_of_the_model():
    class Slopes(odd.Layers):
        def hidden(self, x):
            return torch.vmap(torch.func.grad(lambda h: h.pow(3).sum()))(self.a(x))

    class Same(odd.Layers):
        def hidden(self, x):
            return 3 * self.a(x).square()

    model, plain = Slopes().eval(), Same().eval()
    plain.load_state_dict(model.state_dict())
    data = odd.samples(model)
    for engine in ("fisher", "hessian", "ggn", "fine-tuning"):
        got, expected = ENGINES[engine](model, data), ENGINES[engine](plain, data)
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_embeddings_with_sparse_gradients_train_and_have_a_curvature():
    model = odd.sparse().eval()
    dense = copy.deepcopy(model)
    dense.e.sparse = False
    data = odd.samples(model)
    for engine in ("hessian", "ggn", "fine-tuning", "second order"):
        got, expected = ENGINES[engine](model, data), ENGINES[engine](dense, data)
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name])


def test_a_hook_on_a_container_counts_in_what_is_kept_of_a_frozen_prefix():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, 4)).eval()
    model[0].register_forward_hook(lambda module, args, output: 3 * output)
    data = odd.samples(model)
    got = grad_difference(model, F.cross_entropy, data, params="last:2")
    for name, gradient in grad_difference(model, F.cross_entropy, data).items():
        if name in got:
            torch.testing.assert_close(got[name], gradient)


def test_hooks_on_parameters_mask_gradients_of_the_copy_too():
    model = odd.network().eval()
    mask = torch.zeros_like(model[0].weight)
    model[0].weight.register_hook(lambda gradient: gradient * mask)
    data = odd.samples(model)
    method = FineTune(epochs=2, weight_decay=0.0, max_increase=9.0)
    result = method(model, Request.remove(data, range(3))).model
    assert torch.equal(result[0].weight, model[0].weight)
    assert not torch.equal(result[2].weight, model[2].weight)


def test_outputs_that_are_the_same_for_all_samples_are_not_compared():
    model, plain = odd.Prototypes().eval(), odd.Layers().eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    data = odd.samples(model)
    got = fisher_diagonal(model, lambda output, y: F.cross_entropy(output[0], y), data)
    for name, expected in fisher_diagonal(plain, F.cross_entropy, data).items():
        torch.testing.assert_close(got[name], expected)


def test_random_numbers_that_change_nothing_are_no_reason_to_refuse():
    class Draws(odd.Layers):
        def hidden(self, x):
            torch.rand(())
            return self.a(x)

    model = Draws().eval()
    assert fisher_diagonal(model, F.cross_entropy, odd.samples(model))


def test_threads_give_the_numbers_of_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 4)).eval()
    data, before = odd.samples(model), state(model)
    x, y = data
    jobs = {
        "fine-tuning": lambda: dict(
            FineTune(epochs=2, max_increase=9.0)(model, Request.remove(data, range(3))).model.named_parameters()
        ),
        "salun": lambda: dict(SalUn(max_increase=9.0)(model, Request.remove(data, range(3))).model.named_parameters()),
        "influence": lambda: {"": linear_influence(model, F.cross_entropy, data, (x[:3], y[:3]), damping=0.1)},
        "accuracy": lambda: {"": torch.tensor(accuracy(model, data))},
        "fisher": lambda: fisher_diagonal(model, F.cross_entropy, data),
    }
    expected = {name: job() for name, job in jobs.items()}
    wrong = []

    def work(name):
        for _ in range(4):
            try:
                got = jobs[name]()
                if any(not torch.allclose(got[k], v, 1e-4, 1e-5) for k, v in expected[name].items()):
                    wrong.append(name)
            except Exception as error:  # of another thread, which pytest would not see
                wrong.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=work, args=(name,)) for name in [*jobs, *jobs]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_unchanged(model, before)
    copy.deepcopy(model)


def test_frozen_parameters_that_are_asked_for_are_trained_and_stay_frozen():
    model = odd.network().eval().requires_grad_(False)
    data = odd.samples(model)
    result = FineTune(epochs=1, params="last:2", max_increase=9.0)(model, Request.remove(data, range(3))).model
    assert not torch.equal(result[2].weight, model[2].weight)
    assert torch.equal(result[0].weight, model[0].weight)
    assert not any(p.requires_grad for p in result.parameters())
