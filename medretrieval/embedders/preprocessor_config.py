"""What preprocessor_config.json beside the weights says, in the terms of a specification."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from medretrieval.embedders.spec import PREPROCESSOR_FILE, EmbedderSpec, Interpolation, Resize
from medretrieval.errors import InputError

_LOG = logging.getLogger(__name__)

# Numbers that Pillow and transformers give their filters.
_FILTERS: Mapping[Any, Interpolation] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}

# Image processors of transformers that do what a specification can say. The others pad, tile,
# swap channels or rescale in ways of their own.
_CUTTING = frozenset({"Bit", "CLIP", "ChineseCLIP", "DeiT"})  # do_center_crop unless it is denied
_BY_SHORTER_SIDE = frozenset({"", "Bit", "CLIP", "ChineseCLIP"})  # what a bare number as size means
_KINDS = _CUTTING | _BY_SHORTER_SIDE | {"Beit", "ConvNext", "DINOv3ViT", "Sam", "Siglip", "ViT"}

# transformers, ConvNextImageProcessor: pictures of this side or more are squashed, not cut.
_CONVNEXT_WHOLE = 384
_CONVNEXT_CROP = 224 / 256

# Far beyond any of them, and small enough for memory.
_MAX_SIDE = 4096

_EXPECTED = (
    "expected resizing (squash, or shorter side and centre crop, or longer side and padding) by a "
    "bilinear, bicubic or lanczos filter, rescaling by 1/255 and normalisation"
)


class Geometry(NamedTuple):
    """How a picture gets the size that the network wants, as in `EmbedderSpec`."""

    resize: Resize
    resize_to: int
    input_size: int


def preprocessing_of_folder(spec: EmbedderSpec, folder: Path) -> EmbedderSpec:
    """`spec` with the preprocessing that preprocessor_config.json in `folder` asks for, if any.

    What `spec.fixed` names stays as it is.

    Raises:
        InputError: the file asks for something this library does not do.
    """
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        return spec
    changes = described_preprocessing(path)
    if "resize" not in changes:
        changes |= {"resize": spec.resize, "resize_to": spec.resize_to}
    changes = {field: value for field, value in changes.items() if field not in spec.fixed}
    if set(spec.fixed) & set(Geometry._fields):  # they only make sense together
        changes = {k: v for k, v in changes.items() if k not in Geometry._fields}
    changed = dataclasses.replace(spec, **changes)
    differs = [
        f"{key} {value}, not {spec.preprocessing[key]}"
        for key, value in changed.preprocessing.items()
        if value != spec.preprocessing[key]
    ]
    if differs:
        _LOG.warning("%s: %s takes precedence: %s", spec.name, path, "; ".join(differs))
    return changed


def described_preprocessing(path: Path) -> dict[str, Any]:
    """What the file at `path` says, as fields of `EmbedderSpec`; what it leaves out is left out.

    Fields are resize, resize_to and input_size (all or none), interpolation, mean and std.

    Raises:
        InputError: it asks for something this library does not do, or cannot be read.
    """
    # transformers writes null for what a processor does not use.
    stored = {key: value for key, value in read_json(path).items() if value is not None}
    kind = _kind(stored)
    refused = [
        f"{key} {stored[key]}"
        for key, accepted in (
            ("do_resize", (True,)),
            ("do_normalize", (True,)),
            ("do_rescale", (True,)),
            ("do_pad", (True,) if kind == "Sam" else (False,)),
            ("resample", tuple(_FILTERS)),
        )
        if key in stored and stored[key] not in accepted
    ]
    if kind not in _KINDS:
        refused.insert(0, f"an image processor of the kind {kind}")
    if "crop_pct" in stored and kind != "ConvNext":
        refused.append(f"crop_pct {stored['crop_pct']}")
    if abs(_number(stored, "rescale_factor", 1 / 255, path) * 255 - 1) > 1e-6:
        refused.append(f"rescale_factor {stored['rescale_factor']}")
    if refused:
        _refuse(path, "; ".join(refused))
    fields: dict[str, Any] = {}
    if "size" in stored:
        fields |= _geometry(stored, kind, path)._asdict()
    if "resample" in stored:
        fields["interpolation"] = _FILTERS[stored["resample"]]
    for key, field in (("image_mean", "mean"), ("image_std", "std")):
        if key in stored:
            fields[field] = _channels(stored[key], path)
    return fields


def _kind(stored: Mapping[str, Any]) -> str:
    """The class of the image processor without what differs between versions, "" if not said."""
    name = str(stored.get("image_processor_type") or stored.get("feature_extractor_type") or "")
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    return name


def _geometry(stored: Mapping[str, Any], kind: str, path: Path) -> Geometry:
    size = stored["size"]
    named = frozenset(size) if isinstance(size, Mapping) else frozenset()
    side = _side(size, path)
    cut = bool(stored.get("do_center_crop", kind in _CUTTING))
    if kind == "Sam":
        if cut or named not in ({"longest_edge"}, frozenset()):
            _refuse(path, f"size {size} with do_center_crop {cut}")
        if _side(stored.get("pad_size", side), path) != side:
            _refuse(path, f"pad_size {stored['pad_size']} with size {size}")
        return Geometry("pad-end", side, side)
    if kind == "ConvNext":
        if cut or named not in ({"shortest_edge"}, frozenset()):
            _refuse(path, f"size {size} with do_center_crop {cut}")
        if side >= _CONVNEXT_WHOLE:
            return Geometry("squash", side, side)
        part = _number(stored, "crop_pct", _CONVNEXT_CROP, path)
        if not 0 < part <= 1:
            _refuse(path, f"crop_pct {part}")
        return Geometry("crop", int(side / part), side)
    shorter = "shortest_edge" in named or (cut and not named and kind in _BY_SHORTER_SIDE)
    if "longest_edge" in named or (shorter and not cut):
        _refuse(path, f"size {size} with do_center_crop {cut}")
    if not cut:
        return Geometry("squash", side, side)
    inner = _side(stored.get("crop_size"), path)
    if inner > side:
        _refuse(path, f"crop_size {inner}, larger than size {side}")
    if shorter:
        return Geometry("crop", side, inner)
    return Geometry("squash" if inner == side else "squash-crop", side, inner)


def _side(size: Any, path: Path) -> int:
    """One side in pixels from the ways in which preprocessor_config.json gives a size."""
    values = list(size.values()) if isinstance(size, Mapping) else [size]
    first = values[0] if values else None
    if isinstance(first, int) and 0 < first <= _MAX_SIDE:
        if all(value == first for value in values):
            return first
    raise InputError(
        f"{path} gives the size {size}; expected one side, or equal height and width, of at most "
        f"{_MAX_SIDE} pixels"
    )


def _channels(values: Any, path: Path) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} gives {values} for 3 channels; expected 3 numbers") from error
    return red, green, blue


def _number(stored: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = stored.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(path, f"{key} {value!r}")
    return float(value)


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path} asks for a preprocessing that is not supported ({what}); {_EXPECTED}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        InputError: it cannot be read, or is no object.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({error}); correct it or fetch it again"
        ) from error
    if not isinstance(stored, dict):
        raise InputError(f"{path} holds {type(stored).__name__}, not a JSON object; fetch it again")
    return stored
