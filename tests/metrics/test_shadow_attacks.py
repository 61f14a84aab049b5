"""U-LiRA, RMIA, KLOM and RF-JSD against plain loops, and what they find where a trace is left."""

import math

import pytest
import torch
from scipy.special import rel_entr
from scipy.stats import norm
from torch import nn

from unlearnx.metrics import klom, klom_interval, rf_jsd, rf_jsd_interval, rmia, u_lira
from unlearnx.metrics.margins import FLOOR


@pytest.fixture
def shadows():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hard = 3 * normal(60)  # samples differ more from each other than from themselves
    seen = torch.arange(18)[:, None] % 2 == torch.randint(2, (60,), generator=generator)
    members = torch.arange(60) < 30
    return hard, seen, members, hard + 0.5 * normal(18, 60), 0.5 * normal(60)


def test_u_lira_finds_what_populations_hide(shadows):
    hard, seen, members, noise, own_noise = shadows
    trace = 1.0
    own = hard + own_noise + trace * members
    found = u_lira(own, noise + trace * seen, seen, members, bootstrap=200)
    assert found.auc > 0.8
    assert found.auc_interval[0] > 0.6
    by_population = (own[members][:, None] > own[~members]).double().mean()
    assert abs(float(by_population) - 0.5) < 0.2
    without = u_lira(hard + own_noise, noise, seen, members, bootstrap=200)
    assert without.auc_interval[0] < 0.5 < without.auc_interval[1]


def test_u_lira_is_the_ratio_of_the_two_densities(shadows):
    hard, seen, members, noise, own_noise = shadows
    table, own = noise + seen, hard + own_noise + members.double()
    found = u_lira(own, table, seen, members, bootstrap=10).scores
    for sample in (0, 17, 44):
        unlearned, never = table[seen[:, sample], sample].numpy(), table[~seen[:, sample], sample].numpy()
        logs = [norm.logpdf(float(own[sample]), t.mean(), t.std(ddof=1)) for t in (unlearned, never)]
        assert float(found[sample]) == pytest.approx(logs[0] - logs[1], rel=1e-9)


def test_rmia_by_a_loop():
    generator = torch.Generator().manual_seed(1)

    def p(*shape):
        return 0.01 + 0.98 * torch.rand(*shape, generator=generator, dtype=torch.float64)

    own, references, others, reference_others = p(20), p(3, 20), p(15), p(3, 15)
    members = torch.arange(20) < 10
    for seen in (torch.zeros(3, 20, dtype=torch.bool), torch.rand(3, 20, generator=generator) < 0.5):
        found = rmia(own, references, seen, members, others, reference_others, gamma=1.5, a=0.4, bootstrap=10)
        for i in range(20):
            inside, outside = references[seen[:, i], i], references[~seen[:, i], i]
            if len(inside) and len(outside):
                alike = float(inside.mean() + outside.mean()) / 2
            elif len(outside):
                alike = (1.4 * float(outside.mean()) + 0.6) / 2
            else:
                alike = float(inside.mean())
            won = 0
            for z in range(15):
                mean = (1.4 * float(reference_others[:, z].mean()) + 0.6) / 2
                won += float(own[i]) / alike / (float(others[z]) / mean) >= 1.5
            assert float(found.scores[i]) == pytest.approx(won / 15)
        assert found.online == bool(seen.any())


def test_klom_by_histograms():
    generator = torch.Generator().manual_seed(2)
    unlearned = torch.randn(40, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 1.0, 4.0])
    retrained = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    found = klom(unlearned, retrained, bins=7)
    for i in range(3):
        edges = torch.linspace(
            float(torch.cat([unlearned[:, i], retrained[:, i]]).min()),
            float(torch.cat([unlearned[:, i], retrained[:, i]]).max()),
            8,
            dtype=torch.float64,
        )
        shares = []
        for t in (retrained[:, i], unlearned[:, i]):
            counts = torch.histogram(t, edges).hist / len(t) + FLOOR
            shares.append(counts / counts.sum())
        assert float(found[i]) == pytest.approx(rel_entr(shares[0].numpy(), shares[1].numpy()).sum(), rel=1e-9)
    assert found[0] < found[1] < found[2]
    assert torch.equal(klom(retrained, retrained), torch.zeros(3, dtype=torch.float64))
    assert klom(torch.ones(4, 1), torch.ones(5, 1)).item() == pytest.approx(0, abs=1e-12)  # no width at all


