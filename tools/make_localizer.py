"""Make the localizer that ships with the library: phantoms, training, calibration, measurement.

    python tools/make_localizer.py                         lumbar_utils/weights/shipped_localizer
    python tools/make_localizer.py --out /tmp/try --members 200:300              a quick try

Every member is trained on its own phantoms with its own seed, one process and one core each (on a GPU they share it),
so the time is that of one member where there are as many cores. A finished member is kept in the work folder, and a
second call continues from there. No real scan is read, neither for training nor for calibration nor for evaluation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # a core a member is faster than all cores for each in turn

import joblib
import numpy as np
import torch

from lumbar_utils import __version__
from lumbar_utils.files import versions
from lumbar_utils.localization import DiscLocalizer, LocalizerConfig, LocalizerTraining
from lumbar_utils.phantom.cohort import COHORT_VERSION

PACKAGE = ROOT / "lumbar_utils"
SCANS = 2
MEMBERS = ("1200:4500", "2400:9500", "2400:9500")
"""Long trainings are more exact, a short one is less sure of levels that it labels wrong; together they err least."""
CALIBRATION, MEASUREMENT = 1, 2
"""Added to a thousand times the seed, with 0 for training: no body is in two of the three."""


def main() -> int:
    args = _arguments()
    started = time.monotonic()
    out, work = Path(args.out), Path(args.work)
    config = LocalizerConfig(trained_on="synthetic")
    training = LocalizerTraining(average=0.998, seed=args.seed)
    if args.recalibrate:
        return recalibrate(out, args)
    work.mkdir(parents=True, exist_ok=True)
    jobs = joblib.Parallel(n_jobs=min(len(args.members), joblib.cpu_count()))
    members = jobs(
        joblib.delayed(make_member)(work, member, config, replace(training, steps=steps), bodies, args.device)
        for member, (bodies, steps) in enumerate(args.members)
    )
    networks = [network for folder, _ in members for network in DiscLocalizer.load(folder).networks]
    calibration, measured = calibrate(networks, args)
    made = {
        "command": f"python tools/make_localizer.py --seed {args.seed} --held-out {args.held_out} --members "
        + " ".join(f"{bodies}:{steps}" for bodies, steps in args.members),
        "data": "synthetic phantoms only: half ordinary people in ordinary scans, half randomised beyond reality; "
        "no scan of a person was used",
        "phantom_version": COHORT_VERSION,
        "series_per_member": [SCANS * bodies for bodies, _ in args.members],
        "steps_per_member": [steps for _, steps in args.members],
        "training": {name: value for name, value in asdict(training).items() if name not in ("seed", "steps")},
        "seeds": [training.seed + member for member in range(len(args.members))],
        "seconds_per_member": [round(seconds) for _, seconds in members],
        "cores": joblib.cpu_count(),
        "measured_on_held_out_phantoms": measured,
        **_code(),
    }
    localizer = DiscLocalizer(networks, calibration=calibration, made=made)
    localizer.save(out)
    for folder, _ in members:
        shutil.rmtree(folder)
    print(json.dumps(made["measured_on_held_out_phantoms"], indent=1))
    print(f"{out} in {(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def recalibrate(out: Path, args: argparse.Namespace) -> int:
    """Calibrate and evaluate again with the networks that are there, after a change of the decoder."""
    localizer = DiscLocalizer.load(out)
    localizer.calibration, measured = calibrate(localizer.networks, args)
    localizer.made["measured_on_held_out_phantoms"] = measured
    command = f"python tools/make_localizer.py --recalibrate --seed {args.seed} --held-out {args.held_out}"
    localizer.made["recalibrated"] = {"command": command, **_code()}
    localizer.save(out)
    print(json.dumps(measured, indent=1))
    return 0


def make_member(
    work: Path, member: int, config: LocalizerConfig, training: LocalizerTraining, bodies: int, device: str
) -> tuple[Path, float]:
    """One network with phantoms of its own; the folder that holds it, and the seconds that it took."""
    from lumbar_utils.devices import choose_compute
    from lumbar_utils.localization.synthetic_samples import synthetic_samples
    from lumbar_utils.localization.training import train_on_samples

    torch.set_num_threads(1)
    own = replace(training, seed=training.seed + member)
    folder = work / f"member_{own.seed}"
    key = {"training": asdict(own), "config": asdict(config), "bodies": bodies, **_code()}
    key = json.loads(json.dumps(key))
    note = folder / "done.json"
    if note.is_file() and (done := json.loads(note.read_text()))["key"] == key:
        return folder, done["seconds"]
    note.unlink(missing_ok=True)  # it must never lie beside other weights
    began = time.monotonic()
    samples = synthetic_samples(range(bodies), _seed(own.seed, 0), config.pixel_mm, scans=SCANS, n_jobs=1)
    print(f"member {member}: {len(samples)} series in {time.monotonic() - began:.0f} s", flush=True)
    device = choose_compute(device).device
    train_on_samples(samples, config=config, training=own, device=device, progress=member == 0).save(folder)
    seconds = time.monotonic() - began
    note.write_text(json.dumps({"key": key, "seconds": seconds}))
    print(f"member {member}: trained after {seconds:.0f} s", flush=True)
    return folder, seconds


def calibrate(networks: list, args: argparse.Namespace) -> tuple:
    """The calibration fitted on phantoms, and how good the localizer is on others."""
    from lumbar_utils.localization.calibration import cut_off, fit_localizer_calibration
    from lumbar_utils.localization.synthetic_samples import is_randomised, synthetic_samples

    began = time.monotonic()
    pixel_mm = networks[0].config.pixel_mm
    for_fit, for_measure = (
        synthetic_samples(range(args.held_out), _seed(args.seed, part), pixel_mm, scans=1, n_slices=9, n_jobs=-1)
        for part in (CALIBRATION, MEASUREMENT)
    )
    localizer = DiscLocalizer(networks)
    localizer.calibration = fit_localizer_calibration(localizer, for_fit)
    ordinary = [sample for sample in for_measure if not is_randomised(sample)]
    randomised = [sample for sample in for_measure if is_randomised(sample)]
    measured = {"ordinary": _measure(localizer, ordinary), "randomised": _measure(localizer, randomised)}
    rng = np.random.default_rng(_seed(args.seed, MEASUREMENT))
    for name, whole in (("ordinary", ordinary), ("randomised", randomised)):
        measured[f"{name}_cut_off"] = _measure(localizer, [cut_off(sample, rng) for sample in whole])
    print(f"calibrated and measured in {time.monotonic() - began:.0f} s", flush=True)
    return localizer.calibration, measured


def _measure(localizer: DiscLocalizer, samples: list) -> dict[str, float]:
    from lumbar_utils.localization.calibration import locate_samples
    from lumbar_utils.localization.evaluation import FOUND_MM
    from lumbar_utils.localization.points import LOW_CONFIDENCE_BELOW

    located = locate_samples(localizer, samples)
    seen = located.in_view
    error = located.error_mm[seen]
    shifted, marked = np.nan_to_num(located.shift) != 0, np.median(located.confidence, axis=1) < LOW_CONFIDENCE_BELOW
    return {
        "series": len(samples),
        "series_without_a_chain": int(np.isnan(located.shift).sum()),
        "discs_in_view": int(seen.sum()),
        "median_mm": round(float(np.median(error)), 3),
        "within_5mm": round(float(np.mean(error <= FOUND_MM)), 4),
        "mean_confidence": round(float(located.confidence[seen].mean()), 4),
        "series_shifted": int(shifted.sum()),
        "of_them_not_low_confidence": int((shifted & ~marked).sum()),
        "series_low_confidence": int(marked.sum()),
    }


def _seed(seed: int, part: int) -> int:
    return 1000 * (seed + 1) + part


def _code() -> dict:
    """Digest of the code that decides what a member becomes, and versions of the packages."""
    folders = [PACKAGE / name for name in ("phantom", "localization")]
    parts = [path.read_bytes() for folder in folders for path in sorted(folder.glob("*.py"))]
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return {"code": digest, "versions": {"lumbar_utils": __version__, **versions()}}


def _member(text: str) -> tuple[int, int]:
    bodies, steps = map(int, text.split(":"))
    return bodies, steps


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(PACKAGE / "weights" / "shipped_localizer"), help="folder for the weights")
    parser.add_argument("--work", default=str(ROOT / "runs" / "localizer_making"), help="folder for unfinished work")
    parser.add_argument("--seed", type=int, default=0)
    about = "of each network: bodies to learn from, half of them randomised, and training steps (default: {})"
    parser.add_argument(
        "--members", type=_member, nargs="+", default=[_member(text) for text in MEMBERS], metavar="BODIES:STEPS",
        help=about.format(" ".join(MEMBERS)),
    )  # fmt: skip
    parser.add_argument("--held-out", type=int, default=300, help="bodies each for calibration and measurement")
    parser.add_argument("--recalibrate", action="store_true", help="keep the networks, calibrate and evaluate anew")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
