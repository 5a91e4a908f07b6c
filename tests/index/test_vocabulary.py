"""Names keep their meaning whatever values the cases use."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.errors import InputError
from medretrieval.index.vocabulary import Remapper, Vocabulary

NAMINGS = st.dictionaries(
    st.integers(1, 100_000), st.sampled_from("abcdefgh"), min_size=1, max_size=8
)


@settings(deadline=None)
@given(st.lists(NAMINGS, min_size=1, max_size=5))
def test_every_pixel_keeps_its_name(namings: list[dict[int, str]]) -> None:
    vocabulary = Vocabulary(namings[:2])
    for names in namings:
        mask = np.array([[0, *names, 0, *names]], dtype=np.uint32)
        result, values = Remapper(vocabulary, names)(mask)
        table = {0: "", **vocabulary.names()}
        assert [table[v] for v in result[0].tolist()] == [
            names.get(v, "") for v in mask[0].tolist()
        ]
        assert values == tuple(sorted(set(result[0].tolist()) - {0}))
        assert result.dtype == (np.uint8 if max(values) <= 255 else np.uint16)
    assert len(set(vocabulary.names().values())) == len(vocabulary.names())


def test_values_stay_where_they_are_free() -> None:
    vocabulary = Vocabulary([{1: "RV", 3: "LV"}, {1: "liver", 3: "LV", 7: "spleen"}])
    assert vocabulary.names() == {1: "RV", 2: "liver", 3: "LV", 7: "spleen"}


def test_first_naming_counts_and_the_rest_get_numbers() -> None:
    vocabulary = Vocabulary()
    remap = Remapper(vocabulary, {1: "liver"}, {1: "other", 2: "spleen"})
    remap(np.array([[0, 1, 2, 5]]))
    assert vocabulary.names() == {1: "liver", 2: "spleen", 5: "label_5"}


def test_restored_values_are_not_given_again() -> None:
    vocabulary = Vocabulary()
    vocabulary.restore({"kidney": 1, "liver": 3})
    assert vocabulary.value("spleen", 1) == 2
    assert vocabulary.value("kidney", 9) == 1


@pytest.mark.parametrize(
    "mask", [np.array([[-1]]), np.array([[0.5]]), np.zeros((2, 2, 2), np.uint8)]
)
def test_what_is_no_label_map(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="not a label map"):
        Remapper(Vocabulary())(mask)


def test_more_labels_than_a_mask_can_hold() -> None:
    vocabulary = Vocabulary([{n: str(n) for n in range(1, 65536)}])
    with pytest.raises(InputError, match="more than 65535"):
        vocabulary.value("one more", 1)
