"""EfficientTAM: SAM 2 with a plain vision transformer as its image encoder, from sam2's classes.

Xiong et al., Efficient Track Anything, arXiv:2411.18933. Of what the published files hold
(github.com/yformer/EfficientTAM, efficient_track_anything/configs), sam2 has a class for everything
but two parts, which are here under the names that the files give their weights:

- the trunk, a ViTDet transformer (Li et al., arXiv:2203.16527): its blocks are Hiera's blocks
  without pooling; only the learned positions, made for 224 pixels, are its own;
- the neck, which brings its one map of stride 16 to the width of the decoder. Without maps of
  stride 4 and 8 the decoder works from that alone.

The variants `_1` and `_2` are trained with pooled memory attention. Their files have the same
weights by name and shape. Our option memory="pooled" computes what `_1` was trained with; `_2`
adds a constant to every pooled key instead of to the scores, which is not offered.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PATCH = 16
_PRETRAINED_GRID = 224 // _PATCH
_WINDOW = 14
# Every third block sees the whole picture.
_GLOBAL_EVERY = 3
_HEAD_WIDTH = 64
_D_MODEL = 256
_MEM_DIM = 64


class ViT(nn.Module):
    """A ViTDet trunk.

    Args:
        embed_dim: channels, a multiple of 64.
        depth: number of blocks.
    """

    def __init__(self, *, embed_dim: int, depth: int) -> None:
        from sam2.modeling.backbones.hieradet import MultiScaleBlock
        from sam2.modeling.backbones.utils import PatchEmbed

        super().__init__()
        self.channel_list = [embed_dim]
        self.patch_embed = PatchEmbed(
            kernel_size=(_PATCH, _PATCH),
            stride=(_PATCH, _PATCH),
            padding=(0, 0),
            embed_dim=embed_dim,
        )
        # The first position is that of a class token, which is not used.
        self.pos_embed = nn.Parameter(torch.zeros(1, _PRETRAINED_GRID**2 + 1, embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                dim=embed_dim,
                dim_out=embed_dim,
                num_heads=embed_dim // _HEAD_WIDTH,
                window_size=0 if i % _GLOBAL_EVERY == _GLOBAL_EVERY - 1 else _WINDOW,
            )
            for i in range(depth)
        )

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(n, 3, H, W) -> one map (n, embed_dim, H/16, W/16)."""
        x = self.patch_embed(pictures)
        x = x + self._positions(x.shape[1], x.shape[2])
        for block in self.blocks:
            x = block(x)
        return [x.permute(0, 3, 1, 2)]

    def _positions(self, height: int, width: int) -> Tensor:
        """(1, height, width, embed_dim)."""
        side = _PRETRAINED_GRID
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if (height, width) != (side, side):
            grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return grid.permute(0, 2, 3, 1)


class Neck(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution with layer norms, as in ViTDet.

    Args:
        position_encoding: of the map that comes out.
        d_model: its channels.
        channels: those of the trunk's map.
    """

    def __init__(self, *, position_encoding: nn.Module, d_model: int, channels: int) -> None:
        from sam2.modeling.sam2_utils import LayerNorm2d

        super().__init__()
        self.position_encoding = position_encoding
        self.d_model = d_model
        self.backbone_channel_list = [channels]
        layers = nn.Sequential()
        layers.add_module("conv_1x1", nn.Conv2d(channels, d_model, 1, bias=False))
        layers.add_module("norm_0", LayerNorm2d(d_model))
        layers.add_module("conv_3x3", nn.Conv2d(d_model, d_model, 3, padding=1, bias=False))
        layers.add_module("norm_1", LayerNorm2d(d_model))
        self.convs = nn.ModuleList([layers])

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """One map (n, channels, h, w) -> one (n, d_model, h, w), and its positions."""
        out = self.convs[0](maps[0])
        return [out], [self.position_encoding(out).to(out.dtype)]


def build_efficienttam(*, embed_dim: int, depth: int, image_size: int) -> Any:
    """Build the network with random weights, in evaluation mode, on the CPU.

    Args:
        embed_dim: channels of the trunk: 192 (tiny) or 384 (small).
        depth: its number of blocks.
        image_size: side of the input in pixels.
    """
    from sam2.modeling.backbones.image_encoder import ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention
    from sam2.modeling.sam2_base import SAM2Base

    neck = Neck(
        position_encoding=PositionEmbeddingSine(num_pos_feats=_D_MODEL),
        d_model=_D_MODEL,
        channels=embed_dim,
    )
    rope = {
        "rope_theta": 10000.0,
        "feat_sizes": (image_size // _PATCH, image_size // _PATCH),
        "embedding_dim": _D_MODEL,
        "num_heads": 1,
        "downsample_rate": 1,
    }
    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=2048,
        dropout=0.1,
        d_model=_D_MODEL,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**rope),
        cross_attention=RoPEAttention(rope_k_repeat=True, kv_in_dim=_MEM_DIM, **rope),
    )
    memory_encoder = MemoryEncoder(
        out_dim=_MEM_DIM,
        mask_downsampler=MaskDownSampler(kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=_D_MODEL, kernel_size=7, padding=3), num_layers=2),
        position_encoding=PositionEmbeddingSine(num_pos_feats=_MEM_DIM),
    )
    model = SAM2Base(
        image_encoder=ImageEncoder(trunk=ViT(embed_dim=embed_dim, depth=depth), neck=neck, scalp=0),
        memory_attention=MemoryAttention(
            d_model=_D_MODEL, pos_enc_at_input=True, layer=layer, num_layers=4
        ),
        memory_encoder=memory_encoder,
        num_maskmem=7,
        image_size=image_size,
        backbone_stride=_PATCH,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=False,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        add_tpos_enc_to_obj_ptrs=False,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True,
        # As both packages build their networks for use.
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True,
            "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )
    return model.eval()
