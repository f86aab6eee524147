"""All 25 points of the competition's table: the canal, both foramina and both recesses of each disc.

The localizer's canal points say where crops are cut; on these two small networks find the rest, the foramina on
sagittal T1, the recesses on axial T2. There they also find the canal, which tells its sideways place more exactly than
sagittal slices 4 mm apart. A point that no scan shows is placed from the canal, as it lies in the mean, and marked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..devices import check_finite, cpu_has_bfloat16
from ..errors import DataError
from ..geometry import OrientedGrid
from ..labels import (
    AXIAL_T2,
    CONDITIONS,
    LEVELS,
    N_CONDITIONS,
    N_LEVELS,
    N_TARGETS,
    SAGITTAL_T1,
    SAGITTAL_T2,
    condition_title,
    level_title,
)
from ..localization import DiscLocalizer, DiscPoints
from ..localization.network import SliceUNet, log_probability
from ..localization.points import POINT_COLUMNS, chain_tangents, forward_directions
from ..notebook_html import card
from ..studies.study import Study
from .extraction import CroppedSeries, CropSpec, StudyCrops, extract_crops

HEADS: Mapping[str, tuple[int, ...]] = {SAGITTAL_T1: (1, 2), AXIAL_T2: (0, 3, 4)}
"""The conditions, as indices into `CONDITIONS`, whose points the network of a view finds."""
VIEW_OF = (SAGITTAL_T2, SAGITTAL_T1, SAGITTAL_T1, AXIAL_T2, AXIAL_T2)
"""The view on which readers mark each condition."""
TARGET_COLUMNS = (*POINT_COLUMNS, "condition", "instance_number")
ESTIMATED = "estimated"
"""The flag of a point that no scan shows, which was placed from the canal's."""
NEAR_MM = 8.0
"""A point is the mean of the probability so near to its peak; its share of all is the confidence."""
MIN_SHARE = 0.3
"""Where less of the probability is, nothing is found; the point is placed from the canal, with this confidence."""
SHIPPED_TARGETS = Path(__file__).resolve().parent.parent / "weights" / "shipped_targets"


@dataclass(frozen=True)
class TargetConfig:
    """One view's network: a `SliceUNet` that is also given where along the crop a slice lies, as left and right
    foramina look alike."""

    view: str
    widths: tuple[int, ...] = (16, 32, 64, 96)
    neighbours: int = 1
    sigma_mm: float = 3.0  # spread of the training target

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))

    @property
    def chain(self) -> tuple[str, ...]:
        """What it looks for."""
        return tuple(CONDITIONS[condition] for condition in HEADS[self.view])

    @property
    def channels(self) -> int:
        """Slices and the position."""
        return 2 * self.neighbours + 2


