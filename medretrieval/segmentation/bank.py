"""Memories as the memory bank of SAM 2: which frame of a video each of them stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medretrieval.segmentation.cache import Memory
from medretrieval.segmentation.options import Pointers


class _Frame(int):
    """A frame number that several supports may share: a number in arithmetic, itself as a key."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _frames(distances: Sequence[int | None], pointers: Pointers) -> tuple[list[int], int]:
    """The frame number of every support, and that of the query.

    A slice of the query's volume lies as many frames back as it lies slices away. Annotated slices
    are either all the frame before the query, or, by rank, a video that ends where the volume
    begins: frames 0, 1, ... in their order.

    >>> _frames([None, None, 1, 2], "equal")
    ([2, 2, 2, 1], 3)
    >>> _frames([None, None, 1, 2], "rank")
    ([0, 1, 3, 2], 4)
    """
    furthest = max((d for d in distances if d is not None), default=0)
    annotated = iter(range(sum(d is None for d in distances)))
    if pointers == "equal":
        query = furthest + 1
        return [query - (1 if d is None else d) for d in distances], query
    query = sum(d is None for d in distances) + furthest
    return [next(annotated) if d is None else query - d for d in distances], query


@dataclass(frozen=True, eq=False)
class Bank:
    """The earlier frames of a video in which the query is the next one.

    Attributes:
        frames: "cond_frame_outputs" (prompted with a mask) and "non_cond_frame_outputs" (tracked)
            of `SAM2Base.track_step`, by frame number.
        query: the frame number of the query.
        order: the memories whose tokens the query attends to, in the order of these tokens.
    """

    frames: dict[str, dict[int, Any]]
    query: int
    order: tuple[int, ...]


def memory_bank(
    model: Any,
    memories: Sequence[Sequence[Memory]],
    distances: Sequence[int | None],
    pointers: Pointers,
    device: torch.device,
) -> Bank:
    """Put memories into a bank.

    Args:
        model: a `SAM2Base`.
        memories: for each of L labels its K memories.
        distances: for each of the K memories how many slices before the query it is, None for an
            annotated slice.
        pointers: see `SegmentationOptions`.
    """
    numbers, query = _frames(distances, pointers)
    # A network without temporal positions never looks at tracked frames, and none looks at them
    # alone.
    tracked = model.num_maskmem > 1 and None in distances
    prompted: dict[int, Any] = {}
    followed: dict[int, Any] = {}
    order: list[int] = []
    place: dict[int, int] = {}
    for k, (number, distance) in enumerate(zip(numbers, distances, strict=True)):
        # (L, C, h, w) and (L, D)
        features = torch.stack([row[k].features.float() for row in memories]).to(device)
        pointer = torch.stack([row[k].pointer.float() for row in memories]).to(device)
        frame = {
            "maskmem_features": features,
            "maskmem_pos_enc": [model.memory_encoder.position_encoding(features)],
            "obj_ptr": pointer,
        }
        if tracked and distance is not None:
            followed[number] = frame
            place[number] = k
        else:
            prompted[_Frame(number)] = frame
            order.append(k)
    # Of the tracked frames the model takes its last `num_maskmem` - 1, the earliest first.
    recent = [place[n] for n in sorted(place) if query - n < model.num_maskmem]
    frames = {"cond_frame_outputs": prompted, "non_cond_frame_outputs": followed}
    return Bank(frames, query, (*order, *recent))
