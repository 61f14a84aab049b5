"""Calls that once crashed, or returned what was in memory: each is refused, by name, also where torch calls the op."""

import pytest
import torch

from unlearnx import ops

HUGE = 2**62
X, DY = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 4, 4)  # of a 3x3 convolution


def convolution(op="sq", raw=True, **settings):
    settings = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], **settings}
    call = getattr(torch.ops.unlearnx if raw else ops, f"conv2d_grad_{op}")
    return call(X, DY, **settings, **({"v": torch.randn(4, 3, 3, 3)} if op == "dot" else {}))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("op", ["diff", "sq", "sqnorm", "dot"])
@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation"])
@pytest.mark.parametrize("value", [[], (), [3, 3, 3], [-1, 1], [HUGE, HUGE], [HUGE, 1], [2**63 - 1] * 2])
def test_settings_of_convolutions(name, value, op, raw):
    with pytest.raises((ValueError, TypeError), match=rf"^conv2d_grad_{op}: .*"):
        convolution(op, raw, **{name: value})


@pytest.mark.parametrize("op", ["diff", "sq", "sqnorm", "dot"])
def test_convolutions_that_are_right(op):
    assert convolution(op) is not None


def lists(op, tensors, raw):
    call = getattr(torch.ops.unlearnx if raw else ops, op)
    return call(*tensors, *{"ssd_dampen_": (1.0, 1.0), "fisher_mask_": (0.5,), "lissa_step_": (0.1, 1.0)}[op])


LISTS = ["ssd_dampen_", "fisher_mask_", "lissa_step_"]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("op", LISTS)
@pytest.mark.parametrize("place", range(3))
def test_lists_on_two_devices(op, place, raw):
    tensors = [[torch.rand(5), torch.rand(3)] for _ in range(3)]
    tensors[place][1] = tensors[place][1].to("meta")
    before = tensors[0][0].clone()
    with pytest.raises(ValueError, match=rf"^{op}: "):
        lists(op, tensors, raw)
    assert torch.equal(tensors[0][0], before)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("op", LISTS)
@pytest.mark.parametrize("place", [1, 2])
def test_outputs_that_overlap_inputs(op, place, raw):
    base = torch.rand(6)
    tensors = [[base[1:]], [torch.rand(5)], [torch.rand(5)]]
    tensors[place] = [base[:-1]]
    before = base.clone()
    with pytest.raises((ValueError, RuntimeError), match=rf"^{op}: "):
        lists(op, tensors, raw)
    assert torch.equal(base, before)


@pytest.mark.parametrize("op", LISTS)
def test_outputs_that_overlap_themselves_or_each_other(op):
    for written in ([torch.rand(1).expand(4)], [(shared := torch.rand(6))[:4], shared[2:]]):
        others = [[torch.rand(4) for _ in written] for _ in range(2)]
        with pytest.raises((ValueError, RuntimeError), match=rf"^{op}: "):
            lists(op, [written, *others], False)


@pytest.mark.parametrize("index", [100, -101, HUGE])
def test_padding_index_of_embeddings(index):
    x, dy = torch.randint(7, (3, 4)), torch.randn(3, 4, 2)
    with pytest.raises((ValueError, IndexError), match=rf"^embedding_grad_sq: padding_idx is {index}"):
        ops.embedding_grad_sq(x, dy, num_embeddings=7, padding_idx=index)


@pytest.mark.parametrize("stride", [2, 1, 77])
def test_directions_with_odd_strides_where_a_dimension_is_one(stride):
    """Convolutions of torch's own give other numbers then, for images in channels-last order and several groups."""
    settings = {"kernel_size": (1, 3), "padding": (0, 1), "groups": 3}
    x, dy, v = torch.randn(3, 6, 5, 7), torch.randn(3, 3, 5, 7), torch.randn(3, 2, 1, 3)
    odd = torch.empty_strided(v.shape, (6, 1, stride, 2)).copy_(v)
    expected = ops.conv2d_grad_dot(x.double(), dy.double(), **settings, v=v.double())
    torch.testing.assert_close(ops.conv2d_grad_dot(x, dy, **settings, v=odd).double(), expected, rtol=1e-4, atol=1e-4)
