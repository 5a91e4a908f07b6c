"""Groups of memory tokens: the partition, its means, and attention to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.segmentation.micro import MICRO
from medretrieval.segmentation.tokens import Groups, choose, group, grouped, near

PLAIN: Any = {"crop": "none", "flips": False, "closer": False, "negatives": True}


def flags(seed: int, *shape: int, share: float = 0.3) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_windows_of_a_grid_that_they_do_not_divide() -> None:
    groups = group(torch.zeros(1, 1, 3, 5, dtype=torch.bool), window=2)
    expected = [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert groups.of.view(3, 5).tolist() == expected
    assert groups.sizes.tolist() == [[4, 4, 2, 2, 2, 1]]


def test_kept_tokens_are_alone_and_leave_their_window() -> None:
    kept = torch.zeros(2, 1, 2, 4, dtype=torch.bool)
    kept[0, 0, 0, 0] = kept[0, 0, 1, 3] = True
    groups = group(kept, window=2)
    assert groups.of[0].tolist() == [0, 1, 2, 2, 1, 1, 2, 3]
    assert groups.sizes.tolist() == [[1, 3, 3, 1], [4, 4, 0, 0]]


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    shape=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 6)] * 2),
    window=st.integers(1, 4),
)
def test_groups_are_a_partition_and_keep_the_sum(
    seed: int, shape: tuple[int, ...], window: int
) -> None:
    kept = flags(seed, *shape)
    groups = group(kept, window=window)
    banks, tokens = shape[0], int(np.prod(shape[1:]))
    assert groups.sizes.sum(1).tolist() == [tokens] * banks
    for of, sizes in zip(groups.of, groups.sizes, strict=True):
        np.testing.assert_array_equal(torch.bincount(of, minlength=len(sizes)), sizes)
    alone = groups.sizes.gather(1, groups.of) == 1
    assert bool(alone[kept.flatten(1)].all())
    # No group reaches from one support into another.
    support = torch.arange(shape[1]).repeat_interleave(shape[2] * shape[3]).expand(banks, -1)
    first = torch.full_like(groups.sizes, 99).scatter_reduce(1, groups.of, support.float(), "amin")
    assert torch.equal(first.gather(1, groups.of), support.float())
    x = torch.randn(banks, tokens, 3, generator=torch.Generator().manual_seed(seed))
    sums = (groups.mean(x) * groups.sizes[..., None]).sum(1)
    torch.testing.assert_close(sums, x.sum(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 4])
def test_single_tokens_are_the_identity(window: int) -> None:
    kept = torch.full((2, 3, 4, 4), window > 1)
    groups = group(kept, window=window)
    assert groups.of.tolist() == [list(range(48))] * 2
    x = torch.randn(2, 48, 5)
    torch.testing.assert_close(groups.mean(x), x, atol=0, rtol=0)


def test_near() -> None:
    one = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    one[0, 0, 0, 1] = True
    assert near(one, margin=1).int()[0, 0].tolist() == [[1, 1, 1, 0, 0]] * 2 + [[0] * 5] * 3
    assert torch.equal(near(one, margin=0), one)


def test_options_and_their_numbers_of_tokens() -> None:
    foreground = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    foreground[0, 0, 2, 2] = True
    assert choose(foreground, "all") is None
    pooled, near_label = choose(foreground, "pooled"), choose(foreground, "foreground")
    assert pooled is not None
    assert pooled.sizes.shape == (1, 2 * 16)
    # 5 x 5 kept around the label, which take in four windows of the first support.
    assert near_label is not None
    assert near_label.sizes.shape == (1, 25 + 12 + 16)


def attention(heads: int = 2) -> Any:
    from sam2.modeling.sam.transformer import RoPEAttention

    torch.manual_seed(0)
    return RoPEAttention(
        embedding_dim=16, num_heads=heads, kv_in_dim=8, rope_k_repeat=True, feat_sizes=(4, 4)
    ).eval()


def attended(module: Any, groups: Groups | None, memory: torch.Tensor, others: int) -> torch.Tensor:
    query = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), grouped([module], groups):
        out: torch.Tensor = module(q=query, k=memory, v=memory, num_k_exclude_rope=others)
    return out


@pytest.mark.parametrize("others", [0, 3])
def test_attention_to_single_tokens_is_sam2s(others: int) -> None:
    module = attention()
    memory = torch.randn(2, 2 * 16 + others, 8)
    exact = attended(module, None, memory, others)
    single = group(torch.ones(2, 2, 4, 4, dtype=torch.bool), window=4)
    torch.testing.assert_close(attended(module, single, memory, others), exact)
    assert "forward" not in vars(module)
    pooled = group(torch.zeros(2, 2, 4, 4, dtype=torch.bool), window=2)
    assert (attended(module, pooled, memory, others) - exact).abs().max() > 1e-3


def test_attention_to_groups_by_the_formula() -> None:
    """n exp(q mean(R k)) mean(v), with every key's rotation R by its own place."""
    from sam2.modeling.position_encoding import apply_rotary_enc, compute_axial_cis

    module, others = attention(heads=1), 3
    memory = torch.randn(2, 2 * 16 + others, 8)
    kept = flags(5, 2, 2, 4, 4)
    query = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, v = module.q_proj(query), module.k_proj(memory), module.v_proj(memory)
        places = compute_axial_cis(dim=16, end_x=4, end_y=4)
        q, rotated = apply_rotary_enc(
            q[:, None], k[:, None, :32], freqs_cis=places, repeat_freqs_k=True
        )
        k = torch.cat([rotated[:, 0], k[:, 32:]], 1)
        expected = []
        for bank in range(2):
            windows = [(s, y // 2, x // 2) for s in range(2) for y in range(4) for x in range(4)]
            sets: dict[Any, list[int]] = {}
            for token, window in enumerate(windows):
                own = bool(kept[bank].flatten()[token])
                sets.setdefault(token if own else window, []).append(token)
            sets |= {-1 - token: [32 + token] for token in range(others)}
            keys = torch.stack([k[bank, rows].mean(0) for rows in sets.values()])
            values = torch.stack([v[bank, rows].mean(0) for rows in sets.values()])
            sizes = torch.tensor([len(rows) for rows in sets.values()])
            mass = sizes * torch.exp(q[bank, 0] @ keys.T / 4)
            expected.append(mass / mass.sum(-1, keepdim=True) @ values)
        out = module.out_proj(torch.stack(expected))
    found = attended(module, group(kept, window=2), memory, others)
    torch.testing.assert_close(found, out, atol=1e-5, rtol=1e-5)


def test_equal_neighbours_lose_nothing() -> None:
    """Without rotation, memories that are constant in each window give the exact result."""
    from sam2.modeling.sam.transformer import Attention

    torch.manual_seed(0)
    module = Attention(embedding_dim=16, num_heads=2, kv_in_dim=8).eval()
    coarse = torch.randn(2, 8, 2, 2)
    memory = F.interpolate(coarse, scale_factor=2.0).flatten(2).transpose(1, 2)
    query = torch.randn(2, 5, 16)
    with torch.no_grad():
        exact = module(q=query, k=memory, v=memory)
        with grouped([module], group(torch.zeros(2, 1, 4, 4, dtype=torch.bool), window=2)):
            torch.testing.assert_close(module(q=query, k=memory, v=memory), exact)


def test_modules_are_themselves_again_after_an_error() -> None:
    module = attention()
    with (
        pytest.raises(RuntimeError),
        grouped([module], group(torch.zeros(1, 1, 4, 4, dtype=torch.bool), window=2)),
    ):
        module(q=torch.ones(1, 16, 3), k=torch.ones(1, 16, 8), v=torch.ones(1, 16, 8))
    assert "forward" not in vars(module)


@pytest.mark.parametrize("pointers", [False, True])
@pytest.mark.parametrize("memory", ["pooled", "foreground"])
def test_the_order_of_supports_does_not_matter(
    toys: Any,
    models: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    pointers: bool,
    memory: str,
) -> None:
    # On a grid of 4 x 4 nothing would be left to group.
    monkeypatch.setattr("medretrieval.segmentation.tokens.MARGIN", 0)
    segmenter = toys.as_segmenter(models(pointers))
    supports, query = toys.supports(3), toys.picture(99)[0]
    exact = segmenter.segment(query, supports, **PLAIN, pointers="equal")
    first = segmenter.segment(query, supports, **PLAIN, pointers="equal", memory=memory)
    second = segmenter.segment(query, supports[::-1], **PLAIN, pointers="equal", memory=memory)
    np.testing.assert_array_equal(first.logits, second.logits)
    assert 1e-4 < np.abs(first.logits - exact.logits).max()


def test_tracked_slices_keep_their_own_foreground(
    toys: Any, models: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompted frames are attended to first, then tracked ones, in whatever order they come."""
    monkeypatch.setattr("medretrieval.segmentation.tokens.MARGIN", 0)
    network = toys.as_segmenter(models(True)).network
    *supports, query = network.encode([toys.picture(seed)[0] for seed in range(5)])
    memories = []
    for number, encoding in enumerate(supports):
        mask = np.zeros((64, 64), np.bool_)
        mask[16 * number : 16 * number + 16, 16 * number : 64] = True
        memories += network.remember(encoding, [mask])
    distances = [2, None, 1, None]
    results = [
        network.segment(
            query,
            [[memories[k] for k in order]],
            memory="foreground",
            distances=[distances[k] for k in order],
        )
        for order in ([0, 1, 2, 3], [1, 3, 0, 2], [2, 3, 1, 0])
    ]
    assert len({len(m.foreground.nonzero()) for m in memories}) == 4
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("memory", ["pooled", "foreground"])
def test_windows_of_one_token_give_sam2s_own_result(
    toys: Any, models: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """The whole network, with object pointers, several labels and absent ones."""
    monkeypatch.setattr("medretrieval.segmentation.tokens.WINDOW", 1)
    segmenter = toys.as_segmenter(models(True))
    supports, query = [*toys.supports(2), *toys.supports(1, labels=1)], toys.picture(99)[0]
    exact = segmenter.segment(query, supports, **PLAIN)
    found = segmenter.segment(query, supports, **PLAIN, memory=memory)
    np.testing.assert_allclose(found.logits, exact.logits, atol=1e-4, rtol=0)


def test_memories_know_where_their_label_is(toys: Any) -> None:
    from sam2.modeling.sam2_base import SAM2Base

    network = toys.as_segmenter(toys.small_model(SAM2Base, pointers=False, config=MICRO)).network
    masks = np.zeros((2, 192, 192), np.bool_)
    masks[0, 20:40, 100] = True
    encoding = network.encode([toys.picture(1, (192, 192))[0]])[0]
    there, nowhere = network.remember(encoding, masks)
    assert there.foreground.nonzero().tolist() == [[1, 6], [2, 6]]
    assert not nowhere.foreground.any()
