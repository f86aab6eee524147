"""What each part of the classifier brings: a table of trainings on one synthetic cohort, every row beside the first.

    python benchmarks/ablation.py                      all rows, two at a time, a core each
    python benchmarks/ablation.py --rows source sides  these rows only; those that are finished are read
    python benchmarks/ablation.py --rows --figure images/ablation.png --markdown table.md    no training, what is there
    python benchmarks/ablation.py --list

One cohort of 750 phantoms (made once, in runs/benchmark/ablation): 500 to learn from, of which one in five is kept for
calibration, and 250 unseen ones that every row is scored on, their crops cut around found discs as those of a new
patient are. Intervals are paired bootstraps over the 250 studies: of the difference to the row that a row is compared
with. The prior knows the class frequencies only; the oracle knows the distribution from which the labels were drawn,
and answers what the metric rewards most.

Other people's designs are trained on the same crops by the same loop: see `other_networks.py`, which needs MONAI for
one of them (pip install monai).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # a core a row is quicker than all cores for one row after the other

import numpy as np
import pandas as pd
import torch

from lumbar_utils import viz
from lumbar_utils.crops.cache import CropCache, build_crop_cache
from lumbar_utils.crops.extraction import CropSpec
from lumbar_utils.devices import choose_compute, peak_memory
from lumbar_utils.evaluation import tables as evaluation
from lumbar_utils.files import atomically, read_json, write_json
from lumbar_utils.kaggle.workspace import split_studies
from lumbar_utils.labels import AXIAL_T2, SAGITTAL_T1, SAGITTAL_T2
from lumbar_utils.localization import DiscLocalizer, DiscPoints, locate_studies, points_from_table, read_reference
from lumbar_utils.localization.localizer import SHIPPED, WEIGHTS_FILE
from lumbar_utils.metrics import bootstrap_scores, competition_score, weighted_prior
from lumbar_utils.metrics.calibration import fit_calibration
from lumbar_utils.models.classifier import ClassifierConfig, predict_probabilities
from lumbar_utils.models.inputs import study_input
from lumbar_utils.models.run_folder import load_model
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.study import CompetitionFolder, find_studies
from lumbar_utils.training.augmentation import AugmentConfig
from lumbar_utils.training.checkpoints import Checkpoint
from lumbar_utils.training.config import TrainConfig
from lumbar_utils.training.datasets import CropDataset
from lumbar_utils.training.label_denoising import denoise_table
from lumbar_utils.training.loop import Trainer
from lumbar_utils.training.train import fit

COHORT = {"n_studies": 750, "seed": 4714, "test_fraction": 1 / 3}
SPEC = CropSpec(shapes={SAGITTAL_T2: (8, 48, 48), AXIAL_T2: (8, 48, 48), SAGITTAL_T1: (16, 48, 48)})
INTERVAL = (2.5, 97.5)
PLAIN = AugmentConfig(mirror=0.0, shift_mm=0.0, rotation_degrees=0.0, zoom=0.0, contrast=0.0, brightness=0.0, noise=0.0)
CROPS = ("known", "found", "true")
REFERENCES = ("weighted prior", "oracle")
COSTS = ("seconds", "studies_per_second", "memory_gb", "compute")


@dataclass(frozen=True)
class Row:
    """One training, or something made of trainings that are there.

    Parameters
    ----------
    text : str
        What it is, for the table.
    against : str
        The row that it is compared with: the one that it changes in one point.
    config : TrainConfig, optional
    network : str
        Of `other_networks`; empty: ours.
    denoised : bool
        Learn from denoised labels; out-of-fold predictions come from two trainings on half of the studies each.
    members : tuple of str
        Instead of a training: the mean of these rows.
    mirror, calibrated : bool
        What is done with the members' predictions.
    points : str
        Crops of the test part: around "found" discs, or around "true" ones.
    """

    text: str
    against: str = "source"
    config: TrainConfig | None = None
    network: str = ""
    denoised: bool = False
    members: tuple[str, ...] = field(default=())
    mirror: bool = False
    calibrated: bool = False
    points: str = "found"


def rows(epochs: int) -> dict[str, Row]:
    """All rows by name, in the table's order."""
    ours = TrainConfig(epochs=epochs, folds=5, checkpoint_seconds=60, seed=0)
    plain = replace(ours, augment=PLAIN)
    source = replace(plain, classifier=ClassifierConfig.source())
    levels = replace(plain, classifier=ClassifierConfig(split_sides=False))
    head = replace(ClassifierConfig.source(), head="per_level")
    intensity = replace(ours, augment=AugmentConfig(intensity=0.5, slice_dropout=0.2))
    mixing = replace(ours, augment=AugmentConfig(cutmix=0.3, mixup=0.1))

    def network(**changes) -> TrainConfig:
        return replace(ours, classifier=ClassifierConfig(**changes))

    kept_slices = network(keep_slices=True, slice_pooling="attention")
    by_slice = {pooling: network(family="2.5d", slice_pooling=pooling) for pooling in ("attention", "recurrent")}
    best = ("ours", "2.5d attention")
    return {
        "source": Row("the source's network: three 3D ResNet18, one layer for all", "", source),
        "unweighted": Row("source, loss without the weights 1/2/4", "source", replace(source, class_weights=False)),
        "head": Row("source + head per level", "source", replace(plain, classifier=head)),
        "levels": Row("source + head per level, auxiliary heads, view dropout", "source", levels),
        "sides": Row("levels + both sides share weights", "levels", plain),
        "ours": Row("sides + augmentation: our default", "sides", ours),
        "another seed": Row("ours, another seed: what chance alone does", "ours", replace(ours, seed=1)),
        "longer": Row("ours, twice the epochs", "ours", replace(ours, epochs=2 * epochs)),
        "no shifts": Row("ours without shifted crops", "ours", replace(ours, augment=AugmentConfig(shift_mm=0.0))),
        "intensity": Row("ours + albumentations and lost slices", "ours", intensity),
        "mixing": Row("ours + cutmix and mixup", "ours", mixing),
        "two-phase": Row("ours, in the end the head alone gets the weights", "ours", replace(ours, head_share=0.25)),
        "denoised": Row("ours, training labels denoised", "ours", ours, denoised=True),
        "3d attention": Row("ours, slices kept apart, attention over them", "ours", kept_slices),
        "2.5d attention": Row("ours, 2.5D ResNet18, attention over slices", "ours", by_slice["attention"]),
        "2.5d recurrent": Row("ours, 2.5D ResNet18, recurrence over slices", "ours", by_slice["recurrent"]),
        "mirror": Row("ours, mirrored studies graded too", "ours", members=("ours",), mirror=True),
        "calibrated": Row("mirror + calibration", "mirror", members=("ours",), mirror=True, calibrated=True),
        "ensemble": Row("calibrated, mean of 3D and 2.5D", "calibrated", members=best, mirror=True, calibrated=True),
        "true points": Row("ours, test crops around the true discs", "ours", members=("ours",), points="true"),
        "other 2.5d": Row("another design: 2.5D ResNet18 with LSTM", "ours", ours, network="recurrent"),
        "other 3d": Row("another design: MONAI's 3D ResNet50", "ours", ours, network="monai"),
    }


