"""Samples are read by index, a batch at a time, in the same way whatever they come from."""

import os

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from tests.helpers import Lines
from unlearnx import _data, _rows
from unlearnx._data import as_dataset, batches, left_of, materialize, picked
from unlearnx._known_labels import all_labels, known_labels, label_batches
from unlearnx._rows import Rows
from unlearnx._sources import Batched, Changed, Samples, relabelled

N = 23
X, Y = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)), torch.arange(N) % 5


class Together(Lines):
    """Samples that are read several at a time."""

    def __getitem__(self, i):
        raise AssertionError("read one by one")

    def __getitems__(self, indices):
        return [(self.x[i], self.y[i]) for i in indices]


class Told(Lines):
    """A dataset that has its labels, of which no sample may be read."""

    def __init__(self, n=N, **labels):
        self.n = n
        vars(self).update(labels)

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        raise AssertionError("a sample was read")


def doubled(samples):
    """A collate function of the user's own."""
    return torch.stack([2 * x for x, _ in samples]), torch.stack([y for _, y in samples])


LOADERS = {
    "plain": lambda: DataLoader(Lines(X, Y), batch_size=4, shuffle=True),
    "workers": lambda: DataLoader(Lines(X, Y), batch_size=4, shuffle=True, num_workers=2),
    "own collate": lambda: DataLoader(Lines(X / 2, Y), collate_fn=doubled),
    "own collate and workers": lambda: DataLoader(Lines(X / 2, Y), collate_fn=doubled, num_workers=1),
}
FORMS = {
    "pair": lambda: (X, Y),
    "mapping": lambda: {"input": X, "labels": Y},
    "tensors": lambda: TensorDataset(X, Y),
    "nests": lambda: Batched([X], Y),
    "lines": lambda: Lines(X, Y),
    "several at once": lambda: Together(X, Y),
    "changed": lambda: Changed(Lines(X - 1, Y), lambda x, y, index: (x + 1, y)),
    "relabelled": lambda: relabelled(TensorDataset(X, Y + 1), Y),
    "joined tensors": lambda: ConcatDataset([TensorDataset(X[:9], Y[:9]), TensorDataset(X[9:], Y[9:])]),
    "joined lines": lambda: ConcatDataset([Lines(X[:9], Y[:9]), Subset(Lines(X, Y), range(9, N))]),
    "joined kinds": lambda: ConcatDataset([TensorDataset(X[:9], Y[:9]), Lines(X[9:], Y[9:])]),
    "subset of a subset": lambda: Subset(Subset(Lines(X.flip(0), Y.flip(0)), range(N)), range(N)[::-1]),
    **LOADERS,
}


def inner(x):
    return x[0] if isinstance(x, list) else x["input"] if isinstance(x, dict) else x


@pytest.mark.parametrize("form", FORMS)
def test_samples_are_those_asked_for(form):
    samples = Samples(FORMS[form]())
    assert len(samples) == N
    wanted = [torch.tensor([7, 0, 22, 7]), slice(3, 8), torch.tensor([9]), torch.tensor([10, 2])]
    for index, (x, y) in zip(wanted, samples.batches(wanted), strict=True):
        torch.testing.assert_close(inner(x), X[index])
        assert torch.equal(y, Y[index])
    for data in (FORMS[form](), Subset(as_dataset(FORMS[form]()), [5, 3, 5])):
        x, y = materialize(data)
        expected = Y[[5, 3, 5]] if len(y) == 3 else Y
        assert y.sort().values.tolist() == expected.sort().values.tolist()
        assert len(inner(x)) == len(y)


def test_nothing_in_memory_is_copied():
    base = TensorDataset(X, Y)
    assert Samples(base).read(slice(2, 9))[0].data_ptr() == X[2:].data_ptr()
    assert materialize(base)[0] is X
    assert Samples(Subset(base, [1, 2])).in_memory
    assert not Samples(Lines(X, Y)).in_memory


def test_workers_read_every_batch_and_are_gone_afterwards():
    class Where(Lines):
        def __getitem__(self, i):
            return self.x[i], torch.tensor(os.getpid())

    data = as_dataset(DataLoader(Where(X, Y), num_workers=2))
    processes = torch.cat([y for _, y in batches(data, 4)])
    assert len(set(processes.tolist()) - {os.getpid()}) == 2
    for process in set(processes.tolist()):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_random_numbers_of_the_caller_are_left_alone():
    before = torch.get_rng_state()
    list(batches(as_dataset(LOADERS["workers"]()), 4))
    assert torch.equal(before, torch.get_rng_state())


def test_labels_are_told_without_a_sample():
    data = Told(targets=Y.tolist())
    assert torch.equal(all_labels(data), Y)
    assert torch.equal(all_labels(Told(labels=Y.numpy())), Y)
    assert torch.equal(all_labels(Subset(data, [4, 2])), Y[[4, 2]])
    assert torch.equal(all_labels(ConcatDataset([data, Subset(data, [1])])), torch.cat([Y, Y[1:2]]))
    assert torch.equal(all_labels(as_dataset(DataLoader(data, num_workers=1))), Y)
    assert torch.equal(all_labels(Told(targets=Y, target_transform=lambda c: 4 - c)), 4 - Y)


@pytest.mark.parametrize("labels", [{}, {"labels": ["cat", "dog"]}, {"targets": None}, {"targets": [0.5] * N}])
def test_what_are_no_labels_is_not_taken_for_them(labels):
    assert known_labels(Told(**labels)) is None


def test_labels_that_a_subclass_changes_are_read():
    class Poisoned(Lines):
        targets = Y

        def __getitem__(self, i):
            return self.x[i], self.y[i] + 10

    assert torch.cat(list(label_batches(Poisoned(X, Y)))).unique().tolist() == list(range(10, 15))


class Many(Dataset):
    def __init__(self, n):
        self.n, self.read = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read += 1
        return torch.zeros(2), i % 7


def test_labels_are_read_until_those_that_are_looked_for_are_found():
    data = Many(20_000)
    assert next(y for y in label_batches(data) if (y == 3).any()).unique().tolist() == list(range(7))
    assert data.read < 1_000
    assert len(torch.cat(list(label_batches(data)))) == 20_000


def test_few_samples_are_kept_in_memory(monkeypatch):
    index = torch.tensor([3, 1])
    assert isinstance(picked(Lines(X, Y), index), TensorDataset)
    monkeypatch.setattr(_data, "KEPT_BYTES", 10)
    large = picked(Lines(X, Y), index)
    assert isinstance(large, Subset)
    assert torch.equal(materialize(large)[0], X[index])


@pytest.mark.parametrize("limit", [1 << 20, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("expected", [3, 12, 40])
def test_rows_are_kept(monkeypatch, tmp_path, limit, dtype, expected):
    monkeypatch.setattr(_rows, "KEPT_BYTES", limit)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = torch.randn(12, 3, 2).mul(10).to(dtype)
    rows = Rows(expected)
    for part in values.split(5):
        assert rows.fits(part)
        rows.add(part)
    assert not rows.fits(torch.zeros(2, 3, 3, dtype=dtype))
    assert torch.equal(rows.joined(), values)
    assert not list(tmp_path.iterdir())  # the file has no name


def test_what_is_left():
    assert left_of(5, torch.tensor([3, 0])).tolist() == [1, 2, 4]
    assert left_of(3, torch.tensor([], dtype=torch.int64)).tolist() == [0, 1, 2]
    assert left_of(2, torch.arange(2)).tolist() == []
