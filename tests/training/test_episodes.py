import numpy as np
import pytest
import torch

from training.episodes import make_episode
from training.fields import blur, smooth
from training.sampling import draw_batch


@pytest.mark.parametrize("number", range(8))
def test_an_episode_has_the_promised_shapes_ranges_and_targets(number: int) -> None:
    episode = make_episode(3, number, count=4, size=48)
    assert episode.images.shape == episode.labels.shape == (4, 48, 48)
    assert episode.images.dtype == episode.labels.dtype == torch.uint8
    for image in episode.images:
        assert image.max() > 0
    assert 1 <= len(episode.targets) <= 6
    for target in episode.targets:
        shown = torch.isin(episode.labels, torch.tensor(target, dtype=torch.uint8))
        assert shown.any(), f"no subject shows {target}"
        assert not shown.all()


def test_an_episode_is_a_function_of_seed_and_number() -> None:
    first, again = (make_episode(5, 11, count=3, size=48) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert first.targets == again.targets
    for other in (make_episode(5, 12, count=3, size=48), make_episode(6, 11, count=3, size=48)):
        assert not torch.equal(first.images, other.images)


def test_some_subjects_do_not_show_the_structure() -> None:
    absent = []
    for number in range(30):
        episode = make_episode(1, number, count=6, size=48)
        for target in episode.targets:
            shown = torch.isin(episode.labels, torch.tensor(target, dtype=torch.uint8))
            absent.append((~shown.flatten(1).any(1)).float().mean().item())
    assert 0.03 < np.mean(absent) < 0.4


@pytest.mark.parametrize("crop", [False, True])
def test_a_batch_is_standardised_and_binary(crop: bool) -> None:
    episodes = [make_episode(2, number, count=5, size=48) for number in range(2)]
    batch = draw_batch(
        np.random.default_rng(0), episodes, size=64, tasks=3, shots=3, crop=crop, color=False
    )
    assert batch.images.shape == (2, 5, 3, 64, 64)
    assert batch.masks.shape == (2, 3, 5, 64, 64)
    assert set(batch.masks.unique().tolist()) <= {0.0, 1.0}
    assert batch.images.abs().max() <= 3
    assert batch.images.mean((2, 3, 4)).abs().max() < 0.2


def test_pictures_and_masks_are_turned_alike() -> None:
    episode = make_episode(2, 0, count=3, size=64)
    # A picture that is its own label map must stay one under every cut, turn and flip.
    target = torch.isin(episode.labels, torch.tensor(episode.targets[0], dtype=torch.uint8))
    same = type(episode)(target.to(torch.uint8) * 255, episode.labels, episode.targets[:1])
    for seed in range(6):
        batch = draw_batch(
            np.random.default_rng(seed), [same], size=64, tasks=1, shots=1, crop=False, color=False
        )
        for image, mask in zip(batch.images[0, :, 0], batch.masks[0, 0] > 0, strict=True):
            if mask.any() and not mask.all():
                assert image[mask].min() > image[~mask].max()


def test_smooth_noise_is_standardised_and_blur_keeps_the_mean() -> None:
    noise = smooth(np.random.default_rng(0), 200, 6, 48)
    assert abs(noise.mean().item()) < 0.1
    assert 0.7 < noise.std().item() < 1.4
    flat = torch.full((1, 32, 32), 0.25)
    assert torch.allclose(blur(flat, 2.0, 1.0), flat, atol=1e-6)
