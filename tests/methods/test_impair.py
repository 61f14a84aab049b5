"""Methods that impair and recover, on a removal: digits of one class, or a tenth of all."""

import copy
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.helpers import Lines, network_that_knows_digits
from unlearnx import Request
from unlearnx._data import materialize
from unlearnx.methods import (
    KFADE,
    METHODS,
    NPO,
    RMU,
    SCRUB,
    SSD,
    BadTeacher,
    FineTune,
    FisherMasking,
    GradientAscent,
    NegGrad,
    Pipeline,
    RandomPerturbation,
    SalUn,
    SimNPO,
    StochasticTeacher,
    label_free,
)
from unlearnx.methods.distillation import Teacher, random_network
from unlearnx.metrics import accuracy, mean_loss
from unlearnx.models import Training

FORGETFUL = [
    SSD(),
    SSD(fisher_type="label_free"),
    FisherMasking(),
    GradientAscent(),
    KFADE(),
    NegGrad(),
    NPO(),
    RMU(),
    SimNPO(),
    SalUn(),
    SCRUB(epochs=4),
    BadTeacher(),
    StochasticTeacher(),
    Pipeline([RandomPerturbation(0.5), FineTune(epochs=4, lr=2e-3)]),
]


def named(method):
    return f"{type(method).__name__}-{getattr(method, 'fisher_type', '')}"


