import hashlib
import json
import re
import sys

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from tests.experiments.tables import in_80_columns
from unlearnx import Request
from unlearnx.cli import app
from unlearnx.curvature import EKFAC
from unlearnx.experiments import report, unlearn
from unlearnx.experiments.arguments import build_method, parameters, read_indices
from unlearnx.experiments.output_folder import LOCK
from unlearnx.experiments.weights import Weights, tensor_hash
from unlearnx.methods import SSD, FineTune, FirstOrder, Retrain, SecondOrder
from unlearnx.metrics import accuracy, activation_distance, mia
from unlearnx.models import Training

safetensors = pytest.importorskip("safetensors.torch")

MODEL = """
from torch import nn


def build():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 3))


def no_module():
    return "a model"


def fails():
    raise KeyError("width")


def needs(width):
    return build()


size = 3
"""

DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset


def samples(n, seed):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (n,), generator=generator)
    return 1.5 * torch.eye(3, 6)[y] + torch.randn(n, 6, generator=generator), y


def train():
    return samples(240, 0)


def test():
    return DataLoader(TensorDataset(*samples(150, 1)), batch_size=50, shuffle=True)


def regression():
    x, y = samples(240, 0)
    return x, y.float()


def wide():
    x, y = samples(240, 0)
    return torch.cat([x, x], 1), y


def more_classes():
    x, y = samples(240, 0)
    return x, y + 2


def nothing():
    return 7


def none():
    print("about to return nothing")


def leaves():
    raise SystemExit(0)


def interrupted():
    raise KeyboardInterrupt
"""

FORGET = [3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 1, 2]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folder of a user: two modules, trained weights in both formats, those of a retrained model, lists of indices."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "own_model.py").write_text(MODEL)
    (folder / "own_data.py").write_text(DATA)
    (folder / "broken.py").write_text("import torch\nimport not_installed_anywhere\n")
    code: dict = {}
    exec(MODEL, code)
    exec(DATA, code)
    x, y = code["train"]()
    stays = torch.ones(240, dtype=torch.bool)
    stays[FORGET] = False
    for name, data in {"trained": (x, y), "retrained": (x[stays], y[stays])}.items():
        torch.manual_seed(0)
        model = code["build"]()
        Training(60, lr=1e-2, batch_size=40).run(model, data)
        safetensors.save_file(model.state_dict(), folder / f"{name}.safetensors")
        torch.save({"state_dict": model.state_dict(), "optimizer": {"step": 3}}, folder / f"{name}.pt")
    np.save(folder / "forget.npy", np.array(FORGET))
    (folder / "forget.txt").write_text("\n".join(map(str, FORGET)) + "\n\n")
    return folder


@pytest.fixture
def there(project, monkeypatch):
    """Works in the user's folder; what is imported from there is forgotten again."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(project)])
    yield project
    for name in ("own_model", "own_data", "broken"):
        sys.modules.pop(name, None)


BASE = {
    "--model": "own_model:build",
    "--weights": "trained.safetensors",
    "--data": "own_data:train",
    "--forget": "forget.npy",
    "--method": "ssd",
}


def run(out, *more, **changed):
    arguments = {**BASE, **{f"--{key.replace('_', '-')}": value for key, value in changed.items()}}
    words = [str(word) for pair in arguments.items() if pair[1] is not None for word in pair]
    words = ["unlearn", *words, "--out", str(out), "--device", "cpu", "--no-progress", *map(str, more)]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def trained(folder, name="trained.safetensors"):
    """The model with the weights of a file, and the training data."""
    code: dict = {}
    exec(MODEL, code)
    exec(DATA, code)
    model = code["build"]()
    Weights.read(folder / name).load_into(model)
    return model.eval(), code["train"]()


def audit_of(out):
    return json.loads((out / "audit.json").read_text())


