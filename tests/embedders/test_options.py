"""Options, which a user's JSON file may hold, are checked before anything is built of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from medretrieval.embedders import REGISTRY, load_embedder
from medretrieval.embedders.names import find
from medretrieval.embedders.options import chosen, reals, section, whole, wholes
from medretrieval.errors import InputError

VOLUME = REGISTRY["merlin"].options["volume"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of the right names without content: what is refused is refused before reading them."""
    for spec in REGISTRY.values():
        for filename in spec.filenames:
            (tmp_path / filename).parent.mkdir(parents=True, exist_ok=True)
            if not (tmp_path / filename).exists():
                (tmp_path / filename).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("resnet50", "head", "pool", "pooled or logits or probabilities"),
        ("clip-vit-l14", "head", "projection", "backbone or projected"),
        ("sam-vit-b", "head", "backbone", "tokens or neck"),
        ("medsam-vit-b", "vision_config", "vit_b", "an object of JSON"),
        ("medclip", "head", None, "backbone or projected"),
        ("medclip", "config", [], "an object of JSON"),
        ("biomedclip", "head", ["backbone"], "projected or backbone"),
        ("biomedclip", "vision_cfg", 7, "an object of JSON"),
        ("biomedclip", "embed_dim", -1, "a whole number from 1 to 16384"),
        ("biomedclip", "quick_gelu", "no", "true or false"),
        ("ark", "head", "mlp", "backbone or projected"),
        ("resnet50-fractaldb", "blocks", [3, 4, 6], "4 numbers"),
        ("cvnet-r50", "blocks", [3, 4, 6, 0], "4 whole numbers from 1 to 100"),
        ("cvnet-r50", "blocks", [3, 4, 6, 1e9], "4 whole numbers from 1 to 100"),
        ("dreamsim", "patch", 0, "a whole number from 1 to 224"),
        ("dreamsim", "patch", 15, "a divisor of the input size, 224"),
        ("dreamsim", "heads", 7, "a divisor of the width, 768"),
        ("dreamsim", "heads", True, "a whole number from 1 to 768"),
        ("dreamsim", "width", "768", "a whole number from 1 to 4096"),
        ("dreamsim", "depth", None, "a whole number from 1 to 64"),
        ("dreamsim", "branches", {}, "some of dino_vitb16"),
        ("dreamsim", "branches", 3, "an object of JSON"),
        ("merlin", "head", "report", "image or contrastive"),
        ("merlin", "layers", [3, 8, 36], "4 numbers"),
        ("merlin", "layers", [3, 8, 36, 1000], "4 whole numbers from 1 to 100"),
    ],
)
def test_an_option_that_no_such_network_has(
    name: str, option: str, value: Any, expected: str, folder: Path
) -> None:
    spec = REGISTRY[name]
    model_type = {"clip-vit-l14": "clip", "resnet50": "resnet", "sam-vit-b": "sam"}.get(name)
    config = {"model_type": model_type, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    spec = dataclasses.replace(spec, options={**spec.options, option: value})
    with pytest.raises(InputError) as caught:
        load_embedder(spec, weights=folder)
    said = "no option" if value is None else f"{value!r} as option"
    assert str(caught.value).startswith(f"{name} has {said} {option!r}; expected {expected}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": [224, 224]}, "'volume.size'; expected 3 numbers"),
        ({"size": [224, 224, 10**6]}, "'volume.size'; expected 3 whole numbers from 1 to 1024"),
        ({"spacing_mm": [1.5, 1.5, 0]}, "'volume.spacing_mm'; expected 3 lengths above 0"),
        ({"spacing_mm": "1.5"}, "'volume.spacing_mm'; expected 3 numbers"),
        ({"hounsfield": [1000, -1000]}, "'volume.hounsfield'; expected a lower and an upper"),
        ({"orientation": "XYZ"}, "'XYZ' as option 'volume.orientation'; expected RAS or"),
    ],
)
def test_a_field_that_no_volume_fits(changes: dict[str, Any], says: str, folder: Path) -> None:
    options = {**REGISTRY["merlin"].options, "volume": {**VOLUME, **changes}}
    with pytest.raises(InputError, match=says):
        load_embedder(dataclasses.replace(REGISTRY["merlin"], options=options), weights=folder)


def test_a_volume_of_another_length(folder: Path) -> None:
    with pytest.raises(InputError, match="described as 512-d; this feature is 2048-d"):
        load_embedder(dataclasses.replace(REGISTRY["merlin"], dim=512), weights=folder)


def test_what_is_said_is_taken() -> None:
    options = {"head": "a", "n": 3, "list": (1, 2), "in": {"side": [0.5, -1], "deep": {"n": 2}}}
    spec = dataclasses.replace(REGISTRY["resnet50"], options=options)
    assert chosen(spec, "head", ("a", "b")) == "a"
    assert whole(spec, "n", most=3) == 3
    assert whole(spec, "in.deep.n", most=9) == 2
    assert wholes(spec, "list", count=2, most=2) == [1, 2]
    assert reals(spec, "in.side", count=2) == [0.5, -1]
    assert section(spec, "in.deep") == {"n": 2}
    assert section(spec, "in.nothing") == section(spec, "head.nothing") == {}


@pytest.mark.parametrize(
    ("like", "options", "pooling"),
    [
        ("medclip", {}, REGISTRY["medclip"].pooling),
        ("medclip", {"head": "projected"}, REGISTRY["medclip-projected"].pooling),
        ("medclip-projected", {"head": "backbone"}, REGISTRY["medclip"].pooling),
        ("medsam-vit-b", {"head": "neck"}, REGISTRY["medsam-vit-b-neck"].pooling),
        ("bmc-clip", {"head": "backbone"}, REGISTRY["bmc-clip-backbone"].pooling),
        ("medclip", {"head": "unheard of"}, "unheard of"),
    ],
)
def test_the_feature_that_a_description_chooses_is_called_by_its_name(
    like: str, options: dict[str, Any], pooling: str, tmp_path: Path
) -> None:
    path = tmp_path / "ours.json"
    path.write_text(json.dumps({"like": like, "weights": "ours.bin", "options": options}))
    assert find(f"file:{path}")[0].pooling == pooling
