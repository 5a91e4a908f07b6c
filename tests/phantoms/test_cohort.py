"""The synthetic cohort: contract of `make_case`, anatomy, variation, and separability."""

from __future__ import annotations

import numpy as np
import pytest

from medretrieval.errors import UsageError
from medretrieval.phantoms import KINDS, PhantomCase, make_case

CT = [k for k in KINDS if k.startswith("ct-")]
MR = [k for k in KINDS if k.startswith("mr-")]
PICTURES = [k for k in KINDS if KINDS[k].axis == "picture"]
VOLUMES = CT + MR

# Mean intensity and number of labelled voxels of make_case(kind, 0, quick=True), printed by this
# program with NumPy 2.4.6 on x86-64, 2026-11-22. They change only with a formula.
GOLDEN = {
    "ct-head": (-634.253, 36562),
    "ct-chest": (-552.767, 23866),
    "ct-abdomen": (-579.533, 9042),
    "ct-pelvis": (-449.148, 6527),
    "mr-brain": (305.128, 16694),
    "mr-heart": (264.489, 2519),
    "mr-abdomen": (178.120, 5913),
    "mr-prostate": (244.695, 4361),
    "mr-knee": (720.165, 12920),
    "xr-chest": (129.016, 5682),
    "xa-coronary": (94.624, 4406),
    "xa-cerebral": (181.020, 3696),
}


def centroid(case: PhantomCase, name: str) -> np.ndarray:
    """World position (RAS+ mm) of the middle of a structure."""
    value = next(v for v, n in case.labels.names.items() if n == name)
    index = np.argwhere(case.labels.voxels == value).mean(axis=0)
    affine = case.labels.grid.affine
    return np.asarray(affine[:3, :3] @ index + affine[:3, 3])


def axis_code(case: PhantomCase) -> str:
    """Letters of the stored axes, by the largest component of each column of the affine."""
    code = ""
    for column in case.volume.grid.affine[:3, :3].T:
        world = int(np.argmax(np.abs(column)))
        code += ("LR", "PA", "IS")[world][int(column[world] > 0)]
    return code


def test_kinds_cover_the_promised_regions_and_modalities() -> None:
    assert len(KINDS) >= 9
    assert {k.modality for k in KINDS.values()} == {"CT", "MR", "DX", "XA"}
    assert {k.region for k in KINDS.values()} == {"head", "chest", "abdomen", "pelvis", "knee"}
    assert tuple(KINDS["mr-heart"].labels.values()) == ("RV", "Myo", "LV")


@pytest.mark.parametrize("kind", KINDS)
def test_image_and_labels_share_one_grid(cases: dict[str, PhantomCase], kind: str) -> None:
    case = cases[kind]
    volume, labels = case.volume, case.labels
    assert labels.grid is volume.grid
    assert volume.voxels.shape == labels.voxels.shape == volume.grid.shape
    assert labels.voxels.dtype == np.uint8
    assert not volume.color
    assert volume.modality == case.modality == KINDS[kind].modality
    assert case.region == KINDS[kind].region
    assert volume.voxels.flags.c_contiguous


@pytest.mark.parametrize("kind", KINDS)
def test_says_that_it_is_synthetic(cases: dict[str, PhantomCase], kind: str) -> None:
    case = cases[kind]
    assert "synthetic" in case.title.lower()
    assert "synthetic" in case.volume.name
    assert "synthetic" in KINDS[kind].title.lower()


@pytest.mark.parametrize("kind", KINDS)
def test_every_label_occurs_in_every_case(
    cases: dict[str, PhantomCase], small_cases: dict[str, list[PhantomCase]], kind: str
) -> None:
    for case in [cases[kind], *small_cases[kind]]:
        found = set(np.unique(case.labels.voxels).tolist()) - {0}
        assert found == set(KINDS[kind].labels), case.title
        assert dict(case.labels.names) == dict(KINDS[kind].labels)


@pytest.mark.parametrize("kind", ["ct-abdomen", "mr-knee", "xa-coronary"])
def test_same_seed_same_case(small_cases: dict[str, list[PhantomCase]], kind: str) -> None:
    again = make_case(kind, 2, quick=True)
    first = small_cases[kind][2]
    assert np.array_equal(again.volume.voxels, first.volume.voxels)
    assert np.array_equal(again.labels.voxels, first.labels.voxels)
    assert np.array_equal(again.volume.grid.affine, first.volume.grid.affine)


