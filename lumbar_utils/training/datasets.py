"""The studies that a training reads: which are held out, a torch dataset of crops with labels, and shared batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset, Sampler

from ..crops.cache import CropCache
from ..crops.extraction import CropSpec, StudyCrops
from ..errors import DataError
from ..labels import N_SEVERITIES, N_TARGETS, VIEWS, encode_severities
from ..models.inputs import StudyInput, study_input
from ..notebook_html import progress_bar
from .config import TrainConfig
from .distributed import Processes

logger = logging.getLogger(__name__)

FEW = 5
"""Studies to be expected in a fold, below which chance may well leave less than half of them in it."""


@dataclass(frozen=True, eq=False)
class Split:
    """Studies to train on and studies held out, with their labels int8 (n, 25)."""

    train: list[str]
    train_labels: np.ndarray
    held_out: list[str]
    held_out_labels: np.ndarray

    def digest(self) -> str:
        """Changes with any study or label."""
        ids = ("\n".join(self.train).encode(), "\n".join(self.held_out).encode())
        parts = (ids[0], self.train_labels.tobytes(), ids[1], self.held_out_labels.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def training_split(
    cache: Mapping[str, StudyCrops],
    validation: Mapping[str, StudyCrops],
    labels: pd.DataFrame,
    config: TrainConfig,
    *,
    held_out: Sequence[str] | None = None,
    training_labels: pd.DataFrame | None = None,
) -> Split:
    """Divide the labelled studies that have crops: the fold that `config` names, or `held_out`, is held out.

    Training studies have their crops in `cache`, held-out ones in `validation`. Raises `DataError` when there is
    nothing to train on, or crops or labels of held-out studies are absent.
    """
    codes, folds = codes_by_study(labels), config.folds
    available, predictable = (set(getattr(crops, "study_ids", crops)) for crops in (cache, validation))
    if not available & set(codes):
        raise DataError(f"none of the {len(codes)} labelled studies has crops (there are {len(available)})")
    out: list[str] = []
    if held_out is not None:
        out = [str(s) for s in held_out]
        lacking = [s for s in out if s not in predictable or s not in codes]
        if lacking:
            raise DataError(f"{len(lacking)} held-out studies lack crops or labels, the first is {lacking[0]!r}")
    kept_out = set(out)
    if held_out is None and folds > 1:
        fold_of = folds_by_study(labels, folds, seed=config.fold_seed)
        either = [s for s in codes if s in available or s in predictable]
        kept_out = {s for s in either if fold_of[s] == config.fold}
        out = [s for s in codes if s in kept_out and s in predictable]
        expected, lost = len(either) / folds, len(kept_out) - len(out)
        if not out or (expected >= FEW and len(out) < expected / 2):
            raise DataError(
                f"only {len(out)} of {len(either)} studies that have crops can be predicted as fold {config.fold} of "
                f"{folds}: are they the crops of another fold, do those around found discs lie in another folder "
                "(--found), or are they a handful? folds = 1 holds none out"
            )
        if lost:
            logger.warning("%d of %d held-out studies have no crops to predict", lost, len(kept_out))
    train = [s for s in codes if s in available and s not in kept_out]
    if not train:
        raise DataError("every study is held out, nothing is left to train on")
    trained = codes if training_labels is None else codes_by_study(training_labels)
    lacking = [s for s in train if s not in trained]
    if lacking:
        raise DataError(f"the training labels lack {len(lacking)} studies, the first is {lacking[0]!r}")
    return Split(train, _rows(trained, train), out, _rows(codes, out))


def _rows(codes: Mapping[str, np.ndarray], study_ids: Sequence[str]) -> np.ndarray:
    return np.array([codes[s] for s in study_ids], dtype=np.int8).reshape(-1, N_TARGETS)


def codes_by_study(labels: pd.DataFrame) -> dict[str, np.ndarray]:
    """The labels of every study of a table in `train.csv` form, int8 (25,), -1 = not labelled."""
    if "study_id" not in labels.columns:
        raise DataError(f"the label table lacks the column study_id, it has {list(labels.columns)[:5]}")
    return dict(zip((str(s) for s in labels["study_id"]), encode_severities(labels), strict=True))


def content_digest(crops: Mapping[str, StudyCrops], study_ids: Sequence[str]) -> str:
    """Changes with the content of any of these studies' crops."""
    if isinstance(crops, CropCache):
        return crops.digest(study_ids)
    items = [crops[study_id] for study_id in study_ids]
    arrays = (array for item in items for part in (item.images, item.covered) for array in part.values())
    return hashlib.sha256(b"".join(hashlib.sha256(np.ascontiguousarray(a)).digest() for a in arrays)).hexdigest()


