from itertools import pairwise

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tests.curvature.zoo import ZOO, build
from tests.helpers import product_of
from unlearnx.curvature import CurvatureOperator, shared_state


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


def plain_product(model, x, y, v, kind):
    """The product by plain double backward."""
    parameters = list(model.parameters())
    unused = dict(allow_unused=True, materialize_grads=True)
    with sdpa_kernel(SDPBackend.MATH):
        output = model(x)
    loss = F.cross_entropy(output, y)
    if kind == "hessian":
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, **unused)
        return torch.autograd.grad(sum((g * t).sum() for g, t in zip(gradient, v, strict=True)), parameters, **unused)
    u = torch.zeros_like(output, requires_grad=True)
    transposed = torch.autograd.grad(output, parameters, u, create_graph=True, **unused)
    (tangent,) = torch.autograd.grad(sum((g * t).sum() for g, t in zip(transposed, v, strict=True)), u)
    p = output.detach().softmax(1)
    curved = (p * tangent - p * (p * tangent).sum(1, keepdim=True)) / len(x)
    return torch.autograd.grad(output, parameters, curved, **unused)


class WeightNorm(torch.nn.Module):
    """Weights computed from parameters, and a layer of which only the bias is trained."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 5))
        self.last = torch.nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.first(x).tanh())


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("name", [*ZOO, "weight norm"])
def test_matvec_of_every_layer(name, kind):
    if name == "weight norm":
        _, x, y = build("mlp")
        model = WeightNorm().double()
    else:
        model, x, y = build(name)
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    torch.backends.mha.set_fastpath_enabled(False)
    expected = plain_product(model, x, y, list(v.values()), kind)
    torch.backends.mha.set_fastpath_enabled(True)
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind)
    for _ in range(2):  # graphs newly recorded, then kept
        for (k, product), e in zip(operator.matvec(v).items(), expected, strict=True):
            torch.testing.assert_close(product, e, rtol=1e-8, atol=1e-10, msg=k)


class Unusual(torch.nn.Module):
    """Uses of layers that only torch's own functions support."""

    def __init__(self, use):
        super().__init__()
        self.a, self.b, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)
        self.scale, self.use = torch.nn.Parameter(torch.ones(2)), use
        self.register_buffer("turn", torch.randn(6, 6, dtype=torch.complex128))

    def forward(self, x):
        return self.last(self.use(self, self.a(x).tanh()))


def _inner_gradient(m, h):
    with torch.enable_grad():
        loss = m.b(m.a.weight).square().mean()  # not of the samples, which would influence each other
        step = torch.autograd.grad(loss, m.b.weight, create_graph=True)[0]
    return F.linear(h, m.b.weight - step)


def _input_gradient(m, h):
    with torch.enable_grad():
        return torch.autograd.grad(m.b(h).tanh().sum(), h, create_graph=True)[0]


UNUSUAL = {
    "checkpoint": lambda m, h: checkpoint(lambda z: m.b(z).tanh(), h, use_reentrant=False),
    "inner gradient": _inner_gradient,
    "inner gradient of inputs": _input_gradient,
    "complex": lambda m, h: F.linear(h.to(torch.complex128), m.turn).abs() * m.b.bias + m.b(h),
    "vmap": lambda m, h: torch.func.vmap(m.b)(h).tanh(),
    "one output": lambda m, h: m.b(h) * F.linear(h, m.b.bias)[:, None],
    "a sum of parameters": lambda m, h: m.b(h).tanh() * m.scale.sum(),
    "changed in place afterwards": lambda m, h: m.b(h).tanh() + h.clone().mul_(2),
}


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("use", UNUSUAL)
def test_unusual_uses(use, kind):
    _, x, y = build("mlp")
    model = Unusual(UNUSUAL[use]).double()
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    expected = plain_product(model, x, y, list(v.values()), kind)
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, damping=0.1)
    for (k, product), e in zip(operator.matvec(v).items(), expected, strict=True):
        torch.testing.assert_close(product, e + 0.1 * v[k], rtol=1e-8, atol=1e-10, msg=k)


