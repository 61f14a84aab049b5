"""`exposure` runs once what samples have in common; published code runs every sample anew from its first character.

Both sides are timed per sample, the others on a batch of the published size before and after ours: they cost the same
for every sample, ours less the more samples there are.
"""

import math
import string
import time

import pytest
import torch

from unlearnx.metrics import exposure
from unlearnx.models import CharacterLSTM

PREFIX = "`my telephone number is "
ALPHABET = string.ascii_lowercase + string.digits + " `!'.,\n()*-:;?[]_\""  # the novel's, and all digits
LENGTH = 10
BATCH = 1000


def once(model, texts):
    """Log-perplexities in bits of the last characters of texts (N, T), every text read from its first one."""
    logs = model(texts[:, :-1]).log_softmax(1).gather(1, texts[:, None, 1:])[:, 0, -LENGTH:]
    return logs.sum(1) / -math.log(2)


def for_every_character(model, texts):
    """The same, every text read from its first character for each of those to score, as in published code."""
    bits = torch.zeros(len(texts), device=texts.device)
    for j in range(texts.shape[1] - LENGTH, texts.shape[1]):
        bits -= model(texts[:, :j])[:, :, -1].log_softmax(1).gather(1, texts[:, j : j + 1])[:, 0] / math.log(2)
    return bits


@torch.no_grad()
def seconds_a_sample(way, model, texts):
    begin = time.perf_counter()
    way(model, texts).cpu()
    return (time.perf_counter() - begin) / len(texts)


@pytest.mark.benchmark(group="exposure")
@pytest.mark.parametrize("samples", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_exposure(benchmark, claim, device, samples):
    torch.manual_seed(0)
    model = CharacterLSTM(ALPHABET).to(device).eval()
    digits = model.alphabet.encode(string.digits)[torch.randint(10, (BATCH, LENGTH))]
    texts = torch.cat([model.alphabet.encode(PREFIX).expand(BATCH, -1), digits], 1).to(device)

    def ours(n=samples):
        return exposure(model, PREFIX, "0123456789", string.digits, samples=n)

    ways = {"once": once, "for every character": for_every_character}
    times = {name: [] for name in ways}

    def others():
        for name, way in ways.items():
            times[name].append(seconds_a_sample(way, model, texts))

    with torch.no_grad():
        torch.testing.assert_close(once(model, texts), for_every_character(model, texts))  # warms up, too
    ours(1000)
    others()
    benchmark.pedantic(ours, rounds=1)
    others()
    own = benchmark.stats.stats.mean / samples
    ratios = {name: min(t) / own for name, t in times.items()}
    seconds = {"ours": own, **{name: min(t) for name, t in times.items()}}
    benchmark.extra_info.update(device=device, samples=samples, seconds_a_sample=seconds, ratios=ratios)
    claim(ratios["for every character"] >= 15, "the published way takes 15 times as long or longer")
