"""Every public name has an example in its docstring, and it runs."""

import doctest
import inspect
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from unlearnx import attribution, curvature, data, methods, metrics, models, nn, ops, testing

PACKAGES = [ops, methods, curvature, metrics, attribution, nn, data, models, testing]
NOT_HERE = "reads data that do not travel with the project"
WITHOUT = {
    "METHODS": "a dictionary has no docstring",
    "FEATURE_TABLES": "a dictionary has no docstring",
    "METHOD_CHECKS": "a tuple has no docstring",
    **dict.fromkeys(
        (
            *("load_cifar10", "load_cifar100", "load_mnist"),
            *("load_enron", "load_drebin", "load_adult", "load_diabetes", "load_lm"),
        ),
        NOT_HERE,
    ),
}
NAMES = [(package, name) for package in PACKAGES for name in package.__all__ if name not in WITHOUT]

# What examples take for granted, and the reference tells its readers.
GIVEN = {"torch": torch, "nn": torch.nn, "dataclass": dataclass, "partial": partial}
GIVEN |= {name: getattr(package, name) for package in PACKAGES for name in package.__all__}


@pytest.mark.parametrize(("package", "name"), [pytest.param(p, n, id=f"{p.__name__}.{n}") for p, n in NAMES])
def test_example(package, name, tmp_path):
    examples = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(package, name)), {**GIVEN, "folder": tmp_path}, name, package.__name__, 0
    )
    assert examples.examples, f"{name} has no example in its docstring"
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=said.append)
    assert not said, "".join(said)
