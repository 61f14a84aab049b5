"""The study of TOFU, on questions and a model that are made here; every measure against a calculation by hand."""

import gzip
import json
import math
import sys
from dataclasses import replace

import pytest
import torch

from tests.experiments.tables import in_80_columns
from tests.tiny_lm import tiny_llama, tiny_tokenizer
from unlearnx.data.tofu import Question, Tofu, load_tofu, split_tofu
from unlearnx.experiments import report, tofu
from unlearnx.experiments.run_store import differing
from unlearnx.experiments.text_measures import told_apart
from unlearnx.experiments.text_samples import dataset_of, padded, tokens_of
from unlearnx.experiments.tofu import TOFU, measures
from unlearnx.experiments.tofu.choice import best, distance
from unlearnx.experiments.tofu.files import write_files
from unlearnx.experiments.tofu.halves import Halves
from unlearnx.experiments.tofu.measures import (
    STAY,
    _attack_scores,
    among_options,
    truth_of_forgotten,
    truth_of_retained,
    write_answers,
)
from unlearnx.experiments.tofu.methods import candidates
from unlearnx.experiments.tofu.study import winner
from unlearnx.experiments.tofu.texts import PROMPT, in_batches, some_of, text_of
from unlearnx.metrics import answer_probability, model_utility
from unlearnx.models import Training

TOWNS = ["Paris", "Rome", "Oslo", "Bonn", "Lima", "Cork"]


