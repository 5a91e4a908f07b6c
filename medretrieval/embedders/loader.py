"""From a name to a working embedder, and what works on this machine. Imports no torch itself."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any, Protocol, cast

from medretrieval import hub
from medretrieval.embedders import weights as stored_weights
from medretrieval.embedders.registry import REGISTRY
from medretrieval.embedders.spec import LOCAL_FILE, EmbedderSpec
from medretrieval.errors import InputError, UnavailableError, unknown_name
from medretrieval.types import Embedder

LIST_COMMAND = "medretrieval embedders"


class _Adapter(Protocol):
    def load(
        self,
        spec: EmbedderSpec,
        location: Path,
        *,
        revision: str,
        device: str,
        threads: int | None,
    ) -> Embedder: ...


def load_embedder(
    name: str | EmbedderSpec,
    *,
    device: str = "cpu",
    weights: Path | str | None = None,
    threads: int | None = None,
) -> Embedder:
    """Load an embedder by its name, or by a specification of your own.

    Weights are looked for on this machine first (installed package, Hub cache); the Hub is asked
    only for what is not there, and gives up after a few seconds.

    Args:
        name: a key of `REGISTRY`, or an `EmbedderSpec`.
        device: "cpu" or "cuda".
        weights: local weights instead of the published ones: a weights file for
            efficientnet-lite0, a folder with config.json and model.safetensors for the others.
        threads: cores to embed on; default is the number of torch's threads.

    Raises:
        UsageError: unknown name or device.
        UnavailableError: weights or a package cannot be had on this machine now.
        InputError: `weights` does not exist, is damaged, or is of another network.
    """
    spec = name if isinstance(name, EmbedderSpec) else get_spec(name)
    missing = missing_packages(spec)
    if missing:
        raise UnavailableError(
            f"embedder {spec.name} needs packages that are not installed: {', '.join(missing)}; "
            f"run `pip install {' '.join(missing)}`"
        )
    if weights is not None:
        location, revision = Path(weights).expanduser(), LOCAL_FILE
        if not location.exists():
            raise InputError(
                f"{location} does not exist; expected local weights of {spec.name}, "
                "or leave `weights` out for the published ones"
            )
    elif spec.source == "package":
        location, revision = bundled_file(spec), importlib.metadata.version(spec.weights)
    else:
        location, revision = stored_weights.fetch(spec)
    module, _, attribute = spec.adapter.partition(":")
    adapter = cast(_Adapter, getattr(importlib.import_module(module), attribute))
    return adapter.load(spec, location, revision=revision, device=device, threads=threads)


def get_spec(name: str) -> EmbedderSpec:
    """The registered specification called `name`.

    Raises:
        UsageError: there is none; the message names close matches.
    """
    if name not in REGISTRY:
        raise unknown_name("embedder", name, REGISTRY, LIST_COMMAND)
    return REGISTRY[name]


def status(spec: EmbedderSpec) -> str:
    """What keeps `spec` from working here, if anything; loads no torch and asks no network.

    Returns:
        "bundled": weights are installed with the packages.
        "cached": weights are complete in the Hub cache of this machine.
        "downloadable": the first use downloads them.
        "needs a local file": not cached and HF_HUB_OFFLINE is set; fetch them elsewhere.
        "missing package: pip install ...": a package is not installed.
    """
    missing = missing_packages(spec)
    if missing:
        return f"missing package: pip install {' '.join(missing)}"
    if spec.source == "package":
        return "bundled"
    if stored_weights.cached(spec) is not None:
        return "cached"
    return "needs a local file" if hub.offline() else "downloadable"


def list_embedders() -> list[dict[str, Any]]:
    """One JSON-able row per registered embedder, in the order of the table."""
    return [
        {
            "name": spec.name,
            "status": status(spec),
            "dim": spec.dim,
            "input": spec.input_size,
            "weights": spec.weights,
            "revision": spec.revision if spec.pinned else "not pinned",
            "license": spec.license,
            "paper": ", ".join(spec.papers),
            "size_mb": spec.size_mb,
            "pooling": spec.pooling,
            "preprocessing": spec.preprocessing,
            "note": spec.note,
        }
        for spec in REGISTRY.values()
    ]


def missing_packages(spec: EmbedderSpec) -> list[str]:
    """Packages of `spec.requires`, and torch, that are not installed, as pip names them."""
    return [package for package in ("torch", *spec.requires) if not _installed(package)]


def bundled_file(spec: EmbedderSpec) -> Path:
    """The weights file inside the installed package `spec.weights`.

    Raises:
        UnavailableError: the package is there without the file.
    """
    module = importlib.util.find_spec(spec.weights.replace("-", "_"))
    for folder in (module.submodule_search_locations or []) if module else []:
        for filename in spec.filenames:
            path = Path(folder) / filename
            if path.is_file():
                return path
    raise UnavailableError(
        f"package {spec.weights} is installed without {spec.filenames[0]}; "
        f"run `pip install --force-reinstall {spec.weights}=={spec.revision}`"
    )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
