"""K-FAC and EK-FAC against dense matrices, made of the gradients of single samples, in float64."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tests.curvature.zoo import ZOO, build, sample_gradients
from tests.helpers import Lines
from unlearnx.curvature import EKFAC, KFAC, Factors, fisher_diagonal
from unlearnx.curvature.kfac import layers
from unlearnx.curvature.kfac.blocks import DiagonalBlock, KroneckerBlock
from unlearnx.losses import cross_entropy

EXACT = dict(rtol=1e-8, atol=1e-10)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
HOOKED = ["mlp", "sequence", "cnn", "conv1d", "residual", "embedding", "shared layer"]


def rows_of(module, x, dy):
    """Inputs (T, I) with a one for the bias, and output gradients (T, O), of one sample and one call of a module."""
    if isinstance(module, nn.Embedding):
        keep = x.flatten() != (-1 if module.padding_idx is None else module.padding_idx)
        return F.one_hot(x.flatten(), module.num_embeddings).double()[keep], dy.reshape(-1, dy.shape[-1])[keep]
    if isinstance(module, nn.Linear):
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    else:
        if isinstance(module, nn.Conv1d):
            x, dy = x.unsqueeze(2), dy.unsqueeze(2)
        padding = (0, *module.padding)[-2:]
        window, dilation, stride = ((1, *v)[-2:] for v in (module.kernel_size, module.dilation, module.stride))
        x = F.unfold(x, window, dilation, padding, stride)[0].T
        dy = dy[0].flatten(1).T
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    return (x if module.bias is None else torch.cat([x, ones], 1)), dy


def recorder(calls, n):
    """A hook that notes a module's calls; what follows may change a copy of its output in place."""

    def hook(module, inputs, output):
        calls.append((n, module, inputs[0].detach().clone(), output))
        return output.clone()

    return hook


def dense_blocks(model, x, y, approximation, targets):
    """For every layer G (x) A as a matrix over [weight | bias], each row of a unit followed by its bias.

    Of a convolution in groups, the matrices of the groups side by side.

    `targets(output, y)` yields labels and a weight for each gradient of a sample.
    """
    modules = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}
    sums = {n: [[0, 0, 0] for _ in range(getattr(m, "groups", 1))] for n, m in modules.items()}
    for i in range(len(x)):
        calls = []
        hooks = [m.register_forward_hook(recorder(calls, n)) for n, m in modules.items()]
        output = model(x[i : i + 1])
        for hook in hooks:
            hook.remove()
        for k, (label, weight) in enumerate(targets(output.detach(), y[i : i + 1])):
            loss = F.cross_entropy(output, label)
            gradients = torch.autograd.grad(
                loss, [c[3] for c in calls], retain_graph=True, materialize_grads=True, allow_unused=True
            )
            found = {}
            for (n, m, a, _), dy in zip(calls, gradients, strict=True):
                groups = zip(*(t.chunk(len(sums[n]), 1) if len(sums[n]) > 1 else [t] for t in (a, dy)), strict=True)
                for j, (a_j, dy_j) in enumerate(groups):
                    found.setdefault((n, j), []).append(rows_of(m, a_j, dy_j))
            for (n, j), parts in found.items():
                a, dy = (torch.cat(t) for t in zip(*parts, strict=True))
                if approximation == "reduce" and not isinstance(model.get_submodule(n), nn.Embedding):
                    a, dy = a.mean(0, keepdim=True), dy.sum(0, keepdim=True)
                if k == 0:
                    sums[n][j][0] += a.T @ a
                    sums[n][j][1] += len(a)
                sums[n][j][2] += weight * dy.T @ dy
    return {n: torch.block_diag(*(torch.kron(g / len(x), a / t) for a, t, g in sums[n])) for n in modules}


def empirical(output, y):
    yield y, 1.0


def exact(output, y):
    for c, p in enumerate(output.softmax(1)[0]):
        yield torch.tensor([c]), p


