"""The page as a server: errors, endpoints, headers, files. Networks are toys."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import Cancelled, InputError, UsageError
from medretrieval.segmentation.supports import unpack_supports
from medretrieval.ui.endpoints_masks import read_prompts
from medretrieval.ui.session import Download, Props

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "faiss", "transformers", "datasets", "sam2")


def test_the_page_is_there_before_any_network_is_loaded() -> None:
    code = (
        "import sys, app; from medretrieval.ui.backend import Backend; app.Page(Backend()); "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout.strip() == "[]"


def test_only_the_modules_of_the_page_itself_need_gradio() -> None:
    needing = {
        path.stem
        for path in (ROOT / "medretrieval").rglob("*.py")
        if re.search(r"^\s*(import|from) gradio\b", path.read_text(), re.MULTILINE)
    }
    assert needing == {
        "answering", "components", "connecting", "endpoints", "endpoints_masks", "options_panel",
        "page", "segment_panel", "wiring", "wiring_masks",
    }  # fmt: skip


@pytest.fixture
def page(app: ModuleType, backend: Any) -> Any:
    return app.Page(backend)


def attach(page: Any, action: Any, **options: Any) -> Any:
    """Connect an action as the page does; return what the server would call."""
    attached = []
    page.wiring.on(
        lambda function, inputs, outputs, **_: attached.append((function, outputs)),
        action, [], "viewer", "image_status", **options,
    )  # fmt: skip
    ((function, outputs),) = attached
    assert outputs == [page.parts.viewer, page.parts.image_status]
    return function


def test_a_wrong_input_is_explained_beside_the_action(page: Any) -> None:
    def action() -> dict[str, Any]:
        raise InputError("the <b>file</b> is empty")

    with pytest.warns(UserWarning, match="The &lt;b&gt;file"):
        updates = attach(page, action, spent=["upload"])()
    assert updates.keys() == {page.parts.image_status, page.parts.upload}
    assert updates[page.parts.upload] is None
    assert 'role="alert"' in updates[page.parts.image_status]
    assert "The &lt;b&gt;file&lt;/b&gt; is empty" in updates[page.parts.image_status]


def test_what_is_not_true_any_more_goes_with_an_error(page: Any) -> None:
    def action() -> dict[str, Any]:
        raise InputError("the index is damaged")

    with pytest.warns(UserWarning, match="damaged"):
        updates = attach(page, action, failed={"viewer": "nothing"})()
    assert updates[page.parts.viewer] == "nothing"


def test_cancelled_work_is_no_error(page: Any, recwarn: pytest.WarningsRecorder) -> None:
    def action() -> dict[str, Any]:
        raise Cancelled("Cancelled.")

    updates = attach(page, action, failed={"viewer": "nothing"})()
    assert updates.keys() == {page.parts.image_status}
    assert 'role="status"' in updates[page.parts.image_status]
    assert not [w for w in recwarn if "did not work" in str(w.message)]


def test_a_fault_of_the_page_shows_no_details_and_is_logged(
    page: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def action() -> dict[str, Any]:
        raise ZeroDivisionError("secret")

    with pytest.warns(UserWarning, match="Internal error"), caplog.at_level(logging.ERROR):
        (shown,) = attach(page, action)().values()
    assert "Internal error" in shown
    assert "secret" not in shown
    assert "ZeroDivisionError: secret" in caplog.text


def test_updates_become_those_of_the_components(page: Any) -> None:
    page_file = Path(page.parts.mask_file.GRADIO_CACHE)
    updates = page.wiring.updates(
        {
            "viewer": "<p>x</p>",
            "slice": Props(maximum=4),
            "mask_file": Download("mask.nii.gz", b"data"),
            "hits_file": Download("hits.csv", None),
        }
    )
    assert updates[page.parts.viewer] == "<p>x</p>"
    assert updates[page.parts.slice]["maximum"] == 4
    stored = Path(updates[page.parts.mask_file]["value"])
    assert stored.name == "mask.nii.gz"
    assert stored.read_bytes() == b"data"
    assert stored.is_relative_to(page_file.resolve())
    assert updates[page.parts.hits_file]["value"] is None
    assert not updates[page.parts.hits_file]["interactive"]


def test_on_zerogpu_the_segmenter_runs_through_its_decorator(
    app: ModuleType, backend: Any, queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medretrieval.imaging import read_volume

    asked = []

    def gpu(*, duration: Any) -> Any:
        def decorate(work: Any) -> Any:
            def run(*values: Any) -> Any:
                asked.append(duration(*values))
                return work(*values)

            return run

        return decorate

    monkeypatch.setattr("medretrieval.ui.page.spaces", SimpleNamespace(GPU=gpu))
    page = app.Page(backend)
    volume = read_volume(queries[0].path)
    options = {"segmenter": "toy", "support_k": 2, "supports": None, "labels": None}
    options["orientation"] = "as stored"
    made = page.actions.run_segmenter("demo", volume, indices=None, **options)
    page.actions.run_segmenter("demo", volume, indices=[1], progress=None, **options)
    assert made.slices == 5
    assert asked == [20 + max(volume.grid.shape), 21]


@pytest.fixture
def server(
    app: ModuleType, backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    page = app.Page(backend)
    yield app.launch(page, host="127.0.0.1", port=None)
    page.blocks.close(verbose=False)


def test_the_page_may_load_nothing_from_elsewhere(server: str) -> None:
    with urllib.request.urlopen(server) as answer:
        body = answer.read().decode()
        policy = answer.headers["content-security-policy"]
    assert "default-src 'self' data: blob:" in policy
    assert "http" not in policy
    assert "Research use only. Not for diagnosis." in body


def test_programs_use_the_page(server: str, nifti: Path, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(server, verbose=False, download_files=str(tmp_path / "downloads"))
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/indexes", "/search", "/segment", "/agreement", "/support_set"}
    assert client.predict(api_name="/indexes")[0]["index"] == "demo"

    found = client.predict(
        file=handle_file(nifti),
        index="demo",
        mode="count",
        k=2,
        slice_index=None,
        api_name="/search",
    )
    assert found["query"] == "query"
    assert found["hits"][0]["volume_id"] == "lower-1"

    mask, made = client.predict(
        file=handle_file(nifti), index="demo", labels=[], slice_index=3, support_k=1,
        segmenter="toy", api_name="/segment",
    )  # fmt: skip
    image, query = nib.load(mask), nib.load(nifti)
    assert image.shape == query.shape
    assert np.array_equal(image.affine, query.affine)
    assert [label["name"] for label in made["labels"]] == ["spleen"]
    assert made["slices"] == 1

    # (Gradio leaves an empty file for every upload.)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    left = {path.name for path in files if path.stat().st_size}
    assert left == {"medretrieval-mask.nii.gz"}


def test_programs_have_every_option(server: str, nifti: Path, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    mask = np.zeros((24, 20, 5), np.uint8)
    mask[14:20, 12:16, 2:4] = 2
    nib.Nifti1Image(mask, nib.load(nifti).affine).to_filename(tmp_path / "mask.nii.gz")
    client = Client(server, verbose=False)
    found = client.predict(
        file=handle_file(nifti), mode="localized", k=3, structure="spleen",
        label_map=handle_file(tmp_path / "mask.nii.gz"), modality="ct", labels=["spleen", "liver"],
        exclude_patient="upper-1", like=["lower-1"], unlike=["upper-2:2"], orientation="any",
        api_name="/search",
    )  # fmt: skip
    assert found["orientation"] == "as stored"
    (hit,) = found["hits"]
    assert hit["volume_id"] == "lower-1"
    assert hit["localization"]["ratio"] == 1
    assert {match["query_slice"] for match in hit["matches"]} == {2, 3}
    found = client.predict(
        file=handle_file(nifti), mode="mean-pool", patient="upper-2", api_name="/search"
    )
    assert [hit["volume_id"] for hit in found["hits"]] == ["upper-2"]


def test_programs_segment_from_their_own_annotation(
    server: str, nifti: Path, tmp_path: Path, backend: Any
) -> None:
    from gradio_client import Client, handle_file

    mask = np.zeros((24, 20, 5), np.uint8)
    mask[14:20, 12:16, 2:4] = 2
    nib.Nifti1Image(mask, nib.load(nifti).affine).to_filename(tmp_path / "mask.nii.gz")
    client = Client(server, verbose=False, download_files=str(tmp_path / "downloads"))
    supports = client.predict(
        image=handle_file(nifti), mask=handle_file(tmp_path / "mask.nii.gz"), names={"2": "cyst"},
        api_name="/support_set",
    )  # fmt: skip
    prompt = {"label": "cyst", "kind": "negative", "at": [15, 12]}
    made, said = client.predict(
        file=handle_file(nifti), supports=handle_file(supports), slice_index=3, segmenter="toy",
        prompts=[prompt], keep="largest", options={"negatives": False}, api_name="/segment",
    )  # fmt: skip
    assert [label["name"] for label in said["labels"]] == ["cyst"]
    assert len(backend.model.supports[-1]) == 2
    assert backend.model.prompts[-1][0]["cyst"].negative == ((15, 12),)
    assert np.asarray(nib.load(made).dataobj)[..., 3].any()
    picture, scores = client.predict(
        file=handle_file(nifti), slice_index=3, supports=handle_file(supports), segmenter="toy",
        api_name="/agreement",
    )  # fmt: skip
    assert scores == {"cyst": 1}
    assert np.asarray(Image.open(picture)).shape == (20, 24)


@pytest.mark.parametrize(
    "prompt",
    [
        {"label": "liver", "kind": "positive", "at": [1, 2]},
        {"slice": 2, "label": "liver", "kind": "maybe", "at": [1, 2]},
        {"slice": 2, "label": "liver", "kind": "box", "at": [1, 2]},
        {"slice": 2, "kind": "positive", "at": [1, 2]},
        "left",
    ],
)
def test_prompts_of_programs_are_checked(prompt: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        read_prompts([prompt], None)


def test_an_annotation_without_names_has_those_of_the_index(
    server: str, nifti: Path, tmp_path: Path
) -> None:
    from gradio_client import Client, handle_file

    mask = np.zeros((24, 20, 5), np.uint8)
    mask[14:20, 12:16, 2:4] = 2
    nib.Nifti1Image(mask, nib.load(nifti).affine).to_filename(tmp_path / "mask.nii.gz")
    client = Client(server, verbose=False, download_files=str(tmp_path / "downloads"))
    made = client.predict(
        image=handle_file(nifti), mask=handle_file(tmp_path / "mask.nii.gz"),
        api_name="/support_set",
    )  # fmt: skip
    assert [support.names for support in unpack_supports(made)] == [{2: "spleen"}] * 2


@pytest.mark.parametrize("api_name", ["/segment", "/agreement"])
def test_options_of_programs_are_checked(server: str, nifti: Path, api_name: str) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False)
    with pytest.raises(AppError, match="closer 'false': expected true or false"):
        client.predict(file=handle_file(nifti), options={"closer": "false"}, api_name=api_name)


@pytest.mark.parametrize(("changes", "message"), [
    ({"slices": [2]}, "first and the last"), ({"slices": [0, 9]}, "do not exist"),
    ({"orientation": "sideways"}, "unknown orientation"), ({"like": ["nobody"]}, "unknown volume"),
    ({"label_names": {"x": "liver"}, "structure": "liver"}, "does not name a mask value"),
    ({"where": {"scanner": "B"}}, "unknown column"), ({"also": ["/etc"]}, "of its list"),
    ({"index": "/etc"}, "only the indexes of its list"),
    ({"mode": "guess"}, "unknown mode"),
    ({"k": 0}, "k is 0"),
    ({"slice_index": 9}, "slice 9"),
])  # fmt: skip
def test_programs_get_readable_errors(
    server: str, nifti: Path, changes: dict[str, Any], message: str
) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False)
    values = {"index": "demo", "mode": "count", "k": 2, "slice_index": None} | changes
    with pytest.raises(AppError, match=message):
        client.predict(file=handle_file(nifti), api_name="/search", **values)


def test_a_file_of_the_server_is_not_read_for_a_visitor(server: str, nifti: Path) -> None:
    body = json.dumps(
        {
            "data": [
                {"path": str(nifti), "meta": {"_type": "gradio.FileData"}},
                "demo",
                "count",
                2,
                None,
            ]
        }
    ).encode()
    call = urllib.request.Request(
        f"{server}gradio_api/call/search", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{server}gradio_api/call/search/{event}") as answer:
        assert "event: error" in answer.read().decode()
    assert nifti.exists()


def test_a_stopped_server_leaves_no_files(tmp_path: Path) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"}, "TMPDIR": str(tmp_path),
    }  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, "app.py"], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert run.stdout is not None
    try:
        for line in run.stdout:
            if "medretrieval is at http://127.0.0.1:" in line:
                break
        assert list(tmp_path.glob("medretrieval-page-*"))
    finally:
        run.terminate()
        run.communicate(timeout=60)
    assert run.returncode == 0
    assert not list(tmp_path.glob("medretrieval-page-*"))
