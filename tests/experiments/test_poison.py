from dataclasses import replace
from functools import partial

import torch
from torch import nn

from unlearnx._data import materialize
from unlearnx.experiments.poison import Checkpoints, Treatment, _mirrored, poison_digits
from unlearnx.experiments.runs import estimated_seconds, loaded
from unlearnx.methods import FineTune, Request
from unlearnx.models import Training


def poisoned():
    study = poison_digits(epochs=1, progress=False)
    torch.manual_seed(0)
    s = study.splits
    given = s.train_y.clone()
    given[[3, 8]] = (given[[3, 8]] + 1) % 10
    return study, Request.correct((s.train_x, given), (s.train_x, s.train_y)), given


def test_a_mirrored_treatment_gets_every_image_and_its_mirror_image():
    study, request, given = poisoned()
    n, images = len(given), study.splits.train_x
    mirrored = _mirrored(request)
    assert mirrored.forget.tolist() == [3, 8, n + 3, n + 8]
    assert mirrored.labels_only
    x, y = materialize(mirrored.dataset)
    assert torch.equal(y, torch.cat([given, given]))
    assert torch.equal(materialize(mirrored.target)[1], study.splits.train_y.repeat(2))
    assert torch.equal(x, torch.cat([images, images.flip(-1)]))


def test_a_treatment_calls_its_method_as_anybody_would():
    study, request, _ = poisoned()
    model = study.network().eval()
    treatment = Treatment(FineTune(epochs=1, params="last:4", max_increase=9.0), mirrored=True)
    result = study._treated("tuned", treatment, model, request, 3)
    assert result["applied"]
    assert result["total_seconds"] == result["seconds"]
    assert result["gradient_evaluations"] == 2 * len(study.splits.train_x)
    frozen = list(result["model"].parameters())[:-4]
    assert all(torch.equal(p, q) for p, q in zip(frozen, model.parameters(), strict=False))


class Clock(Training):
    """A training that takes a second for every hundred samples."""

    def run(self, model, data, **_):
        assert (self.epochs, self.progress) == (1, False)
        return len(data[0]) / 100


def test_the_time_of_training_is_estimated_from_some_steps():
    training, x = Clock(7, batch_size=10), torch.zeros(100, 3)
    estimated = partial(estimated_seconds, partial(nn.Linear, 3, 2), training, steps=4, device=torch.device("cpu"))
    assert estimated((x, torch.zeros(100))) == 7.0
    assert estimated((x[:25], torch.zeros(25))) == 7 * 0.25  # of fewer samples than steps take, all are timed


def test_models_are_read_from_files_of_any_precision(tmp_path):
    model = nn.Linear(3, 2).half()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.get_rng_state()
    found = loaded(partial(nn.Linear, 3, 2), tmp_path / "model.pt", device=torch.device("cpu"))
    assert torch.equal(found.weight, model.weight.float())
    assert not found.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_may_start_from_trained_models(tmp_path):
    study = poison_digits(epochs=1, progress=False)
    files = Checkpoints(*(tmp_path / name for name in ("clean.pt", "poisoned.pt", "poison.npz")))
    for file in (files.clean, files.poisoned):
        torch.save(study.network().state_dict(), file)
    study._flipped(3).save(files.poison)
    found = replace(study, checkpoints=files, treatments={}).run([0], tmp_path / "run")
    assert (found["retraining"], found["timed_steps"]) == ("estimated", 20)
    (run,) = found["runs"]
    assert run["retrained"]["accuracy"] == run["clean"]["accuracy"]
    assert run["retrained"]["seconds"] > 0
