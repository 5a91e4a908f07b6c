"""`sam2-micro`: a small SAM 2 made of the sam2 package's own classes, and its bundled weights.

The parts are those of SAM 2 (Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024,
section 4) at a hundredth of their size: a Hiera encoder (Ryali et al., 2023) with a feature
pyramid, memory attention, memory encoder and the SAM mask decoder; 2.47 M parameters, stride 16.
The weights are trained on procedurally generated pictures only; `weights/sam2_micro.md` tells how
they were made and what they reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from medretrieval.errors import InputError, UsageError

WEIGHTS = Path(__file__).parent / "weights" / "sam2_micro.safetensors"
STRIDE = 16
CLIP = 3.0


@dataclass(frozen=True, kw_only=True)
class MicroConfig:
    """What fixes the shapes of the network's weights, and the picture size it is used at.

    Attributes:
        image_size: side of the square input in pixels, a multiple of 32.
        embed_dim: width of the first Hiera stage; each later stage doubles it.
        stages: blocks of the four Hiera stages (strides 4, 8, 16, 32).
        windows: attention window of each stage, in tokens.
        d_model: channels of the pyramid, the memory attention and the mask decoder.
        mem_dim: channels of a memory.
        memory_layers: layers of the memory attention.
        feedforward: hidden width of a memory attention layer.
    """

    image_size: int = 192
    embed_dim: int = 24
    stages: tuple[int, int, int, int] = (1, 2, 3, 1)
    windows: tuple[int, int, int, int] = (8, 8, 8, 4)
    d_model: int = 96
    mem_dim: int = 32
    memory_layers: int = 2
    feedforward: int = 256


MICRO = MicroConfig()


def _global_blocks(stages: tuple[int, int, int, int]) -> tuple[int, ...]:
    # Attention is global at strides 16 and 32. The first block of a stage pools its queries, and
    # sam2's window arithmetic divides by zero where such a block is global, so it stays windowed.
    third = stages[0] + stages[1]
    fourth = third + stages[2]
    return (*range(third + 1, fourth), *range(fourth + 1, sum(stages)))


def build_micro(
    cls: Callable[..., Any] | None = None,
    *,
    image_size: int | None = None,
    config: MicroConfig = MICRO,
    **options: Any,
) -> Any:
    """Build the network with random weights, in evaluation mode, on the CPU.

    Args:
        cls: `sam2.modeling.sam2_base.SAM2Base` (default) or a subclass of it, such as
            `SAM2VideoPredictor`, which is then driven frame by frame.
        image_size: side of the input in pixels, instead of the configuration's.
        config: shapes of the network.
        **options: passed on to `cls`, for a subclass's own arguments.

    Raises:
        UsageError: the image size is not a positive multiple of 32.
    """
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base

    size = _checked_size(config.image_size if image_size is None else image_size)
    d_model, mem_dim = config.d_model, config.mem_dim
    trunk = Hiera(
        embed_dim=config.embed_dim,
        num_heads=1,
        stages=config.stages,
        global_att_blocks=_global_blocks(config.stages),
        window_pos_embed_bkg_spatial_size=(7, 7),
        window_spec=config.windows,
    )
    neck = FpnNeck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=d_model),
        d_model=d_model,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=None,
        fpn_interp_model="nearest",
    )
    rope = {
        "rope_theta": 10000.0,
        "feat_sizes": (size // STRIDE, size // STRIDE),
        "embedding_dim": d_model,
        "num_heads": 1,
        "downsample_rate": 1,
        "dropout": 0.0,
    }
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=config.feedforward,
        dropout=0.0,
        d_model=d_model,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**rope),
        cross_attention=RoPEAttention(rope_k_repeat=True, kv_in_dim=mem_dim, **rope),
    )
    # sam2 starts CXBlock's layer scale at 1e-6, which keeps the fuser inert in a short training.
    fuser_block = CXBlock(dim=d_model, kernel_size=7, padding=3, layer_scale_init_value=1.0)
    memory_encoder = MemoryEncoder(
        out_dim=mem_dim,
        in_dim=d_model,
        mask_downsampler=MaskDownSampler(embed_dim=d_model, kernel_size=4, stride=4, padding=0),
        fuser=Fuser(fuser_block, num_layers=2),
        position_encoding=PositionEmbeddingSine(num_pos_feats=mem_dim),
    )
    model = (SAM2Base if cls is None else cls)(
        image_encoder=ImageEncoder(trunk=trunk, neck=neck, scalp=1),
        memory_attention=MemoryAttention(
            d_model=d_model, pos_enc_at_input=True, layer=layer, num_layers=config.memory_layers
        ),
        memory_encoder=memory_encoder,
        # Supports are conditioning frames, all at temporal position 0: one temporal code serves
        # any number of them, and none is dropped.
        num_maskmem=1,
        max_cond_frames_in_attn=-1,
        image_size=size,
        backbone_stride=STRIDE,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=False,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=False,
        pred_obj_scores=False,
        **options,
    )
    return model.eval()


def _checked_size(size: int) -> int:
    if size <= 0 or size % 32:
        raise UsageError(f"sam2-micro image size {size}: expected a positive multiple of 32")
    return size


def set_image_size(model: Any, size: int) -> None:
    """Let `model` take pictures of `size` x `size` pixels; no weight depends on the size.

    Raises:
        UsageError: the size is not a positive multiple of 32.
    """
    _checked_size(size)
    grid = size // STRIDE
    model.image_size = size
    model.sam_image_embedding_size = grid
    prompts = model.sam_prompt_encoder
    prompts.input_image_size = (size, size)
    prompts.image_embedding_size = (grid, grid)
    prompts.mask_input_size = (4 * grid, 4 * grid)


def standardise(pictures: Tensor) -> Tensor:
    """Give each picture the brightness and contrast that the network was trained with.

    Args:
        pictures: (n, 3, S, S) float, any range, already cropped and resized.

    Returns:
        (n, 3, S, S) of mean 0 and standard deviation 1 over each picture's channels and pixels,
        clipped to +-3. A constant picture becomes 0.
    """
    mean = pictures.mean((-3, -2, -1), keepdim=True)
    deviation = pictures.std((-3, -2, -1), keepdim=True)
    return ((pictures - mean) / (deviation + 1e-5)).clamp(-CLIP, CLIP)


def load_micro(
    checkpoint: Path | None = None,
    *,
    cls: Callable[..., Any] | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Any:
    """Build the network and load its weights (the bundled ones by default), in float32.

    Args:
        checkpoint: a .safetensors file of another training of the same network.
        cls, image_size, **options: as for `build_micro`.
        device: where the network goes.

    Raises:
        InputError: the file is missing, unreadable, or of another network.
        UsageError: the image size is not a positive multiple of 32.
    """
    path = WEIGHTS if checkpoint is None else Path(checkpoint)
    try:
        state = load_file(path)
    except Exception as error:  # safetensors has no common base class for its errors
        raise InputError(
            f"cannot read weights {path}: {error}; expected a safetensors file of sam2-micro"
        ) from error
    model = build_micro(cls, image_size=image_size, **options)
    wanted = model.state_dict()
    wrong = sorted(
        name
        for name in wanted.keys() | state.keys()
        if name not in wanted or name not in state or wanted[name].shape != state[name].shape
    )
    if wrong:
        raise InputError(
            f"{path} holds the weights of another network ({len(wrong)} tensors differ, such as "
            f"{wrong[0]}); expected those of sam2-micro as written by training/train.py"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.to(device)
