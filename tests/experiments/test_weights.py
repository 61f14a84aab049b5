import argparse
import copy
import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unlearnx.experiments.weights import Weights, tensor_hash

safetensors = pytest.importorskip("safetensors.torch")


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))


def saved(model, file, nest=None):
    """Writes the weights in the format of the file's ending."""
    if file.suffix == ".safetensors":
        safetensors.save_file(model.state_dict(), file, {"format": "pt"})
    else:
        torch.save({nest: model.state_dict(), "epoch": 3} if nest else model.state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("name", "nest"),
    [("a.safetensors", None), ("a.pt", None), ("a.bin", "state_dict"), ("a.pth", "model")],
)
def test_round_trip(name, nest, tmp_path):
    model = network()
    file = saved(model, tmp_path / name, nest)
    content = file.read_bytes()
    weights = Weights.read(file)
    assert weights.sha256 == hashlib.sha256(content).hexdigest()
    assert weights.nest == nest
    assert weights.left_out == (("epoch",) if nest else ())
    other = network()
    weights.load_into(other)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in other.state_dict().items())

    with torch.no_grad():
        other[3].weight.add_(1)
    other.to(memory_format=torch.channels_last)
    written = weights.write(other, tmp_path / "new" / "weights")
    path = written.file
    assert path.name == ("weights.safetensors" if name.endswith("safetensors") else "weights.pt")
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [f.name for f in path.parent.iterdir()] == [path.name]
    again = Weights.read(path)
    assert tensor_hash(again.tensors) == tensor_hash(written.tensors)
    assert (again.format, again.nest, again.metadata) == (weights.format, nest, weights.metadata)
    assert tensor_hash(again.tensors) == tensor_hash(other.state_dict()) != tensor_hash(weights.tensors)
    assert file.read_bytes() == content
    loaded = network()
    again.load_into(loaded)
    assert torch.equal(loaded[3].weight, other[3].weight)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"model.{name}",  # of Lightning
        lambda name: name.replace(".", "._orig_mod."),  # submodules that were compiled
        lambda name: f"_fsdp_wrapped_module.{name}",
    ],
)
def test_names_of_wrapped_models(renamed, ending, tmp_path):
    model, other = network(), network()
    state = {renamed(name): t for name, t in model.state_dict().items()}
    file = tmp_path / f"a.{ending}"
    safetensors.save_file(state, file) if ending == "safetensors" else torch.save({"model_state_dict": state}, file)
    weights = Weights.read(file)
    weights.load_into(other)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in other.state_dict().items())
    assert any(
        f"{new!r} is the model's {name!r}" in weights.described(other)
        for new, name in zip(state, model.state_dict(), strict=True)
    )
    assert ("'model_state_dict'" in weights.described(other)) == (ending == "pt")
    written = weights.write(other, tmp_path / "b")
    assert Weights.read(written.file).tensors.keys() == state.keys()
    weights.load_into(nn.DataParallel(network()))
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    plain = Weights.read(tmp_path / "plain.pt")
    assert plain.described(model) is None
    plain.load_into(nn.DataParallel(network()))
    plain.load_into(torch.compile(network(), backend="eager"))


def test_other_models_do_not_fit_by_their_last_names(tmp_path):
    torch.save({"encoder.weight": torch.zeros(4, 6), "encoder.bias": torch.zeros(4)}, tmp_path / "a.pt")
    model = nn.Module()
    model.decoder = nn.Linear(6, 4)
    with pytest.raises(ValueError, match=r"it lacks the weights: decoder\.weight, decoder\.bias"):
        Weights.read(tmp_path / "a.pt").load_into(model)
    torch.save({"a": torch.zeros(4), "_orig_mod.a": torch.zeros(4)}, tmp_path / "a.pt")
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match="some of its weights have the same name"):
        Weights.read(tmp_path / "a.pt").load_into(model)