class Data:
    """The cohort, its crops, and who learns from what."""

    def __init__(self, root: Path):
        self.folder = CompetitionFolder.open(root)
        self.labels = self.folder.labels
        crops = crops_of(root)
        self.known, self.found, self.true = (CropCache.open(crops / name) for name in CROPS)
        learn, self.kept = split_studies(self.folder)
        self.learn = [s for s in learn if s in self.known]
        self.test = [s for s in self.folder.study_ids("test") if s in self.found]
        self.test_codes = evaluation.truth_labels(self.folder, self.test)
        self.references = evaluation.reference_predictions(self.folder, self.test)
        parts = [self.known.digest(self.learn), self.found.digest([*self.kept, *self.test])]
        parts += [self.true.digest(self.test), self.labels.to_csv()]
        self.digest = hashlib.sha256("".join(parts).encode()).hexdigest()


def crops_of(root: Path) -> Path:
    """Where the crops of a cohort lie."""
    return root.parent / f"{root.name}_crops"


def open_data(root: Path, jobs: int) -> Data:
    """Make the cohort and its crops, or find them; cut them anew when the crops' shape or the localizer changes."""
    generate_cohort(root, **COHORT, n_jobs=jobs)
    crops, folder = crops_of(root), CompetitionFolder.open(root)
    package = ROOT / "lumbar_utils"
    cutting = [package / "geometry.py", *sorted((package / "crops").glob("*.py"))]
    code = b"".join(path.read_bytes() for path in [*sorted((package / "localization").glob("*.py")), *cutting])
    made = {"spec": SPEC.to_json(), "code": hashlib.sha256((SHIPPED / WEIGHTS_FILE).read_bytes() + code).hexdigest()}
    note = crops / "made.json"
    if not note.is_file() or read_json(note) != json.loads(json.dumps(made)):
        train, test = find_studies(root, part="train"), find_studies(root, part="test")
        kept = set(split_studies(folder)[1])
        table, _ = points_from_table(folder, [s.study_id for s in train], n_jobs=jobs)
        new = [s for s in train if s.study_id in kept] + test
        found, _ = locate_studies(new, DiscLocalizer.shipped(), n_jobs=jobs)
        truth = read_reference(root / "truth" / "discs.csv")
        true = {s.study_id: DiscPoints.from_known(s.study_id, "", truth[s.study_id], source="truth") for s in test}
        for name, sources, points in zip(CROPS, (train, new, test), (table, found, true), strict=True):
            build_crop_cache([s for s in sources if s.study_id in points], points, crops / name, spec=SPEC, n_jobs=jobs)
        write_json(note, made)
    return Data(root)