def dense(factors, model, n):
    """The block of a module as a matrix, by products with the unit vectors, in the order of :func:`dense_blocks`."""
    module = model.get_submodule(n)
    names = [f"{n}.weight".removeprefix(".")]
    if getattr(module, "bias", None) is not None:
        names.append(f"{n}.bias")
    size = sum(model.get_parameter(name).numel() for name in names)

    def vector(rows):
        weight = model.get_parameter(names[0])
        if isinstance(module, nn.Embedding):
            parts = {names[0]: rows.view(len(rows), *weight.shape[::-1]).mT}
        else:
            matrix = rows.view(len(rows), len(weight), -1)
            inputs = weight[0].numel()
            parts = {names[0]: matrix[:, :, :inputs].reshape(len(rows), *weight.shape)}
            if len(names) > 1:
                parts[names[1]] = matrix[:, :, inputs]
        others = {name: torch.zeros(len(rows), *p.shape).to(p) for name, p in model.named_parameters()}
        return {name: parts.get(name, zero) for name, zero in others.items()}

    def rows(v):
        weight = v[names[0]]
        if isinstance(module, nn.Embedding):
            return weight.mT.flatten(1)
        matrix = weight.flatten(2)
        return (torch.cat([matrix, v[names[1]].unsqueeze(2)], 2) if len(names) > 1 else matrix).flatten(1)

    product = factors.matvec(vector(torch.eye(size, dtype=torch.float64)))
    outside = [t for name, t in product.items() if name not in names]
    assert all((t == 0).all() for t in outside)
    return rows(product)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("name", HOOKED)
def test_kfac_is_the_dense_kronecker_product(name, approximation):
    model, x, y = build(name)
    for fisher_type, targets in (("empirical", empirical), ("exact", exact)):
        fit = KFAC(approximation=approximation, fisher_type=fisher_type).fit
        factors = fit(model, F.cross_entropy, (x, y), batch_size=4)
        for n, expected in dense_blocks(model, x, y, approximation, targets).items():
            torch.testing.assert_close(dense(factors, model, n), expected, **EXACT)


def in_basis(block, gradients):
    """Mean squares of the samples' gradients in the basis of a block."""
    m = block.out.mT @ block.layer.matrices(gradients)
    return (m if block.into is None else m @ block.into).square().mean(0)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("name", ZOO)
def test_eigenvalues_are_the_true_ones(name, approximation):
    """In its basis the diagonal of EK-FAC is that of the Fisher information, for every layer of every model."""
    model, x, y = build(name)
    factors = EKFAC(approximation=approximation).fit(
        model, F.cross_entropy, (x, y), fisher_type="empirical", batch_size=4
    )
    gradients = sample_gradients(model, F.cross_entropy, x, y)
    fisher = fisher_diagonal(model, F.cross_entropy, (x, y))
    for block in factors.blocks:
        if isinstance(block, KroneckerBlock):
            torch.testing.assert_close(block.values, in_basis(block, gradients), **EXACT)
            eye = torch.eye(block.out.shape[-1], dtype=torch.float64).expand_as(block.out)
            torch.testing.assert_close(block.out.mT @ block.out, eye, rtol=0, atol=1e-12)
        else:
            torch.testing.assert_close(block.values, fisher[block.name], **EXACT)
    assert sorted(n for b in factors.blocks for n in b.names) == sorted(fisher)
    assert factors.trace() == pytest.approx(sum(float(t.sum()) for t in fisher.values()), rel=1e-10)
    for n, t in factors.fisher_diagonal.items():
        torch.testing.assert_close(t, fisher[n], **EXACT)


