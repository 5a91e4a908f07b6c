"""What papers report, to be shown beside what is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a paper's table.

    Attributes:
        source: paper and table.
        method: as the paper calls it.
        like: the method here that it corresponds to, as it is written on the command line.
        scores: label -> Dice as printed.
    """

    source: str
    method: str
    like: str
    scores: Mapping[str, float]


def _heart(source: str, method: str, like: str, *scores: float) -> Published:
    return Published(
        source=source,
        method=method,
        like=like,
        scores=dict(zip(("RV", "Myo", "LV"), scores, strict=True)),
    )


# RAFS: SAM 2 with Hiera-large, DINOv2-small with registers, 50 slices of 3 patients as database and
# 50 slices of 3 others as queries. Its table I has 16 supports, which is said by table III only.
PUBLISHED: Mapping[str, Sequence[Published]] = {
    "ACDC": (
        _heart("RAFS, table I", "Ours", "retrieved@16", 0.6729, 0.7757, 0.8472),
        _heart("RAFS, table III", "DINOv2, 8", "retrieved@8", 0.6529, 0.7538, 0.8183),
        _heart("RAFS, table III", "Random, 8", "random@8", 0.5801, 0.7046, 0.7796),
        _heart("RAFS, table III", "Random, 16", "random@16", 0.6684, 0.7774, 0.8402),
        _heart("RAFS, table I", "SAM 2 (1 Pos Point)", "points-1", 0.4146, 0.4565, 0.6612),
        _heart("RAFS, table I", "SAM 2 (2 Pos Points)", "points-2", 0.4268, 0.4604, 0.6610),
        _heart("RAFS, table I", "SAM 2 (1 Pos&Neg Points)", "points-1-neg", 0.4441, 0.4794, 0.6952),
        _heart("RAFS, table I", "SAM 2 (2 Pos&Neg Points)", "points-2-neg", 0.4133, 0.5004, 0.6801),
    ),
}
