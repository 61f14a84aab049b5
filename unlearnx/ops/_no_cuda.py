"""In a build without CUDA every op says so when it gets CUDA tensors."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from unlearnx._extension import _C
from unlearnx.ops._switches import library


def _refusal(name: str):
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"{name}: this build of unlearnx has no CUDA kernels (it is for the CPU only): install a wheel tagged cu, "
            "or build with UNLEARNX_CUDA=1"
        )

    return refuse


if not _C.build_info()["cuda"]:
    for _name in torch._C._dispatch_get_all_op_names():
        if _name.startswith("unlearnx::") and not _name.startswith("unlearnx::_"):
            library.impl(_name.removeprefix("unlearnx::"), _refusal(_name), "CUDA")
