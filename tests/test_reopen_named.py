"""An index of any model that a library names opens again by the name it stores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medretrieval.embedders import load_embedder
from medretrieval.errors import EmbedderMismatchError
from medretrieval.index import open_store
from medretrieval.pipeline import build_index
from medretrieval.retrieval.engine import open_index

TIMM, OPEN_CLIP = "timm:dla46_c.in1k", "open_clip:hf-hub:lab/model"
VIT = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


def write_timm(folder: Path, seed: int) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    network = timm.create_model(TIMM.removeprefix("timm:"), pretrained=False)
    save_file(network.state_dict(), folder / f"{TIMM}.safetensors")


def write_open_clip(folder: Path, seed: int) -> None:
    import open_clip
    import torch

    own = folder / OPEN_CLIP
    own.mkdir(parents=True, exist_ok=True)
    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    stored = {"model_cfg": config, "preprocess_cfg": {}}
    (own / "open_clip_config.json").write_text(json.dumps(stored))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{own}", load_weights=False)
    torch.save(model.state_dict(), own / "open_clip_pytorch_model.bin")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for weights of one's own, with random ones of both libraries."""
    folder = tmp_path / "weights"
    folder.mkdir()
    write_timm(folder, 0)
    write_open_clip(folder, 0)
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"case-{number}.png")
    return folder


@pytest.mark.parametrize("name", [TIMM, OPEN_CLIP, f"{TIMM}+{OPEN_CLIP}", f"{OPEN_CLIP}+{TIMM}"])
def test_an_index_opens_again_by_its_stored_name(
    name: str, weights: Path, pictures: Path, tmp_path: Path
) -> None:
    index = build_index(pictures, tmp_path / "index", embedder=name)
    stored = open_store(index).manifest.embedder
    assert stored.name == name
    assert stored == load_embedder(stored.name).identity
    assert stored.dim == 256 * (TIMM in name) + 24 * (OPEN_CLIP in name)
    found = open_index(index).search(pictures / "case-1.png", k=3)
    assert found.hits[0].volume_id == "case-1"
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert found.hits[1].score < 0.9999
    # Other weights under the same name are not taken for those of the index.
    write_timm(weights, 1)
    write_open_clip(weights, 1)
    with pytest.raises(EmbedderMismatchError, match="differs"):
        open_index(index).search(pictures / "case-1.png")
