import numpy as np
import pytest
import scipy.sparse as sp
import torch

from unlearnx.methods.design_matrix import MAX_DENSE_COLUMNS, DenseDesign, SparseDesign, as_design


def matrix(n=40, p=12, *, signs=True):
    x = torch.randn(n, p, dtype=torch.float64) * (torch.rand(n, p) < 0.3)
    x[3], x[:, 2] = 0, 0
    return x if signs else x.abs()


FORMS = {
    "dense": lambda x: x,
    "float32": lambda x: x.float(),
    "array": lambda x: x.numpy(),
    "csr": lambda x: x.to_sparse_csr(),
    "coo": lambda x: x.to_sparse_coo(),
    "csc": lambda x: x.to_sparse_csc(),
    "scipy csr": lambda x: sp.csr_array(x.numpy()),
    "scipy coo": lambda x: sp.coo_matrix(x.numpy()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 5])
def test_products(form, k):
    x = matrix()
    design = as_design(FORMS[form](x))
    assert isinstance(design, DenseDesign if form in ("dense", "float32", "array") else SparseDesign)
    tolerance = dict(atol=1e-6, rtol=1e-5) if form == "float32" else {}
    v, u = torch.randn(12, k, dtype=torch.float64), torch.randn(40, k, dtype=torch.float64)
    torch.testing.assert_close(design.times(v), x @ v, **tolerance)
    torch.testing.assert_close(design.transposed_times(u), x.T @ u, **tolerance)
    torch.testing.assert_close(design.squared_norms(), x.square().sum(1), **tolerance)
    torch.testing.assert_close(design.single.times(v.float()), (x @ v).float())
    torch.testing.assert_close(design.single.transposed_times(u.float()), (x.T @ u).float())
    rows = torch.tensor([7, 3, 39, 0])
    torch.testing.assert_close(design.rows(rows).times(v), x[rows] @ v, **tolerance)
    torch.testing.assert_close(design.rows(rows).transposed_times(u[:4]), x[rows].T @ u[:4], **tolerance)


@pytest.mark.parametrize("p", [12, MAX_DENSE_COLUMNS + 44])
@pytest.mark.parametrize("signs", [True, False])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_spectral_norm_is_bounded_from_above(p, signs, form):
    x = matrix(60, p, signs=signs)
    norm = float(torch.linalg.matrix_norm(x, 2))
    bound = as_design(FORMS[form](x)).spectral_norm_bound()
    assert norm <= bound <= float(x.norm()) * (1 + 1e-9)
    if p <= MAX_DENSE_COLUMNS or not signs:
        assert bound <= norm * (1 + 1e-4)


def test_spectral_norm_of_separate_blocks():
    """Power iteration sees the largest block only; the bound has to hold all the same."""
    x = torch.block_diag(torch.full((20, MAX_DENSE_COLUMNS), 0.1), torch.full((400, 3), 0.2)).double()
    norm = float(torch.linalg.matrix_norm(x, 2))
    assert norm <= as_design(x).spectral_norm_bound() <= 1.001 * norm


def test_empty_matrix_has_norm_zero():
    assert as_design(torch.zeros(3, MAX_DENSE_COLUMNS + 1)).spectral_norm_bound() <= 1e-100


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0]], TypeError, "x: is list"),
        (torch.zeros(3), ValueError, r"shape \[3\]"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "1 of 2 values are NaN"),
        (sp.csr_array(np.array([[1.0, np.inf]])), ValueError, "1 of 2 values are NaN"),
    ],
)
def test_clear_errors(x, error, message):
    with pytest.raises(error, match=message):
        as_design(x)
