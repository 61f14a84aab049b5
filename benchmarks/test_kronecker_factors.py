"""Fitting EK-FAC's factors against the libraries that fit them too, in multiples of forward+backward over the data.

Eigendecompositions, of matrices of the same sizes on every side, are timed beside them.
"""

import pytest

from benchmarks.comparison import available
from benchmarks.kronecker_cases import CASES, RIVALS, decompositions, ours, step
from benchmarks.units import UNIT, in_units

DECOMPOSITIONS = "eigendecompositions"
BEYOND = "ours, without eigendecompositions"
MOST_PASSES = 2.5
ROUNDS = {"digits": 7, "resnet9": 3, "smollm2": 2}


@pytest.mark.benchmark(group="EK-FAC factors")
@pytest.mark.parametrize("name", CASES)
def test_fit(compare, benchmark, claim, name):
    case = CASES[name]()
    rivals, refused = available(RIVALS, lambda make: _fitting(make, case))
    ratios = compare.run(
        ours(case),
        {UNIT: step(case), DECOMPOSITIONS: decompositions(case), **rivals},
        rounds=ROUNDS[name],
        warmups=1,
        claims=dict.fromkeys(rivals, 1.0),
        refused=refused,
    )
    multiples = in_units(benchmark, ratios)
    multiples[BEYOND] = multiples["ours"] - multiples[DECOMPOSITIONS]
    claim(multiples[BEYOND] <= MOST_PASSES, f"{BEYOND}: {MOST_PASSES:g} passes or less")
    if rivals:
        claim(min(ratios[rival] for rival in rivals) >= 3, "the fastest other library takes 3 times as long or longer")


def _fitting(make, case):
    run = make(case)
    run()
    return run