@pytest.mark.parametrize("kind", GOLDEN)
def test_case_is_the_same_on_every_machine(
    small_cases: dict[str, list[PhantomCase]], kind: str
) -> None:
    mean, labelled = GOLDEN[kind]
    case = small_cases[kind][0]
    assert case.volume.voxels.mean() == pytest.approx(mean, rel=1e-3, abs=0.05)
    assert np.count_nonzero(case.labels.voxels) == pytest.approx(labelled, rel=2e-3)


@pytest.mark.parametrize("kind", CT)
def test_ct_is_in_hounsfield_units(cases: dict[str, PhantomCase], kind: str) -> None:
    voxels = cases[kind].volume.voxels
    assert voxels.dtype == np.int16
    assert voxels.min() >= -1024
    assert voxels.max() <= 3071
    assert np.percentile(voxels, 0.5) <= -900  # air around the patient
    assert voxels.max() > 400  # bone


@pytest.mark.parametrize(
    ("kind", "name", "low", "high"),
    [
        ("ct-chest", "left lung", -920, -700),
        ("ct-abdomen", "liver", 30, 150),
        ("ct-abdomen", "spleen", 15, 150),
        ("ct-abdomen", "gallbladder", -10, 40),
        ("ct-pelvis", "bladder", -5, 30),
        ("ct-pelvis", "left femoral head", 90, 500),
        ("ct-head", "brain", 15, 60),
        ("ct-head", "ventricles", -5, 30),
        ("ct-head", "skull", 300, 1300),
    ],
)
def test_tissues_have_their_density(
    small_cases: dict[str, list[PhantomCase]], kind: str, name: str, low: float, high: float
) -> None:
    value = next(v for v, n in KINDS[kind].labels.items() if n == name)
    for case in small_cases[kind]:
        inside = case.volume.voxels[case.labels.voxels == value]
        assert inside.size >= 100, case.title
        assert low <= np.median(inside) <= high, case.title


@pytest.mark.parametrize("kind", MR)
def test_mr_is_a_noisy_magnitude_image(cases: dict[str, PhantomCase], kind: str) -> None:
    voxels = cases[kind].volume.voxels
    assert voxels.dtype == np.uint16
    assert voxels.std() > 10
    assert np.unique(voxels).size > 100


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_follow_the_convention_of_2d_images(
    cases: dict[str, PhantomCase], kind: str
) -> None:
    volume = cases[kind].volume
    assert volume.voxels.dtype == np.uint8
    assert volume.grid.shape[2] == 1
    assert not volume.grid.spacing_known
    assert np.array_equal(volume.grid.affine, np.diag([-1.0, -1.0, 1.0, 1.0]))
    assert np.ptp(volume.voxels) > 150


@pytest.mark.parametrize(
    ("kind", "right", "left"),
    [
        ("ct-chest", "right lung", "left lung"),
        ("ct-abdomen", "liver", "spleen"),
        ("ct-abdomen", "gallbladder", "stomach"),
        ("ct-abdomen", "right kidney", "left kidney"),
        ("ct-pelvis", "right femoral head", "left femoral head"),
        ("mr-abdomen", "liver", "spleen"),
        ("mr-abdomen", "right kidney", "left kidney"),
        ("mr-heart", "RV", "LV"),
        ("xr-chest", "right lung", "left lung"),
    ],
)
def test_right_is_right_in_world_coordinates(
    small_cases: dict[str, list[PhantomCase]], kind: str, right: str, left: str
) -> None:
    for case in small_cases[kind]:  # x grows towards the patient's right in RAS+
        assert centroid(case, right)[0] > centroid(case, left)[0] + 10, case.title


@pytest.mark.parametrize(
    ("kind", "upper", "lower"),
    [
        ("ct-abdomen", "liver", "right kidney"),
        ("ct-pelvis", "hip bone", "right femoral head"),
        ("mr-knee", "femur", "tibia"),
        ("mr-prostate", "bladder", "prostate"),
        ("mr-brain", "ventricles", "cerebellum"),
    ],
)
def test_up_is_up_in_world_coordinates(
    small_cases: dict[str, list[PhantomCase]], kind: str, upper: str, lower: str
) -> None:
    for case in small_cases[kind]:
        assert centroid(case, upper)[2] > centroid(case, lower)[2], case.title


