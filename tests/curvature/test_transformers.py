"""Transformers with random weights: per-sample gradients by rules, and products with the curvature, both exact."""

import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlearnx import losses
from unlearnx._batches import arguments, take
from unlearnx.curvature import CurvatureOperator, fisher_diagonal

N, T, TOKENS, CLASSES = 7, 12, 97, 3
SMALL = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2)
GROUPED = dict(num_attention_heads=6, num_key_value_heads=2, vocab_size=TOKENS)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
BERT = dict(num_attention_heads=3, max_position_embeddings=32, vocab_size=TOKENS, num_labels=CLASSES)


def tokens(length=T):
    return torch.randint(1, TOKENS, (N, length))


def causal():
    x = tokens()
    return {"input_ids": x}, x, losses.causal_lm


def padded():
    """Texts of different length, the first of which fills its row."""
    mask = (torch.arange(T) < torch.tensor([12, 3, 9, 1, 12, 7, 5])[:, None]).long()
    return {"input_ids": tokens(), "attention_mask": mask}, torch.arange(N) % CLASSES, losses.cross_entropy


def images():
    return torch.randn(N, 3, 16, 16), torch.arange(N) % CLASSES, losses.cross_entropy


def translation():
    y = tokens(5)
    return {"input_ids": tokens(), "decoder_input_ids": y}, y, losses.cross_entropy


MODELS = {
    "GPT2LMHeadModel": (dict(n_embd=24, n_layer=2, n_head=3, n_positions=32, vocab_size=TOKENS), causal),
    "LlamaForCausalLM": (dict(**SMALL, **GROUPED), causal),
    "LlamaForCausalLM, tied": (dict(**SMALL, **GROUPED, tie_word_embeddings=True), causal),
    "Qwen2ForCausalLM": (dict(**SMALL, **GROUPED), causal),
    "GemmaForCausalLM": (dict(**SMALL, **GROUPED, head_dim=8), causal),
    "GPTNeoXForCausalLM": (dict(**SMALL, num_attention_heads=3, vocab_size=TOKENS), causal),
    "MambaForCausalLM": (dict(hidden_size=24, state_size=4, num_hidden_layers=2, vocab_size=TOKENS), causal),
    "MixtralForCausalLM": (dict(**SMALL, **GROUPED, num_local_experts=4), causal),
    "Qwen3MoeForCausalLM": (dict(**SMALL, **GROUPED, head_dim=4, **EXPERTS), causal),
    "GptOssForCausalLM": (
        dict(**SMALL, **GROUPED, head_dim=4, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
        causal,
    ),
    "BertForSequenceClassification": (dict(**SMALL, **BERT), padded),
    "ViTForImageClassification": (
        dict(**SMALL, num_attention_heads=3, image_size=16, patch_size=4, num_labels=CLASSES),
        images,
    ),
    "SwinForImageClassification": (
        dict(image_size=16, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4, num_labels=3),
        images,
    ),
    "T5ForConditionalGeneration": (
        dict(d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, vocab_size=TOKENS),
        translation,
    ),
}
IN_FLOAT32 = {"GemmaForCausalLM", "MambaForCausalLM"}  # which go through float32 whatever their parameters are


def build(name):
    kind = name.split(",")[0]
    settings, make = MODELS[name]
    model_class = getattr(pytest.importorskip("transformers"), kind)
    model = model_class(model_class.config_class(**settings, use_cache=False)).eval()
    x, y, loss = make()
    model = model.double()
    return model, (x if isinstance(x, dict) else x.double()), y, loss


def empirical(model, x, y, loss):
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for i in range(N):
        args, kwargs = arguments(take(x, slice(i, i + 1)))
        value = loss(model(*args, **kwargs), y[i : i + 1]).sum()
        gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True, materialize_grads=True)
        for t, g in zip(total.values(), gradients, strict=True):
            t += g.square() / N
    return total


@pytest.mark.parametrize("name", MODELS)
def test_support(name):
    model, x, y, loss = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = fisher_diagonal(model, loss, (x, y), batch_size=4)
    rtol = 1e-6 if name in IN_FLOAT32 else 1e-9
    for key, expected in empirical(model, x, y, loss).items():
        torch.testing.assert_close(got[key], expected, rtol=rtol, atol=rtol * float(expected.max()) + 1e-20)


def norm_in_float64(self, x):
    """As the models have it, which go through float32 whatever their parameters are."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def plain_products(model, x, y, loss, v):
    """Hessian and Gauss-Newton product by torch's own double backward, its attention written out."""
    parameters = list(model.parameters())
    unused = dict(allow_unused=True, materialize_grads=True)
    args, kwargs = arguments(x)
    with sdpa_kernel(SDPBackend.MATH):
        output = model(*args, **kwargs)
    gradient = torch.autograd.grad(loss(output, y).mean(), parameters, create_graph=True, **unused)
    hessian = torch.autograd.grad(gradient, parameters, v, retain_graph=True, **unused)
    u = torch.zeros_like(output.logits, requires_grad=True)
    transposed = torch.autograd.grad(output.logits, parameters, u, create_graph=True, **unused)
    (tangent,) = torch.autograd.grad(transposed, u, v)
    point = output.logits.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss({"logits": point}, y).mean(), point, create_graph=True)
    (curved,) = torch.autograd.grad(slope, point, tangent)
    return {"hessian": hessian, "ggn": torch.autograd.grad(output.logits, parameters, curved, **unused)}


@pytest.mark.parametrize("name", MODELS)
def test_curvature(name, monkeypatch):
    model, x, y, loss = build(name)
    for kind in {type(m) for m in model.modules() if hasattr(m, "variance_epsilon")}:
        monkeypatch.setattr(kind, "forward", norm_in_float64)
    v = {key: torch.randn_like(p) for key, p in model.named_parameters()}
    for kind, expected in plain_products(model, x, y, loss, list(v.values())).items():
        rtol = 1e-6 if name in IN_FLOAT32 else 1e-9
        zero = 1e-3 * rtol * max(float(t.norm()) for t in expected)  # along biases of keys, only rounding is not zero
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            operator = CurvatureOperator(model, loss, (x, y), kind=kind, batch_size=4)
            products = operator.matvec(v), operator.matvec(v)  # on graphs newly recorded, and on kept ones
        for product in products:
            for (key, t), e in zip(product.items(), expected, strict=True):
                atol = rtol * float(e.abs().max()) + zero
                torch.testing.assert_close(t, e, rtol=rtol, atol=atol, msg=f"{kind}, {key}")
