"""What a model that never saw the forget set would do: against retraining and hand calculations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.data import load_digits
from unlearnx.metrics import Level, accuracy, unseen_level
from unlearnx.metrics.depths import WIDTH, Depths
from unlearnx.metrics.ridge import PENALTY, RidgeClassifier


def test_left_out_predictions_are_those_of_a_fit_without_the_sample():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (40,), generator=generator)
    whole = RidgeClassifier(x, y, 3)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    labels = F.one_hot(y, 3).double()
    penalty = PENALTY * len(x) * torch.eye(7, dtype=torch.float64)
    penalty[6, 6] = 0  # the constant is not penalised
    design = torch.cat([z, torch.ones(40, 1, dtype=torch.float64)], 1)
    for i in range(0, 40, 7):
        rest = torch.arange(40) != i
        weight = torch.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ labels[rest])
        expected = design[i] @ weight
        scale = whole.left_out[i] @ expected / expected.square().sum()  # the temperature
        torch.testing.assert_close(whole.left_out[i], scale * expected, rtol=1e-6, atol=1e-9)


def test_leverage_is_that_of_a_fit_without_the_sample():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classifier = RidgeClassifier(x, torch.arange(40) % 2, 2)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    penalty = PENALTY * len(x) * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(classifier.leverage(x), (z @ torch.linalg.inv(z.T @ z + penalty) * z).sum(1))
    for i in range(0, 40, 9):
        rest = z[torch.arange(40) != i]
        own = z[i] @ torch.linalg.inv(rest.T @ rest + penalty) @ z[i]
        torch.testing.assert_close(classifier.left_out_leverage[i], own)


def test_constant_features_and_absent_classes():
    x = torch.cat([torch.randn(30, 2), torch.full((30, 1), 3.0)], 1)
    classifier = RidgeClassifier(x, torch.arange(30) % 2, 4)
    assert classifier(x).isfinite().all()
    assert (classifier(x).argmax(1) < 2).all()


@torch.no_grad()
def features_of(model, *batches):
    depths, x = Depths(), batches[0]
    depths.choose(model, model, (x[:2], 2), (x[:3], 3))
    with depths.watching(model):
        return [depths.take(x, len(model(x))) for x in batches]


def test_depths_are_spread_and_narrow():
    layers = [layer for _ in range(10) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).eval()
    x = torch.randn(5, 3, 32, 32)
    first, second = features_of(model, x, x[:2])
    assert 3 <= len(first) <= 7
    assert next(iter(first)) == Depths.INPUT
    assert "21" not in first  # the output of the model itself
    assert all(t.shape[0] == 5 and t.shape[1] <= WIDTH for t in first.values())
    assert first.keys() == second.keys()
    torch.testing.assert_close(second["20"], first["20"][:2])
    assert not any(m._forward_hooks for m in model.modules())


def test_modules_that_run_twice_or_return_tuples():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm, self.head = nn.Embedding(11, 6), nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 3)
            self.act = nn.Tanh()

        def forward(self, tokens):
            hidden, _ = self.lstm(self.act(self.embed(tokens)))
            return self.head(self.act(hidden[:, -1]))

    (features,) = features_of(Net().eval(), torch.randint(0, 11, (5, 9)))
    assert list(features) == ["embed", "lstm"]  # no input: tokens are no numbers


class Recurrent(nn.Module):
    """Takes samples first; time comes first in all that its layers give, unless `batch_first`."""

    def __init__(self, width=6, *, batch_first=False):
        super().__init__()
        self.embed, self.batch_first = nn.Embedding(11, width), batch_first
        self.lstm = nn.LSTM(width, width, batch_first=batch_first)
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens):
        hidden = self.layer(self.lstm(self.embed(tokens if self.batch_first else tokens.T))[0])
        return self.head(hidden.mean(1 if self.batch_first else 0))


def test_samples_in_the_second_dimension():
    model, other, tokens = Recurrent().eval(), Recurrent(batch_first=True).eval(), torch.randint(0, 11, (5, 9))
    other.load_state_dict(model.state_dict())
    (features,), (expected,) = features_of(model, tokens), features_of(other, tokens)
    assert len(features) > 3
    assert features.keys() == expected.keys()
    for name, t in features.items():
        torch.testing.assert_close(t, expected[name])


@pytest.mark.parametrize("length", [24, 64])  # as many as there are samples to forget, or in a forward pass
def test_as_many_steps_as_samples(length):
    data = torch.randint(0, 11, (200, length)), torch.arange(200) % 3
    level = unseen_level(Recurrent().eval(), Request.remove(data, range(length)), (data[0][:50], data[1][:50]))
    assert level.basis


class Sentences(torch.utils.data.Dataset):
    """Sentences of up to 20 words, and from the middle on of up to 30; the first word tells the label."""

    def __len__(self):
        return 200

    def __getitem__(self, i):
        return torch.cat([torch.tensor([1 + i % 3]), torch.arange(i % 20 + 10 * (i >= 100)) % 7 + 4]), i % 3


def padded(batch):
    return nn.utils.rnn.pad_sequence([x for x, _ in batch], batch_first=True), torch.tensor([y for _, y in batch])


@pytest.mark.parametrize("batch_first", [True, False])
def test_sentences_that_are_padded_batch_by_batch(batch_first):
    data = torch.utils.data.DataLoader(Sentences(), collate_fn=padded)
    held = torch.utils.data.DataLoader(torch.utils.data.Subset(Sentences(), range(5, 80)), collate_fn=padded)
    for request in (Request.remove(data, range(0, 200, 5)), Request.remove_class(data, 2)):
        level = unseen_level(Recurrent(8, batch_first=batch_first).eval(), request, held)
        assert level.known
    assert level.accuracy.high == 0


def test_depths_that_do_not_fit_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.odd, self.second, self.head = nn.Linear(8, 8), nn.Identity(), nn.Tanh(), nn.Linear(8, 3)

        def forward(self, x):
            hidden = self.odd(self.first(x).masked_fill(x > 3, -torch.inf))
            return self.head(self.second(hidden))

    model, x = Net(), torch.randn(90, 8).clamp(max=2)
    assert list(features_of(model, x)[0]) == [Depths.INPUT, "first", "odd", "second"]
    x[40, 0] = 4.0
    first, second = features_of(model, x[:20], x[20:])
    assert list(first) == [Depths.INPUT, "first", "odd", "second"]
    assert list(second) == [Depths.INPUT, "first", "second"]
    x[60, 1] = torch.nan
    data = x.nan_to_num(), torch.arange(90) % 3
    assert unseen_level(model, Request.remove(data, range(9)), data).basis
    assert list(features_of(model, x[:20], x[20:])[1]) == []  # nor is the input


def digits_network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def trained(x, y, seed, epochs):
    model = digits_network(seed)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def digits():
    return load_digits(test_share=0.25)


@pytest.mark.parametrize("kind", ["random tenth", "mislabelled tenth"])
def test_level_of_a_retrained_network(digits, kind):
    x, y, n = digits.train_x, digits.train_y.clone(), len(digits.train_x) // 10
    if kind == "mislabelled tenth":
        y[:n] = (y[:n] + 1 + torch.arange(n) % 9) % 10
    held = digits.test_x, digits.test_y
    model = trained(x, y, 0, 25)
    truth = accuracy(trained(x[n:], y[n:], 1, 25), (x[:n], y[:n]))
    request = Request.remove((x, y), range(n))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for reference, allowed in ((held, 0.03), (None, 0.06)):
        level = unseen_level(model, request, reference)
        assert level.accuracy.low - 1e-9 <= truth <= level.accuracy.high + 1e-9
        assert abs(level.accuracy.estimate - truth) < allowed
        assert level.accuracy.high - level.accuracy.low < 0.15
        assert level.confidence.low <= level.confidence.estimate <= level.confidence.high
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_last_features_are_not_believed(digits):
    """A network that memorised labels at random has features that tell them, except of samples it never saw."""
    x, held = digits.train_x[:400], digits.test_x
    y = torch.randint(0, 10, (400,), generator=torch.Generator().manual_seed(0))
    model = trained(x, y, 0, 60)
    assert accuracy(model, (x, y)) > 0.9
    level = unseen_level(model, Request.remove((x, y), range(40)), (held, digits.test_y))
    assert level.accuracy is None or level.accuracy.estimate < 0.3


@pytest.fixture
def small():
    torch.manual_seed(0)
    y = torch.arange(90) % 3
    return nn.Linear(8, 3), torch.randn(90, 8) + 3 * torch.eye(3, 8)[y], y


def test_a_whole_class_is_never_given(small):
    model, x, y = small
    for request in (Request.remove_class((x, y), 2), Request.remove((x, y), range(2, 90, 3))):
        level = unseen_level(model, request)
        assert (level.accuracy.low, level.accuracy.estimate, level.accuracy.high) == (0.0, 0.0, 0.0)
        assert level.confidence.high == pytest.approx(1 / 3)
    some = unseen_level(model, Request.remove((x, y), range(2, 80, 3)))
    assert some.accuracy.high > 0  # a few samples of the class stay


def test_a_class_of_which_few_samples_stay_is_not_gone():
    """A dataset that does not tell its labels, of which the first ones that are read do not have that of the class."""

    class Few(torch.utils.data.Dataset):
        def __len__(self):
            return 20_000

        def __getitem__(self, i):
            label = 2 if i < 53 else i % 2
            return torch.eye(3)[label].repeat(2) + i / 1e6, label

    model = nn.Linear(6, 3)
    assert unseen_level(model, Request.remove(Few(), range(53))).accuracy.high == 0
    level = unseen_level(model, Request.remove(Few(), range(50)))
    assert "too few samples stay" in level.basis
    level = unseen_level(model, Request.remove(Few(), range(150)))
    assert level.accuracy.high - level.accuracy.low > 0.5


def test_held_out_data_that_hold_the_class_to_forget(small):
    """Without a retain set nothing tells then whether it goes as a whole."""
    model, x, y = small
    gone, held = (x[y == 2], y[y == 2]), (x[y != 2], y[y != 2])
    request = Request.from_sets(forget=gone)
    assert unseen_level(model, request.with_held_out(held)).accuracy.high == 0
    level = unseen_level(model, request.with_held_out((x, y)))
    assert not level.known
    assert "leave them out of the held-out data" in level.basis
    assert unseen_level(model, Request.from_sets(forget=(x[:9], y[:9])).with_held_out((x, y))).known


def test_labels_of_a_class_and_of_others(small):
    """Of two classes' samples one class goes whole: its half is never given."""
    model, x, y = small
    level = unseen_level(model, Request.remove((x, y), [i for i in range(90) if y[i] == 2 or i in (0, 3)]))
    assert level.accuracy.estimate <= 2 / 32
    assert level.loss is None


