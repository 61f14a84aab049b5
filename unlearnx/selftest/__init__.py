"""Self-test: runs every op on every device of this machine and compares it with plain torch in float64."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearnx import build_info, ops
from unlearnx._random import forked_random
from unlearnx.selftest.cases import CASES

__all__ = ["Check", "check", "run"]

# Largest allowed error by the dtype of a result, relative to the norm of the expected result; counts must be exact.
MAX_RELATIVE_ERROR = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
    torch.int64: 0.0,
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Check:
    """The result of checking one op with one dtype on one device.

    Attributes:
        error: the largest relative error of the op's results: the norm of the difference from the expected result,
            divided by the norm of the expected result.
        problem: what is wrong; None where the op passed.
    """

    op: str
    device: str
    dtype: torch.dtype
    error: float = math.nan
    problem: str | None = None


def check(op: str, device: torch.device, dtype: torch.dtype) -> Check:
    """Call one op and compare it with its reference. Any exception that it raises counts as a failure."""
    where = (op, str(device), dtype)
    if op not in CASES:
        return Check(*where, problem="has no case in unlearnx/selftest/cases.py")
    worst = 0.0
    try:
        with forked_random(seed=0):
            for i, (got, expected) in enumerate(CASES[op](dtype, device)):
                error = _error(got, expected)
                worst = max(worst, error)
                if not error <= MAX_RELATIVE_ERROR[got.dtype]:
                    problem = f"result {i} is off by {error:.1e}, expected at most {MAX_RELATIVE_ERROR[got.dtype]:.0e}"
                    return Check(*where, worst, problem)
    except Exception as error:
        return Check(*where, problem=f"raised {type(error).__name__}: {error}")
    return Check(*where, worst)


def run(show: Callable[[str], None] = print) -> bool:
    """Test every op of `unlearnx.ops` with every dtype on the CPU and on every GPU, and show a table of the errors.

    Args:
        show: called with each line of the table.

    Returns:
        True if no op failed.
    """
    begin = time.perf_counter()
    names = sorted(ops.__all__)
    failures: list[Check] = []
    show(f"unlearnx {build_info()['version']}, torch {torch.__version__}: errors relative to float64")
    for device in devices():
        show(f"{device!s:<24}" + "".join(f"{_short(dtype):>10}" for dtype in DTYPES))
        for name in names:
            checks = [check(name, device, dtype) for dtype in DTYPES]
            show(f"{name:<24}" + "".join(f"{f'{c.error:.1e}' if c.problem is None else 'FAILED':>10}" for c in checks))
            failures += [c for c in checks if c.problem is not None]
    for c in failures:
        show(f"FAILED {c.op} on {c.device} in {_short(c.dtype)}: {c.problem}")
    seconds = time.perf_counter() - begin
    show(f"{len(names)} ops on {len(devices())} devices in {seconds:.1f} s: {len(failures) or 'no'} failures")
    return not failures


def devices() -> list[torch.device]:
    """The CPU, and every GPU that torch sees."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _error(got: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm; infinite where shapes differ or NaNs are not in the same places."""
    got, expected = got.detach().cpu().double(), expected.detach().cpu().double()
    if got.shape != expected.shape or not torch.equal(got.isnan(), expected.isnan()):
        return math.inf
    difference = (got - expected).nan_to_num(posinf=math.inf).norm()
    return 0.0 if difference == 0 else (difference / expected.nan_to_num().norm()).item()