def test_changes_that_make_it_invalid_are_refused():
    model, x, y = build("cnn")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    operator = CurvatureOperator(model, F.cross_entropy, (x, y))
    operator.matvec(v)
    model.train()
    with pytest.raises(ValueError, match="BatchNorm2d '1' is in train mode"):
        operator.matvec(v)
    model.eval()
    names = ["6.weight", "6.bias"]
    last = CurvatureOperator(model, F.cross_entropy, (x, y), params=names)
    last.matvec({k: v[k] for k in names})
    model[0].weight.data.mul_(2)
    with pytest.raises(ValueError, match="model: the part before the chosen parameters has changed"):
        last.matvec({k: v[k] for k in names})


def test_loaders_of_some_samples_are_refused():
    model, x, y = build("mlp")
    data = torch.utils.data.TensorDataset(x, y)
    for options in (dict(sampler=torch.utils.data.SubsetRandomSampler(range(4))), dict(drop_last=True)):
        loader = torch.utils.data.DataLoader(data, batch_size=2, **options)
        for params in (None, "last:2"):
            with pytest.raises(ValueError, match="expected one that visits each sample once"):
                CurvatureOperator(model, F.cross_entropy, loader, params=params)


def test_models_without_a_tensor_are_refused():
    class Named(torch.nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x).tolist()}

    _, x, y = build("mlp")
    model = Named(6, 3).double()
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    for kind in ("ggn", "hessian"):
        with pytest.raises(ValueError, match="model: returned dict for 3 samples, expected a tensor"):
            CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind).matvec(v)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("names", [["0.bias"], ["0.weight", "7.bias"], ["1.weight"], ["1.bias", "3.weight"]])
def test_some_parameters(names, kind):
    model, x, y = build("cnn")
    v = {k: torch.randn_like(p) if k in names else torch.zeros_like(p) for k, p in model.named_parameters()}
    expected = dict(zip(v, plain_product(model, x, y, list(v.values()), kind), strict=True))
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, params=names)
    product = operator.matvec({k: v[k] for k in names})
    for k in names:
        torch.testing.assert_close(product[k], expected[k], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
@pytest.mark.parametrize("keeps", [True, False])
def test_many_vectors(kind, keeps, monkeypatch):
    model, x, y = build("cnn")
    if not keeps:
        monkeypatch.setattr(shared_state, "KEPT_MEMORY_FRACTION", 0.0)
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, damping=0.2, batch_size=4)
    v = {k: torch.randn(5, *p.shape, dtype=p.dtype) for k, p in model.named_parameters()}
    products = operator.matmat(v)
    assert operator.evaluations == 5 * 9
    for k in range(5):
        one = operator.matvec({name: t[k] for name, t in v.items()})
        torch.testing.assert_close({name: t[k] for name, t in products.items()}, one)
    assert bool(operator.rows._kept) == keeps


def test_a_changed_model_is_noticed():
    """A kept graph is not used after any change of the model."""
    model, x, y = build("cnn")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y))
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}

    def check():
        fresh = CurvatureOperator(model, F.cross_entropy, (x, y)).matvec(v)
        torch.testing.assert_close(operator.matvec(v), fresh)
        return flat(fresh)

    products = [check()]
    model[0].weight.data.neg_()  # changes neither version nor norm
    products.append(check())
    model[1].running_mean.add_(1)
    products.append(check())
    model.load_state_dict({k: t * 1.5 for k, t in model.state_dict().items()})
    products.append(check())
    assert all((a - b).norm() > 1e-3 * a.norm() for a, b in pairwise(products))


class Counted(torch.utils.data.Dataset):
    """A dataset that counts its reads."""

    def __init__(self, x, y):
        self.x, self.y, self.reads = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads += 1
        return self.x[i], self.y[i]