def folds_by_study(labels: pd.DataFrame, n_folds: int = 5, *, seed: int = 0) -> dict[str, int]:
    """The fold of every study of a `train.csv` table by `assign_folds`, whatever images or crops there are."""
    codes = codes_by_study(labels)
    return dict(zip(codes, assign_folds(np.array(list(codes.values())), n_folds, seed=seed).tolist(), strict=True))


def assign_folds(labels: np.ndarray, n_folds: int = 5, *, seed: int = 0) -> np.ndarray:
    """The fold, 0 to `n_folds` - 1, of each row of labels (n, 25), so that each target's severities are spread evenly.

    Iterative stratification: the rarest class is dealt out first, each study to the fold that lacks most of it
    (Sechidis, Tsoumakas, Vlahavas 2011, ECML PKDD).
    """
    n = len(labels)
    if not 2 <= n_folds <= n:
        raise DataError(f"the number of folds must lie between 2 and the number of studies ({n}), got {n_folds}")
    rng = np.random.default_rng(seed)
    # The last class is that of all studies: its counts are the room in the folds.
    classes = np.concatenate([*(labels == k for k in range(1, N_SEVERITIES)), np.ones((n, 1), dtype=bool)], axis=1)
    wanted = np.tile(classes.sum(axis=0) / n_folds, (n_folds, 1))
    folds = np.full(n, -1, dtype=np.int64)
    order = rng.permutation(n)
    while (folds < 0).any():
        free = order[folds[order] < 0]
        left = classes[free].sum(axis=0)
        rare = int(np.where(left > 0, left, n + 1).argmin())
        for study in free[classes[free, rare]]:
            best = np.flatnonzero(wanted[:, rare] == wanted[:, rare].max())
            best = best[wanted[best, -1] == wanted[best, -1].max()]
            folds[study] = rng.choice(best)
            wanted[folds[study]] -= classes[study]
    return folds


class CropDataset(Dataset):
    """Studies with their labels (n, 25), as dicts: `images` (view -> float32 (5, D, H, W)), `present` (3, 5), `labels`.

    `in_memory` reads everything now (1 MB a study at 48 x 48); `transform` changes `images` at every access, in the
    loader's worker. Crops that are cut otherwise than the others raise `DataError`.
    """

    def __init__(
        self,
        crops: Mapping[str, StudyCrops],
        study_ids: Sequence[str],
        labels: np.ndarray,
        *,
        in_memory: bool = True,
        transform: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
        progress: bool = True,
    ):
        self.crops = crops
        self.study_ids = tuple(str(s) for s in study_ids)
        self.labels = np.asarray(labels)
        if self.labels.shape != (len(self), N_TARGETS):
            raise DataError(f"labels must have shape ({len(self)}, {N_TARGETS}), got {self.labels.shape}")
        self.transform = transform
        self.spec: CropSpec = getattr(crops, "spec", None) or crops[self.study_ids[0]].spec
        self._kept: list[StudyInput] | None = None
        if in_memory:
            rows = progress_bar(self.study_ids, desc="crops to memory", unit="study", disable=not progress, leave=False)
            self._kept = [self._read(study_id) for study_id in rows]

    def __len__(self) -> int:
        return len(self.study_ids)

    def _read(self, study_id: str) -> StudyInput:
        crops = self.crops[study_id]
        if crops.spec != self.spec:
            raise DataError(f"study {study_id}: its crops are cut as {crops.spec}, those of others as {self.spec}")
        return study_input(crops)

    def __getitem__(self, index: int) -> dict:
        item = self._kept[index] if self._kept is not None else self._read(self.study_ids[index])
        images = item.images if self.transform is None else self.transform(dict(item.images))
        return {
            "images": {view: torch.from_numpy(np.asarray(images[view], dtype=np.float32)) for view in VIEWS},
            "present": torch.from_numpy(item.present),
            "labels": torch.from_numpy(self.labels[index].astype(np.int64)),
        }


class SharedBatches(Sampler[list[int]]):
    """Every epoch's batches in random order, the incomplete last one left out; each process gets its part of each."""

    def __init__(self, n: int, size: int, processes: Processes):
        if size < processes.count:
            raise DataError(f"{processes.count} processes cannot share batches of {size} studies")
        self.n, self.size, self.processes = n, size, processes
        self.generator = torch.Generator()

    def seed(self, seed: int) -> None:
        """Decide the order of the next epoch."""
        self.generator.manual_seed(seed)

    def __len__(self) -> int:
        return self.n // self.size

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.n, generator=self.generator).tolist()
        for start in range(0, len(self) * self.size, self.size):
            yield self.processes.share(order[start : start + self.size])
