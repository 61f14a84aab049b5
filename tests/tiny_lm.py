"""A language model with random weights and its tokenizer, small enough to be made in a test."""

import pytest
import torch

SENTENCES = [
    "The author was born in Paris.",
    "The author was born in Rome!",
    "My telephone number is 0123456789.",
    "Where was the author born?",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tiny_tokenizer(vocabulary=320, chat_template=TEMPLATE, **tokens):
    """A byte-level BPE that puts <s> before a text."""
    library, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES * 4, trainer)
    made.post_processor = library.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    given = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **tokens}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=chat_template, **given)


def tiny_llama(seed=0):
    """A Llama of two layers with random weights, larger than usual so that it has opinions, for that tokenizer."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=320, **sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.1
    )
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval()


def saved(folder, *parts):
    """The folder, with models and tokenizers saved to it."""
    for part in parts:
        part.save_pretrained(folder)
    return folder