def folder_of(name: str, work: Path) -> Path:
    """The folder of a row."""
    return work / name.replace(" ", "-")


def key_of(row: Row, data: Data) -> dict:
    """All that a trained row depends on, but for the library's own code."""
    key = {"config": row.config.to_json(), "network": row.network, "denoised": row.denoised, "data": data.digest}
    if row.network:
        key["code"] = hashlib.sha256((ROOT / "benchmarks" / "other_networks.py").read_bytes()).hexdigest()
    return json.loads(json.dumps(key))


def finished(name: str, row: Row, data: Data, work: Path) -> bool:
    """Whether a trained row's predictions are there."""
    note = folder_of(name, work) / "row.json"
    return note.is_file() and read_json(note)["key"] == key_of(row, data)


def train_row(name: str, row: Row, root: Path, work: Path, device: str) -> None:
    """Train a row, and leave its predictions for the kept fifth and the test part in its folder."""
    data, folder = Data(root), folder_of(name, work)
    if finished(name, row, data, work):
        return
    torch.set_num_threads(1)
    (folder / "row.json").unlink(missing_ok=True)
    config = replace(row.config, device=device)
    if row.network:
        model, cost = train_other(row, config, data, folder)
    else:
        options = {"held_out_crops": data.found, "synthetic_only": True, "progress": False}
        seconds = 0.0
        if row.denoised:
            options["training_labels"], seconds = denoised_labels(data, config, folder)
        fit(data.known, data.labels, config, folder, held_out=data.kept, **options)
        model, _ = load_model(folder)
        manifest = read_json(folder / "manifest.json")
        cost = {name: manifest[name] for name in COSTS} | {"seconds": manifest["seconds"] + seconds}
    compute = choose_compute(config.device, config.precision)
    model = model.to(compute.device)
    predictions = {}
    for part, cache, ids in zip(
        ("kept", "found", "true"), (data.found, data.found, data.true), (data.kept, data.test, data.test), strict=True
    ):
        for suffix, mirror in (("", False), (" mirrored", True)):
            graded = predict_probabilities(model, (study_input(cache[s]) for s in ids), compute, mirror=mirror)
            predictions[part + suffix] = graded
    cost["parameters"] = sum(p.numel() for p in model.parameters())

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **predictions)

    atomically(folder / "predictions.npz", save)
    write_json(folder / "row.json", {"key": key_of(row, data), "cost": cost})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    score = competition_score(data.test_codes, predictions["found"])
    print(f"{name}: {score}, {cost['seconds'] / 60:.1f} min", flush=True)


