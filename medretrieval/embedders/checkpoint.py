"""Weights in files: read without unpickling code, compared with the network, hashed."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medretrieval.embedders.spec import LOCAL_FILE, EmbedderSpec
from medretrieval.errors import InputError
from medretrieval.types import EmbedderIdentity

MAX_LISTED = 8


def weights_file(spec: EmbedderSpec, location: Path) -> Path:
    """The weights in `location`: itself if it is a file, else the first of `spec.filenames` in it.

    Raises:
        InputError: the folder holds none of them, or not the `config_files` of the specification.
    """
    if location.is_file() and not spec.config_files:
        return location
    wanted = " and ".join([*spec.config_files, " or ".join(spec.filenames)])
    if not location.is_dir():
        raise InputError(f"{location} is no folder; {spec.name} needs one with {wanted}")
    found = [location / name for name in spec.filenames if (location / name).is_file()]
    if not found or not all((location / name).is_file() for name in spec.config_files):
        raise InputError(f"{location} is incomplete; {spec.name} needs a folder with {wanted}")
    return found[0]


def read_tensors(path: Path, *, sections: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Read a .safetensors file, or a torch file restricted to tensors (`weights_only`).

    Args:
        sections: keys under which training scripts put the state dict ("state_dict", "teacher",
            ...): the first that the file has is taken, the file itself if it has none of them.

    Raises:
        InputError: it is missing, truncated, or holds anything but named tensors.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected a .safetensors, .pth, .pt or .bin file")
    refuse_compressed(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds of failure for damaged files
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}); expected safetensors, or "
            "a torch file that holds tensors only (nothing else is ever unpickled). Fetch it "
            "again; of a whole model save model.state_dict()"
        ) from error
    if isinstance(tensors, Mapping):
        section = next((name for name in sections if isinstance(tensors.get(name), Mapping)), None)
        tensors = tensors if section is None else tensors[section]
    if not isinstance(tensors, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise InputError(
            f"{path} holds no plain table of named tensors; expected a state dict saved alone"
            + (f" or under {', '.join(sections)}" if sections else "")
        )
    return dict(tensors)


def refuse_compressed(path: Path) -> None:
    """Refuse a torch file that would grow in memory: torch itself compresses nothing.

    Raises:
        InputError: what the file holds is much larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError):
        return  # another format, or damaged: the reader says so
    if held > 2 * path.stat().st_size + 2**20:
        raise InputError(
            f"{path} is compressed and would need {held / 1e6:.0f} MB of memory for "
            f"{path.stat().st_size / 1e6:.1f} MB on the disk; expected a file as torch.save writes "
            "it. Fetch it again, or store it as safetensors"
        )


def without_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it; all of them if none does."""
    inside = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    return inside or dict(tensors)


def load_exactly(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    spec: EmbedderSpec,
    where: object,
) -> None:
    """Put `tensors` into `network`, which must have exactly these names and shapes.

    Raises:
        InputError: it has others; the message lists the difference.
    """
    own = network.state_dict()
    refuse_other_weights(
        spec,
        where,
        difference(
            [name for name in own if name not in tensors],
            [name for name in tensors if name not in own],
            [
                f"{name} {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
                for name in own
                if name in tensors and tensors[name].shape != own[name].shape
            ],
        ),
    )
    network.load_state_dict(dict(tensors))


def load_but_counters(
    network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], spec: EmbedderSpec, where: object
) -> dict[str, torch.Tensor]:
    """`load_exactly`, whether or not the file counts batches of training (BatchNorm's tensors).

    Returns:
        The tensors that features depend on: all but these counts.
    """
    counter = "num_batches_tracked"
    used = {name: tensor for name, tensor in tensors.items() if not name.endswith(counter)}
    own = {name: tensor for name, tensor in network.state_dict().items() if name.endswith(counter)}
    load_exactly(network, {**used, **own}, spec, where)
    return used


def identity_of(
    spec: EmbedderSpec,
    tensors: Mapping[str, torch.Tensor],
    revision: str,
    *,
    architecture: Mapping[str, Any] | None = None,
) -> EmbedderIdentity:
    """What an index stores of an embedder.

    Args:
        tensors: those that the features depend on.
        architecture: what the features depend on besides them and `spec.options`.
    """
    # Which output is the feature, where an option says nothing else, is the pooling already.
    network = {o: value for o, value in spec.options.items() if o != "feature" and value != {}}
    network |= {"config": dict(architecture)} if architecture else {}
    return EmbedderIdentity(
        name=spec.name,
        weights=LOCAL_FILE if revision == LOCAL_FILE else spec.weights,
        revision=revision,
        weights_sha256=hash_tensors(tensors),
        preprocessing=spec.preprocessing,
        pooling=spec.pooling,
        dim=spec.dim,
        network=json.loads(json.dumps(network)),
    )


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names (sorted), dtypes, shapes and bytes: independent of the file's layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def difference(
    missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]
) -> str | None:
    """One line that says how a file differs from what the network needs, None if it does not."""
    parts = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:MAX_LISTED])}"
        + (", ...)" if len(names) > MAX_LISTED else ")")
        for what, names in (
            ("missing", missing),
            ("not expected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    return "; ".join(parts) or None


def refuse_other_weights(spec: EmbedderSpec, where: object, differs: str | None) -> None:
    """Raise InputError if `differs` says that the tensors of `where` are not those of `spec`."""
    if differs:
        raise InputError(
            f"{where} does not hold the weights of {spec.name}: tensors {differs}; "
            f"expected exactly those of {spec.weights}"
        )
