import dataclasses

import torch

from unlearnx._data import materialize
from unlearnx.experiments.poison import Recipe, _Bench, poison_digits
from unlearnx.methods import FineTune, Request


def bench():
    study = poison_digits(epochs=1, progress=False)
    study.training = dataclasses.replace(study.training, autocast=torch.bfloat16)
    torch.manual_seed(0)
    s = study.splits
    given = s.train_y.clone()
    given[[3, 8]] = (given[[3, 8]] + 1) % 10
    request = Request.correct((s.train_x, given), (s.train_x, s.train_y))
    return _Bench(study, study.network().eval(), request), given


def test_mirrored_recipe_gets_every_image_and_its_mirror_image():
    on, given = bench()
    cut, request, _ = on._features(Recipe(FineTune(params="last:4"), mirrored=True))
    n, images = len(given), on.study.splits.train_x
    x, y = materialize(request.dataset)
    assert request.forget.tolist() == [3, 8, n + 3, n + 8]
    assert request.labels_only
    assert torch.equal(y, torch.cat([given, given]))
    assert torch.equal(materialize(request.target)[1], on.study.splits.train_y.repeat(2))
    expected = cut.prefix(torch.cat([images, images.flip(-1)]))
    assert (x - expected).norm() <= 2e-2 * expected.norm()


def test_methods_share_features_of_their_own_precision():
    on, _ = bench()
    plain, fast = (Recipe(FineTune(params="last:4", autocast=dtype)) for dtype in (None, torch.bfloat16))
    for recipe, dtype in ((plain, torch.float32), (fast, torch.bfloat16), (plain, torch.float32)):
        assert materialize(on._features(recipe)[1].dataset)[0].dtype == dtype
    assert on._features(plain)[1] is on._features(plain)[1]
