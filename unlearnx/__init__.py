"""unlearnx: make trained PyTorch models forget, fast, and prove with numbers that they did."""

from unlearnx import attribution, curvature, losses, methods, metrics, nn, ops
from unlearnx._extension import __version__, build_info  # loads the compiled ops
from unlearnx.methods import Outcome, Request, forget

__all__ = [
    "Outcome",
    "Request",
    "__version__",
    "attribution",
    "build_info",
    "curvature",
    "forget",
    "losses",
    "methods",
    "metrics",
    "nn",
    "ops",
]
