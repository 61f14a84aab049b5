"""SISA forgets to the bit, whatever happens meanwhile. Run as a script, this file is a process that is killed, or one
of two that share the work."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from unlearnx.data import load_digits
from unlearnx.methods import SISA, SISACost
from unlearnx.methods.shards import Job, digests, divide, epochs_per_slice
from unlearnx.models import Training, digits_cnn

POINTS, PROCESSES = 120, 2
GONE = [5, 17]

linear = partial(nn.Linear, 64, 10)


def dropout():
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))


class Other(nn.Module):
    """A module that does not say how many classes there are."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, x):
        return x @ self.weight


def points(n=POINTS, *, images=False):
    digits = load_digits()
    return digits.train_x[:n] if images else digits.train_x[:n].flatten(1), digits.train_y[:n]


def small(folder, factory=linear, **options):
    options = {"shards": 3, "slices": 3, "training": Training(4, lr=1e-2, batch_size=8), **options}
    return SISA(factory, folder, **options)


def fitted(folder, factory=linear, data=None, **options):
    sisa = small(folder, factory, **options)
    sisa.fit(points() if data is None else data)
    return sisa


def without(data, indices):
    stays = torch.ones(len(data[0]), dtype=torch.bool)
    stays[indices] = False
    return data[0][stays], data[1][stays]


def checkpoints(folder):
    return {str(file.relative_to(folder)): file for file in sorted(Path(folder).glob("shard-*/*"))}


def assert_same_files(folder, other):
    """Names, which tell what a checkpoint has seen, and every bit of the contents."""
    ours, theirs = checkpoints(folder), checkpoints(other)
    assert ours.keys() == theirs.keys()
    for name, file in ours.items():
        state, expected = (torch.load(f, weights_only=True) for f in (file, theirs[name]))
        assert state.keys() == expected.keys()
        assert all(torch.equal(t, expected[k]) for k, t in state.items()), name


def shard_of(sisa, index):
    return next(s for s, shard in enumerate(sisa._fitted.shards) if index in shard.indices)


@pytest.mark.parametrize("factory", [linear, dropout, digits_cnn])
def test_removal_is_training_without_the_points(factory, tmp_path):
    """In every shard, one after the other: all checkpoints are those of training that never saw the points."""
    data = points(images=factory is digits_cnn)
    sisa = fitted(tmp_path / "sisa", factory, data)
    gone = []
    for s in range(sisa.shards):
        index = sisa._fitted.shards[s].indices[7 * s]
        gone.append(index)
        outcome = sisa.remove([index])
        assert {shard for shard, _ in outcome.retrained_slices} == {s}
        scratch = fitted(tmp_path / f"scratch-{s}", factory, without(data, gone))
        assert_same_files(sisa.folder, scratch.folder)
        assert torch.equal(sisa.predict(data[0]), scratch.predict(data[0]))
        assert torch.equal(sisa.probabilities(data[0]), scratch.probabilities(data[0]))
    assert sisa.removed == sorted(gone)


def test_order_of_the_data_does_not_matter(tmp_path):
    x, y = points()
    order = torch.randperm(len(x))
    fitted(tmp_path / "a", data=(x, y))
    fitted(tmp_path / "b", data=(x[order], y[order]))
    assert_same_files(tmp_path / "a", tmp_path / "b")


def test_copies_of_a_point(tmp_path):
    """Each is a point of its own; removing any of them leaves the others."""
    x, y = points(60)
    data = torch.cat([x, x[:1], x[:1]]), torch.cat([y, y[:1], y[:1]])
    sisa = fitted(tmp_path / "sisa", data=data)
    assert sum(Counter(i for shard in sisa._fitted.shards for i in shard.indices).values()) == 62
    sisa.remove([0])
    sisa.remove([61])
    fitted(tmp_path / "scratch", data=(x, y))
    assert_same_files(sisa.folder, tmp_path / "scratch")