def test_front_is_front_in_world_coordinates(small_cases: dict[str, list[PhantomCase]]) -> None:
    for kind, front, back in (
        ("ct-chest", "heart", "aorta"),
        ("ct-abdomen", "stomach", "vertebra"),
        ("ct-pelvis", "bladder", "sacrum"),
        ("mr-knee", "patella", "femur"),
        ("mr-brain", "ventricles", "cerebellum"),
    ):
        for case in small_cases[kind]:
            assert centroid(case, front)[1] > centroid(case, back)[1], case.title


def test_left_lies_right_in_pictures(cases: dict[str, PhantomCase]) -> None:
    """A radiograph is shown as if facing the patient: the heart's bulk right of the midline."""
    labels = cases["xr-chest"].labels
    values = {n: v for v, n in labels.names.items()}
    column = {n: np.argwhere(labels.voxels == v)[:, 0].mean() for n, v in values.items()}
    assert column["right lung"] < column["heart"] < column["left lung"]
    assert column["heart"] > labels.voxels.shape[0] / 2 - 20


@pytest.mark.parametrize("kind", VOLUMES)
def test_scanners_differ(small_cases: dict[str, list[PhantomCase]], kind: str) -> None:
    group = small_cases[kind]
    assert len({axis_code(c) for c in group}) >= 2
    assert len({c.volume.grid.shape for c in group}) >= 2
    assert len({round(c.volume.grid.spacing[0], 4) for c in group}) == len(group)
    for case in group:
        spacing = sorted(case.volume.grid.spacing)
        assert spacing[2] >= 1.5 * spacing[1]  # thick slices: the acquired axis is unambiguous
        assert abs(np.linalg.det(case.volume.grid.affine[:3, :3])) == pytest.approx(
            np.prod(spacing), rel=1e-4
        )


def test_the_knee_is_acquired_sagittally(cases: dict[str, PhantomCase]) -> None:
    grid = cases["mr-knee"].volume.grid
    coarse = int(np.argmax(grid.spacing))
    assert int(np.argmax(np.abs(grid.affine[:3, coarse]))) == 0


@pytest.mark.parametrize("kind", VOLUMES)
def test_full_size_grids_are_realistic(cases: dict[str, PhantomCase], kind: str) -> None:
    case = cases[kind]
    shape = sorted(case.volume.grid.shape)
    assert 8 <= shape[0] <= 40
    assert 160 <= shape[1] <= shape[2] <= 256


def descriptor(case: PhantomCase) -> np.ndarray:
    """Histogram of the 8-bit volume and its coarse mean picture across the acquired axis."""
    voxels = case.volume.voxels.astype(np.float32)
    affine = case.volume.grid.affine[:3, :3]
    for axis in range(3):  # every stored axis counts up along R, A or S
        world = int(np.argmax(np.abs(affine[:, axis])))
        if affine[world, axis] < 0:
            voxels = np.flip(voxels, axis)
    order = [int(np.argmax(np.abs(affine[world]))) for world in range(3)]
    voxels = voxels.transpose(order)
    if case.modality == "CT":
        voxels = np.clip((voxels + 1000) / 1800, 0, 1)
    else:
        low, high = np.percentile(voxels, [0.5, 99.5])
        voxels = np.clip((voxels - low) / (high - low), 0, 1)
    histogram = np.histogram(voxels, bins=24, range=(0, 1))[0] / voxels.size
    coarse = [
        np.mean([part.mean() for part in np.array_split(voxels, 6, axis=axis)][k])
        for axis in range(3)
        for k in range(6)
        if voxels.shape[axis] >= 6
    ]
    coarse += [0.0] * (18 - len(coarse))
    return np.concatenate([np.sqrt(histogram), np.array(coarse)])


def test_cases_of_a_kind_resemble_each_other_more_than_others(
    small_cases: dict[str, list[PhantomCase]],
) -> None:
    kinds = [k for k, group in small_cases.items() for _ in group]
    vectors = np.stack([descriptor(c) for group in small_cases.values() for c in group])
    distance = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argmin(axis=1)
    right = np.mean([kinds[i] == kinds[j] for i, j in enumerate(nearest)])
    assert right >= 0.7  # by chance 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_cases_are_alike(small_cases: dict[str, list[PhantomCase]], kind: str) -> None:
    vectors = np.stack([descriptor(c) for c in small_cases[kind]])
    distance = np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 0.01


def test_unknown_kind_names_the_close_ones() -> None:
    with pytest.raises(UsageError, match="ct-chest"):
        make_case("ct-chests", 0)