def test_which_parameters_have_factors():
    """A bias joins its weight; norms and what goes through vmap have their diagonals."""

    def diagonal(name):
        model, x, y = build(name)
        blocks = KFAC().fit(model, F.cross_entropy, (x, y)).blocks
        return {b.name for b in blocks if isinstance(b, DiagonalBlock)}, {b.names for b in blocks}

    assert diagonal("mlp") == (set(), {("0.weight", "0.bias"), ("2.weight", "2.bias")})
    assert diagonal("cnn")[0] == {f"{k}.{p}" for k in (1, 4, 7) for p in ("weight", "bias")}
    assert diagonal("attention")[0] == {"norm.weight", "norm.bias"}
    assert ("cells.weight_hh_l0", "cells.bias_hh_l0") in diagonal("gru")[1]
    assert diagonal("lstm") == (set(), diagonal("lstm")[1])
    assert diagonal("unknown")[0] == {"scale"}


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_groups_of_a_convolution(approximation, tmp_path):
    """Every group has factors of its own, with and without bias, in one dimension and two; a file keeps them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, stride=2, groups=2, bias=False), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1, groups=6)),
        *(nn.Flatten(2), nn.Conv1d(6, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)),
    ).double()
    x, y = torch.randn(9, 2, 5, 5, dtype=torch.float64), torch.arange(9) % 3
    fit = KFAC(approximation=approximation, fisher_type="empirical").fit
    factors = fit(model, F.cross_entropy, (x, y), batch_size=4)
    for n, expected in dense_blocks(model, x, y, approximation, empirical).items():
        torch.testing.assert_close(dense(factors, model, n), expected, **EXACT)
    assert not any(isinstance(block, DiagonalBlock) for block in factors.blocks)
    v = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    w = factors.solve(factors.matvec(v, damping=0.1), damping=0.1)
    torch.testing.assert_close(w, v)
    if approximation == "expand":
        pytest.importorskip("safetensors")
        factors.save(tmp_path / "factors")
        torch.testing.assert_close(Factors.load(tmp_path / "factors", model).solve(v, 0.1), factors.solve(v, 0.1))

    unlabelled = torch.cat([y, torch.full((3,), -100)])  # whose images count in no factor
    longer = fit(model, F.cross_entropy, (torch.cat([x, torch.randn(3, 2, 5, 5).double()]), unlabelled), batch_size=5)
    for block, other in zip(factors.blocks, longer.blocks, strict=True):
        torch.testing.assert_close(block.values, other.values * 12 / 9, **EXACT)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["mlp", "sequence", "conv1d"])
def test_many_outputs_have_factors_by_blocks(name, approximation, monkeypatch, tmp_path):
    """With at most two outputs a factor, products of outputs in different blocks are left out, and nothing else."""
    monkeypatch.setattr(layers, "MOST_OUTPUTS", 2)
    model, x, y = build(name)
    settings = dict(fisher_type="empirical", batch_size=4)
    factors = KFAC(approximation=approximation).fit(model, F.cross_entropy, (x, y), **settings)
    for n, whole in dense_blocks(model, x, y, approximation, empirical).items():
        outputs = len(model.get_submodule(n).weight)
        block = torch.arange(outputs) // -(-outputs // -(-outputs // 2))
        together = (block[:, None] == block).repeat_interleave(len(whole) // outputs, 0)
        together = together.repeat_interleave(len(whole) // outputs, 1)
        torch.testing.assert_close(dense(factors, model, n), whole * together, **EXACT)
    gradients = sample_gradients(model, F.cross_entropy, x, y)
    corrected = EKFAC(approximation=approximation).fit(model, F.cross_entropy, (x, y), **settings)
    for block in corrected.blocks:
        if isinstance(block, KroneckerBlock):
            torch.testing.assert_close(block.values, in_basis(block, gradients), **EXACT)
    pytest.importorskip("safetensors")
    v = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    corrected.save(tmp_path / "factors")
    torch.testing.assert_close(Factors.load(tmp_path / "factors", model).solve(v, 0.1), corrected.solve(v, 0.1))


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("name", ["mlp", "residual", "attention"])
def test_functions_of_the_factors(kind, name):
    model, x, y = build(name)
    factors = kind().fit(model, F.cross_entropy, (x, y), fisher_type="exact")
    params = dict(model.named_parameters())
    size = sum(p.numel() for p in params.values())
    units, start = {}, 0
    for n, p in params.items():
        units[n] = torch.eye(size, dtype=torch.float64)[:, start : start + p.numel()].view(size, *p.shape)
        start += p.numel()

    def matrix(v):
        return torch.cat([v[n].flatten(1) for n in params], 1)

    whole = matrix(factors.matvec(units))
    damped = whole + 0.1 * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(whole, whole.T, **EXACT)
    torch.testing.assert_close(matrix(factors.matvec(units, damping=0.1)), damped, **EXACT)
    torch.testing.assert_close(matrix(factors.solve(units, 0.1)), damped.inverse(), **EXACT)
    root = matrix(factors.sqrt_solve(units, 0.1))
    torch.testing.assert_close(root @ root, damped.inverse(), **EXACT)
    assert factors.trace() == pytest.approx(float(whole.trace()), rel=1e-10)
    diagonal = torch.cat([t.flatten() for t in factors.diagonal().values()])
    torch.testing.assert_close(diagonal, whole.diagonal(), **EXACT)
    single = factors.solve({n: t[3] for n, t in units.items()}, 0.1)
    torch.testing.assert_close(torch.cat([single[n].flatten() for n in params]), damped.inverse()[3], **EXACT)


class Positions(nn.Module):
    """A score for every position of a sequence, without exchange between positions."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.last = nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 7)

    def forward(self, x):
        return self.last(torch.tanh(self.hidden(self.embedding(x)))).mT