def one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize(("ending", "indices"), [("safetensors", "forget.npy"), ("pt", "forget.txt")])
def test_end_to_end(ending, indices, there, tmp_path):
    given = {file.name: file.read_bytes() for file in there.iterdir() if file.is_file()}
    out = tmp_path / "out"
    result = run(
        out,
        *("--option", "alpha=1", "--option", "lam=0.5", "--seed", 7, "--batch-size", 64, "--params", "last:2"),
        weights=f"trained.{ending}",
        forget=indices,
        test="own_data:test",
        retrained=f"retrained.{ending}",
    )
    assert result.exit_code == 3, result.output  # 12 samples are too few for a verdict
    assert "Verdict: The estimate is too rough" in one_line(result.stdout)
    assert {file.name for file in out.iterdir()} == {f"weights.{ending}", "audit.json", "audit.html"}
    assert {file.name: file.read_bytes() for file in there.iterdir() if file.is_file()} == given

    audit = audit_of(out)
    old, new = Weights.read(there / f"trained.{ending}"), Weights.read(out / f"weights.{ending}")
    assert new.format == old.format
    assert new.nest == old.nest
    assert new.left_out == ()
    import own_data
    import own_model

    (x, y), test = own_data.train(), own_data.samples(150, 1)
    expected = SSD(alpha=1.0, lam=0.5, seed=7, batch_size=64, params="last:2")
    model = own_model.build()
    old.load_into(model)
    outcome = expected(model.eval(), Request.remove((x, y), FORGET))
    assert outcome.applied
    for name, tensor in outcome.model.state_dict().items():
        torch.testing.assert_close(new.tensors[name], tensor)
    changed = {name for name, tensor in new.tensors.items() if not torch.equal(tensor, old.tensors[name])}
    assert changed == {"4.weight"}

    assert audit["applied"]
    assert audit["reason"] is None
    assert audit["seconds"] > 0
    assert audit["gradient_evaluations"] == outcome.gradient_evaluations
    assert audit["method"]["settings"]["alpha"] == 1.0
    assert audit["method"]["seed"] == 7
    listed = np.array(sorted(FORGET), dtype="<i8")
    assert audit["request"] == {
        "kind": "indices",
        "class": None,
        "points": 12,
        "of": 240,
        "first": sorted(FORGET)[:10],
        "sha256": hashlib.sha256(listed.tobytes()).hexdigest(),
    }
    sets = {"forget": (x[listed], y[listed]), "test": test}
    sets["retain"] = tuple(t[Request.remove((x, y), FORGET).retain] for t in (x, y))
    for name, reader in {"before": model, "after": outcome.model}.items():
        for which, pair in sets.items():
            assert audit["measures"][name][f"{which}_accuracy"] == pytest.approx(accuracy(reader, pair))
        for protocol in ("salun", "ssd", "starter_kit"):
            attack = mia(reader, **sets, protocol=protocol, seed=7)
            assert audit["measures"][name][f"mia_{protocol}"] == pytest.approx(attack, abs=0.02)
    distance = activation_distance(model, outcome.model, sets["forget"])
    assert audit["distances"]["before, after"]["activation_distance"] == pytest.approx(distance, rel=1e-4)
    assert audit["distances"].keys() == {"before, after", "before, retrained", "after, retrained"}
    assert audit["gap"]["over"] == ["ua", "ra", "ta", "mia"]
    assert audit["gap"]["before"] >= 0
    assert audit["notes"] == []
    in_80_columns(report.audit_table(audit))

    assert audit["weights"]["before"]["sha256"] == hashlib.sha256(given[f"trained.{ending}"]).hexdigest()
    written = (out / f"weights.{ending}").read_bytes()
    assert audit["weights"]["after"]["sha256"] == hashlib.sha256(written).hexdigest()
    assert audit["weights"]["after"]["tensors_sha256"] == tensor_hash(new.tensors)
    assert audit["weights"]["after"]["file"] == str(out / f"weights.{ending}")
    assert audit["weights"]["retrained"]["sha256"] == hashlib.sha256(given[f"retrained.{ending}"]).hexdigest()
    assert audit["data"]["train"] == {"samples": 240, "sha256": tensor_hash({"x": x, "y": y})}
    assert audit["data"]["forget"]["sha256"] == tensor_hash({"x": x[listed], "y": y[listed]})
    moved = sum((new.tensors[name].double() - t.double()).square().sum() for name, t in old.tensors.items())
    assert audit["moved"]["l2"] == pytest.approx(moved.sqrt().item())
    assert {row["name"] for row in audit["moved"]["farthest"]} == changed
    assert audit["moved"]["changed"] == 1

    page = one_line((out / "audit.html").read_text())
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in (
        "<title>Unlearning audit · unlearnx</title>",
        "forget 12 of the 240 samples",
        "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, …",
        "SSD(params=&#39;last:2&#39;, batch_size=64, alpha=1.0",
        audit["weights"]["before"]["sha256"],
        audit["weights"]["after"]["tensors_sha256"],
        f"1 of {len(new.tensors)} tensors changed",
        "gap to retraining",
        "before and retrained",
        "told from held-out data by its loss, beyond guessing",
        "expected of a model that never saw it",
    ):
        assert text in page, text
    hits = audit["measures"]["after"]["forget_accuracy"]
    low, high = binomtest(round(12 * hits), 12).proportion_ci(method="wilson")
    assert f"{100 * hits:.2f} % ({100 * low:.1f} to {100 * high:.1f})" in page  # 12 samples tell little
    assert audit["sizes"]["forget"] == 12
    assert ("The checkpoint also held optimizer." in page) == (ending == "pt")
    assert "Not applied" not in page
    assert "SalUn: taken for unseen" in result.output
    assert ("the weights are its entry 'state_dict'; not used: optimizer" in result.stderr) == (ending == "pt")


