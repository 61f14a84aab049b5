"""Has a character model memorised a text? Log-perplexity, completions and exposure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast, overload

import torch
from torch import Tensor, nn

from unlearnx._arguments import checked
from unlearnx._checks import check_at_least_one, model_device
from unlearnx._modes import evaluating
from unlearnx._progress import progress_bar
from unlearnx.data.text import Alphabet
from unlearnx.metrics.skew_normal import SkewNormal

BATCH_SIZE = 2048  # texts in one step: few enough for their states to stay in a processor's caches
MIN_FIT_SAMPLES = 100  # random candidates that a distribution is fitted to
MAX_FIT_SAMPLES = 200_000  # more would take longer and hardly change the fit
MAX_RANKED_CANDIDATES = 10**7  # that are ranked one by one
SORT_KEY_BITS = 62  # of the int64 keys that candidates are sorted by

State = tuple[Tensor, ...]


class CharacterModel(Protocol):
    """What these measures need of a module; :class:`unlearnx.models.CharacterLSTM` is one.

    Attributes:
        alphabet: translates between text and codes.

    Example:
        >>> model: CharacterModel = CharacterLSTM("abc", hidden=8)
        >>> scores, state = model.advance(model.alphabet.encode("ab")[None])
        >>> scores.shape  # one text, three characters, two positions
        torch.Size([1, 3, 2])
    """

    alphabet: Alphabet

    def advance(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read on from a state.

        Args:
            x: codes, int64 (N, T).
            state: what the model remembers of the text before x: any number of tensors with the samples along dimension
                1, such as the (h, c) of :class:`torch.nn.LSTM`; None at the beginning of a text.

        Returns:
            Scores (N, V, T) for the character that follows each character of x, and the state after the last one.
        """


@overload
def log_perplexity(model: nn.Module, prefix: str | Tensor, text: str, *, feed: str = "text") -> float: ...
@overload
def log_perplexity(model: nn.Module, prefix: str | Tensor, text: Tensor, *, feed: str = "text") -> Tensor: ...
@checked
def log_perplexity(model: nn.Module, prefix: str | Tensor, text: str | Tensor, *, feed: str = "text") -> float | Tensor:
    """Log-perplexity of `text` after `prefix`, in bits: ``-sum_j log2 p(text_j | prefix, text_<j)``.

    Args:
        model: a :class:`CharacterModel`.
        prefix: what comes before, a string or codes (T,).
        text: a string, or codes int64 (N, L) of several texts of one length.
        feed: what the model reads while the text is scored. ``"text"``: the text itself. ``"argmax"``: the characters
            that the model finds most likely, as in the public code of Warnecke et al., "Machine Unlearning of Features
            and Labels", NDSS 2023. This is not the probability of the text: from the first character on that the model
            would not have chosen, it reads another text than the one scored. For comparison with published numbers
            only.

    Returns:
        A number for a string; float64 (N,) on the CPU for codes.

    Raises:
        TypeError: the model is not a :class:`CharacterModel`.
        ValueError: prefix or text is empty or holds unknown characters, or scores are not finite.

    Source: Carlini et al., "The Secret Sharer", USENIX Security 2019, definition 1.

    Example:
        >>> model = CharacterLSTM("abc", hidden=8)
        >>> bits = log_perplexity(model, "ab", "ca")
        >>> 2 < bits < 5  # untrained: about two times log2(3)
        True
    """
    if feed not in ("text", "argmax"):
        raise ValueError(f"feed is {feed!r}, expected 'text' or 'argmax'")
    codes = _codes("text", text, _reader(model).alphabet)
    with evaluating(model) as model:
        reader = _reader(model)
        beginning = _Beginning(reader, model_device(model), prefix)
        measure = beginning.bits if feed == "text" else beginning.bits_along_own_text
        bits = torch.cat([measure(rows) for rows in codes.split(BATCH_SIZE)])
    return bits.item() if isinstance(text, str) else bits


