"""Make the classifier that ships with the library: phantom crops, training, calibration, alarm for unlike images.

    python tools/make_classifier.py                       lumbar_utils/weights/shipped_classifier
    python tools/make_classifier.py --out /tmp/try --work /tmp/work --bodies 100 --epochs 2      a quick try

An interrupted call goes on where it was: crops that are there are taken as they are, and the training has checkpoints.
No real scan is read, neither for training nor for calibration. What was measured on patients with earlier weights is
dropped from `made.json`; `benchmarks/real_patients.py FOLDER --record` measures the new ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd

from lumbar_utils import __version__
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.crops.synthetic_crops import synthetic_crops
from lumbar_utils.files import versions, write_json
from lumbar_utils.metrics.calibration import fit_calibration
from lumbar_utils.metrics.score import competition_score, read_predictions
from lumbar_utils.models.classifier import ClassifierConfig
from lumbar_utils.models.ensemble import Ensemble, Member
from lumbar_utils.models.run_folder import load_model, save_run
from lumbar_utils.models.typicality import fit_typicality
from lumbar_utils.phantom.cohort import COHORT_VERSION
from lumbar_utils.training import fit
from lumbar_utils.training.augmentation import AugmentConfig
from lumbar_utils.training.config import TrainConfig
from lumbar_utils.training.datasets import codes_by_study

NETWORK = ClassifierConfig(encoder="resnet10t", family="2d", share_encoder="all", view_dropout=0.5, dropout=0.3)
AUGMENTATION = AugmentConfig(
    shift_mm=(2.0, 2.5, 2.5), rotation_degrees=6, zoom=0.12, contrast=0.3, brightness=0.3, noise=0.25,
    few_slices=0.85, intensity=0.9,
)  # fmt: skip


def main() -> int:
    args = _arguments()
    started = time.monotonic()
    out, work = Path(args.out), Path(args.work)
    spec = CropSpec.of_size(args.size)
    options = {"n_jobs": args.jobs}
    cache, labels = synthetic_crops(range(args.bodies), args.seed, work / "crops", spec, **options)
    others, other_labels = synthetic_crops(
        range(args.bodies, args.bodies + args.held_out), args.seed, work / "held_out", spec, **options
    )
    made_after = time.monotonic() - started
    everything = pd.concat([labels, other_labels], ignore_index=True)
    true = codes_by_study(other_labels)
    codes = pd.DataFrame(list(true.values())).to_numpy()
    out.mkdir(parents=True, exist_ok=True)
    seconds, held_out = 0.0, []
    for member in range(args.members):
        training = TrainConfig(
            classifier=NETWORK, augment=AUGMENTATION, epochs=args.epochs, batch_size=8, learning_rate=1.5e-3,
            weight_decay=0.05, ema_decay=0.995, auxiliary_weight=1.0, folds=1, seed=args.seed + member,
            workers=args.workers, device=args.device,
        )  # fmt: skip
        run = work / f"run_{member}"
        result = fit(
            cache, everything, training, run, held_out=others.study_ids, held_out_crops=others, synthetic_only=True
        )
        seconds += result.seconds
        held_out.append(read_predictions(pd.read_csv(run / "oof.csv", dtype={"row_id": str}), list(true)))
        save_run(out / str(member), *load_model(run))
    mean = np.mean(held_out, axis=0)
    calibration = fit_calibration(codes, mean)
    Ensemble(tuple(Member(str(member)) for member in range(args.members)), calibration).save(out)
    some = {study_id: cache[study_id] for study_id in cache.study_ids[:400]}
    fit_typicality(out, some, {s: others[s] for s in others.study_ids}, device=args.device)
    scores = {f"network_{i}": competition_score(codes, p).to_json() for i, p in enumerate(held_out)}
    scores |= {"mean": competition_score(codes, mean).to_json()}
    scores["calibrated"] = competition_score(codes, calibration.apply(mean)).to_json()
    write_json(out / "made.json", {
        "command": f"python tools/make_classifier.py --seed {args.seed} --bodies {args.bodies} --epochs {args.epochs} "
        f"--members {args.members} --size {args.size} --held-out {args.held_out}",
        "data": "synthetic phantoms only; no scan of a person was used",
        "phantom_version": COHORT_VERSION,
        "seconds": {"crops": round(made_after), "training": round(seconds)},
        "held_out_phantoms": scores,
        "versions": {"lumbar_utils": __version__, **versions()},
    })  # fmt: skip
    print(f"{out} in {(time.monotonic() - started) / 60:.1f} minutes; held-out phantoms: {scores}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = ROOT / "lumbar_utils" / "weights" / "shipped_classifier"
    parser.add_argument("--out", default=str(folder), help="folder for the weights")
    parser.add_argument("--work", default=str(ROOT / "runs" / "classifier_making"), help="folder for unfinished work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bodies", type=int, default=1000, help="phantoms to train on (1000)")
    parser.add_argument("--held-out", type=int, default=120, help="phantoms to calibrate on (120)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--members", type=int, default=1, help="networks, which are averaged (1)")
    parser.add_argument("--size", type=int, default=64, help="pixels along a crop's side")
    parser.add_argument("--jobs", type=int, default=-1, help="processes that scan phantoms")
    parser.add_argument("--workers", type=int, default=0, help="processes that read crops in training")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
