"""Loads the compiled extension; if it does not load, the error says why and which command rebuilds it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

REBUILD_COMMAND = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _installed_version() -> str:
    try:
        return version("unlearnx")
    except PackageNotFoundError:
        return "0+unknown"


def _release(torch_version: str) -> str:
    """The part of a torch version that must match for binary compatibility: '2.13' of '2.13.0+cpu'."""
    return ".".join(torch_version.split("+")[0].split(".")[:2])


def _describe_build(local_tag: str) -> str:
    return f"built as {local_tag}" if local_tag else "not compiled"


def _load():
    mismatch = f"this is torch {torch.__version__}: rebuild it in unlearnx's source folder with `{REBUILD_COMMAND}`."
    try:
        from unlearnx import _C  # type: ignore[attr-defined]
    except ImportError as error:
        built = _describe_build(__version__.partition("+")[2])
        raise ImportError(f"unlearnx is {built} and does not load ({error}); {mismatch}") from error
    built = _C.build_info()["torch"]
    if _release(built) != _release(torch.__version__):
        raise ImportError(f"unlearnx was built for torch {built}, but {mismatch}")
    return _C


__version__ = _installed_version()
_C = _load()


def build_info() -> dict[str, str | int | None]:
    """How the extension was compiled, and what it uses on this machine.

    Returns:
        ``version``, ``torch`` it was compiled for, ``cuda`` release and ``cuda_archs`` (None in CPU builds),
        ``compiler``, ``cpu_level`` (the instruction set that its kernels use on this processor) and
        ``threads`` (the number of threads of its parallel loops).
    """
    info = _C.build_info()
    return {
        "version": __version__,
        "torch": info["torch"],
        "cuda": info["cuda"] or None,
        "cuda_archs": info["cuda_archs"] or None,
        "compiler": info["compiler"],
        "cpu_level": info["cpu_level"],
        "threads": _C.threads_seen(),
    }
