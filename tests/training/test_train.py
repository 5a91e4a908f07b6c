from pathlib import Path

import pytest
import torch
from torch import Tensor

from medretrieval.segmentation.micro import load_micro
from training.export import export
from training.network import hard_dice, soft_dice_loss
from training.train import Run, Settings, rate_at

TINY = Settings(
    steps=8, small=32, large=64, batch=1, tasks=2, subjects=3, picture=48, window=5, warmup=2
)


def state_of(run: Run) -> list[Tensor]:
    moments = [
        value for slot in run.optimiser.state_dict()["state"].values() for value in slot.values()
    ]
    return [*run.model.state_dict().values(), *run.averaged, *moments]


def train(folder: Path, *stops: int) -> Run:
    for stop in stops:
        run = Run(folder, TINY, device="cpu", initial=None)
        run.train(until=stop, workers=0, validate_every=0)
    return run


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 3)
    pieces = train(tmp_path / "pieces", 2, 3)
    assert whole.step == pieces.step == 3
    for a, b in zip(state_of(whole), state_of(pieces), strict=True):
        assert torch.equal(a, b)
    begin = Run(tmp_path / "begin", TINY, device="cpu", initial=None)
    moved = zip(begin.averaged, whole.averaged, strict=True)
    assert any(not torch.equal(a, b) for a, b in moved), "training changed nothing"

    assert export(tmp_path / "whole", tmp_path / "out.safetensors") == 3
    exported = dict(load_micro(tmp_path / "out.safetensors").named_parameters())
    for (name, _), averaged in zip(whole.model.named_parameters(), whole.averaged, strict=True):
        assert torch.allclose(exported[name], averaged, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_run_refuses_to_go_on_under_other_settings(tmp_path: Path) -> None:
    train(tmp_path, 1)
    with pytest.raises(SystemExit, match=r"seed 1 \(now 2\)"):
        Run(
            tmp_path,
            Settings(**{**TINY.__dict__, "seed": 2}),
            device="cpu",
            initial=None,
        )
    longer = Settings(**{**TINY.__dict__, "steps": 20})
    assert Run(tmp_path, longer, device="cpu", initial=None).step == 1


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    settings = Settings(steps=1000, warmup=100, cooldown=0.4, rate=1.0)
    assert rate_at(0, settings) == pytest.approx(0.01)
    assert rate_at(100, settings) == rate_at(600, settings) == 1.0
    assert 0.45 < rate_at(800, settings) < 0.55
    assert 0 < rate_at(999, settings) < 1e-3


def test_losses_of_perfect_empty_and_wrong_masks() -> None:
    square = torch.zeros(1, 1, 8, 8)
    square[..., 2:5, 2:5] = 1
    nothing = torch.zeros_like(square)
    assert soft_dice_loss((square - 0.5) * 200, square) < 1e-4
    assert soft_dice_loss((nothing - 0.5) * 200, nothing) < 1e-4
    assert soft_dice_loss((nothing - 0.5) * 200, square) > 0.8
    masks = torch.cat([square, nothing, nothing]) > 0.5
    truths = torch.cat([square, nothing, square]) > 0.5
    assert hard_dice(masks, truths).tolist() == [1.0, 1.0, 0.0]