def test_retrains_only_what_is_touched(tmp_path):
    sisa = fitted(tmp_path)
    before = {name: file.stat().st_mtime_ns for name, file in checkpoints(tmp_path).items()}
    shard = sisa._fitted.shards[1]
    index = shard.indices[shard.stops[0]]  # the first point of the second slice
    cost = sisa.cost([index])
    outcome = sisa.remove([index])
    assert cost.retrained_slices == outcome.retrained_slices == ((1, 1), (1, 2))
    epochs = epochs_per_slice(4, 3)
    assert cost.samples == outcome.samples == (shard.stops[1] - 1) * epochs[1] + (shard.stops[2] - 1) * epochs[2]
    assert outcome.share == outcome.samples / outcome.full_samples
    assert outcome.seconds > 0
    after = checkpoints(tmp_path)
    kept = {name: t for name, t in before.items() if name in after}
    assert len(after) == 9
    assert len(kept) == 7
    assert all(after[name].stat().st_mtime_ns == t for name, t in kept.items())


def test_cost_leaves_everything_as_it_is(tmp_path):
    sisa = fitted(tmp_path)
    before = {name: file.stat().st_mtime_ns for name, file in checkpoints(tmp_path).items()}
    cost = sisa.cost(range(40))
    assert isinstance(cost, SISACost)
    assert 0 < cost.share <= 1
    assert sisa.removed == []
    assert before == {name: file.stat().st_mtime_ns for name, file in checkpoints(tmp_path).items()}


def test_fit_trains_everything(tmp_path):
    sisa = small(tmp_path)
    outcome = sisa.fit(points())
    assert outcome.retrained_slices == tuple((s, r) for s in range(3) for r in range(3))
    assert outcome.samples == outcome.full_samples
    assert outcome.share == 1


def test_learns(tmp_path):
    data = points(600)
    sisa = SISA(linear, tmp_path, shards=3, slices=2, training=Training(20, lr=1e-2, batch_size=16))
    sisa.fit(data)
    digits = load_digits()
    hits = sisa.predict(digits.test_x.flatten(1)) == digits.test_y
    assert hits.float().mean() > 0.85


def test_division():
    x, y = points(1000)
    content = digests(x, y)
    shards = divide(content, range(1000), 4, 5, seed=0, recipe="")
    assert sorted(i for shard in shards for i in shard.indices) == list(range(1000))
    sizes = torch.tensor([shard.stops for shard in shards]).diff(dim=1, prepend=torch.zeros(4, 1, dtype=torch.int64))
    chi_square = ((sizes - 50.0).square() / 50).sum()
    assert chi_square < 43.8  # 99.9 % of even divisions, 19 degrees of freedom
    assert divide(content, range(1000), 4, 5, seed=1, recipe="") != shards
    fewer = divide(content, range(500), 4, 5, seed=0, recipe="")
    for shard, whole in zip(fewer, shards, strict=True):
        assert shard.indices == [i for i in whole.indices if i < 500]


def test_digests_tell_points_apart():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    a, b, c, d = digests(x, torch.tensor([0, 0, 1, 0]))
    assert a == b
    assert len({a, c, d}) == 3
    assert digests(x.bfloat16().T.contiguous().T, torch.zeros(4))[0] != a


@pytest.mark.parametrize(
    ("epochs", "slices", "expected"),
    [(30, 5, [10] * 5), (4, 3, [2, 2, 2]), (10, 1, [10]), (5, 3, [2, 3, 2]), (1, 4, [1] * 4)],
)
def test_epochs_per_slice(epochs, slices, expected):
    assert epochs_per_slice(epochs, slices) == expected


def test_aggregation(tmp_path):
    """Votes are counted, ties go to the larger mean probability, and means are means of the same constituents."""
    x, _ = points()
    vote = fitted(tmp_path / "vote", shards=2, training=Training(1, batch_size=8))
    mean = fitted(tmp_path / "mean", shards=2, training=Training(1, batch_size=8), aggregate="mean")
    assert_same_files(vote.folder, mean.folder)
    each = torch.stack([model(x).detach().double().softmax(1) for model in vote._ensemble()])
    torch.testing.assert_close(mean.probabilities(x), each.mean(0))
    assert torch.equal(mean.predict(x), each.mean(0).argmax(1))
    shares = F.one_hot(each.argmax(2), 10).double().mean(0)
    assert torch.equal(vote.probabilities(x), shares)
    tied = shares.max(1).values == 0.5
    assert tied.any()
    among = each.mean(0).where(shares > 0, 0)
    assert torch.equal(vote.predict(x)[tied], among.argmax(1)[tied])
    assert torch.equal(vote.predict(x)[~tied], shares.argmax(1)[~tied])


