"""Texts of JSON lines: which tokens are an answer is told by hand, and what else is in a batch makes no difference."""

import json

import pytest
import torch

from tests.tiny_lm import tiny_llama, tiny_tokenizer
from unlearnx.data import Text, read_texts, tokenize
from unlearnx.losses import causal_lm
from unlearnx.metrics import answer_probability, extraction_strength, min_k

QUESTION = {"prompt": "Where was the author born?", "completion": " In Paris."}
STATEMENT = {"text": "My telephone number is 0123456789."}
SUMMER = {"prompt": "Où donc? À", "completion": " l'été — 東京."}  # characters of several tokens each
CHAT = {
    "messages": [
        {"role": "user", "content": "Where was the author born?"},
        {"role": "assistant", "content": "In Paris."},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": "Yes: in Rome!"},
    ]
}
RECORDS = [QUESTION, STATEMENT, SUMMER, CHAT]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def write(folder, *lines):
    file = folder / "texts.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def row(tokenizer, record):
    """Tokens, and those that are learned, of one text."""
    made = tokenize([record], tokenizer)
    assert made["attention_mask"].all()
    tokens, labels = made["input_ids"][0], made["labels"][0]
    learned = labels != -100
    assert torch.equal(labels[learned], tokens[learned])
    return tokens.tolist(), learned.tolist()


def test_what_was_written_is_what_is_read(tmp_path, tokenizer):
    """Every text, encoded, decoded and cut at its prompt, gives the answer again."""
    lines = [json.dumps(record, ensure_ascii=i % 2 == 0) for i, record in enumerate(RECORDS)]
    texts = read_texts(write(tmp_path, lines[0], "", lines[1], "  ", *lines[2:], ""))
    assert texts == [Text.of(record) for record in RECORDS]
    assert [text.origin.rpartition(", ")[2] for text in texts] == ["line 1", "line 3", "line 5", "line 6"]
    made = tokenize(texts, tokenizer)
    for text, tokens, mask, labels in zip(texts, *made.values(), strict=True):
        whole, answers = text.passage(tokenizer)
        kept = tokens[mask == 1]
        assert tokenizer.decode(kept, skip_special_tokens=not text.messages) == whole
        learned = tokenizer.decode(labels[labels != -100], skip_special_tokens=not text.messages)
        assert learned == "".join(whole[first:last] for first, last in answers)
        assert (labels[mask == 0] == -100).all()


def test_prompt_and_answer(tokenizer):
    tokens, learned = row(tokenizer, QUESTION)
    parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in QUESTION.values()]
    assert tokens == [tokenizer.bos_token_id, *parts[0], *parts[1], tokenizer.eos_token_id]
    assert learned == [False] * (1 + len(parts[0])) + [True] * (len(parts[1]) + 1)


def test_a_token_with_the_end_of_the_prompt_and_the_beginning_of_the_answer_is_of_the_answer(tokenizer):
    """Encoded apart the two would be other tokens than the model reads."""
    tokens, learned = row(tokenizer, {"prompt": "The author was bo", "completion": "rn in Paris."})
    place = learned.index(True)
    assert "born" in tokenizer.decode(tokens[place])
    assert tokens[:-1] == tokenizer("The author was born in Paris.")["input_ids"]


def test_a_text_is_learned_from_its_first_token(tokenizer):
    tokens, learned = row(tokenizer, STATEMENT)
    assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert learned == [False] + [True] * (len(tokens) - 1)


def test_the_end_of_a_text_is_put_there_once(tokenizer):
    once, _ = row(tokenizer, STATEMENT)
    assert row(tokenizer, {"text": STATEMENT["text"] + "</s>"})[0] == once
    library = pytest.importorskip("tokenizers")
    ends = tiny_tokenizer()  # one that ends texts by itself, with offsets of nothing
    both = [("<s>", 0), ("</s>", 1)]
    ends._tokenizer.post_processor = library.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=both)
    tokens, learned = row(ends, STATEMENT)
    assert tokens == once
    assert learned[-1]


def test_a_tokenizer_without_special_tokens():
    plain = tiny_tokenizer(eos_token=None, bos_token=None, pad_token=None)
    made = tokenize([QUESTION, STATEMENT], plain)
    assert made["input_ids"].shape == made["labels"].shape
    assert int(made["labels"][0].max()) != 1


def test_all_answers_of_a_conversation_are_learned(tokenizer):
    tokens, learned = row(tokenizer, CHAT)
    said = tokenizer.decode([t for t, is_learned in zip(tokens, learned, strict=True) if is_learned])
    assert said == "In Paris.</s>\nYes: in Rome!</s>\n"
    whole = tokenizer.apply_chat_template(CHAT["messages"], tokenize=False)
    assert tokens == tokenizer(whole, add_special_tokens=False)["input_ids"]


def left(data):
    """The same texts, filled up on the other side."""
    length = data["labels"].shape[1]
    shifts = length - data["attention_mask"].sum(1)
    return {
        key: torch.stack([r.roll(int(by)) for r, by in zip(rows, shifts, strict=True)]) for key, rows in data.items()
    }


