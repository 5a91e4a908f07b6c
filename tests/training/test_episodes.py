from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medretrieval.phantoms import cohort
from training.anatomy import SIDE, draw_anatomy, make_bank
from training.episodes import make_episode
from training.fields import blur, smooth
from training.network import hard_dice
from training.sampling import draw_batch
from training.vessels import draw_vessels


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


def test_vessels_are_thin_and_run_otherwise_in_every_subject() -> None:
    for seed in range(4):
        images, labels = draw_vessels(np.random.default_rng(seed), 4, 64)
        assert images.shape == labels.shape == (4, 64, 64)
        assert images.isfinite().all()
        assert set(labels.unique().tolist()) <= {0, 1}
        first, second = labels[0] > 0, labels[1] > 0
        assert 0 < first.float().mean() < 0.6
        assert hard_dice(first[None], second[None]).item() < 0.7


def test_episodes_of_phantoms_show_slices_of_one_kind(tmp_path: Path) -> None:
    bank = tmp_path / "bank.safetensors"
    height = torch.arange(20, dtype=torch.uint8)[:, None, None].expand(-1, SIDE, SIDE).contiguous()
    tensors = {}
    for number, kind in enumerate(("heart", "knee")):
        for case in range(3):
            tensors[f"{kind}/{case}/images"] = height * 10
            tensors[f"{kind}/{case}/labels"] = torch.full_like(height, number + 1)
    save_file(tensors, bank)
    for seed in range(6):
        images, labels, grids = draw_anatomy(np.random.default_rng(seed), bank, 5, SIDE)
        assert images.shape == labels.shape == (5, SIDE, SIDE)
        assert grids.shape == (5, SIDE, SIDE, 2)
        assert len(labels.unique()) == 1
        assert np.ptp(images.mean((1, 2)).numpy()) < 0.5


def test_a_bank_is_made_of_the_packages_phantoms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "KINDS", {"xr-chest": cohort.KINDS["xr-chest"]})
    make_bank(tmp_path / "bank.safetensors", 1)
    stored = load_file(tmp_path / "bank.safetensors")
    assert set(stored) == {"xr-chest/0/images", "xr-chest/0/labels"}
    images, labels = stored["xr-chest/0/images"], stored["xr-chest/0/labels"]
    assert images.shape == labels.shape == (1, SIDE, SIDE)
    assert images.dtype == labels.dtype == torch.uint8
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    episode = make_episode(1, 0, count=3, size=SIDE, bank=tmp_path / "bank.safetensors")
    assert episode.images.shape == (3, SIDE, SIDE)
