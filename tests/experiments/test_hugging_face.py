import json
import sys

import pytest
import torch

from unlearnx.experiments.arguments import data, model
from unlearnx.experiments.weights import Weights


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json, expected the folder of a HuggingFace model"):
        model(f"hf:{tmp_path}", None)
    with pytest.raises(ValueError, match="hf:FOLDER is for --model alone"):
        data("--data", "hf:x")
    with pytest.raises(ValueError, match="--weights is missing"):
        model("own:build", None)


def test_without_transformers(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="a HuggingFace model needs transformers: pip install transformers"):
        model(f"hf:{tmp_path}", None)


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", ["1GB", "20KB"])
@pytest.mark.parametrize("name", ["BertForSequenceClassification", "GPT2LMHeadModel", "BertModel"])
def test_a_model_and_its_weights(name, parts, dtype, transformers, tmp_path):
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = getattr(transformers, name)
    original = kind(kind.config_class(**small, intermediate_size=16)).to(dtype).eval()
    original.save_pretrained(tmp_path, max_shard_size=parts)
    assert len(list(tmp_path.glob("*.index.json"))) == (parts == "20KB")
    build, file = model(f"hf:{tmp_path}", None)
    built = build()
    assert type(built) is kind
    Weights.read(file).load_into(built)
    tokens = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(built.eval()(tokens)[0], original(tokens)[0])


@pytest.mark.parametrize("name", ["NoSuchModel", "AutoConfig", "is_torch_available"])
def test_models_that_transformers_does_not_have(name, transformers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": [name]}))
    with pytest.raises(ValueError, match=f"transformers has no model {name}"):
        model(f"hf:{tmp_path}", None)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ValueError, match=r"config\.json: transformers cannot read it"):
        model(f"hf:{tmp_path}", None)
