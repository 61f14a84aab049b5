"""What the kernels ask of torch that its stable ABI does not offer: operators that they call, defined in Python."""

from __future__ import annotations

import threading

import torch

AUTOCAST, PRODUCTS = 1, 2  # bits of what an op has switched off
LOWER = ("tf32", "bf16")

_lock = threading.Lock()
_inside = {"cpu": 0, "cuda": 0}  # ops that need torch's products of a device in full precision now
_precision_before = ""


def _enter_full_precision(cuda: bool) -> int:
    """Switches off what lets products of this thread leave float32; returns what is to be switched on again."""
    device, switched = "cuda" if cuda else "cpu", 0
    if torch.is_autocast_enabled(device):
        torch.set_autocast_enabled(device, False)
        switched |= AUTOCAST
    with _lock:  # products have no switch a thread: the last op to leave turns on what the first one turned off
        if _inside[device] or _reduced(device):
            if not _inside[device]:
                _switch_off(device)
            _inside[device] += 1
            switched |= PRODUCTS
    return switched


def _leave_full_precision(cuda: bool, switched: int) -> None:
    device = "cuda" if cuda else "cpu"
    if switched & AUTOCAST:
        torch.set_autocast_enabled(device, True)
    if switched & PRODUCTS:
        with _lock:
            _inside[device] -= 1
            if not _inside[device]:
                _switch_on(device)


def _precision(backend: str, op: str) -> str:
    return torch._C._get_fp32_precision_getter(backend, op)


def _reduced(device: str) -> bool:
    if device == "cuda":
        return _precision("cuda", "matmul") in LOWER
    return torch._C._get_mkldnn_enabled() and (
        _precision("mkldnn", "matmul") in LOWER or _precision("mkldnn", "conv") in LOWER
    )


def _switch_off(device: str) -> None:
    global _precision_before
    if device == "cuda":
        _precision_before = _precision("cuda", "matmul")
        torch._C._set_fp32_precision_setter("cuda", "matmul", "ieee")
    else:
        torch._C._set_mkldnn_enabled(False)


def _switch_on(device: str) -> None:
    if device == "cpu":
        torch._C._set_mkldnn_enabled(True)
        return
    torch._C._set_fp32_precision_setter("cuda", "matmul", "none")  # what the switch for everything says
    if _precision("cuda", "matmul") != _precision_before:
        torch._C._set_fp32_precision_setter("cuda", "matmul", _precision_before)


def _convolution_settings() -> int:
    """What ``torch.conv2d`` calls cuDNN with: 1 for benchmark, 2 for deterministic, 4 for cuDNN at all."""
    cudnn = torch.backends.cudnn
    deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    return cudnn.benchmark + 2 * deterministic + 4 * cudnn.enabled


library = torch.library.Library("unlearnx", "FRAGMENT")
for _name, _schema in {
    "_enter_full_precision": "(bool cuda) -> int",
    "_leave_full_precision": "(bool cuda, int switched) -> ()",
    "_convolution_settings": "() -> int",
}.items():
    library.define(_name + _schema)
    library.impl(_name, globals()[_name], "CompositeExplicitAutograd")