@pytest.mark.parametrize(
    ("checkpoint", "nest"),
    [
        ({"model_state_dict": 1, "state_dict": 1, "model": {}}, "model_state_dict"),
        ({"epoch": 3, "state_dict": 1, "optimizer": {"state": {}, "param_groups": []}}, "state_dict"),
        ({"epoch": 3, "net": 1}, "net"),
    ],
)
def test_entries_of_checkpoints(checkpoint, nest, tmp_path):
    model = network()
    torch.save({k: model.state_dict() if v == 1 and k != "epoch" else v for k, v in checkpoint.items()}, tmp_path / "a")
    weights = Weights.read(tmp_path / "a")
    assert weights.nest == nest
    assert set(weights.left_out) == checkpoint.keys() - {nest}
    assert f"its entry {nest!r}" in weights.described(model)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("given", ["index", "folder"])
def test_several_files_with_an_index(ending, given, tmp_path):
    model, other, placed = network(), network(), {}
    stem = "model" if ending == "safetensors" else "pytorch_model"
    for k, name in enumerate(model.state_dict()):
        placed[name] = f"{stem}-{k % 2 + 1:05}-of-00002.{ending}"
    for file in set(placed.values()):
        part = {name: model.state_dict()[name] for name in placed if placed[name] == file}
        safetensors.save_file(part, tmp_path / file) if ending == "safetensors" else torch.save(part, tmp_path / file)
    index = tmp_path / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    weights = Weights.read(tmp_path if given == "folder" else index)
    weights.load_into(other)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in other.state_dict().items())
    digest = hashlib.sha256(index.read_bytes())
    for file in sorted(set(placed.values())):
        digest.update((tmp_path / file).read_bytes())
    assert weights.sha256 == digest.hexdigest()
    written = weights.write(other, tmp_path / "new")
    assert tensor_hash(Weights.read(written.file).tensors) == tensor_hash(model.state_dict())
    (tmp_path / placed["0.weight"]).unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00002"):
        Weights.read(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"a": "../b"}}', '{"weight_map": {}}', "[1"])
