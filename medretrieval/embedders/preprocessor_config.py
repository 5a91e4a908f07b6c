"""What preprocessor_config.json beside the weights says, in the terms of a specification."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medretrieval.embedders.spec import PREPROCESSOR_FILE, EmbedderSpec
from medretrieval.errors import InputError

_LOG = logging.getLogger(__name__)

# Numbers that Pillow and transformers give their filters.
_FILTERS: Mapping[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


def preprocessing_of_folder(spec: EmbedderSpec, folder: Path) -> EmbedderSpec:
    """`spec` with the preprocessing that preprocessor_config.json in `folder` asks for, if any.

    Raises:
        InputError: the file asks for something this library does not do.
    """
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        return spec
    stored = read_json(path)
    crop = bool(stored.get("do_center_crop", False))
    resize_to = _side(stored.get("size", spec.resize_to), path)
    changed = dataclasses.replace(
        spec,
        resize="crop" if crop else "squash",
        resize_to=resize_to,
        input_size=_side(stored.get("crop_size", spec.input_size), path) if crop else resize_to,
        interpolation=_FILTERS.get(stored.get("resample"), spec.interpolation),
        mean=_channels(stored.get("image_mean", spec.mean), path),
        std=_channels(stored.get("image_std", spec.std), path),
    )
    refused = [
        f"{key} {stored[key]}"
        for key, accepted in (
            ("do_resize", (True,)),
            ("do_normalize", (True,)),
            ("do_rescale", (True,)),
            ("resample", tuple(_FILTERS)),
        )
        if key in stored and stored[key] not in accepted
    ]
    if abs(float(stored.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        refused.append(f"rescale_factor {stored['rescale_factor']}")
    size = stored.get("size")
    if isinstance(size, Mapping) and ("shortest_edge" in size) != crop:
        refused.append(f"size {dict(size)} with do_center_crop {crop}")
    if refused:
        raise InputError(
            f"{path} asks for a preprocessing that is not supported ({'; '.join(refused)}); "
            "expected resizing (squash, or shorter side and centre crop) by a bilinear or bicubic "
            "filter, rescaling by 1/255 and normalisation"
        )
    differs = [
        f"{key} {value}, not {spec.preprocessing[key]}"
        for key, value in changed.preprocessing.items()
        if value != spec.preprocessing[key]
    ]
    if differs:
        _LOG.warning("%s: %s takes precedence: %s", spec.name, path, "; ".join(differs))
    return changed


def _side(size: Any, path: Path) -> int:
    """One side in pixels from the ways in which preprocessor_config.json gives a size."""
    values = set(size.values()) if isinstance(size, Mapping) else {size}
    if len(values) == 1:
        (value,) = values
        if isinstance(value, int) and value > 0:
            return value
    raise InputError(f"{path} gives the size {size}; expected one side, or equal height and width")


def _channels(values: Any, path: Path) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} gives {values} for 3 channels; expected 3 numbers") from error
    return red, green, blue


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        InputError: it cannot be read, or is no object.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    if not isinstance(stored, dict):
        raise InputError(f"{path} holds {type(stored).__name__}, not a JSON object; fetch it again")
    return stored
