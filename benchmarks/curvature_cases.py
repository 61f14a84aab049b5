"""Other ways to curvature products of a mean cross-entropy, and to the solutions of systems with them.

`make(model, x, y)` gives `run(v)`: `v` and the product are lists of tensors like `model.parameters()`. The ways to
products with K vectors at once take and give tensors with one more axis, the first, of size K.
"""

import copy

import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import comparison
from benchmarks.comparison import GivesSomethingElse
from unlearnx.models import vgg_cifar10


def build_head(n, device="cpu", dtype=torch.float32):
    """The last six parameters of the VGG on features: what the published second-order update changes."""
    torch.manual_seed(0)
    head = nn.Sequential(*vgg_cifar10()[-4:]).eval().to(device, dtype)
    return head, torch.randn(n, 2048, device=device, dtype=dtype).relu(), torch.randint(10, (n,), device=device)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def like(model, vector):
    """The inverse of `flat`; leading axes stay."""
    parts = vector.split([p.numel() for p in model.parameters()], dim=-1)
    return [t.view(*vector.shape[:-1], *p.shape) for t, p in zip(parts, model.parameters(), strict=True)]


class Functions:
    """Output and loss as functions of the parameters."""

    def __init__(self, model, x, y):
        self.values = {name: p.detach() for name, p in model.named_parameters()}
        self.buffers = dict(model.named_buffers())
        self.model, self.x, self.y = model, x, y

    def output(self, values):
        return functional_call(self.model, (values, self.buffers), (self.x,))

    def loss_of(self, output):
        return F.cross_entropy(output, self.y)

    def loss(self, values):
        return self.loss_of(self.output(values))

    def named(self, v):
        return dict(zip(self.values, v, strict=True))

    def hessian(self, v):
        return list(jvp(grad(self.loss), (self.values,), (self.named(v),))[1].values())

    def ggn(self, v):
        output, back = vjp(self.output, self.values)
        tangent = jvp(self.output, (self.values,), (self.named(v),))[1]
        return list(back(jvp(grad(self.loss_of), (output,), (tangent,))[1])[0].values())


def _gradient(model, x, y, parameters):
    return torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)


def double_backward(model, x, y):
    """Gradient and its graph anew in each product."""
    parameters = list(model.parameters())
    return lambda v: torch.autograd.grad(_gradient(model, x, y, parameters), parameters, v)


def kept_graph(model, x, y):
    """The graph of one batch's gradient, held in memory for product after product."""
    parameters = list(model.parameters())
    gradient = _gradient(model, x, y, parameters)
    return lambda v: torch.autograd.grad(gradient, parameters, v, retain_graph=True)


def kept_graph_many(model, x, y):
    parameters = list(model.parameters())
    gradient = _gradient(model, x, y, parameters)
    return lambda v: torch.autograd.grad(gradient, parameters, v, retain_graph=True, is_grads_batched=True)


def jvp_of_grad(model, x, y):
    return Functions(model, x, y).hessian


def jvp_of_grad_many(model, x, y):
    return vmap(Functions(model, x, y).hessian)


def grad_of_jvp(model, x, y):
    functions = Functions(model, x, y)

    def run(v):
        slope = lambda values: jvp(functions.loss, (values,), (functions.named(v),))[1]  # noqa: E731
        return list(grad(slope)(functions.values).values())

    return run


def jvp_then_vjp(model, x, y):
    return Functions(model, x, y).ggn


def jvp_then_vjp_many(model, x, y):
    return vmap(Functions(model, x, y).ggn)


def _curvlinops(kind, model, x, y):
    import curvlinops

    operators = {"hessian": curvlinops.HessianLinearOperator, "ggn": curvlinops.GGNLinearOperator}
    # Its checks of the data would be a product of their own.
    options = dict(check_deterministic=False, num_data=len(x))
    return operators[kind](model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)], **options)


def curvlinops(kind):
    def make(model, x, y):
        operator = _curvlinops(kind, model, x, y)
        return lambda v: operator @ list(v)

    return make


def curvlinops_many(kind):
    """Its vectors lie along the last axis."""

    def make(model, x, y):
        operator = _curvlinops(kind, model, x, y)
        return lambda v: [t.movedim(-1, 0) for t in operator @ [t.movedim(0, -1) for t in v]]

    return make


def _dattri_loss(model, batch=None):
    """The loss in the form dattri differentiates: of a flat vector, and of the batch where it is not given here."""
    from dattri.func.utils import flatten_func

    buffers = dict(model.named_buffers())

    @flatten_func(model)
    def loss(values, *sampled):
        x, y = sampled or batch
        return F.cross_entropy(functional_call(model, (values, buffers), (x,)), y.long())

    return loss, flat(p.detach() for p in model.parameters())


def dattri(mode):
    def make(model, x, y):
        from dattri.func.hessian import hvp

        loss, values = _dattri_loss(model, (x, y))
        product = hvp(loss, mode=mode)
        return lambda v: like(model, product((values,), flat(v)))

    return make


def dattri_kept(model, x, y):
    from dattri.func.hessian import hvp_at_x

    loss, values = _dattri_loss(model, (x, y))
    product = hvp_at_x(loss, (values,))
    return lambda v: like(model, product(flat(v)))