def train_other(row: Row, config: TrainConfig, data: Data, folder: Path) -> tuple[torch.nn.Module, dict]:
    """Another design with our loop: same crops, augmentation, loss, optimiser and number of epochs."""
    import other_networks

    compute = choose_compute(config.device, config.precision)
    codes = data.folder.label_codes(data.learn)
    torch.manual_seed(config.seed)
    model = other_networks.NETWORKS[row.network](weighted_prior(codes)).to(compute.device)
    dataset = CropDataset(data.known, data.learn, codes, progress=False)
    trainer = Trainer(model, dataset, config, compute, spec=SPEC)
    checkpoint = Checkpoint(folder, key_of(row, data))
    trainer.restore(checkpoint)
    trainer.run(checkpoint, lambda: float("nan"), progress=False)
    trainer.save(checkpoint)  # until the predictions are there
    speed, memory = trainer.studies / max(trainer.seconds, 1e-9), peak_memory(compute.device) / 1e9
    cost = {"seconds": trainer.seconds, "studies_per_second": speed, "memory_gb": memory, "compute": str(compute)}
    return trainer.averaged(), cost


def denoised_labels(data: Data, config: TrainConfig, folder: Path) -> tuple[pd.DataFrame, float]:
    """The training labels without those that networks which have not seen the study find hardly possible; seconds."""
    own = data.labels[data.labels["study_id"].isin(data.learn)]
    tables, seconds = [], 0.0
    for half in range(2):
        options = {"held_out": data.learn[half::2], "synthetic_only": True, "progress": False}
        result = fit(data.known, own, config, folder / f"half_{half}", **options)
        tables.append(pd.read_csv(result.folder / "oof.csv", dtype={"row_id": str}))
        seconds += result.seconds
    return denoise_table(own, pd.concat(tables)), seconds


def predict_row(name: str, every: dict[str, Row], data: Data, work: Path) -> np.ndarray | None:
    """A row's predictions of the test part (n, 25, 3); None where a training is missing."""
    row, kept, test = every[name], [], []
    for member in row.members or (name,):
        if not finished(member, every[member], data, work):
            return None
        with np.load(folder_of(member, work) / "predictions.npz") as stored:
            mirrored = " mirrored" if row.mirror else ""
            kept.append(stored[f"kept{mirrored}"])
            test.append(stored[f"{row.points}{mirrored}"])
    kept, test = np.mean(kept, axis=0), np.mean(test, axis=0)
    return fit_calibration(data.folder.label_codes(data.kept), kept).apply(test) if row.calibrated else test


def table(every: dict[str, Row], data: Data, work: Path) -> pd.DataFrame:
    """Scores, differences to the row compared with and their intervals, share of prior to oracle that is closed."""
    predictions = {name: predict_row(name, every, data, work) for name in every}
    predictions = {name: p for name, p in predictions.items() if p is not None}
    references = {name: data.references[name] for name in REFERENCES}
    prior, oracle = (competition_score(data.test_codes, p).total for p in references.values())
    names = list(predictions)
    scores = {name: competition_score(data.test_codes, p).total for name, p in predictions.items()}
    resampled = bootstrap_scores(data.test_codes, *predictions.values(), *references.values(), n=2000)
    lines = []
    for i, name in enumerate(names):
        row = every[name]
        closed = (resampled[:, -2] - resampled[:, i]) / (resampled[:, -2] - resampled[:, -1])
        line = {"name": name, "score": scores[name], "closed": (prior - scores[name]) / (prior - oracle)}
        line |= dict(zip(("closed_low", "closed_high"), np.percentile(closed, INTERVAL), strict=True))
        if row.against in names:
            delta = resampled[:, i] - resampled[:, names.index(row.against)]
            line |= {"against": row.against, "difference": scores[name] - scores[row.against]}
            line |= dict(zip(("low", "high"), np.percentile(delta, INTERVAL), strict=True))
        if not row.members:
            cost = read_json(folder_of(name, work) / "row.json")["cost"]
            line |= {"minutes": cost["seconds"] / 60, "studies_per_second": cost["studies_per_second"]}
            line |= {"memory_gb": cost["memory_gb"], "parameters_m": cost["parameters"] / 1e6}
        lines.append(line | {"what": row.text})
    lines += [{"name": name, "score": score} for name, score in zip(REFERENCES, (prior, oracle), strict=True)]
    return pd.DataFrame(lines)


