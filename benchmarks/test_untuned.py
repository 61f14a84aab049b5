"""Methods with nothing tuned, beside retraining: do they forget, do they keep what stays, are their verdicts true?

The default run takes two of the cells of ``python -m benchmarks.untuned``, ``--all`` all that can be had, three seeds.
"""

import pytest

from benchmarks.untuned import CELLS, Missing, Sources
from benchmarks.untuned.study import methods, run

FEWEST_OF_CLASSES, FEWEST_OF_SAMPLES = 10, 5  # methods that come near to retraining at little cost
QUICK = ("lstm-class", "lstm-user")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.headline] if name in QUICK else []) for name in CELLS]
)
@pytest.mark.benchmark(group="nothing tuned")
def test_untuned(benchmark, claim, name, request):
    cell, seeds = CELLS[name], 3 if request.config.option.all else 1
    try:
        cell.build(0)
    except Missing as missing:
        pytest.skip(str(missing))
    rows = benchmark.pedantic(lambda: list(run([name], seeds, methods(), Sources(), print)), rounds=1)
    by_seed = [[row for row in rows if row["seed"] == seed] for seed in {row["seed"] for row in rows}]
    near = [[row["method"] for row in own if row["near"] and row["kept"]] for own in by_seed]
    fewest = FEWEST_OF_CLASSES if cell.is_class else FEWEST_OF_SAMPLES
    claim(all(len(set(names) - {"auto"}) >= fewest for names in near), f"{fewest} methods come near to retraining")
    claim(all("auto" in names for names in near), "unlearnx.forget comes near to retraining")
    claim(not any(row["wrong"] for row in rows), 'no verdict "yes" is wrong')
    benchmark.extra_info["near"] = near