@checked
def complete(model: nn.Module, prefix: str | Tensor, length: int) -> str:
    """What the model writes after `prefix`: `length` characters, each the most likely one after those before it.

    Raises:
        TypeError: the model is not a :class:`CharacterModel`.
        ValueError: the prefix is empty or holds unknown characters, or scores are not finite.

    Example:
        >>> model = CharacterLSTM("abc", hidden=8)
        >>> len(complete(model, "ab", 4))
        4
    """
    check_at_least_one(length=length)
    _reader(model)
    with evaluating(model) as model:
        reader = _reader(model)
        return reader.alphabet.decode(_Beginning(reader, model_device(model), prefix).own_text(length)[0].cpu())


@dataclass(frozen=True, eq=False)
class Exposure:
    """How much likelier a canary is than other texts of its kind; :func:`exposure` measures it.

    Attributes:
        bits: the exposure, from 0 to `space_bits` where it is exact; an estimate may be larger.
        log_perplexity: log-perplexity of the canary, in bits.
        rank: of the canary among all candidates by log-perplexity, 1 for the most likely; an estimate may be below 1.
        space_bits: log2 of the number of candidates.
        exact: whether all candidates were ranked.
        sampled: log-perplexities of the candidates that were scored, in bits, float64.
        fit: distribution that the estimate comes from; None where the exposure is exact.
        fit_distance: Kolmogorov-Smirnov distance of `sampled` from `fit`: the smaller, the better the estimate; None
            where the exposure is exact.

    Example:
        >>> model = CharacterLSTM("number: 0123456789", hidden=8)
        >>> found = exposure(model, "number: ", "12", "0123456789", samples=None)
        >>> found.exact, found.rank <= 100, len(found.sampled)
        (True, True, 100)
    """

    bits: float
    log_perplexity: float
    rank: float
    space_bits: float
    exact: bool
    sampled: Tensor
    fit: SkewNormal | None = None
    fit_distance: float | None = None

    @property
    def lower_bound(self) -> float:
        """A lower bound of the exposure, in bits, that needs no estimate.

        Every candidate at least as likely as the canary has a probability of at least ``2^-b``, where b is the canary's
        log-perplexity in bits. Probabilities sum to at most 1, so there are at most ``2^b`` such candidates.
        """
        return max(0.0, self.space_bits - math.log2(max(1, math.floor(2 ** min(self.log_perplexity, self.space_bits)))))


@checked
def exposure(
    model: nn.Module,
    prefix: str | Tensor,
    canary: str,
    alphabet: str,
    *,
    samples: int | None = 1_000_000,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Exposure:
    """Exposure of a canary: ``log2(candidates) - log2(rank)``, ranked by log-perplexity after `prefix`.

    Candidates are all texts of the canary's length over an alphabet. The share of them that is at least as likely as
    the canary is estimated by a skew-normal distribution fitted to the log-perplexities of random candidates.

    Args:
        model: a :class:`CharacterModel`.
        prefix: what comes before the canary, a string or codes (T,).
        canary: text that may have been memorised.
        alphabet: characters that candidates are made of, such as ``"0123456789"``.
        samples: random candidates, drawn with repetition; the first 200,000 of them are fitted. None ranks all
            candidates instead.
        seed: of the random candidates.
        batch_size: texts that the model reads in one step.
        progress: show a progress bar (needs ``unlearnx[experiments]``).

    Raises:
        TypeError: the model is not a :class:`CharacterModel`.
        ValueError: the canary is empty or not among the candidates; the alphabet repeats characters, has fewer than two
            or some that the model does not know; there are too few samples, or too many candidates to rank; the prefix
            is empty or holds unknown characters; scores are not finite.

    Source: Carlini et al., "The Secret Sharer", USENIX Security 2019, sections 4.3 and 4.4.

    Example:
        >>> model = CharacterLSTM("number: 0123456789", hidden=8)
        >>> found = exposure(model, "number: ", "1234", "0123456789", samples=1000)
        >>> 0 <= found.lower_bound <= found.space_bits
        True
    """
    check_at_least_one(batch_size=batch_size)
    if samples is not None and samples < MIN_FIT_SAMPLES:
        raise ValueError(f"samples is {samples}, expected at least {MIN_FIT_SAMPLES}, or None to rank all candidates")
    reader = _reader(model)
    letters, own = _letters(canary, alphabet, reader.alphabet)
    space = len(letters) ** len(own)
    if samples is None and space > MAX_RANKED_CANDIDATES:
        raise ValueError(
            f"samples is None, but there are {space:,} candidates to rank, expected at most {MAX_RANKED_CANDIDATES:,}"
        )
    with evaluating(model) as model, progress_bar("exposure", samples or space, progress) as advance:
        reader = _reader(model)
        beginning = _Beginning(reader, model_device(model), prefix)

        def bits(chunks: Iterator[Tensor]) -> Tensor:
            found = []
            for chunk in chunks:
                found.append(beginning.bits(letters[chunk]))
                advance(len(chunk))
            return torch.cat(found)

        if samples is None:
            return _ranked(bits(_all_candidates(len(letters), len(own), batch_size)), _index_of(own, len(letters)))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(letters), (samples, len(own)), generator=generator)
        order = _lexicographic(drawn, len(letters))
        sampled = torch.empty(samples, dtype=torch.float64)
        sampled[order] = bits(iter(drawn[order].split(batch_size)))
        return _estimated(sampled, beginning.bits(letters[own][None]).item(), math.log2(space))


