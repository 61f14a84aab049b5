import torch

from unlearnx._data import materialize
from unlearnx.experiments.poison import Treatment, _mirrored, poison_digits
from unlearnx.methods import FineTune, Request


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
