"""One training step's forward pass: many few-shot tasks that share their encoded pictures.

The calls are those by which `SAM2Base.track_step` turns conditioning frames with a mask prompt into
memories and a following frame into mask logits, batched over tasks and labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass of n = B*T*Q queries gives.

    Attributes:
        logits: (n, 1, S/4, S/4) mask logits.
        overlap: (n, 1) predicted intersection over union.
        conditioned: (n, C, S/16, S/16) features after memory attention.
        plain: (n, C, S/16, S/16) features as SAM 2 takes them on an initial frame, without memory.
        fine: the queries' features at strides 4 and 8.
        truth: (n, 1, S, S) true masks.
    """

    logits: Tensor
    overlap: Tensor
    conditioned: Tensor
    plain: Tensor
    fine: list[Tensor]
    truth: Tensor


def few_shot(model: Any, images: Tensor, masks: Tensor, *, shots: int, shift: int) -> Pass:
    """Segment the query pictures of every task from its supports.

    Args:
        model: a `SAM2Base`.
        images: (B, N, 3, S, S) standardised pictures of B episodes.
        masks: (B, T, N, S, S) float 0/1, T structures of each episode.
        shots: K; of each structure's pictures the first K are supports, the other Q queries.
        shift: the pictures of structure t are rolled by t * shift first, so that every encoded
            picture serves some structures as support and others as query.
    """
    batch, tasks, count = masks.shape[:3]
    asked = count - shots
    encoded = model.forward_image(images.flatten(0, 1))
    _, features, positions, sizes = model._prepare_backbone_features(encoded)

    def roll(split: Tensor, dim: int) -> Tensor:
        # Rolling and slicing, not indexing: the gradient of an index is slow on a CPU.
        return torch.stack([split.roll(-t * shift, dim) for t in range(tasks)], dim)

    def by_task(flat: Tensor) -> Tensor:
        # (HW, B*N, C) -> (HW, B, T, N, C)
        return roll(flat.reshape(flat.shape[0], batch, count, flat.shape[2]), 2)

    def supports_of(flat: Tensor) -> Tensor:
        return by_task(flat)[:, :, :, :shots].flatten(1, 3)  # (HW, B*T*K, C)

    def queries_of(flat: Tensor) -> Tensor:
        return by_task(flat)[:, :, :, shots:].flatten(1, 3)  # (HW, B*T*Q, C)

    rolled = torch.stack([masks[:, t].roll(-t * shift, 1) for t in range(tasks)], 1)
    support_masks = rolled[:, :, :shots].flatten(0, 2)[:, None]  # (B*T*K, 1, S, S)
    truth = rolled[:, :, shots:].flatten(0, 2)[:, None]  # (B*T*Q, 1, S, S)
    present = torch.full((len(support_masks), 1), 10.0, device=masks.device)
    memory, memory_position = model._encode_new_memory(
        [supports_of(features[-1])],
        sizes[-1:],
        support_masks * 20.0 - 10.0,
        present,
        is_mask_from_pts=False,
    )

    def per_query(of_supports: Tensor) -> Tensor:
        # (B*T*K, C, h, w) -> (K, B*T*Q, C, h, w)
        split = of_supports.reshape(batch * tasks, 1, shots, *of_supports.shape[1:])
        return split.expand(-1, asked, -1, -1, -1, -1).flatten(0, 1).transpose(0, 1)

    frames = {
        k: {"maskmem_features": feature, "maskmem_pos_enc": [position]}
        for k, (feature, position) in enumerate(
            zip(per_query(memory), per_query(memory_position[0]), strict=True)
        )
    }
    query_features = [queries_of(x) for x in features]
    conditioned = model._prepare_memory_conditioned_features(
        frame_idx=shots,
        is_init_cond_frame=False,
        current_vision_feats=query_features[-1:],
        current_vision_pos_embeds=[queries_of(positions[-1])],
        feat_sizes=sizes[-1:],
        output_dict={"cond_frame_outputs": frames, "non_cond_frame_outputs": {}},
        num_frames=shots + 1,
    )
    fine = [
        x.permute(1, 2, 0).reshape(x.shape[1], x.shape[2], *size)
        for x, size in zip(query_features[:-1], sizes[:-1], strict=True)
    ]
    heads = model._forward_sam_heads(
        backbone_features=conditioned, high_res_features=fine, multimask_output=False
    )
    plain = (query_features[-1] + model.no_mem_embed).permute(1, 2, 0).reshape(conditioned.shape)
    return Pass(heads[3], heads[2], conditioned, plain, fine, truth)


def prompted(
    model: Any, done: Pass, generator: torch.Generator, *, kind: str, clicks: int
) -> tuple[Tensor, Tensor]:
    """The mask decoder once more, with prompts that a person might give.

    Args:
        kind: "clicks" (on errors of the first masks), "clicks-and-mask" (also given those masks,
            as a correction is), "box" (a loose box around the structure), "box-and-mask" or
            "alone" (clicks and no memories at all, the first on the structure).
        clicks: points in each picture.

    Returns:
        Mask logits (n, 1, S/4, S/4) and predicted overlap (n, 1).
    """
    truth = F.avg_pool2d(done.truth, 4) > 0.5
    first = done.logits.detach()
    if kind.startswith("box"):
        coordinates, codes = draw_boxes(truth[:, 0], generator)
    else:
        wrong = truth if kind == "alone" else truth != (first > 0)
        coordinates, codes = draw_clicks(truth[:, 0], wrong[:, 0], generator, clicks)
    heads = model._forward_sam_heads(
        backbone_features=done.plain if kind == "alone" else done.conditioned,
        point_inputs={"point_coords": coordinates, "point_labels": codes},
        mask_inputs=first.clamp(-32, 32) if kind.endswith("mask") else None,
        high_res_features=done.fine,
        multimask_output=False,
    )
    return heads[3], heads[2]