@pytest.fixture(scope="module")
def study():
    """A network that has learned four separable clusters, the request to forget the last, and test data."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (600,), generator=generator)
    x = 3 * torch.eye(4, 8)[y] + torch.randn(600, 8, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 4)).train()
    Training(40, lr=1e-2, batch_size=50).run(model, (x[:400], y[:400]))
    return model.eval(), Request.remove_class((x[:400], y[:400]), 3), (x[400:], y[400:])


@pytest.fixture(scope="module")
def digits():
    """A network that has learned the digits, the request to forget the ones, and test data."""
    model, s = network_that_knows_digits()
    return model, Request.remove_class((s.train_x, s.train_y), 1), (s.test_x, s.test_y)


@pytest.mark.parametrize("method", FORGETFUL, ids=named)
def test_forgets_a_class_and_keeps_the_rest(digits, method):
    model, request, (x, y) = digits
    outcome = method(model, request)
    assert outcome.applied, outcome.reason
    stays = y != 1
    assert accuracy(outcome.model, request.forget_set) < 0.25
    least = (
        0.9 if isinstance(method, RMU) else 0.95
    )  # what it leads astray takes more of the rest with it than others do
    assert accuracy(outcome.model, (x[stays], y[stays])) > least
    assert outcome.gradient_evaluations > 0


@pytest.mark.parametrize("method", [m for m in FORGETFUL if not isinstance(m, (SSD, FisherMasking))], ids=named)
def test_another_seed_makes_another_model(study, method):
    model, request, _ = study
    first, other = (replace(method, seed=s)(model, request).model.state_dict() for s in (3, 4))
    assert any(not torch.equal(v, other[k]) for k, v in first.items())


def test_registry_names_every_method():
    assert all(isinstance(method(), method) for method in METHODS.values())
    for method in METHODS.values():  # what they have in common is never positional
        first = next(f for f in fields(method) if not f.kw_only)
        assert first.name not in {f.name for f in fields(FineTune) if f.kw_only}
    assert list(METHODS) == sorted(METHODS)


def test_noise_has_the_deviation_of_its_tensor(study):
    model, request, _ = study
    wide = nn.Sequential(nn.Linear(8, 4000), nn.ReLU(), nn.Linear(4000, 4)).eval()
    outcome = RandomPerturbation(beta=0.3)(wide, request)
    for old, new in zip(wide.parameters(), outcome.model.parameters(), strict=True):
        if old.numel() > 1000:
            assert float((new - old).detach().std() / old.detach().std()) == pytest.approx(0.3, rel=0.03)
    constant = copy.deepcopy(model)
    nn.init.constant_(constant[2].weight, 1.0)
    assert torch.equal(RandomPerturbation(1.0)(constant, request).model[2].weight, constant[2].weight)


def test_adaptive_alpha_is_the_published_percentile(study):
    model, request, _ = study
    outcome = SSD(alpha="adaptive")(model, request)
    info = outcome.info
    share = len(request.forget) / 400
    assert info["dampened_share"] == pytest.approx(math.log1p(100 * share) / 100, abs=1.5 / 836)

    def squares(index):
        rows = []
        for i in index.tolist():
            x, y = request.dataset[i]
            loss = F.cross_entropy(model(x[None]), y[None])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]) ** 2)
        return torch.stack(rows).double()

    forget, everything = squares(request.forget).mean(0), squares(torch.arange(400)).mean(0)
    ratio = (forget / everything).numpy()
    ratio = ratio[np.isfinite(ratio)]
    expected = np.percentile(ratio, 100 - math.log1p(100 * share), method="higher")
    assert info["alpha"] == pytest.approx(expected, rel=1e-3)


def test_label_free_importance_ignores_labels(study):
    model, request, _ = study
    x, y = request.dataset.tensors
    relabelled = Request.remove((x, (y + 1) % 4), request.forget)
    first, second = (SSD(alpha=3.0, fisher_type="label_free")(model, r).info["dampened"] for r in (request, relabelled))
    assert first == second


@pytest.mark.parametrize("memory", [label_free.MEMORY, 1])
def test_label_free_importance_is_that_of_the_paper(study, monkeypatch, memory):
    """Mean over the samples of the absolute gradient of the squared norm of the output, one sample at a time."""
    monkeypatch.setattr(label_free, "MEMORY", memory)
    model, request, _ = study
    model, (x, y) = copy.deepcopy(model).double(), request.dataset.tensors
    x, request = x[:60].double(), Request.remove((x[:60].double(), y[:60]), range(12))

    def importance(rows):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for row in rows:
            gradients = torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters()))
            total = [t + g.abs() for t, g in zip(total, gradients, strict=True)]
        return [t / len(rows) for t in total]

    full, forget = importance(x), importance(x[:12])
    outcome = SSD(alpha=1.2, lam=0.5, fisher_type="label_free", batch_size=7, max_increase=math.inf)(model, request)
    assert outcome.applied
    assert outcome.gradient_evaluations == 60
    for p, new, d, f in zip(model.parameters(), outcome.model.parameters(), full, forget, strict=True):
        expected = torch.where(f > 1.2 * d, p * (0.5 * d / f).clamp(max=1), p)
        torch.testing.assert_close(new, expected, rtol=1e-10, atol=1e-14)


def test_divergence_is_that_of_hinton():
    torch.manual_seed(0)
    teacher, student, x = nn.Linear(4, 3).double(), nn.Linear(4, 3).double(), torch.randn(9, 4).double()
    taught, y = Teacher(teacher, F.cross_entropy, temperature=2.0), torch.arange(9) % 3
    p, q = (F.softmax(m(x) / 2, 1) for m in (teacher, student))
    number = torch.tensor([8, 0, 3])
    expected = 4 * (p * (p / q).log()).sum(1)[number]
    _, lesson = materialize(Subset(taught.taught(TensorDataset(x, y)), number.tolist()))
    assert torch.allclose(taught.divergence(student(x)[number], lesson), expected, atol=1e-12)


def test_a_random_network_knows_nothing_and_is_repeatable(study):
    model, _, _ = study
    a, b = random_network(model, 0), random_network(model, 0)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a[0].weight, model[0].weight)
    assert torch.equal(a[2].running_mean, torch.zeros(64))


def test_erasing_alone_imitates_the_random_network(study):
    model, request, _ = study
    method = StochasticTeacher(erase_epochs=40, erase_lr=1e-2, epochs=0, max_increase=math.inf)
    outcome = method(model, request)
    x, _ = request.dataset[int(request.forget[0])]
    random_teacher = random_network(model, 0)
    p, q, r = (F.softmax(m(x[None]), 1) for m in (random_teacher, outcome.model, model))
    assert (p - q).abs().sum() < 0.5 * (p - r).abs().sum()


def test_salun_moves_only_salient_weights(study):
    model, request, _ = study
    outcome = SalUn(epochs=3, lr=5e-3, ratio=0.1)(model, request)
    old, new = (torch.cat([p.flatten() for p in m.parameters()]) for m in (model, outcome.model))
    moved = int((old != new).sum())
    assert 0 < moved <= round(0.1 * len(old))
    loss = F.cross_entropy(model(request.dataset.tensors[0][request.forget]), torch.full((len(request.forget),), 3))
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).abs()
    assert gradient[old != new].min() >= gradient.sort(descending=True).values[round(0.1 * len(old))] * 0.999


def test_corrections_use_the_corrected_labels(study):
    model, _, (x, y) = study
    data = (x[:100], y[:100])
    given = data[1].clone()
    given[:20] = (given[:20] + 1) % 4
    poisoned = copy.deepcopy(model)
    Training(60, lr=1e-2, batch_size=50).run(poisoned.train(), (data[0], given))
    request = Request.correct((data[0], given), data)
    for method in (SalUn(epochs=20, lr=5e-3), NegGrad(epochs=20, lr=5e-3), SCRUB(epochs=10, max_epochs=0, lr=5e-3)):
        outcome = method(poisoned.eval(), request)
        assert outcome.applied
        assert accuracy(outcome.model, data) > accuracy(poisoned, data)


def test_harm_is_not_applied(study):
    model, request, _ = study
    for method in (GradientAscent(epochs=60, lr=1e-1), Pipeline([RandomPerturbation(50.0), FineTune(lr=0.0)])):
        outcome = method(model, request)
        assert not outcome.applied
        assert "max_increase=0.5" in outcome.reason
        assert all(torch.equal(v, outcome.model.state_dict()[k]) for k, v in model.state_dict().items())
    assert RandomPerturbation(50.0)(model, request).applied  # it is meant to harm


def test_pipeline_reports_its_stages(study):
    model, request, _ = study
    idle = SSD(alpha=1e9)
    outcome = Pipeline([idle, FineTune()], seed=5)(model, request)
    assert [stage["applied"] for stage in outcome.info["stages"]] == [False, True]
    alone = FineTune(seed=5)(model, request)
    assert all(torch.equal(v, outcome.model.state_dict()[k]) for k, v in alone.model.state_dict().items())
    assert outcome.gradient_evaluations == alone.gradient_evaluations + 400
    assert outcome.loss_before == mean_loss(model, F.cross_entropy, request.target)
    assert not Pipeline([idle])(model, request).applied


@pytest.mark.parametrize("wrap", [lambda x, y: (x, y), TensorDataset, Lines, lambda x, y: DataLoader(Lines(x, y), 32)])
def test_sets_of_any_kind(study, wrap):
    model, request, _ = study
    x, y = request.dataset.tensors
    forget, retain = request.forget, request.retain
    parts = Request.from_sets(forget=wrap(x[forget], y[forget]), retain=wrap(x[retain], y[retain]))
    assert parts.forget.tolist() == list(range(len(forget)))
    outcome, expected = SSD(alpha=3.0)(model, parts), SSD(alpha=3.0)(model, request)
    for a, b in zip(outcome.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    fixed = Request.from_sets(
        forget=wrap(x[forget], y[forget]), retain=wrap(x[retain], y[retain]), correction=wrap(x[forget], y[forget] - 1)
    )
    assert fixed.labels_only
    assert len(fixed.forget) == len(forget)


def test_errors(study):
    _, request, _ = study
    data = request.dataset
    with pytest.raises(ValueError, match="retain: holds 2 of the 3 samples of forget"):
        Request.from_sets(forget=Subset(data, [0, 1, 2]), retain=Subset(data, range(1, 100)))
    x, y = data.tensors
    with pytest.raises(ValueError, match="retain: holds 5 of the 5 samples"):
        Request.from_sets(forget=(x[:5], y[:5]), retain=(x, y))
    with pytest.raises(ValueError, match="correction: has 4 samples, expected 5"):
        Request.from_sets(forget=(x[:5], y[:5]), retain=(x[5:], y[5:]), correction=(x[:4], y[:4]))
    for bad in (
        lambda: SSD(alpha="automatic"),
        lambda: SSD(alpha=-1.0),
        lambda: SSD(fisher_type="labels"),
        lambda: RandomPerturbation(beta=math.nan),
        lambda: NegGrad(weight=1.5),
        lambda: SalUn(ratio=-0.1),
        lambda: SalUn(weight_decay=0.1),
        lambda: BadTeacher(retain_share=2.0),
        lambda: BadTeacher(temperature=0.0),
        lambda: SCRUB(epochs=0),
        lambda: StochasticTeacher(alpha=-1.0),
        lambda: FineTune(max_increase=-0.1),
        lambda: FineTune(batch_size=0),
        lambda: Pipeline([]),
    ):
        with pytest.raises(ValueError, match=r"is|expected"):
            bad()
    with pytest.raises(TypeError, match="stages: 3 is of type int, expected a Method"):
        Pipeline([3])
