"""Shadow models that unlearn: which candidates each has, what is kept, and an attack from end to end."""

import subprocess
import sys
from statistics import mean

import pytest
import torch
from torch import nn

from unlearnx.data import load_digits
from unlearnx.methods import GradientAscent, Retrain
from unlearnx.metrics import logit_confidence, u_lira, unlearned_shadows
from unlearnx.models import Training


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(80, 6, generator=generator), torch.randint(3, (80,), generator=generator)


def train(dataset, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    Training(30, lr=1e-2, batch_size=40, seed=seed).run(model, dataset)
    return model.eval()


def test_models_have_their_candidates_and_all_else():
    seen = []

    def keep(dataset, seed):
        seen.append((dataset, seed))
        return nn.Linear(6, 3)

    candidates = torch.tensor([7, 3, 41, 8])
    found = unlearned_shadows(keep, lambda model, request: model, data(), candidates, models=6, seed=5)
    assert ((found.unlearned.sum(0) > 0) & (found.unlearned.sum(0) < 6)).all()
    assert [seed for _, seed in seen] == list(range(5, 11))
    x = data()[0]
    for (dataset, _), mask in zip(seen, found.unlearned, strict=True):
        read = torch.stack([sample[0] for sample in dataset])
        assert len(read) == 76 + int(mask.sum())
        for candidate, inside in zip(candidates, mask, strict=True):
            assert bool((read == x[candidate]).all(1).any()) == bool(inside)


def test_the_confidences_are_those_after_unlearning():
    pair = data()

    def zeroed(model, request):
        assert len(request.forget) >= 1
        with torch.no_grad():
            model[2].weight.zero_()
        return model

    found = unlearned_shadows(train, zeroed, pair, range(10), models=4)
    model = zeroed(train(_with(pair, found.unlearned[1]), 1), _Request)
    torch.testing.assert_close(found.confidence[1], logit_confidence(model, (pair[0][:10], pair[1][:10])))


class _Request:
    forget = (0,)


def _with(pair, mask):
    own = torch.cat([torch.arange(10)[mask], torch.arange(10, 80)])
    return pair[0][own], pair[1][own]


def test_a_folder_goes_on_where_it_stopped(tmp_path):
    made = []

    def counted(dataset, seed):
        made.append(seed)
        if len(made) == 3:
            raise KeyboardInterrupt
        return train(dataset, seed)

    asked = {"data": data(), "candidates": range(8), "models": 4, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        unlearned_shadows(counted, lambda model, request: model, **asked)
    found = unlearned_shadows(counted, lambda model, request: model, **asked)
    assert made == [0, 1, 2, 2, 3]
    again = unlearned_shadows(counted, lambda model, request: model, **asked)
    assert len(made) == 5, "nothing is made again"
    assert torch.equal(found.confidence, again.confidence)
    with pytest.raises(ValueError, match="is of a model that unlearned other candidates"):
        unlearned_shadows(train, lambda model, request: model, **{**asked, "candidates": range(1, 9)})


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"unlearn": GradientAscent(epochs=2)}, r"whose unlearn is GradientAscent\(.*epochs=1.*, expected GradientAsc"),
        (
            {"train": lambda dataset, seed: nn.Linear(6, 3)},
            "whose train is <function train>, expected <function <",
        ),
        ({"data": tuple(t[:79] for t in data())}, "whose samples is 80, expected 79, or another folder"),
        ({"seed": 1}, "of a model that unlearned other candidates"),
    ],
)
def test_a_folder_is_of_one_choice_of_arguments(tmp_path, other, said):
    asked = {"train": train, "unlearn": GradientAscent(epochs=1), "data": data(), "candidates": range(8), "models": 2}
    found = unlearned_shadows(**asked, folder=tmp_path)
    asked["unlearn"] = GradientAscent(epochs=1, progress=True)  # shows more, and does the same
    assert torch.equal(unlearned_shadows(**asked, folder=tmp_path).confidence, found.confidence)
    with pytest.raises(ValueError, match=said):
        unlearned_shadows(**{**asked, **other}, folder=tmp_path)


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_model_without_candidates_is_measured_as_it_was_trained(candidates):
    asked = []

    def unlearn(model, request):
        asked.append(len(request.forget))
        return model

    for seed in range(5):
        asked.clear()
        confidence, unlearned = unlearned_shadows(
            lambda dataset, seed: nn.Linear(6, 3), unlearn, data(), range(candidates), models=4, seed=seed
        )
        assert confidence.shape == (4, candidates)
        assert ((unlearned.sum(0) > 0) & (unlearned.sum(0) < 4)).all(), "every candidate has models of both kinds"
        assert asked == [n for n in unlearned.sum(1).tolist() if n], "what has nothing to unlearn is not asked to"


WORKER = """
import sys, time, torch
from torch import nn
from unlearnx.metrics import unlearned_shadows
def train(dataset, seed):
    time.sleep(0.3)
    print(seed, flush=True)
    return nn.Linear(6, 3)
data = torch.zeros(20, 6), torch.arange(20) % 3
unlearned_shadows(train, lambda model, request: model, data, range(4), models=6, folder=sys.argv[1])
"""


def test_processes_share_a_folder(tmp_path):
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [int(line) for worker in workers for line in worker.communicate()[0].split()]
    assert all(worker.returncode == 0 for worker in workers)
    assert sorted(made) == list(range(6)), "each model is made once"


def test_retraining_leaves_nothing_to_find_and_no_unlearning_does():
    s = load_digits()
    x, y = s.train_x[:400].flatten(1), s.train_y[:400].clone()
    y[:40] = (y[:40] + 1) % 10  # labels that only memory can hold

    def fit(dataset, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        Training(30, lr=1e-2, batch_size=100, seed=seed).run(model, dataset)
        return model.eval()

    def auc(unlearn):
        """The mean over the models, each attacked with the others as shadows."""
        confidence, unlearned = unlearned_shadows(fit, unlearn, (x, y), range(40), models=10)
        others = [torch.arange(10) != k for k in range(10)]
        return mean(
            u_lira(confidence[k], confidence[o], unlearned[o], unlearned[k], bootstrap=1).auc
            for k, o in enumerate(others)
        )

    assert auc(lambda model, request: model) > 0.9
    assert abs(auc(Retrain(30, lr=1e-2, batch_size=100)) - 0.5) < 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"candidates": [1, 1]}, "candidates: has 2 indices for 80 samples, expected some of them, each once"),
        ({"candidates": [80]}, "candidates: holds indices from 80 to 80 of 80 samples"),
        ({"models": 1}, "models is 1, expected at least one with and one without each candidate"),
        ({"fraction": 0.0}, "fraction is 0.0, expected a number between 0 and 1"),
        ({"models": 0}, "models is 0"),
    ],
)
def test_clear_errors(settings, said):
    with pytest.raises(ValueError, match=said):
        unlearned_shadows(train, lambda model, request: model, data(), **{"candidates": range(4), **settings})