NAMED = """
import own_data
import own_model
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset


class Output(dict):
    logits = property(lambda self: self["logits"])


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = own_model.build()

    def forward(self, values, scale=None):
        return Output(logits=self.body(values if scale is None else values * scale))


def batch():
    x, y = own_data.train()
    return {"values": x / 2, "scale": torch.full((len(x), 1), 2.0), "labels": y}


class samples(Dataset):
    def __init__(self):
        self.batch = batch()

    def __len__(self):
        return 240

    def __getitem__(self, i):
        return {name: t[i] for name, t in self.batch.items()}


def test():
    x, y = own_data.samples(150, 1)
    return {"values": x, "labels": y}
"""


def test_stored_factors(there, tmp_path):
    """They stand for what stays: the result is that of the method with these factors, and the audit names them."""
    model, data = trained(there)
    factors = EKFAC().fit(model, F.cross_entropy, data)
    file = tmp_path / "factors.safetensors"
    factors.save(file)
    out = tmp_path / "out"
    result = run(out, "--option", "step=1", "--factors", file, method="second-order")
    assert result.exit_code == 3, result.output
    outcome = SecondOrder(step=1.0, factors=factors)(model, Request.remove(data, FORGET))
    new = Weights.read(out / "weights.safetensors")
    for name, tensor in outcome.model.state_dict().items():
        torch.testing.assert_close(new.tensors[name], tensor)
    assert audit_of(out)["method"]["settings"]["factors"] == "Factors(EK-FAC, mc, 240 samples)"
    assert audit_of(out)["info"]["steps"][0]["solver"] == "solved with stored factors"
    run(tmp_path / "auto", "--factors", file, method="auto")
    assert audit_of(tmp_path / "auto")["info"]["tried"][0]["method"] == "SSD"

    cases = [
        ("ssd", "retrained.safetensors", file, "were fitted for a model with other parameters or buffers"),
        ("ssd", "trained.safetensors", tmp_path / "nothing", "nothing: no such file"),
        ("fine-tune", "trained.safetensors", file, "factors: FineTune takes none"),
    ]
    for method, weights, path, message in cases:
        result = run(tmp_path / "other", "--factors", path, method=method, weights=weights)
        assert result.exit_code == 2
        assert message in one_line(result.stderr)
        assert not (tmp_path / "other" / "audit.json").exists()


