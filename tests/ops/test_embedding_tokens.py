"""Tokens that an embedding does not have: an error on the CPU, an assertion that nothing waits for elsewhere."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unlearnx import ops

TOKENS = 5
# A device without memory, in the place of one that cannot be read without waiting for it.
ELSEWHERE = torch._C.DispatchKeySet(torch._C.DispatchKey.XPU)


class Assertions(TorchDispatchMode):
    """Takes note of what is asserted on the device, and of what would wait for it."""

    def __init__(self):
        super().__init__()
        self.messages, self.waits = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._assert_async.msg:
            assert args[0].shape == ()
            self.messages.append(args[1])
        self.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", ["diff", "sq", "sqnorm", "dot"])
def test_tokens_are_asserted_on_the_device(kind, paired):
    x, dy = torch.zeros(3, 4, dtype=torch.long, device="meta"), torch.zeros(3, 4, 2, device="meta")
    pair = (x, dy) if paired else (None, None)
    v = {"v": torch.zeros(TOKENS, 2, device="meta")} if kind == "dot" else {}
    with Assertions() as seen:
        op = getattr(torch.ops.unlearnx, f"embedding_grad_{kind}").default
        op.redispatch(ELSEWHERE, x, dy, TOKENS, *pair, padding_idx=1, **v)
    names = ["x", "x_new"][: 1 + paired]
    assert seen.messages == [f"embedding_grad_{kind}: {name} has tokens outside of 0 to 4" for name in names]
    assert seen.waits == 0


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("token", [-1, TOKENS, TOKENS + 1])
@pytest.mark.parametrize("kind", ["diff", "sq", "sqnorm", "dot"])
def test_errors_on_the_cpu(kind, token, padding_idx):
    x, dy = torch.tensor([[0, token]]), torch.ones(1, 2, 3)
    v = {"v": torch.zeros(TOKENS, 3)} if kind == "dot" else {}
    with pytest.raises(IndexError, match=rf"embedding_grad_{kind}: x has tokens from .*, expected 0 to 4"):
        getattr(ops, f"embedding_grad_{kind}")(x, dy, TOKENS, padding_idx=padding_idx, **v)


@pytest.mark.cuda
@pytest.mark.parametrize("token", [-1, TOKENS, TOKENS + 1])
@pytest.mark.parametrize("kind", ["diff", "sq", "sqnorm", "dot"])
def test_errors_on_a_gpu(kind, token):
    """In a process of its own, which cannot use the GPU afterwards."""
    v = f", v=torch.zeros({TOKENS}, 3, device='cuda')" if kind == "dot" else ""
    code = (
        "import torch, unlearnx; x, dy = torch.tensor([[0, {}]]).cuda(), torch.ones(1, 2, 3).cuda(); "
        "unlearnx.ops.embedding_grad_{}(x, dy, {}{}); torch.cuda.synchronize()"
    )
    run = [sys.executable, "-c", code.format(token, kind, TOKENS, v)]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode != 0
    assert "device-side assert triggered" in result.stderr
