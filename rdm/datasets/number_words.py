"""Numbers in English words, a small language of which it is known what belongs to it, and the judge of soft tokens."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from rdm.api import (
    Count,
    Dataset,
    Generator,
    InputError,
    Judge,
    Metric,
    Seed,
    Several,
    datasets,
    evaluations,
    stream,
)

SMALL = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WORDS = ("", *SMALL, *TENS, "hundred", "thousand")  # the first fills up short texts
LENGTH = 9  # words of the longest: seven hundred seventy seven thousand seven hundred seventy seven
MOST = 10**6


def in_words(number: int) -> list[str]:
    """A number from 1 to 999,999, without "and" or hyphens."""
    thousands, rest = divmod(number, 1000)
    if thousands:
        return [*in_words(thousands), "thousand", *(in_words(rest) if rest else [])]
    hundreds, rest = divmod(rest, 100)
    if hundreds:
        return [SMALL[hundreds - 1], "hundred", *(in_words(rest) if rest else [])]
    if rest < 20:
        return [SMALL[rest - 1]]
    tens, ones = divmod(rest, 10)
    return [TENS[tens - 2], *([SMALL[ones - 1]] if ones else [])]


@datasets.register("number_words")
def number_words(n: Count = 4000, seed: Seed = 0) -> Dataset:
    """Numbers from 1 to 999,999 in words, as tokens of certainty: "n 9 30", one-hot over 30 words, without classes.

    The logarithm of the numbers is uniform, so that they have one to nine words; the first of the 30 words is the
    empty one, which fills up short texts.
    """
    ids = _ids(_draw(n, stream(seed, "number words")))
    items = torch.nn.functional.one_hot(ids, len(WORDS)).float()
    return Dataset("number_words", items, torch.zeros(n, dtype=torch.long), classes=1)


@evaluations.register("number_words", needs="items of the data set number_words")
@dataclass(frozen=True)
class NumberWordsScore(Judge):
    """What a generator of soft tokens writes, each token read as its likeliest word.

    valid: share of the texts that are a number in words. pairs: total variation distance between the frequencies of
    adjacent words (the empty one among them, its own pairs left out) of samples and of the law, 0 for the law itself,
    about 0.05 for 4,000 real texts. numbers: different ones among the valid texts, as a share of how many as many real
    texts hold. unsure: mean probability that tokens leave to other words than their likeliest. The interval is 1.96
    standard deviations over resamples of the texts, without the bias that resampling has.
    """

    goals: ClassVar[Mapping[str, float]] = {"valid": math.inf, "numbers": 1.0}

    samples: Count = 4000
    resamples: Several = 40
    seed: Seed = 0

    def __call__(self, generator: Generator) -> dict[str, Metric]:
        """All metrics of the generator's samples."""
        noise = generator.noise(self.samples, stream(self.seed, "evaluation"))
        with torch.no_grad():
            items = generator.eval()(noise.to(next(generator.parameters()).device))
        return self.measure(items.cpu())

    def measure(self, items: Tensor) -> dict[str, Metric]:
        """All metrics of soft tokens "n 9 30"."""
        if items.shape[1:] != (LENGTH, len(WORDS)):
            raise InputError(
                f'soft tokens of numbers in words are "n {LENGTH} {len(WORDS)}"; got {tuple(items.shape)}; judge '
                "them otherwise"
            )
        chances, ids = items.double().max(2)
        read = torch.tensor([read_number(row) or 0 for row in ids.tolist()])
        real = _ids(_draw(len(ids), stream(self.seed, "real number words")))
        expected = len({tuple(row) for row in real.tolist()})
        pairs, law, unsure = _pairs(ids), _law(), 1 - chances.mean(1)
        source = stream(self.seed, "bootstrap")
        n = len(ids)
        draws = [torch.arange(n), *(torch.randint(n, (n,), generator=source) for _ in range(self.resamples))]
        found = {
            "pairs": [_frequencies(pairs[draw]).sub(law).abs().sum() / 2 for draw in draws],
            "valid": [(read[draw] > 0).double().mean() for draw in draws],
            "unsure": [unsure[draw].mean() for draw in draws],
        }
        values = {name: self._metric(torch.stack(each), n) for name, each in found.items()}
        numbers = len(set(read[read > 0].tolist())) / expected
        return {**values, "numbers": Metric(numbers, numbers, numbers, n, self.seed)}

    def _metric(self, values: Tensor, n: int) -> Metric:
        value, half = float(values[0]), 1.96 * float(values[1:].std())
        return Metric(value, max(value - half, 0.0), min(value + half, 1.0), n, self.seed)


def texts(items: Tensor) -> list[str]:
    """Soft tokens "n 9 30" as their likeliest words."""
    return [" ".join(WORDS[i] for i in row if i) for row in items.argmax(2).tolist()]


def read_number(ids: Sequence[int]) -> int | None:
    """The number that the tokens are the words of, empty ones at the end alone; None if they are no number's."""
    words = [WORDS[i] for i in ids]
    while words and not words[-1]:
        words.pop()
    low = _below_thousand(words[words.index("thousand") + 1 :] if "thousand" in words else words)
    high = _below_thousand(words[: words.index("thousand")]) if "thousand" in words else 0
    if low is None or high is None:
        return None
    number = 1000 * high + low
    return number if number and in_words(number) == words else None


def _below_thousand(words: Sequence[str]) -> int | None:
    """Sum of what the words stand for; whether they are in order is the caller's to see."""
    total = 0
    for word in words:
        if word == "hundred":
            total *= 100
        elif word in TENS:
            total += 10 * (TENS.index(word) + 2)
        elif word in SMALL:
            total += SMALL.index(word) + 1
        else:
            return None
    return total


def _draw(n: int, source: torch.Generator) -> list[int]:
    u = torch.rand(n, generator=source, dtype=torch.float64)
    return (MOST**u).long().clamp(1, MOST - 1).tolist()


def _ids(numbers: Sequence[int]) -> Tensor:
    place = {word: i for i, word in enumerate(WORDS)}
    rows = ([place[word] for word in in_words(number)] for number in numbers)
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


def _pairs(ids: Tensor) -> Tensor:
    """Numbers of adjacent pairs "n 8"; 0 is the pair of empty words."""
    return ids[:, :-1] * len(WORDS) + ids[:, 1:]


def _frequencies(pairs: Tensor) -> Tensor:
    counts = torch.bincount(pairs.flatten(), minlength=len(WORDS) ** 2).double()
    counts[0] = 0
    return counts / counts.sum().clamp_min(1)


@lru_cache(maxsize=1)
def _law() -> Tensor:
    """Frequencies of pairs of 200,000 texts."""
    return _frequencies(_pairs(_ids(_draw(200_000, stream(0, "law of number words")))))
