"""Whether memory stays flat over a thousand studies: locating, cropping, predicting.

    python benchmarks/memory.py                             1,000 studies, two workers
    python benchmarks/memory.py --studies 300 --steps crop --csv memory.csv

Six small synthetic studies are read again and again under new ids. Twice a second the resident memory of this process
and all its children is added up, with pages that they share counted once (PSS) where the system tells. Printed are the
largest sum by tenths of the run, and the growth a thousand studies would bring by the line through the last half.
The classifier is untrained: what it says does not matter here. Needs psutil: pip install -e ".[benchmarks]".
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for the workers

import numpy as np
import pandas as pd
import psutil
from tqdm.auto import tqdm

from lumbar_utils.crops.cache import build_crop_cache
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.labels import N_SEVERITIES, N_TARGETS
from lumbar_utils.localization import DiscPoints, locate_studies, open_localizer
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.models.classifier import ClassifierConfig, LumbarClassifier
from lumbar_utils.models.run_folder import RunConfig, save_run
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.study import StudySource, find_studies

SEED, DIFFERENT = 4730, 6
EVERY_S = 0.5
MB = 2**20
FLAT_MB = 100.0
"""Growth by line over 1,000 studies below which memory counts as flat; one study that was kept would make 4,000."""


class Recorder(threading.Thread):
    """Notes the memory of this process and its children until it is stopped."""

    def __init__(self):
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float]] = []
        self._over = threading.Event()

    def run(self) -> None:
        began = time.perf_counter()
        while not self._over.wait(EVERY_S):
            self.samples.append((time.perf_counter() - began, memory_of_all() / MB))

    def stop(self) -> np.ndarray:
        """(n, 2): seconds, MB."""
        self._over.set()
        self.join()
        return np.array(self.samples)


def memory_of_all() -> int:
    """Bytes of this process and all its children."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            memory = process.memory_full_info()
        except psutil.Error:  # it has just ended
            continue
        total += getattr(memory, "pss", 0) or memory.uss
    return total


def many(sources: list[StudySource], n: int) -> list[StudySource]:
    """The same studies again and again under new ids."""
    return [replace(s, study_id=f"{s.study_id}-{i}") for i, s in enumerate(islice(cycle(sources), n))]


def untrained_run(folder: Path) -> Path:
    """A run folder with a small classifier that has learnt nothing."""
    config = ClassifierConfig(encoder="test_resnet", family="2.5d", width=64)
    prior = np.full((N_TARGETS, N_SEVERITIES), 1 / N_SEVERITIES)
    stored = RunConfig(config, CropSpec(), prior, training={}, synthetic_only=True)
    save_run(folder, LumbarClassifier(config, prior), stored)
    return folder


def measure(name: str, n: int, work: Callable[[], int]) -> tuple[dict, pd.DataFrame]:
    """A row of the table, and all samples, of work that says how many studies it did."""
    recorder = Recorder()
    recorder.start()
    began = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - began
    samples = recorder.stop()
    share = samples[:, 0] / seconds
    tenths = [samples[(share >= a) & (share < a + 0.1001), 1].max(initial=0) for a in (0.0, 0.1, 0.4, 0.9)]
    late = samples[share >= 0.5]
    slope = np.polyfit(late[:, 0] / seconds * n, late[:, 1], 1)[0] * 1000 if len(late) > 10 else np.nan
    row = {"studies": n, "done": done, "seconds": seconds, "peak MB": samples[:, 1].max()}
    row |= dict(zip(("1st tenth", "2nd", "5th", "last"), tenths, strict=True)) | {"MB/1,000 studies": slope}
    return {"step": name, **row}, pd.DataFrame(samples, columns=["seconds", "MB"]).assign(step=name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, default=ROOT / "runs" / "benchmark" / "memory", help="made there")
    parser.add_argument("--profile", default="demo", choices=("demo", "rsna"), help="size of the studies")
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", nargs="+", default=["locate", "crop", "predict"])
    parser.add_argument("--csv", type=Path, help="write all samples there")
    args = parser.parse_args()
    root = args.cohort.with_name(f"{args.cohort.name}_{args.profile}")
    generate_cohort(root, n_studies=DIFFERENT, seed=SEED, profile=args.profile, progress=False)
    own = find_studies(root)
    sources = many(own, args.studies)
    truth = read_reference(root / "truth" / "discs.csv", point="canal")
    points = {s.study_id: DiscPoints(s.study_id, "", truth[s.study_id.split("-")[0]], np.ones(5)) for s in sources}
    options = {"n_jobs": args.jobs, "progress": sys.stderr.isatty()}
    rows, samples = [], []
    for step in args.steps:
        with tempfile.TemporaryDirectory() as folder:
            work = {
                "locate": lambda: len(locate_studies(sources, open_localizer(), **options)[0]),
                "crop": lambda folder=folder: len(build_crop_cache(sources, points, folder, **options)),
                "predict": lambda folder=folder: predict(sources, Path(folder), options),
            }[step]
            row, curve = measure(step, args.studies, work)
        rows.append(row)
        samples.append(curve)
        print(pd.DataFrame([row]).round(1).to_string(index=False), flush=True)
    if args.csv:
        pd.concat(samples).to_csv(args.csv, index=False)
    table = pd.DataFrame(rows).set_index("step")
    flat = table["MB/1,000 studies"].abs() < FLAT_MB
    print(f"flat (below {FLAT_MB:.0f} MB/1,000 studies): {', '.join(table.index[flat]) or 'none'}")
    return 0 if flat.all() else 1


def predict(sources: list[StudySource], folder: Path, options: dict) -> int:
    """Predict all studies and keep none."""
    predictions = Predictor(untrained_run(folder), device="cpu").predict_studies(sources, **options)
    return sum(not prediction.fallback for prediction in tqdm(predictions, disable=True))


if __name__ == "__main__":
    sys.exit(main())