def test_the_interval_of_klom_by_a_loop():
    generator = torch.Generator().manual_seed(3)
    unlearned = torch.randn(12, 5, generator=generator, dtype=torch.float64) + 1
    retrained = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    values = klom(unlearned, retrained, bins=6)
    mean = float(values.mean())
    variance = sum((float(v) - mean) ** 2 for v in values) / 4 / 5
    for n, without in (
        (12, lambda k: klom(unlearned[[i for i in range(12) if i != k]], retrained, bins=6)),
        (9, lambda k: klom(unlearned, retrained[[i for i in range(9) if i != k]], bins=6)),
    ):
        left_out = [float(without(k).mean()) for k in range(n)]
        variance += (n - 1) / n * sum((v - sum(left_out) / n) ** 2 for v in left_out)
    found = klom_interval(unlearned, retrained, bins=6)
    assert found.value == pytest.approx(mean, rel=1e-12)
    assert found.high - found.value == pytest.approx(1.96 * math.sqrt(variance), rel=1e-12)
    assert found.low == pytest.approx(max(0.0, 2 * mean - found.high), rel=1e-12)
    assert klom_interval(retrained, retrained).low == 0


@pytest.mark.parametrize("shared", [0.0, 0.7])  # by how much a model's margins vary together
def test_intervals_of_klom_hold_what_other_models_and_samples_give(shared):
    generator = torch.Generator().manual_seed(4)

    def margins(hard, shift):
        own, together = (torch.randn(20, n, generator=generator, dtype=torch.float64) for n in (30, 1))
        return hard + shift + own + shared * together

    def drawn():
        hard, odd = (torch.randn(30, generator=generator, dtype=torch.float64) for _ in range(2))
        return margins(2 * hard, 2 + odd), margins(2 * hard, 0.0)

    expected = sum(float(klom(*drawn()).mean()) for _ in range(200)) / 200
    found = [klom_interval(*drawn()) for _ in range(40)]
    assert sum(low <= expected <= high for _, low, high in found) >= 35


class Table(nn.Module):
    """Answers with logarithms of given probabilities."""

    def __init__(self, p):
        super().__init__()
        self.logs = nn.Parameter(torch.tensor(p, dtype=torch.float64).log())

    def forward(self, x):
        return self.logs[x[:, 0].long()]


def test_rf_jsd_by_hand():
    model, original = Table([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]), Table([[0.5, 0.5], [0.3, 0.7], [0.2, 0.8]])
    x = torch.arange(3)[:, None]
    forget, unseen = (x, torch.tensor([0, 0, 1])), (x, torch.tensor([0, 1, 1]))

    def js(p, q):
        return sum(a * math.log(2 * a / (a + b)) / 2 for pair in (zip(p, q), zip(q, p)) for a, b in pair)  # noqa: B905

    expected = (js([0.7, 0.3], [0.5, 0.5]) + js([0.1, 0.9], [0.25, 0.75])) / 2
    assert rf_jsd(model, original, forget, unseen) == pytest.approx(expected, rel=1e-12)
    assert rf_jsd(model, original, forget, unseen, batch_size=1) == pytest.approx(expected, rel=1e-12)
    assert rf_jsd(original, original, unseen, unseen) == 0
    with pytest.raises(ValueError, match="unseen: has no sample of class 1, expected some of each class of forget"):
        rf_jsd(model, original, forget, (x[:2], torch.tensor([0, 0])))