def _ranked(bits: Tensor, canary: int) -> Exposure:
    """The exact exposure, from the log-perplexities of all candidates and the index of the canary among them."""
    own, space_bits = bits[canary], math.log2(len(bits))
    rank = int((bits < own).sum()) + 1
    return Exposure(space_bits - math.log2(rank), own.item(), rank, space_bits, True, bits)


def _estimated(sampled: Tensor, own: float, space_bits: float) -> Exposure:
    """The estimated exposure, from the log-perplexities of random candidates and that of the canary, `own`."""
    fitted = sampled[:MAX_FIT_SAMPLES]
    fit = SkewNormal.fit(fitted)
    bits = -fit.log_cdf(torch.tensor(own, dtype=torch.float64)).item() / math.log(2)
    return Exposure(bits, own, 2 ** (space_bits - bits), space_bits, False, sampled, fit, fit.distance(fitted))


class _Beginning:
    """A prefix that a model has read once, after which any number of texts can be scored."""

    def __init__(self, model: CharacterModel, device: torch.device, prefix: str | Tensor):
        self._model, self._device = model, device
        codes = _codes("prefix", prefix[None] if isinstance(prefix, Tensor) else prefix, model.alphabet)
        scores, self._state = model.advance(codes.to(device))
        expected = [1, len(model.alphabet), codes.shape[1]]
        if list(scores.shape) != expected:
            raise ValueError(f"model: advance returned scores of shape {list(scores.shape)}, expected {expected}")
        self._logs = _log_probabilities(scores)

    def bits(self, codes: Tensor) -> Tensor:
        """Log-perplexities of texts, given as codes (N, L), after the prefix: float64 (N,) on the CPU, in bits.

        Consecutive texts that begin alike are run as one until they differ, so sorted texts cost least. The model need
        not read their last characters.
        """
        codes = codes.to(self._device)
        total = torch.zeros(len(codes), dtype=torch.float64, device=self._device)
        node = torch.zeros(
            len(codes), dtype=torch.int64, device=self._device
        )  # which of the distinct beginnings each text has
        state, logs = self._state, self._logs
        for j, character in enumerate(codes.unbind(1)):
            if j:
                before = codes[:, j - 1]
                new = torch.ones_like(node, dtype=torch.bool)
                new[1:] = (node[1:] != node[:-1]) | (before[1:] != before[:-1])
                first = new.nonzero().flatten()
                state, logs = self._step(before[first], _rows(state, node[first]))
                node = new.cumsum(0) - 1
            total -= logs[node, character]
        return _finite(total.cpu() / math.log(2))

    def bits_along_own_text(self, codes: Tensor) -> Tensor:
        """As :meth:`bits`, but the model reads the characters that it finds most likely instead of the texts."""
        total = torch.zeros(len(codes), dtype=torch.float64)
        state, logs = self._state, self._logs
        for j, character in enumerate(codes.unbind(1)):
            if j:
                state, logs = self._step(logs.argmax(1), state)
            total -= logs[0, character.to(self._device)].cpu()
        return _finite(total / math.log(2))

    def own_text(self, length: int) -> Tensor:
        """The text of the most likely characters, one after the other, codes (1, length)."""
        state, logs = self._state, self._logs
        chosen = [_finite(logs).argmax(1)]
        for _ in range(length - 1):
            state, logs = self._step(chosen[-1], state)
            chosen.append(_finite(logs).argmax(1))
        return torch.stack(chosen, 1)

    def _step(self, characters: Tensor, state: State) -> tuple[State, Tensor]:
        """Read one character (N,) in each of N states; returns the states and log-probabilities (N, V) after it."""
        scores, state = self._model.advance(characters[:, None], state)
        return state, _log_probabilities(scores)


