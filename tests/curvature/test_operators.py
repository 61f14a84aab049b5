import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import build

from unlearnx.curvature import CurvatureOperator


def flat(vector):
    return torch.cat([t.flatten() for t in vector.values()])


def dense(model, x, y, kind, names=None):
    """The matrix itself, from explicit Jacobians and Hessians in float64."""
    params = {k: p.detach() for k, p in model.named_parameters()}
    names = names or list(params)
    sizes = [params[k].numel() for k in names]

    def outputs(theta):
        parts = dict(zip(names, theta.split(sizes), strict=True))
        shaped = {k: parts[k].view(params[k].shape) if k in parts else params[k] for k in params}
        return functional_call(model, shaped, (x,))

    theta = flat({k: params[k] for k in names})
    if kind == "hessian":
        return torch.autograd.functional.hessian(lambda t: F.cross_entropy(outputs(t), y), theta)
    jacobian = torch.autograd.functional.jacobian(outputs, theta)  # (N, C, P)
    p = outputs(theta).softmax(1)
    middle = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return torch.einsum("nap,nab,nbq->pq", jacobian, middle, jacobian) / len(x)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", ["mlp", "sequence", "attention", "shared layer"])
def test_matvec(name, kind, batch_size):
    model, x, y = build(name)
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, damping=0.3, batch_size=batch_size)
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        expected = dense(model, x, y, kind) @ flat(v) + 0.3 * flat(v)
    product = operator.matvec(v)
    torch.testing.assert_close(flat(product), expected, rtol=1e-8, atol=1e-10)
    assert {k: t.shape for k, t in product.items()} == {k: t.shape for k, t in v.items()}


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_frozen_prefix_runs_once(kind):
    model, x, y = build("mlp")
    names = ["2.weight", "2.bias"]
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, params="last:2")
    v = {k: torch.randn_like(model.get_parameter(k)) for k in names}
    for _ in range(3):
        product = operator.matvec(v)
    assert calls == [1]
    torch.testing.assert_close(flat(product), dense(model, x, y, kind, names) @ flat(v), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", ["mean", "sum", "none"])
def test_reduction_of_the_loss_does_not_matter(loss):
    model, x, y = build("mlp")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    expected = CurvatureOperator(model, F.cross_entropy, (x, y)).matvec(v)
    product = CurvatureOperator(model, lambda o, t: F.cross_entropy(o, t, reduction=loss), (x, y)).matvec(v)
    torch.testing.assert_close(flat(product), flat(expected))


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_top_eigenvalue(kind):
    model, x, y = build("mlp")
    expected = torch.linalg.eigvalsh(dense(model, x, y, kind))[-1].item()
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind)
    found = operator.top_eigenvalue(iterations=2000, tolerance=1e-9, generator=torch.Generator().manual_seed(0))
    assert found == pytest.approx(expected, rel=1e-3)


def test_minibatches_cover_the_data():
    model, x, y = build("mlp")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y))
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    batches = operator.minibatches(4, torch.Generator().manual_seed(0))
    parts = [next(batches) for _ in range(3)]
    assert [len(p) for p in parts] == [4, 4, 1]
    mean = sum(len(p) * flat(p.matvec(v)) for p in parts) / 9
    torch.testing.assert_close(mean, flat(operator.matvec(v)))
    assert torch.equal(next(batches).x, parts[0].x)


def test_linear_losses_have_no_curvature():
    model, x, y = build("mlp")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    operator = CurvatureOperator(model, lambda o, t: o.sum(1), (x, y), kind="ggn")
    assert flat(operator.matvec(v)).abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="newton"), "kind is 'newton', expected one of hessian, ggn"),
        (dict(damping=-1.0), "damping is -1.0"),
        (dict(damping=float("nan")), "damping is nan"),
    ],
)
def test_clear_errors(options, message):
    model, x, y = build("mlp")
    with pytest.raises(ValueError, match=message):
        CurvatureOperator(model, F.cross_entropy, (x, y), **options)


def test_wrong_vectors():
    model, x, y = build("mlp")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y))
    with pytest.raises(ValueError, match="v: has keys"):
        operator.matvec({"0.weight": torch.zeros(5, 6)})
    v = {k: torch.zeros(3) for k, _ in model.named_parameters()}
    with pytest.raises(ValueError, match=r"v\['0.weight'\] has shape \[3\], expected \[5, 6\]"):
        operator.matvec(v)
