"""Fewer tokens for memory attention: groups of neighbouring tokens stand for their members.

SAM 2 lets every place of the query attend to every token of every memory: K supports on a grid of
h x w give N = K h w keys, and the cost grows with N. Here the keys are partitioned into groups, and
a group enters the attention as one token: the mean of its keys, the mean of its values, and the
logarithm n of its size added to its score, so that it weighs as much as n tokens:

    sum over i of exp(q k_i) v_i  ~  n exp(q mean(k)) mean(v) = exp(q mean(k) + log n) mean(v)

which is exact where keys and values agree within a group. Keys are averaged after their rotation,
so each carries its own place in the grid. With 2 x 2 windows this is the pooled attention that
EfficientTAM was trained with (Xiong et al., Efficient Track Anything, arXiv:2411.18933, section
3.2); here it serves networks trained without it, which costs some accuracy. Object pointers are
never grouped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medretrieval.segmentation.options import MemoryTokens

# Side of the windows, and how many tokens around a label are kept. Measured: windows of 4, or a
# margin of 0, lose several times as much (python -m benchmarks.approximations).
WINDOW = 2
MARGIN = 2


@dataclass(frozen=True, eq=False)
class Groups:
    """A partition of the spatial tokens of L memory banks into at most M groups each.

    Attributes:
        of: (L, N) int64 in 0..M-1, the group of every token.
        sizes: (L, M) float32, the number of tokens in every group; 0 beyond a bank's last group.
    """

    of: Tensor
    sizes: Tensor

    def mean(self, tokens: Tensor) -> Tensor:
        """Average (L, N, C) over the groups: (L, M, C), 0 in a group of none."""
        banks, groups = self.sizes.shape
        first = torch.arange(banks, device=tokens.device)[:, None] * groups
        sums = torch.zeros(
            banks * groups, tokens.shape[-1], dtype=torch.float32, device=tokens.device
        )
        sums.index_add_(0, (self.of + first).flatten(), tokens.flatten(0, 1).float())
        means = sums.view(banks, groups, -1) / self.sizes.clamp(min=1)[..., None]
        return means.to(tokens.dtype)


def group(kept: Tensor, *, window: int) -> Groups:
    """Put tokens into groups: those kept into one each, the others of a window into a common one.

    Args:
        kept: (L, K, h, w) bool.
        window: side of the square windows that every grid of h x w is cut into, from its top left
            corner; those at the right and lower edge may be cut off.

    Returns:
        Groups of the N = K h w tokens, in the order of `kept`. Numbers follow that order too.
    """
    banks, supports, height, width = kept.shape
    device = kept.device
    rows = torch.arange(height, device=device)[:, None] // window
    columns = torch.arange(width, device=device)[None] // window
    # The number of a window is that of its first token: every number is below N.
    corner = rows * window * width + columns * window
    own = torch.arange(height * width, device=device).view(height, width)
    tokens = supports * height * width
    first = torch.arange(supports, device=device)[:, None, None] * height * width
    # A kept corner and the rest of its window need two numbers: 2 n and 2 n + 1.
    numbers = torch.where(kept, 2 * (first + own), 2 * (first + corner) + 1).view(banks, tokens)
    used = torch.zeros(banks, 2 * tokens, dtype=torch.int64, device=device)
    used.scatter_(1, numbers, 1)
    of = (used.cumsum(1) - 1).gather(1, numbers)
    sizes = torch.zeros(banks, int(of.max()) + 1, device=device)
    sizes.scatter_add_(1, of, torch.ones_like(of, dtype=torch.float32))
    return Groups(of, sizes)


def near(foreground: Tensor, *, margin: int) -> Tensor:
    """(L, K, h, w) bool -> the same and every token at most `margin` rows and columns away."""
    grown = F.max_pool2d(foreground.float(), 2 * margin + 1, stride=1, padding=margin)
    return grown > 0


def choose(foreground: Tensor, memory: MemoryTokens) -> Groups | None:
    """The groups of an option, from (L, K, h, w) bool: where each memory shows its label.

    Returns:
        None for "all": every token on its own.
    """
    if memory == "pooled":
        return group(torch.zeros_like(foreground), window=WINDOW)
    if memory == "foreground":
        return group(near(foreground, margin=MARGIN), window=WINDOW)
    return None


@contextmanager
def grouped(attentions: Sequence[Any], groups: Groups | None) -> Iterator[None]:
    """Let attention modules of sam2 attend to groups of memory tokens while the context lasts.

    The modules' own code runs: projections, rotation of every key by its place, output. Only its
    call of `scaled_dot_product_attention` gets the groups' means instead of the tokens.

    Args:
        attentions: cross-attention modules. Their first N keys are the spatial tokens of `groups`.
        groups: None leaves the modules as they are.
    """
    if groups is None:
        yield
        return
    for attention in attentions:
        attention.forward = partial(_forward, attention, groups)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.forward


def _forward(attention: Any, groups: Groups, *args: Any, **kwargs: Any) -> Tensor:
    with _Grouping(groups):
        out: Tensor = type(attention).forward(attention, *args, **kwargs)
    return out


class _Grouping(TorchFunctionMode):
    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self._groups = groups

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args
        return func(
            query,
            self._means(key),
            self._means(value),
            attn_mask=self._log_sizes(key),
            **(kwargs or {}),
        )

    def _means(self, tokens: Tensor) -> Tensor:
        """(L, heads, N + P, C) -> (L, heads, M + P, C); P tokens stay as they are."""
        count = self._groups.of.shape[1]
        banks, heads, _, channels = tokens.shape
        flat = tokens.transpose(1, 2).flatten(2)  # (L, N + P, heads C)
        flat = torch.cat([self._groups.mean(flat[:, :count]), flat[:, count:]], 1)
        return flat.view(banks, -1, heads, channels).transpose(1, 2)

    def _log_sizes(self, tokens: Tensor) -> Tensor:
        """(L, 1, 1, M + P), what is added to the scores of keys `tokens`: -inf for no token."""
        others = tokens.shape[2] - self._groups.of.shape[1]
        bias = F.pad(self._groups.sizes.log(), (0, others))
        return bias.to(tokens.dtype)[:, None, None]
