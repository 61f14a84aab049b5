"""What TOFU and open-unlearning measure of a language model, by question and over all of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearnx._checks import model_device
from unlearnx._modes import evaluating
from unlearnx._progress import passing
from unlearnx.data.tofu import Question
from unlearnx.experiments.adapters import with_lora
from unlearnx.experiments.robustness import BITS, COUNTS, Robustness
from unlearnx.experiments.text_measures import told_apart
from unlearnx.experiments.text_samples import Sample, dataset_of, tokens_of
from unlearnx.experiments.tofu.halves import Halves
from unlearnx.experiments.tofu.texts import PROMPT, in_batches, in_order_of_length, some_of, text_of
from unlearnx.losses import causal_lm
from unlearnx.metrics import answer_probability, forget_quality, model_utility, rouge_l
from unlearnx.metrics.language import (
    TINY,
    OfText,
    completed,
    least_likely,
    mean_log_probability,
    of_texts,
    wrong_beside_right,
)

BATCH_SIZE = 16  # texts in a pass
WRITING = 64  # answers that are written at once
MOST_TOKENS = 200  # of a written answer, as in the published protocol
SHARE = 0.4  # of the least likely tokens that Min-K% and Min-K%++ read, as open-unlearning has it
RANK = 16  # of the adapter by which forgotten texts are learned again

STAY = ("retain", "real_authors", "world_facts")  # the sets of the utility
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")

ByQuestion = dict[str, Tensor]


def truth_of_forgotten(ratios: Tensor) -> float:
    """open-unlearning's mean of truth ratios of a forget set: 1 where wrong answers are as likely as the right one."""
    return float(torch.minimum(ratios, 1 / (ratios + TINY)).mean())


def truth_of_retained(ratios: Tensor) -> float:
    """open-unlearning's mean of truth ratios of what stays: the higher, the likelier the right answers."""
    return float((1 - ratios).clamp(min=0).mean())


def among_options(right: Tensor, wrong: Tensor) -> Tensor:
    """The probability of the right answers (N,) among those of the right ones and of all wrong ones (answers, N)."""
    return right / (right + wrong.sum(0) + TINY)


@dataclass(frozen=True)
class Asked:
    """Questions of a set with their answers, as the trained part of the model reads them.

    Attributes:
        questions: as they are.
        answers: the answers as they are learned.
        right: the same in other words, where there are such; else the answers themselves.
        wrong: several lists of wrong answers.
    """

    questions: list[Question]
    answers: list[Sample]
    right: list[Sample]
    wrong: list[list[Sample]]


