from functools import partial

import torch

from benchmarks import sisa_images
from unlearnx.data import Splits
from unlearnx.models import Training, resnet9


def test_an_ensemble_and_one_network_are_measured(monkeypatch):
    monkeypatch.setattr(sisa_images, "resnet9", partial(resnet9, classes=3, width=2))
    y = torch.arange(48) % 3
    x = torch.randn(48, 3, 16, 16) + 3 * torch.nn.functional.one_hot(y, 3)[..., None, None]
    splits = Splits(x, y, x[:12], y[:12], ["a", "b", "c"])
    row = sisa_images.measured(splits, Training(4, lr=1e-2, batch_size=8), shards=2, slices=2, removals=2, seed=0)
    ensemble = row["ensemble"]
    assert row["one network"]["test"] > 0.5
    assert 0 < ensemble["share of its training"] <= 0.5
    assert ensemble["seconds of a removal"] > 0
    assert 0 <= ensemble["test after"] <= 1