def dattri_many(model, x, y):
    from dattri.func.hessian import hvp_at_x

    loss, values = _dattri_loss(model, (x, y))
    product = vmap(hvp_at_x(loss, (values,)))
    return lambda v: like(model, product(torch.cat([t.flatten(1) for t in v], dim=1)))


def _pydvl(kind, model):
    from pydvl.influence.torch import batch_operation

    operations = {"hessian": batch_operation.HessianBatchOperation, "ggn": batch_operation.GaussNewtonBatchOperation}
    return operations[kind](model, F.cross_entropy)


def pydvl(kind):
    """The same for one and for many vectors; tells them apart by their shapes."""

    def make(model, x, y):
        from pydvl.influence.torch.base import TorchBatch

        operation, names = _pydvl(kind, model), [name for name, _ in model.named_parameters()]

        def run(v):
            product = operation.apply_to_dict(TorchBatch(x, y), dict(zip(names, v, strict=True)))
            return [product[name].view_as(t) for name, t in zip(names, v, strict=True)]

        return run

    return make


def pydvl_kept(model, x, y):
    from pydvl.influence.torch.functional import create_hvp_function

    product = create_hvp_function(model, F.cross_entropy, [(x, y)], precompute_grad=True)
    return lambda v: like(model, product(flat(v))[0])


def eigenthings(kind):
    def make(model, x, y):
        from hessian_eigenthings import loss_fns, operators

        if kind == "hessian":
            operator = operators.HessianOperator(model, [(x, y)], loss_fns.supervised_loss(F.cross_entropy))
        else:
            of_output = loss_fns.supervised_loss_of_output(F.cross_entropy)
            operator = operators.GGNOperator(model, [(x, y)], loss_fns.supervised_forward, of_output)
        return lambda v: like(model, operator.matvec(flat(v)))

    return make


def backpack_hessian(model, x, y):
    from backpack.hessianfree.hvp import hessian_vector_product

    parameters = list(model.parameters())
    return lambda v: hessian_vector_product(F.cross_entropy(model(x), y), parameters, v)


def backpack_ggn(model, x, y):
    """Any module will do: this part of BackPACK needs no extension of it."""
    from backpack.hessianfree.ggnvp import ggn_vector_product

    def run(v):
        output = model(x)
        return ggn_vector_product(F.cross_entropy(output, y), output, model, v)

    return run


def backpack_kept(model, x, y):
    from backpack.hessianfree.ggnvp import ggn_vector_product

    output = model(x)
    loss = F.cross_entropy(output, y)
    return lambda v: ggn_vector_product(loss, output, model, v)


RIVALS = {
    "hessian": {
        "double backward": double_backward,
        "kept graph": kept_graph,
        "jvp of grad": jvp_of_grad,
        "grad of jvp": grad_of_jvp,
        "curvlinops": curvlinops("hessian"),
        "dattri": dattri("rev-rev"),
        "dattri, rev-fwd": dattri("rev-fwd"),
        "dattri, kept graph": dattri_kept,
        "pyDVL": pydvl("hessian"),
        "pyDVL, kept graph": pydvl_kept,
        "hessian-eigenthings": eigenthings("hessian"),
        "BackPACK": backpack_hessian,
    },
    "ggn": {
        "jvp then vjp": jvp_then_vjp,
        "curvlinops": curvlinops("ggn"),
        "pyDVL": pydvl("ggn"),
        "hessian-eigenthings": eigenthings("ggn"),
        "BackPACK": backpack_ggn,
        "BackPACK, kept graph": backpack_kept,
    },
}
# With K vectors at once. Those with a kept graph hold it for one batch: for many products with it, and all the while.
MANY = {
    "hessian": {
        "kept graph, batched": kept_graph_many,
        "vmap(jvp of grad)": jvp_of_grad_many,
        "curvlinops": curvlinops_many("hessian"),
        "dattri, kept graph": dattri_many,
        "pyDVL": pydvl("hessian"),
    },
    "ggn": {
        "vmap(jvp then vjp)": jvp_then_vjp_many,
        "curvlinops": curvlinops_many("ggn"),
        "pyDVL": pydvl("ggn"),
    },
}


def reference(kind, model, x, y):
    """By plain automatic differentiation in float64.

    A Hessian product backward twice, as torch.func gets some wrong with a LayerNorm: jvp(jacrev(f)), which curvlinops
    uses, and grad(jvp(f)).
    """
    double = copy.deepcopy(model).double()
    functions = Functions(double, x.double() if x.is_floating_point() else x, y)
    if kind == "ggn":
        return functions.ggn
    return double_backward(functions.model, functions.x, y)


def _plain_attention(run):
    """No other implementation of attention is differentiable twice."""

    def wrapped(v):
        with sdpa_kernel(SDPBackend.MATH):
            return run(v)

    return wrapped


