"""Methods read data a batch at a time: nothing is held, augmentation is alive, an interruption does no harm."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.helpers import Lines
from unlearnx import Request
from unlearnx._data import as_dataset
from unlearnx._sources import relabelled
from unlearnx.curvature import FrozenPrefix
from unlearnx.methods import METHODS, FineTune, Method, SecondOrder
from unlearnx.methods.frozen_features import request_on_features
from unlearnx.methods.training_method import TrainedMethod

N, FORGET = 120, range(12)
SETTINGS = {
    "fisher-masking": {"ratio": 0.1},
    "retrain": {"epochs": 1},
    "first-order": {"steps": 1},
    "second-order": {"steps": 1},
}


PARTS_DO_NOT_DO = ("ct", "retrain", "rmu")  # for what they change is not in the last layer


def network(name=None):
    torch.manual_seed(0)
    if name == "ct":  # which needs a convolution
        image = nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Flatten()
        return nn.Sequential(*image, nn.Tanh(), nn.Linear(8, 4)).eval()
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval()


def request_of(name, data, **settings):
    """A removal; of a method that takes corrections alone, one to the next label."""
    if name != "idk":
        return Request.remove(data, FORGET, **settings)
    _, y = samples()
    labels = torch.where(torch.isin(torch.arange(N), torch.tensor(FORGET)), (y + 1) % 4, y)
    if settings:  # what is measured is not augmented
        plain = settings["measure"]
        return Request.correct(plain, relabelled(as_dataset(data), labels), measure=(plain[0], labels))
    return Request.correct(data, relabelled(as_dataset(data), labels))


def samples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, generator=generator), torch.arange(N) % 4


def method_called(name, **settings) -> Method:
    return METHODS[name](**{"batch_size": 40, "max_increase": 9.0, **SETTINGS.get(name, {}), **settings})


class Held(Dataset):
    """Counts how many samples are in memory at once."""

    def __init__(self):
        self.x, self.y = samples()
        self.now = self.most = 0

    def __len__(self):
        return N

    def __getitem__(self, i):
        sample = self.x[i].clone()
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(sample, self._gone)
        return sample, self.y[i]

    def _gone(self):
        self.now -= 1


@pytest.mark.parametrize("name", METHODS)
def test_no_method_holds_the_data(name):
    data = Held()
    gc.collect()
    settings = {"second-order": {"curvature_samples": 16}, "newton-repair": {"kind": "diagonal"}}.get(name, {})
    request = request_of(name, data)  # a correction is compared with the data, all at once where these are few
    data.most = 0
    method_called(name, batch_size=8, **settings)(network(name), request)
    assert 0 < data.most <= 32


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("params", [None, "last:2"])
def test_results_do_not_depend_on_how_samples_are_read(name, params):
    if name in PARTS_DO_NOT_DO and params:
        pytest.skip("changes more than the last layer")
    x, y = samples()
    forms = [(x, y), Lines(x, y)]
    if name in ("fine-tune", "ssd"):  # starting workers takes long
        forms.append(DataLoader(Lines(x, y), num_workers=1))
    found = [method_called(name, params=params)(network(name), request_of(name, form)) for form in forms]
    for outcome in found[1:]:
        assert outcome.applied == found[0].applied
        assert outcome.loss_after == pytest.approx(found[0].loss_after, rel=1e-5)
        for a, b in zip(outcome.model.parameters(), found[0].model.parameters(), strict=True):
            torch.testing.assert_close(a, b)


class Augmented(Lines):
    """Samples that come another time each time they are read, and count how often they are."""

    def __init__(self, x, y):
        super().__init__(x, y)
        self.read = torch.zeros(len(y), dtype=torch.int64)

    def __getitem__(self, i):
        self.read[i] += 1
        return self.x[i] + 0.1 * torch.randn(6), self.y[i]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("params", [None, "last:2"])
def test_training_passes_read_augmented_samples_and_others_do_not(name, params):
    if name in PARTS_DO_NOT_DO and params:
        pytest.skip("changes more than the last layer")
    x, y = samples()
    request = request_of(name, augmented := Augmented(x, y), measure=(x, y))
    outcome = method_called(name, params=params)(network(name), request)
    again = method_called(name, params=params)(network(name), request_of(name, (x, y)))
    assert outcome.loss_before == again.loss_before  # it is measured on the same
    if not issubclass(METHODS[name], TrainedMethod) and name != "auto":
        assert augmented.read.sum() == 0
    elif name == "fine-tune":
        assert augmented.read[list(FORGET)].sum() == 0
        # Once in the one epoch; on three the model is tried, and its memory order.
        assert augmented.read[12:].eq(1).sum() >= N - 12 - 3
    else:
        assert augmented.read.sum() > 0


def test_augmentation_of_a_correction():
    x, y = samples()
    fixed = y.clone()
    fixed[:5] = (y[:5] + 1) % 4
    augmented = Augmented(x, fixed)
    request = Request.correct((x, y), augmented, measure=(x, fixed))
    assert request.forget.tolist() == [0, 1, 2, 3, 4]
    assert request.labels_only
    assert augmented.read.sum() == 0
    FineTune(epochs=3, max_increase=9.0)(network(), request)
    assert (augmented.read >= 3).all()


def test_what_is_measured_has_the_size_of_what_is_trained_on():
    x, y = samples()
    plain = (x[1:], y[1:])
    with pytest.raises(ValueError, match=f"^measure: has {N - 1} samples, expected {N} as dataset"):
        Request.remove((x, y), FORGET, measure=plain)
    with pytest.raises(ValueError, match=f"^measure: has {N - 1} samples, expected {N} as dataset"):
        Request.remove_class((x, y), 1, measure=plain)
    with pytest.raises(ValueError, match=f"^measure: has {N - 1} samples, expected {N} as corrected"):
        Request.correct((x, y), (x, y + 1), measure=plain)


def test_a_class_is_found_by_the_labels_that_a_dataset_tells():
    class Told(Lines):
        def __getitem__(self, i):
            raise AssertionError("a sample was read")

    x, y = samples()
    data = Told(x, y)
    data.targets = y.tolist()
    assert Request.remove_class(data, 3).forget.tolist() == list(range(3, N, 4))


class Interrupted(Lines):
    """Ctrl-C, after some samples have been read."""

    left = 10**9

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def state(model):
    return (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad, bool(p._backward_hooks)) for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("name", METHODS)
def test_an_interruption_leaves_the_model_as_it_was(name):
    x, y = samples()
    data, model = Interrupted(x, y), network(name)
    model[-1].bias.requires_grad_(False)
    weights = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    method = method_called(name, params=weights if name != "retrain" else None)
    before, request = state(model), request_of(name, data)
    data.left = 200 if name == "ct" else 400  # in the midst of the second or the third pass
    with pytest.raises(KeyboardInterrupt):
        method(model, request)
    after = state(model)
    assert all(torch.equal(t, before[0][name]) for name, t in after[0].items())
    assert after[1:] == before[1:]


def test_sets_of_a_request_are_joined_without_a_copy():
    x, y = samples()
    request = Request.from_sets(forget=(x[:5], y[:5]), retain=(x[5:], y[5:]), correction=(x[:5], (y[:5] + 1) % 4))
    assert request.labels_only
    assert [request.corrected[i][1].item() for i in (0, 4, 5)] == [1, 1, 1]
    assert SecondOrder()(network(), request).applied


@pytest.mark.parametrize("limit", [1 << 20, 10])
def test_features_of_corrected_samples_are_those_of_the_corrected(monkeypatch, limit):
    monkeypatch.setattr("unlearnx._rows.KEPT_BYTES", limit)
    model, (x, y) = network(), samples()
    x_new, y_new = x.clone(), y.clone()
    x_new[3] += 1
    y_new[7] = 0
    frozen_prefix = FrozenPrefix(model, "last:2", (x, y))
    for fixed in ((x_new, y_new), (x, y_new)):
        request = request_on_features(Request.correct((x, y), fixed), frozen_prefix)
        for data, (own, labels) in ((request.dataset, (x, y)), (request.target, fixed)):
            found = [data[i] for i in range(N)]
            torch.testing.assert_close(torch.stack([h for h, _ in found]), frozen_prefix(own))
            assert torch.equal(torch.stack([label for _, label in found]), labels)


def test_texts_of_different_lengths_go_through_every_method():
    """Their batches are padded each by itself: nothing needs the length of the longest."""

    class Texts(Dataset):
        targets = torch.arange(30) % 2

        def __len__(self):
            return 30

        def __getitem__(self, i):
            return torch.arange(1, 3 + i % 5), i % 2

    def padded(batch):
        length = max(len(x) for x, _ in batch)
        rows = [nn.functional.pad(x, (0, length - len(x))) for x, _ in batch]
        return torch.stack(rows), torch.tensor([y for _, y in batch])

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.head = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.words(x).sum(1))

    loader = DataLoader(Texts(), collate_fn=padded)
    corrected = DataLoader(relabelled(Texts(), (torch.arange(30) < 5).long() ^ Texts.targets), collate_fn=padded)
    real_numbers = ("boundary-shrink", "ct", "jit", "unsir")  # are what they need
    for name in METHODS:
        for params in (None, ["head.weight", "head.bias"]):
            if name in real_numbers or (name in PARTS_DO_NOT_DO and params):
                continue
            if name == "energy-alignment" and not params:
                continue  # moves features
            method = method_called(name, params=params, batch_size=8)
            removal, correction = Request.remove(loader, range(5)), Request.correct(loader, corrected)
            outcome = method(Bag().eval(), correction if name == "idk" else removal)
            assert outcome.applied or outcome.reason, name
