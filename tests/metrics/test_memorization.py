import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from unlearnx.data import Canary, windows
from unlearnx.metrics import complete, exposure, log_perplexity
from unlearnx.metrics import memorization as module
from unlearnx.models import CharacterLSTM, Training

PREFIX = "number is "
TEXT = "my number is 314. and my house has 27 rooms, of which 905 are small. my number is 314. 68 "


@pytest.fixture(scope="module")
def model():
    """Knows a sentence by heart, after a training that leaves it unsure of the rest."""
    torch.manual_seed(0)
    model = CharacterLSTM(TEXT, embedding=8, hidden=24).double()
    Training(25, lr=2e-2, batch_size=16).run(model, windows(model.alphabet.encode(TEXT), 16))
    return model.eval()


def brute(model, prefix, text, fed=None):
    """Log-perplexity in bits, the model started anew for every character."""
    bits = 0.0
    for j, character in enumerate(text):
        with torch.no_grad():
            scores = model(model.alphabet.encode(prefix + (fed or text)[:j])[None])[0, :, -1].numpy()
        shifted = scores - scores.max()
        probabilities = np.exp(shifted) / np.exp(shifted).sum()
        bits -= math.log2(probabilities[model.alphabet.characters.index(character)])
    return bits


def all_bits(model, alphabet, length):
    """Log-perplexities of all candidates, each of them run from its first character, prefix included."""
    texts = ["".join(c) for c in itertools.product(alphabet, repeat=length)]
    codes = torch.stack([model.alphabet.encode(PREFIX + text) for text in texts])
    with torch.no_grad():
        logs = model(codes).log_softmax(1)[:, :, len(PREFIX) - 1 : -1].numpy()
    bits = -np.take_along_axis(logs, codes[:, None, len(PREFIX) :].numpy(), 1)[:, 0].sum(1) / math.log(2)
    assert bits[::97].tolist() == pytest.approx([brute(model, PREFIX, text) for text in texts[::97]], rel=1e-10)
    return bits


def test_perplexity_against_brute_force(model):
    assert log_perplexity(model, PREFIX, "314.") == pytest.approx(brute(model, PREFIX, "314."), rel=1e-10)
    texts = ["314", "315", "999", "314"]
    codes = torch.stack([model.alphabet.encode(t) for t in texts])
    bits = log_perplexity(model, model.alphabet.encode(PREFIX), codes)
    assert bits.dtype == torch.float64
    assert bits.tolist() == pytest.approx([brute(model, PREFIX, t) for t in texts], rel=1e-10)


def test_perplexity_along_the_models_own_text(model):
    """As published: the characters fed are not those that are scored."""
    for text in ("314", "927"):
        expected = brute(model, PREFIX, text, fed=complete(model, PREFIX, 3))
        assert log_perplexity(model, PREFIX, text, feed="argmax") == pytest.approx(expected, rel=1e-10)
    given = log_perplexity(model, PREFIX, "927")
    assert log_perplexity(model, PREFIX, "927", feed="argmax") != pytest.approx(given, rel=0.01)


def test_complete(model):
    assert complete(model, PREFIX, 4) == "314."
    text = "9"
    for _ in range(6):
        scores = model(model.alphabet.encode(text)[None])[0, :, -1]
        text += model.alphabet.characters[scores.argmax()]
    assert complete(model, "9", 6) == text[1:]


@pytest.mark.parametrize("batch_size", [1, 7, 4096])
def test_exact_exposure_ranks_every_candidate(model, batch_size):
    expected = all_bits(model, "0123456789", 3)
    for canary in ("314", "720"):
        result = exposure(model, PREFIX, canary, "0123456789", samples=None, batch_size=batch_size)
        np.testing.assert_allclose(result.sampled, expected, rtol=1e-10)
        rank = 1 + (expected < expected[int(canary)]).sum()
        assert result.rank == rank
        assert result.bits == pytest.approx(math.log2(1000 / rank))
        assert result.space_bits == pytest.approx(math.log2(1000))
        assert result.log_perplexity == pytest.approx(expected[int(canary)])
        assert result.exact
        assert result.fit is result.fit_distance is None
    assert exposure(model, PREFIX, "314", "0123456789", samples=None).rank == 1


