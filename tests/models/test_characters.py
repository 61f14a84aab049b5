import pytest
import torch
from torch.nn import functional as F

from unlearnx import Request
from unlearnx.data import Alphabet, windows
from unlearnx.methods import FineTune, FirstOrder, SecondOrder
from unlearnx.metrics import accuracy, confusion_matrix, mean_loss, per_class_report, predict
from unlearnx.models import CharacterLSTM, Training, last_character_loss

TEXT = "the cat sat on the mat. " * 8


@pytest.fixture(params=[1, 2])
def model(request):
    return CharacterLSTM(TEXT, embedding=5, hidden=8, layers=request.param).double()


def cells(model, codes):
    """Scores (V,) after each of the codes, by the textbook's equations, one character at a time."""
    layers = model.lstm.num_layers
    h = c = [torch.zeros(8, dtype=torch.float64)] * layers
    scores = []
    for code in codes:
        below = model.embedding.weight[code]
        new_h, new_c = [], []
        for k in range(layers):
            w, r, b, b2 = (
                getattr(model.lstm, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (w @ below + r @ h[k] + b + b2).chunk(4)
            new_c.append(f.sigmoid() * c[k] + i.sigmoid() * g.tanh())
            new_h.append(o.sigmoid() * new_c[k].tanh())
            below = new_h[k]
        h, c = new_h, new_c
        scores.append(model.output.weight @ below + model.output.bias)
    return torch.stack(scores, 1)


def test_scores_against_the_equations(model):
    x, y = windows(model.alphabet.encode(TEXT), 6, 5)
    expected = torch.stack([cells(model, codes) for codes in x])
    torch.testing.assert_close(model(x), expected)
    assert model(x).shape == (len(x), len(model.alphabet), 6)
    mean = F.cross_entropy(model(x), y)
    torch.testing.assert_close(mean, -expected.log_softmax(1).gather(1, y[:, None]).mean())
    last = last_character_loss(model(x), y)
    torch.testing.assert_close(last, -expected.log_softmax(1)[range(len(x)), y[:, -1], -1])


def test_advance_reads_on(model):
    codes = model.alphabet.encode(TEXT)[None, :20].expand(3, -1)
    whole, end = model.advance(codes)
    first, state = model.advance(codes[:, :7])
    second, state = model.advance(codes[:, 7:], state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    assert all(t.shape == (model.lstm.num_layers, 3, 8) for t in state)
    torch.testing.assert_close(state, end)


def test_alphabet():
    alphabet = Alphabet(TEXT)
    assert CharacterLSTM(alphabet).alphabet is alphabet
    assert CharacterLSTM(TEXT).alphabet.characters == alphabet.characters
    with pytest.raises(ValueError, match="hidden is 0"):
        CharacterLSTM(TEXT, hidden=0)


@pytest.fixture(scope="module")
def study():
    """A model that knows a text by heart, and the text with other words in one place."""
    torch.manual_seed(0)
    model = CharacterLSTM(TEXT + "dog", embedding=8, hidden=32)
    old, new = (windows(model.alphabet.encode(t), 12) for t in (TEXT, TEXT[:72] + TEXT[72:].replace("cat", "dog", 1)))
    Training(8, lr=2e-2, batch_size=16).run(model, old)
    return model.eval(), old, new


def test_metrics_count_positions(study):
    model, (x, y), _ = study
    predicted = model(x).argmax(1)
    assert torch.equal(predict(model, (x, y), batch_size=50), predicted)
    assert accuracy(model, (x, y), batch_size=50) == pytest.approx((predicted == y).double().mean().item())
    assert accuracy(model, (x, y)) > 0.9
    matrix = confusion_matrix(model, (x, y), classes=len(model.alphabet), batch_size=50)
    assert matrix.sum() == y.numel()
    assert matrix.diagonal().sum() == (predicted == y).sum()
    assert torch.equal(per_class_report(model, (x, y)).support, y.flatten().bincount())
    for loss_fn in (F.cross_entropy, last_character_loss):
        expected = loss_fn(model(x), y).mean().item()
        assert mean_loss(model, loss_fn, (x, y), batch_size=50) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, last_character_loss])
@pytest.mark.parametrize(
    "method",
    [FineTune(epochs=2), FirstOrder(steps=2), SecondOrder(steps=1, curvature_samples=64)],
    ids=lambda m: type(m).__name__,
)
def test_methods_correct_a_text(study, method, loss_fn):
    model, old, new = study
    request = Request.correct(old, new)
    method.loss_fn = loss_fn
    outcome = method(model, request)
    assert outcome.applied, outcome.reason
    before, after = outcome.loss_before, outcome.loss_after
    assert after < before


def test_methods_correct_labels_alone(study):
    """Labels at every position: a window is wrong where one of its characters is."""
    model, (x, y), _ = study
    corrected = y.clone()
    corrected[3] = 0
    outcome = FirstOrder(steps=1)(model, Request.correct((x, y), (x, corrected)))
    wrong = (model(x).argmax(1) != corrected).any(1).sum()
    assert outcome.info["steps"][0]["points"] == wrong
