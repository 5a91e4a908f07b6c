"""What a name means: a row of the table, or any other model by the library that holds it.

    dinov2-base                       a registered embedder
    hf:facebook/dinov2-large          a vision model of transformers, from the Hub
    timm:convnext_tiny.in12k          a model of timm
    open_clip:ViT-B-32/laion2b_e16    the image side of a model of open_clip
    file:ours.json                    weights of your own, described by a few lines of JSON

A revision may follow after "@" for hf:, as hf:org/repo@commit.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medretrieval.embedders import weights as stored_weights
from medretrieval.embedders.packages import require
from medretrieval.embedders.preprocessor_config import read_json
from medretrieval.embedders.registry import REGISTRY
from medretrieval.embedders.rows.common import OPEN_CLIP, TIMM
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError, UsageError, unknown_name

LIST_COMMAND = "medretrieval embedders"


class Family(NamedTuple):
    """A library whose models can be named.

    Attributes:
        describe: "module:function" that makes a specification of what follows the prefix, given
            a local folder or file that is to be used instead of the published weights, or None.
        requires: packages, as pip takes them.
    """

    describe: str
    requires: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "hf": Family("medretrieval.embedders.any_transformers:describe", ("transformers",)),
    "timm": Family("medretrieval.embedders.timm_models:describe", TIMM),
    "open_clip": Family("medretrieval.embedders.open_clip_models:describe", OPEN_CLIP),
}
FILE = "file"

# What a JSON specification may say besides `like` and `weights`.
_JSON_FIELDS = frozenset(
    {
        "name", "dim", "input_size", "resize", "resize_to", "crop_rounding", "interpolation",
        "mean", "std", "pooling", "options", "license", "note",
    }
)  # fmt: skip


def find(name: str, local: Path | None = None) -> tuple[EmbedderSpec, Path | None]:
    """The specification of `name`, and the local weights that it names itself, if any.

    Args:
        local: weights to use instead of the published ones; some names are described by them.

    Raises:
        UsageError: there is no such embedder.
        InputError: a description cannot be used.
        UnavailableError: a package or the description on the Hub cannot be had.
    """
    family, colon, reference = name.partition(":")
    if colon and family == FILE:
        return _from_json(reference, local)
    if colon and family in FAMILIES:
        describe, requires = FAMILIES[family]
        require(name, requires)
        module, _, function = describe.partition(":")
        spec: EmbedderSpec = getattr(importlib.import_module(module), function)(reference, local)
        return spec, None
    if colon:
        raise unknown_name("kind of embedder", family, [*FAMILIES, FILE], LIST_COMMAND)
    if name not in REGISTRY:
        raise unknown_name("embedder", name, REGISTRY, LIST_COMMAND)
    return REGISTRY[name], None


def _from_json(reference: str, local: Path | None) -> tuple[EmbedderSpec, Path]:
    """A specification "like" another one, with weights beside it.

    An index stores the name of the JSON file only, so that it tells nothing about a machine; to
    search it the file is found in the folder for local weights, or given as the weights.
    """
    path = Path(reference).expanduser()
    if local is not None and local.suffix == ".json":
        path = local
    elif not path.exists() and not path.is_absolute():
        path = stored_weights.local_folder() / path
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; expected a JSON file that describes an embedder, as in "
            f"file:ours.json, there or in {stored_weights.local_folder()}"
        )
    stored = read_json(path)
    like, weights = stored.pop("like", None), stored.pop("weights", None)
    if not isinstance(like, str) or not isinstance(weights, str):
        raise InputError(
            f'{path} says nothing usable under "like" and "weights"; expected the name of the '
            "embedder that it resembles, and a path relative to the JSON file"
        )
    unknown = sorted(set(stored) - _JSON_FIELDS)
    if unknown:
        raise InputError(
            f"{path} has {', '.join(unknown)}; expected like, weights and any of "
            f"{', '.join(sorted(_JSON_FIELDS))}"
        )
    if like.startswith(f"{FILE}:"):
        raise InputError(f"{path} is like another JSON file; name an embedder that is none")
    location = local if local is not None and local != path else path.parent / weights
    base, _ = find(like, location)
    return _changed(base, stored, path), location


def _changed(base: EmbedderSpec, stored: dict[str, Any], path: Path) -> EmbedderSpec:
    for field in ("mean", "std"):
        if field in stored:
            stored[field] = tuple(stored[field]) if isinstance(stored[field], list) else None
    if "options" in stored:
        stored["options"] = {**base.options, **stored["options"]}
    if "input_size" in stored and stored.get("resize", base.resize) != "crop":
        stored.setdefault("resize_to", stored["input_size"])
    stored.setdefault("note", f"described by {path.name}")
    try:
        return dataclasses.replace(
            base,
            **{
                **stored,
                "name": f"{FILE}:{path.name}",
                "source": "file",
                "weights": stored.get("name", path.stem),
                "papers": (),
                "license": stored.get("license", "unknown"),
            },
        )
    except (TypeError, UsageError) as error:
        raise InputError(f"{path} describes no usable embedder: {error}") from error
