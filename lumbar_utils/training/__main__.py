"""`python -m lumbar_utils.training CROPS LABELS RUN`: train on a crop cache, in one process or in several."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..crops.cache import CropCache
from ..errors import LumbarError
from ..files import read_json
from ..studies.competition import SYNTHETIC_MARK
from .config import TrainConfig
from .cross_validation import fit_folds
from .distributed import join_processes
from .train import fit


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lumbar_utils.training", description="Train the classifier.")
    parser.add_argument("crops", type=Path, help="crop cache made by `lumbar crops`")
    parser.add_argument("labels", type=Path, help="train.csv")
    parser.add_argument("run", type=Path, help="folder for weights, history, out-of-fold predictions and manifest")
    parser.add_argument("--config", type=Path, help="JSON with fields of TrainConfig")
    parser.add_argument("--all-folds", action="store_true", help="one network a fold, in RUN/fold_0 and so on")
    parser.add_argument("--found", type=Path, help="crops to predict held-out studies on (default: CROPS)")
    parser.add_argument("--held-out", type=Path, help='JSON {"study_ids": [...]} to predict (default: a fold)')
    parser.add_argument("--training-labels", type=Path, help="labels to train on instead, such as denoised ones")
    parser.add_argument("--synthetic", action="store_true", help="all studies are synthetic phantoms")
    args = parser.parse_args(argv)
    chosen = {} if args.held_out is None else {"held_out": read_json(args.held_out)["study_ids"]}
    if args.held_out is not None and args.all_folds:
        parser.error("--held-out names one fold's studies, --all-folds predicts every study")
    config = TrainConfig.from_json(read_json(args.config) if args.config else {}, args.config or "")
    if args.training_labels is not None:
        chosen["training_labels"] = pd.read_csv(args.training_labels, dtype={"study_id": str})
    with join_processes(config.device) as processes:
        logging.basicConfig(level=logging.INFO if processes.first else logging.ERROR, format="%(message)s")
        result = (fit_folds if args.all_folds else fit)(
            CropCache.open(args.crops),
            pd.read_csv(args.labels, dtype={"study_id": str}),
            config,
            args.run,
            held_out_crops=CropCache.open(args.found) if args.found else None,
            progress=sys.stderr.isatty(),  # a bar in a file or a notebook is a line a step
            synthetic_only=args.synthetic or (args.labels.absolute().parent / SYNTHETIC_MARK).is_file(),
            **chosen,
        )
        for name, score in result.scores.items() if processes.first else ():
            print(f"{name:<15} {score}")


if __name__ == "__main__":
    try:
        main()
    except (LumbarError, OSError) as error:
        sys.exit(f"error: {error}")
