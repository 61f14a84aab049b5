"""Unlearning methods: small dataclasses, called as ``method(model, request) -> Outcome``."""

from unlearnx.methods.base import Method, Outcome
from unlearnx.methods.fine_tune import FineTune
from unlearnx.methods.influence import FirstOrder, SecondOrder
from unlearnx.methods.request import Request
from unlearnx.methods.retrain import Retrain
from unlearnx.methods.ssd import SSD

# By the names of the command line.
METHODS: dict[str, type[Method]] = {
    "ssd": SSD,
    "fine-tune": FineTune,
    "first-order": FirstOrder,
    "second-order": SecondOrder,
    "retrain": Retrain,
}

__all__ = ["METHODS", "SSD", "FineTune", "FirstOrder", "Method", "Outcome", "Request", "Retrain", "SecondOrder"]