@dataclass(frozen=True, eq=False)
class TargetPoints:
    """The 25 points of one study, in the order of `labels.TARGETS`.

    Parameters
    ----------
    study_id : str
    points : array_like, shape (25, 3)
        LPS mm, finite.
    confidence : array_like, shape (25,)
        0 to 1.
    series_ids : tuple of 25 str
        The series that shows each point: the canal on sagittal T2, foramina on sagittal T1, recesses on axial T2; ""
        where none does.
    instance_numbers : tuple of 25 (int or None)
        Of the slice nearest to each point.
    flags : tuple of 25 str
        Those of the level's canal point, and "estimated" where a point was placed from it.

    Raises
    ------
    DataError
        When shapes or ranges are wrong.
    """

    study_id: str
    points: np.ndarray
    confidence: np.ndarray
    series_ids: tuple[str, ...]
    instance_numbers: tuple[int | None, ...]
    flags: tuple[str, ...] = ("",) * N_TARGETS

    def __post_init__(self):
        points, confidence = (np.array(part, dtype=np.float64) for part in (self.points, self.confidence))
        if points.shape != (N_TARGETS, 3) or not np.isfinite(points).all():
            raise DataError(f"study {self.study_id}: expected {N_TARGETS} x 3 finite mm, got shape {points.shape}")
        if confidence.shape != (N_TARGETS,) or not np.all((confidence >= 0) & (confidence <= 1)):
            raise DataError(f"study {self.study_id}: confidence must be {N_TARGETS} numbers in 0..1")
        counts = [len(part) for part in (self.series_ids, self.instance_numbers, self.flags)]
        if counts != [N_TARGETS] * 3:
            raise DataError(f"study {self.study_id}: expected {N_TARGETS} series, slices and flags, got {counts}")
        for name, array in (("points", points), ("confidence", confidence)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @property
    def places(self) -> np.ndarray:
        """The points as (condition, level, 3)."""
        return self.points.reshape(N_CONDITIONS, N_LEVELS, 3)

    @property
    def discs(self) -> DiscPoints:
        """The canal points, from which crops are cut."""
        own = slice(0, N_LEVELS)
        return DiscPoints(self.study_id, self.series_ids[0], self.points[own], self.confidence[own], self.flags[own])

    def to_frame(self) -> pd.DataFrame:
        """One row a point, columns `TARGET_COLUMNS`; `instance_number` is empty where no slice shows the point."""
        return pd.DataFrame(
            {
                "study_id": self.study_id,
                "series_id": self.series_ids,
                "level": LEVELS * N_CONDITIONS,
                **dict(zip("xyz", self.points.T, strict=True)),
                "confidence": self.confidence,
                "flag": self.flags,
                "condition": np.repeat(CONDITIONS, N_LEVELS),
                "instance_number": pd.array(self.instance_numbers, dtype="Int64"),
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> TargetPoints:
        """The inverse of `to_frame`: the 25 rows of one study, in any order."""
        absent = [column for column in TARGET_COLUMNS if column not in frame.columns]
        if absent:
            raise DataError(f"the points table lacks the columns {absent}, it has {list(frame.columns)}")
        keys = pd.MultiIndex.from_frame(frame[["condition", "level"]].astype(str))
        wanted = pd.MultiIndex.from_product([CONDITIONS, LEVELS])
        study_id = str(frame["study_id"].iloc[0]) if len(frame) else ""
        if len(frame) != N_TARGETS or set(keys) != set(wanted) or set(frame["study_id"].astype(str)) != {study_id}:
            raise DataError(f"study {study_id}: expected one row for each of the {N_TARGETS} points of one study")
        frame = frame.set_index(keys).loc[wanted]
        series_ids, flags = (tuple("" if pd.isna(t) else str(t) for t in frame[name]) for name in ("series_id", "flag"))
        numbers = tuple(None if pd.isna(number) else int(number) for number in frame["instance_number"])
        return cls(study_id, frame[["x", "y", "z"]], frame["confidence"], series_ids, numbers, flags)

    def _repr_html_(self) -> str:
        texts = [
            f"{'not seen' if number is None else f'slice {number}'}, {confidence:.2f}"
            for number, confidence in zip(self.instance_numbers, self.confidence, strict=True)
        ]
        rows = [(level_title(level), *texts[i::N_LEVELS]) for i, level in enumerate(LEVELS)]
        heads = ("", *map(condition_title, CONDITIONS))
        return card(f"study {self.study_id}", heads, rows, about="instance number and confidence of each point")


@dataclass(frozen=True)
class TargetNetworks:
    """The networks by view, and where each point lies in the mean from the canal's (4 conditions, 5 levels, 3): mm to
    the left, to the front and down along the canal."""

    networks: Mapping[str, SliceUNet]
    offsets: np.ndarray

    @classmethod
    def load(cls, folder: Path | str = SHIPPED_TARGETS) -> TargetNetworks:
        """Read what `tools/make_targets.py` wrote. Raises `DataError` when a file is absent or damaged."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            networks = {values["view"]: SliceUNet(TargetConfig(**values)) for values in about["networks"]}
            state = load_file(folder / "model.safetensors")
            check_finite(state, folder / "model.safetensors")
            nn.ModuleDict(networks).load_state_dict(state)  # from half precision
            offsets = np.array(about["offsets_mm"]).reshape(N_CONDITIONS - 1, N_LEVELS, 3)
        except (KeyError, ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise DataError(f"{folder}: no networks of the 25 points here: {error}") from error
        return cls({view: network.eval() for view, network in networks.items()}, offsets)


shipped_networks = lru_cache(maxsize=1)(TargetNetworks.load)


@dataclass(frozen=True)
class TargetLocalizer:
    """A `DiscLocalizer` and what follows it: from a study to its 25 points, as `locate_studies` wants it."""

    localizer: DiscLocalizer

    @property
    def device(self) -> torch.device:
        """Of the localizer; the small networks are always on the CPU."""
        return self.localizer.device

    def locate(self, study: Study) -> TargetPoints:
        """The 25 points; raises what `DiscLocalizer.locate` does."""
        return locate_targets(study, self.localizer.locate(study))


def locate_targets(study: Study, discs: DiscPoints, networks: TargetNetworks | None = None) -> TargetPoints:
    """The 25 points of a study whose canal points are known, by the networks that ship with the library.

    Where axial slices show the canal, or else T1 shows both foramina, the canal's points are moved sideways into it.
    """
    networks = networks or shipped_networks()
    crops = extract_crops(study, discs)
    places, shares = points_on_crops(crops, networks)
    # What people gave stays where it is.
    places[0] = _into_the_canal(discs, places) if discs.source == "localizer" else discs.points
    shares[0] = 1.0
    known = np.isfinite(places).all(axis=-1)
    tangents = chain_tangents(places[0])
    ahead = forward_directions(tangents)
    frames = np.stack([np.cross(ahead, tangents), ahead, tangents], axis=1)  # (level, direction, 3)
    estimates = places[0] + np.einsum("cld,ldx->clx", networks.offsets, frames)
    places[1:] = np.where(known[1:, :, None], places[1:], estimates)
    confidence = np.where(known, shares, MIN_SHARE) * discs.confidence
    flags = [
        ", ".join(filter(None, (flag, "" if here else ESTIMATED)))
        for on_condition in known
        for flag, here in zip(discs.flags, on_condition, strict=True)
    ]
    slices = []
    for condition, (view, on_condition) in enumerate(zip(VIEW_OF, known, strict=True)):
        for level, source in enumerate(crops.sources[view]):
            slices.append(_slice_of(study, source if on_condition[level] else None, places[condition, level]))
            if condition == 0 and slices[-1][1] is None:
                slices[-1] = (discs.series_id, None)
    return TargetPoints(
        study.study_id,
        places.reshape(-1, 3),
        confidence.reshape(-1),
        tuple(series_id for series_id, _ in slices),
        tuple(number for _, number in slices),
        tuple(flags),
    )


def points_on_crops(crops: StudyCrops, networks: TargetNetworks | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the networks find on crops of the usual extent: LPS mm (condition, level, 3), nan where nothing is found,
    and the share of probability at each place (condition, level)."""
    networks, usual = networks or shipped_networks(), CropSpec()
    places = np.full((N_CONDITIONS, N_LEVELS, 3), np.nan)
    shares = np.zeros((N_CONDITIONS, N_LEVELS))
    for view, heads in HEADS.items():
        depth, *size = usual.shapes[view]
        seen = np.flatnonzero(crops.covered[view].any(axis=(1, 2, 3)))
        alike = crops.spec.extents[view] == usual.extents[view] and crops.spec.shapes[view][0] == depth
        if not alike or not len(seen):
            continue
        images = torch.from_numpy(crops.images[view][seen]).float()
        if images.shape[2:] != tuple(size):
            images = nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
        voxels, share = find_points(networks.networks[view], images, usual.extents[view])
        for level, own_voxels, own_share in zip(seen, voxels, share, strict=True):
            grid = OrientedGrid(crops.centers[level], crops.axes[view][level], usual.extents[view], images.shape[1:])
            found = own_share >= MIN_SHARE
            chosen = np.array(heads)[found]
            places[chosen, level] = grid.voxel_to_world(own_voxels[found])
            shares[chosen, level] = own_share[found]
    return places, shares


def _slice_of(study: Study, source: CroppedSeries | None, point: np.ndarray) -> tuple[str, int | None]:
    """The series of a point and the instance number of its slice."""
    series = study.series_by_id(source.series_id) if source is not None else None
    if source is None or series is None:
        return "", None
    stack = series.stacks[source.stack]
    return series.series_id, stack.instance_numbers[int(stack.geometry.nearest_slice(point))]


def _into_the_canal(discs: DiscPoints, places: np.ndarray) -> np.ndarray:
    """The canal's points (5, 3), moved sideways to where axial slices show the canal, or else to the middle between the
    foramina; in the sagittal plane they stay where sagittal slices, which are sharp there, show them."""
    left = np.cross(discs.forward(), discs.tangents())
    middle = np.where(np.isfinite(places[0]), places[0], places[1:3].mean(axis=0))
    return discs.points + np.nan_to_num(((middle - discs.points) * left).sum(axis=1, keepdims=True)) * left


def with_position(images: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Crops (n, D, H, W) as slices (n * D, channels, H, W): each with its neighbours, 0 beyond the ends, and a channel
    that grows from 0 to 1 along the crop."""
    n, depth, height, width = images.shape
    padded = nn.functional.pad(images, (0, 0, 0, 0, neighbours, neighbours))
    around = padded.unfold(1, 2 * neighbours + 1, 1).movedim(-1, 2)
    along = torch.linspace(0, 1, depth).view(1, depth, 1, 1, 1).expand(n, depth, 1, height, width)
    return torch.cat([around, along], dim=2).flatten(0, 1)


def find_points(network: SliceUNet, images: torch.Tensor, extent: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (n, heads, 3) of the points on crops (n, D, H, W), fractional, and the share of probability there."""
    inputs = with_position(images, network.config.neighbours)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
        logits = network(inputs.contiguous(memory_format=torch.channels_last)).float()
    probability = log_probability(logits.unflatten(0, images.shape[:2]))[0].exp().transpose(1, 2)
    shape = probability.shape[2:]
    # A pixel of the maps covers two by two of the crop's.
    axes = [np.arange(n) * step + (step - 1) / 2 for n, step in zip(shape, (1, 2, 2), strict=True)]
    mm = [torch.from_numpy(a * e / n).float() for a, e, n in zip(axes, extent, images.shape[1:], strict=True)]
    peak = np.unravel_index(probability.flatten(2).argmax(-1).numpy(), shape)
    middle = [axis[torch.from_numpy(index)] for axis, index in zip(mm, peak, strict=True)]
    for _ in range(3):  # the mean shift: the window follows the mean of what it holds
        away = [(axis - at[..., None]) ** 2 for axis, at in zip(mm, middle, strict=True)]
        distance = away[0][..., :, None, None] + away[1][..., None, :, None] + away[2][..., None, None, :]
        near = probability * (distance <= NEAR_MM**2)
        share = near.sum(dim=(2, 3, 4))
        sums = near.sum(dim=(3, 4)), near.sum(dim=(2, 4)), near.sum(dim=(2, 3))
        middle = [(total * axis).sum(-1) / share.clamp_min(1e-9) for total, axis in zip(sums, mm, strict=True)]
    per_mm = np.array(images.shape[1:]) / np.asarray(extent)
    return torch.stack(middle, dim=-1).numpy() * per_mm, share.clamp(0, 1).numpy()