@pytest.mark.parametrize("data", ["batch", "samples"])
@pytest.mark.parametrize("method", ["ssd", "fine-tune"])
def test_mappings_and_logits(method, data, there, tmp_path, monkeypatch):
    """A model that takes and returns mappings does what the network inside does on pairs."""
    (tmp_path / "own_named.py").write_text(NAMED)
    monkeypatch.syspath_prepend(tmp_path)
    stored = Weights.read(there / "trained.safetensors").tensors
    safetensors.save_file({f"body.{name}": t for name, t in stored.items()}, tmp_path / "named.safetensors")
    named = {"model": "own_named:Named", "weights": tmp_path / "named.safetensors", "data": f"own_named:{data}"}
    settings = {"method": method, "seed": 1}
    runs = [
        run(tmp_path / "named", **named, **settings, test="own_named:test"),
        run(tmp_path / "plain", **settings, test="own_data:test"),
    ]
    sys.modules.pop("own_named")
    assert all(result.exit_code in (0, 3) for result in runs), [result.output for result in runs]
    found, plain = audit_of(tmp_path / "named"), audit_of(tmp_path / "plain")
    for place in ("before", "after"):
        for measure in ("forget_accuracy", "forget_loss", "retain_loss", "test_accuracy", "mia_ssd"):
            assert found["measures"][place][measure] == pytest.approx(plain["measures"][place][measure], abs=1e-4)
    assert found["data"]["forget"]["samples"] == len(FORGET)


@pytest.mark.parametrize("read", [lambda output: output.logits, lambda output: output["logits"]])
def test_a_loss_of_ones_own_reads_logits(read, there, tmp_path, monkeypatch):
    (tmp_path / "own_named.py").write_text(NAMED)
    monkeypatch.syspath_prepend(there)
    monkeypatch.syspath_prepend(tmp_path)
    import own_named

    stored = Weights.read(there / "trained.safetensors").tensors
    safetensors.save_file({f"body.{name}": t for name, t in stored.items()}, tmp_path / "named.safetensors")
    given = {"model_factory": own_named.Named, "weights": tmp_path / "named.safetensors", "data": own_named.batch()}
    own = {"loss_fn": lambda output, y: nn.functional.cross_entropy(read(output), y)}
    losses = []
    for out, loss in (("known", {}), ("own", own)):
        audit = unlearn(**given, method=SSD(alpha=1.0, **loss), out=tmp_path / out, forget=FORGET)
        losses.append(audit["measures"]["before"]["retain_loss"])
    sys.modules.pop("own_named")
    assert losses[1] == pytest.approx(losses[0])


def test_class_and_retraining(there, tmp_path):
    result = run(
        tmp_path / "out",
        *("--forget-class", 1, "--option", "epochs=20", "--option", "lr=1e-2"),
        forget=None,
        method="retrain",
        test="own_data:test",
    )
    assert result.exit_code == 0, result.output
    audit = audit_of(tmp_path / "out")
    import own_data

    y = own_data.train()[1]
    assert audit["request"]["class"] == 1
    assert audit["request"]["points"] == int((y == 1).sum())
    before, after = audit["measures"]["before"], audit["measures"]["after"]
    assert before["test_forgotten_accuracy"] > 0.5 > 0.05 > after["test_forgotten_accuracy"]
    assert after["forget_accuracy"] < 0.05
    assert after["test_accuracy"] > 0.8
    assert after["mia_starter_kit"] is not None
    assert audit["forgotten"] == "yes"
    page = one_line((tmp_path / "out" / "audit.html").read_text())
    assert f"<b>Forgotten: yes.</b> {audit['evidence']['sentence']}" in page
    assert "all those of class 1" in page
    assert "accuracy, test, class 1" in page


