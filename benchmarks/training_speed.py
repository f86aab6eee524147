"""Whether reading crops ever holds the training up: the same epoch from the disk, from memory, from ready tensors.

    python benchmarks/training_speed.py                    crops of `make run`, in runs/demo/crops
    python benchmarks/training_speed.py --crops FOLDER --rounds 5

They take turns, because timings on a shared machine drift: what counts is the ratio to ready tensors.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from lumbar_utils.crops.cache import CropCache
from lumbar_utils.devices import choose_compute
from lumbar_utils.labels import N_TARGETS
from lumbar_utils.models.classifier import LumbarClassifier
from lumbar_utils.training.augmentation import IntensityAugmentation
from lumbar_utils.training.checkpoints import Checkpoint
from lumbar_utils.training.config import TrainConfig
from lumbar_utils.training.datasets import CropDataset
from lumbar_utils.training.loop import Trainer


class ReadyTensors(Dataset):
    """Items made once, so that an epoch only stacks them."""

    def __init__(self, dataset: CropDataset):
        self.labels, self.transform = dataset.labels, None
        self.items = [dataset[i] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=Path, default=ROOT / "runs" / "demo" / "crops")
    parser.add_argument("--studies", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0, help="processes that read crops from the disk")
    args = parser.parse_args()
    cache = CropCache.open(args.crops)
    ids = cache.study_ids[: args.studies]
    labels = np.random.default_rng(0).integers(0, 3, (len(ids), N_TARGETS)).astype(np.int8)
    config, compute = TrainConfig(epochs=1), choose_compute()
    in_memory = CropDataset(cache, ids, labels, progress=False)
    kinds = {
        "ready tensors": (ReadyTensors(in_memory), config),
        "in memory (default)": (in_memory, config),
        "in memory, albumentations": (
            CropDataset(cache, ids, labels, transform=IntensityAugmentation(0.5), progress=False),
            config,
        ),
        "from the disk": (CropDataset(cache, ids, labels, in_memory=False), replace(config, workers=args.workers)),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(args.rounds + 1):  # the first one warms up
        for kind, (dataset, own) in kinds.items():
            torch.manual_seed(0)
            model = LumbarClassifier(own.classifier).to(compute.device)
            trainer = Trainer(model, dataset, own, compute, spec=cache.spec)
            began = time.perf_counter()
            trainer.run(Checkpoint(ROOT / "runs", {}), lambda: float("nan"), progress=False)
            if turn:
                seconds[kind].append(time.perf_counter() - began)
    table = pd.DataFrame(seconds)
    ratios = table.div(table["ready tensors"], axis=0)
    result = pd.DataFrame({"seconds": table.median(), "studies/s": len(ids) / table.median(), "ratio": ratios.median()})
    print(f"{len(ids)} studies, {args.rounds} epochs each, {compute}")
    print(result.round(3).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