@pytest.mark.parametrize(
    "measure",
    [
        *(answer_probability, extraction_strength, min_k),
        lambda model, data, batch_size: _losses(causal_lm(), model, data, batch_size),
        lambda model, data, batch_size: _losses(causal_lm(per="token"), model, data, batch_size),
    ],
    ids=["answer_probability", "extraction_strength", "min_k", "loss", "loss per token"],
)
def test_neither_batches_nor_the_side_of_the_padding_make_a_difference(tokenizer, measure):
    model = tiny_llama()
    data = tokenize(RECORDS, tokenizer)
    alone = torch.cat([measure(model, tokenize([record], tokenizer), batch_size=1) for record in RECORDS])
    for texts in (data, left(data)):
        for batch_size in (1, 3, 4):
            found = measure(model, texts, batch_size=batch_size)
            torch.testing.assert_close(found.double(), alone.double(), rtol=1e-5, atol=1e-5)


def _losses(loss, model, data, batch_size):
    parts = zip(*(rows.split(batch_size) for rows in data.values()), strict=True)
    with torch.no_grad():
        return torch.cat([loss(model(x, attention_mask=mask), y) for x, mask, y in parts])


def test_the_loss_is_that_of_the_model_itself(tokenizer):
    """Of one text alone, transformers' own loss is the mean over the same tokens."""
    model, data = tiny_llama(), tokenize([QUESTION], tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(_losses(causal_lm(), model, data, 1)[0], model(**data).loss)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", 'line 2: is of type list, expected an object with "text", or "prompt"'),
        ("{}", "line 2: has the entries none, expected"),
        ('{"prompt": "a"}', "line 2: has the entries 'prompt', expected"),
        ('{"text": "a", "messages": []}', "line 2: has the entries 'text', 'messages', expected"),
        ('{"text": ""}', "line 2: 'text' is empty"),
        ('{"prompt": "a", "completion": ""}', "line 2: 'completion' is empty"),
        ('{"text": 3}', "line 2: 'text' is 3, expected a text"),
        ('{"messages": []}', "line 2: 'messages' is of type list, expected a list of messages"),
        (
            '{"messages": [{"role": "user"}]}',
            "line 2: message 0 is of type dict, expected texts as its role and content",
        ),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2: has no message of the role 'assistant'"),
    ],
)
def test_wrong_lines(tmp_path, line, said):
    file = write(tmp_path, json.dumps(STATEMENT), line)
    with pytest.raises(ValueError, match=said) as caught:
        read_texts(file)
    assert str(caught.value).startswith(f"{file}, line 2: ")


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        read_texts(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="holds no text"):
        read_texts(write(tmp_path, "", ""))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_texts(tmp_path / "latin.jsonl")


def words(**tokens):
    """A tokenizer that passes over spaces."""
    library, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    made = library.Tokenizer(library.models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


@pytest.mark.parametrize("tokens", [{}, {"eos_token": "</s>"}], ids=["no end", "an end"])
@pytest.mark.parametrize("record", [{"text": " "}, {"prompt": "a", "completion": " "}], ids=["text", "completion"])
def test_texts_of_no_token(tmp_path, tokens, record):
    """Nothing in them is learned, though they are not empty; the message names the line."""
    texts = read_texts(write(tmp_path, json.dumps({"text": "a a"}), json.dumps(record)))
    with pytest.raises(ValueError, match="line 2: the tokenizer makes no token of what is to be learned of it"):
        tokenize(texts, words(**tokens))


def test_a_token_that_none_before_it_predicts():
    with pytest.raises(ValueError, match=r"texts\[1\]: the first token alone is to be learned of it"):
        tokenize([{"text": "a a"}, {"text": "a"}], words())
    assert tokenize([{"text": "a"}], words(eos_token="</s>"))["labels"].tolist() == [[1, 0]]


def test_wrong_texts_and_tokenizers(tokenizer):
    with pytest.raises(ValueError, match="texts is of type list, expected a list of at least one text"):
        tokenize([], tokenizer)
    with pytest.raises(ValueError, match=r"texts\[1\]: 'text' is empty"):
        tokenize([STATEMENT, {"text": ""}], tokenizer)
    with pytest.raises(ValueError, match="tokenizer is None, expected a fast one"):
        tokenize([STATEMENT], None)
    with pytest.raises(ValueError, match=r"texts\[0\]: is a conversation, but the tokenizer has no chat template"):
        tokenize([CHAT], tiny_tokenizer(chat_template=None))
    with pytest.raises(ValueError, match=r"texts\[0\]: the tokenizer's chat template fails on it: no"):
        tokenize([CHAT], tiny_tokenizer(chat_template="{{ raise_exception('no') }}"))
    counts = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="writes the beginning of a conversation otherwise"):
        tokenize([CHAT], tiny_tokenizer(chat_template=counts))