def sequences(*lengths):
    """Tokens and labels of sequences of these lengths."""
    torch.manual_seed(1)
    return [(torch.randint(7, (n,)), torch.randint(7, (n,))) for n in lengths]


def padded(texts, length):
    x = torch.stack([F.pad(x, (0, length - len(x))) for x, _ in texts])
    return x, torch.stack([F.pad(y, (0, length - len(y)), value=-100) for _, y in texts])


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_padding_counts_in_no_factor(kind, approximation):
    """Sequences padded to one length have the factors of the same sequences without padding."""
    torch.manual_seed(0)
    model, texts = Positions().double(), sequences(3, 5, 2, 5, 7, 4, 8, 6)  # enough for full rank
    fit = kind(fisher_type="empirical", approximation=approximation).fit
    longer = fit(model, cross_entropy, padded(texts, 8))
    one_by_one = DataLoader(
        Lines(*zip(*texts, strict=True)), batch_size=1, collate_fn=lambda t: padded(t, max(len(x) for x, _ in t))
    )
    plain = fit(model, cross_entropy, one_by_one)
    diagonals(longer, plain)


def diagonals(got, expected, factor=1.0):
    for a, b in zip(got.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(a.values * factor, b.values, **EXACT)
        torch.testing.assert_close(abs(a.out.T @ b.out).sum(0) > 1 - 1e-6, torch.ones(len(b.out)) > 0)
    for n, t in got.diagonal().items():
        torch.testing.assert_close(t * factor, expected.diagonal()[n], **EXACT)


def test_packed_is_padded():
    """Texts one after another in a row have the covariances of the same texts padded, one a row.

    The loss of a row is the sum over its texts, so that half the rows have twice the curvature.
    """
    torch.manual_seed(0)
    model, texts = Positions().double(), sequences(3, 5, 2, 6)
    packed = [tuple(torch.cat(t) for t in zip(*pair, strict=True)) for pair in (texts[:2], texts[2:])]

    def total(output, y):
        return F.cross_entropy(output, y, reduction="none").sum(1)

    fit = KFAC(fisher_type="empirical").fit
    one_a_row, in_rows = (fit(model, total, data) for data in (padded(texts, 8), padded(packed, 8)))
    diagonals(one_a_row, in_rows, 2.0)


def test_ignored_samples_count_in_no_factor():
    model, x, y = build("residual")
    labels = torch.cat([y, torch.full((3,), -100)])
    fit = KFAC().fit
    more = fit(model, F.cross_entropy, (torch.cat([x, 5 * x[:3]]), labels), fisher_type="exact")
    diagonals(more, fit(model, F.cross_entropy, (x, y), fisher_type="exact"), 12 / 9)


def test_labels_of_the_model():
    """Over many draws the mean is the expectation over all classes."""
    model, x, y = build("mlp")
    fit = EKFAC().fit
    expected = fit(model, F.cross_entropy, (x, y), fisher_type="exact").trace()
    many = (x.repeat(3000, 1), y.repeat(3000))
    drawn = fit(model, F.cross_entropy, many, generator=torch.Generator().manual_seed(0), batch_size=9000)
    assert drawn.trace() == pytest.approx(expected, rel=0.02)


def test_streams_and_batches_give_the_same_factors():
    model, x, y = build("residual")
    fit = EKFAC(fisher_type="exact").fit
    whole = fit(model, F.cross_entropy, (x, y))
    for data in (Lines(x, y), DataLoader(Lines(x, y), batch_size=2)):
        diagonals(fit(model, F.cross_entropy, data, batch_size=2), whole)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("fisher_type", "targets"), [("empirical", empirical), ("exact", exact)])