def markdown(result: pd.DataFrame, n_test: int) -> str:
    """The table as benchmarks/README.md has it."""
    references = result[result["closed"].isna()].set_index("name")["score"]
    lines = [f"| synthetic, {n_test} unseen studies | score | of the way | difference to | minutes |"]
    lines += ["| --- | --- | --- | --- | --- |", f"| weighted prior | {references['weighted prior']:.3f} | 0 | | |"]
    for row in result.dropna(subset="closed").to_dict("records"):
        closed, low, high = (100 * row[column] for column in ("closed", "closed_low", "closed_high"))
        compared = "{difference:+.3f} [{low:+.3f}, {high:+.3f}] {against}".format(**row)
        minutes = f"{row['minutes']:.0f}"
        cells = [f"`{row['name']}`: {row['what']}", f"{row['score']:.3f}", f"{closed:.0f} % [{low:.0f}, {high:.0f}]"]
        cells += ["" if pd.isna(row["difference"]) else compared, "" if pd.isna(row["minutes"]) else minutes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, f"| oracle | {references['oracle']:.3f} | 100 % | | |", ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", help="names, in the order to train them; default all")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time; on a GPU one (default: 2)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cohort", type=Path, default=ROOT / "runs" / "benchmark" / "ablation")
    parser.add_argument("--out", type=Path, help="write the table there as CSV")
    parser.add_argument("--figure", type=Path, help="draw the table there as PNG")
    parser.add_argument("--markdown", type=Path, help="write the table there as benchmarks/README.md has it")
    parser.add_argument("--list", action="store_true", help="say what the rows are")
    args = parser.parse_args()
    every = rows(args.epochs)
    if args.list:
        print("\n".join(f"{name:<16} {row.text}" for name, row in every.items()))
        return 0
    unknown = set(args.rows or ()) - set(every)
    if unknown:
        parser.error(f"no such rows: {sorted(unknown)}; there are {list(every)}")
    data = open_data(args.cohort, args.jobs)
    work = args.cohort.parent / f"ablation_rows_{args.epochs}"
    trained = [name for name in (every if args.rows is None else args.rows) if every[name].config]
    failed = False
    # A process a row, so that each one's largest memory is its own; one that fails costs only itself.
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {name: pool.submit(train_row, name, every[name], args.cohort, work, args.device) for name in trained}
        for name, job in jobs.items():
            if job.exception() is not None:
                failed = True
                print(f"{name}: {job.exception()}", file=sys.stderr)
    result = table(every, data, work)
    with pd.option_context("display.width", 250, "display.max_columns", 20, "display.max_colwidth", 60):
        print(result.round(4).to_string(index=False))
    if args.out:
        result.to_csv(args.out, index=False, float_format="%.5g")
    compared = {"closed", "against"} <= set(result)  # at least one row and the one that it is compared with
    if args.markdown and compared:
        args.markdown.write_text(markdown(result, len(data.test)), "utf-8")
    if args.figure and compared:
        scored = result.dropna(subset="closed")
        references = result[result["closed"].isna()].set_index("name")["score"].to_dict()
        title = f"What each part brings   {len(data.learn)} studies to learn from, {len(data.test)} unseen"
        viz.save(viz.show_ablation(scored, references=references, title=title, synthetic=True), args.figure, dpi=120)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
