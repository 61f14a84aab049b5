"""STREAM triad: the bandwidth that memory gives to a loop that does nothing else."""

import torch


def triad(n: int, device: str):
    """A call that reads two arrays of n float32 values and writes a third: 12 bytes a value.

    Torch's own add with its output given: vectorised, threaded, one pass.
    """
    a, b = torch.rand(n, device=device), torch.rand(n, device=device)
    out = torch.empty_like(a)
    return lambda: torch.add(a, b, alpha=3.0, out=out)
