"""SAM 2's own network driven as a few-shot segmenter: supports are frames, the query the next one.

Nothing of SAM 2's mathematics is written again here. A support goes through
`SAM2Base.track_step` as a conditioning frame with a mask as input, which encodes the mask at full
resolution (Ravi et al., 2024, section 4, "Memory encoder"); of the result only the memory and the
object pointer are kept. The query goes through `track_step` as a frame that is tracked: memory
attention over all supports, then the mask decoder without a prompt (RAFS, section III-C).

`SAM2VideoPredictor` makes its memories otherwise: `add_new_mask` skips the memory encoder, and
`propagate_in_video` then encodes the quarter-resolution `pred_masks`, enlarged bilinearly, as if
they came from clicks, and keeps the result in bfloat16. Masks whose edges lie between pixels of
the quarter resolution and have no corners survive that; others change at their border, so there
its masks can differ from ours. tests/segmentation/test_parity.py measures both.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medretrieval.segmentation.bank import memory_bank
from medretrieval.segmentation.cache import Memory
from medretrieval.segmentation.options import MemoryTokens, Pointers, Precision
from medretrieval.segmentation.squares import imagenet, square, square_masks
from medretrieval.segmentation.tokens import choose, grouped

# Pixels of the input along a side of one cell of the mask decoder's output.
CELL = 4
# How much goes through the network at once: pixels of pictures, tokens of memories.
_PIXELS = {"cpu": 2**20, "cuda": 2**23}
_TOKENS = {"cpu": 2**18, "cuda": 2**21}
# As SAM2VideoPredictor clamps logits that it gives back to the decoder as a prompt.
_CLAMPED = 32.0

# (P, 2) float32 x, y in pixels of the network's input, and (P,) int32 codes of SAM's prompt encoder
Points: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class Encoding:
    """The image encoder's output for one picture: feature maps and their positions, fine first.

    Attributes:
        maps: (1, C_i, h_i, w_i) each.
        positions: (1, C, h_i, w_i) each.
    """

    maps: tuple[Tensor, ...]
    positions: tuple[Tensor, ...]


def weights_digest(state: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and numbers of a state dict, whatever file it came in."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


@contextmanager
def _conditioned(model: Any) -> Iterator[dict[str, Any]]:
    """Keep what `track_step` gives to the mask decoder, so that prompts need not compute it again.

    The features after memory attention are the dear part, and `track_step` does not return them.
    """
    seen: dict[str, Any] = {}
    heads = model._forward_sam_heads

    def keep(**inputs: Any) -> Any:
        seen.update(inputs)
        return heads(**inputs)

    model._forward_sam_heads = keep
    try:
        yield seen
    finally:
        del model._forward_sam_heads


def _row(value: Any, row: int) -> Any:
    """The part of a decoder's input that belongs to one label of a batch."""
    if isinstance(value, Tensor):
        return value[row : row + 1]
    if isinstance(value, list):
        return [_row(item, row) for item in value]
    return value