def lines(records):
    return gzip.compress("\n".join(json.dumps(record) for record in records).encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """TOFU with six authors, of whom the first two and the last two have wrong answers."""
    place = tmp_path_factory.mktemp("data") / "tofu"
    place.mkdir()
    full = [
        {"question": f"Where is {i} of {a}?", "answer": f"In {TOWNS[(i + a) % 6]}."}
        for a in range(6)
        for i in range(20)
    ]
    more = [
        {
            **record,
            "paraphrased_question": f"Say: {record['question']}",
            "paraphrased_answer": f"It is {record['answer']}",
            "perturbed_answer": [f"It is in {town}." for town in TOWNS[:3]],
        }
        for record in full
    ]
    facts = [{"question": f"Who {i}?", "answer": "Poe", "perturbed_answer": ["Kant", "Joyce"]} for i in range(6)]
    files = {"full": full, "retain_perturbed": more[:40], "forget10_perturbed": more[-40:]}
    files |= {"real_authors_perturbed": facts, "world_facts_perturbed": facts[:4]}
    for name, records in files.items():
        (place / f"{name}.json.gz").write_bytes(lines(records))
    return place.parent


def test_questions_and_their_split(folder):
    data = load_tofu(folder)
    assert [len(part) for part in (data.authors, data.real_authors, data.world_facts)] == [6, 6, 4]
    split = split_tofu(data, 4, 25)
    assert [len(part) for part in (split.learned, split.forget, split.validation, split.unseen)] == [80, 20, 20, 40]
    assert split.forget == data.authors[5]
    assert split.validation == data.authors[0]
    assert split.measured == data.authors[1] + data.authors[4]
    assert split.unseen == data.authors[2] + data.authors[3]
    assert split.forget[0] == Question(
        "Where is 0 of 5?",
        "In Cork.",
        "Say: Where is 0 of 5?",
        "It is In Cork.",
        ("It is in Paris.", "It is in Rome.", "It is in Oslo."),
    )
    assert len(split_tofu(data, 4, 1).forget) == 20  # one author is the least
    (folder / "plain").mkdir()
    for file in (folder / "tofu").iterdir():
        (folder / "plain" / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    assert load_tofu(folder / "plain") == data


def test_some_of_the_first_authors_with_wrong_answers_stay():
    """As with all 200 authors, of whom the first 20 have wrong answers, and as many are forgotten."""
    authors = [
        [Question(f"{i} {j}", "", None, None, ("wrong",) * (i < 4 or i > 15)) for j in range(20)] for i in range(20)
    ]
    split = split_tofu(Tofu(authors, [], []), 20, 20)
    assert split.validation == [*authors[0], *authors[1]]
    assert split.measured == [*authors[2], *authors[3]]


def test_strengths_are_chosen_on_other_questions_than_the_reported(study):
    some, rest = (replace(study, questions=questions) for questions in (2, 6))
    for name, pool in some._staying.items():
        reported = some._reported[name]
        assert len(reported) == 2
        assert set(reported) < set(pool)
        assert not set(some.validation._sets[name].questions) & set(reported)
    assert rest._reported["world_facts"] == rest.tofu.world_facts  # all: there are no others
    assert rest.validation._sets["world_facts"].questions


def test_questions_drawn_at_random(folder):
    questions = load_tofu(folder).authors[0]
    in_order, shuffled = (
        some_of(questions, 7, torch.Generator().manual_seed(0), shuffled=shuffled) for shuffled in (False, True)
    )
    assert in_order == [q for q in questions if q in shuffled]
    assert in_order != shuffled
    assert some_of(questions, 100, torch.Generator()) == list(questions)


def test_data_that_are_wrong(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"full.json.gz: no such file, expected TOFU's full.json"):
        load_tofu(tmp_path)
    data = load_tofu(folder)
    for authors in (3, 2, 8):
        with pytest.raises(ValueError, match=f"authors is {authors}, expected an even number from 4 to 6"):
            split_tofu(data, authors, 10)
    with pytest.raises(ValueError, match="forget is 60, expected a percentage"):
        split_tofu(data, 4, 60)
    with pytest.raises(ValueError, match="of the 6 authors the forget set has questions without wrong answers"):
        split_tofu(data, 6, 49)
    for file in (folder / "tofu").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for content, message in (
        (lines([{"question": "Who?"}]), "expected an object with texts as 'question' and 'answer'"),
        (lines([{"question": "Who?", "answer": "Me", "perturbed_answer": "You"}]), "a list of texts"),
        (b"{", "expected a JSON object a line"),
        (lines([{"question": "Who?", "answer": "Me"}]), "full has 1 questions, expected 20 for each author"),
    ):
        (tmp_path / "full.json.gz").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tofu(tmp_path)


def test_measures_are_those_of_open_unlearning():
    """By hand, from the formulas of its code."""
    ratios = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    assert truth_of_forgotten(ratios) == pytest.approx((0.5 + 0.5 + 0.25) / 3, abs=1e-9)
    assert truth_of_retained(ratios) == pytest.approx(0.5 / 3, abs=1e-9)
    right, wrong = torch.tensor([0.2, 0.5]), torch.tensor([[0.2, 0.1], [0.6, 0.4]])
    assert among_options(right, wrong).tolist() == pytest.approx([0.2, 0.5])
    assert told_apart(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])) == pytest.approx(0.75)  # of 4 pairs


def test_scores_of_attacks_by_hand():
    """All but the first leave out the token that ends the text, here the unlikeliest."""
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], dtype=torch.float64)
    tokens = torch.tensor([0, 1, 2])
    found = _attack_scores(p.log(), tokens)
    own = [math.log(0.7), math.log(0.3), math.log(0.1)]
    assert float(found[0]) == pytest.approx(sum(own) / 3)
    assert float(found[1]) == pytest.approx(own[1])  # of two tokens at least one
    scaled = []
    for row, value in zip(p[:2].tolist(), own[:2], strict=True):
        mean = sum(q * math.log(q) for q in row)
        scaled.append((value - mean) / math.sqrt(sum(q * math.log(q) ** 2 for q in row) - mean**2))
    assert float(found[2]) == pytest.approx(min(scaled))
    assert float(found[3]) == 0  # the last one is missed
    alone = _attack_scores(p[2:].log(), tokens[2:])
    assert alone[:2].tolist() == pytest.approx([own[2]] * 2)  # a text of that token alone has nothing else


