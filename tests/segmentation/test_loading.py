from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medretrieval import hub
from medretrieval.errors import InputError, UnavailableError, UsageError
from medretrieval.segmentation import (
    DEFAULT_SEGMENTER,
    REGISTRY,
    checkpoints,
    get_spec,
    list_segmenters,
    load_segmenter,
    registry,
    status,
)
from medretrieval.segmentation.loading import infer_spec, read_state
from medretrieval.segmentation.micro import MICRO, WEIGHTS, build_micro

TINY = REGISTRY["sam2.1-hiera-tiny"]


@pytest.fixture(scope="module")
def micro_state() -> dict[str, Any]:
    torch.manual_seed(0)
    return dict(build_micro().state_dict())


def test_registry_names_files_and_configs_of_the_sam2_package() -> None:
    from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

    for name, spec in REGISTRY.items():
        assert spec.name == name
        if spec.weights.startswith("facebook/"):
            assert HF_MODEL_ID_TO_FILENAMES[spec.weights] == (spec.config, spec.filename)
    micro = REGISTRY[DEFAULT_SEGMENTER]
    assert micro.bundled
    assert (micro.image_size, micro.embed_dim) == (MICRO.image_size, MICRO.embed_dim)
    assert micro.blocks == sum(MICRO.stages)
    assert registry.bundled_file(micro) == WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, s in REGISTRY.items() if s.architecture == "sam2"])
def test_encoder_sizes_in_the_registry_are_those_of_the_configs(name: str) -> None:
    import sam2
    import yaml

    spec = REGISTRY[name]
    config = yaml.safe_load((Path(sam2.__path__[0]) / str(spec.config)).read_text())["model"]
    trunk = config["image_encoder"]["trunk"]
    assert trunk["embed_dim"] == spec.embed_dim
    assert sum(trunk.get("stages", (2, 3, 16, 3))) == spec.blocks
    assert config["image_size"] == (1024 if name == "medsam2" else spec.image_size)
    assert config["use_mask_input_as_output_without_sam"]


def test_listing_is_json_and_says_what_works() -> None:
    rows = {row["name"]: row for row in json.loads(json.dumps(list_segmenters()))}
    assert list(rows) == list(REGISTRY)
    assert rows["sam2-micro"]["status"] == "bundled"
    columns = {"name", "status", "input", "weights", "revision", "license", "note"}
    assert all(columns <= row.keys() for row in rows.values())


def test_status_follows_the_cache_and_offline_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert status(TINY) == "downloadable"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert status(TINY) == "needs a local file"
    folder = tmp_path / "models--facebook--sam2.1-hiera-tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / TINY.filename).write_bytes(b"x")
    monkeypatch.setattr(registry, "cached_file", lambda spec: folder)
    assert status(TINY) == "cached"


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"sam2\.1-hiera-tiny.*medretrieval segmenters"):
        get_spec("sam2-hiera-tiny")
    with pytest.raises(UsageError, match="unknown segmenter"):
        load_segmenter("nnunet")
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        load_segmenter(device="gpu")
    with pytest.raises(UsageError, match="image size 100"):
        load_segmenter(image_size=100)
    with pytest.raises(UsageError, match="precision 'float16': expected float32 or bfloat16"):
        load_segmenter(precision="float16")  # type: ignore[arg-type]


def test_absent_device() -> None:
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(UnavailableError, match="not available on this machine"):
        load_segmenter(device=absent)


@pytest.mark.parametrize("form", ["official", "bare", "safetensors"])
def test_local_files_are_recognised_and_loaded(
    tmp_path: Path, micro_state: dict[str, Any], form: str
) -> None:
    path = tmp_path / ("file.safetensors" if form == "safetensors" else "file.pt")
    if form == "safetensors":
        save_file(micro_state, path)
    else:
        torch.save({"model": micro_state} if form == "official" else micro_state, path)
    segmenter = load_segmenter(checkpoint=path)
    assert segmenter.name == "sam2-micro"
    loaded = segmenter.network.model.state_dict()
    assert all(torch.equal(loaded[key], micro_state[key]) for key in micro_state)
    assert load_segmenter("sam2-micro", checkpoint=path, image_size=64).network.image_size == 64


def test_digest_follows_the_weights_not_the_file(
    tmp_path: Path, micro_state: dict[str, Any]
) -> None:
    torch.save({"model": micro_state}, tmp_path / "a.pt")
    save_file(micro_state, tmp_path / "b.safetensors")
    changed = {**micro_state, "no_mem_embed": micro_state["no_mem_embed"] + 1}
    save_file(changed, tmp_path / "c.safetensors")
    a, b, c = (
        load_segmenter(checkpoint=tmp_path / name).network.digest
        for name in ("a.pt", "b.safetensors", "c.safetensors")
    )
    assert a == b != c


