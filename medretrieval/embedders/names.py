"""What a name means: a row of the table, or any other model by the library that holds it.

    dinov2-base                       a registered embedder
    hf:facebook/dinov2-large          a vision model of transformers, from the Hub
    timm:convnext_tiny.in12k          a model of timm
    open_clip:ViT-B-32/laion2b_e16    the image side of a model of open_clip
    file:ours.json                    weights of your own, described by a few lines of JSON

A revision may follow after "@" for repositories of the Hub: hf:org/repo@commit and
open_clip:hf-hub:org/repo@commit. Names joined by "+" are an ensemble,
so that the path of a JSON file can have no "+".
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from medretrieval.embedders import weights as stored_weights
from medretrieval.embedders.packages import require
from medretrieval.embedders.preprocessor_config import read_json
from medretrieval.embedders.registry import REGISTRY
from medretrieval.embedders.rows.common import OPEN_CLIP, TIMM
from medretrieval.embedders.spec import CROPPING, EmbedderSpec, Interpolation, Resize
from medretrieval.errors import InputError, UsageError, unknown_name
from medretrieval.folders import weights_dir

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


def _triple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_number, value))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 4096


def _text(value: Any) -> bool:
    return isinstance(value, str)


# What a JSON specification may say besides `like` and `weights`: a check, and what it expects.
_JSON_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "dim": (_size, "a length from 1 to 4096"),
    "input_size": (_size, "pixels, from 1 to 4096"),
    "resize": (get_args(Resize).__contains__, " or ".join(get_args(Resize))),
    "resize_to": (_size, "pixels, from 1 to 4096"),
    "crop_rounding": (("down", "even").__contains__, "down or even"),
    "interpolation": (get_args(Interpolation).__contains__, " or ".join(get_args(Interpolation))),
    "mean": (
        lambda value: _triple(value) and 0 <= min(value) and max(value) <= 1,
        "three numbers from 0 to 1, of intensities from 0 to 1",
    ),
    "std": (
        lambda value: _triple(value) and 0 < min(value) and max(value) <= 1,
        "three numbers above 0 and up to 1, of intensities from 0 to 1",
    ),
    "options": (lambda value: isinstance(value, dict), "an object"),
    "license": (_text, "text"),
    "note": (_text, "text"),
}


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
        local = local or stored_weights.local([name])
        describe, requires = FAMILIES[family]
        require(name, requires)
        module, _, function = describe.partition(":")
        spec: EmbedderSpec = getattr(importlib.import_module(module), function)(reference, local)
        return spec, None
    if colon:
        raise unknown_name("kind of embedder", family, [*FAMILIES, FILE], LIST_COMMAND)
    if not name:
        raise UsageError("the name of an embedder is empty; `medretrieval embedders` lists all")
    if name.endswith(".json"):
        raise UsageError(f"{name!r} is no name of an embedder; a description is file:{name}")
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
        path = weights_dir() / path
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; expected a JSON file that describes an embedder, as in "
            f"file:ours.json, there or in {weights_dir()}; or give its path as weights=ours.json "
            "(--embedder-weights ours.json)"
        )
    stored = read_json(path)
    like, weights = stored.pop("like", None), stored.pop("weights", None)
    if not isinstance(like, str) or not isinstance(weights, str):
        raise InputError(
            f'{path} says nothing usable under "like" and "weights"; expected the name of the '
            "embedder that it resembles, and a path relative to the JSON file"
        )
    unknown = sorted(set(stored) - set(_JSON_FIELDS))
    if unknown:
        raise InputError(
            f"{path} has {', '.join(unknown)}; expected like, weights and any of "
            f"{', '.join(_JSON_FIELDS)}"
        )
    if like.startswith(f"{FILE}:"):
        raise InputError(f"{path} is like another JSON file; name an embedder that is none")
    beside = path.parent / Path(weights).expanduser()
    location = local if local is not None and local != path else beside
    base, _ = find(like, location)
    return _changed(base, stored, path), location


def _changed(base: EmbedderSpec, stored: Mapping[str, Any], path: Path) -> EmbedderSpec:
    wrong = [
        f"{field} {stored[field]!r}, expected {expected}"
        for field, (fits, expected) in _JSON_FIELDS.items()
        if field in stored and not fits(stored[field])
    ]
    if wrong:
        raise InputError(f"{path} has {'; '.join(wrong)}")
    unknown = sorted(set(stored.get("options", {})) - set(base.options))
    if unknown:
        raise InputError(
            f"{path} has the options {', '.join(unknown)}; {base.name} has "
            f"{', '.join(base.options) or 'none'}"
        )
    changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    changes["options"] = {**base.options, **stored.get("options", {})}
    changes["pooling"] = _pooling(base, changes["options"])
    if stored.get("resize", base.resize) not in CROPPING:
        changes.setdefault("resize_to", stored.get("input_size", base.input_size))
    changes |= {
        "fixed": tuple(stored),
        "name": f"{FILE}:{path.name}",
        "source": "file",
        "weights": path.stem,
        "papers": (),
        "license": stored.get("license", "unknown"),
        "note": stored.get("note", f"described by {path.name}, like {base.name}"),
    }
    try:
        return dataclasses.replace(base, **changes)
    except UsageError as error:
        raise InputError(f"{path} describes no usable embedder: {error}") from error


def _pooling(base: EmbedderSpec, options: Mapping[str, Any]) -> str:
    """What the feature is called that `options` choose, of a network like that of `base`."""
    if "feature" in options:
        return str(options["feature"])
    head = options.get("head")
    if head == base.options.get("head"):
        return base.pooling
    like = (spec for spec in REGISTRY.values() if spec.weights == base.weights)
    return next((spec.pooling for spec in like if spec.options.get("head") == head), f"{head}")
