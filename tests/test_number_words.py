"""Numbers in words: the language, its judge on known cases, a generator of soft tokens that learns it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rdm
from rdm.datasets.number_words import LENGTH, WORDS, NumberWordsScore, _ids, in_words, read_number, texts
from rdm.errors import InputError


@given(st.integers(1, 999_999))
def test_what_is_written_is_read(number):
    assert read_number(_ids([number])[0].tolist()) == number
    assert len(in_words(number)) <= LENGTH


def test_words():
    said = {1: "one", 13: "thirteen", 40: "forty", 342: "three hundred forty two", 17_005: "seventeen thousand five"}
    said[777_777] = "seven hundred seventy seven thousand seven hundred seventy seven"
    for number, text in said.items():
        assert " ".join(in_words(number)) == text
        assert texts(torch.nn.functional.one_hot(_ids([number]), len(WORDS)).float()) == [text]


@pytest.mark.parametrize(
    "text", ["", "hundred", "thousand", "one one", "one twenty", "ten hundred", "one thousand thousand", "five  six"]
)
def test_what_is_no_number_is_none(text):
    ids = [WORDS.index(word) for word in text.split(" ")] if text else []
    assert read_number(ids + [0] * (LENGTH - len(ids))) is None


def test_the_judge_knows_real_texts_and_others():
    real = NumberWordsScore().measure(rdm.dataset("number_words", seed=3).images)
    assert real["valid"].value == 1 and real["unsure"].value == 0 and real["pairs"].value < 0.05
    assert real["numbers"].value == pytest.approx(1, abs=0.05)
    shuffled = rdm.dataset("number_words", seed=3).images.flip(1)
    found = NumberWordsScore().measure(shuffled)
    assert found["valid"].value < 0.4 and found["pairs"].value > 0.5
    one = NumberWordsScore().measure(rdm.dataset("number_words", n=1).images.expand(500, -1, -1))
    assert one["valid"].value == 1 and one["numbers"].value < 0.01 and one["pairs"].value > 0.8
    unsure = NumberWordsScore().measure(torch.full((7, LENGTH, len(WORDS)), 1 / len(WORDS)))
    assert unsure["unsure"].value == pytest.approx(1 - 1 / len(WORDS))
    with pytest.raises(InputError, match="soft tokens of numbers in words"):
        NumberWordsScore().measure(torch.zeros(3, 4))


def test_soft_tokens_are_probabilities_and_learn():
    torch.manual_seed(0)
    generator = rdm.generator("soft_tokens", width=64)
    items = generator(generator.noise(5, torch.Generator()))
    torch.testing.assert_close(items.sum(2), torch.ones(5, LENGTH))
    data = rdm.dataset("number_words", n=500).images
    population = rdm.Population("energy", "identity", data)
    noise, optimizer = (
        generator.noise(128, torch.Generator().manual_seed(1)),
        torch.optim.Adam(generator.parameters(), 1e-3),
    )
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        values.append(float(population.backward(generator, noise).loss))
        optimizer.step()
    assert values[-1] < 0.2 * values[0]