def test_a_shard_runs_empty(tmp_path):
    """Its constituent is left out, down to one point that BatchNorm could not learn from."""
    data = points()
    sisa = fitted(tmp_path / "sisa", dropout, data)
    gone = list(sisa._fitted.shards[1].indices)
    while gone:
        sisa.remove(gone[-7:])
        del gone[-7:]
    assert len(sisa._ensemble()) == 2
    scratch = fitted(tmp_path / "scratch", dropout, without(data, sisa.removed))
    assert_same_files(sisa.folder, scratch.folder)
    assert torch.equal(sisa.predict(data[0]), scratch.predict(data[0]))


def test_no_batch_of_one(tmp_path):
    """BatchNorm would refuse it in the middle of a removal that is recorded already."""
    sisa = fitted(tmp_path, dropout, shards=1, slices=1)
    for index in range(17):  # once through all remainders
        sisa.remove([index])
    assert sisa.predict(points()[0]).shape == (POINTS,)


def test_reopened(tmp_path):
    x, y = points()
    sisa = fitted(tmp_path, seed=3, aggregate="mean", training=Training(3, 1e-2, 8, params="last:2"))
    sisa.remove(GONE)
    expected = sisa.probabilities(x)
    again = SISA.open(tmp_path, linear, (x, y))
    assert (again.shards, again.slices, again.seed, again.aggregate) == (3, 3, 3, "mean")
    assert again.training == sisa.training
    assert again.removed == GONE
    assert torch.equal(again.probabilities(x), expected)
    wiped = x.clone()
    wiped[GONE] = torch.nan
    third = SISA.open(tmp_path, linear, TensorDataset(wiped, y))
    assert torch.equal(third.probabilities(x), expected)
    third.remove([0])
    fitted(tmp_path / "scratch", data=without((x, y), [0, *GONE]), seed=3, training=sisa.training)
    assert_same_files(tmp_path, tmp_path / "scratch")


def test_autocast_is_reopened(tmp_path):
    training = Training(1, autocast=torch.bfloat16)
    fitted(tmp_path, training=training)
    assert SISA.open(tmp_path, linear, points()).training == training


def test_shuffled_loader_is_read_in_order(tmp_path):
    x, y = points()
    sisa = fitted(tmp_path, data=DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True))
    assert torch.equal(sisa._fitted.x, x)
    assert torch.equal(sisa._fitted.y, y)