class TofuMeasures:
    """Measures models on the same questions.

    Args:
        halves: of the models.
        tokenizer: of the models.
        forget: the questions to forget.
        retain, real_authors, world_facts: questions that stay, with wrong answers.
        unseen: questions that no model was trained on; empty where there are none.
        asked: how many questions of the forget set are answered in writing, and read after the weights were rounded.
        seed: of those, and of what the measures draw.
    """

    def __init__(
        self,
        halves: Halves,
        tokenizer: Any,
        *,
        forget: Sequence[Question],
        retain: Sequence[Question],
        real_authors: Sequence[Question],
        world_facts: Sequence[Question],
        unseen: Sequence[Question],
        asked: int,
        seed: int,
    ):
        self._halves, self._tokenizer, self._seed = halves, tokenizer, seed
        given = {"forget": forget, "retain": retain, "real_authors": real_authors, "world_facts": world_facts}
        self._sets = {name: self._prepared(list(questions)) for name, questions in given.items()}
        self._unseen = self._read_by_upper([q.pair for q in unseen])
        self._answers = {"forget": [q.answer for q in forget], "unseen": [q.answer for q in unseen]}
        chosen = some_of(forget, asked, torch.Generator().manual_seed(seed))
        self._written = {**{name: asked_.questions for name, asked_ in self._sets.items()}, "forget": chosen}
        otherwise = [(q.paraphrased_question, q.answer) for q in forget if q.paraphrased_question is not None]
        self._otherwise = self._read_by_upper(otherwise)
        self._robustness = Robustness(
            dataset_of(self._tokens([q.pair for q in chosen])),
            _known,
            loss_fn=causal_lm(),
            autocast=None,
            seed=seed,
            before=partial(
                with_lora, rank=RANK, seed=seed, blocks=halves.blocks - halves.frozen if halves.frozen else None
            ),
        )

    def sizes(self) -> dict[str, int]:
        """How many questions are read of each set, and answered in writing."""
        return {
            **{name: len(asked.questions) for name, asked in self._sets.items()},
            "unseen": len(self._unseen),
            "written": len(self._written["forget"]),
        }

    def quick(self, upper: nn.Module) -> dict[str, Any]:
        """What strengths are chosen by: truth ratios (N,) of the forget set, and what of the utility is read fast."""
        forget, kept = self._ratios(upper, "forget"), {}
        kept["retain_probability"] = float(self._log_p(upper, self._sets["retain"].answers).exp().mean())
        for name in STAY[1:]:
            kept |= {key: value for key, (value, _) in self._of_options(upper, name).items()}
        return {"ratios": forget.tolist(), "utility": _utility(kept)}

    def measure(self, upper: nn.Module, retrained: Mapping[str, Any] | None) -> dict[str, Any]:
        """All measures of a model, ``measures``, and those that have values by question, ``questions``.

        Args:
            retrained: the ``questions`` of the retrained model; None for that model itself.
        """
        found: dict[str, float | None] = {}
        by_question: dict[str, list[float]] = {}
        whole = self._halves.whole(upper)
        for name in self._sets:
            taken = self._of_options(upper, name) if name in STAY[1:] else self._of_answers(upper, name)
            taken[f"{name}_rouge"] = _mean(self._rouge(whole, name))
            for key, (value, values) in taken.items():
                found[key], by_question[key] = value, values.tolist()
        ratios = torch.tensor(by_question["forget_truth_ratio"], dtype=torch.float64)
        other = by_question if retrained is None else retrained
        quality = forget_quality(ratios, torch.tensor(other["forget_truth_ratio"], dtype=torch.float64))
        found |= {"forget_quality": quality.p, "quality_low": quality.low, "quality_high": quality.high}
        found["utility"] = _utility({key: found[key] for key in by_question if key.startswith(STAY)})
        found |= self._attacks(upper, by_question)
        found["paraphrased_probability"] = (
            float(self._log_p(upper, self._otherwise).exp().mean()) if self._otherwise else None
        )
        return {"measures": {**found, **self._robustness.measure(whole)}, "questions": by_question}

    def _of_answers(self, upper: nn.Module, name: str) -> dict[str, tuple[float, Tensor]]:
        """Probability and truth ratio of a set about fictitious authors."""
        asked = self._sets[name]
        p, ratios = self._log_p(upper, asked.answers).exp(), self._ratios(upper, name)
        over_all = truth_of_forgotten if name == "forget" else truth_of_retained
        return {f"{name}_probability": _mean(p), f"{name}_truth_ratio": (over_all(ratios), ratios)}

    def _of_options(self, upper: nn.Module, name: str) -> dict[str, tuple[float, Tensor]]:
        """Probability among the options, and truth ratio, of a set of facts."""
        right, wrong = self._probabilities(upper, name)
        ratios = wrong_beside_right(right, wrong)
        return {
            f"{name}_probability": _mean(among_options(right, wrong)),
            f"{name}_truth_ratio": (truth_of_retained(ratios), ratios),
        }

    def _ratios(self, upper: nn.Module, name: str) -> Tensor:
        return wrong_beside_right(*self._probabilities(upper, name))

    def _probabilities(self, upper: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        """Of the right answers (N,), and of the wrong ones (answers, N)."""
        asked = self._sets[name]
        n = len(asked.questions)
        found = self._log_p(upper, [sample for part in (asked.right, *asked.wrong) for sample in part]).exp()
        return found[:n], found[n:].view(-1, n)

    def _log_p(self, upper: nn.Module, samples: list[Sample]) -> Tensor:
        return _each_text(upper, samples, mean_log_probability)

    def _rouge(self, whole: nn.Module, name: str) -> Tensor:
        questions = self._written[name]
        wanted = [q.answer for q in questions]
        return rouge_l(write_answers(whole, self._tokenizer, [q.question for q in questions]), wanted)

    def _attacks(self, upper: nn.Module, by_question: dict[str, list[float]]) -> dict[str, float | None]:
        """Extraction strength of the forget set, and how well attacks tell it from what was never seen (AUC)."""
        forget = self._attacked(upper, self._sets["forget"].answers, "forget")
        by_question["extraction_strength"] = forget.pop("extraction").tolist()
        found: dict[str, float | None] = {"extraction_strength": sum(by_question["extraction_strength"])}
        found["extraction_strength"] /= len(by_question["extraction_strength"])  # type: ignore[operator]
        if not self._unseen:
            return found | dict.fromkeys(f"mia_{name}" for name in ATTACKS)
        unseen = self._attacked(upper, self._unseen, "unseen")
        return found | {f"mia_{name}": told_apart(forget[name], unseen[name]) for name in ATTACKS}

    def _attacked(self, upper: nn.Module, samples: list[Sample], name: str) -> ByQuestion:
        rows = _each_text(upper, samples, _attack_scores)
        log_p, min_k, plus, extraction = rows.unbind(1)
        packed = [len(zlib.compress(answer.encode())) for answer in self._answers[name]]
        return {
            "loss": log_p,
            "zlib": log_p / torch.tensor(packed, dtype=torch.float64),
            "min_k": min_k,
            "min_k_plus_plus": plus,
            "reference": log_p - self._before[name],
            "extraction": extraction,
        }

    @cached_property
    def _before(self) -> ByQuestion:
        """Mean log-probabilities by the model before it was fine-tuned."""
        model = self._halves.upper()
        return {
            "forget": self._log_p(model, self._sets["forget"].answers),
            "unseen": self._log_p(model, self._unseen) if self._unseen else torch.zeros(0),
        }

    def _prepared(self, questions: list[Question]) -> Asked:
        answers = self._read_by_upper([q.pair for q in questions])
        right = answers
        if any(q.paraphrased_answer is not None for q in questions):
            right = self._read_by_upper([(q.question, q.paraphrased_answer or q.answer) for q in questions])
        several = min(len(q.wrong) for q in questions)
        wrong = [self._read_by_upper([(q.question, q.wrong[k]) for q in questions]) for k in range(several)]
        return Asked(questions, answers, right, wrong)

    def _tokens(self, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
        return tokens_of([text_of(*pair) for pair in pairs], self._tokenizer) if pairs else []

    def _read_by_upper(self, pairs: Sequence[tuple[str, str]]) -> list[Sample]:
        return self._halves.inputs(self._tokens(pairs))


def write_answers(model: nn.Module, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """What a model writes to each question, the most likely token at a time, up to the token that ends a text."""
    asked = [torch.tensor(tokenizer(PROMPT.format(question))["input_ids"]) for question in questions]
    end = tokenizer.eos_token_id
    filling = next((token for token in (tokenizer.pad_token_id, end) if token is not None), 0)

    def write(some: list[Tensor]) -> Iterator[str]:
        tokens, mask = (t.to(model_device(model)) for t in in_batches(some, filling))
        written = writer.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            use_cache=True,
            eos_token_id=end,
            pad_token_id=filling,
        )
        for row in written[:, tokens.shape[1] :]:
            yield tokenizer.decode(row, skip_special_tokens=True)
        advance(len(some))

    with evaluating(model) as lent, passing("answers", len(asked)) as advance:
        writer: Any = lent
        return in_order_of_length(asked, [len(row) for row in asked], WRITING, write)


def _each_text(upper: nn.Module, samples: list[Sample], measure: OfText) -> Tensor:
    """A measure of each text, read in the order of their lengths, so that little is padded."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i][1]))
    found = of_texts(upper, dataset_of([samples[i] for i in order]), measure, BATCH_SIZE, None)
    return found[torch.tensor(order).argsort()]


_MIN_K, _MIN_K_PLUS_PLUS = (least_likely(SHARE, normalised) for normalised in (False, True))


def _attack_scores(log_p: Tensor, tokens: Tensor) -> Tensor:
    """Mean log-probability; and, without the token that ends a text, Min-K%, Min-K%++ and extraction strength."""
    part = slice(0, -1) if len(tokens) > 1 else slice(None)
    without_end = log_p[part], tokens[part]
    return torch.stack(
        [
            mean_log_probability(log_p, tokens),
            _MIN_K(*without_end),
            _MIN_K_PLUS_PLUS(*without_end),
            completed(*without_end),
        ]
    )


def _known(model: nn.Module, data: Any) -> float:
    return float(answer_probability(model, data, batch_size=BATCH_SIZE).mean())


def _mean(values: Tensor) -> tuple[float, Tensor]:
    return float(values.mean()), values


def _utility(values: Mapping[str, Any]) -> float:
    return model_utility({name: min(1.0, value) for name, value in values.items()})


def described() -> dict[str, dict[str, str]]:
    """Title and meaning of every measure."""
    sets = {
        "forget": ("forget", "the questions to forget"),
        "retain": ("retain", "questions that stay"),
        "real_authors": ("real authors", "questions about real authors"),
        "world_facts": ("world facts", "questions about the world"),
    }
    table = {
        "forget_quality": (
            "forget quality",
            "p of the Kolmogorov-Smirnov test that truth ratios of the forget set are distributed as the retrained "
            "model's: below 0.05 they differ",
        ),
        "utility": (
            "model utility",
            "harmonic mean of probability, ROUGE-L and truth ratio on what stays, real authors and the world",
        ),
    }
    for name, (title, what) in sets.items():
        among = " among the options" if name in STAY[1:] else ", to the power of one over its tokens"
        ratio = "wrong answers beside the right one; 1 where they are as likely"
        if name != "forget":
            ratio = "one minus the ratio of wrong answers to the right one, at least 0"
        table[f"{name}_probability"] = (f"{title}: probability", f"of the answer{among}; on {what}")
        table[f"{name}_rouge"] = (f"{title}: ROUGE-L", f"recall of the answer in what the model writes; on {what}")
        table[f"{name}_truth_ratio"] = (f"{title}: truth ratio", f"{ratio}; on {what}")
    table["extraction_strength"] = ("extraction strength", "share of an answer to forget that is completed faultlessly")
    for name in ATTACKS:
        title = name.replace("min_k_plus_plus", "Min-K%++").replace("min_k", "Min-K%")
        table[f"mia_{name}"] = (f"attack: {title}", "area under the ROC curve, forget set against unseen authors")
    back = "what is above the retrained model's comes back"
    table["paraphrased_probability"] = ("other words", f"probability of the answer to the paraphrased question: {back}")
    for bits in BITS:
        table[f"rounded_{bits}"] = (f"{bits} bits", f"probability of answers, weights rounded to {bits} bits: {back}")
    for k in COUNTS:
        table[f"relearned_{k}"] = (f"relearned {k}", f"the same of the rest after learning {k} of the texts: {back}")
    return {key: {"title": title, "note": note} for key, (title, note) in table.items()}