def test_the_interval_of_rf_jsd_by_hand():
    """Of one class: 1/2 KL + 1/2 KL of the means, and these without each sample."""
    p, q = [[0.8, 0.2], [0.6, 0.4], [0.7, 0.3]], [[0.5, 0.5], [0.3, 0.7]]
    forget, unseen = ((torch.arange(n)[:, None], torch.zeros(n, dtype=torch.long)) for n in (3, 2))

    def js(a, b):
        return sum(x * math.log(2 * x / (x + y)) / 2 for s, t in ((a, b), (b, a)) for x, y in zip(s, t, strict=True))

    without = [js([m, 1 - m], [0.4, 0.6]) for m in (0.65, 0.75, 0.7)], [js([0.7, 0.3], [m, 1 - m]) for m in (0.3, 0.5)]
    variance = sum((len(v) - 1) / len(v) * sum((x - sum(v) / len(v)) ** 2 for x in v) for v in without)
    found = rf_jsd_interval(Table(p), Table(q), forget, unseen)
    assert found.value == pytest.approx(js([0.7, 0.3], [0.4, 0.6]), rel=1e-12)
    assert found.high - found.value == pytest.approx(1.96 * math.sqrt(variance), rel=1e-9)
    assert found.low == max(0.0, 2 * found.value - found.high)


def test_the_interval_of_rf_jsd_is_of_the_mean_over_classes():
    p = torch.rand(24, 3, dtype=torch.float64) + 0.1
    model, original = Table((p / p.sum(1, keepdim=True)).tolist()), Table((p / p.sum(1, keepdim=True)).flip(1).tolist())
    x, y = torch.arange(24)[:, None], torch.arange(24) % 3
    found = rf_jsd_interval(model, original, (x, y), (x, y), batch_size=7)
    assert found.value == pytest.approx(rf_jsd(model, original, (x, y), (x, y)), rel=1e-12)
    classes = [rf_jsd_interval(model, original, *[(x[y == c], y[y == c])] * 2) for c in range(3)]
    widths = [own.high - own.value for own in classes]
    assert found.high - found.value == pytest.approx(math.sqrt(sum(w * w for w in widths)) / 3, rel=1e-9)
    with pytest.raises(ValueError, match="unseen: has one sample of class 2, expected 2 of each or more"):
        rf_jsd_interval(model, original, (x, y), (x[:5], y[:5]))
    certain = Table([[1.0, 0.0]] * 4)
    same = x[:4], torch.zeros(4, dtype=torch.long)
    assert rf_jsd_interval(certain, certain, same, same) == (0.0, 0.0, 0.0)


def test_clear_errors():
    p, seen, members = torch.full((4,), 0.5), torch.zeros(2, 4, dtype=torch.bool), torch.arange(4) < 2
    right = (p, p.expand(2, 4), seen, members, p, p.expand(2, 4))
    for place, wrong, said in (
        (0, p + 0.6, r"probability: has values outside of \(0, 1\]"),
        (2, seen[:1], "reference_in: has shape"),
        (3, members[:3], "members: has shape"),
        (4, p[:0], "population: has shape"),
        (5, p, r"reference_population: has shape \[4\], expected \[2, 4\]"),
    ):
        with pytest.raises(ValueError, match=said):
            rmia(*(wrong if i == place else t for i, t in enumerate(right)))
    with pytest.raises(ValueError, match="shadow_unlearned: no shadow model unlearned sample 0"):
        u_lira(torch.randn(4), torch.randn(8, 4), torch.zeros(8, 4, dtype=torch.bool), members)
    with pytest.raises(ValueError, match="retrained: has 3 samples, expected 4 as unlearned"):
        klom(torch.randn(5, 4), torch.randn(5, 3))
    with pytest.raises(ValueError, match="unlearned: has shape"):
        klom(torch.randn(1, 4), torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"unlearned: has shape \[4, 1\], expected two samples or more"):
        klom_interval(torch.randn(4, 1), torch.randn(5, 1))
