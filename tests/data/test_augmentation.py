import pytest
import torch
from torch.utils.data import TensorDataset

from unlearnx._known_labels import known_labels
from unlearnx._sources import Samples
from unlearnx.data import augmented


def test_every_image_is_a_crop_or_its_mirror():
    x, y = torch.arange(20 * 3 * 6 * 6.0).view(20, 3, 6, 6), torch.arange(20)
    padded = torch.nn.functional.pad(x, (2,) * 4, mode="reflect")
    crops = [padded[..., r : r + 6, c : c + 6] for r in range(5) for c in range(5)]
    allowed = torch.stack([*crops, *(crop.flip(3) for crop in crops)], 1)  # pads of a mirror are the mirror of pads
    seen, labels = Samples(augmented((x, y), pad=2)).read(slice(0, 20))
    matches = (seen[:, None] == allowed).flatten(2).all(2)
    assert matches.any(1).all()
    assert len(matches.float().argmax(1).unique()) > 5
    assert torch.equal(labels, y)


def test_no_pad_mirrors_only():
    x = torch.randn(64, 1, 4, 4)
    seen, _ = Samples(augmented((x, torch.zeros(64)), pad=0)).read(slice(0, 64))
    mirrored = (seen == x.flip(3)).flatten(1).all(1)
    assert (mirrored | (seen == x).flatten(1).all(1)).all()
    assert 16 < mirrored.sum() < 48


def test_labels_are_known_without_reading():
    y = torch.arange(5)
    assert torch.equal(known_labels(augmented(TensorDataset(torch.randn(5, 3, 4, 4), y))), y)


def test_what_is_refused():
    with pytest.raises(ValueError, match="pad is -1"):
        augmented((torch.randn(4, 3, 4, 4), torch.zeros(4)), pad=-1)
    with pytest.raises(ValueError, match=r"data: has a batch of shape \[1, 6\], expected images"):
        augmented((torch.randn(4, 6), torch.zeros(4)))[0]
