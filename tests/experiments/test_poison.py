import dataclasses

import torch

from unlearnx._data import materialize
from unlearnx.experiments.poison import Treatment, _TreatmentRunner, poison_digits
from unlearnx.methods import FineTune, Request


def treatments():
    study = poison_digits(epochs=1, progress=False)
    study.training = dataclasses.replace(study.training, autocast=torch.bfloat16)
    torch.manual_seed(0)
    s = study.splits
    given = s.train_y.clone()
    given[[3, 8]] = (given[[3, 8]] + 1) % 10
    request = Request.correct((s.train_x, given), (s.train_x, s.train_y))
    return _TreatmentRunner(study, study.network().eval(), request), given


def test_a_mirrored_treatment_gets_every_image_and_its_mirror_image():
    shared, given = treatments()
    cut, request, _ = shared._features(Treatment(FineTune(params="last:4"), mirrored=True))
    n, images = len(given), shared.study.splits.train_x
    x, y = materialize(request.dataset)
    assert request.forget.tolist() == [3, 8, n + 3, n + 8]
    assert request.labels_only
    assert torch.equal(y, torch.cat([given, given]))
    assert torch.equal(materialize(request.target)[1], shared.study.splits.train_y.repeat(2))
    expected = cut.prefix(torch.cat([images, images.flip(-1)]))
    assert (x - expected).norm() <= 2e-2 * expected.norm()


def test_methods_share_features_of_their_own_precision():
    shared, _ = treatments()
    plain, fast = (Treatment(FineTune(params="last:4", autocast=dtype)) for dtype in (None, torch.bfloat16))
    for treatment, dtype in ((plain, torch.float32), (fast, torch.bfloat16), (plain, torch.float32)):
        assert materialize(shared._features(treatment)[1].dataset)[0].dtype == dtype
    assert shared._features(plain)[1] is shared._features(plain)[1]