def test_forgetting_too_much_is_told_without_a_retrained_model(there, tmp_path):
    more = [word for option in ("epochs=20", "lr=1e-1", "max_increase=inf") for word in ("--option", option)]
    assert run(tmp_path / "out", *more, method="gradient-ascent", test="own_data:test").exit_code == 3
    audit = audit_of(tmp_path / "out")
    assert audit["measures"]["after"]["forget_loss"] > audit["measures"]["before"]["forget_loss"] + 5
    assert "It forgot too much" in audit["warning"]
    assert f"<b>Forgot too much:</b> {audit['warning']}" in one_line((tmp_path / "out" / "audit.html").read_text())


def test_retraining_starts_from_the_factory(there, tmp_path):
    class Own(nn.Module):
        """Cannot be reset: its parameter is one of its own."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6))

        def forward(self, x):
            return x @ self.weight.T

    torch.save(Own().state_dict(), tmp_path / "own.pt")
    x, y = torch.randn(60, 6), torch.arange(60) % 3
    state = torch.get_rng_state()
    audit = unlearn(
        model_factory=Own,
        weights=tmp_path / "own.pt",
        data=TensorDataset(x, y),
        forget=torch.arange(10),
        method=Retrain(epochs=2),
        out=tmp_path / "out",
        device="cpu",
    )
    assert audit["applied"]
    assert torch.equal(torch.get_rng_state(), state)
    assert audit["notes"] == ["No test data were given: there is no test accuracy, and no membership attack."]
    assert audit["gap"] is None
    assert "test_accuracy" not in audit["measures"]["after"]


def test_not_applied(there, tmp_path):
    result = run(tmp_path / "out", "--option", "alpha=0", "--option", "lam=0", "--option", "max_increase=0")
    assert result.exit_code == 1, result.output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"audit.json", "audit.html"}
    audit = audit_of(tmp_path / "out")
    assert not audit["applied"]
    assert audit["reason"]
    assert audit["weights"]["after"] is None
    assert audit["measures"].keys() == {"before"}
    assert audit["moved"]["l2"] == 0
    page = one_line((tmp_path / "out" / "audit.html").read_text())
    assert f"<b>Not applied:</b> {audit['reason']}" in page
    assert "no weights were written" in page
    assert "Not applied" in result.output


def test_too_few_points_for_an_attack(there, tmp_path):
    (tmp_path / "few.txt").write_text("7\n")
    result = run(tmp_path / "out", forget=tmp_path / "few.txt", test="own_data:test", method="first-order")
    assert result.exit_code in (0, 1, 3), result.output
    audit = audit_of(tmp_path / "out")
    assert audit["measures"]["before"]["mia_starter_kit"] is None
    assert any("starter_kit could not be run" in note for note in audit["notes"])
    assert "Note: The membership attack starter_kit could not be run" in one_line(result.stdout)


def test_a_loader_counts_as_its_dataset(there, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.arange(60) % 3
    model = nn.Linear(6, 3)
    torch.save(model.state_dict(), tmp_path / "own.pt")
    audit = unlearn(
        model_factory=lambda: nn.Linear(6, 3),
        weights=tmp_path / "own.pt",
        data=DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, drop_last=True),
        forget=[4, 2],
        method=FineTune(epochs=1),
        out=tmp_path / "out",
        device="cpu",
    )
    assert audit["data"]["train"]["sha256"] == tensor_hash({"x": x, "y": y})
    assert audit["data"]["forget"]["sha256"] == tensor_hash({"x": x[[2, 4]], "y": y[[2, 4]]})


@pytest.mark.parametrize(
    ("more", "changed", "message"),
    [
        ([], {"model": "own_model"}, "--model is 'own_model', expected module:name"),
        ([], {"model": "own_modl:build"}, "there is no module 'own_modl' in"),
        ([], {"model": "own_model:buld"}, "own_model has no 'buld'"),
        ([], {"model": "own_model:size"}, "which is int, expected a function or class"),
        ([], {"model": "own_model:no_module"}, "model_factory: returned str, expected a torch.nn.Module"),
        ([], {"model": "own_model:fails"}, "own_model.py, line 14: KeyError: 'width'"),
        ([], {"model": "own_model:needs"}, "--model own_model:needs: failed: TypeError: needs() missing 1 required"),
        ([], {"data": "broken:train"}, "broken.py, line 2: ModuleNotFoundError: No module named 'not_installed_any"),
        ([], {"data": "own_data:nothing"}, "data: cannot be read as samples (x, y)"),
        ([], {"data": "own_data:regression"}, "data: labels are torch.float32 of shape [240], expected class indices"),
        ([], {"data": "own_data:wide"}, "data: the model cannot read samples of shape [12]"),
        ([], {"data": "own_data:more_classes"}, "data: label 4 is out of range for the model's 3 classes"),
        ([], {"weights": "nowhere.pt"}, "nowhere.pt: no such file"),
        ([], {"weights": None}, "--weights is missing, expected the file of the model's weights"),
        ([], {"model": "hf:nowhere", "weights": None}, "nowhere: holds no config.json"),
        ([], {"weights": "forget.npy"}, "forget.npy: is neither a safetensors file nor one that torch.save wrote"),
        ([], {"retrained": "nowhere.pt"}, "nowhere.pt: no such file"),
        ([], {"method": "sdd"}, "--method: 'sdd' is unknown, expected names among auto, "),
        (["--option", "alfa=3"], {}, "--option alfa=3: ssd has no such option; it has "),
        (["--option", "alpha"], {}, "--option is 'alpha', expected name=value"),
        (["--option", "max_increase=much"], {}, "--option max_increase=much: expected float"),
        (["--option", "lam=-1"], {}, "lam is -1"),
        (["--option", "seed=3"], {}, "--option seed=3: use the option --seed instead"),
        (["--params", "5.weight"], {}, "params: the model has no parameter '5.weight'"),
        (["--forget-class", 1], {}, "forget, forget_class: both given"),
        ([], {"forget": None}, "forget, forget_class: neither given"),
        (["--forget-class", 9], {"forget": None}, "no sample has label 9; the labels are [0, 1, 2]"),
        (["--device", "tpu:x"], {}, "device is 'tpu:x'"),
        ([], {"data": "own_data:none"}, "--data own_data:none: returned None, expected a Dataset"),
        ([], {"test": "own_data:none"}, "--test own_data:none: returned None, expected a Dataset"),
        ([], {"test": "own_data:nothing"}, "test: cannot be read as samples (x, y)"),
        ([], {"data": "own_data:leaves"}, "--data own_data:leaves: failed at"),
    ],
)
def test_clear_errors(more, changed, message, there, tmp_path):
    result = run(tmp_path / "out", *more, **changed)
    assert result.exit_code == 2, result.output
    assert message.replace(" ", "") in "".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.array([1.0, 2.0]), r"holds float64 of shape \[2\], expected indices"),
        ("a.npy", np.ones(5, dtype=bool), r"holds bool of shape \[5\].*save mask.nonzero"),
        ("a.npy", np.ones((2, 2), dtype=int), r"shape \[2, 2\]"),
        ("a.npy", np.array([{}], dtype=object), "Object arrays cannot be loaded"),
        ("a.npy", b"1\n2\n", "cannot be read, expected a .npy file with an array"),
        ("a.txt", b"1\n2.5\n", "a.txt, line 2: is '2.5', expected an integer"),
        ("a.txt", b"\xff\xfe\x00", "is not text, expected a .npy file"),
    ],
)
def test_wrong_index_files(name, content, message, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        np.save(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        read_indices(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_indices(tmp_path / "nowhere.npy")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "indices: is empty"),
        ("5\n5\n", "sample 5 is given twice"),
        ("240\n", "240 is out of range for 240 samples"),
        ("-1\n", "-1 is out of range"),
    ],
)
def test_indices_that_are_none(lines, message, there, tmp_path):
    (tmp_path / "a.txt").write_text(lines)
    result = run(tmp_path / "out", forget=tmp_path / "a.txt")
    assert result.exit_code == 2
    assert message in one_line(result.output)


def test_results_are_not_overwritten(there, tmp_path):
    for name in ("audit.json", "weights.safetensors"):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text("earlier")
        result = run(out)
        assert result.exit_code == 2
        assert f"holds {name} already" in one_line(result.output)
        assert (out / name).read_text() == "earlier"


def test_ctrl_c_leaves_everything_as_it_was(there, tmp_path, monkeypatch):
    given = {file.name: file.read_bytes() for file in there.iterdir() if file.is_file()}
    result = run(tmp_path / "a" / "out", data="own_data:interrupted")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "unlearnx unlearn: interrupted"

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_audit", interrupted)  # when the weights are written
    assert run(tmp_path / "a" / "out").exit_code == 130
    assert list(tmp_path.iterdir()) == []
    assert {file.name: file.read_bytes() for file in there.iterdir() if file.is_file()} == given


def test_another_run_takes_what_a_killed_one_has_left(there, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in (LOCK, "weights.pt", "audit.html"):
        (out / name).write_text("half")
    assert run(out, weights="trained.safetensors").exit_code == 3
    assert {file.name for file in out.iterdir()} == {"weights.safetensors", "audit.json", "audit.html"}


@pytest.mark.parametrize("wrong", ["file", "file/x", "/proc/nothing"])
def test_an_out_that_cannot_be(wrong, there, tmp_path):
    (tmp_path / "file").touch()
    result = run(tmp_path / wrong, data="own_data:interrupted")  # found before the data are read
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert str(tmp_path / "file" if "file" in wrong else wrong) in result.stderr


def test_a_disk_that_is_full_of_the_weights(there, tmp_path, monkeypatch):
    def reserve(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", reserve)
    result = run(tmp_path / "out")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "out: 1.0 MiB cannot be written there: No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_users_module_prints_is_no_result(there, tmp_path):
    (there / "talks.py").write_text("print('hello')\nfrom own_data import train")
    result = run(tmp_path / "out", "--json", data="talks:train")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["applied"]
    assert json.loads(result.stdout)["forgotten"] != "yes"
    assert "hello" in result.stderr


def test_a_malicious_pickle_is_refused(there, tmp_path):
    class Malicious:
        def __reduce__(self):
            return __import__("os").mkdir, (str(tmp_path / "proof"),)

    torch.save({"0.weight": Malicious()}, tmp_path / "bad.pt")
    result = run(tmp_path / "out", weights=tmp_path / "bad.pt")
    assert result.exit_code == 2
    assert "could run code" in one_line(result.output)
    assert not (tmp_path / "proof").exists()
    assert not (tmp_path / "out").exists()


def test_options_take_the_type_of_their_field():
    fine = build_method("fine-tune", ["epochs=3", "lr=1", "anchor=2e-3"], seed=5, batch_size=None, params=["a"])
    assert (fine.epochs, fine.lr, fine.anchor, fine.seed, fine.params) == (3, 1.0, 2e-3, 5, ["a"])
    assert type(fine.lr) is float
    assert fine.batch_size == FineTune().batch_size
    assert build_method("first-order", ["tau=auto"]).tau == "auto"
    first = build_method("first-order", ["tau=0.5", "points_per_step=none", "points=forget"])
    assert isinstance(first, FirstOrder)
    assert (first.tau, first.points_per_step, first.points) == (0.5, None, "forget")
    with pytest.raises(ValueError, match=r"epochs=2\.5: expected int"):
        build_method("fine-tune", ["epochs=2.5"])
    with pytest.raises(ValueError, match="second-order has no such option; it has"):
        build_method("second-order", ["solver=LiSSA()"])


def test_parameters():
    assert parameters(None) is None
    assert parameters("last:6") == "last:6"
    assert parameters("0.weight, 0.bias") == ["0.weight", "0.bias"]
