"""Cut a 3D region around each disc from all three views, in one anatomical orientation.

The box of a crop is centred on the disc's canal point. Its axes are the scan's own directions, permuted and
signed so that every crop reads the same way whatever the scanner did; following the scan keeps thick slices
unmixed. Training and inference use the same code.

Array axes of a crop: sagittal (right to left, superior to inferior, anterior to posterior), axial (superior to
inferior, anterior to posterior, right to left); the first axis is through-plane. Mirroring a study is therefore
a flip of axis 0 (sagittal) or the last axis (axial) plus the swap of left and right targets.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch

from ..dicom.series import Series
from ..errors import DataError, Issue
from ..files import atomically
from ..geometry import ON_BORDER, OrientedGrid
from ..labels import AXIAL_T2, LEVELS, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, VIEWS, level_title
from ..localization import DiscPoints
from ..notebook_html import card, data_uri, to_grey
from ..studies.study import Study
from .sampling import sample_box
from .stack_choice import VIEW_AXES, best_stacks

LATERAL_AXIS = {SAGITTAL_T2: 0, AXIAL_T2: 2, SAGITTAL_T1: 0}
"""The array axis of a crop (D, H, W) that runs from right to left: flip it to mirror the patient."""

INTENSITY_PERCENTILES = (1.0, 99.0)
"""Percentiles of a series' intensities inside its crop boxes that become 0 and 1; robust to vessels and hot spots
and independent of the field of view."""
INTENSITY_LIMITS = (-0.5, 2.0)
FORMAT_VERSION = 4
"""Of the files and of how they are cut: raise it when the same study gives other crops, and caches are made anew."""


@dataclass(frozen=True)
class CropSpec:
    """Size and sampling of the crops.

    Parameters
    ----------
    extents : mapping view -> (float, float, float)
        Side lengths in mm along the crop's array axes, through-plane first. Default 30 x 70 x 70 for the T2 views
        and 90 x 70 x 70 for sagittal T1, which must hold both foramina.
    shapes : mapping view -> (int, int, int)
        Samples along the same axes.

    Raises
    ------
    DataError
        When a view is missing, unknown or not given three positive numbers.
    """

    extents: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: {
            SAGITTAL_T2: (30.0, 70.0, 70.0),
            AXIAL_T2: (30.0, 70.0, 70.0),
            SAGITTAL_T1: (90.0, 70.0, 70.0),
        }
    )
    shapes: Mapping[str, tuple[int, int, int]] = field(
        default_factory=lambda: {SAGITTAL_T2: (8, 64, 64), AXIAL_T2: (8, 64, 64), SAGITTAL_T1: (24, 64, 64)}
    )

    def __post_init__(self):
        for name, number in (("extents", float), ("shapes", int)):
            value = getattr(self, name)
            if set(value) != set(VIEWS) or any(len(v) != 3 or min(v) <= 0 for v in value.values()):
                raise DataError(f"{name} must give three positive numbers for each of {VIEWS}, got {dict(value)}")
            object.__setattr__(self, name, {view: tuple(map(number, value[view])) for view in VIEWS})

    def to_json(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def of_size(cls, size: int) -> CropSpec:
        """The usual boxes with `size` x `size` samples in the slices."""
        return cls(shapes={view: (depth, size, size) for view, (depth, _, _) in cls().shapes.items()})

    @classmethod
    def from_json(cls, values: Mapping) -> CropSpec:
        """The inverse of `to_json`; raises `DataError` for unknown keys."""
        unknown = set(values) - {"extents", "shapes"}
        if unknown:
            raise DataError(f"unknown keys in a crop specification: {sorted(unknown)}")
        return cls(**values)


@dataclass(frozen=True)
class CroppedSeries:
    """The images that one crop was cut from."""

    series_id: str
    stack: int  # index in `Series.stacks`
    instance_numbers: tuple[int, ...]  # of the slices inside the box
    angle_degrees: float  # between the slices and the disc's plane; 0 for sagittal views


@dataclass(frozen=True, eq=False)
class StudyCrops:
    """The crops of one study: five levels in each of the three views.

    Attributes
    ----------
    images : dict view -> ndarray of float16, shape (5, D, H, W)
        About 0 to 1 inside the scan; 0 where not covered.
    covered : dict view -> ndarray of bool, shape (5, D, H, W)
        True where the scan shows the place. All False for a missing view.
    axes : dict view -> ndarray, shape (5, 3, 3)
        Row i of a level's matrix is the LPS direction of array axis i.
    sources : dict view -> tuple of 5 (CroppedSeries or None)
    points : DiscPoints
        The centres of the boxes.
    issues : tuple of Issue
        What was missing or left out.

    Raises
    ------
    DataError
        When an array has another shape or type, or an intensity is not finite or beyond `INTENSITY_LIMITS`.
    """

    study_id: str
    spec: CropSpec
    images: Mapping[str, np.ndarray] = field(repr=False)  # a thousand lines of numbers
    covered: Mapping[str, np.ndarray] = field(repr=False)
    axes: Mapping[str, np.ndarray] = field(repr=False)
    sources: Mapping[str, tuple[CroppedSeries | None, ...]] = field(repr=False)
    points: DiscPoints
    issues: tuple[Issue, ...] = ()

    def __post_init__(self):
        for view in VIEWS:
            shape = (N_LEVELS, *self.spec.shapes[view])
            expected = {"images": (np.float16, shape), "covered": (bool, shape), "axes": (np.float64, (N_LEVELS, 3, 3))}
            for name, (kind, wanted) in expected.items():
                array = getattr(self, name)[view]
                if (array.dtype, array.shape) != (kind, wanted):
                    raise DataError(
                        f"study {self.study_id}: {name} of {view} must be {np.dtype(kind)} of shape {wanted}, "
                        f"got {array.dtype} of shape {array.shape}"
                    )
            # Bits without the sign are ordered as the numbers are, and numpy compares whole numbers far more quickly.
            bits = np.ascontiguousarray(self.images[view]).view(np.uint16) & 0x7FFF
            largest = bits.max().view(np.float16)
            if not largest <= max(INTENSITY_LIMITS):
                raise DataError(
                    f"study {self.study_id}: intensities of {view} must be finite and lie in {INTENSITY_LIMITS}, "
                    f"got {largest}"
                )

    @property
    def centers(self) -> np.ndarray:
        """LPS mm of the boxes' centres, shape (5, 3)."""
        return self.points.points

    @property
    def missing(self) -> tuple[str, ...]:
        """Views of which no level has a crop."""
        return tuple(view for view in VIEWS if not self.covered[view].any())

    def grid(self, view: str, level: int | str) -> OrientedGrid:
        """The sample positions of one crop, to go from its voxels to the patient and back."""
        index = LEVELS.index(level) if isinstance(level, str) else level
        return OrientedGrid(
            self.centers[index], self.axes[view][index], self.spec.extents[view], self.spec.shapes[view]
        )

    def _repr_html_(self) -> str:
        rows = []
        for i, level in enumerate(LEVELS):
            cells = [f"{self.covered[v][i].mean():.0%}" if self.sources[v][i] else "no scan" for v in VIEWS]
            rows.append((level_title(level), *cells))
        shown = [view for view in (SAGITTAL_T2, AXIAL_T2) if self.covered[view].any()]
        pictures = []
        if shown and len({self.spec.shapes[view][1:] for view in shown}) == 1:
            middle = [np.hstack(self.images[view][:, self.spec.shapes[view][0] // 2]) for view in shown]
            text = f"middle slices of the five levels: {', '.join(shown)}"
            pictures.append((data_uri(to_grey(np.vstack(middle), (0.0, 1.05)), quality=70), text))
        about = "share of each crop that the scans cover"
        notes = list(map(str, self.issues))
        return card(f"study {self.study_id}", ("", *VIEWS), rows, about=about, notes=notes, pictures=pictures)

    def save(self, path: Path | str) -> Path:
        """Write one `.npz` atomically; nothing in it is pickled."""
        path = Path(path)
        meta = {
            "version": FORMAT_VERSION,
            "study_id": self.study_id,
            "spec": self.spec.to_json(),
            "sources": {v: [s and asdict(s) for s in self.sources[v]] for v in VIEWS},
            "series_id": self.points.series_id,
            "flags": list(self.points.flags),
            "source": self.points.source,
            "issues": [issue.to_json() for issue in self.issues],
        }
        arrays = {"points": self.points.points, "confidence": self.points.confidence}
        for i, view in enumerate(VIEWS):
            arrays[f"image_{i}"] = self.images[view]
            arrays[f"covered_{i}"] = np.packbits(self.covered[view])
            arrays[f"axes_{i}"] = self.axes[view]
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:  # a path would get the suffix .npz
                np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})

        atomically(path, write)
        return path

    @classmethod
    def load(cls, path: Path | str) -> StudyCrops:
        """Read what `save` wrote. Raises `DataError` naming the file when it is not such a file."""
        try:
            with ZipFile(path) as data:
                read = partial(_read_array, data, os.path.getsize(path))
                meta = json.loads(read("meta", np.uint8, None).tobytes())
                if meta["version"] != FORMAT_VERSION:
                    raise DataError(f"format {meta['version']}, expected {FORMAT_VERSION}")
                spec = CropSpec.from_json(meta["spec"])
                shapes = {view: (N_LEVELS, *spec.shapes[view]) for view in VIEWS}
                points = DiscPoints(
                    study_id=meta["study_id"],
                    series_id=meta["series_id"],
                    points=read("points", np.float64, (N_LEVELS, 3)),
                    confidence=read("confidence", np.float64, (N_LEVELS,)),
                    flags=tuple(meta["flags"]),
                    source=meta["source"],
                )
                return cls(
                    study_id=meta["study_id"],
                    spec=spec,
                    images={v: read(f"image_{i}", np.float16, shape) for i, (v, shape) in enumerate(shapes.items())},
                    covered={v: _unpacked(read, f"covered_{i}", shape) for i, (v, shape) in enumerate(shapes.items())},
                    axes={v: read(f"axes_{i}", np.float64, (N_LEVELS, 3, 3)) for i, v in enumerate(VIEWS)},
                    sources={view: tuple(_source(s) for s in meta["sources"][view]) for view in VIEWS},
                    points=points,
                    issues=tuple(map(Issue.from_json, meta["issues"])),
                )
        except MemoryError:
            raise
        except Exception as error:  # whatever readers of archives, arrays and JSON raise for broken ones
            raise DataError(f"{path}: not a readable file of crops ({error}); delete it and run again") from error


def extract_crops(study: Study, discs: DiscPoints, spec: CropSpec | None = None) -> StudyCrops:
    """Cut the five discs out of every view of a study.

    For each disc and view the stack that shows it best is chosen among all series of the view: the one that covers
    most of the box and, for the axial view, lies nearest to the disc's plane.

    Parameters
    ----------
    study : Study
    discs : DiscPoints
        Canal points of the five levels, LPS mm, finite.
    spec : CropSpec, optional
        Default: 3 x 7 x 7 cm from the T2 views, 9 x 7 x 7 cm from sagittal T1.

    Raises
    ------
    DataError
        When a disc point is not finite. A missing view is no error; see `StudyCrops.missing`.
    """
    spec = spec or CropSpec()
    if not np.isfinite(discs.points).all():
        raise DataError(f"study {study.study_id}: disc points must be finite, got {discs.points.tolist()}")
    images, covered, axes, sources = {}, {}, {}, {}
    issues: list[Issue] = []
    for view in VIEWS:
        *result, broken = _crop_view(study.by_view(view), view, discs, spec)
        images[view], covered[view], axes[view], sources[view] = result
        lacking = [LEVELS[i] for i, source in enumerate(sources[view]) if source is None]
        if broken:
            text = f"{broken} voxels of the crops are not finite"
            issues.append(Issue("voxels_not_finite", text, study.study_id, view=view))
        if len(lacking) == N_LEVELS:
            text = "no crops, " + ("no level lies in a scan" if study.by_view(view) else "no series")
            issues.append(Issue("view_missing", text, study.study_id, view=view))
        elif lacking:
            text = f"no scan shows {', '.join(lacking)}"
            issues.append(Issue("levels_missing", text, study.study_id, view=view))
    return StudyCrops(study.study_id, spec, images, covered, axes, sources, discs, tuple(issues))


def _crop_view(
    series: Sequence[Series], view: str, discs: DiscPoints, spec: CropSpec
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[CroppedSeries | None, ...], int]:
    """Images, covered, axes and sources of one view as in `StudyCrops`, and how many voxels are not finite."""
    shape = (N_LEVELS, *spec.shapes[view])
    values, covered = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
    axes = np.tile(np.stack(VIEW_AXES[view]), (N_LEVELS, 1, 1))
    sources: list[CroppedSeries | None] = [None] * N_LEVELS
    broken = 0
    for level, (item, index, own_axes, angle) in best_stacks(series, view, discs, spec.extents[view]).items():
        stack = item.stacks[index]
        axes[level] = own_axes
        grid = OrientedGrid(discs.points[level], own_axes, spec.extents[view], spec.shapes[view])
        values[level], covered[level] = sample_box(stack.pixels, stack.geometry, grid)
        finite = np.isfinite(values[level])
        if not finite.all():
            broken += int((covered[level] & ~finite).sum())
            covered[level] &= finite
        if not covered[level].any():  # a sliver of the box that falls between the samples of a coarse grid
            continue
        inside = np.abs(stack.geometry.offsets - grid.center @ stack.geometry.normal) <= grid.extent[0] / 2 + ON_BORDER
        numbers = tuple(stack.instance_numbers[i] for i in np.flatnonzero(inside))
        sources[level] = CroppedSeries(item.series_id, index, numbers, angle)
    for series_id in {s.series_id for s in sources if s is not None}:
        levels = [i for i, s in enumerate(sources) if s is not None and s.series_id == series_id]
        # Sorted first, because numpy sorts four times as quickly as it finds two percentiles among unsorted numbers.
        low, high = np.percentile(np.sort(values[levels][covered[levels]]), INTENSITY_PERCENTILES)
        for level in levels:  # in place: these arrays are what cropping spends its time on
            values[level] -= low
            values[level] /= max(high - low, 1e-6)
    np.clip(values, *INTENSITY_LIMITS, out=values)
    values[~covered] = 0
    images = torch.from_numpy(values).half().numpy()  # rounds as numpy does, twenty times as quickly
    return images, covered, axes, tuple(sources), broken


def _read_array(archive: ZipFile, limit: int, name: str, dtype: type, shape: tuple[int, ...] | None) -> np.ndarray:
    """An array of a file of `limit` bytes, its shape (None: any) and size checked before memory is taken for it."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        np.lib.format.read_magic(file)
        found, columns_first, kind = np.lib.format.read_array_header_1_0(file)
        if columns_first or kind != dtype or found != (found if shape is None else shape):
            raise DataError(f"{name} is {kind} of shape {found}, expected {np.dtype(dtype)} of shape {shape}")
        size = math.prod(found) * kind.itemsize
        if size > limit or file.tell() + size != info.file_size:
            raise DataError(f"{name} of shape {found} does not fit a file of {limit} bytes")
        array = np.empty(found, dtype)
        if file.readinto(array.reshape(-1).view(np.uint8)) != size:
            raise DataError(f"{name} is cut off")
    return array


def _unpacked(read: Callable[..., np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    n = math.prod(shape)
    return np.unpackbits(read(name, np.uint8, (-(-n // 8),)), count=n).view(bool).reshape(shape)


def _source(values: dict | None) -> CroppedSeries | None:
    return values and CroppedSeries(**{**values, "instance_numbers": tuple(values["instance_numbers"])})