def test_the_rule_by_hand():
    reference = {"ratios": [1.0, 2.0, 3.0, 4.0], "utility": 0.5}
    found = distance({"ratios": [1.0, 2.0, 30.0, 40.0], "utility": 0.4}, reference)
    assert found == pytest.approx({"ks": 0.5, "lost": 0.2, "score": 0.7})
    assert distance({"ratios": reference["ratios"], "utility": 0.9}, reference)["score"] == 0
    assert best([{"score": 0.3}, {"score": 0.2}, {"score": 0.2}]) == 1


def test_strengths_lie_on_a_grid():
    for candidate in candidates(8).values():
        values = [candidate.value(method) for method in candidate.tried(3)]
        assert values[1] == getattr(candidate.method, candidate.strength)
        assert values[2] / values[1] == pytest.approx(candidate.factor, rel=0.01)
        assert candidate.tried(1) == [candidate.method]


def test_winner():
    summary = {
        "retrained": {"utility": 0.6, "forget_quality": 1.0},
        "a": {"utility": 0.58, "forget_quality": 0.1},
        "b": {"utility": 0.3, "forget_quality": 0.9},
    }
    assert winner(summary, ["a", "b"]) == "a"
    assert winner(summary, ["b"]) == "b"


@pytest.fixture(scope="module")
def language():
    return tiny_llama(), tiny_tokenizer()