@pytest.mark.parametrize("alphabet", ["0123456789", "9876543210", "31m. 4"])
def test_samples_have_their_own_perplexities(model, alphabet):
    """300 draws from few candidates: repetitions, each of them counted."""
    expected = all_bits(model, alphabet, 3)
    result = exposure(model, PREFIX, "314", alphabet, samples=300, seed=5, batch_size=64)
    drawn = torch.randint(len(alphabet), (300, 3), generator=torch.Generator().manual_seed(5)).numpy()
    assert len(np.unique(drawn, axis=0)) < 300
    places = drawn @ len(alphabet) ** np.arange(2, -1, -1)
    np.testing.assert_allclose(result.sampled, expected[places], rtol=1e-10)


def test_estimate_is_the_skew_normals(model):
    result = exposure(model, PREFIX, "905", "0123456789", samples=2000, seed=1)
    shape, location, scale = stats.skewnorm.fit(result.sampled.numpy())
    expected = -stats.skewnorm(shape, location, scale).logcdf(result.log_perplexity) / math.log(2)
    assert result.bits == pytest.approx(expected, rel=1e-2)
    assert result.rank == pytest.approx(2 ** (result.space_bits - result.bits))
    assert not result.exact
    assert 0 < result.fit_distance < 0.1


def test_estimate_is_near_the_exact_exposure(model):
    """Candidates in the bulk of the distribution, ranked by both ways."""
    for canary in ("5029", "8888", "4190"):
        exact = exposure(model, PREFIX, canary, "0123456789", samples=None)
        estimate = exposure(model, PREFIX, canary, "0123456789", samples=10_000)
        assert estimate.bits == pytest.approx(exact.bits, abs=0.3 + 0.1 * exact.bits)


def test_exposure_is_no_less_than_its_lower_bound(model):
    for canary in ("314", "310", "270", "999"):
        exact = exposure(model, PREFIX, canary, "0123456789", samples=None)
        assert 0 <= exact.lower_bound <= exact.bits + 1e-9
        most = min(1000, math.floor(2**exact.log_perplexity))
        assert exact.lower_bound == pytest.approx(math.log2(1000 / most))
    assert exposure(model, PREFIX, "314", "0123456789", samples=200).lower_bound == pytest.approx(math.log2(1000))


def test_random_canaries_are_not_among_the_samples_of_their_seed():
    model = CharacterLSTM("0123456789", embedding=2, hidden=2)
    own = log_perplexity(model, "1", Canary.random(10, seed=0).number)
    sampled = exposure(model, "1", "0" * 10, "0123456789", samples=1000, seed=0).sampled
    assert (sampled - own).abs().min() > 1e-6


def test_memorised_text_stands_out(model):
    """Far beyond all samples the estimate goes on: more than one in so many candidates."""
    known, unknown = (exposure(model, PREFIX, c, "0123456789", samples=1000) for c in ("314", "720"))
    assert known.bits > 6 > unknown.bits


@pytest.mark.parametrize(("length", "base"), [(4, 10), (9, 300), (70, 3), (3, 2)])
def test_lexicographic_order(length, base):
    """Rows that take one key, or several."""
    rows = torch.randint(base, (500, length))
    rows[::3] = rows[0]
    ordered = rows[module._lexicographic(rows, base)]
    assert ordered.tolist() == sorted(rows.tolist())


def test_shared_beginnings_are_run_once(model, monkeypatch):
    ran = []
    step = module._Beginning._step
    monkeypatch.setattr(
        module._Beginning,
        "_step",
        lambda self, characters, state: ran.append(len(characters)) or step(self, characters, state),
    )
    exposure(model, PREFIX, "3149", "0123456789", samples=None)
    assert ran == [10, 100, 1000]


def test_layers_and_precisions(device):
    for layers, dtype in ((2, torch.float64), (1, torch.bfloat16)):
        model = CharacterLSTM("0123456789", embedding=4, hidden=8, layers=layers).to(device, dtype)
        bits = exposure(model, "1", "00", "0123456789", samples=None).sampled
        assert float((2**-bits).sum()) == pytest.approx(1, rel=1e-4)
        assert bits[37].item() == pytest.approx(log_perplexity(model, "1", "37"), rel=1e-2)


