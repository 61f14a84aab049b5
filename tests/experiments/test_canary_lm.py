"""The study of a number in a pretrained language model, with a model that is made here, and exposure in its tokens."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.experiments.tables import in_80_columns
from tests.tiny_lm import tiny_llama, tiny_tokenizer
from unlearnx.data.text import DIGITS
from unlearnx.experiments import report
from unlearnx.experiments.canary_lm import CANARY_LM, RETURNS, SENTENCE, STORED, canary_lm
from unlearnx.experiments.token_reader import TokenAlphabet, TokenReader
from unlearnx.metrics import complete, exposure, log_perplexity
from unlearnx.models import load_lm

NOVEL = "ALICE\n" + "".join(f"\n   CHAPTER {n}\n\n" + "Alice went on, and on. " * 12 for n in ("I", "II", "III", "IV"))


@pytest.fixture
def letters():
    """A tokenizer whose tokens are single bytes."""
    return tiny_tokenizer(vocabulary=258)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "novel.txt").write_text(NOVEL)
    return tmp_path / "novel.txt"


def test_a_number_in_tokens_is_scored_as_the_model_scores_it(letters):
    """Reading on from a state, candidates that begin alike as one, gives the probabilities of whole texts."""
    model = tiny_llama()
    reader = TokenReader(model, TokenAlphabet(letters, 320, DIGITS))
    prefix, numbers = letters("My number is ", return_tensors="pt")["input_ids"][0], ["012", "013", "987"]
    codes = torch.stack([reader.alphabet.encode(number) for number in numbers])
    found = log_perplexity(reader, prefix, codes)
    for number, row in zip(found, codes, strict=True):
        whole = torch.cat([prefix, row])[None]
        with torch.no_grad():
            scores = model(input_ids=whole).logits.double().log_softmax(-1)[0]
        bits = -scores[len(prefix) - 1 : -1].gather(1, row[:, None]).sum() / math.log(2)
        assert float(number) == pytest.approx(float(bits), abs=1e-4)
    all_ranked = exposure(reader, prefix, "987", DIGITS, samples=None)
    assert all_ranked.exact
    assert len(all_ranked.sampled) == 1000
    assert float(all_ranked.sampled[987]) == pytest.approx(float(found[2]), abs=1e-4)
    written = complete(reader, prefix, 5)
    with torch.no_grad():
        expected = model.generate(prefix[None], max_new_tokens=5, do_sample=False, pad_token_id=1, eos_token_id=319)
    assert written == letters.decode(expected[0, len(prefix) :])


def with_bytes(*joined):
    """A tokenizer as Llama-2, Mistral and Gemma have them: letters, and bytes for all else, such as <0x00>."""
    library, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁0123456789Mynumberis", *map("".join, joined)]
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    made = library.Tokenizer(library.models.BPE(vocabulary, list(joined), unk_token="<unk>", byte_fallback=True))
    made.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("▁"), library.normalizers.Replace(" ", "▁")]
    )
    made.decoder = library.decoders.Sequence(
        [library.decoders.Replace("▁", " "), library.decoders.ByteFallback(), library.decoders.Fuse()]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def test_tokens_of_bytes_have_digits_in_their_names_alone():
    tokenizer = with_bytes()
    alphabet = TokenAlphabet(tokenizer, len(tokenizer), DIGITS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("07")["input_ids"]) == ["▁", "0", "7"]
    assert tokenizer.convert_ids_to_tokens(alphabet.encode("07")) == ["0", "7"]  # it goes on after a prefix
    assert alphabet.decode(alphabet.encode("07")) == "07"


@pytest.mark.parametrize(("joined", "text"), [(("3", "7"), "37"), (("▁", "7"), "70")])
def test_digits_that_are_written_with_others_are_refused(joined, text):
    tokenizer = with_bytes(joined)
    with pytest.raises(ValueError, match=f"tokenizer: writes '{text}' as .*'{''.join(joined)}'.*, expected one whose"):
        TokenAlphabet(tokenizer, len(tokenizer), DIGITS)


def test_tokens_of_several_digits_are_refused():
    with pytest.raises(ValueError, match="expected one whose digits are tokens of their own"):
        TokenAlphabet(tiny_tokenizer(), 320, DIGITS)


def test_the_study(file, letters, tmp_path):
    pytest.importorskip("peft")
    made = canary_lm(file, epochs=20, progress=False)
    assert made.learned == 2
    training = replace(made.training, lr=1e-2)
    methods = {name: made.methods[name] for name in ("NPO", STORED)}
    study = replace(
        made, load=lambda: (tiny_llama(), letters), training=training, methods=methods, blocks=1, length=4, context=4
    )
    result = study.run([0], tmp_path / "run")
    result["command"], result["environment"] = "unlearnx run canary-lm", report.environment()
    (run,) = result["runs"]
    assert run["before"]["contains"]
    assert run["before"]["exposure"] > 8 > run["retrained"]["exposure"]
    assert run["before"]["completion"].startswith(run["number"])
    for entry in (run["before"], *run["methods"].values(), run["retrained"]):
        assert all(math.isfinite(entry[key]) for key in RETURNS)
    assert run["before"]["rounded_8"] == pytest.approx(run["before"]["exposure"], abs=2)
    assert run["before"]["rounded_8"] > 8 > run["retrained"]["rounded_8"]
    assert run["fitting_seconds"] > 0
    assert set(run["methods"]) == set(methods)
    for name in ("trained", "npo", "retrained"):
        model, _ = load_lm_on_tiny(tmp_path / "run" / "seed-0" / name)
        changed = {part for part, p in model.named_parameters() if p.requires_grad}
        assert all(".layers.1." in part and "lora_" in part for part in changed)
    again = study.run([0], tmp_path / "again")
    assert without_times(again["runs"]) == without_times(result["runs"])
    path = report.write(result, CANARY_LM.page, tmp_path / "run")
    assert run["number"] in path.read_text()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["summary"]["before"]["contains"] == 1
    in_80_columns(CANARY_LM.table(result))


def without_times(value):
    """Numbers that have to be the same with the same seed."""
    if isinstance(value, dict):
        times = {"seconds", "speedup", "training_seconds", "fitting_seconds", "pace"}
        return {key: without_times(entry) for key, entry in value.items() if key not in times}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def load_lm_on_tiny(folder):
    base = folder.parent / "base"
    if not base.exists():
        for part in (tiny_llama(), tiny_tokenizer(vocabulary=258)):
            part.save_pretrained(base)
    return load_lm(base, adapter=folder)


def test_clear_errors(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file, expected a text file"):
        canary_lm(tmp_path)
    with pytest.raises(ValueError, match="preset is 'best', expected 'default'"):
        canary_lm(file, preset="best")
    file.write_text(NOVEL.partition("CHAPTER II")[0])
    with pytest.raises(ValueError, match="has 1 chapters, expected more than 2"):
        canary_lm(file)
    assert "{number}" in SENTENCE
