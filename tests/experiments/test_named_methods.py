"""Methods that unlearnx does not have: a user's own by module:Method, and those of plug-ins."""

import dataclasses
import importlib
import json
import sys

import pytest

from unlearnx.data import Splits
from unlearnx.experiments import forget_class_digits
from unlearnx.experiments.arguments import build_method, leaves_open
from unlearnx.experiments.forget import repeat
from unlearnx.experiments.named_methods import named_method, plugins
from unlearnx.experiments.recipes import from_recipe, to_recipe
from unlearnx.experiments.run_store import read_trial
from unlearnx.methods import RUM, SSD, UNSIR, Pipeline

OWN = """
from dataclasses import dataclass
from unlearnx.methods import FineTune, Method, Pipeline

@dataclass
class Shrink(Method):
    factor: float = 0.9
    kind: str | None = None

    def _apply(self, work, info):
        for name, p in work.model.named_parameters():
            p.data.mul_(self.factor if name in work.names else 1.0)

@dataclass
class Demanding(Shrink):
    def __post_init__(self):
        raise ValueError("factor: is missing")

MILD = Shrink(factor=0.99)
BOTH = Pipeline([MILD, FineTune(epochs=1)])

@dataclass
class Twice(Pipeline):
    stages: tuple = (MILD, MILD)

NUMBER = 3
class Other: pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of the user's own; what is imported from there is forgotten again."""
    (tmp_path / "own_methods.py").write_text(OWN)
    (tmp_path / "broken_methods.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("own_methods", "broken_methods"):
        sys.modules.pop(name, None)


def install(folder, package, *lines):
    """A package with these entry points, as pip leaves it."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[unlearnx.methods]", *lines]) + "\n")


@pytest.fixture
def plugged(own, monkeypatch):
    monkeypatch.syspath_prepend(own)
    install(own, "their-methods", "shrink = own_methods:Shrink", "broken = broken_methods:Method")
    install(own, "their-others", "lost = nowhere_at_all:Method", "number = own_methods:NUMBER")
    return own


def test_a_class_or_an_instance_is_named(own):
    kind = named_method("--method", "own_methods:Shrink")
    assert kind.__name__ == "Shrink"
    assert build_method("own_methods:Shrink", ["factor=0.5", "kind=none"], seed=3) == kind(0.5, seed=3)
    assert build_method("own_methods:MILD", [], seed=3, params=None) == kind(0.99, seed=3)
    assert build_method("own_methods:MILD", ["factor=0.7"]).factor == 0.7
    assert leaves_open("own_methods:Shrink", "factor")
    assert not leaves_open("own_methods:MILD", "factor")  # which has a value there
    assert not leaves_open("own_methods:Shrink", "lr")
    assert named_method("--method", "unlearnx.methods:SSD") is SSD


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shrnk", "--method: 'shrnk' is unknown, expected names among auto, .*, or module:Method"),
        ("own_method:Shrink", "--method is 'own_method:Shrink', but there is no module 'own_method' in"),
        ("own_methods:Shrnk", "--method is 'own_methods:Shrnk', but own_methods has no 'Shrnk'"),
        ("own_methods:", "--method is 'own_methods:', expected module:name"),
        ("own_methods:NUMBER", "--method is 'own_methods:NUMBER', which is of type int, expected a subclass of Method"),
        ("own_methods:Other", "which is the class Other, expected a subclass of Method, a method or a Pipeline"),
        ("own_methods:BOTH", "--method is 'own_methods:BOTH', which is a Pipeline, expected a single method"),
        ("unlearnx.methods:RUM", "'unlearnx.methods:RUM', which is a Pipeline, expected a single method"),
        ("broken_methods:M", "--method broken_methods:M: failed at .*broken_methods.py, line 1: ModuleNotFoundError"),
    ],
)
def test_what_is_no_method_is_refused(own, name, message):
    with pytest.raises(ValueError, match=message):
        build_method(name, [])


def test_studies_take_them(own):
    study = forget_class_digits(
        methods=["ssd", "own_methods:Shrink", "own_methods:BOTH", "own_methods:Twice", "unlearnx.methods:RUM"],
        sweep=["own_methods:Shrink.factor=0.8,0.9"],
    )
    assert isinstance(study.methods["own_methods:BOTH"], Pipeline)
    assert len(study.methods["own_methods:Twice"].stages) == 2
    assert study.methods["unlearnx.methods:RUM"] == RUM()
    assert study.sweeps[0].method == "own_methods:Shrink"
    with pytest.raises(ValueError, match=r"methods own_methods:Demanding: failed at .*: factor: is missing"):
        forget_class_digits(methods=["own_methods:Demanding"])
    with pytest.raises(ValueError, match=r"methods: 'magic' is unknown, expected names among ssd, fisher-masking, .*"):
        forget_class_digits(methods=["magic"])


def test_studies_take_all_methods_by_name():
    assert forget_class_digits(methods=["unsir", "ssd"]).methods == {"unsir": UNSIR(), "ssd": SSD(alpha="adaptive")}
    with pytest.raises(ValueError, match=r"'unsr' is unknown, expected names among ssd, fisher-masking, .*, auto, "):
        forget_class_digits(methods=["unsr"])
    with pytest.raises(ValueError, match=r"methods unlearnx.methods:Pipeline: failed.*: .*stages"):
        forget_class_digits(methods=["unlearnx.methods:Pipeline"])


def test_plugins_are_found_by_name(plugged):
    assert list(plugins()) == ["shrink", "broken", "lost", "number"]
    assert "own_methods" not in sys.modules  # nothing is imported before it is asked for
    assert build_method("shrink", ["factor=0.5"]).factor == 0.5
    assert list(forget_class_digits(methods=["shrink"]).methods) == ["shrink"]
    with pytest.raises(ValueError, match=r"--method: 'magic' is unknown, .*, shrink, broken, lost, number, or"):
        build_method("magic", [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "--method broken, a plug-in of their-methods, broken_methods:Method: failed at .*ModuleNotFoundErr"),
        ("lost", "--method lost, a plug-in of their-others, is 'nowhere_at_all:Method', but there is no module"),
        ("number", "--method number, a plug-in of their-others, is 'own_methods:NUMBER', which is of type int, expect"),
    ],
)
def test_plugins_that_fail_say_why(plugged, name, message):
    with pytest.raises(ValueError, match=message):
        build_method(name, [])


def test_names_belong_to_one_method(plugged):
    install(plugged, "greedy-methods", "ssd = own_methods:Shrink")
    with pytest.warns(UserWarning, match="own_methods:Shrink of greedy-methods is not taken: .* named 'ssd'"):
        assert "ssd" not in plugins()
    assert named_method("--method", "ssd") is SSD
    install(plugged, "same-methods", "shrink = own_methods:MILD")
    with (
        pytest.warns(UserWarning, match="is not taken"),
        pytest.raises(ValueError, match=r"'shrink' is a plug-in of each of .*-methods, .*-methods, expected one"),
    ):
        named_method("--method", "shrink")


def test_recipes_hold_them_with_their_source(own):
    method = named_method("--method", "own_methods:Shrink")(factor=0.5)
    recipe = json.loads(json.dumps(to_recipe(Pipeline([method, SSD()]))))
    written = recipe["arguments"]["stages"][0]
    assert (written["method"], written["arguments"]["factor"]) == ("own_methods:Shrink", 0.5)
    assert from_recipe(recipe) == Pipeline([method, SSD()])
    twice = named_method("--method", "own_methods:Twice")(max_increase=2.0)
    recipe_twice = json.loads(json.dumps(to_recipe(twice)))
    assert recipe_twice["method"] == "own_methods:Twice"
    assert from_recipe(recipe_twice).stages == list(twice.stages)
    with (own / "own_methods.py").open("a") as file:
        file.write("# changed\n")
    assert to_recipe(method)["source"] != written["source"]
    del sys.modules["own_methods"]
    with pytest.raises(ValueError, match="its method is own_methods:Shrink, and nothing is imported because a file"):
        from_recipe(recipe)
    for name in ("os:system", "own_methods:NUMBER", "json:JSONDecoder"):
        with pytest.raises(ValueError, match=r"^recipe: "):
            from_recipe({"method": name, "arguments": {}})


def test_recipes_import_what_is_installed(plugged):
    recipe = to_recipe(build_method("shrink", []))
    del sys.modules["own_methods"]
    assert from_recipe(recipe).factor == 0.9


def test_a_trial_of_ones_own_is_made_again(own, tmp_path):
    study = forget_class_digits(epochs=1, methods=["own_methods:MILD"], progress=False)
    s = study.splits
    splits = Splits(s.train_x[:300], s.train_y[:300], s.test_x[:200], s.test_y[:200], s.classes)
    result = dataclasses.replace(study, splits=splits).run([0], tmp_path / "run")
    assert result["methods"]["own_methods:MILD"] == "Shrink(batch_size=256, factor=0.99)"
    file = tmp_path / "run" / "trials" / "seed-0" / "own-methods-mild.json"
    recorded = read_trial(file)
    assert recorded["recipe"]["method"]["method"] == "own_methods:Shrink"
    again = repeat(recorded["recipe"], tmp_path / "again", beside=file.parent, progress=False)
    assert again["recipe"]["method"] == recorded["recipe"]["method"]
