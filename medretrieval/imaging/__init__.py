"""Reading images, deriving their geometry, slicing them, and writing masks back."""

from medretrieval.imaging.body import CROPS, body_box, check_crop, embedded_part
from medretrieval.imaging.geometry import (
    AXES,
    describe,
    display_axes,
    extract,
    finest_plane,
    insert,
    picture_grid,
    position_mm,
    same_grid,
    singleton_axis,
    slice_axis,
)
from medretrieval.imaging.intensity import (
    POLICIES,
    IntensityPolicy,
    Window,
    apply_window,
    resolve_window,
)
from medretrieval.imaging.labels import label_names, read_labels
from medretrieval.imaging.limits import max_bytes
from medretrieval.imaging.orientation import AS_STORED, ORIENTATIONS, inverse, turn, turn_back
from medretrieval.imaging.readers import read_volume, stem
from medretrieval.imaging.slices import make_slices, reduced_shape, resize_area, resize_nearest
from medretrieval.imaging.sniff import KNOWN, sniff, suffix_of
from medretrieval.imaging.writing import check_target, write_labels, write_volume

__all__ = [
    "AS_STORED",
    "AXES",
    "CROPS",
    "KNOWN",
    "ORIENTATIONS",
    "POLICIES",
    "IntensityPolicy",
    "Window",
    "apply_window",
    "body_box",
    "check_crop",
    "check_target",
    "describe",
    "display_axes",
    "embedded_part",
    "extract",
    "finest_plane",
    "insert",
    "inverse",
    "label_names",
    "make_slices",
    "max_bytes",
    "picture_grid",
    "position_mm",
    "read_labels",
    "read_volume",
    "reduced_shape",
    "resize_area",
    "resize_nearest",
    "resolve_window",
    "same_grid",
    "singleton_axis",
    "slice_axis",
    "sniff",
    "stem",
    "suffix_of",
    "turn",
    "turn_back",
    "write_labels",
    "write_volume",
]
