"""The studies that a training reads: a torch dataset of crops with labels, and batches that several processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..crops.extraction import CropSpec, StudyCrops
from ..errors import DataError
from ..labels import N_TARGETS, VIEWS
from ..models.inputs import StudyInput, study_input
from ..notebook_html import progress_bar
from .distributed import Processes


class CropDataset(Dataset):
    """Studies with their labels, one item a study.

    Parameters
    ----------
    crops : mapping study_id -> StudyCrops
        A `CropCache`, or a dict.
    study_ids : sequence of str
        Which studies, in which order.
    labels : int array, shape (n_studies, 25)
        Rows in the order of `study_ids`, -1 = not labelled.
    in_memory : bool
        Read everything once now (about 1 MB a study at 48 x 48) instead of at every access.
    transform : callable, optional
        Takes and returns `dict view -> (5, D, H, W)`; called at every access, in the loader's worker.

    Items are dicts: `images` (dict view -> float32 tensor (5, D, H, W)), `present` (bool (3, 5)), `labels`
    (int64 (25,)). The default collate of a DataLoader makes batches of them. Crops that are cut otherwise than the
    others raise `DataError`.
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
