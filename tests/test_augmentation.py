"""Augmentation of labelled items."""

import pytest
import torch

from rdm.errors import InputError
from rdm.training.augmentation import Jitter


def test_jitter_moves_sound_in_time_and_images_in_the_plane():
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    sound = torch.arange(1.0, 21)
    seen = set()
    for seed in range(40):
        moved = Jitter(noise=0, shift=2, axes=1)(sound, torch.Generator().manual_seed(seed))
        by = int(moved[10] - sound[10])
        seen.add(by)
        expected = torch.zeros(20)
        expected[max(-by, 0) : 20 - max(by, 0)] = sound[max(by, 0) : 20 + min(by, 0)]
        assert torch.equal(moved, expected)
    assert seen == {-2, -1, 0, 1, 2}
    image = torch.rand(1, 8, 8)
    assert torch.equal(Jitter(noise=0, shift=0)(image, draw()), image)
    assert (Jitter(noise=0.1)(image, draw()).shape, Jitter()(image, draw()).equal(image)) == (image.shape, False)
    assert torch.equal(Jitter(noise=0, shift=90)(image, draw()), torch.zeros(1, 8, 8))
    with pytest.raises(InputError, match="last 2 dimensions .* axes=2 for images, 1 for sound"):
        Jitter()(sound, draw())
    with pytest.raises(InputError, match="noise must be a number from 0"):
        Jitter(noise=-1)
