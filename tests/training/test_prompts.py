import pytest
import torch
from torch import Tensor

from medretrieval.segmentation.micro import build_micro
from training.network import draw_boxes, draw_clicks, few_shot, prompt_loss, prompted
from training.train import PROMPTS


@pytest.fixture
def square() -> Tensor:
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[0, 4:9, 6:12] = True
    mask[1, 0, 15] = True  # the third shows nothing
    return mask


def random() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_clicks_say_what_is_under_them_and_begin_where_wanted(square: Tensor) -> None:
    found = torch.zeros_like(square)
    found[0, 4:9, 6:11] = True  # all but one column
    wrong = square != found
    coordinates, codes = draw_clicks(square, wrong, random(), 4)
    assert coordinates.shape == (3, 4, 2)
    assert codes.shape == (3, 4)
    # Middles of cells of four pixels, whose pixels are counted from zero.
    cells = (coordinates - 1.5) / 4
    assert torch.equal(cells, cells.round())
    x, y = cells.long().unbind(-1)
    for row in range(3):
        assert torch.equal(codes[row].bool(), square[row, y[row], x[row]])
        assert wrong[row, y[row, 0], x[row, 0]] == wrong[row].any()


def test_boxes_are_around_the_structure_and_none_where_it_is_absent(square: Tensor) -> None:
    many = square[:1].expand(200, -1, -1)
    corners, codes = draw_boxes(many, random())
    assert corners.mean((0,)).flatten().tolist() == pytest.approx([24, 16, 47, 35], abs=0.6)
    assert (corners[:, 0] < corners[:, 1]).all()
    assert codes.unique(dim=0).tolist() == [[2, 3]]
    corners, codes = draw_boxes(square, random())
    assert codes.tolist() == [[2, 3], [2, 3], [-1, -1]]
    assert corners.min() >= 0
    assert corners.max() <= 63


@pytest.mark.parametrize("kind", PROMPTS)
def test_every_kind_of_prompt_gives_masks_to_learn_from(kind: str) -> None:
    torch.manual_seed(0)
    model = build_micro(image_size=32)
    masks = (torch.rand(1, 2, 3, 32, 32) > 0.5).float()
    done = few_shot(model, torch.randn(1, 3, 3, 32, 32), masks, shots=2, shift=1)
    logits, overlap = prompted(model, done, random(), kind=kind, clicks=2)
    assert logits.shape == done.logits.shape == (2, 1, 8, 8)
    assert not torch.equal(logits, done.logits)
    prompt_loss(logits, overlap, done.truth).backward()  # type: ignore[no-untyped-call]
    prompts = model.sam_prompt_encoder
    learns = prompts.point_embeddings[2 if kind.startswith("box") else 1].weight.grad
    assert learns is not None
    scaled = prompts.mask_downscaling[0].weight.grad
    assert (scaled is not None) == kind.endswith("mask")
    # Without memories nothing of the supports may count.
    without = model.memory_encoder.out_proj.weight.grad
    assert (without is None) == (kind == "alone")