def test_windows_around_every_pixel(bias, fisher_type, targets):
    """Convolutions on images large enough that the patches are not made."""
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 3, padding=1, bias=bias), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 7 * 8, 4)
    model = nn.Sequential(*layers).double()
    x, y = torch.randn(5, 2, 7, 8, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 2])
    factors = KFAC(fisher_type=fisher_type).fit(model, F.cross_entropy, (x, y), batch_size=2)
    expected = dense_blocks(model, x, y, "expand", targets)
    torch.testing.assert_close(dense(factors, model, "0"), expected["0"], **EXACT)


@pytest.mark.parametrize("fisher_type", ["mc", "exact"])
def test_what_does_not_fit_into_memory_is_computed_again(fisher_type, monkeypatch):
    model, x, y = build("residual")

    def fit():
        generator = torch.Generator().manual_seed(0)
        return EKFAC(fisher_type=fisher_type).fit(model, F.cross_entropy, (x, y), batch_size=4, generator=generator)

    kept = fit()
    assert kept.info["passes"] == 1
    for share in (0, 1e-7):
        monkeypatch.setattr("unlearnx.curvature.kfac.kept.KEPT_MEMORY_FRACTION", share)
        again = fit()
        assert again.info["passes"] == 2
        diagonals(again, kept)


def test_frozen_first_part():
    model, x, y = build("cnn")
    factors = EKFAC(fisher_type="exact").fit(model, F.cross_entropy, (x, y), params="last:4")
    assert [b.names for b in factors.blocks] == [("6.weight", "6.bias"), ("7.weight",), ("7.bias",)]
    alone = {n: t for n, t in fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="exact").items() if "6" in n}
    assert float(factors.blocks[0].values.sum()) == pytest.approx(sum(float(t.sum()) for t in alone.values()))


