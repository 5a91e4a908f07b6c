"""Build a network of the SAM 2 family and put in weights: bundled, from the Hub, or a file's."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medretrieval.errors import InputError, UnavailableError, UsageError
from medretrieval.segmentation import efficienttam, micro
from medretrieval.segmentation.cache import MemoryCache
from medretrieval.segmentation.checkpoints import fetch
from medretrieval.segmentation.options import Precision
from medretrieval.segmentation.registry import (
    DEFAULT_SEGMENTER,
    REGISTRY,
    SegmenterSpec,
    bundled_file,
    get_spec,
)
from medretrieval.segmentation.sam2_backend import Sam2Network, weights_digest
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.squares import imagenet

logger = logging.getLogger(__name__)

_NORMALISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "imagenet": imagenet,
    "per-picture": micro.standardise,
}
_SHOWN = 5
# hydra, which reads sam2's configuration files, has one global state.
_HYDRA = threading.Lock()


def load_segmenter(
    name: str | None = None,
    *,
    device: str = "cpu",
    checkpoint: Path | str | None = None,
    image_size: int | None = None,
    precision: Precision = "float32",
    cache: MemoryCache | None = None,
) -> Segmenter:
    """Load a segmenter.

    Args:
        name: a name of `REGISTRY`. Default: `sam2-micro`, or what fits `checkpoint` if given.
        device: "cpu", "cuda", "cuda:1", "mps".
        checkpoint: a local file with weights of this family instead of the spec's own: `.pt` as
            published ({"model": state dict}, or the state dict alone), or `.safetensors`.
        image_size: side of the network's square input in pixels, a multiple of 32, instead of the
            spec's.
        precision: of the network's matrix products and convolutions. "bfloat16" is faster on
            processors and GPUs that have instructions for it, and changes masks by rounding.
        cache: where memories are kept; default is 512 MiB of this process's own memory.

    Raises:
        UsageError: an unknown name, device, precision or image size.
        InputError: the checkpoint is not a checkpoint, or of another network; the message lists
            what differs.
        UnavailableError: the weights, the package or the device cannot be had on this machine.
    """
    target = _device(device)
    if image_size is not None and (image_size < 32 or image_size % 32):
        raise UsageError(f"image size {image_size}: expected a multiple of 32 pixels")
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r}: expected float32 or bfloat16")
    spec = get_spec(name) if name is not None else None
    if checkpoint is not None:
        path = Path(checkpoint)
        state = read_state(path)
        spec = infer_spec(state, path) if spec is None else spec
    else:
        spec = get_spec(DEFAULT_SEGMENTER) if spec is None else spec
        path = bundled_file(spec) if spec.bundled else fetch(spec)
        state = read_state(path)
    model = build(spec, image_size=image_size)
    put(state, model, spec=spec, path=path)
    network = Sam2Network(
        model.to(target),
        normalise=_NORMALISE[spec.normalisation],
        digest=weights_digest(model.state_dict()),
        precision=precision,
    )
    logger.info("loaded %s from %s on %s", spec.name, path.name, target)
    return Segmenter(network, spec, cache=cache)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type not in available:
        raise UsageError(f"unknown device {name!r}; expected cpu, cuda or mps")
    if not available[device.type]:
        raise UnavailableError(f"device {name!r} is not available on this machine; use cpu")
    return device


def build(spec: SegmenterSpec, *, image_size: int | None = None, cls: str | None = None) -> Any:
    """Build the network of `spec` with random weights, on the CPU, in evaluation mode.

    Args:
        image_size: side of the input in pixels instead of the spec's.
        cls: dotted name of a subclass of `SAM2Base` to build (architecture "sam2" only).

    Raises:
        UnavailableError: the sam2 package cannot be imported.
    """
    size = spec.image_size if image_size is None else image_size
    try:
        from sam2.build_sam import build_sam2
    except ImportError as error:
        raise UnavailableError(
            f"{spec.name} needs the package sam2 ({error}); pip install sam2"
        ) from error
    if spec.architecture == "micro":
        return micro.build_micro(image_size=size)
    if spec.architecture == "efficienttam":
        return efficienttam.build_efficienttam(
            embed_dim=spec.embed_dim, depth=spec.blocks, image_size=size
        )
    overrides = [f"++model.image_size={size}"]
    if cls is not None:
        overrides.append(f"++model._target_={cls}")
    with _HYDRA:
        return build_sam2(spec.config, device="cpu", hydra_overrides_extra=overrides)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or `.pt` file; nothing in it is executed.

    Raises:
        InputError: no such file, damaged, or something else than weights.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint file {path}; expected a .pt or .safetensors file")
    wanted = "expected .safetensors, or .pt as SAM 2 publishes it ({'model': weights})"
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is damaged, or holds Python objects other than weights, which are "
            f"not loaded because they could run code; {wanted}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({error}); {wanted}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    tensors = isinstance(loaded, dict) and all(isinstance(v, Tensor) for v in loaded.values())
    if not tensors or not loaded:
        raise InputError(f"checkpoint {path} holds no weights; {wanted}")
    return dict(loaded)


def infer_spec(state: Mapping[str, Tensor], path: Path) -> SegmenterSpec:
    """Find the member of the family that a state dict belongs to, by its encoder's size.

    Of several of one size it is the one whose published file has the same name, or the first.

    Raises:
        InputError: it is none of them.
    """
    patch = state.get("image_encoder.trunk.patch_embed.proj.weight")
    prefix = "image_encoder.trunk.blocks."
    blocks = len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})
    embed_dim = 0 if patch is None else patch.shape[0]
    fitting = [s for s in REGISTRY.values() if (s.embed_dim, s.blocks) == (embed_dim, blocks)]
    if fitting:
        named = [spec for spec in fitting if spec.filename == path.name]
        chosen = (named or fitting)[0]
        if len(fitting) > len(named) == 0:
            others = ", ".join(spec.name for spec in fitting[1:])
            logger.info(
                "%s is taken for %s; by its weights it may be %s", path, chosen.name, others
            )
        return chosen
    if any(key.startswith("spatial_perceiver.") for key in state):
        raise InputError(
            f"checkpoint {path} is of EdgeTAM, which cannot be used: the sam2 package has no class "
            "for its image encoder (RepViT) and for the perceiver that shortens its memories; "
            "expected a file of SAM 2.1, MedSAM2 or EfficientTAM"
        )
    sizes = ", ".join(f"{s.name} ({s.embed_dim}/{s.blocks})" for s in REGISTRY.values())
    raise InputError(
        f"checkpoint {path} is of no known SAM 2 network: first stage {embed_dim} channels wide, "
        f"{blocks} encoder blocks; expected one of {sizes}"
    )


def put(state: Mapping[str, Tensor], model: Any, *, spec: SegmenterSpec, path: Path) -> None:
    """Put `state` into `model`, every tensor of it and no other.

    Raises:
        InputError: names or shapes differ; the message lists the first few of each.
    """
    own = model.state_dict()
    problems = [
        _listing("missing", sorted(own.keys() - state.keys())),
        _listing("unexpected", sorted(state.keys() - own.keys())),
        _listing(
            "of another shape",
            [
                f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
                for key in sorted(own.keys() & state.keys())
                if own[key].shape != state[key].shape
            ],
        ),
    ]
    found = [problem for problem in problems if problem]
    if found:
        raise InputError(
            f"checkpoint {path} does not fit {spec.name}: {'; '.join(found)}. Choose the segmenter "
            "that the file belongs to (`medretrieval segmenters` lists them)"
        )
    bad = [key for key, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise InputError(f"checkpoint {path} has NaN or infinite weights: {bad[:_SHOWN]}")
    model.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in state.items()})


def _listing(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{more})"