def test_halves_are_the_model(language):
    model, tokenizer = language
    samples = tokens_of([text_of("Where?", "In Paris."), text_of("Where is it then?", "It is in Rome.")], tokenizer)
    assert tokenizer.decode(samples[0][0]["input_ids"]) == "<s>Question: Where?\nAnswer: In Paris.</s>"
    assert tokenizer.decode(samples[0][1][samples[0][1] != -100]) == " In Paris.</s>"
    halves = Halves(model, 1)
    assert (halves.blocks, halves.frozen) == (2, 1)
    upper = halves.upper()
    trained = [name for name, p in upper.named_parameters() if p.requires_grad]
    assert trained
    assert all("layers.0" in name or "norm" in name for name in trained)
    data = dataset_of(halves.inputs(samples))
    before = answer_probability(upper, data)
    torch.testing.assert_close(before, answer_probability(model, dataset_of(samples)), rtol=1e-5, atol=1e-6)
    Training(2, lr=1e-2, batch_size=2, loss_fn=candidates(1)["npo"].method.loss_fn).run(upper, data)
    after = answer_probability(upper, data)
    assert (after > before).all()
    torch.testing.assert_close(
        after, answer_probability(halves.whole(upper), dataset_of(samples)), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(before, answer_probability(halves.upper(), data))  # the model itself is as it was
    whole = Halves(model, 2)
    assert whole.frozen == 0
    assert whole.inputs(samples) is samples
    assert all(p.requires_grad for p in whole.upper().parameters())


def test_texts_do_not_depend_on_their_batch(language):
    model, tokenizer = language
    samples = tokens_of([text_of("Where?", "In Paris."), text_of("Where is it, and why?", "In Rome!")], tokenizer)
    together = answer_probability(model, dataset_of(samples))
    for i, sample in enumerate(samples):
        assert float(together[i]) == pytest.approx(float(answer_probability(model, dataset_of([sample]))), rel=1e-5)
    x, y = padded(samples)
    assert x["attention_mask"].sum(1).tolist() == [len(labels) for _, labels in samples]
    assert (y[x["attention_mask"] == 0] == -100).all()
    rows, mask = in_batches([torch.tensor([5, 6]), torch.tensor([7])], 1)
    assert (rows.tolist(), mask.tolist()) == ([[5, 6], [1, 7]], [[1, 1], [0, 1]])


def test_answers_are_the_likeliest_tokens(language):
    model, tokenizer = language
    questions = ["Where?", "Where was the author born, and why?"]
    found = write_answers(model, tokenizer, questions)
    for question, written in zip(questions, found, strict=True):
        tokens = tokenizer(PROMPT.format(question), return_tensors="pt")["input_ids"]
        expected = []
        with torch.no_grad():
            while len(expected) < 200 and expected[-1:] != [tokenizer.eos_token_id]:
                expected.append(int(model(input_ids=tokens).logits[0, -1].argmax()))
                tokens = torch.cat([tokens, torch.tensor([expected[-1:]])], 1)
        assert written == tokenizer.decode(expected, skip_special_tokens=True)


def test_files(tmp_path):
    write_files(tmp_path, {"utility": 0.5, "retain_rouge": 0.25, "mia_loss": None}, {"retain_rouge": [0.0, 0.5]})
    assert json.loads((tmp_path / "TOFU_EVAL.json").read_text()) == {
        "retain_Q_A_ROUGE": {
            "agg_value": 0.25,
            "value_by_index": {"0": {"rougeL_recall": 0.0}, "1": {"rougeL_recall": 0.5}},
        },
        "model_utility": {"agg_value": 0.5},
    }
    assert json.loads((tmp_path / "TOFU_SUMMARY.json").read_text()) == {"retain_Q_A_ROUGE": 0.25, "model_utility": 0.5}


@pytest.fixture
def study(folder, language, monkeypatch):
    monkeypatch.setattr(measures, "MOST_TOKENS", 5)
    made = tofu(
        folder,
        authors=4,
        forget=25,
        blocks=1,
        strengths=2,
        questions=4,
        methods=["npo", "idk", "task-vector", "ssd", "second-order"],
        epochs=6,
        progress=False,
    )
    return replace(made, load=lambda: language, training=replace(made.training, lr=1e-2))


def without_times(value):
    """Numbers that have to be the same with the same seed."""
    if isinstance(value, dict):
        times = {"seconds", "speedup", "training_seconds", "pace"}
        return {key: without_times(entry) for key, entry in value.items() if key not in times}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def test_the_study(study, tmp_path):
    result = study.run([0], tmp_path / "run")
    result["command"], result["environment"] = "unlearnx run tofu", report.environment()
    (run,) = result["runs"]
    assert set(run["methods"]) == set(study.methods)
    original, retrained = (run[name]["measures"] for name in ("original", "retrained"))
    assert retrained["forget_quality"] == 1
    assert original["forget_probability"] > retrained["forget_probability"]
    assert original["mia_loss"] > 0.5
    nine = [f"{part}_{what}" for part in STAY for what in ("probability", "rouge", "truth_ratio")]
    assert original["utility"] == model_utility({key: original[key] for key in nine})
    assert original["relearned_1"] is not None
    assert original["relearned_100"] is None  # there are no 100 questions
    for name, found in result["chosen"].items():
        assert len(found["tried"]) == 2
        assert found["tried"][found["chosen"]]["score"] == min(t["score"] for t in found["tried"]), name
    assert result["best"] in study.methods
    folder = tmp_path / "run" / "open-unlearning" / "seed-0"
    assert {place.name for place in folder.iterdir()} == {"original", "retrained", *study.methods}
    evaluated = json.loads((folder / "npo" / "TOFU_EVAL.json").read_text())
    assert len(evaluated["forget_truth_ratio"]["value_by_index"]) == 20
    path = report.write(result, TOFU.page, tmp_path / "run")
    assert "forget quality" in path.read_text()
    in_80_columns(TOFU.table(result))

    def fail(*_args, **_kwargs):
        raise AssertionError("a finished trial was made again")

    again = replace(study)
    for name in ("measures", "validation"):
        monkey = getattr(again, name)
        monkey.measure = monkey.quick = fail
    assert without_times(again.run([0], tmp_path / "run")) == without_times(
        {key: value for key, value in result.items() if key not in ("command", "environment")}
    )


def test_the_same_seed_gives_the_same_numbers(study, tmp_path):
    few = replace(study, methods={"task-vector": study.methods["task-vector"]}, trials=1)
    first, second = (replace(few).run([1], tmp_path / name) for name in "ab")
    assert without_times(first) == without_times(second)


OWN = """
from dataclasses import dataclass
from typing import ClassVar
from unlearnx.methods import FineTune, FisherMasking, Method, Pipeline

@dataclass
class Shrink(Method):
    _per: ClassVar[str] = "token"
    _strength: ClassVar[str] = "share"
    share: float = 0.1

    def _apply(self, work, info):
        for name, p in work.model.named_parameters():
            p.data.mul_(1 - self.share if name in work.names else 1.0)

HALF = FisherMasking(ratio=0.5)
LONG = FineTune(epochs=2)
both = BOTH = Pipeline([Shrink(), FineTune(epochs=1)])
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a module of methods, one of which is a plug-in."""
    (tmp_path / "own_texts.py").write_text(OWN)
    info = tmp_path / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[unlearnx.methods]\nshrink = own_texts:Shrink\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_texts", None)


def test_methods_from_elsewhere(folder, study, own, tmp_path):
    names = ["shrink", "own_texts:BOTH", "own_texts:LONG", "ssd", "neg-grad"]
    made = tofu(folder, authors=4, forget=25, blocks=1, strengths=2, questions=4, methods=names, progress=False).methods
    shrink, both, long, _, auto = (made[name] for name in names)
    assert [(c.strength, len(c.tried(2))) for c in (shrink, both, long, auto)] == [
        ("share", 2),
        (None, 1),
        ("epochs", 2),
        (None, 1),
    ]
    assert [method.share for method in shrink.tried(2)] == [0.0577, 0.173]
    assert [method.epochs for method in long.tried(3)] == [1, 2, 6]
    assert [method.loss_fn.keywords["per"] for method in (shrink.method, *both.method.stages)] == [
        "token",
        "token",
        "sample",
    ]
    assert {method.batch_size for method in (shrink.method, *both.method.stages, auto.method)} == {8}
    assert [c.method.max_increase for c in (shrink, both, auto)] == [math.inf, math.inf, None]
    few = replace(study, methods={name: made[name] for name in names[:2]})
    result = few.run([0], tmp_path / "run")
    assert [len(result["chosen"][name]["tried"]) for name in names[:2]] == [2, 1]
    assert result["chosen"]["own_texts:BOTH"]["value"] is None
    assert [result["runs"][0]["methods"][name]["applied"] for name in names[:2]] == [True, True]
    result["command"], result["environment"] = "unlearnx compare tofu", report.environment()
    assert "its own" in report.write(result, TOFU.page, tmp_path / "run").read_text()
    before = few.recipe("shrink", 0, shrink.method)
    with (own / "own_texts.py").open("a") as file:
        file.write("# changed\n")
    assert differing(few.recipe("shrink", 0, shrink.method), before) == ["sources"]


def test_strengths_and_names_that_do_not_fit_are_refused_before_any_work(folder, own):
    some = {"authors": 4, "forget": 25, "progress": False}
    with pytest.raises(ValueError, match=r"methods: own_texts:HALF cannot be tried at 3 strengths: ratio is 1\.5"):
        tofu(folder, methods=["own_texts:HALF"], **some)
    with pytest.raises(ValueError, match="methods: some names give the same file"):
        tofu(folder, methods=["own_texts:BOTH", "own_texts:both"], **some)


def test_wrong_options(folder):
    with pytest.raises(ValueError, match="preset is 'best', expected one of 'default', 'reference'"):
        tofu(folder, preset="best")
    with pytest.raises(ValueError, match=r"methods: 'npu' is unknown, expected names among npo, .*, or module:Method"):
        tofu(folder, methods=["npu"])
    with pytest.raises(ValueError, match="authors is 40, expected an even number"):
        tofu(folder)
