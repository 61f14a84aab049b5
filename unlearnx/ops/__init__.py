"""Fused torch ops: CPU and CUDA, registered as ``torch.ops.unlearnx.*``, usable under ``torch.compile``.

Every module of this package is one op family and lists its functions in ``__all__``; they are collected here,
so that a new op touches no file but its own.
"""

from importlib import import_module
from pkgutil import iter_modules

import unlearnx.ops._no_cuda  # noqa: F401  (with it the library of ops, which registers them)

__all__: list[str] = []

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        _family = import_module(f"{__name__}.{_module.name}")
        globals().update({name: getattr(_family, name) for name in _family.__all__})
        __all__.extend(_family.__all__)
