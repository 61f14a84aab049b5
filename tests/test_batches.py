"""Nests of tensors: samples counted, cut, moved and joined; what is no batch is refused in a sentence."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from unlearnx._batches import changed, count, joined, rows, scores, take, tensors
from unlearnx._data import as_dataset, batches, materialize, size


class Ragged(Dataset):
    """Texts of different lengths, as tokenizers give them."""

    def __len__(self):
        return 7

    def __getitem__(self, i):
        return {"input_ids": list(range(1, i + 3)), "label": i % 2}


def padded(samples):
    """A collate function as HuggingFace's: it pads, renames the label, and returns a mapping that is no dict."""
    length = max(len(s["input_ids"]) for s in samples)
    ids = torch.tensor([s["input_ids"] + [0] * (length - len(s["input_ids"])) for s in samples])
    return UserDict(input_ids=ids, attention_mask=(ids > 0).long(), labels=torch.tensor([s["label"] for s in samples]))


def nest(n: int) -> dict:
    return {
        "ids": torch.arange(n * 3).view(n, 3),
        "images": (torch.randn(n, 2), [torch.randn(n, 1)]),
        "flag": True,
        "mask": None,
        "positions": torch.arange(3)[None],
    }


def test_cut_and_joined():
    x = nest(6)
    assert count(x) == 6
    parts = [take(x, slice(i, i + 2)) for i in range(0, 6, 2)]
    assert parts[1]["ids"].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert parts[1]["positions"].shape == (1, 3)
    assert parts[1]["flag"] is True
    assert parts[1]["mask"] is None
    again = joined(parts)
    for a, b in zip(tensors(x), tensors(again), strict=True):
        torch.testing.assert_close(a, b)
    assert take(x, torch.tensor([5, 0]))["images"][1][0].shape == (2, 1)


@dataclass(frozen=True)
class Result:
    logits: torch.Tensor
    loss: float | None = None


@dataclass(slots=True)
class Slots:
    logits: torch.Tensor
    loss: float | None = None


class Both(OrderedDict):
    """Entries that are attributes too, as many a configuration class has them."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__.update(entries)


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(3, 2),
        (torch.ones(3, 2), None),
        {"logits": torch.ones(3, 2)},
        Result(torch.ones(3, 2)),
        Slots(torch.ones(3, 2)),
        Both(logits=torch.ones(3, 2)),
    ],
)
def test_outputs(output):
    assert scores(output).shape == (3, 2)
    assert type(changed(output, torch.neg)) is type(output)
    assert scores(changed(output, torch.neg)).sum() == -6
    assert scores(output).sum() == 6  # a frozen dataclass is copied, not written to
    assert rows(output, 3) is output


def test_entries_and_attributes_stay_the_same():
    other = changed(Both(logits=torch.ones(2), note="text"), torch.neg)
    assert other.logits is other["logits"]
    assert other.note == "text"


def test_a_squeezed_sample_gets_its_row_back():
    assert rows(torch.tensor(2.0), 1).shape == (1,)
    assert rows(Result(torch.ones(4)), 1).logits.shape == (1, 4)
    with pytest.raises(ValueError, match="model: returned Result for 5 samples, expected a tensor with a row for each"):
        rows(Result(torch.ones(4)), 5)


def test_mappings_are_samples():
    loader = DataLoader(Ragged(), batch_size=3, collate_fn=padded)
    pairs = list(batches(loader))
    assert [x["input_ids"].shape for x, _ in pairs] == [(3, 4), (3, 7), (1, 8)]
    assert torch.cat([y for _, y in pairs]).tolist() == [0, 1, 0, 1, 0, 1, 0]
    x, _ = materialize(loader)
    assert x["input_ids"].shape == (7, 8)
    assert set(x) == {"input_ids", "attention_mask"}
    subset = Subset(as_dataset(loader), [1, 5])
    assert materialize(subset)[0]["input_ids"].shape == (2, 7)
    data = {"a": torch.ones(4, 2), "labels": torch.arange(4)}
    assert size(data) == 4
    assert [y.tolist() for _, y in batches(as_dataset(data), 3)] == [[0, 1, 2], [3]]


class Stream(IterableDataset):
    """Has a length, and no samples by index."""

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([(torch.ones(2), i) for i in range(4)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"ids": torch.ones(3)}, "mappings with the entry 'labels', got entries ids"),
        (((torch.ones(3), torch.ones(4, 2)), torch.ones(4)), r"x\[0\] has a first dimension of 3, expected 4 samples"),
        (
            ({"ids": torch.ones(4), "text": ["a"] * 4}, torch.ones(4)),
            r"x\['text'\]\[0\] is a str of 1, expected a tensor",
        ),
        (({"ids": torch.ones(4), "n": [1, 2, 3, 4]}, torch.ones(4)), r"x\['n'\]\[0\] is a int, expected a tensor"),
        (({"ids": torch.ones(4)}, torch.ones(5)), "got 4 samples in x and 5 in y"),
        (({"flag": True}, torch.ones(5)), "expected tensors with a row a sample in x"),
        ((torch.ones(4), [0, 1, 2, 3]), "expected tensors with a row a sample in y"),
        (Stream(), "data: Stream is an IterableDataset, whose samples cannot be read by their index"),
        (DataLoader(Stream()), "data: Stream is an IterableDataset"),
    ],
)
def test_what_is_no_batch(data, message):
    with pytest.raises(ValueError, match=message):
        size(data)


@pytest.mark.parametrize("read", [lambda x, y: (x, y), TensorDataset, lambda x, y: DataLoader(TensorDataset(x, y), 3)])
def test_what_is_read_has_no_history(read):
    """Inputs that require gradients, as for saliency, get none; tensors of inference mode can be saved for a backward
    pass."""
    leaf = torch.ones(5, 2, requires_grad=True)
    with torch.inference_mode():
        made = torch.ones(5)
    for x, y in [*batches(read(leaf, made)), *batches(read(leaf * 2, made), 2), materialize(read(leaf, made))]:
        assert not x.requires_grad
        assert not y.is_inference()
    assert leaf.requires_grad


def test_samples_of_different_lengths_need_padding():
    class Texts(Ragged):
        def __getitem__(self, i):
            return torch.zeros(i + 1), i

    with pytest.raises(ValueError, match="expected samples that stack into a batch"):
        materialize(Texts())
    parts = [(torch.zeros(2, 3),), (torch.zeros(2, 4),)]
    with pytest.raises(ValueError, match="pad them to one length"):
        joined(parts)