def draw_clicks(
    truth: Tensor, wanted: Tensor, generator: torch.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """Points in pixels of the full picture, and 1 where they are inside, else 0.

    Args:
        truth: (n, h, w) bool masks at a quarter of the resolution.
        wanted: (n, h, w) bool; the first point is there if there is such a place, the others
            mostly.

    Returns:
        (n, count, 2) float32 x, y and (n, count) int32.
    """
    width = truth.shape[-1]
    flat = wanted.flatten(1).float()
    anywhere = torch.full_like(flat, 1e-4)
    weights = flat + anywhere / flat.shape[1]
    places = torch.multinomial(weights.cpu(), count, replacement=True, generator=generator)
    if count > 1:  # some clicks only confirm
        confirm = torch.rand(places.shape, generator=generator) < 0.15
        confirm[:, 0] = False
        random = torch.randint(flat.shape[1], places.shape, generator=generator)
        places = torch.where(confirm, random, places)
    places = places.to(truth.device)
    codes = truth.flatten(1).gather(1, places).int()
    # SAM's prompt encoder adds half a pixel.
    xy = torch.stack((places % width, places // width), -1) * 4 + 1.5
    return xy.float(), codes


def draw_boxes(truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Corners of loose boxes in pixels of the full picture, with SAM's codes 2 and 3.

    Where a mask is empty the codes are -1, which the prompt encoder takes for no point.

    Args:
        truth: (n, h, w) bool masks at a quarter of the resolution.

    Returns:
        (n, 2, 2) float32 x, y and (n, 2) int32.
    """
    spans = []
    for axis in (1, 2):  # columns first: any row
        line = truth.any(axis).float()
        positions = torch.arange(line.shape[1], device=truth.device)
        low = torch.where(line > 0, positions, line.shape[1]).amin(1)
        high = torch.where(line > 0, positions + 1, 0).amax(1)
        spans.append((low * 4.0, high * 4.0 - 1.0))
    (left, right), (top, bottom) = spans
    size = torch.stack((right - left, bottom - top), 1).clamp(min=4)
    noise = torch.randn((len(truth), 2, 2), generator=generator).to(truth.device)
    corners = torch.stack((torch.stack((left, top), 1), torch.stack((right, bottom), 1)), 1)
    corners = corners + 0.06 * noise * size[:, None]
    corners = corners.clamp(0, 4.0 * truth.shape[-1] - 1)
    codes = torch.tensor([2, 3], dtype=torch.int32, device=truth.device).expand(len(truth), -1)
    shown = truth.flatten(1).any(1)[:, None]
    return corners, torch.where(shown, codes, -1)


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of probabilities and targets in 0..1, smoothed by one pixel; mean over the batch."""
    p, t = logits.sigmoid().flatten(1), target.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Twice the binary cross entropy plus the soft Dice loss."""
    return 2 * F.binary_cross_entropy_with_logits(logits, target) + soft_dice_loss(logits, target)


def training_loss(
    logits: Tensor, overlap: Tensor, auxiliary: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of a batch of queries, and its mask part alone.

    Args:
        logits: (n, 1, S/4, S/4) mask logits.
        overlap: (n, 1) the network's own estimate of its intersection over union, 0..1.
        auxiliary: (n, 1, S/4, S/4) logits read directly from the conditioned features.
        truth: (n, 1, S, S) float 0/1.
    """
    target = F.avg_pool2d(truth, 4)
    mask = mask_loss(logits, target)
    estimate = overlap_loss(logits, overlap, target)
    return mask + 0.5 * mask_loss(auxiliary, target) + 0.1 * estimate, mask


def prompt_loss(logits: Tensor, overlap: Tensor, truth: Tensor) -> Tensor:
    """The loss of masks made with prompts; arguments as for `training_loss`."""
    target = F.avg_pool2d(truth, 4)
    return mask_loss(logits, target) + 0.1 * overlap_loss(logits, overlap, target)


def overlap_loss(logits: Tensor, overlap: Tensor, target: Tensor) -> Tensor:
    """Squared error of the predicted intersection over union."""
    with torch.no_grad():
        p, t = (logits > 0).flatten(1), (target > 0.5).flatten(1)
        union = (p | t).sum(1)
        true_overlap = torch.where(union > 0, (p & t).sum(1) / union.clamp(min=1), 1.0)
    return F.mse_loss(overlap[:, 0], true_overlap)


def hard_dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """(n,) Dice of boolean masks (n, ...); 1 where both are empty."""
    p, t = predicted.flatten(1), truth.flatten(1)
    total = p.sum(1) + t.sum(1)
    return torch.where(total > 0, 2 * (p & t).sum(1) / total.clamp(min=1), 1.0)
