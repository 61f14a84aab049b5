"""Models with something to forget, and the same models trained without it: for methods with nothing tuned.

from benchmarks.untuned import CELLS, Missing, Sources

case = CELLS["lstm-class"].build(seed=0)
outcome = SSD()(case.model, case.request)
accuracy(outcome.model, case.request.forget_set), case.retrained_accuracy
"""

from benchmarks.untuned.cells import CELLS, Case, Cell
from benchmarks.untuned.sources import Missing, Sources, at_hand

__all__ = ["CELLS", "Case", "Cell", "Missing", "Sources", "at_hand"]