def test_random_state_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    sisa = fitted(tmp_path, dropout)
    sisa.remove([3])
    sisa.predict(points()[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_interrupted(tmp_path, monkeypatch):
    """No prediction by what saw the point, until open() has finished the work."""
    data = points()
    sisa = fitted(tmp_path / "sisa")
    sisa.predict(data[0])

    def fail(job):
        raise FloatingPointError("the training loss is not finite")

    with monkeypatch.context() as patched:
        patched.setattr(Job, "run", fail)
        with pytest.raises(FloatingPointError):
            sisa.remove([3])
    shard = shard_of(fitted(tmp_path / "other"), 3)
    with pytest.raises(RuntimeError, match=rf"^shard {shard} is not trained.*SISA\.open finishes it"):
        sisa.predict(data[0])
    again = SISA.open(tmp_path / "sisa", linear, data)
    assert again.removed == [3]
    fitted(tmp_path / "scratch", data=without(data, [3]))
    assert_same_files(tmp_path / "sisa", tmp_path / "scratch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(shards=0), r"^shards is 0, expected at least 1$"),
        (dict(slices=0), r"^slices is 0, expected at least 1$"),
        (dict(workers=0), r"^workers is 0, expected at least 1$"),
        (dict(aggregate="sum"), r"^aggregate is 'sum', expected one of vote, mean$"),
        (dict(factory=lambda: 5), r"^factory: returned int, expected a module with parameters$"),
        (dict(factory=nn.ReLU), r"^factory: returned ReLU, expected a module with parameters$"),
        (dict(factory=lambda: nn.Linear(64, 10), workers=2), r"^factory: cannot be sent to worker processes"),
        (
            dict(training=Training(1, loss_fn=lambda out, y: F.cross_entropy(out, y)), workers=2),
            r"^loss_fn: cannot be sent to worker processes",
        ),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **options)


@pytest.mark.parametrize("x", [(torch.zeros(9, 4), torch.zeros(9, 4)), {"a": torch.zeros(9, 4)}])
def test_data_are_tensors(x, tmp_path):
    with pytest.raises(ValueError, match=r"^data: has x of type (tuple|dict), expected one tensor of all samples"):
        SISA(lambda: nn.Linear(4, 3), tmp_path, shards=2, slices=2).fit((x, torch.arange(9) % 3))


def test_factories_of_lazy_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^factory: parameter 'weight' is not initialised yet"):
        SISA(lambda: nn.LazyLinear(3), tmp_path)


def test_one_model_is_no_factory(tmp_path):
    model = nn.Linear(64, 10)
    with pytest.raises(ValueError, match=r"^factory: returned the same model twice"):
        small(tmp_path, lambda: model)


def test_bad_removals(tmp_path):
    with pytest.raises(RuntimeError, match=r"^SISA has no data yet; call fit\(\)"):
        small(tmp_path).remove([0])
    sisa = fitted(tmp_path)
    sisa.remove([4])
    for indices, message in (
        ([], "is empty"),
        ([POINTS], f"{POINTS} is out of range for {POINTS} samples"),
        ([-1], "-1 is out of range"),
        ([1, 1], "sample 1 is given twice"),
        ([3, 4], "sample 4 was removed before"),
        (range(POINTS), f"contains all {POINTS} samples"),
        ([i for i in range(1, POINTS) if i != 4], "leaves no shard with at least two samples"),
        (torch.ones(POINTS, dtype=torch.bool), "is a boolean mask"),
    ):
        for call in (sisa.remove, sisa.cost):
            with pytest.raises(ValueError, match=f"^indices: {message}"):
                call(indices)
    assert SISA.open(tmp_path, linear, points()).removed == [4]


def test_bad_data(tmp_path):
    with pytest.raises(ValueError, match=r"^data: has 8 samples, expected at least shards \* slices = 3 \* 3$"):
        small(tmp_path).fit(points(8))
    sisa = fitted(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds an ensemble already; load it by SISA\.open"):
        small(tmp_path).fit(points())
    with pytest.raises(ValueError, match=r"^x: is \[2, 3\], expected a tensor of shape \(N, 64\)$"):
        sisa.predict(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"^model: returned an output of shape"):
        fitted(tmp_path / "other", Other, training=Training(1, loss_fn=F.l1_loss)).predict(points()[0])


def test_bad_reopening(tmp_path):
    x, y = points()
    with pytest.raises(FileNotFoundError, match=r"sisa\.json: no such file"):
        SISA.open(tmp_path, linear, (x, y))
    sisa = fitted(tmp_path)
    for message, factory, data, options in (
        (r"factory: its model has Sequential as 'model', but .* was fitted with Linear", dropout, (x, y), {}),
        (r"factory: its model has torch.float32 \[9, 64\] as 'weight'", partial(nn.Linear, 64, 9), (x, y), {}),
        ("data: has 100 samples, expected the 120", linear, points(100), {}),
        ("data: the samples that were not removed", linear, (x + 1, y), {}),
        ("data: the samples that were not removed", linear, (x, y.flip(0)), {}),
        ("loss_fn: is nll_loss, but .* was fitted with cross_entropy", linear, (x, y), dict(loss_fn=F.nll_loss)),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            SISA.open(tmp_path, factory, data, **options)
    other = SISA.open(tmp_path, linear, (x, y))
    other.remove([1])
    with pytest.raises(RuntimeError, match="another program has removed samples"):
        sisa.remove([2])
    (tmp_path / "sisa.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="has format 0, expected 1"):
        SISA.open(tmp_path, linear, (x, y))


def run_script(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at(event, folder, data):
    """Remove points, and be killed before file operation number `event`; ends with status 0 where there are fewer."""
    sisa = SISA.open(folder, linear, data)
    seen = 0

    def hook(name, arguments):
        nonlocal seen
        if name in ("open", "os.rename", "os.remove", "os.chmod") and str(folder) in str(arguments[0]):
            seen += 1
            if seen > event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    sisa.remove(GONE)
    os._exit(0)


def kill_everywhere(folder):
    """In a copy of the folder for every file operation of a removal."""
    data = points()
    for event in range(1000):
        copy = folder.parent / f"killed-{event}"
        shutil.copytree(folder, copy)
        pid = os.fork()
        if pid == 0:
            kill_at(event, copy, data)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return
        assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_file_operation(tmp_path):
    """Reopened, the removal is finished, or, where it was not recorded yet, can be made."""
    data = points()
    untouched = fitted(tmp_path / "fitted")
    scratch = fitted(tmp_path / "scratch", data=without(data, GONE))
    script = run_script("kill", tmp_path / "fitted")
    output, _ = script.communicate(timeout=300)
    assert script.returncode == 0, output
    recorded = []
    *killed, last = sorted(tmp_path.glob("killed-*"), key=lambda folder: int(folder.name.split("-")[1]))
    for folder in killed:
        sisa = SISA.open(folder, linear, data)
        recorded.append(bool(sisa.removed))
        if not sisa.removed:
            assert_same_files(folder, untouched.folder)
            assert torch.equal(sisa.predict(data[0]), untouched.predict(data[0]))
            sisa.remove(GONE)
        assert sisa.removed == GONE
        assert_same_files(folder, scratch.folder)
        assert torch.equal(sisa.predict(data[0]), scratch.predict(data[0]))
        assert [file.name for file in folder.iterdir() if file.is_file()] == ["sisa.json"]
    assert_same_files(last, scratch.folder)
    assert len(killed) > 10
    assert recorded == sorted(recorded)
    assert {True, False} == set(recorded)


LONG = Training(2000, lr=1e-2, batch_size=8)


def killed_while_training(folder, workers):
    """A fit of minutes that another process kills."""
    small(folder, training=LONG, workers=workers).fit(points())


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_program(tmp_path):
    """They would go on to write checkpoints that a later removal makes stale."""
    script = run_script("fit", tmp_path, 2)
    while not len(list(tmp_path.glob("shard-*"))) and script.poll() is None:
        time.sleep(0.05)
    children = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text().split()
    assert len(children) >= 2
    script.kill()
    script.communicate()
    deadline = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


def test_workers(tmp_path):
    """Processes of their own end in the same files."""
    data = points(images=True)
    several = fitted(tmp_path / "several", digits_cnn, data, workers=2)
    several.remove(GONE)
    fitted(tmp_path / "one", digits_cnn, without(data, GONE))
    assert_same_files(several.folder, tmp_path / "one")


def shared_work(rank, folder):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=60),
    )
    trained, run = [], Job.run

    def noted(job):
        trained.append(job.shard)
        run(job)

    Job.run = noted
    x, _ = points()
    sisa = small(folder / "sisa")
    outcomes = [sisa.fit(points()), sisa.remove(GONE)]
    errors = []
    for call in (
        lambda: sisa.remove([20 + rank]),
        lambda: small(folder / "sisa").fit(points()),
        lambda: SISA.open(folder / "sisa", linear, points(POINTS - rank)),
    ):
        try:
            call()
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    again = SISA.open(folder / "sisa", linear, points())
    torch.save(
        {
            "trained": trained,
            "slices": [outcome.retrained_slices for outcome in outcomes],
            "labels": sisa.predict(x),
            "again": again.predict(x),
            "errors": errors,
        },
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs torch.distributed with gloo")
def test_shared_among_processes(tmp_path):
    running = [run_script("rank", tmp_path, rank) for rank in range(PROCESSES)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    for process, output in zip(running, outputs, strict=True):
        assert process.returncode == 0, output
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    alone = fitted(tmp_path / "alone")
    touched = {s for s, _ in alone.remove(GONE).retrained_slices}
    assert_same_files(tmp_path / "sisa", alone.folder)
    labels = alone.predict(points()[0])
    for report in (first, second):
        assert torch.equal(report["labels"], labels)
        assert torch.equal(report["again"], labels)
    assert first["slices"] == second["slices"]
    assert first["trained"][:2] == [0, 2]
    assert second["trained"][:1] == [1]
    assert sorted(first["trained"][2:] + second["trained"][1:]) == sorted(touched)
    differ = "indices or data: differ between the processes, expected the same in all of them"
    elsewhere = "RuntimeError: the work failed in another process; see the error of that process"
    assert first["errors"][0] == elsewhere
    assert second["errors"][0] == f"ValueError: {differ}"
    assert first["errors"][1].startswith("FileExistsError")
    assert second["errors"][1] == elsewhere
    assert first["errors"][2] == elsewhere
    assert second["errors"][2].startswith("ValueError: data: has 119 samples")


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "kill":
        kill_everywhere(Path(folder))
    elif what == "fit":
        killed_while_training(Path(folder), int(rest[0]))
    else:
        shared_work(int(rest[0]), Path(folder))
