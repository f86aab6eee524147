"""How many files and studies a second: reading, localizing, cropping, classifying, beside the plain tools of today.

    python benchmarks/throughput.py                       24 synthetic studies, profile rsna, in runs/benchmark
    python benchmarks/throughput.py --studies 40 --device cuda --csv throughput.csv
    python benchmarks/throughput.py --weights runs/demo/classifier    also whole predictions, DICOM to 25 targets

Competitors (`plain_tools.py`) do the same job on the same files, around the same known points, and take turns with the
library study by study: on a shared machine seconds drift, ratios of one run do not. CPU seconds are those of the
process that works; files are in the page cache for everybody. Needs SimpleITK and psutil:
pip install -e ".[benchmarks]".
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # for the workers

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
import torch

try:
    import psutil
    from plain_tools import Itk, PlainClassifier, PydicomAndScipy, series_folders
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is not installed, and what is compared here needs it: pip install -e '.[benchmarks]'")

from lumbar_utils.crops.cache import CropCache, build_crop_cache
from lumbar_utils.crops.extraction import CropSpec, extract_crops
from lumbar_utils.devices import Compute, choose_compute
from lumbar_utils.localization import DiscLocalizer, DiscPoints, open_localizer
from lumbar_utils.localization.evaluation import read_reference
from lumbar_utils.models.classifier import LumbarClassifier, predict_probabilities
from lumbar_utils.models.inputs import batch_of, study_input
from lumbar_utils.parallel import JobFailure, run_jobs
from lumbar_utils.phantom.cohort import generate_cohort
from lumbar_utils.studies.study import StudySource, find_studies, load_study

SEED = 4720
OURS = "lumbar_utils"
PLAIN = {tool.name: tool for tool in (PydicomAndScipy, Itk)}
CHUNK = 4
"""Studies after which it is the next competitor's turn."""
BATCH = 8
"""Studies that the network predicts at a time."""
SHOWN = ("files/s", "studies/s", "CPU s/study", "wall", "CPU")


class Clock:
    """Wall and CPU seconds of this process, by the name of what is done."""

    def __init__(self):
        self.seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        before = self.seconds.get(name, (0.0, 0.0))
        self.seconds[name] = (before[0] + time.perf_counter() - wall, before[1] + time.process_time() - cpu)


def our_job(source: StudySource, discs: DiscPoints, spec: CropSpec, out: Path, localizer: DiscLocalizer) -> dict:
    """Seconds of each step on one study, by step."""
    clock = Clock()
    torch.set_num_threads(1)
    with clock("read"):
        study = load_study(source)
    with clock("localize"):
        localizer.locate(study)
    with clock("crop"):
        crops = extract_crops(study, discs, spec)
    with clock("write"):
        crops.save(out / f"{source.study_id}.npz")
    return clock.seconds


def plain_job(name: str, source: StudySource, discs: DiscPoints, spec: CropSpec, out: Path) -> dict:
    """The same with a plain tool, which does not localize."""
    tool, clock = PLAIN[name], Clock()
    with clock("read"):
        scans = {view: tool.read(folder) for view, folder in _folders(source).items()}
    with clock("crop"):
        crops = {view: tool.crop(scan, view, discs.points, spec) for view, scan in scans.items()}
    with clock("write"):
        np.savez(out / f"{source.study_id} {name}.npz", **{v: c.astype(np.float16) for v, c in crops.items()})
    return clock.seconds


def _folders(source: StudySource) -> dict[str, Path]:
    return series_folders(source.path, dict(source.listed or ()))


def files_of(source: StudySource, *, plain: bool) -> int:
    """Files that are read: a plain tool takes one series a view."""
    if plain:
        return sum(len(list(folder.glob("*.dcm"))) for folder in _folders(source).values())
    return sum(len(list((source.path / series_id).glob("*.dcm"))) for series_id, _ in source.listed or ())


def measure_steps(sources: list[StudySource], points: dict[str, DiscPoints], cores: int, out: Path) -> pd.DataFrame:
    """One row a competitor, study and step: wall and CPU seconds of one process among `cores` that work."""
    spec, localizer, rows = CropSpec(), open_localizer(), []
    jobs: dict[str, tuple[Callable, Callable]] = {
        OURS: (our_job, lambda s: (s, points[s.study_id], spec, out, localizer)),
        **{name: (plain_job, lambda s, n=name: (n, s, points[s.study_id], spec, out)) for name in PLAIN},
    }
    chunks = [sources[:CHUNK], *(sources[i : i + CHUNK] for i in range(0, len(sources), CHUNK))]
    for turn, chunk in enumerate(chunks):  # the first one warms up
        for name, (function, arguments) in jobs.items():
            for index, result in run_jobs(function, [arguments(s) for s in chunk], n_jobs=cores):
                if isinstance(result, JobFailure):
                    raise SystemExit(f"{name}, study {chunk[index].study_id}: {result.reason}")
                files = files_of(chunk[index], plain=name != OURS)
                for step, (wall, cpu) in result.items() if turn else ():
                    rows.append((name, chunk[index].study_id, step, files, wall, cpu))
    return pd.DataFrame(rows, columns=["tool", "study", "step", "files", "wall", "cpu"])