def test_model_is_left_as_it_was(model):
    model.train()
    model.output.eval()
    for measure in (
        lambda: exposure(model, PREFIX, "314", "0123456789", samples=200),
        lambda: log_perplexity(model, PREFIX, "314"),
        lambda: complete(model, PREFIX, 2),
    ):
        measure()
        assert [m.training for m in model.modules()] == [True, True, True, False]
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    model.eval()


class Counting(nn.Module):
    """Any module with an alphabet and a state of one tensor will do: the likeliest character is the next one's."""

    def __init__(self, alphabet, size):
        super().__init__()
        self.alphabet, self.scale = alphabet, nn.Parameter(torch.tensor(size))

    def advance(self, x, state=None):
        read = torch.zeros(1, len(x), 1) if state is None else state[0]
        scores = torch.arange(float(len(self.alphabet)))[None, :, None] - (x[:, None, :] + 1)
        return -self.scale * scores.abs(), (read + x.shape[1],)


def test_models_of_ones_own(model):
    counting = Counting(model.alphabet, 2.0)
    assert complete(counting, "1", 3) == "234"
    assert exposure(counting, "1", "234", "0123456789", samples=None).rank == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: log_perplexity(m, PREFIX, ""), "text: is empty"),
        (lambda m: log_perplexity(m, "", "3"), "prefix: is empty"),
        (lambda m: log_perplexity(m, "nUmber", "3"), "prefix: character 'U' at position 1 is not one of"),
        (lambda m: log_perplexity(m, PREFIX, "3!"), "text: character '!' at position 1"),
        (
            lambda m: log_perplexity(m, PREFIX, torch.tensor([3])),
            r"text: is torch.int64 of shape \[1\], expected codes",
        ),
        (lambda m: log_perplexity(m, PREFIX, torch.tensor([[99]])), "text: code 99 is out of range"),
        (lambda m: log_perplexity(m, PREFIX, "3", feed="none"), "feed is 'none', expected 'text' or 'argmax'"),
        (lambda m: complete(m, PREFIX, 0), "length is 0"),
        (lambda m: exposure(m, PREFIX, "", "01"), "canary: is empty"),
        (lambda m: exposure(m, PREFIX, "3x4", "0123456789"), "canary: '3x4' has 'x', which is not in alphabet"),
        (lambda m: exposure(m, PREFIX, "1", "0110"), "alphabet is '0110', expected at least two characters, each once"),
        (lambda m: exposure(m, PREFIX, "1", "1"), "alphabet is '1'"),
        (lambda m: exposure(m, PREFIX, "1", "1!"), "alphabet: character '!' at position 1"),
        (lambda m: exposure(m, "Ü", "1", "12"), "prefix: character 'Ü' at position 0"),
        (lambda m: exposure(m, PREFIX, "1", "12", samples=5), "samples is 5, expected at least 100, or None"),
        (lambda m: exposure(m, PREFIX, "1", "12", batch_size=0), "batch_size is 0"),
        (
            lambda m: exposure(m, PREFIX, "1" * 8, "0123456789", samples=None),
            "there are 100,000,000 candidates to rank",
        ),
        (
            lambda m: log_perplexity(Counting(m.alphabet, math.nan), "1", "3"),
            "model: returned probabilities that are NaN or zero",
        ),
        (
            lambda m: complete(Counting(m.alphabet, math.inf), "1", 3),
            "model: returned probabilities that are NaN or zero",
        ),
    ],
)
def test_clear_errors(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)


def test_models_that_do_not_read_on(model):
    for measure in (
        lambda m: exposure(m, PREFIX, "1", "12"),
        lambda m: log_perplexity(m, PREFIX, "1"),
        lambda m: complete(m, PREFIX, 1),
    ):
        with pytest.raises(TypeError, match="model: Linear has no advance and no alphabet"):
            measure(nn.Linear(2, 2))


def test_scores_of_another_shape(model):
    class Last(Counting):
        def advance(self, x, state=None):
            scores, state = super().advance(x, state)
            return scores[..., -1], state

    with pytest.raises(
        ValueError, match=r"model: advance returned scores of shape \[1, \d+\], expected \[1, \d+, 10\]"
    ):
        log_perplexity(Last(model.alphabet, 1.0), PREFIX, "1")