def _rows(state: State, rows: Tensor) -> State:
    # As many rows as there are states means all of them, in order.
    return state if len(rows) == state[0].shape[1] else tuple(t.index_select(1, rows) for t in state)


def _log_probabilities(scores: Tensor) -> Tensor:
    """Natural logarithms, at least float32 (N, V), of the probabilities at the last position of scores (N, V, T)."""
    last = scores[..., -1]
    return last.log_softmax(1, dtype=torch.promote_types(last.dtype, torch.float32))


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise ValueError("model: returned probabilities that are NaN or zero, expected finite scores")
    return values


def _reader(model: nn.Module) -> CharacterModel:
    missing = [name for name in ("advance", "alphabet") if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"model: {type(model).__name__} has no {' and no '.join(missing)}, expected a module that reads on from a "
            "state, as unlearnx.models.CharacterLSTM does"
        )
    return cast(CharacterModel, model)


def _codes(name: str, text: str | Tensor, alphabet: Alphabet) -> Tensor:
    """Codes (N, L) of a text (then N is 1), or the codes given, checked."""
    if isinstance(text, str):
        try:
            codes = alphabet.encode(text)[None]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    else:
        codes = text
        if codes.dim() != 2 or codes.dtype != torch.int64:
            raise ValueError(f"{name}: is {codes.dtype} of shape {list(codes.shape)}, expected codes, int64 (N, L)")
        outside = (codes < 0) | (codes >= len(alphabet))
        if outside.any():
            raise ValueError(f"{name}: code {int(codes[outside][0])} is out of range for {len(alphabet)} characters")
    if codes.numel() == 0:
        raise ValueError(f"{name}: is empty, expected at least one character")
    return codes


def _letters(canary: str, characters: str, alphabet: Alphabet) -> tuple[Tensor, Tensor]:
    """Codes of the characters that candidates are made of, and the canary as indices into them."""
    if len(characters) < 2 or len(set(characters)) < len(characters):
        raise ValueError(f"alphabet is {characters!r}, expected at least two characters, each once")
    if not canary:
        raise ValueError("canary: is empty, expected at least one character")
    foreign = sorted(set(canary) - set(characters))
    if foreign:
        raise ValueError(f"canary: {canary!r} has {foreign[0]!r}, which is not in alphabet {characters!r}")
    letters = _codes("alphabet", characters, alphabet)[0]
    return letters, torch.tensor([characters.index(c) for c in canary])


def _index_of(digits: Tensor, base: int) -> int:
    """Index of a candidate among all candidates in ascending order: the number that its digits (L,) write."""
    number = 0
    for digit in digits.tolist():
        number = number * base + digit
    return number


def _all_candidates(base: int, length: int, batch_size: int) -> Iterator[Tensor]:
    """All candidates, rows of `length` digits, ascending, in chunks (N, length).

    A chunk has at most `batch_size` rows that differ before the last digit, which the model need not read.
    """
    places = base ** torch.arange(length - 1, -1, -1)
    for start in range(0, base**length, batch_size * base):
        numbers = torch.arange(start, min(start + batch_size * base, base**length))
        yield numbers[:, None] // places % base


def _lexicographic(rows: Tensor, base: int) -> Tensor:
    """The order (N,) that sorts rows (N, L) of digits like numbers of that base."""
    per_key = max(1, int(SORT_KEY_BITS / math.log2(base)))
    order = torch.arange(len(rows))
    for columns in reversed(rows.split(per_key, 1)):
        key = columns @ base ** torch.arange(columns.shape[1] - 1, -1, -1)
        order = order[key[order].argsort(stable=True)]
    return order
