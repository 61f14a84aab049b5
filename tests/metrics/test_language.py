"""Measures of language models by hand, and that they depend on a text alone."""

import copy
import math
import zlib
from functools import partial

import pytest
import torch
from torch import nn

from unlearnx._copies import independent
from unlearnx.metrics import (
    answer_probability,
    extraction_strength,
    forget_quality,
    min_k,
    model_utility,
    reference_attack,
    rouge_l,
    truth_ratio,
    zlib_attack,
)

P = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]], dtype=torch.float64)  # of the next token


@pytest.fixture
def bigram():
    return nn.Embedding.from_pretrained(P.log())


def texts(*rows):
    y = torch.tensor(rows)
    return y.clamp(min=0), y


def test_answer_probability(bigram):
    found = answer_probability(bigram, texts([0, 1, 1, 2], [2, -100, 0, 1]))
    # 0.25, 0.8 and 0.1 after 0, 1 and 1; of the second text only the last two count, and what precedes them is 0 and 0
    expected = [(0.25 * 0.8 * 0.1) ** (1 / 3), (0.5 * 0.25) ** (1 / 2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_truth_ratio(bigram):
    right, wrong = texts([0, 1, 1]), [texts([0, 2, 0]), texts([0, 0, 0])]
    probabilities = [(0.25 * 0.6) ** 0.5, (0.5 * 0.5) ** 0.5]
    expected = math.sqrt(probabilities[0] * probabilities[1]) / ((0.25 * 0.8) ** 0.5 + 1e-10)
    assert truth_ratio(bigram, right, wrong).item() == pytest.approx(expected, rel=1e-12)


def test_extraction_strength(bigram):
    # the most likely next tokens are 0, 1 and 0 after 0, 1 and 2
    found = extraction_strength(bigram, texts([0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 2, 0, 0]))
    assert found.tolist() == [1.0, 0.75, 0.0, 0.5]


def test_min_k(bigram):
    data = texts([0, 1, 1, 2, 0, 2])
    logs = [math.log(p) for p in (0.25, 0.8, 0.1, 0.6, 0.25)]
    assert min_k(bigram, data, share=0.4).item() == pytest.approx((logs[2] + logs[0]) / 2)
    assert min_k(bigram, data, share=0.01).item() == pytest.approx(logs[2])
    assert min_k(bigram, data, share=1.0).item() == pytest.approx(sum(logs) / 5)
    mean = (P * P.log()).sum(1)
    deviation = ((P * P.log().square()).sum(1) - mean.square()).sqrt()
    scaled = sorted(float((log - mean[i]) / deviation[i]) for log, i in zip(logs, (0, 1, 1, 2, 0), strict=True))
    assert min_k(bigram, data, share=0.4, normalised=True).item() == pytest.approx(sum(scaled[:2]) / 2)


def test_zlib_attack(bigram):
    data = texts([0, 1, 1, 2], [2, -100, 0, 1])
    written = ["aaaaaaaa" * 20, "an answer"]
    sizes = [len(zlib.compress(text.encode())) for text in written]
    assert sizes[0] < len(written[0]) / 4  # what repeats is simple
    means = [math.log(0.25 * 0.8 * 0.1) / 3, math.log(0.5 * 0.25) / 2]
    expected = [mean / size for mean, size in zip(means, sizes, strict=True)]
    assert zlib_attack(bigram, data, written).tolist() == pytest.approx(expected, rel=1e-12)


def test_reference_attack(bigram):
    even = nn.Embedding.from_pretrained(torch.zeros(3, 3))
    found = reference_attack(bigram, even, texts([0, 1, 1, 2], [2, -100, 0, 1]))
    expected = [math.log(0.25 * 0.8 * 0.1) / 3 - math.log(1 / 3), math.log(0.5 * 0.25) / 2 - math.log(1 / 3)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_rouge_l():
    """Recall of the longest common subsequence of stemmed words, without regard to case and punctuation."""
    wanted = ["The author writes novels.", "a b c d", "one two"]
    written = ["An author was writing a novel", "d c b a", "three"]
    assert rouge_l(written, wanted).tolist() == [0.75, 0.25, 0.0]


def test_forget_quality_is_the_test_of_kolmogorov_and_smirnov():
    a, b = torch.arange(10.0), torch.arange(10.0) + 20
    assert forget_quality(a, b).p == pytest.approx(2 / math.comb(20, 10))  # of all splits, the two that part them
    same = forget_quality(a, a.flip(0))
    assert (same.p, same.high) == (1.0, 1.0)
    assert same.low < 1.0
    assert forget_quality(a, b, seed=3) == forget_quality(a, b, seed=3)


def test_model_utility():
    assert model_utility({"a": 0.5, "b": 0.25, "c": 1.0}) == pytest.approx(3 / (2 + 4 + 1))
    assert model_utility({"a": 0.5, "b": 0.0}) == 0.0


SIZES = {
    "LlamaForCausalLM": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1},
}


@pytest.fixture(scope="module", params=["LlamaForCausalLM", "GPT2LMHeadModel", "adapter"])
def model(request):
    """Places of tokens count from one another in a Llama, and from the beginning of the row in a GPT-2."""
    transformers = pytest.importorskip("transformers")
    name = "GPT2LMHeadModel" if request.param == "adapter" else request.param
    made = getattr(transformers, name)
    torch.manual_seed(0)
    model = made(made.config_class(vocab_size=40, initializer_range=0.2, **SIZES[name]))
    if request.param == "adapter":
        peft = pytest.importorskip("peft")
        layers = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        model = peft.get_peft_model(model, layers)
    return model.eval()


GENERATOR = torch.Generator().manual_seed(1)
ROWS = [torch.randint(1, 40, (n,), generator=GENERATOR) for n in (5, 9, 12, 7)]


def filled_up(rows, *, left):
    """Texts of different lengths, the first two tokens of each a prompt, filled up on one side."""
    length = max(map(len, rows))
    data = {key: torch.zeros(len(rows), length, dtype=torch.long) for key in ("input_ids", "attention_mask", "labels")}
    data["labels"] -= 100
    for i, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(len(row))
        data["input_ids"][i, place] = row
        data["attention_mask"][i, place] = 1
        data["labels"][i, place] = row.where(torch.arange(len(row)) >= 2, -100)
    return data


def of_preference(model, data, *, batch_size=None):
    """The truth ratio beside wrong answers that are the same texts with other tokens, one higher."""
    wrong = {**data, "input_ids": data["input_ids"].where(data["labels"] == -100, data["input_ids"] % 39 + 1)}
    wrong["labels"] = wrong["input_ids"].where(data["labels"] != -100, -100)
    return truth_ratio(model, data, [wrong, wrong], batch_size=batch_size)


def of_compressed(model, data, *, batch_size=None):
    return zlib_attack(model, data, ["an answer"] * len(data["labels"]), batch_size=batch_size)


def of_two_models(model, data, *, batch_size=None):
    """The attack with another model, which is the same with other scores."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(0.5)
    return reference_attack(model, other, data, batch_size=batch_size)


@pytest.mark.parametrize(
    "measure",
    [
        *(answer_probability, extraction_strength, of_preference, min_k),
        partial(min_k, share=1.0),
        partial(min_k, normalised=True),
        of_compressed,
        of_two_models,
    ],
    ids=["probability", "extraction", "truth ratio", "min-k", "loss", "min-k++", "zlib", "reference"],
)
def test_a_text_is_measured_by_itself(model, measure):
    """Neither the batch, nor the side of the padding, nor what is in the batch beside it makes a difference."""
    alone = torch.cat([measure(model, filled_up([row], left=False)) for row in ROWS])
    no_mask = torch.cat([measure(model, without_mask(filled_up([row], left=False))) for row in ROWS])
    torch.testing.assert_close(no_mask, alone, rtol=0, atol=1e-5)
    for left in (False, True):
        for batch_size in (1, 3, 4):
            found = measure(model, filled_up(ROWS, left=left), batch_size=batch_size)
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    others = [ROWS[0], *(row.flip(0) for row in ROWS[1:])]  # the first text, among others than before
    for left in (False, True):
        found = measure(model, filled_up(others, left=left))
        torch.testing.assert_close(found[0], alone[0], rtol=0, atol=1e-5)
    assert torch.equal(measure(model, filled_up(ROWS, left=True)), measure(model, filled_up(ROWS, left=True)))


@pytest.mark.parametrize(
    "wrapped",
    [torch.compile, nn.DataParallel, lambda model: independent(torch.compile(model))],
    ids=["compiled", "parallel", "a copy of a compiled one"],
)
def test_padding_counts_nowhere_in_a_wrapped_model(model, wrapped):
    """A wrapper's own signature does not tell that the model takes the places of tokens."""
    alone = answer_probability(model, filled_up(ROWS, left=False))
    found = answer_probability(wrapped(model), filled_up(ROWS, left=True))
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


def without_mask(data):
    return {key: rows for key, rows in data.items() if key != "attention_mask"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: answer_probability(m, texts([0, -100])), "data: a text has no label that counts"),
        (lambda m: answer_probability(m, (torch.zeros(2, 3).long(), torch.zeros(2))), "data: labels are torch.float32"),
        (lambda m: min_k(m, texts([0, 1]), share=0.0), "share is 0.0, expected a number above 0"),
        (lambda m: truth_ratio(m, texts([0, 1]), []), "wrong is empty, expected a list of at least one"),
        (lambda m: truth_ratio(m, texts([0, 1]), [texts([0, 1], [1, 1])]), r"wrong\[0\]: has 2 answers, expected 1"),
        (lambda m: truth_ratio(m, texts([0, 1]), [texts([0, -100])]), r"wrong\[0\]: a text has no label"),
        (lambda m: zlib_attack(m, texts([0, 1]), "a"), "texts is 'a', expected a list of texts"),
        (lambda m: zlib_attack(m, texts([0, 1]), []), "texts: has 0 texts, expected 1"),
        (lambda m: rouge_l("a", ["a"]), "written is 'a', expected a list of texts"),
        (lambda m: rouge_l(["a"], [1]), "wanted is .*, expected a list of texts"),
        (lambda m: rouge_l(["a"], []), "written: has 1 texts, expected 0"),
        (lambda m: rouge_l([], []), "written, wanted: are empty, expected at least one text of each"),
        (lambda m: forget_quality(torch.rand(3), torch.rand(4)), "retrained: has 4 ratios, expected 3"),
        (lambda m: forget_quality(torch.tensor([math.nan]), torch.rand(1)), "unlearned: has shape"),
        (lambda m: model_utility({}), "values: is empty"),
        (lambda m: model_utility({"a": 1.5}), "values: 'a' is 1.5, expected a number from 0 to 1"),
    ],
)
def test_clear_errors(bigram, call, said):
    with pytest.raises(ValueError, match=said):
        call(bigram)
