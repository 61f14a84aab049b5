"""Random calls, right and wrong; ``--fuzz-calls N`` makes N of each kind (see CONTRIBUTING.md)."""

import inspect
from collections import Counter

import pytest

from tests.fuzz import functions
from tests.fuzz.children import run_batch
from unlearnx import attribution, curvature, losses, methods, metrics

BATCH = 500  # calls of one child process
# What `forget` calls is `Automatic`; functions for `register_rule` are wrong only once they are called.
ELSEWHERE = {"forget", "register_rule"}
LOSSES = ("cross_entropy", "causal_lm", "binary_cross_entropy", "mse")
KINDS = {"ops": 600, "functions": 500}  # calls where nobody says


@pytest.mark.parametrize("kind", KINDS)
def test_random_calls_are_right_or_refused_in_our_words(kind, request):
    calls = request.config.getoption("--fuzz-calls") or KINDS[kind]
    counts = Counter()
    for seed in range(0, calls, BATCH):
        counts += run_batch(f"tests.fuzz.{kind}", seed, min(BATCH, calls - seed))
    print(kind, dict(counts))
    assert counts["right"] + counts["refused"] > 0.8 * calls


def test_every_public_function_method_and_solver_is_called(tmp_path):
    table, bases = functions.calls(str(tmp_path)), (methods.Method, curvature.Solver)
    for part in (curvature, methods, metrics, attribution, losses):
        public = {name: value for name, value in vars(part).items() if name in getattr(part, "__all__", LOSSES)}
        called = [
            name
            for name, value in public.items()
            if inspect.isfunction(value) or (inspect.isclass(value) and issubclass(value, bases) and value not in bases)
        ]
        assert called
        assert set(called) - ELSEWHERE <= set(table), part