def test_data_are_read_batch_by_batch(monkeypatch):
    model, x, y = build("cnn")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    expected = CurvatureOperator(model, F.cross_entropy, (x, y)).matvec(v)
    for share, reads in ((0.25, 9), (0.0, 18)):  # kept, or read again for every product
        monkeypatch.setattr(shared_state, "KEPT_MEMORY_FRACTION", share)
        data = Counted(x, y)
        operator = CurvatureOperator(model, F.cross_entropy, data, batch_size=4)
        assert data.reads <= 3  # to try the model on
        data.reads = 0
        for _ in range(2):
            torch.testing.assert_close(operator.matvec(v), expected)
        assert data.reads == reads
    loader = torch.utils.data.DataLoader(Counted(x, y), batch_size=2, shuffle=True)
    torch.testing.assert_close(CurvatureOperator(model, F.cross_entropy, loader).matvec(v), expected)
    part = next(CurvatureOperator(model, F.cross_entropy, loader).rows.minibatches(5, torch.Generator().manual_seed(0)))
    assert len(part) == 5
    assert flat(product_of(part, v)).isfinite().all()


def test_a_forward_that_asks_for_the_usual_order_of_memory():
    class Views(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = torch.nn.Conv2d(2, 4, 3), torch.nn.Linear(64, 3)

        def forward(self, x):
            return self.last(self.conv(x).tanh().view(len(x), -1))

    _, x, y = build("cnn")
    model = Views().double()
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    product = CurvatureOperator(model, F.cross_entropy, (x, y)).matvec(v)
    expected = plain_product(model, x, y, list(v.values()), "ggn")
    torch.testing.assert_close(list(product.values()), list(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    model, x, y = build("mlp")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    expected = CurvatureOperator(model, F.cross_entropy, (x, y)).matvec(v)
    product = CurvatureOperator(model.to(dtype), F.cross_entropy, (x.to(dtype), y)).matvec(v)
    assert all(t.dtype == dtype for t in product.values())
    error = (flat(product).double() - flat(expected)).norm()
    assert error <= (1e-5 if dtype == torch.float32 else 5e-2) * flat(expected).norm()


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_frozen_prefix_runs_once(kind):
    model, x, y = build("mlp")
    names = ["2.weight", "2.bias"]
    calls = []
    model[0].register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, params="last:2")
    v = {k: torch.randn_like(model.get_parameter(k)) for k in names}
    for _ in range(3):
        product = operator.matvec(v)
    assert calls.count(len(x)) == 1  # others are tries on a few samples
    torch.testing.assert_close(flat(product), dense(model, x, y, kind, names) @ flat(v), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", ["mean", "sum", "none"])
def test_reduction_of_the_loss_does_not_matter(loss):
    model, x, y = build("mlp")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    expected = CurvatureOperator(model, F.cross_entropy, (x, y)).matvec(v)
    product = CurvatureOperator(model, lambda o, t: F.cross_entropy(o, t, reduction=loss), (x, y)).matvec(v)
    torch.testing.assert_close(flat(product), flat(expected))


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_spectrum(kind, damping):
    model, x, y = build("mlp")
    expected = torch.linalg.eigvalsh(dense(model, x, y, kind)) + damping
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, damping=damping)
    generator = torch.Generator().manual_seed(0)
    assert operator.top_eigenvalue(tolerance=1e-6, generator=generator) == pytest.approx(expected[-1].item(), rel=1e-5)
    found = operator.smallest_eigenvalue(tolerance=1e-6, generator=generator)
    assert found == pytest.approx(expected[0].item(), abs=1e-5)
    rough = operator.spectrum(tolerance=0.05, generator=generator)
    assert rough.iterations < len(expected) / 2
    assert abs(rough.largest - expected[-1]) <= rough.largest_error + 1e-12
    assert abs(rough.smallest - expected[0]) <= 0.05 * expected[-1]


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_trace(kind):
    model, x, y = build("mlp")
    matrix = dense(model, x, y, kind) + 0.1 * torch.eye(53, dtype=torch.float64)
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), kind=kind, damping=0.1)
    found = operator.trace(samples=400, generator=torch.Generator().manual_seed(0))
    off_diagonal = matrix - matrix.diag().diag()
    deviation = (2 * off_diagonal.square().sum() / 400).sqrt()
    assert abs(found - matrix.trace()) <= 4 * deviation


