"""Augmentation of labelled items."""

import pytest
import torch

from rdm.errors import InputError
from rdm.training.augmentation import Jitter


def test_jitter_moves_sound_in_time_and_images_in_the_plane():
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    sound = torch.arange(1.0, 21).repeat(3, 1)
    seen = set()
    for seed in range(40):
        moved = Jitter(noise=0, shift=2, axes=1)(sound, torch.Generator().manual_seed(seed))
        by = int(moved[0, 10] - sound[0, 10])
        seen.add(by)
        expected = torch.zeros(20)
        expected[max(-by, 0) : 20 - max(by, 0)] = sound[0, max(by, 0) : 20 + min(by, 0)]
        assert torch.equal(moved, expected.repeat(3, 1))
    assert seen == {-2, -1, 0, 1, 2}
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(Jitter(noise=0, shift=0)(images, draw()), images)
    assert (Jitter(noise=0.1)(images, draw()).shape, Jitter()(images, draw()).equal(images)) == (images.shape, False)
    with pytest.raises(InputError, match="last 2 dimensions .* axes=2 for images, 1 for sound"):
        Jitter()(sound, draw())
    with pytest.raises(InputError, match="noise must be a number from 0"):
        Jitter(noise=-1)
