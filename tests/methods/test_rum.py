"""RUM: which part of the forget set each method is given, and what stays meanwhile."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from unlearnx.methods import RUM, FineTune, Method, Request
from unlearnx.metrics import mean_loss

SEEN = []


@dataclass
class Recorded(Method):
    """Notes what it is asked to forget, and what stays; changes little."""

    def _apply(self, work, info):
        SEEN.append(
            tuple([float(x[0]) for x, _ in data] for data in (work.request.forget_set, work.request.retain_set))
        )
        for p in work.model.parameters():
            p.data.mul_(0.999)


@pytest.fixture(autouse=True)
def _nothing_seen():
    SEEN.clear()


@pytest.fixture
def problem():
    """Ten samples that are told apart by their first value, and a model that looks at it."""
    torch.manual_seed(0)
    x = torch.arange(10.0)[:, None]
    return nn.Sequential(nn.Linear(1, 2)).eval(), x, torch.arange(10) % 2


def rum(stages, **options):
    return RUM([Recorded() for _ in range(stages)], **options)


def test_parts_from_little_to_much_memorised(problem):
    model, x, y = problem
    scores = torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0, 0.4])  # of the samples 1, 2, 3, 5, 7, 8
    outcome = rum(2, scores=scores)(model, Request.remove((x, y), [8, 1, 3, 2, 5, 7]))
    stay = [0, 4, 6, 9]
    # The least memorised third, 2 and 5, is left as it is, and counts as gone.
    first, second = SEEN
    assert first == ([3, 8], sorted([*stay, 1, 7]))
    assert second == ([1, 7], stay)
    assert [stage["forgets"] for stage in outcome.info["stages"]] == [2, 2]
    assert outcome.applied


def test_every_part_is_unlearned_if_so_asked(problem):
    model, x, y = problem
    rum(3, leave_least=False, scores=torch.tensor([3.0, 2.0, 1.0]))(model, Request.remove((x, y), [0, 4, 9]))
    assert [forget for forget, _ in SEEN] == [[9], [4], [0]]
    assert [len(stays) for _, stays in SEEN] == [9, 8, 7]


def test_losses_stand_for_scores(problem):
    model, x, y = problem
    request = Request.remove((x, y), range(6))
    rum(3, leave_least=False)(model, request)
    losses = F.cross_entropy(model(x[:6]), y[:6], reduction="none")
    order = losses.argsort().tolist()
    assert [forget for forget, _ in SEEN] == [sorted(order[i : i + 2]) for i in (0, 2, 4)]


def test_harm_is_that_to_what_stays_in_the_end(problem):
    model, x, y = problem
    request = Request.remove((x, y), range(4))
    outcome = rum(1)(model, request)
    assert outcome.loss_before == pytest.approx(mean_loss(model, F.cross_entropy, request.retain_set))
    assert outcome.loss_after == pytest.approx(mean_loss(outcome.model, F.cross_entropy, request.retain_set))


def test_augmented_data_are_cut_alike(problem):
    model, x, y = problem
    read = []

    class Augmented(TensorDataset):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    request = Request.remove(Augmented(x, y), range(4), measure=(x, y)).with_held_out((x, y))
    read.clear()  # what was read to compare the two
    RUM([FineTune(epochs=1)], scores=torch.arange(4.0))(model, request)
    assert set(read) == {4, 5, 6, 7, 8, 9}


def test_loaders_and_one_stage_more_than_samples(problem):
    model, x, y = problem
    request = Request.remove(DataLoader(TensorDataset(x, y), batch_size=3), [1, 2])
    assert rum(1)(model, request).applied
    with pytest.raises(ValueError, match="request: has 2 samples to forget, expected at least 3, one for each part"):
        rum(2)(model, request)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.ones(3), r"scores: has shape \[3\], expected \[2\], one for each sample of the forget set"),
        (torch.tensor([0.0, math.nan]), "scores: has values that are NaN or infinite, expected finite scores"),
    ],
)
def test_wrong_scores(problem, scores, message):
    model, x, y = problem
    with pytest.raises(ValueError, match=message):
        rum(1, scores=scores)(model, Request.remove((x, y), [1, 2]))


def test_scores_of_another_shape_are_refused_at_once():
    with pytest.raises(ValueError, match=r"scores: has shape \[2, 2\], expected one number for each sample"):
        rum(1, scores=torch.ones(2, 2))


def test_what_cannot_be_cut(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="request: is a correction, expected samples to forget"):
        rum(1)(model, Request.correct((x, y), (x, 1 - y)))
    with pytest.raises(ValueError, match="request: has no retain set, expected one"):
        rum(1)(model, Request.from_sets(forget=(x, y)))
