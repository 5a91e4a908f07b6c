"""The segmenters there are: one frozen spec each, in a plain table. Loads no torch, no network."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from medretrieval import hub
from medretrieval.errors import unknown_name
from medretrieval.segmentation.options import SegmentationOptions

DEFAULT_SEGMENTER = "sam2-micro"
LIST_COMMAND = "medretrieval segmenters"

# Frozen, so it can be shared by specs.
_WHOLE_PICTURES = SegmentationOptions()
# Measured; see weights/sam2_micro.md.
_MICRO = SegmentationOptions(
    crop="supports", crop_margin=0.25, closer=True, tiles="auto", threshold=0.27
)

Normalisation = Literal["imagenet", "per-picture"]
Architecture = Literal["sam2", "micro", "efficienttam"]


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec:
    """One set of weights of the SAM 2 family, and how it is used.

    Attributes:
        name: what users type.
        weights: where the weights come from: "bundled" or a Hub id.
        filename: the checkpoint's file name there.
        revision: branch, tag or commit on the Hub; "-" for bundled weights.
        architecture: what builds the network: "sam2" (the sam2 package, from `config`) or a
            module of `medretrieval.segmentation`.
        config: configuration file inside the sam2 package; None for other architectures.
        image_size: side of the network's square input in pixels.
        normalisation: "imagenet" (fixed mean and standard deviation) or "per-picture".
        embed_dim: channels of the image encoder's first block.
        blocks: number of its blocks; with `embed_dim` it tells the family's members apart, but for
            those of one shape that were trained differently.
        parameters: number of weights, in millions.
        megabytes: size of the checkpoint file.
        options: defaults for this network.
    """

    name: str
    weights: str
    filename: str
    revision: str
    architecture: Architecture = "sam2"
    config: str | None
    image_size: int
    normalisation: Normalisation
    embed_dim: int
    blocks: int
    parameters: float
    megabytes: int
    license: str
    paper: str
    note: str
    options: SegmentationOptions = _WHOLE_PICTURES

    @property
    def bundled(self) -> bool:
        return self.weights == "bundled"


_PAPER = "Ravi et al., SAM 2: Segment Anything in Images and Videos, arXiv:2408.00714"

REGISTRY: Mapping[str, SegmenterSpec] = MappingProxyType(
    {
        "sam2-micro": SegmenterSpec(
            name="sam2-micro",
            weights="bundled",
            filename="sam2_micro.safetensors",
            revision="-",
            architecture="micro",
            config=None,
            image_size=192,
            normalisation="per-picture",
            embed_dim=24,
            blocks=7,
            parameters=2.5,
            megabytes=5,
            license="apache-2.0",
            paper=_PAPER,
            note="small, trained on synthetic images only; works offline",
            options=_MICRO,
        ),
        "sam2.1-hiera-tiny": SegmenterSpec(
            name="sam2.1-hiera-tiny",
            weights="facebook/sam2.1-hiera-tiny",
            filename="sam2.1_hiera_tiny.pt",
            revision="36f406a75c9be63c7f429da63246273f028c6fd4",
            config="configs/sam2.1/sam2.1_hiera_t.yaml",
            image_size=1024,
            normalisation="imagenet",
            embed_dim=96,
            blocks=12,
            parameters=38.9,
            megabytes=156,
            license="apache-2.0",
            paper=_PAPER,
            note="",
        ),
        "sam2.1-hiera-small": SegmenterSpec(
            name="sam2.1-hiera-small",
            weights="facebook/sam2.1-hiera-small",
            filename="sam2.1_hiera_small.pt",
            revision="ee5bba1d82bb8749febdf90f45e84b687142ba03",
            config="configs/sam2.1/sam2.1_hiera_s.yaml",
            image_size=1024,
            normalisation="imagenet",
            embed_dim=96,
            blocks=16,
            parameters=46.0,
            megabytes=184,
            license="apache-2.0",
            paper=_PAPER,
            note="",
        ),
        "sam2.1-hiera-base-plus": SegmenterSpec(
            name="sam2.1-hiera-base-plus",
            weights="facebook/sam2.1-hiera-base-plus",
            filename="sam2.1_hiera_base_plus.pt",
            revision="b7320756a13354e7530a63935656d35b2f91a290",
            config="configs/sam2.1/sam2.1_hiera_b+.yaml",
            image_size=1024,
            normalisation="imagenet",
            embed_dim=112,
            blocks=24,
            parameters=80.8,
            megabytes=324,
            license="apache-2.0",
            paper=_PAPER,
            note="",
        ),
        "sam2.1-hiera-large": SegmenterSpec(
            name="sam2.1-hiera-large",
            weights="facebook/sam2.1-hiera-large",
            filename="sam2.1_hiera_large.pt",
            revision="665f8e2ad61cf5f53d65644ff27c8ee525124610",
            config="configs/sam2.1/sam2.1_hiera_l.yaml",
            image_size=1024,
            normalisation="imagenet",
            embed_dim=144,
            blocks=48,
            parameters=224.4,
            megabytes=898,
            license="apache-2.0",
            paper=_PAPER,
            note="the network of RAFS; a GPU is advisable",
        ),
        # Repository, commit, file and its size, configuration: as in public code that fetches it.
        "medsam2": SegmenterSpec(
            name="medsam2",
            weights="wanglab/MedSAM2",
            filename="MedSAM2_latest.pt",
            revision="e4a6f35edd7e091619cbc0750f462f1574e23955",
            config="configs/sam2.1/sam2.1_hiera_t.yaml",
            image_size=512,
            normalisation="imagenet",
            embed_dim=96,
            blocks=12,
            parameters=38.9,
            megabytes=156,
            license="cc-by-sa-4.0",
            paper="Ma et al., MedSAM2: Segment Anything in 3D Medical Images and Videos, "
            "arXiv:2504.03600",
            note="SAM 2.1 tiny trained on medical images; also for other MedSAM2 files",
        ),
        **{
            f"efficienttam-{short}{suffix}": SegmenterSpec(
                name=f"efficienttam-{short}{suffix}",
                weights="yunyangx/efficient-track-anything",
                filename=f"efficienttam_{short}{ending}.pt",
                revision="main",
                architecture="efficienttam",
                config=None,
                image_size=size,
                normalisation="imagenet",
                embed_dim=embed_dim,
                blocks=12,
                parameters=parameters,
                megabytes=megabytes,
                license="apache-2.0",
                paper="Xiong et al., Efficient Track Anything, arXiv:2411.18933",
                note=note,
            )
            for short, embed_dim, parameters, megabytes in (
                ("s", 384, 34.1, 136),
                ("ti", 192, 17.9, 72),
            )
            for suffix, ending, size, note in (
                (
                    "",
                    "",
                    1024,
                    "plain transformer as encoder; with memory pooled also for _1 files",
                ),
                ("-512", "_512x512", 512, "the same, trained at 512 pixels"),
            )
        },
    }
)


def get_spec(name: str) -> SegmenterSpec:
    """Return the spec called `name`.

    Raises:
        UsageError: there is none; the message has close matches.
    """
    if name not in REGISTRY:
        raise unknown_name("segmenter", name, REGISTRY, LIST_COMMAND)
    return REGISTRY[name]


def bundled_file(spec: SegmenterSpec) -> Path:
    """Where the weights shipped with the package are."""
    return Path(__file__).parent / "weights" / spec.filename


def cached_file(spec: SegmenterSpec) -> Path | None:
    """The checkpoint in the local Hub cache, or None. Asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.weights, spec.filename, revision=spec.revision)
    return Path(found) if isinstance(found, str) else None


def status(spec: SegmenterSpec) -> str:
    """Say what it takes to use `spec` on this machine, without network and without torch.

    Returns:
        "bundled", "cached", "downloadable", "needs a local file" (offline mode is on) or
        "missing package: pip install ...".
    """
    if importlib.util.find_spec("sam2") is None:
        return "missing package: pip install sam2"
    if spec.bundled:
        return "bundled" if bundled_file(spec).is_file() else "needs a local file"
    if cached_file(spec) is not None:
        return "cached"
    return "needs a local file" if hub.offline() else "downloadable"


def list_segmenters() -> list[dict[str, Any]]:
    """One JSON-able row a segmenter, in the order of the table, for listings."""
    return [
        {
            "name": spec.name,
            "status": status(spec),
            "input": spec.image_size,
            "parameters_million": spec.parameters,
            "megabytes": spec.megabytes,
            "weights": spec.weights,
            "revision": spec.revision,
            "license": spec.license,
            "paper": spec.paper,
            "note": spec.note,
        }
        for spec in REGISTRY.values()
    ]
