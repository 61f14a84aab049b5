"""Random calls, right and wrong; ``--fuzz-calls N`` makes N of each kind (see CONTRIBUTING.md)."""

from collections import Counter

import pytest

from tests.fuzz.children import run_batch

BATCH = 500  # calls of one child process
KINDS = {"ops": 600}  # calls where nobody says


@pytest.mark.parametrize("kind", KINDS)
def test_random_calls_are_right_or_refused_in_our_words(kind, request):
    calls = request.config.getoption("--fuzz-calls") or KINDS[kind]
    counts = Counter()
    for seed in range(0, calls, BATCH):
        counts += run_batch(f"tests.fuzz.{kind}", seed, min(BATCH, calls - seed))
    print(kind, dict(counts))
    assert counts["right"] + counts["refused"] > 0.8 * calls
