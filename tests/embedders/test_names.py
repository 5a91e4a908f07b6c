"""What names mean: rows of the table, libraries' models, JSON files, ensembles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.embedders import get_spec, load_embedder
from medretrieval.embedders.ensemble import Ensemble
from medretrieval.embedders.loader import bundled_file
from medretrieval.embedders.names import FAMILIES, find
from medretrieval.errors import InputError, MedRetrievalError, UsageError

LITE = "efficientnet-lite0"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A JSON specification beside a copy of the bundled weights."""
    shutil.copy(bundled_file(get_spec(LITE)), tmp_path / "ours.pth")
    return write(tmp_path / "ours.json")


def write(path: Path, **changes: Any) -> Path:
    stored = {"like": LITE, "weights": "ours.pth", "interpolation": "bilinear", **changes}
    path.write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))
    return path


def test_a_description_is_the_embedder_it_resembles_with_what_it_changes(
    described: Path, pictures: list[np.ndarray]
) -> None:
    ours, lite = load_embedder(f"file:{described}"), load_embedder(LITE)
    assert ours.identity.weights_sha256 == lite.identity.weights_sha256
    assert ours.identity.preprocessing["interpolation"].startswith("bilinear")
    assert ours.identity.space != lite.identity.space
    cosines = (ours.embed_batch(pictures) * lite.embed_batch(pictures)).sum(axis=1)
    assert cosines.min() > 0.8
    assert cosines.max() < 0.999999


def test_a_description_that_changes_nothing_is_in_the_same_space(described: Path) -> None:
    write(described, interpolation="bicubic")
    assert load_embedder(f"file:{described}").identity.space == load_embedder(LITE).identity.space


def test_a_stored_name_tells_nothing_of_the_machine_and_is_found_again(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = load_embedder(f"file:{described}").identity
    assert identity.name == "file:ours.json"
    assert str(described.parent) not in json.dumps(identity.__dict__)
    assert load_embedder(identity.name, weights=described).identity == identity
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(described.parent))
    assert load_embedder(identity.name).identity == identity


def test_a_stored_name_that_is_not_found_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(InputError, match=r"ours\.json does not exist; .*weights"):
        load_embedder("file:ours.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"like": None}, "nothing usable"),
        ({"weights": 7}, "nothing usable"),
        ({"weights": "missing.pth"}, r"missing\.pth does not exist"),
        ({"like": "file:other.json"}, "is like another JSON file"),
        ({"like": "efficientnet-lite1"}, "did you mean efficientnet-lite0"),
        ({"likes": LITE}, "has likes; expected"),
        ({"mean": [1, 2]}, r"mean \[1, 2\], expected three numbers"),
        ({"mean": [123, 116, 103]}, "three numbers from 0 to 1"),
        ({"pooling": "mean of patch tokens"}, "has pooling; expected"),
        ({"options": {"pool": "max"}}, "has the options pool; efficientnet-lite0 has none"),
        ({"dim": 100}, "is described as 100-d, but its embeddings have 1280"),
        ({"mean": "grey"}, "expected three numbers"),
        ({"std": [1, 1, 0]}, "three numbers above 0"),
        ({"dim": True}, "expected a length"),
        ({"input_size": -1}, "expected pixels"),
        ({"input_size": 1e99}, "expected pixels"),
        ({"resize": "stretch"}, "expected squash or crop"),
        ({"resize": ["crop"]}, "expected squash or crop"),
        ({"interpolation": {}}, "expected bilinear or bicubic"),
        ({"resize": "crop", "resize_to": 100}, "resize_to must be at least input_size"),
    ],
)
def test_a_description_that_cannot_be_used(
    described: Path, changes: dict[str, Any], message: str
) -> None:
    write(described, **changes)
    with pytest.raises(MedRetrievalError, match=message):
        load_embedder(f"file:{described}")


def test_a_description_that_is_no_json(described: Path) -> None:
    described.write_text("like: this")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_embedder(f"file:{described}")
    described.write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        load_embedder(f"file:{described}")


def test_the_options_of_a_description_come_on_top_of_those_it_resembles(described: Path) -> None:
    changes = {"like": "cvnet-r50", "options": {"blocks": [3, 4, 23, 3]}}
    spec, location = find(f"file:{write(described, **changes)}")
    assert spec.options == {**get_spec("cvnet-r50").options, "blocks": [3, 4, 23, 3]}
    assert location == described.parent / "ours.pth"