def test_wrong_indices(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json: is no index of weights: "):
        Weights.read(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights, expected one of model\.safetensors"):
        Weights.read(tmp_path)


def test_metadata_stays(tmp_path):
    weights = Weights.read(saved(network(), tmp_path / "a.safetensors"))
    assert weights.metadata == {"format": "pt"}
    written = weights.write(network(), tmp_path / "b")
    with safetensors.safe_open(written.file, "pt") as f:
        assert f.metadata() == {"format": "pt"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight


def test_tensors_that_share_their_memory(tmp_path):
    model, other = Tied(), Tied()
    safetensors.save_model(model, tmp_path / "a.safetensors")  # holds one of the two
    weights = Weights.read(tmp_path / "a.safetensors")
    assert len(weights.tensors) == 3
    weights.load_into(other)
    assert torch.equal(other.b.weight, model.a.weight)
    written = weights.write(model, tmp_path / "b")
    assert Weights.read(written.file).tensors.keys() == weights.tensors.keys()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    Weights.read(tmp_path / "a.pt").load_into(Tied())


def test_weights_beside_others(tmp_path):
    """Those of a loss beside a Lightning module's network, the count beside averaged weights."""
    model = network()
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    with_loss = {**{f"net.{name}": t for name, t in model.state_dict().items()}, "criterion.weight": torch.ones(4)}
    for state, unused in ((averaged, "n_averaged"), (with_loss, "criterion.weight")):
        other = network()
        torch.save(state, tmp_path / "a.pt")
        weights = Weights.read(tmp_path / "a.pt")
        weights.load_into(other)
        assert all(torch.equal(t, model.state_dict()[key]) for key, t in other.state_dict().items())
        assert weights.described(other).endswith(f"not used: {unused}")
        assert Weights.read(weights.write(other, tmp_path / "b").file).tensors.keys() == state.keys() - {unused}
    twice = {f"{head}.{name}": t for head in ("model", "ema") for name, t in model.state_dict().items()}
    torch.save(twice, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="several times, under model, ema, expected once"):
        Weights.read(tmp_path / "a.pt").load_into(network())
    torch.save({"params": model.state_dict(), "params_ema": model.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds several state dicts, params, params_ema, expected one"):
        Weights.read(tmp_path / "a.pt")


def test_files_without_counters_of_batches(tmp_path):
    model, other = network(), network()
    torch.save({k: t for k, t in model.state_dict().items() if "num_batches" not in k}, tmp_path / "a.pt")
    weights = Weights.read(tmp_path / "a.pt")
    weights.load_into(other)
    assert torch.equal(other[1].running_mean, model[1].running_mean)
    assert Weights.read(weights.write(other, tmp_path / "b").file).tensors.keys() == weights.tensors.keys()


def test_what_training_scripts_keep_beside_weights(tmp_path):
    model, other = network(), network()
    beside = {"args": argparse.Namespace(lr=0.1, out=Path("a/b")), "best": np.float64(91.5), "classes": np.int64(4)}
    torch.save({"model": model.state_dict(), **beside}, tmp_path / "a.pt")
    weights = Weights.read(tmp_path / "a.pt")
    weights.load_into(other)
    assert weights.left_out == tuple(beside)
    assert all(torch.equal(t, model.state_dict()[key]) for key, t in other.state_dict().items())


class Malicious:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def archive(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def old_format(value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("write", [archive, old_format, pickle.dumps])
def test_code_is_not_run(write, tmp_path):
    state = {"0.weight": torch.zeros(2), "hidden": Malicious(tmp_path / "proof")}
    (tmp_path / "a.pt").write_bytes(write(state))
    with pytest.raises(ValueError, match="holds more than tensors, or is damaged"):
        Weights.read(tmp_path / "a.pt")
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickle.dumps(Malicious(tmp_path / "proof")))
    assert (tmp_path / "proof").exists()  # it would have


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(nn.Linear(2, 2)), r"refers to torch.nn.modules.linear.Linear, which could run code"),
        (archive([torch.zeros(2)]), "holds list, expected a state dict"),
        (archive({}), "holds no weights"),
        (archive({"a": 1}), "entry 'a' is int, expected a name with a dense tensor"),
        (archive({0: torch.zeros(2)}), "entry 0 is"),
        (archive({"a": torch.eye(2).to_sparse()}), "entry 'a' is torch.sparse_coo"),
        (archive({"a": torch.zeros(9)})[:-60], "damaged"),
        (safetensors.save({"a": torch.zeros(9)})[:-4], "damaged safetensors file"),
        (b"\x80\x04nonsense", "damaged"),
        (b"GGUF" + bytes(60), "neither a safetensors file nor one that torch.save wrote"),
        (b"", "neither"),
    ],
)
def test_refused_files(content, message, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Weights.read(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)
    with pytest.raises(FileNotFoundError, match="b: no such file"):
        Weights.read(tmp_path / "b")


def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        Weights.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("3.bias"), "it lacks the weights: 3.bias"),
        (lambda state: state.update(extra=torch.zeros(2)), "the model has no weights: extra"),
        (lambda state: state.update({"3.bias": torch.zeros(5)}), r"'3.bias' is torch.float32 of shape \[5\], expected"),
        (lambda state: state.update({"3.bias": torch.zeros(4).half()}), "'3.bias' is torch.float16 of shape"),
        (lambda state: [state.pop(key) for key in list(state)[:6]], "0.weight, 0.bias.* and 1 more"),
    ],
)
def test_weights_of_another_model(change, message, tmp_path):
    model = network()
    state, before = dict(model.state_dict()), copy.deepcopy(model.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pt")
    weights = Weights.read(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"a.pt: does not fit the model: .*{message}"):
        weights.load_into(model)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_hash_of_tensors():
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(7)
    expected = hashlib.sha256()
    expected.update(b"a torch.float32 [2, 3]\n" + a.numpy().tobytes() + b"b torch.int64 []\n" + b.numpy().tobytes())
    assert tensor_hash({"b": b, "a": a}) == expected.hexdigest()
    assert tensor_hash({"a": a.t().contiguous().t(), "b": b}) == expected.hexdigest()
    assert tensor_hash({"a": a.reshape(3, 2), "b": b}) != expected.hexdigest()
    assert tensor_hash({"a": torch.zeros(2, dtype=torch.bfloat16)}) != tensor_hash({"a": torch.zeros(2).half()})