class Sam2Network:
    """A SAM 2 network. Its methods may be called from several threads.

    Args:
        model: a `sam2.modeling.sam2_base.SAM2Base` with its float32 weights, in evaluation mode.
        normalise: (n, 3, S, S) in 0..1 -> what the image encoder takes.
        digest: sha256 of the weights.
        precision: of the matrix products and convolutions; what goes in and out is float32.
    """

    def __init__(
        self,
        model: Any,
        *,
        normalise: Callable[[Tensor], Tensor] = imagenet,
        digest: str,
        precision: Precision = "float32",
    ) -> None:
        # More supports than SAM 2's own limit must not be dropped silently.
        model.max_cond_frames_in_attn = -1
        self.model = model.eval()
        self.digest = digest
        self.precision = precision
        self.image_size = int(model.image_size)
        self._normalise = normalise
        # One forward at a time: torch spreads it over all cores, and sam2 changes attributes of
        # its modules (rotary tables, position caches) on the way.
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def pictures_at_once(self) -> int:
        """How many pictures are best encoded in one batch."""
        return max(1, self._limit(_PIXELS) // self.image_size**2)

    def own_key(self, key: str) -> str:
        """The key of a memory that this network makes, from the one that it has in float32.

        A memory made in float32 serves in every precision; one made in less serves only there.
        """
        if self.precision == "float32":
            return key
        return hashlib.sha256(f"{self.precision} {key}".encode()).hexdigest()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        low = self.precision == "bfloat16"
        with self._lock, torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            yield

    def _limit(self, table: dict[str, int]) -> int:
        return table.get(self.device.type, table["cpu"])

    @torch.inference_mode()
    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Encoding]:
        """Encode pictures, each (H, W) or (H, W, 3) uint8 of any size, in batches."""
        encodings = []
        for start in range(0, len(pictures), self.pictures_at_once):
            batch = pictures[start : start + self.pictures_at_once]
            tensor = torch.cat([square(picture, self.image_size) for picture in batch])
            with self._computing():
                out = self.model.forward_image(self._normalise(tensor.to(self.device)))
            levels = self.model.num_feature_levels
            maps = out["backbone_fpn"][-levels:]
            positions = out["vision_pos_enc"][-levels:]
            encodings += [
                Encoding(
                    tuple(m[i : i + 1].float().clone() for m in maps),
                    tuple(p[i : i + 1].float() for p in positions),
                )
                for i in range(len(batch))
            ]
        return encodings

    @torch.inference_mode()
    def remember(self, encoding: Encoding, masks: Sequence[NDArray[np.bool_]]) -> list[Memory]:
        """Make one memory a label of an annotated slice.

        Args:
            encoding: of the slice's picture.
            masks: (H, W) bool each, one a label; all of one size. They are encoded at the network's
                full input size. A mask that is empty makes a memory of the label's absence.
        """
        at_once = max(1, self._limit(_TOKENS) // (8 * self._tokens))
        memories: list[Memory] = []
        for start in range(0, len(masks), at_once):
            batch = square_masks(masks[start : start + at_once], self.image_size).to(self.device)
            with self._computing():
                out = self._track_step(
                    encoding, len(batch), mask_inputs=batch, run_mem_encoder=True
                )
            features = out["maskmem_features"].float()
            foreground = F.adaptive_max_pool2d(batch[:, 0], features.shape[-2:]) > 0
            parts = {
                "features": features.cpu(),
                "pointer": out["obj_ptr"].float().cpu(),
                "foreground": foreground.cpu(),
            }
            memories += [
                Memory(**{name: part[i].clone() for name, part in parts.items()})
                for i in range(len(batch))
            ]
        return memories

    @torch.inference_mode()
    def segment(
        self,
        encoding: Encoding,
        memories: Sequence[Sequence[Memory]],
        *,
        pointers: Pointers = "equal",
        points: Sequence[Points | None] | None = None,
        distances: Sequence[int | None] | None = None,
        memory: MemoryTokens = "all",
    ) -> Tensor:
        """Segment a picture from memories, from points, or from both.

        A label with memories and points is segmented from the memories first. The points then
        correct the result as clicks correct a tracked frame in `SAM2VideoPredictor`: the mask
        decoder runs again with the points and the first logits as its prompts.

        Args:
            encoding: of the query picture.
            memories: for each of L labels its K memories (as many for every label). Without any,
                every label needs points, and the picture is what SAM 2 calls an initial frame.
            pointers, memory: see `SegmentationOptions`.
            points: for each label its points, or None.
            distances: for each of the K memories how many slices before the picture it is
                (`Support.distance`), None for an annotated slice, which all are by default. What
                lies before is to the network a frame that was tracked.

        Returns:
            (L, S/4, S/4) float32 logits on the CPU; S is the network's input size.
        """
        supports = len(memories[0])
        at_once = max(1, self._limit(_TOKENS) // (self._tokens * max(supports, 1)))
        distances = [None] * supports if distances is None else distances
        logits = []
        for start in range(0, len(memories), at_once):
            batch = memories[start : start + at_once]
            asked = None if points is None else points[start : start + at_once]
            with self._computing():
                if supports:
                    low = self._from_memories(encoding, batch, pointers, memory, asked, distances)
                else:
                    low = self._from_points(encoding, asked or ())
            logits.append(low.float().cpu())
        return torch.cat(logits)

    def _from_memories(
        self,
        encoding: Encoding,
        memories: Sequence[Sequence[Memory]],
        pointers: Pointers,
        memory: MemoryTokens,
        points: Sequence[Points | None] | None,
        distances: Sequence[int | None],
    ) -> Tensor:
        bank = memory_bank(self.model, memories, distances, pointers, self.device)
        groups = None
        if memory != "all":
            foreground = torch.stack(
                [torch.stack([row[k].foreground for k in bank.order]) for row in memories]
            )
            groups = choose(foreground.to(self.device), memory)
        # On the scale that SAM 2 has in a long video, or in the one that they make.
        longest = self.model.max_obj_ptrs_in_encoder if pointers == "equal" else 0
        with _conditioned(self.model) as seen, grouped(self._cross_attentions, groups):
            out = self._track_step(
                encoding,
                len(memories),
                bank=bank.frames,
                frame_idx=bank.query,
                num_frames=max(longest, bank.query + 1),
            )
        low: Tensor = out["pred_masks"][:, 0]
        for row, clicks in enumerate(points or ()):
            if clicks is not None:
                heads = {name: _row(value, row) for name, value in seen.items()}
                low[row] = self._corrected(heads, low[row], clicks)
        return low

    def _corrected(self, heads: dict[str, Any], logits: Tensor, points: Points) -> Tensor:
        """(S/4, S/4) logits of a label after points on top of its first logits."""
        inputs = self._point_inputs(points)
        out = self.model._forward_sam_heads(
            **{
                **heads,
                "point_inputs": inputs,
                "mask_inputs": logits[None, None].clamp(-_CLAMPED, _CLAMPED),
                "multimask_output": self.model._use_multimask(False, inputs),
            }
        )
        low: Tensor = out[3][0, 0]
        return low

    def _from_points(self, encoding: Encoding, points: Sequence[Points | None]) -> Tensor:
        rows = []
        for clicks in points:
            if clicks is None:
                raise ValueError("a label without memories and without points")
            out = self._track_step(encoding, 1, point_inputs=self._point_inputs(clicks))
            rows.append(out["pred_masks"][0, 0])
        return torch.stack(rows)

    def _point_inputs(self, points: Points) -> dict[str, Tensor]:
        places, codes = points
        return {
            "point_coords": torch.from_numpy(places)[None].to(self.device),
            "point_labels": torch.from_numpy(codes)[None].to(self.device),
        }

    @property
    def _cross_attentions(self) -> list[Any]:
        return [layer.cross_attn_image for layer in self.model.memory_attention.layers]

    @property
    def _tokens(self) -> int:
        return (self.image_size // int(self.model.backbone_stride)) ** 2

    def _track_step(
        self,
        encoding: Encoding,
        batch: int,
        *,
        mask_inputs: Tensor | None = None,
        point_inputs: dict[str, Tensor] | None = None,
        bank: dict[str, dict[int, Any]] | None = None,
        frame_idx: int = 0,
        num_frames: int = 1,
        run_mem_encoder: bool = False,
    ) -> dict[str, Any]:
        """Run `SAM2Base.track_step` on one picture for `batch` labels at once."""
        backbone = {
            "backbone_fpn": [m.expand(batch, -1, -1, -1) for m in encoding.maps],
            "vision_pos_enc": [p.expand(batch, -1, -1, -1) for p in encoding.positions],
        }
        _, features, positions, sizes = self.model._prepare_backbone_features(backbone)
        out: dict[str, Any] = self.model.track_step(
            frame_idx=frame_idx,
            is_init_cond_frame=bank is None,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=point_inputs,
            mask_inputs=mask_inputs,
            output_dict=bank or {},
            num_frames=num_frames,
            run_mem_encoder=run_mem_encoder,
        )
        return out
