"""Do attribution maps lie on the narrowing? Measured on phantoms, where it is known, and against random networks.

    python benchmarks/attribution_sanity.py                       runs/demo, which `make run` leaves; some minutes
    python benchmarks/attribution_sanity.py --run runs/mine --radius 8

The studies are those of the cohort's test part, cropped around found discs; with `--part held-out` those of the
training part that the classifier was not trained on, with which the method and its settings were chosen. For every
target whose planted degree is at least `--degree`, and in each view in which the condition is read, three numbers:

    lift       the fraction of the map's sum within `--radius` mm of the planted place (canal, foramen or recess), over
               the fraction of the map's domain that lies there; 1 is chance, a map that is the same everywhere
    hit        how often the map's highest point lies so near; beside it, how often a random point would
    slice      mm between the slice with the map's highest point and the planted place; beside it, of a random slice
               and of the middle one, which is hard to beat: crops are cut around the place that is looked for

The domain is where the map can be: the scanned part of the crop, and only the half of sagittal T1 that a head with
split sides reads. The same is measured for networks with random weights (`--seeds` of them), and for the trained one
with a random head: model-parameter randomisation after Adebayo and others 2018 (Sanity Checks for Saliency Maps).
What the trained network has over them is learnt; what they have as well is due to the image or the architecture.
Which of several conditions a map means cannot be told here: canal and recess lie within a radius of each other. The
tests ask that of crops in which the places are apart. Intervals: 95 %, bootstrap over studies, the differences paired.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lumbar_utils.crops.cache import CropCache
from lumbar_utils.crops.extraction import LATERAL_AXIS, StudyCrops, extract_crops
from lumbar_utils.explain import attribution_maps
from lumbar_utils.files import read_json
from lumbar_utils.inference.predictor import Predictor
from lumbar_utils.labels import AXIAL_T2, CONDITIONS, N_LEVELS, SAGITTAL_T1, SAGITTAL_T2, split_row_id, target_index
from lumbar_utils.models.classifier import SPLIT_VIEWS, LumbarClassifier
from lumbar_utils.models.run_folder import load_model
from lumbar_utils.phantom.anatomy import Body
from lumbar_utils.phantom.cohort import CohortConfig
from lumbar_utils.phantom.disease import sample_person
from lumbar_utils.studies.study import find_studies, load_study

READ_IN = {0: (SAGITTAL_T2, AXIAL_T2), 1: (SAGITTAL_T1,), 2: (SAGITTAL_T1,), 3: (AXIAL_T2,), 4: (AXIAL_T2,)}
"""The views in which each condition is read."""
FAMILY_NAMES = ("canal", "foramen", "foramen", "recess", "recess")
KINDS = ("trained", "random head", "random")
DRAWS = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="holds classifier/, cohort/ and crops")
    parser.add_argument("--part", choices=("held-out", "test"), default="test", help="which studies, see above")
    parser.add_argument("--radius", type=float, default=10.0, help="mm")
    parser.add_argument("--degree", type=float, default=1.0, help="of narrowing: 1 is moderate, 2 severe")
    parser.add_argument("--seeds", type=int, default=1, help="networks with random weights")
    parser.add_argument("--studies", type=int, default=None, help="at most so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(args.run / "classifier")
    test = [source.study_id for source in find_studies(args.run / "cohort", part="test")]
    truth = planted(args.run / "cohort", held_out_ids(args.run) if args.part == "held-out" else test)
    narrowed = [study_id for study_id, known in truth.items() if (known["degrees"] >= args.degree).any()]
    chosen = narrowed[: args.studies]
    if args.part == "held-out":
        cache = CropCache.open(args.run / "crops_found")
        crops = [cache[study_id] for study_id in chosen]
    else:
        crops = test_crops(args.run, chosen)
    rows = []
    for kind, network, seed in networks(model, args.seeds):
        for item in crops:
            rows += measure(network, item, truth[item.study_id], args, kind=kind, seed=seed)
        print(f"{kind} {seed}: {len(rows)} maps", file=sys.stderr)
    report(pd.DataFrame(rows), args)
    return 0


def held_out_ids(run: Path) -> list[str]:
    """The studies of the training part that the classifier was not trained on."""
    held_out = pd.read_csv(run / "classifier" / "oof.csv", usecols=["row_id"], dtype=str)["row_id"]
    return sorted({split_row_id(row_id)[0] for row_id in held_out})


def test_crops(run: Path, study_ids: list[str]) -> list[StudyCrops]:
    """Crops around found discs of studies of the test part; a second of work each."""
    predictor = Predictor(run / "classifier")
    sources = {source.study_id: source for source in find_studies(run / "cohort", part="test")}
    studies = [load_study(sources[study_id]) for study_id in study_ids]
    return [extract_crops(study, predictor.predict_study(study).discs, predictor.spec) for study in studies]


def planted(cohort: Path, study_ids: list[str]) -> dict[str, dict]:
    """Per study `degrees` (25,) and `places` (5 conditions, 5 levels, 3), LPS mm, made again from the cohort's seed."""
    config = CohortConfig(**read_json(cohort / "truth" / "cohort.json")["config"])
    found = {}
    for index in range(config.n_studies):
        if config.study_id(index) not in study_ids:
            continue
        person = sample_person(index, config.seed, randomise=config.randomise)
        truth = Body(person).truth
        sides = [truth.foramen[:, 0], truth.foramen[:, 1], truth.recess[:, 0], truth.recess[:, 1]]
        found[config.study_id(index)] = {
            "degrees": np.asarray(person.degrees),
            "places": np.stack([truth.canal, *sides]),
        }
    return found


