"""Loads the library of ops; if it does not load, the error says why and what mends it."""

from __future__ import annotations

import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

OLDEST_TORCH = (2, 10)  # whose stable ABI the library of ops is built for
LIBRARY = Path(__file__).with_name("_ops.abi3.so")
REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _installed_version() -> str:
    try:
        return version("unlearnx")
    except PackageNotFoundError:
        return "0+unknown"


def _obstacle(built_as: str) -> str | None:
    """Why a library does not load beside this torch, and the remedy; None where that is not known."""
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"unlearnx needs torch {oldest} or later, but this is torch {torch.__version__}: install a later one"
    if built_as.startswith("cu") and not torch.version.cuda:
        return (
            f"this unlearnx is built as {built_as}, with CUDA kernels, but this is torch {torch.__version__}, without "
            "CUDA: install a CUDA build of torch, or the wheel of unlearnx tagged cpu"
        )
    pythons = _other_pythons(LIBRARY.parent)
    if pythons:
        return (
            f"this unlearnx is built for Python {', '.join(pythons)}, but this is Python "
            f"{'.'.join(map(str, sys.version_info[:2]))}: install a wheel for it, or build one with PYTHONS=PATH_OF_IT"
        )
    return None


def _other_pythons(folder: Path) -> list[str]:
    """The Pythons that a wheel in `folder` has modules for, where this one is not among them."""
    found = [file.name.removeprefix("_C") for file in sorted(folder.glob("_C.*.so"))]
    if any(suffix in EXTENSION_SUFFIXES for suffix in found):
        return []
    tags = [re.match(r"\.cpython-3(\d+)", suffix) for suffix in found]
    return [f"3.{tag[1]}" for tag in tags if tag]


def _load():
    built_as = __version__.partition("+")[2]
    obstacle = _obstacle(built_as)
    if obstacle:
        raise ImportError(f"{obstacle}.")
    try:
        from unlearnx import _C  # type: ignore[attr-defined]

        _C.load(str(LIBRARY))
    except (ImportError, AttributeError) as error:  # the latter of a module from before the library was apart
        built = f"built as {built_as}" if built_as else "not compiled"
        raise ImportError(
            f"unlearnx is {built} and does not load ({error}); this is torch {torch.__version__}: rebuild it in "
            f"unlearnx's source folder with `{REBUILD}`."
        ) from error
    return _C


__version__ = _installed_version()
_C = _load()


def build_info() -> dict[str, str | int | None]:
    """How the library of ops was compiled, and what it uses on this machine.

    Returns:
        ``version``, the ``torch`` whose headers it was compiled with and the oldest that it runs beside
        (``torch_from``), ``cuda`` release and ``cuda_archs`` (None in CPU builds), ``compiler``, ``cpu_level`` (the
        instruction set that its kernels use on this processor) and ``threads`` (the number of threads of its parallel
        loops).
    """
    info = _C.build_info()
    return {
        "version": __version__,
        "torch": info["torch"],
        "torch_from": info["torch_from"],
        "cuda": info["cuda"] or None,
        "cuda_archs": info["cuda_archs"] or None,
        "compiler": info["compiler"],
        "cpu_level": info["cpu_level"],
        "threads": _C.threads_seen(),
    }