def test_rank_deficient_and_repeated_eigenvalues():
    """Features that are constant, repeated or zero are ordinary."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.zeros(20, 6, dtype=torch.float64)
    x[:, 0], x[:, 1], x[:, 2] = 1, 1, torch.arange(20) % 2
    factors = EKFAC().fit(model, F.cross_entropy, (x, torch.arange(20) % 3))
    v = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    back = factors.matvec(factors.solve(v, 1e-3), 1e-3)
    for n, t in back.items():
        torch.testing.assert_close(t, v[n], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("approximation", ["expand", "reduce"])
def test_one_token_a_sample(approximation):
    """As the users and items of a recommender, with and without a dimension for it."""

    class Items(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = torch.nn.Embedding(5, 4, padding_idx=1), torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.o(self.e(x).view(len(x), 4).tanh())

    model, x, y = Items().double(), torch.arange(12) % 5, torch.arange(12) % 3
    fit = partial(EKFAC(approximation=approximation).fit, model, F.cross_entropy, fisher_type="exact")
    one, other = fit((x, y)).diagonal(), fit((x[:, None], y)).diagonal()
    exact = fisher_diagonal(model, F.cross_entropy, (x, y), fisher_type="exact")
    for name, t in one.items():
        torch.testing.assert_close(t, other[name])
    torch.testing.assert_close(sum(t.sum() for t in one.values()), sum(t.sum() for t in exact.values()))


def test_layers_of_two_dtypes():
    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.double()

    model = torch.nn.Sequential(torch.nn.Linear(4, 5), Wide(), torch.nn.Linear(5, 3).double())
    factors = EKFAC().fit(model, F.cross_entropy, (torch.randn(9, 4), torch.arange(9) % 3), fisher_type="exact")
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    for name, t in factors.solve(factors.matvec(v, 0.1), 0.1).items():
        assert t.dtype == v[name].dtype
        torch.testing.assert_close(t, v[name], rtol=1e-4, atol=1e-5)


def test_single_precision_is_close():
    model, x, y = build("residual")
    fit = EKFAC(fisher_type="exact").fit
    exact_diagonal = fit(model, F.cross_entropy, (x, y)).diagonal()
    single = fit(model.float(), F.cross_entropy, (x.float(), y)).diagonal()
    for n, t in exact_diagonal.items():
        assert single[n].dtype == torch.float32
        assert (single[n] - t).norm() <= 1e-3 * t.norm()


def test_not_finite_names_layer_and_batch():
    model, x, y = build("mlp")
    x[5, 0] = math.inf
    with pytest.raises(ValueError, match=r"covariances of '0\.weight': values are NaN or infinite in the batch from"):
        EKFAC(fisher_type="empirical").fit(model, lambda o, y: o.nan_to_num().square().sum(1), (x, y), batch_size=4)


def test_bad_arguments():
    with pytest.raises(ValueError, match="fisher_type is 'batch', expected one of mc, exact, empirical"):
        EKFAC(fisher_type="batch")
    with pytest.raises(ValueError, match="approximation is 'sum', expected one of expand, reduce"):
        KFAC(approximation="sum")
    model, x, y = build("mlp")
    factors = KFAC().fit(model, F.cross_entropy, (x, y))
    v = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    for damping in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="damping is"):
            factors.solve(v, damping)
    with pytest.raises(ValueError, match="v: has keys"):
        factors.solve({"other": torch.ones(2)}, 0.1)


@pytest.mark.parametrize("name", ["residual", "embedding", "attention"])
def test_saved_factors_are_the_same(name, tmp_path):
    pytest.importorskip("safetensors")
    model, x, y = build(name)
    factors = EKFAC().fit(model, F.cross_entropy, (x, y))
    factors.save(tmp_path / "beside" / "factors.safetensors")
    loaded = Factors.load(tmp_path / "beside" / "factors.safetensors", model)
    v = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    for n, t in factors.solve(v, 0.1).items():
        assert torch.equal(t, loaded.solve(v, 0.1)[n])
    for n, t in factors.fisher_diagonal.items():
        assert torch.equal(t, loaded.fisher_diagonal[n])
    assert loaded.info == factors.info


def test_stale_factors_are_refused(tmp_path):
    pytest.importorskip("safetensors")
    model, x, y = build("cnn")
    file = tmp_path / "factors.safetensors"
    EKFAC().fit(model, F.cross_entropy, (x, y)).save(file)
    model[1].running_mean[0] += 1e-9
    with pytest.raises(ValueError, match="were fitted for a model with other parameters or buffers"):
        Factors.load(file, model)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        Factors.load(file, model)
    with pytest.raises(FileNotFoundError):
        Factors.load(tmp_path / "none", model)