def test_corrected_labels(small):
    model, x, y = small
    fixed = y.clone()
    fixed[:9] = (y[:9] + 1) % 3
    level = unseen_level(model, Request.correct((x, y), (x, fixed)))
    wrong = 1 - accuracy(model, (x[9:], y[9:]))
    assert level.accuracy.high == pytest.approx(wrong)
    assert level.accuracy.estimate == pytest.approx(wrong / 2)


def test_a_reference_model_is_measured(small):
    model, x, y = small
    reference = nn.Linear(8, 3)
    level = unseen_level(model, Request.remove((x, y), range(10)), reference)
    assert level.accuracy.estimate == pytest.approx(accuracy(reference, (x[:10], y[:10])))
    own = F.cross_entropy(reference(x[:10]), y[:10])
    assert level.loss.estimate == pytest.approx(float(own.detach()), rel=1e-5)
    assert level.accuracy.low <= level.accuracy.estimate <= level.accuracy.high


@pytest.mark.parametrize("shape", [(90,), (90, 1)])
def test_a_single_logit(shape):
    torch.manual_seed(0)
    x = torch.randn(120, 8)
    y = (x[:, 0] > 0).float().reshape(-1, *shape[1:])

    class Yes(nn.Linear):
        def forward(self, x):
            return super().forward(x).reshape(-1, *shape[1:])

    level = unseen_level(Yes(8, 1), Request.remove((x[:90], y[:90]), range(20)), (x[90:], y[90:]))
    assert level.known


def test_outputs_of_another_kind_are_unknown(small):
    x = small[1]
    regression = unseen_level(nn.Linear(8, 1), Request.remove((x, torch.randn(90, 1)), range(9)))
    tokens = unseen_level(nn.Linear(8, 3), Request.remove((torch.randn(90, 4, 8), torch.zeros(90, 4).long()), range(9)))
    for level in (regression, tokens):
        assert not level.known
        assert "nothing is estimated" in level.basis


def test_samples_that_are_read_are_few(small):
    model, *_ = small
    read = []

    class Many(torch.utils.data.Dataset):
        targets = torch.arange(20_000) % 3

        def __len__(self):
            return 20_000

        def __getitem__(self, i):
            read.append(i)
            return torch.randn(8, generator=torch.Generator().manual_seed(i)), int(self.targets[i])

    unseen_level(model, Request.remove(Many(), range(9_000)))
    assert len(read) < 30_000


def test_level_tells_the_farther_end():
    assert Level(0.5, 0.4, 0.7).furthest(0.5) == pytest.approx(0.2)
