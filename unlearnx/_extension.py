"""Loads the compiled part, or says in one sentence what is wrong with it and what mends it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."


def _installed_version() -> str:
    try:
        return version("unlearnx")
    except PackageNotFoundError:
        return "0+unknown"


def _release(torch_version: str) -> str:
    """The part of a torch version that binary compatibility hangs on: '2.13' of '2.13.0+cpu'."""
    return ".".join(torch_version.split("+")[0].split(".")[:2])


def _describe_build(local_tag: str) -> str:
    return f"built as {local_tag}" if local_tag else "not compiled"


def _load():
    mismatch = f"this is torch {torch.__version__}: rebuild it in unlearnx's source folder with `{REBUILD}`."
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
    """How the compiled part was made and what it sees here.

    Returns:
        ``version``, ``torch`` it was compiled for, ``cuda`` release and ``cuda_archs`` (None in CPU builds),
        ``compiler``, ``cpu_level`` (the instruction set its kernels resolve to on this processor) and
        ``threads`` (how many threads its parallel loops really get).
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
