"""Registration of one picture to another with SimpleITK: affine, then a diffeomorphism."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UnavailableError

# Registration is of pictures reduced to this side; the transform found is applied at full size.
_SIDE = 128
_LEAST = 8  # pixels along a side, below which nothing can be smoothed
_HISTOGRAM = (128, 8)  # levels, match points
_AFFINE_ITERATIONS = 60
_DEMONS = ((4, 40), (2, 30), (1, 15))  # reduction, iterations
_SMOOTHING = 1.5  # of the displacement field, in pixels of its level


@dataclass(frozen=True, eq=False)
class Warp:
    """A support brought onto the picture that it was registered to.

    Attributes:
        picture: (H, W) float32, the support's picture there, its intensities matched.
    """

    picture: NDArray[np.float32]
    _apply: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def __call__(self, mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """(H, W) float32, a map on the support's pixels brought onto the picture, linearly."""
        return self._apply(mask)


def register(fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> Warp:
    """Register `moving` to `fixed`.

    Both are placed centre on centre and scaled to the same size, as masks are copied by the simple
    baselines. After histogram matching an affine transform is found by mutual information over
    three resolutions, then a diffeomorphism by demons over three resolutions. One thread and no
    random sampling: the result is the same every time.

    Args:
        fixed, moving: (H, W) float32 of any sizes.

    Raises:
        UnavailableError: SimpleITK is not installed.
    """
    sitk = simple_itk()
    target = _image(sitk, fixed)
    source = _image(sitk, moving)
    small_target, small_source = _reduced(sitk, target), _reduced(sitk, source)
    small_source = sitk.HistogramMatching(small_source, small_target, *_HISTOGRAM)
    affine = _affine(sitk, small_target, small_source)
    near = sitk.Resample(small_source, small_target, affine, sitk.sitkLinear)
    field = _demons(sitk, small_target, near)
    whole = sitk.CompositeTransform(affine)
    whole.AddTransform(sitk.DisplacementFieldTransform(field))

    def apply(values: NDArray[np.float32]) -> NDArray[np.float32]:
        moved = sitk.Resample(_image(sitk, values), target, whole, sitk.sitkLinear)
        return np.asarray(sitk.GetArrayFromImage(moved), np.float32)

    matched = sitk.HistogramMatching(source, target, *_HISTOGRAM)
    return Warp(apply(sitk.GetArrayFromImage(matched)), apply)


def simple_itk() -> Any:
    """SimpleITK on one thread.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        sitk: Any = importlib.import_module("SimpleITK")
    except ImportError:
        raise UnavailableError(
            "multi-atlas fusion needs SimpleITK, which is not installed; run "
            "`pip install -r requirements-evaluation.txt`, or leave the method out"
        ) from None
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return sitk


def _image(sitk: Any, picture: NDArray[np.float32]) -> Any:
    """A picture that fills the unit square, so that pictures of any size lie on each other."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(picture, np.float32))
    rows, columns = picture.shape
    spacing = (_SIDE / columns, _SIDE / rows)
    image.SetSpacing(spacing)
    image.SetOrigin((spacing[0] / 2, spacing[1] / 2))
    return image


def _reduced(sitk: Any, image: Any) -> Any:
    """The picture with at most `_SIDE` pixels a side, smoothed before."""
    size = [min(_SIDE, side) for side in image.GetSize()]
    spacing = [_SIDE / side for side in size]
    sigmas = [0.5 * new for new in spacing]
    if min(image.GetSize()) < _LEAST:
        raise InputError(
            f"a picture of {image.GetSize()[0]} x {image.GetSize()[1]} pixels cannot be "
            f"registered; expected at least {_LEAST} along each side"
        )
    if size != list(image.GetSize()):
        image = sitk.SmoothingRecursiveGaussian(image, sigmas)
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetOrigin([step / 2 for step in spacing])
    return sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear)


def _affine(sitk: Any, fixed: Any, moving: Any) -> Any:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=4.0,
        minStep=0.05,
        numberOfIterations=_AFFINE_ITERATIONS,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-6,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    start = sitk.AffineTransform(2)
    start.SetCenter([_SIDE / 2, _SIDE / 2])
    method.SetInitialTransform(start, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        # ITK refuses pictures without any contrast or overlap; they stay where they are.
        return sitk.AffineTransform(2)
    return start


def _demons(sitk: Any, fixed: Any, moving: Any) -> Any:
    """The displacement field (in the space of `fixed`) that brings `moving` onto it."""
    field = None
    for shrink, iterations in _DEMONS:
        factors = [min(shrink, max(1, side // 16)) for side in fixed.GetSize()]
        a, b = (sitk.Shrink(_blurred(sitk, image, shrink), factors) for image in (fixed, moving))
        if field is None:
            field = sitk.Image(a.GetSize(), sitk.sitkVectorFloat64)
            field.CopyInformation(a)
        else:
            field = sitk.Resample(field, a, sitk.Transform(), sitk.sitkLinear)
        demons = sitk.DiffeomorphicDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetSmoothDisplacementField(True)
        demons.SetStandardDeviations(_SMOOTHING)
        field = demons.Execute(a, b, field)
    return sitk.Cast(field, sitk.sitkVectorFloat64)


def _blurred(sitk: Any, image: Any, shrink: int) -> Any:
    if shrink == 1:
        return image
    return sitk.SmoothingRecursiveGaussian(image, [0.5 * shrink * s for s in image.GetSpacing()])