def available(kind, model, x, y, k=None, names=None, tolerance=1e-3):
    """The rivals that are installed, take the model and give its products; what is wrong with the others.

    Args:
        kind: "hessian" or "ggn".
        model: in eval mode.
        x: inputs of the one batch.
        y: labels.
        k: number of vectors at once; None for products with one.
        names: of the rivals to look at; None for all of them.
        tolerance: error of each parameter's part of a product, relative to that part.
    """
    v = [torch.randn(*([] if k is None else [k]), *p.shape).to(p) for p in model.parameters()]
    product = _plain_attention(reference(kind, model, x[:4], y[:4]))
    rows = [v] if k is None else zip(*v, strict=True)
    expected = [torch.stack(parts) for parts in zip(*(product([t.double() for t in row]) for row in rows), strict=True)]

    def attempt(make):
        with sdpa_kernel(SDPBackend.MATH):
            got = make(copy.deepcopy(model), x[:4], y[:4])(v)
            run = make(copy.deepcopy(model), x, y)
        if not all((a - b.view_as(a)).norm() <= tolerance * b.norm() for a, b in zip(got, expected, strict=True)):
            raise GivesSomethingElse
        return _plain_attention(run)

    known = (RIVALS if k is None else MANY)[kind]
    return comparison.available({n: make for n, make in known.items() if names is None or n in names}, attempt)


def _damped(kind, model, x, y, damping):
    """curvlinops' operator plus a multiple of the identity, for which it has no class."""
    from curvlinops._torch_base import PyTorchLinearOperator

    operator = _curvlinops(kind, model, x, y)

    class Identity(PyTorchLinearOperator):
        SELF_ADJOINT, device, dtype = True, operator.device, operator.dtype

        def _matmat(self, vectors):
            return vectors

    shapes = [tuple(p.shape) for p in model.parameters()]
    return operator + damping * Identity(shapes, shapes)


def curvlinops_cg(kind):
    def make(model, x, y, damping, scale, iterations):
        from curvlinops import CGInverseLinearOperator

        # Its default tolerance is 1: ten iterations.
        options = dict(max_iter=iterations, tolerance=1e-12, eps=1e-30, stop_updating_after=1e-12)
        inverse = CGInverseLinearOperator(_damped(kind, model, x, y, damping), **options)
        return lambda v: inverse @ list(v)

    return make


def curvlinops_neumann(kind):
    """LiSSA on all of the data: the same series."""

    def make(model, x, y, damping, scale, iterations):
        from curvlinops import NeumannInverseLinearOperator

        matrix = _damped(kind, model, x, y, damping)
        inverse = NeumannInverseLinearOperator(matrix, num_terms=iterations, scale=1 / scale)
        return lambda v: inverse @ list(v)

    return make


def dattri_cg(model, x, y, damping, scale, iterations):
    from dattri.func.hessian import ihvp_cg

    loss, values = _dattri_loss(model, (x, y))
    solve = ihvp_cg(loss, max_iter=iterations, regularization=damping)
    return lambda v: like(model, solve((values,), flat(v))[0])


def dattri_lissa(model, x, y, damping, scale, iterations):
    """Not its `ihvp_at_x_lissa`, which passes batch size and number of repetitions on in the wrong order."""
    from dattri.func.hessian import ihvp_lissa

    loss, values = _dattri_loss(model)
    options = dict(batch_size=len(x), recursion_depth=iterations, damping=damping / scale, scaling=scale)
    solve = ihvp_lissa(loss, **options)
    labels = y.to(x.dtype)  # it wants a derivative by every argument
    return lambda v: like(model, solve((values, x, labels), flat(v), in_dims=(None, 0, 0))[0])


def pydvl_cg(model, x, y, damping, scale, iterations):
    from pydvl.influence.torch.operator import CgOperator, HessianOperator

    operator = HessianOperator(model, F.cross_entropy, [(x, y)])
    # Both tolerances are squared before they are compared with the norm of the residual.
    options = dict(rtol=1e-6, atol=1e-6, maxiter=iterations, warn_on_max_iteration=False)
    solver = CgOperator(operator, damping, **options)
    return lambda v: like(model, solver.apply(flat(v)).view(-1))


def pydvl_lissa(model, x, y, damping, scale, iterations):
    from pydvl.influence.torch.operator import LissaOperator
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    options = dict(maxiter=iterations, scale=scale, rtol=1e-12, warn_on_max_iteration=False)
    solver = LissaOperator(_pydvl("hessian", model), loader, damping, **options)
    return lambda v: like(model, solver.apply(flat(v)))


# `make(model, x, y, damping, scale, iterations)` gives `solve(v)`: x with (C + damping I) x = v. The scale, of LiSSA
# alone, exceeds half the largest eigenvalue of C + damping I.
SOLVERS = {
    "hessian": {
        "curvlinops, CG": curvlinops_cg("hessian"),
        "curvlinops, Neumann": curvlinops_neumann("hessian"),
        "dattri, CG": dattri_cg,
        "dattri, LiSSA": dattri_lissa,
        "pyDVL, CG": pydvl_cg,
        "pyDVL, LiSSA": pydvl_lissa,
    },
    "ggn": {
        "curvlinops, CG": curvlinops_cg("ggn"),
        "curvlinops, Neumann": curvlinops_neumann("ggn"),
    },
}