def measure_classifying(cache: CropCache, cores: int, device: str) -> pd.DataFrame:
    """The same rows of the classifier's network and of plain timm-3d networks, on the same crops."""
    torch.set_num_threads(cores)
    compute = choose_compute(device)
    torch.manual_seed(0)
    own, plain = LumbarClassifier().to(compute.device), PlainClassifier().to(compute.device).eval()
    inputs, rows = [study_input(crops) for crops in cache], []
    chunks = [inputs[:BATCH], *(inputs[i : i + BATCH] for i in range(0, len(inputs), BATCH))]
    for turn, chunk in enumerate(chunks):
        for name, act in {
            OURS: lambda c=chunk: predict_probabilities(own, c, compute),
            "timm-3d as it comes": lambda c=chunk: _predict_plainly(plain, c, compute),
        }.items():
            clock = Clock()
            with clock("classify"):
                act()
            wall, cpu = clock.seconds["classify"]
            if turn:
                # Wall seconds as of one of `cores` processes, like the other steps'.
                rows += [(name, c.study_id, "classify", 0, wall / len(chunk) * cores, cpu / len(chunk)) for c in chunk]
    torch.set_num_threads(1)
    return pd.DataFrame(rows, columns=["tool", "study", "step", "files", "wall", "cpu"])


@torch.no_grad()
def _predict_plainly(model: PlainClassifier, chunk: list, compute: Compute) -> np.ndarray:
    images = {view: image.to(compute.device) for view, image in batch_of(chunk)["images"].items()}
    with compute.autocast():
        return model(images).double().cpu().numpy()


def table_of(rows: pd.DataFrame, cores: int) -> pd.DataFrame:
    """Rates by step and tool; `wall` and `CPU` are the tool's seconds a study divided by the library's."""
    steps = ["read", "localize", "crop", "classify", "read + crop + write"]
    whole = rows[rows["step"].isin(["read", "crop", "write"])].groupby(["tool", "study"], as_index=False)
    whole = whole.agg({"files": "first", "wall": "sum", "cpu": "sum"}).assign(step=steps[-1])
    mean = pd.concat([rows, whole]).groupby(["step", "tool"])[["files", "wall", "cpu"]].mean()
    lines = {}
    for step in steps:
        for tool in [t for t in mean.loc[step].index if t == OURS] + [t for t in mean.loc[step].index if t != OURS]:
            one, own = mean.loc[(step, tool)], mean.loc[(step, OURS)]
            files = cores * one["files"] / one["wall"] if step.startswith("read") else np.nan
            lines[step, tool] = (
                files,
                cores / one["wall"],
                one["cpu"],
                one["wall"] / own["wall"],
                one["cpu"] / own["cpu"],
            )
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(SHOWN))


@contextmanager
def whole_run(name: str, studies: int, cores: int, bar: str) -> Iterator[None]:
    """Print studies a second of what is done inside, and the CPU seconds of this process and its children."""
    wall, cpu = time.perf_counter(), cpu_of_all()
    yield
    wall, cpu = time.perf_counter() - wall, cpu_of_all() - cpu
    print(
        f"  {name}, {cores} core{'s' * (cores > 1)}: {studies / wall:.2f} studies/s, {wall / studies:.2f} s and "
        f"{cpu / studies:.2f} CPU s a study ({bar})"
    )


def cpu_of_all() -> float:
    """CPU seconds of this process, its children that live, and those of its own that have ended."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    ended = psutil.Process().cpu_times()
    return sum(sum(process.cpu_times()[:2]) for process in processes) + ended.children_user + ended.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=Path, default=ROOT / "runs" / "benchmark" / "throughput", help="made there")
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--first", type=int, help="measure only so many of them")
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu", help="of the classifier")
    parser.add_argument("--weights", type=Path, help="a trained classifier, to measure whole predictions as well")
    parser.add_argument("--csv", type=Path, help="write the table there, too")
    args = parser.parse_args()
    generate_cohort(args.cohort, n_studies=args.studies, seed=SEED, profile="rsna", progress=sys.stderr.isatty())
    sources = [source.absolute() for source in find_studies(args.cohort)][: args.first]
    truth = read_reference(args.cohort / "truth" / "discs.csv", point="canal")
    points = {s: DiscPoints(s, "", p, np.ones(5), source="truth") for s, p in truth.items()}
    files = sum(files_of(source, plain=False) for source in sources)
    print(f"{len(sources)} synthetic studies, profile rsna, {files} files; {len(os.sched_getaffinity(0))} cores, load")
    print(f"{os.getloadavg()[0]:.1f} when it began, so other work may take its share: look at ratios and CPU seconds")
    tables = {}
    for cores in args.cores:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            rows = measure_steps(sources, points, cores, out)
            options = {"n_jobs": cores, "progress": False}
            build_crop_cache(sources[:CHUNK], points, out / "warm", **options)
            with whole_run("DICOM to cached crops", len(sources), cores, "bar: 20 studies/s on 2 quiet cores"):
                cache = build_crop_cache(sources, points, out / "crops", **options)
            rows = pd.concat([rows, measure_classifying(cache, cores, args.device)])
        tables[f"{cores} core{'s' * (cores > 1)}"] = table_of(rows, cores)
        if args.weights:
            predict(args.weights, sources, cores, args.device)
    table = pd.concat(tables, axis=1)
    print("\nwall, CPU: seconds a study, relative to this library; above 1 it is slower\n")
    with pd.option_context("display.width", 250, "display.max_columns", 30):
        print(table.round(2).to_string(na_rep=""))
    if args.csv:
        table.to_csv(args.csv)
    return 0


def predict(weights: Path, sources: list[StudySource], cores: int, device: str) -> None:
    """Whole predictions, from DICOM to 25 targets."""
    from lumbar_utils.inference.predictor import Predictor

    predictor = Predictor(weights, device=device)
    list(predictor.predict_studies(sources[:CHUNK], n_jobs=cores, progress=False))
    with whole_run("DICOM to 25 predictions", len(sources), cores, "bar: 2 s a study on 2"):
        predictions = list(predictor.predict_studies(sources, n_jobs=cores, progress=False))
    if any(prediction.fallback for prediction in predictions):
        raise SystemExit("a study was not predicted: this measured nothing")


if __name__ == "__main__":
    sys.exit(main())
