from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import InputError, UsageError
from medretrieval.segmentation.labels import check_support, chosen, merge, name_mask, vocabulary
from medretrieval.types import Support


def support(mask: list[list[int]], names: dict[int, str]) -> Support:
    array = np.array(mask, np.uint8)
    return Support(image=np.zeros(array.shape, np.uint8), mask=array, names=names, key="case:1")


def test_same_names_share_one_value() -> None:
    assert vocabulary([{1: "RV", 2: "LV"}, {1: "LV", 2: "RV"}]) == {1: "LV", 2: "RV"}


def test_a_name_keeps_a_value_it_has_where_that_is_free() -> None:
    assert vocabulary([{1: "a"}, {1: "b", 7: "b"}]) == {1: "a", 7: "b"}
    assert vocabulary([{1: "a"}, {1: "b"}]) == {1: "a", 2: "b"}
    assert vocabulary([{1: "a", 2: "c"}, {1: "b"}]) == {1: "a", 2: "c", 3: "b"}


def test_background_is_no_label() -> None:
    assert vocabulary([{0: "background", 3: "x"}]) == {3: "x"}


mappings = st.lists(
    st.dictionaries(st.integers(1, 6), st.sampled_from("abcdef"), max_size=4), max_size=4
)


@given(mappings)
def test_vocabulary_has_every_name_once_in_any_order(given_mappings: list[dict[int, str]]) -> None:
    result = vocabulary(given_mappings)
    assert sorted(result.values()) == sorted({n for m in given_mappings for n in m.values()})
    assert list(result) == sorted(result)
    for order in itertools.permutations(given_mappings):
        assert vocabulary(order) == result


def test_chosen_labels() -> None:
    names = {1: "RV", 2: "Myo", 3: "LV"}
    assert chosen(names, None) == names
    assert chosen(names, ["LV", "RV"]) == {1: "RV", 3: "LV"}
    with pytest.raises(UsageError, match=r"'Mio'; did you mean Myo\? .*LV, Myo, RV"):
        chosen(names, ["Mio"])
    with pytest.raises(UsageError, match="no label is asked for"):
        chosen(names, [])


def test_a_name_under_two_values_is_one_mask() -> None:
    both = support([[1, 2], [3, 0]], {1: "kidney", 2: "liver", 3: "kidney"})
    assert name_mask(both, "kidney").tolist() == [[True, False], [True, False]]
    assert not name_mask(both, "spleen").any()


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), r"\(5, 4\).*\(4, 5\)"),
        (np.zeros((4, 5), np.uint8), np.full((4, 5), 7, np.uint8), r"without a name: \[7\]"),
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5)), "float64"),
        (np.zeros((4, 5)), np.zeros((4, 5), np.uint8), "float64"),
        (np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5), np.uint8), r"\(4, 5, 4\)"),
        (np.zeros((0, 5), np.uint8), np.zeros((0, 5), np.uint8), r"\(0, 5\)"),
    ],
)
def test_supports_that_do_not_fit(image: object, mask: object, message: str) -> None:
    bad = Support(image=image, mask=mask, names={1: "a"}, key="case:1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message) as error:
        check_support(bad)
    assert "case:1" in str(error.value)


def test_highest_positive_logit_wins() -> None:
    logits = np.array([[[1.0, -1.0, 2.0, 0.0]], [[3.0, -2.0, 2.0, -5.0]]], np.float32)
    mask = merge(logits, [4, 9])
    assert mask.tolist() == [[9, 0, 4, 0]]
    assert mask.dtype == np.uint8


def test_label_maps_are_as_narrow_as_their_values() -> None:
    logits = np.ones((1, 2, 2), np.float32)
    assert merge(logits, [255]).dtype == np.uint8
    assert merge(logits, [256]).dtype == np.uint16
    assert merge(logits, [70000]).dtype == np.uint32
    empty = merge(np.zeros((0, 2, 3), np.float32), [])
    assert empty.shape == (2, 3)
    assert not empty.any()