def test_a_description_that_does_not_fit_its_network(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tiny_folder("dino-vitb16")
    said = {"like": "hf:lab/vit", "weights": str(folder), "input_size": 50}
    path = write(tmp_path / "ours.json", interpolation=None, **said)
    with pytest.raises(InputError, match=r"describes a network that cannot be used \(ValueError"):
        load_embedder(f"file:{path}")


def test_names_that_are_nearly_right(described: Path) -> None:
    with pytest.raises(UsageError, match=r"a description is file:.*ours\.json"):
        load_embedder(str(described))
    with pytest.raises(UsageError, match="is empty"):
        load_embedder("")


def test_what_a_description_says_is_not_changed_by_the_folder(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder("dino-vitb16"), tmp_path / "tiny")
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == 32
    said = {"dim": 32, "mean": [0.1, 0.2, 0.3], "interpolation": None}
    path = write(tmp_path / "ours.json", like="dino-vitb16", weights="tiny", **said)
    used = load_embedder(f"file:{path}").identity.preprocessing
    assert used["mean"] == [0.1, 0.2, 0.3]
    assert used["std"] == processor["image_std"]
    assert used["input_size"] == 32


def test_other_options_of_the_same_weights_are_another_space(
    tiny_folder: Callable[[str], Path], tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    """Tensors do not say how many heads they are for."""
    made = []
    for name, heads in (("one", 4), ("other", 2)):
        folder = shutil.copytree(tiny_folder("dino-vitb16"), tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        assert config["num_attention_heads"] == 4
        config |= {"num_attention_heads": heads, "hidden_dropout_prob": 0.1 * heads}
        (folder / "config.json").write_text(json.dumps(config))
        path = write(
            tmp_path / f"{name}.json", like="dino-vitb16", weights=name, dim=32, interpolation=None
        )
        made.append(load_embedder(f"file:{path}"))
    one, other = made
    assert one.identity.weights_sha256 == other.identity.weights_sha256
    assert one.identity.space != other.identity.space
    assert (one.embed_batch(pictures) * other.embed_batch(pictures)).sum(axis=1).min() < 0.999
    assert one.identity.network["config"]["num_attention_heads"] == 4
    assert not any("dropout" in key for key in one.identity.network["config"])


def test_local_weights_of_a_named_model(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path))
    shutil.copytree(tiny_folder("dino-vitb16"), tmp_path / "hf-lab-vit")
    assert load_embedder("hf:lab/vit").identity.revision == "local file"


def test_an_unknown_kind_of_name() -> None:
    with pytest.raises(UsageError, match=r"unknown kind of embedder 'tim'; did you mean timm\?"):
        load_embedder("tim:resnet50")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_package_is_named_with_the_command(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(package: str) -> str:
        raise importlib_metadata.PackageNotFoundError(package)

    from importlib import metadata as importlib_metadata

    monkeypatch.setattr("importlib.metadata.version", nothing)
    with pytest.raises(MedRetrievalError, match=r"run `pip install \w+"):
        load_embedder(f"{family}:anything/at-all")


def test_an_ensemble_is_its_parts_side_by_side(
    described: Path, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(described.parent))
    together = load_embedder(f"{LITE} + file:ours.json")
    assert isinstance(together, Ensemble)
    first, second = (part.embed_batch(pictures) for part in together.parts)
    joined = together.embed_batch(pictures)
    assert joined.dtype == np.float32
    assert joined.shape == (len(pictures), together.identity.dim)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        joined @ joined.T, (first @ first.T + second @ second.T) / 2, atol=1e-6
    )
    assert together.embed_batch([]).shape == (0, together.identity.dim)
    # The stored name loads the same again.
    assert load_embedder(together.identity.name).identity == together.identity


def test_the_order_and_the_parts_of_an_ensemble_make_its_space(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(described.parent))
    one, other = f"{LITE}+file:ours.json", f"file:ours.json+{LITE}"
    spaces = {load_embedder(name).identity.space for name in (LITE, "file:ours.json", one, other)}
    assert len(spaces) == 3 + 1


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (f"{LITE}+{LITE}", None, "the same embedder twice"),
        (f"{LITE}+", None, "the name of an embedder is empty"),
        (f"{LITE}+dinov9", None, "unknown embedder 'dinov9'"),
        (f"{LITE}+dinov2-base", ".", "is an ensemble: one path cannot be"),
    ],
)
def test_an_ensemble_that_cannot_be(name: str, weights: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_embedder(name, weights=weights)