def test_products_that_are_not_finite():
    model, x, y = build("mlp")
    x[3] = float("inf")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y))
    with pytest.raises(ValueError, match="the curvature product is not finite at iteration 1"):
        operator.top_eigenvalue()


def test_minibatches_cover_the_data():
    model, x, y = build("mlp")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), damping=0.1)
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    batches = operator.minibatches(4, torch.Generator().manual_seed(0))
    parts = [next(batches) for _ in range(3)]
    assert [len(p) for p in parts] == [4, 4, 1]
    mean = sum(len(p) * flat(p @ v) for p in parts) / 9
    assert operator.evaluations == 9
    torch.testing.assert_close(mean, flat(operator @ v))
    assert next(batches).rows is parts[0].rows  # the same matrices, with the graphs that they keep


def test_the_matrix_by_its_usual_names():
    """``@`` takes one vector or several; SciPy's operator is the same matrix, and SciPy's eigenvalues are ours."""
    linalg = pytest.importorskip("scipy.sparse.linalg")
    model, x, y = build("mlp")
    operator = CurvatureOperator(model, F.cross_entropy, (x, y), damping=0.1)
    v = {k: torch.randn(2, *p.shape, dtype=p.dtype) for k, p in model.named_parameters()}
    one = {k: t[0] for k, t in v.items()}
    torch.testing.assert_close(operator @ v, operator.matmat(v))
    torch.testing.assert_close(operator @ one, operator.matvec(one))
    matrix = operator.to_scipy()
    assert matrix.shape == operator.shape == (len(flat(one)), len(flat(one)))
    assert matrix.dtype == "float64"
    product = torch.from_numpy(matrix @ flat(one).numpy())
    torch.testing.assert_close(product, flat(operator @ one))
    both = torch.stack([flat({k: t[j] for k, t in v.items()}) for j in range(2)], 1)
    torch.testing.assert_close(torch.from_numpy(matrix @ both.numpy())[:, 0], product)
    torch.testing.assert_close(torch.from_numpy(matrix.T @ flat(one).numpy()), product)
    top = float(linalg.eigsh(matrix, k=1, return_eigenvectors=False)[0])
    assert operator.top_eigenvalue(tolerance=1e-6) == pytest.approx(top, rel=1e-4)


def test_linear_losses_have_no_curvature():
    model, x, y = build("mlp")
    v = {k: torch.randn_like(p) for k, p in model.named_parameters()}
    operator = CurvatureOperator(model, lambda o, t: o.sum(1), (x, y), kind="ggn")
    assert flat(operator.matvec(v)).abs().max() == 0


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (torch.nn.Linear(3, 4), torch.nn.MultiMarginLoss()),
        (torch.nn.EmbeddingBag(5, 4, mode="sum"), F.cross_entropy),
    ],
)
def test_functions_that_torch_does_not_differentiate_twice(model, loss, kind):
    x = torch.randn(6, 3) if isinstance(model, torch.nn.Linear) else torch.randint(5, (6, 3))
    operator = CurvatureOperator(model, loss, (x, torch.arange(6) % 4), kind=kind)
    with pytest.raises(ValueError, match=r"^model: it, or loss_fn, calls a function that torch cannot differentiate"):
        operator.matvec({k: torch.randn_like(p) for k, p in model.named_parameters()})


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
    v = {k: torch.zeros(2, *p.shape) for k, p in model.named_parameters()}
    with pytest.raises(ValueError, match="v: holds 2 vectors, expected one; matmat takes several"):
        operator.matvec(v)
    with pytest.raises(ValueError, match="v: holds no vectors"):
        operator.matmat({k: t[:0] for k, t in v.items()})
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        operator.minibatches(0)
    with pytest.raises(ValueError, match="v: is one vector, expected K"):
        operator.matmat({k: t[0] for k, t in v.items()})