def networks(model: LumbarClassifier, seeds: int):
    """(kind, network, seed): the trained one, then with a random head, then random altogether."""
    yield "trained", model, 0
    for seed in range(seeds):
        torch.manual_seed(1000 + seed)
        random = LumbarClassifier(model.config).eval()
        headless = copy.deepcopy(model)
        headless.head = random.head
        yield "random head", headless, seed
        yield "random", random, seed


def measure(network, crops: StudyCrops, truth: dict, args, **names) -> list[dict]:
    """One row for every narrowed target and view."""
    narrowed = [int(t) for t in np.flatnonzero(np.asarray(truth["degrees"]).ravel() >= args.degree)]
    attribution = attribution_maps(network, crops, targets=narrowed)
    rows = []
    for target in narrowed:
        condition, level = divmod(target, N_LEVELS)
        for view in READ_IN[condition]:
            domain = map_domain(network, crops, view, condition, level)
            grid = crops.grid(view, level)
            points = grid.points()
            place = truth["places"][condition, level]
            own = (np.linalg.norm(points - place, axis=-1) <= args.radius) & domain
            if not own.any():
                continue
            values = attribution.of(view, condition, level) * domain
            total = float(values.sum(dtype=np.float64))
            chance = own.sum() / domain.sum()
            share = float(values[own].sum(dtype=np.float64)) / total if total else chance
            highest = values >= values.max() * (1 - 1e-6) if total else domain
            offsets = (points[:, 0, 0] - place) @ grid.axes[0]  # of each slice, along the crop's first axis
            peaks = values.max(axis=(1, 2))
            shown = domain.any(axis=(1, 2))
            best = (peaks >= peaks.max() * (1 - 1e-6)) if total else shown
            middle = int(np.flatnonzero(shown).mean())
            rows.append(
                {
                    **names,
                    "study_id": crops.study_id,
                    "target": target_index(condition, level),
                    "where": f"{FAMILY_NAMES[condition]}, {view.split('/')[0].lower()}",
                    "lift": share / chance,
                    "hit": float((highest & own).sum() / highest.sum()),
                    "hit_chance": chance,
                    "slice": float(np.abs(offsets[best]).mean()),
                    "slice_chance": float(np.abs(offsets[shown]).mean()),
                    "slice_middle": float(np.abs(offsets[middle])),
                    "empty": float(total == 0),
                }
            )
    return rows


def map_domain(network, crops: StudyCrops, view: str, condition: int, level: int) -> np.ndarray:
    """Where a target's map can be at all: bool (D, H, W)."""
    domain = crops.covered[view][level].copy()
    if network.config.sides and view in SPLIT_VIEWS and view == SAGITTAL_T1 and condition:
        across = np.moveaxis(domain, LATERAL_AXIS[view], 0)
        half = len(across) // 2
        across[half:] &= CONDITIONS[condition].startswith("left")
        across[:half] &= CONDITIONS[condition].startswith("right")
    return domain


def report(rows: pd.DataFrame, args) -> None:
    numbers = ["lift", "hit", "hit_chance", "slice", "slice_chance", "slice_middle", "empty"]
    rng = np.random.default_rng(0)
    print(
        f"synthetic; {rows['study_id'].nunique()} held-out studies, targets of degree {args.degree:g} and more, "
        f"radius {args.radius:g} mm; mean [95 %]"
    )
    for where, part in rows.groupby("where"):
        means = part.groupby(["kind", "study_id", "target"])[numbers].mean()
        print(f"\n{where}: {len(means.loc['trained'])} maps")
        ids = part["study_id"].unique()
        draws = rng.integers(0, len(ids), (DRAWS, len(ids)))
        for name, by_chance in (("lift", None), ("hit", "hit_chance"), ("slice", "slice_chance")):
            columns, found = [], {}
            for kind in KINDS:
                sums = means.loc[kind].groupby("study_id")[name].agg(["sum", "count"]).loc[ids].to_numpy()
                resampled = sums[draws].sum(axis=1)
                found[kind] = sums[:, 0].sum() / sums[:, 1].sum(), resampled[:, 0] / resampled[:, 1]
                columns.append(f"{kind} {_interval(*found[kind])}")
            gain = (a - b for a, b in zip(found["trained"], found["random"], strict=True))
            columns.append(f"trained - random {_interval(*gain)}")
            chance = means.loc["trained"][by_chance].mean() if by_chance else 1.0
            print(f"  {name.replace('_', ' '):10s} chance {chance:.2f}   " + "   ".join(columns))
        middle, empty = means.loc["trained"][["slice_middle", "empty"]].mean()
        print(f"  middle slice {middle:.2f} mm off, empty maps {empty:.0%}")


def _interval(value: float, draws: np.ndarray) -> str:
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
