"""Crops and labels as what a network eats: arrays in memory or read from the crop cache, torch datasets, folds.

What a crop does not cover holds 0 in the cache, which is the black of air. Here it becomes `CENTER`, a typical
tissue intensity, and after `(x - CENTER) / SCALE` exactly 0: the same value that the convolutions' padding puts
outside the crop, so that a place outside the scan looks like a place outside the box and not like an organ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..crops.extraction import CropSpec, StudyCrops
from ..errors import DataError
from ..labels import MISSING, N_LEVELS, N_SEVERITIES, N_TARGETS, VIEWS, encode_severities

CENTER, SCALE = 0.35, 0.25
"""Middle and spread of the normalised intensities of lumbar crops; batch normalisation evens out the rest."""

Images = Mapping[str, np.ndarray]
"""View -> float16 (5, D, H, W), centred and scaled, 0 where not covered."""


@dataclass(frozen=True, eq=False)
class StudyInput:
    """One study as the network takes it.

    Attributes
    ----------
    study_id : str
    images : dict view -> ndarray of float16, shape (5, D, H, W)
        `(intensity - CENTER) / SCALE`; 0 where not covered.
    present : ndarray of bool, shape (3, 5)
        Which view (in the order of `labels.VIEWS`) shows which level.
    """

    study_id: str
    images: Images
    present: np.ndarray


def study_input(crops: StudyCrops) -> StudyInput:
    """Centre and scale the crops of a study and mark what is there."""
    images, present = {}, np.zeros((len(VIEWS), N_LEVELS), dtype=bool)
    for i, view in enumerate(VIEWS):
        covered = np.asarray(crops.covered[view], dtype=bool)
        scaled = (np.asarray(crops.images[view], dtype=np.float32) - CENTER) / SCALE
        images[view] = np.where(covered & np.isfinite(scaled), scaled, 0).astype(np.float16)
        present[i] = covered.reshape(N_LEVELS, -1).any(axis=1)
    return StudyInput(str(crops.study_id), images, present)


class CropDataset(Dataset):
    """Studies with their labels, one item a study.

    Parameters
    ----------
    source : mapping study_id -> StudyCrops
        A `CropCache`, or a dict.
    study_ids : sequence of str
        Which studies, in which order.
    labels : int array, shape (n_studies, 25), optional
        Rows in the order of `study_ids`, -1 = not labelled. Default: all -1.
    in_memory : bool
        Read everything once now (about 1 MB a study at 48 x 48) instead of at every access.
    transform : callable, optional
        Takes and returns `dict view -> (5, D, H, W)`; called at every access, in the loader's worker.

    Items are dicts: `images` (dict view -> float32 tensor (5, D, H, W)), `present` (bool (3, 5)), `labels`
    (int64 (25,)), `index` (position in `study_ids`). The default collate of a DataLoader makes batches of them.
    """

    def __init__(
        self,
        source: Mapping[str, StudyCrops],
        study_ids: Sequence[str],
        labels: np.ndarray | None = None,
        *,
        in_memory: bool = True,
        transform: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
        progress: bool = True,
    ):
        self.source = source
        self.study_ids = tuple(str(s) for s in study_ids)
        self.labels = np.full((len(self), N_TARGETS), MISSING) if labels is None else np.asarray(labels)
        if self.labels.shape != (len(self), N_TARGETS):
            raise DataError(f"labels must have shape ({len(self)}, {N_TARGETS}), got {self.labels.shape}")
        self.transform = transform
        self._kept: list[StudyInput] | None = None
        if in_memory:
            rows = tqdm(self.study_ids, desc="crops to memory", unit="study", disable=not progress, leave=False)
            self._kept = [study_input(source[study_id]) for study_id in rows]

    def __len__(self) -> int:
        return len(self.study_ids)

    def __getitem__(self, index: int) -> dict:
        item = self._kept[index] if self._kept is not None else study_input(self.source[self.study_ids[index]])
        images = item.images if self.transform is None else self.transform(dict(item.images))
        return {
            "images": {view: torch.from_numpy(np.asarray(images[view], dtype=np.float32)) for view in VIEWS},
            "present": torch.from_numpy(item.present),
            "labels": torch.from_numpy(self.labels[index].astype(np.int64)),
            "index": index,
        }


def batch_of(inputs: Iterable[StudyInput]) -> dict:
    """Stack studies into one batch: `images` (dict view -> (B, 5, D, H, W) float32), `present` (B, 3, 5)."""
    inputs = list(inputs)
    return {
        "images": {v: torch.from_numpy(np.stack([i.images[v] for i in inputs]).astype(np.float32)) for v in VIEWS},
        "present": torch.from_numpy(np.stack([i.present for i in inputs])),
    }


def spec_of(source: Mapping[str, StudyCrops], study_ids: Sequence[str]) -> CropSpec:
    """The specification that all crops of a source share: the cache's own, else that of the first study."""
    spec = getattr(source, "spec", None)
    return spec if spec is not None else source[study_ids[0]].spec


def folds_by_study(labels: pd.DataFrame, n_folds: int = 5, *, seed: int = 0) -> dict[str, int]:
    """The fold of every study of a table in `train.csv` form, by `assign_folds`.

    It goes by the whole table, in its order, so a study stays in its fold whatever images or crops of others there are.
    """
    study_ids = [str(study_id) for study_id in labels["study_id"]]
    return dict(zip(study_ids, assign_folds(encode_severities(labels), n_folds, seed=seed).tolist(), strict=True))


def assign_folds(labels: np.ndarray, n_folds: int = 5, *, seed: int = 0) -> np.ndarray:
    """Assign every study to a fold so that each target's severities are spread evenly.

    Iterative stratification: the rarest class of all targets that still has unassigned studies is dealt out first,
    each study to the fold that lacks most of that class (Sechidis, Tsoumakas, Vlahavas 2011, ECML PKDD). A study
    is one row, so its levels and sides never part.

    Parameters
    ----------
    labels : int array, shape (n_studies, 25)

    Returns
    -------
    ndarray of int64, shape (n_studies,)
        Fold 0 to n_folds - 1.
    """
    labels = np.asarray(labels)
    n = len(labels)
    if not 2 <= n_folds <= n:
        raise DataError(f"the number of folds must lie between 2 and the number of studies ({n}), got {n_folds}")
    rng = np.random.default_rng(seed)
    classes = np.concatenate([labels == k for k in range(1, N_SEVERITIES)], axis=1)
    wanted = np.tile(classes.sum(axis=0) / n_folds, (n_folds, 1)).astype(np.float64)
    room = np.full(n_folds, n / n_folds)
    folds = np.full(n, -1, dtype=np.int64)
    order = rng.permutation(n)
    while (folds < 0).any():
        free = order[folds[order] < 0]
        left = classes[free].sum(axis=0)
        if left.max() == 0:
            chosen, rare = free, None
        else:
            rare = int(np.where(left > 0, left, n + 1).argmin())
            chosen = free[classes[free, rare]]
        for study in chosen:
            need = room if rare is None else wanted[:, rare]
            best = np.flatnonzero(need == need.max())
            best = best[room[best] == room[best].max()]
            fold = int(rng.choice(best))
            folds[study] = fold
            wanted[fold] -= classes[study]
            room[fold] -= 1
    return folds
