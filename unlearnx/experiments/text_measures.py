"""What language models make of the texts to forget and of others, and whether they have forgotten."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._data import Data, drawn, size
from unlearnx._extras import extra
from unlearnx.experiments.adapters import with_lora
from unlearnx.experiments.robustness import Robustness
from unlearnx.losses import causal_lm
from unlearnx.methods import Request
from unlearnx.methods.outcome import Verdict
from unlearnx.metrics import answer_probability, extraction_strength, forget_quality, min_k

MOST = 1000  # texts of a set that are read
FEWEST = 4  # texts with which the test of Kolmogorov and Smirnov can find a difference at 5 %
LEVEL = 0.05
FEW = 100  # texts to forget that rounded models, and those that learned some again, are read on
RELEARNED = (1, 10)  # texts that are learned again, all in each step, of which more would take much memory
RANK = 16  # of the adapter that learns them, the same in any model: of all weights or an adapter of its own


class TextMeasures:
    """Measures language models on the sets of a request, a thousand texts of each at most.

    Attributes:
        sizes: texts that are read, by set.
        notes: sentences on what was left out.
    """

    def __init__(
        self,
        request: Request,
        test: Data | None,
        paraphrases: Data | None = None,
        *,
        batch_size: int,
        seed: int,
    ):
        sets = {
            "forget": request.forget_set,
            "paraphrases": paraphrases,
            "retain": request.retain_set,
            "test": test,
        }
        self._batch_size = batch_size
        generator = torch.Generator().manual_seed(seed)
        self._sets = {name: drawn(data, MOST, generator) for name, data in sets.items() if data is not None}
        self.sizes = {name: size(data) for name, data in self._sets.items()}
        self.notes = [
            f"Of the {size(data):,} texts of the {name} set, {MOST:,} drawn at random were read."
            for name, data in sets.items()
            if data is not None and size(data) > MOST
        ]
        if test is None:
            self.notes.append("No test texts were given: there is no membership attack.")
        self._robustness = Robustness(
            self._sets["forget"],
            self._known,
            loss_fn=causal_lm(),
            autocast=None,
            seed=seed,
            counts=RELEARNED,
            most=FEW,
            before=partial(with_lora, rank=RANK, seed=seed),
        )

    def losses(self, model: nn.Module) -> Tensor:
        """Mean loss of each text to forget over its tokens, in nats, float64 (N,)."""
        return -min_k(model, self._sets["forget"], share=1.0, batch_size=self._batch_size)

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """Mean loss, probability of a token and extraction strength by set, the attack by Min-K%, and what comes back.

        The latter is the mean probability of a token of the texts to forget.
        """
        found: dict[str, float | None] = {}
        for name, data in self._sets.items():
            probability = answer_probability(model, data, batch_size=self._batch_size)
            found[f"{name}_loss"] = -float(probability.log().mean())
            found[f"{name}_probability"] = float(probability.mean())
            found[f"{name}_extraction"] = float(extraction_strength(model, data, batch_size=self._batch_size).mean())
        if "test" in self._sets:
            found["mia_min_k"] = self._attack(model)
        return found | self._robustness.measure(model)

    def _known(self, model: nn.Module, data: Data) -> float:
        return float(answer_probability(model, data, batch_size=self._batch_size).mean())

    def _attack(self, model: nn.Module) -> float:
        """How well Min-K% tells the texts to forget from test texts: the area under its ROC curve."""
        return told_apart(*(min_k(model, self._sets[name], batch_size=self._batch_size) for name in ("forget", "test")))


def told_apart(members: Tensor, others: Tensor) -> float:
    """How well scores tell members from others: the area under the ROC curve."""
    with extra("a membership attack", "scikit-learn"):
        from sklearn.metrics import roc_auc_score
    labels = torch.cat([torch.ones(len(members)), torch.zeros(len(others))])
    return float(roc_auc_score(labels, torch.cat([members, others])))


def judge_by_retrained(before: Tensor, after: Tensor, retrained: Tensor) -> tuple[Verdict, dict[str, Any]]:
    """Compare losses of the texts to forget, (N,) each, with those of a model that was trained without them.

    Where such a model is at hand, the losses are compared as they are distributed, which tells more than their mean:
    that alone is what :func:`unlearnx.methods.judge` compares, with an interval in which it is expected.

    The model has forgotten where the test of Kolmogorov and Smirnov finds no difference at 5 %, and in part where its
    mean loss came more than half of the way to the other's. With fewer than four texts nothing is claimed.
    """
    basis = f"This rests on {len(after):,} texts to forget, each with the mean loss over its learned tokens."
    said = f"The mean loss of a token to forget is {after.mean():.3g} nats, {before.mean():.3g} before, "
    said += f"{retrained.mean():.3g} of a model that never saw it"
    if len(after) < FEWEST:
        reason = f"{len(after)} are too few texts to tell whether they differ, expected at least {FEWEST}."
        return "unknown", {"sentence": f"{said}. {reason}", "basis": basis}
    quality = forget_quality(after, retrained)
    left, whole = (float((losses.mean() - retrained.mean()).abs()) for losses in (after, before))
    verdict: Verdict = "yes" if quality.p >= LEVEL else "partly" if left < whole / 2 else "no"
    sentence = f"{said}; their distributions differ with p = {quality.p:.2g}."
    return verdict, {"sentence": sentence, "basis": basis, "forget_quality": vars(quality)}
