"""Which studies a training learns from and which it predicts: folds by iterative stratification, or a given list."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..crops.cache import CropCache
from ..crops.extraction import StudyCrops
from ..errors import DataError
from ..labels import N_SEVERITIES, N_TARGETS, encode_severities
from .config import TrainConfig

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
        parts = ["\n".join(self.train).encode(), self.train_labels.tobytes()]
        parts += ["\n".join(self.held_out).encode(), self.held_out_labels.tobytes()]
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
    """Divide the labelled studies that have crops.

    Parameters
    ----------
    cache, validation : mapping study_id -> StudyCrops
        Crops to train on, and crops to predict the held-out studies on.
    labels, training_labels : DataFrame
        In `train.csv` form; the second is trained on instead where it is given.
    config : TrainConfig
        Its `folds`, `fold` and `seed` decide which studies are held out where `held_out` names none.

    Raises
    ------
    DataError
        When there is nothing to train on, or crops or labels of held-out studies are absent.
    """
    codes, folds = codes_by_study(labels), config.folds
    available, predictable = (set(getattr(crops, "study_ids", crops)) for crops in (cache, validation))
    if not available & set(codes):
        raise DataError(f"none of the {len(codes)} labelled studies has crops (there are {len(available)})")
    if held_out is not None:
        out = [str(s) for s in held_out]
        lacking = [s for s in out if s not in predictable or s not in codes]
        if lacking:
            raise DataError(f"{len(lacking)} held-out studies lack crops or labels, the first is {lacking[0]!r}")
        kept_out = set(out)
    elif folds > 1:
        fold_of = folds_by_study(labels, folds, seed=config.seed)
        either = [s for s in codes if s in available or s in predictable]
        kept_out = {s for s in either if fold_of[s] == config.fold}
        out = [s for s in codes if s in kept_out and s in predictable]
        expected = len(either) / folds
        if not out or (expected >= FEW and len(out) < expected / 2):
            raise DataError(
                f"only {len(out)} of {len(either)} studies that have crops can be predicted as fold {config.fold} of "
                f"{folds}: are they the crops of another fold, do those around found discs lie in another folder "
                "(--found), or are they a handful? folds = 1 holds none out"
            )
        if len(out) < len(kept_out):
            logger.warning(
                "%d of %d held-out studies have no crops to predict", len(kept_out) - len(out), len(kept_out)
            )
    else:
        out, kept_out = [], set()
    train = [s for s in codes if s in available and s not in kept_out]
    if not train:
        raise DataError("every study is held out, nothing is left to train on")
    trained = codes if training_labels is None else codes_by_study(training_labels)
    lacking = [s for s in train if s not in trained]
    if lacking:
        raise DataError(f"the training labels lack {len(lacking)} studies, the first is {lacking[0]!r}")
    return Split(train, _rows(trained, train), out, _rows(codes, out))


def _rows(codes: Mapping[str, np.ndarray], study_ids: Sequence[str]) -> np.ndarray:
    return np.stack([codes[s] for s in study_ids]) if study_ids else np.zeros((0, N_TARGETS), np.int8)


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
