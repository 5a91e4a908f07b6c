"""The protocols of `medretrieval evaluate`."""

from __future__ import annotations

from collections.abc import Mapping

PROTOCOLS: Mapping[str, str] = {
    "few-shot": "segment every query of annotated sets by several methods and compare them: "
    "retrieved and random supports, numbers of supports, points, copied masks, multi-atlas fusion",
}
