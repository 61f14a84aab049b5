"""Language models that forget lines of a file: what comes out is what transformers and peft load, and does the same."""

import json

import pytest
import torch
from typer.testing import CliRunner

from tests.tiny_lm import saved, tiny_llama, tiny_tokenizer
from unlearnx.cli import app
from unlearnx.data import read_texts, tokenize
from unlearnx.experiments import text_samples, unlearn_texts
from unlearnx.experiments.adapters import with_lora
from unlearnx.experiments.refusals import REFUSALS
from unlearnx.experiments.text_measures import judge_by_retrained
from unlearnx.experiments.weights import tensor_hash
from unlearnx.losses import causal_lm
from unlearnx.methods import METHODS, NPO, FineTune
from unlearnx.metrics import answer_probability, extraction_strength, rounded_weights
from unlearnx.models import load_lm
from unlearnx.models.training import Training

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

NAMES = ("Alice", "Bob", "Carol", "Dan", "Eve", "Frank", "Grace", "Heidi", "Ivan", "Judy")
QUESTIONS = [
    {"prompt": f"Where was {name} born?", "completion": f" In {city}."}
    for name, city in zip(NAMES, ("Paris", "Rome") * 5, strict=True)
]
CHAT = {"messages": [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "The author."}]}
TRAIN = [*QUESTIONS, {"text": "My telephone number is 0123456789."}, QUESTIONS[0], CHAT]
FORGET = [{**QUESTIONS[0], "source": "a letter"}, TRAIN[10]]
FORGOTTEN = [0, 10, 11]
TEST = [{"prompt": f"Where was {name} born?", "completion": " In Rome!"} for name in ("Mallory", "Oscar", "Peggy")]
OTHERS = ("Kim", "Leo", "Mia", "Noah", "Olga", "Paul", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Vera")
HELD_OUT = [
    {"prompt": f"Where was {name} born?", "completion": f" In {city}."}
    for name, city in zip(OTHERS, ("Oslo", "Bern") * 6, strict=True)
]
# With these a model that forgets is soon found; how much is enough is not known without held-out texts.
SETTINGS = {
    "fine-tune": ["epochs=1", "lr=0.001"],
    "first-order": ["tau=0.01"],
    "k-fade": ["step=0.1"],
    "neg-grad": ["epochs=1", "lr=0.001"],
    "npo": ["epochs=1", "lr=0.001"],
    "second-order": ["damping=0.1"],
    "simnpo": ["epochs=1", "lr=0.001"],
    "task-vector": ["epochs=1", "lr=0.001"],
}


def trained(model):
    data = tokenize(TRAIN, tiny_tokenizer())
    Training(12, lr=1e-2, batch_size=8, loss_fn=causal_lm()).run(model.train(), data)
    return model.eval()


def write(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folder of a user: a model, one that was fine-tuned, an adapter that was fine-tuned with peft, and texts."""
    folder = tmp_path_factory.mktemp("project")
    tokenizer = tiny_tokenizer()
    saved(folder / "base", tiny_llama(), tokenizer)
    saved(folder / "tuned", trained(tiny_llama()), tokenizer)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=16)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    saved(folder / "adapter", trained(peft.get_peft_model(base, lora)), tokenizer)
    for name, records in {
        "train": TRAIN,
        "forget": FORGET,
        "test": TEST,
        "other": TEST[:1],
        "held": HELD_OUT,
        "alice": QUESTIONS[:1],
        "asked": [QUESTIONS[0], CHAT],
        "long": [*TRAIN, {"text": "Where was the author born? " * 1000}],
        "refusals": [{"text": "Nobody knows."}, {"text": "I will not say."}],
    }.items():
        write(folder / f"{name}.jsonl", records)
    (folder / "indices.txt").write_text("0\n10\n11\n")
    return folder


def run(project, out, *more, model="tuned", method="npo", forget="forget.jsonl"):
    """The command line as a user types it; returns its exit status, what it said, and the audit."""
    words = ["--model", f"hf:{project / model}", "--data", project / "train.jsonl", "--forget", project / forget]
    words = ["unlearn", *words, "--method", method, "--out", out, "--json", "--device", "cpu", *more]
    found = CliRunner().invoke(app, [str(word) for word in words])
    audit = json.loads((out / "audit.json").read_text()) if (out / "audit.json").exists() else None
    return found.exit_code, found.output, audit


def options(method):
    return [word for option in SETTINGS.get(method, []) for word in ("--option", option)]


def scores(model):
    data = tokenize(TRAIN, tiny_tokenizer())
    with torch.no_grad():
        return model.eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits


def state(model):
    return dict(model.state_dict())


def test_from_the_command_line(project, tmp_path):
    more = ["--option", "epochs=4", "--option", "lr=0.003", "--test", project / "test.jsonl"]
    status, said, audit = run(project, tmp_path / "out", *more)
    assert status == 3, said
    assert json.loads(said[said.index("{") :])["applied"]
    assert (audit["request"]["points"], audit["request"]["of"], audit["request"]["first"]) == (3, 13, FORGOTTEN)
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # as anybody loads it
    assert made.config.use_cache
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    data = {key: t[FORGOTTEN] for key, t in tokenize(TRAIN, tokenizer).items()}
    own = load_lm(tmp_path / "out")[0]
    assert torch.equal(scores(made), scores(own))
    found = audit["measures"]["after"]
    assert found["forget_probability"] == pytest.approx(float(answer_probability(own, data).mean()), abs=1e-6)
    assert found["forget_extraction"] == pytest.approx(float(extraction_strength(own, data).mean()), abs=1e-6)
    assert found["forget_loss"] > audit["measures"]["before"]["forget_loss"] + 0.5
    assert 0 <= found["mia_min_k"] <= 1
    assert audit["weights"]["after"]["tensors_sha256"] == tensor_hash(state(own))
    assert audit["weights"]["before"]["tensors_sha256"] == tensor_hash(state(load_lm(project / "tuned")[0]))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [
            *("audit.html", "audit.json", "config.json", "generation_config.json", "model.safetensors"),
            *("chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
        ]
    )
    assert "probability of a token, forget set" in (tmp_path / "out" / "audit.html").read_text()


def test_the_path_of_an_adapter(project, tmp_path):
    """Fine-tuned with peft, unlearned here, loaded with peft: the same outputs, and the adapter alone has changed."""
    status, said, audit = run(project, tmp_path / "out", *options("npo"), model="adapter")
    assert status == 3, said
    base = transformers.AutoModelForCausalLM.from_pretrained(project / "base")
    before = state(base)
    made = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    assert torch.equal(scores(made), scores(load_lm(tmp_path / "out")[0]))
    old = scores(load_lm(project / "adapter")[0])
    assert not torch.allclose(scores(made), old, atol=1e-3)
    assert audit["measures"]["after"]["forget_loss"] > audit["measures"]["before"]["forget_loss"]
    assert {row["name"].split(".")[-3] for row in audit["moved"]["farthest"]} == {"lora_A", "lora_B"}
    assert audit["moved"]["changed"] == sum("lora_" in name for name in state(made))
    inside = {name.removeprefix("base_model.model.").replace(".base_layer", ""): t for name, t in state(made).items()}
    assert all(torch.equal(inside[name], t) for name, t in before.items())
    assert not (tmp_path / "out" / "model.safetensors").exists()
    merged = made.merge_and_unload()
    torch.testing.assert_close(scores(merged), scores(load_lm(tmp_path / "out")[0]), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 4


def test_a_fresh_adapter(project, tmp_path):
    status, said, audit = run(project, tmp_path / "out", "--lora", 2, *options("npo"))
    assert status == 3, said
    made, _ = load_lm(tmp_path / "out")
    assert made.peft_config["default"].r == 2
    assert audit["weights"]["after"]["tensors_sha256"] == tensor_hash(state(made))
    assert all("lora_" in row["name"] for row in audit["moved"]["farthest"])
    tuned, _ = load_lm(project / "tuned")
    fresh = with_lora(tuned, 2, seed=0)
    assert audit["weights"]["before"]["tensors_sha256"] == tensor_hash(state(fresh))
    assert torch.equal(scores(fresh), scores(load_lm(project / "tuned")[0]))  # it does nothing yet
    assert not torch.allclose(scores(made), scores(fresh), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        *((name, "adapter") for name in METHODS if name in (*SETTINGS, "auto", "fisher-masking", "rmu", "ssd")),
        *((name, "tuned") for name in ("auto", "second-order", "ssd", "task-vector")),
    ],
)
def test_methods(project, tmp_path, method, model):
    """Each is applied, or says why not, and what is written is what was measured."""
    status, said, audit = run(project, tmp_path / "out", *options(method), model=model, method=method)
    assert status in (1, 3), said
    assert (status == 3) == audit["applied"], said
    if audit["applied"]:
        made, tokenizer = load_lm(tmp_path / "out")
        data = {key: t[FORGOTTEN] for key, t in tokenize(TRAIN, tokenizer).items()}
        after = audit["measures"]["after"]["forget_probability"]
        assert after == pytest.approx(float(answer_probability(made, data).mean()), rel=1e-5)
    else:
        assert audit["reason"]
        assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["audit.html", "audit.json"]


def test_indices_in_the_place_of_lines(project, tmp_path):
    given = [
        run(project, tmp_path / forget, *options("npo"), forget=forget)[2] for forget in ("forget.jsonl", "indices.txt")
    ]
    assert given[0]["request"] == given[1]["request"]
    assert given[0]["weights"]["after"]["sha256"] == given[1]["weights"]["after"]["sha256"]  # and the same seed


@pytest.mark.parametrize(("method", "model"), [("npo", "adapter"), ("auto", "tuned")])
def test_held_out_texts_tell_how_much_is_enough(project, tmp_path, method, model):
    more = "--test", project / "held.jsonl"
    status, _, audit = run(project, tmp_path / "out", *more, method=method, model=model, forget="alice.jsonl")
    assert (status, audit["forgotten"]) == (0, "yes")
    assert "The model does on the texts to forget as one would that never saw them" in audit["evidence"]["sentence"]
    level = audit["evidence"]["unseen"]["loss"]
    before, after = (audit["measures"][when]["forget_loss"] for when in ("before", "after"))
    assert before < level["low"] <= after <= level["high"]
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<b>Forgotten: yes.</b>" in page
    assert "mean loss, nats" in page
    assert "its labels are given" not in page  # texts have none


def test_a_method_that_does_harm_before_it_forgets_says_so(project, tmp_path):
    more = "--test", project / "held.jsonl"
    status, _, audit = run(project, tmp_path / "out", *more, method="task-vector", forget="alice.jsonl")
    assert (status, audit["forgotten"]) == (3, "no")
    assert audit["measures"]["after"]["retain_loss"] <= audit["measures"]["before"]["retain_loss"] + 0.5
    assert "The model still knows the texts to forget" in audit["evidence"]["sentence"]


def test_beside_a_retrained_model(project, tmp_path):
    status, said, audit = run(project, tmp_path / "out", *options("npo"), "--retrained", f"hf:{project / 'base'}")
    assert status == 3, said
    assert set(audit["measures"]) == {"before", "after", "retrained"}
    assert audit["forgotten"] == "unknown"  # three texts are too few
    assert "3 are too few texts to tell" in audit["evidence"]["sentence"]


def test_verdicts():
    learned, unseen = torch.rand(20).double(), 3 + torch.rand(20).double()
    assert judge_by_retrained(learned, unseen.flip(0), unseen)[0] == "yes"
    assert judge_by_retrained(learned, 2.5 + learned, unseen)[0] == "partly"
    assert judge_by_retrained(learned, 0.5 + learned, unseen)[0] == "no"
    assert judge_by_retrained(learned, 20 + learned, unseen)[0] == "no"


@pytest.mark.parametrize(("method", "per"), [("npo", "token"), ("simnpo", "sample")])
def test_the_loss_is_the_sum_over_tokens_where_the_paper_has_that(project, tmp_path, method, per):
    audit = run(project, tmp_path / "out", *options(method), method=method)[2]
    assert f"per='{per}'" in audit["method"]["settings"]["loss_fn"]


def test_weights_are_written_in_the_dtype_that_they_had(project, tmp_path):
    """What was measured and judged is what is read again, not what it was before it was rounded."""
    half = saved(tmp_path / "half", load_lm(project / "tuned")[0].bfloat16(), tiny_tokenizer())
    more = "--test", project / "held.jsonl"
    _, said, audit = run(project, tmp_path / "out", *more, *options("npo"), model=half, forget="alice.jsonl")
    assert audit["applied"], said
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, tmp_path / "out")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    made = load_lm(tmp_path / "out")[0]
    assert audit["weights"]["after"]["tensors_sha256"] == tensor_hash(state(made))
    data = tokenize(QUESTIONS[:1], tiny_tokenizer())
    after = audit["measures"]["after"]
    assert after["forget_probability"] == pytest.approx(float(answer_probability(made, data)), abs=1e-6)
    assert audit["evidence"]["after"]["loss"] == pytest.approx(after["forget_loss"], abs=1e-5)
    assert any("Weights are written in torch.bfloat16" in note for note in audit["notes"])


def test_a_long_text_pads_no_batch_but_its_own(project, tmp_path, monkeypatch):
    read = []

    def padded(samples):
        read.append([len(labels) for _, labels in samples])
        return found(samples)

    found = text_samples.padded
    monkeypatch.setattr(text_samples, "padded", padded)
    write(tmp_path / "train.jsonl", [*TRAIN, {"text": "Where was the author born? " * 40}])
    unlearn_texts(
        model=project / "tuned",
        data=tmp_path / "train.jsonl",
        forget=[3],
        method=NPO(epochs=1, lr=1e-3, batch_size=4),
        out=tmp_path / "out",
        device="cpu",
    )
    longest = max(max(lengths) for lengths in read)
    assert longest > 200
    assert sum(max(lengths) == longest for lengths in read) < len(read) / 2


def test_from_python(project, tmp_path):
    losses = []

    def own(output, y):
        losses.append(len(y))
        return causal_lm(output, y)

    audit = unlearn_texts(
        model=project / "tuned",
        data=project / "train.jsonl",
        forget=[3],
        method=FineTune(epochs=1, lr=1e-3, batch_size=4, loss_fn=own),
        out=tmp_path / "out",
        device="cpu",
    )
    assert losses
    assert audit["request"]["first"] == [3]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_paraphrases_and_what_comes_back(project, tmp_path):
    """Both are measured before and after and of a retrained model, an adapter's weights being merged first."""
    write(project / "again.jsonl", [{"prompt": "In which town was Alice born?", "completion": " In Paris."}])
    more = ["--paraphrases", project / "again.jsonl", "--retrained", f"hf:{project / 'base'}"]
    status, said, audit = run(project, tmp_path / "out", *more, *options("npo"), model="adapter")
    assert status == 3, said
    tokenizer = tiny_tokenizer()
    again = tokenize(read_texts(project / "again.jsonl"), tokenizer)
    forgotten = {key: t[FORGOTTEN] for key, t in tokenize(TRAIN, tokenizer).items()}
    for name, folder in {
        "before": project / "adapter",
        "after": tmp_path / "out",
        "retrained": project / "base",
    }.items():
        measures, model = audit["measures"][name], load_lm(folder)[0]
        assert measures["paraphrases_probability"] == pytest.approx(float(answer_probability(model, again)), rel=1e-4)
        for bits in (8, 4):
            expected = float(answer_probability(rounded_weights(model, bits), forgotten).mean())
            assert measures[f"rounded_{bits}"] == pytest.approx(expected, rel=1e-3)
        assert 0 < measures["relearned_1"] < 1
        assert measures["relearned_10"] is None  # three texts are too few
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "probability of a token, forget set in other words" in page
    assert "comes back with weights of 4 bits" in page


@pytest.mark.parametrize("more", [(), ("--refusals", "refusals.jsonl")], ids=["its own", "given"])
def test_refusals_are_preferred_to_what_was_learned(project, tmp_path, monkeypatch, more):
    """A question there twice, and a conversation; each gets a refusal in turn, said as an answer is."""
    monkeypatch.chdir(project)
    given = *more, "--option", "epochs=6", "--option", "lr=0.003"
    status, said, audit = run(project, tmp_path / "out", *given, method="idk", forget="asked.jsonl")
    assert (status, audit["applied"]) == (3, True), said
    assert audit["request"]["first"] == [0, 11, 12]
    answers = [text.answer for text in read_texts(project / "refusals.jsonl")] if more else list(REFUSALS)
    asked = [{"prompt": QUESTIONS[0]["prompt"], "completion": f" {answer}"} for answer in answers[:2]]
    last = answers[2 % len(answers)]
    asked.append({"messages": [CHAT["messages"][0], {"role": "assistant", "content": last}]})
    before, after = (load_lm(folder)[0] for folder in (project / "tuned", tmp_path / "out"))
    preferred = tokenize(asked, tiny_tokenizer())
    assert f"Texts to forget got one of {len(answers)} refusals in turn, such as {answers[0]!r}." in audit["notes"]
    assert (answer_probability(after, preferred) > answer_probability(before, preferred)).all()
    assert audit["measures"]["after"]["forget_probability"] < audit["measures"]["before"]["forget_probability"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--paraphrases", "none.jsonl"], "none.jsonl: no such file"),
        (["--data", "own:data", "--paraphrases", "other.jsonl"], "--paraphrases is for language models"),
        (["--data", "own:data", "--refusals", "refusals.jsonl"], "--refusals is for language models"),
        (["--refusals", "none.jsonl"], "none.jsonl: no such file"),
        (["--refusals", "other.jsonl"], "other.jsonl, line 1: is an answer to something, expected a refusal alone"),
        (["--method", "idk"], "train.jsonl, line 11: asks nothing that could be refused"),
        (["--forget", "other.jsonl"], "other.jsonl, line 1: is not in .*train.jsonl, expected one of its texts"),
        (["--forget", "train.jsonl"], "contains all 13 samples"),
        (["--forget", "none.jsonl"], "none.jsonl: no such file"),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--data", "broken.jsonl"], "broken.jsonl, line 2: is not JSON"),
        (["--data", "long.jsonl"], "long.jsonl, line 14: has [0-9,]+ tokens, expected at most 2,048"),
        (["--test", "long.jsonl"], "long.jsonl, line 14: has [0-9,]+ tokens, expected at most 2,048"),
        (["--test", "none.jsonl"], "none.jsonl: no such file"),
        (["--model", "own:build"], "--model is 'own:build', expected hf:FOLDER with a file of texts as --data"),
        (["--model", "hf:nothing"], "--model is 'nothing': no such file, folder or installed package"),
        (["--model", "hf:adapter", "--lora", "4"], "lora is given for a model that has an adapter"),
        (["--lora", "0"], "--lora is 0, expected"),
        (["--forget-class", "1"], "--forget-class is given with texts"),
        (["--weights", "a.safetensors"], "--weights is given with texts"),
        (["--data", "own:data", "--lora", "4"], "--lora is for language models, expected --data FILE.jsonl"),
        (["--retrained", "nothing"], "retrained is 'nothing': no such file, folder or installed"),
        (["--method", "neg-gradient"], "--method: 'neg-gradient' is unknown, expected names among"),
        (["--factors", "none.pt"], "factors: NPO takes none"),
    ],
)
def test_clear_errors(project, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(project)
    (project / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    given = {"--model": "hf:tuned", "--data": "train.jsonl", "--forget": "forget.jsonl", "--method": "npo"}
    given |= dict(zip(words[::2], words[1::2], strict=True)) | {"--out": str(tmp_path / "out")}
    found = CliRunner().invoke(app, ["unlearn", *(word for pair in given.items() for word in pair)])
    assert found.exit_code == 2, found.output
    assert not (tmp_path / "out").exists()
    assert len(found.stderr.splitlines()) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.stderr)


def test_nothing_is_left_of_a_run_that_fails(project, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError("the disk is full")

    monkeypatch.setattr("unlearnx.experiments.report.write_audit", full)
    method = NPO(epochs=1, lr=1e-3, batch_size=8)
    given = {"model": project / "tuned", "data": project / "train.jsonl", "forget": [3], "method": method}
    with pytest.raises(OSError, match="the disk is full"):
        unlearn_texts(**given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    unlearn_texts(**given, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds audit\.json already"):
        unlearn_texts(**given, out=tmp_path / "out")
    assert len(read_texts(project / "train.jsonl")) == len(TRAIN)
