"""Products of tall matrices and of the patches of images, against the plain ones in float64."""

import pytest
import torch
from torch.nn import functional as F

from unlearnx.curvature.kfac.gram import add_gram_, add_patch_gram_, mirror_, patch_sums, patches_pay_off


@pytest.mark.parametrize("columns", [1, 255, 257, 600])
def test_gram(columns):
    rows = torch.randn(30, columns, dtype=torch.float64)
    total = torch.ones(columns, columns, dtype=torch.float64)
    add_gram_(total, rows)
    mirror_(total)
    torch.testing.assert_close(total, rows.T @ rows + 1)


@pytest.mark.parametrize("size", [(6, 7), (1, 5), (2, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 3), (5, 3), (5, 5)])
@pytest.mark.parametrize("samples", [0, 3])
def test_patches(size, window, samples):
    """Windows larger than the images included."""
    kh, kw = window
    x = torch.randn(samples, 2, *size, dtype=torch.float64)
    shape = (samples, 2, kh * kw, size[0] * size[1])
    seen = F.unfold(x, window, padding=(kh // 2, kw // 2)).view(shape) if samples else x.new_zeros(shape)
    rows = seen.permute(0, 3, 2, 1).reshape(-1, 2 * kh * kw)
    total = torch.ones(2 * kh * kw, 2 * kh * kw, dtype=torch.float64)
    add_patch_gram_(total, x, window)
    mirror_(total)
    torch.testing.assert_close(total, rows.T @ rows + 1)
    torch.testing.assert_close(patch_sums(x, window), rows.sum(0))


def test_small_images_have_patches():
    assert patches_pay_off((8, 16, 8, 8), (3, 3))
    assert not patches_pay_off((8, 16, 2, 2), (3, 3))
    assert not patches_pay_off((8, 16, 8, 8), (1, 1))
