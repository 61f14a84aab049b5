"""Fisher diagonals of transformers with random weights, as `transformers` and torch build them, on 32 samples."""

import pytest
import torch
from torch import nn

from benchmarks.units import UNIT, in_units
from unlearnx import losses
from unlearnx._batches import arguments
from unlearnx.curvature import fisher_diagonal

SAMPLES, LENGTH, TOKENS, CLASSES = 32, 64, 2000, 10
MOST = 1.5  # passes
SIZE = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4)
TEXTS = dict(**SIZE, vocab_size=TOKENS)
GROUPED = dict(**TEXTS, num_key_value_heads=2)
MODELS = {
    "GPT2LMHeadModel": dict(n_embd=256, n_layer=2, n_head=4, vocab_size=TOKENS),
    "LlamaForCausalLM": dict(**GROUPED, tie_word_embeddings=True),
    "Qwen2ForCausalLM": GROUPED,
    "GemmaForCausalLM": dict(**GROUPED, head_dim=64),
    "GPTNeoXForCausalLM": TEXTS,
    "MambaForCausalLM": dict(hidden_size=256, num_hidden_layers=2, vocab_size=TOKENS),
    "MixtralForCausalLM": dict(**GROUPED, num_local_experts=4),
    "BertForSequenceClassification": dict(**TEXTS, num_labels=CLASSES),
    "ViTForImageClassification": dict(**SIZE, image_size=64, patch_size=8, num_labels=CLASSES),
    "SwinForImageClassification": dict(
        image_size=64, patch_size=4, embed_dim=96, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=CLASSES
    ),
    "T5ForConditionalGeneration": dict(d_model=256, d_kv=64, d_ff=1024, num_layers=2, num_heads=4, vocab_size=TOKENS),
}


class Decoder(nn.Module):
    """Tokens that look at themselves and at a source, through torch's own layers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 256)
        layer = nn.TransformerDecoderLayer(256, 4, 1024, batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 2), nn.Linear(256, TOKENS)

    def forward(self, input_ids, source):
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        return self.head(self.decoder(self.embedding(input_ids), source, tgt_mask=mask, tgt_is_causal=True))


def build(name):
    """Model in eval mode, x, y and losses per sample."""
    torch.manual_seed(0)
    if name == Decoder.__name__:
        x = torch.randint(TOKENS, (SAMPLES, LENGTH))
        return Decoder().eval(), {"input_ids": x, "source": torch.randn(SAMPLES, LENGTH, 256)}, x, losses.causal_lm
    kind = getattr(pytest.importorskip("transformers"), name)
    model = kind(kind.config_class(**MODELS[name], use_cache=False)).eval()
    x = torch.randint(TOKENS, (SAMPLES, LENGTH))
    if "Classification" in name:
        y = torch.randint(CLASSES, (SAMPLES,))
        return model, torch.randn(SAMPLES, 3, 64, 64) if "Image" in name else {"input_ids": x}, y, losses.cross_entropy
    if "T5" in name:
        return model, {"input_ids": x, "decoder_input_ids": x}, x, losses.cross_entropy
    return model, {"input_ids": x}, x, losses.causal_lm


@pytest.mark.benchmark(group="transformers")
@pytest.mark.parametrize("name", [*MODELS, Decoder.__name__])
def test_fisher(compare, benchmark, claim, name):
    model, x, y, loss = build(name)
    args, kwargs = arguments(x)
    parameters = list(model.parameters())

    def unit():
        value = loss(model(*args, **kwargs), y).sum()
        return torch.autograd.grad(value, parameters, allow_unused=True)

    def ours():
        return fisher_diagonal(model, loss, (x, y), batch_size=SAMPLES)

    multiples = in_units(benchmark, compare.run(ours, {UNIT: unit}, rounds=5, warmups=1))
    claim(multiples["ours"] <= MOST, f"ours: {MOST:g} passes or less")
