"""The support set and the masks of the page, with a tiny index and no networks."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.pipeline import DEFAULT_SUPPORT_K
from medretrieval.types import Support
from medretrieval.ui.asked import DEFAULTS
from medretrieval.ui.runs import Run
from medretrieval.ui.session import (
    MOST_SUPPORTS,
    CartItem,
    Download,
    Props,
    add_to_cart,
    replace_in_cart,
)

# The support set


def test_adding_twice_and_removing(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    for _ in range(2):
        visitor.do(visitor.actions.add_hit(visitor.session, 2, "1:2:2"))
    assert [item.title for item in visitor.session.cart] == ["upper-1 \u00b7 slice 2"]
    assert "\u2713 in the set" in visitor.shown["hits"]
    key = visitor.session.cart[0].key
    assert visitor.settings()["support_set"] == [{"key": key, "title": "upper-1 \u00b7 slice 2"}]
    visitor.do(visitor.actions.remove(visitor.session, 2, "demo/unknown"))
    assert len(visitor.session.cart) == 1
    visitor.do(visitor.actions.remove(visitor.session, 2, key))
    assert visitor.session.cart == ()
    assert "\u2713 in the set" not in visitor.shown["hits"]


def test_adding_all_leaves_out_what_is_not_annotated(visitor: Any) -> None:
    visitor.example()
    visitor.find("slice", k=20)
    plain = next(h for h in visitor.session.found.result.hits if h.volume_id == "plain-1")
    assert "not annotated" in visitor.shown["hits"]
    pair = plain.matches[0]
    key = f"{plain.rank}:{pair.slice_index}:{pair.query_slice}"
    with pytest.raises(UsageError, match="not annotated"):
        visitor.actions.add_hit(visitor.session, 2, key)
    shown = visitor.do(visitor.actions.add_hits(visitor.session, 2))
    assert len(visitor.session.cart) == 15
    assert "5 without annotation left out" in shown["segment_status"]
    visitor.do(visitor.actions.empty(visitor.session, 2))
    assert visitor.session.cart == ()


def test_adding_before_a_search(visitor: Any) -> None:
    with pytest.raises(UsageError, match="find similar cases first"):
        visitor.actions.add_hits(visitor.session, 0)


def own_pair(uploads: Path, size: tuple[int, int] = (32, 24)) -> tuple[Path, Path]:
    picture = np.arange(32 * 24, dtype=np.uint8).reshape(24, 32)
    mask = np.zeros(size[::-1], np.uint8)
    mask[4:9, 3:9] = 1
    mask[12:15, 20:25] = 2
    Image.fromarray(picture).save(uploads / "image.png")
    Image.fromarray(mask).save(uploads / "mask.png")
    return uploads / "image.png", uploads / "mask.png"


def test_an_own_pair_joins_the_set_with_the_names_given(visitor: Any, uploads: Path) -> None:
    image, mask = own_pair(uploads)
    shown = visitor.do(
        visitor.actions.add_own(visitor.session, 0, str(image), str(mask), "1 = liver")
    )
    (item,) = visitor.session.cart
    assert item.row_id is None
    assert item.support.names == {1: "liver", 2: "label_2"}
    assert item.support.image.shape == (24, 32)
    assert shown["structures"]["choices"] == ["label_2", "liver"]
    assert shown["own_image"] is shown["own_mask"] is None
    assert not image.exists()
    assert not mask.exists()


def test_an_own_pair_without_names_has_those_of_the_index(visitor: Any, uploads: Path) -> None:
    image, mask = own_pair(uploads)
    visitor.do(visitor.actions.add_own(visitor.session, 0, str(image), str(mask), ""))
    (item,) = visitor.session.cart
    assert item.support.names == {1: "liver", 2: "spleen"}


def test_of_an_annotated_volume_some_slices_join_the_set(visitor: Any, uploads: Path) -> None:
    voxels = np.arange(16 * 16 * 20, dtype=np.int16).reshape(16, 16, 20)
    nib.Nifti1Image(voxels, np.eye(4)).to_filename(uploads / "image.nii")
    nib.Nifti1Image((voxels > 99).astype(np.uint8), np.eye(4)).to_filename(uploads / "mask.nii")
    paths = [str(uploads / name) for name in ("image.nii", "mask.nii")]
    visitor.do(visitor.actions.add_own(visitor.session, 0, *paths, ""))
    assert len(visitor.session.cart) == DEFAULT_SUPPORT_K
    numbers = [int(item.support.key.rpartition(":")[2]) for item in visitor.session.cart]
    assert (numbers[0], numbers[-1]) == (0, 19)


def test_a_support_set_has_its_limit() -> None:
    support = Support(image=np.zeros((4, 4), np.uint8), mask=np.eye(4, dtype=np.uint8),
                      names={1: "liver"}, key="a:1")  # fmt: skip
    items = [CartItem(key=f"own/{n}", support=support, title="") for n in range(MOST_SUPPORTS + 1)]
    full = add_to_cart((), items[:-1])
    assert len(add_to_cart(full, items[:1])) == MOST_SUPPORTS
    for add in (lambda: add_to_cart(full, items[-1:]), lambda: replace_in_cart(full, items[-1])):
        with pytest.raises(UsageError, match=f"at most {MOST_SUPPORTS}"):
            add()


def test_an_own_pair_that_does_not_fit(visitor: Any, uploads: Path) -> None:
    image, mask = own_pair(uploads, (30, 24))
    with pytest.raises(InputError, match="30x24 pixels"):
        visitor.actions.add_own(visitor.session, 0, str(image), str(mask), "")
    assert not mask.exists()


def test_half_an_own_pair(visitor: Any, uploads: Path) -> None:
    image, _ = own_pair(uploads)
    with pytest.raises(UsageError, match="upload both"):
        visitor.actions.add_own(visitor.session, 0, str(image), None, "")


# The mask


def test_one_slice_from_slices_found_by_themselves(visitor: Any, backend: Any) -> None:
    visitor.example()
    shown = visitor.segment("slice", number=3)
    (supports,) = backend.model.supports
    assert len(supports) == 2
    image = nib.Nifti1Image.from_bytes(gzip.decompress(shown["mask_file"].content))
    query = nib.load(backend.queries[0].path)
    assert image.shape == query.shape
    assert np.array_equal(image.affine, query.affine)
    labelled = np.asarray(image.dataobj).any(axis=(0, 1))
    assert labelled.tolist() == [False, False, False, True, False]
    assert "mr-over" in shown["result"]
    assert ">liver</td>" in shown["legend"]
    assert "slice 3 from annotated slices found" in shown["segment_status"]
    assert shown["picture_file"] == Download("medretrieval-mask.png", None, visible=False)
    assert visitor.settings()["segmentation"]["supports_from"] == "retrieval for each slice"


def test_all_slices_from_the_support_set(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.find()
    visitor.do(visitor.actions.add_hits(visitor.session, 2))
    visitor.segment("volume")
    # Each slice by itself, and then with what was found on its neighbours.
    assert len(backend.model.supports) == 2 * 5
    keys = {item.support.key for item in visitor.session.cart}
    for supports in backend.model.supports:
        assert {s.key for s in supports if s.distance is None} == keys
    made = visitor.settings()["segmentation"]
    assert made["supports_from"] == "support set"
    assert made["query_slice"] is None
    # The block is 8 x 6 voxels on slices 1 to 4, a voxel is 0.025 ml.
    voxels = made["labels"][0]["voxels"]
    assert voxels >= 8 * 6 * 4
    assert made["labels"][0]["ml"] == pytest.approx(voxels * 0.025)


def test_a_picture_is_segmented_to_png_too(visitor: Any) -> None:
    visitor.example(1)
    shown = visitor.segment("slice", number=0)
    assert shown["picture_file"].visible
    mask = np.asarray(Image.open(io.BytesIO(shown["picture_file"].content)))
    assert mask.shape == (40, 60)
    assert mask[5:20, 5:25].all()
    assert not mask[25:].any()
    assert "pixels" in shown["legend"]
    assert "ml" not in shown["legend"]


def test_a_mask_of_a_real_image_made_from_phantoms_is_no_success(
    visitor: Any, uploads: Path
) -> None:
    visitor.example(0)
    assert "mr-ok" in visitor.segment()["segment_status"]
    assert "has no meaning" not in visitor.shown["segment_status"]
    visitor.example(1)
    assert "mr-warning" in visitor.segment()["segment_status"]
    assert "the mask has no meaning" in visitor.shown["segment_status"]
    # The visitor's own pair is not synthetic.
    visitor.do(visitor.actions.add_own(visitor.session, 0, *map(str, own_pair(uploads)), "1=cyst"))
    assert "mr-ok" in visitor.segment()["segment_status"]
    visitor.find("slice", k=20, number=0)
    visitor.do(visitor.actions.add_hits(visitor.session, 0))
    assert len(visitor.session.cart) > 1
    assert "mr-warning" in visitor.segment()["segment_status"]


@pytest.mark.parametrize(("number", "words"), [(0, "your image"), (1, "slice 2")])
def test_the_status_says_what_was_segmented(visitor: Any, number: int, words: str) -> None:
    visitor.example(1 - number)
    assert (
        f"Segmented {words} from annotated slices found for it"
        in (visitor.segment()["segment_status"])
    )


def test_a_slice_without_any_structure_says_so(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume", number=2)
    assert "no structure found on it" not in visitor.shown["result"]
    assert "no structure found on it" in visitor.actions.show(visitor.session, "", 0)["result"]


def test_only_the_structures_asked_for(visitor: Any) -> None:
    visitor.example()
    with pytest.raises(UsageError):
        visitor.segment("slice", structures=["kidney"])
    shown = visitor.segment("slice", structures=["liver"])
    assert "liver" in shown["legend"]


def test_a_result_of_a_former_image_is_not_shown_over_a_new_one(visitor: Any) -> None:
    visitor.example()
    visitor.segment()
    former = visitor.session.outcome
    visitor.example()
    assert visitor.session.outcome is None
    visitor.do({"outcome": former})
    assert "result" not in visitor.actions.show(visitor.session, "", 1)
    visitor.find()
    assert visitor.settings()["segmentation"] is None


def test_what_was_made_for_a_former_image_is_dropped(visitor: Any) -> None:
    visitor.example(0)
    found = visitor.actions.find(visitor.session, "count", 3, 2)["new_found"]
    values = {**DEFAULTS, "segmenter": "toy"}.values()
    made = visitor.actions.segment(visitor.session, 2, Run(), *values, scope="slice")
    outcome = made["new_outcome"]
    visitor.example(0)
    for shown, status in (
        (visitor.actions.show_found(visitor.session, 2, found), "search_status"),
        (visitor.actions.show_outcome(visitor.session, "", 2, None, outcome), "segment_status"),
    ):
        assert "changed meanwhile" in shown[status]
        assert len(shown) == 2
    assert visitor.actions.show_found(visitor.session, 2, None) == {}
    assert visitor.actions.show_outcome(visitor.session, "", 2, None, None) == {}


def test_loading_takes_the_former_results_away(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    visitor.segment()
    shown = visitor.example(1)
    for name in ("hits_file", "settings_file", "mask_file", "picture_file"):
        assert shown[name].content is None
    assert shown["found"] is None
    assert shown["result_tools"] == Props(visible=False)
