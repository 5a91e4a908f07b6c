"""One training step's forward pass: many few-shot tasks that share their encoded pictures.

The calls are those by which `SAM2Base.track_step` turns conditioning frames with a mask prompt into
memories and a following frame into mask logits, batched over tasks and labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def few_shot(
    model: Any, images: Tensor, masks: Tensor, *, shots: int, shift: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segment the query pictures of every task from its supports.

    Args:
        model: a `SAM2Base`.
        images: (B, N, 3, S, S) standardised pictures of B episodes.
        masks: (B, T, N, S, S) float 0/1, T structures of each episode.
        shots: K; of each structure's pictures the first K are supports, the other Q queries.
        shift: the pictures of structure t are rolled by t * shift first, so that every encoded
            picture serves some structures as support and others as query.

    Returns:
        Mask logits (B*T*Q, 1, S/4, S/4), predicted overlap (B*T*Q, 1), conditioned features
        (B*T*Q, C, S/16, S/16) and the true masks (B*T*Q, 1, S, S).
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
    query_positions = [queries_of(x) for x in positions]
    conditioned = model._prepare_memory_conditioned_features(
        frame_idx=shots,
        is_init_cond_frame=False,
        current_vision_feats=query_features[-1:],
        current_vision_pos_embeds=query_positions[-1:],
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
    return heads[3], heads[2], conditioned, truth


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
    with torch.no_grad():
        p, t = (logits > 0).flatten(1), (target > 0.5).flatten(1)
        union = (p | t).sum(1)
        true_overlap = torch.where(union > 0, (p & t).sum(1) / union.clamp(min=1), 1.0)
    estimate = F.mse_loss(overlap[:, 0], true_overlap)
    return mask + 0.5 * mask_loss(auxiliary, target) + 0.1 * estimate, mask


def hard_dice(predicted: Tensor, truth: Tensor) -> Tensor:
    """(n,) Dice of boolean masks (n, ...); 1 where both are empty."""
    p, t = predicted.flatten(1), truth.flatten(1)
    total = p.sum(1) + t.sum(1)
    return torch.where(total > 0, 2 * (p & t).sum(1) / total.clamp(min=1), 1.0)