class Trap:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Trap(tmp_path / "trapped")}, tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    for name in ("evil.pt", "evil2.pt"):
        with pytest.raises(InputError, match=r"evil.*\.pt"):
            load_segmenter(checkpoint=tmp_path / name)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", ["file.pt", "file.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"hello" * 100])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"file.*expected"):
        load_segmenter(checkpoint=tmp_path / name)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint file"):
        load_segmenter(checkpoint=tmp_path / "nothing.pt")
    with pytest.raises(InputError, match="no checkpoint file"):
        load_segmenter(checkpoint=tmp_path)
    for content in ({"epoch": 3}, [torch.ones(1)], {}, torch.ones(3)):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(InputError, match="holds no weights"):
            read_state(tmp_path / "other.pt")
    torch.save({"classifier.weight": torch.ones(2, 2)}, tmp_path / "resnet.pt")
    with pytest.raises(InputError, match=r"no known SAM 2 network.*sam2\.1-hiera-large"):
        load_segmenter(checkpoint=tmp_path / "resnet.pt")


def test_differences_are_listed(tmp_path: Path, micro_state: dict[str, Any]) -> None:
    state = dict(micro_state)
    del state["no_mem_embed"]
    state["head.weight"] = torch.ones(3)
    state["maskmem_tpos_enc"] = torch.ones(7, 1, 1, 32)
    torch.save({"model": state}, tmp_path / "other.pt")
    with pytest.raises(InputError) as error:
        load_segmenter(checkpoint=tmp_path / "other.pt")
    message = str(error.value)
    assert "1 missing (no_mem_embed)" in message
    assert "1 unexpected (head.weight)" in message
    assert "maskmem_tpos_enc (7, 1, 1, 32) instead of (1, 1, 1, 32)" in message
    with pytest.raises(InputError, match=r"does not fit sam2\.1-hiera-tiny.* and \d+ more"):
        load_segmenter("sam2.1-hiera-tiny", checkpoint=WEIGHTS)


def test_weights_that_are_not_numbers(tmp_path: Path, micro_state: dict[str, Any]) -> None:
    state = {**micro_state, "no_mem_embed": micro_state["no_mem_embed"] * float("nan")}
    torch.save({"model": state}, tmp_path / "diverged.pt")
    with pytest.raises(InputError, match=r"NaN or infinite weights.*no_mem_embed"):
        load_segmenter(checkpoint=tmp_path / "diverged.pt")


@pytest.mark.parametrize("name", [n for n, s in REGISTRY.items() if not s.bundled])
def test_members_of_the_family_are_told_apart(name: str) -> None:
    spec = REGISTRY[name]
    state = {"image_encoder.trunk.patch_embed.proj.weight": torch.ones(spec.embed_dim, 3, 7, 7)}
    for block in range(spec.blocks):
        state[f"image_encoder.trunk.blocks.{block}.norm1.weight"] = torch.ones(1)
    assert infer_spec(state, Path(spec.filename)) is spec
    other = infer_spec(state, Path("file.pt"))
    assert (other.embed_dim, other.blocks) == (spec.embed_dim, spec.blocks)
    assert other.architecture == spec.architecture


@pytest.fixture
def silent_hub() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def load_elsewhere(tmp_path: Path, **environment: str) -> str:
    """Try to load a Hub segmenter in a fresh process with an empty cache; returns the message."""
    code = (
        "from medretrieval.errors import UnavailableError\n"
        "from medretrieval.segmentation import load_segmenter\n"
        "try:\n    load_segmenter('sam2.1-hiera-tiny')\n"
        "except UnavailableError as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        # Far below the minutes that the client's own retries take, far above a slow import.
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, str]] = []

    def download(repo: str, filename: str, *, revision: str, etag_timeout: float) -> str:
        asked.append((repo, filename, revision))
        if len(asked) > 2:
            raise OSError("the disk is full")
        return str(tmp_path / ("c" if len(asked) == 1 else "d") / filename)

    monkeypatch.setattr(checkpoints, "cached_file", lambda spec: None)
    monkeypatch.setattr(hub, "resolve", lambda repo, names, revision: (names[0], "c"))
    monkeypatch.setattr(hub, "offline", lambda: False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert checkpoints.fetch(TINY) == tmp_path / "c" / TINY.filename
    assert asked == [(TINY.weights, TINY.filename, TINY.revision)]
    with pytest.raises(UnavailableError, match="changed during the download"):
        checkpoints.fetch(TINY)
    with pytest.raises(UnavailableError, match=r"OSError: the disk is full"):
        checkpoints.fetch(TINY)


def test_offline_mode_says_so(tmp_path: Path) -> None:
    message = load_elsewhere(tmp_path, HF_HUB_OFFLINE="1")
    assert "offline mode is on" in message
    assert "sam2.1_hiera_tiny.pt" in message
    assert "sam2-micro" in message


def test_a_hub_that_never_answers(tmp_path: Path, silent_hub: str) -> None:
    message = load_elsewhere(tmp_path, HF_ENDPOINT=silent_hub, HF_HUB_OFFLINE="0")
    assert "cannot be downloaded" in message
    assert "sam2-micro" in message


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    message = load_elsewhere(tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert "cannot be downloaded" in message
