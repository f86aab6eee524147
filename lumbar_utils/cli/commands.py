"""What each command does, as calls of the library.

Heavy modules are imported by the command that needs them, and only after its paths have been checked: a mistyped
path should not take the seconds that torch needs to load.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..inference.issues import counted
from ..studies.competition import in_synthetic_cohort
from . import environment as machine
from . import inputs, reports, structured_reports

if TYPE_CHECKING:
    import pandas as pd

    from ..crops.cache import CropCache
    from ..crops.extraction import CropSpec
    from ..inference.predictor import StudyPrediction
    from ..localization import DiscLocalizer
    from ..studies.study import CompetitionFolder, StudySource
    from ..training.augmentation import AugmentConfig

logger = logging.getLogger(__name__)

MAX_MEASURED = 200
"""Studies on which the localizer's error is measured: enough for a spread, and their images have to be read again."""
SCORE_TITLES = {
    "spinal": "spinal canal",
    "foraminal": "foraminal",
    "subarticular": "subarticular",
    "any_severe_spinal": "any severe spinal",
    "total": "score",
}


def phantom(args: argparse.Namespace) -> None:
    """`lumbar phantom`: write a synthetic cohort."""
    from ..phantom.cohort import generate_cohort

    options = {} if args.test_fraction is None else {"test_fraction": args.test_fraction}
    generate_cohort(
        args.out,
        n_studies=args.studies,
        seed=args.seed,
        profile=args.profile,
        randomise=args.randomise,
        n_jobs=inputs.jobs(args.jobs),
        progress=args.progress,
        **options,
    )
    made = counted(args.studies, "synthetic study", "synthetic studies")
    print(f"{made} in {args.out}; the truth about them in {args.out / 'truth'}")


def localize(args: argparse.Namespace) -> None:
    """`lumbar localize`: find the discs of every study under a path."""
    path, folder = inputs.data_path(args.path), inputs.localizer_folder(args.weights)
    inputs.table_to_write(args.out)
    from ..localization import write_points
    from ..localization.batch import locate_studies, low_confidence_message
    from ..studies.study import find_studies

    localizer = inputs.open_localizer(folder)
    sources = find_studies(path, progress=args.progress)
    found, failed = locate_studies(sources, localizer, n_jobs=inputs.jobs(args.jobs), progress=args.progress)
    if not found:
        raise DataError(f"the discs were found in none of {counted(len(sources))}; {next(iter(failed.values()))}")
    write_points(args.out, found.values())
    flagged = sum(discs.flagged for discs in found.values())
    print(f"{counted(len(found))} in {args.out}, {flagged} of them with a flag; {len(failed)} failed")
    if low_confidence_message(found):
        print(f"  {low_confidence_message(found)}")


def crops(args: argparse.Namespace) -> None:
    """`lumbar crops`: fill a crop cache."""
    from ..crops.cache import build_crop_cache
    from ..studies.study import find_studies

    path = inputs.data_path(args.path)
    inputs.folder_to_write(args.out, "--out")
    if args.points is not None and args.weights is not None:
        raise DataError("--points names the discs' points and --weights what finds them: give one of the two")
    localizer = None if args.points is not None else inputs.localizer_folder(args.weights)
    sources = find_studies(path, progress=args.progress)
    jobs = inputs.jobs(args.jobs)
    discs = inputs.discs_of(sources, points=args.points, localizer=localizer, n_jobs=jobs, progress=args.progress)
    spec = inputs.crop_spec(args.size)
    cache = build_crop_cache(sources, discs, args.out, spec=spec, n_jobs=jobs, progress=args.progress)
    if not len(cache):
        raise DataError(f"no study could be cropped; {next(iter(cache.failures.values()), 'there is none')}")
    print(f"crops of {counted(len(cache))} in {args.out}, {len(cache.failures)} failed")


def train(args: argparse.Namespace) -> None:
    """`lumbar train localizer|classifier`."""
    {"localizer": _train_localizer, "classifier": _train_classifier}[args.part](args)


def _train_localizer(args: argparse.Namespace) -> None:
    from ..devices import choose_compute
    from ..kaggle.workspace import FOLDS, split_studies
    from ..localization import LocalizerTraining, train_localizer

    folder = inputs.competition(args.path)
    jobs = inputs.jobs(args.jobs)
    changes = {name: value for name, value in (("steps", args.steps), ("seed", args.seed)) if value is not None}
    held_out: set[str] = set()
    if folder.labels is not None and len(folder.labels) >= FOLDS:
        # The fold that `lumbar train classifier` holds out: a localizer that has learnt from a study crops it too well.
        held_out = set(split_studies(folder, args.fold or 0, seed=args.seed or 0)[1])
    start = None if args.from_scratch else inputs.open_localizer(None)
    usual = LocalizerTraining() if start is None else LocalizerTraining.fine_tuning()
    localizer = train_localizer(
        folder,
        [study_id for study_id in folder.study_ids("train") if study_id not in held_out],
        start=start,
        training=replace(usual, **changes),
        out=args.run / "localizer",
        device=choose_compute(args.device or "auto").device,
        n_jobs=jobs,
        progress=args.progress,
    )
    print(f"weights in {args.run / 'localizer'}")
    if held_out:
        _print_errors(folder, sorted(held_out), localizer, jobs=jobs, progress=args.progress)


def _print_errors(
    folder: CompetitionFolder, study_ids: list[str], localizer: DiscLocalizer, *, jobs: int, progress: bool
) -> None:
    """How good a localizer is on studies with known points: in the patient, and on the labelled images."""
    from ..localization.batch import locate_studies, low_confidence_message, reference_points
    from ..localization.evaluation import evaluate_on_images, evaluate_points, image_summary, summary

    reference = reference_points(folder, study_ids, n_jobs=jobs, progress=progress)
    if not reference:
        return
    sources = [source for source in inputs.studies_of(folder, "train") if source.study_id in reference]
    found, _ = locate_studies(sources, localizer, n_jobs=jobs, progress=progress)
    print(f"on {counted(len(reference))} that it was not trained on:")
    for name, value in summary(evaluate_points(found, reference)).items():
        print(f"  {name:<28} {value:.4g}")
    if low_confidence_message(found):
        print(f"  {low_confidence_message(found)}")
    if folder.coordinates is not None:
        compared = image_summary(evaluate_on_images(folder, list(reference), found, n_jobs=jobs, progress=progress))
        print("against the cleaned table of points, on the images that were marked:")
        print("  " + compared.round(3).to_string().replace("\n", "\n  "))


def _train_classifier(args: argparse.Namespace) -> None:
    from ..files import read_json
    from ..kaggle.workspace import split_studies
    from ..training.config import TrainConfig
    from ..training.cross_validation import fit_folds
    from ..training.train import fit

    folder = inputs.competition(args.path)
    given = read_json(args.config) if args.config else {}
    config = TrainConfig.from_json(given, args.config or "")
    every = args.fold == "all"
    fold = None if every else args.fold
    changes = {"epochs": args.epochs, "seed": args.seed, "fold": fold, "device": args.device}
    config = replace(config, **{name: value for name, value in changes.items() if value is not None})
    if folder.labels is None:
        raise DataError(f"{folder.root} has no train.csv, so there is nothing to learn from")
    held_out = []
    if every or config.folds > 1:  # folds that cannot be are refused here, before the work
        held_out = split_studies(folder, config.fold, folds=config.folds, seed=config.seed)[1]
    denoised = None
    if args.denoise is not None:
        learnt = set(folder.labels["study_id"]) - (set() if every else set(held_out))
        denoised = _denoised(folder, args.denoise, learnt)
    if every:
        held_out = list(folder.labels["study_id"])
    cache, found = _training_crops(folder, held_out, every, args)
    if "shift_mm" not in given.get("augment", {}):
        config = replace(config, augment=_shifted_as_the_localizer_errs(config.augment, folder, found, args))
    options = {"held_out_crops": found, "synthetic_only": folder.is_synthetic, "progress": args.progress}
    if denoised is not None:
        options["training_labels"] = denoised
    if every:
        result = fit_folds(cache, folder.labels, config, args.run / "classifier", **options)
    else:
        held_out = [study_id for study_id in held_out if study_id in found]
        result = fit(cache, folder.labels, config, args.run / "classifier", held_out=held_out, **options)
    print(f"weights and {len(result.study_ids)} out-of-fold predictions in {result.folder}")
    for name, score in result.scores.items():
        print(f"  {name.replace('_', ' '):<15} {score}")


def _denoised(folder: CompetitionFolder, run: Path, learnt: set[str]) -> pd.DataFrame:
    """The labels less those to learn from that the out-of-fold predictions of a run find hardly possible."""
    from ..labels import TARGETS
    from ..training.label_denoising import denoise_table

    predictions, labels = inputs.predictions(run)[0], folder.labels
    own = labels["study_id"].isin(learnt)
    named = predictions["row_id"].astype(str).str.partition("_")[0]
    if not named.isin(learnt).any():
        raise DataError(
            f"{run} has predictions of {named.nunique()} studies, and of none that is to be learnt from here; "
            "train it with --fold all, so that every study has been graded unseen"
        )
    weights = inputs.class_weights_of(run)
    table = labels.copy()
    table[own] = denoise_table(labels[own], predictions[named.isin(learnt)], class_weights=weights)
    before, after = (int(t.loc[own, list(TARGETS)].notna().sum().sum()) for t in (labels, table))
    print(f"{before - after} of {before} labels are left out of the training, hardly possible by {run}")
    return table


def _shifted_as_the_localizer_errs(
    augment: AugmentConfig, folder: CompetitionFolder, found: CropCache, args: argparse.Namespace
) -> AugmentConfig:
    """Crops shifted by the error measured on the studies to be graded; as they were, where no true points are known."""
    import numpy as np

    from ..localization.batch import reference_points

    if folder.coordinates is None and not (folder.root / "truth" / "discs.csv").is_file():
        return augment
    measured = found.study_ids[:: 1 + len(found.study_ids) // MAX_MEASURED]
    truth = reference_points(folder, list(measured), n_jobs=inputs.jobs(args.jobs), progress=args.progress)
    errors = np.array([found[s].points.points - truth[s] for s in measured if s in truth]).reshape(-1, 3)
    if not np.isfinite(errors).all(axis=1).any():
        return augment
    augment = augment.with_localizer_errors(errors)
    shift = ", ".join(f"{mm:.2f}" for mm in augment.shift_mm)
    print(f"training crops are shifted by as much as found points err: {shift} mm (left-right, front-back, up-down)")
    return augment


def _training_crops(
    folder: CompetitionFolder, held_out: list[str], every: bool, args: argparse.Namespace
) -> tuple[CropCache, CropCache]:
    """Crops to learn from, around the table's points where it has any, and crops to grade on, around found points."""
    from ..crops.cache import build_crop_cache
    from ..localization import write_points
    from ..localization.batch import points_from_table

    labelled, jobs = set(folder.labels["study_id"]), inputs.jobs(args.jobs)
    sources = [source for source in inputs.studies_of(folder, "train") if source.study_id in labelled]
    learnt = [source for source in sources if every or source.study_id not in set(held_out)]
    known = {}
    if folder.coordinates is not None and args.points is None:
        ids = [source.study_id for source in learnt]
        known = points_from_table(folder, ids, n_jobs=jobs, progress=args.progress)[0]
    localizer = inputs.localizer_folder(None, run=args.run)
    wanted = [source for source in sources if source.study_id not in known or source.study_id in set(held_out)]
    options = {"held_out": held_out, "n_jobs": jobs, "progress": args.progress}
    discs = inputs.discs_of(wanted, points=args.points, localizer=localizer, **options)
    if args.points is None:
        write_points(args.run / "crops_found" / "points.csv", discs.values())
    graded = [source for source in sources if source.study_id in set(held_out)]
    build = partial(build_crop_cache, spec=inputs.crop_spec(args.size), n_jobs=jobs, progress=args.progress)
    cache = build(learnt, {**discs, **known}, args.run / "crops")
    return cache, build(graded, discs, args.run / "crops_found")


def predict(args: argparse.Namespace) -> None:
    """`lumbar predict`: DICOM to submission, with a log and pictures of the crops beside it."""
    started = time.monotonic()
    path, run = inputs.data_path(args.path), inputs.weights_folder("classifier", args.weights)
    inputs.table_to_write(args.out)
    structured_reports.check(args.sr)
    reports.check(args.report)
    from ..inference.predictor import SYNTHETIC_WARNING, Predictor
    from ..inference.run import run_inference
    from ..localization.batch import low_confidence_message
    from ..models.ensemble import name_of, run_of
    from ..studies.study import CompetitionFolder, find_studies, is_competition_folder

    # A classifier goes with the localizer that cut its training crops; only where that is absent, with the shipped one.
    localizer = inputs.open_localizer(inputs.localizer_folder(None, run=run_of(run)))
    predictor = Predictor(run, device=args.device, localizer=localizer, mirror=args.mirror)
    sources = find_studies(path, part=args.part, progress=args.progress)
    if not sources:
        raise DataError(f"{path} names no study of the {args.part} part")
    folder = CompetitionFolder.open(path) if is_competition_folder(path) else None
    sample = folder.sample_submission if folder is not None and args.part == "test" else None
    done = run_inference(
        predictor,
        sources,
        args.out,
        sample=sample,
        hours=args.hours or None,
        started=started,
        n_jobs=min(inputs.jobs(args.jobs), len(sources)),
        progress=args.progress,
    )
    predictions = done.predictions
    prior = sum(prediction.fallback for prediction in predictions)
    incomplete = sum(bool(prediction.missing_views) and not prediction.fallback for prediction in predictions)
    print(f"{counted(len(predictions))} graded in {args.out}")
    print(f"  {incomplete} lack a view, {prior} got the class prior instead of a prediction; details in {done.log}")
    for line in str(done).splitlines():
        print(f"  {line}")
    doubtful = low_confidence_message({p.study_id: p.discs for p in predictions if p.discs is not None})
    if doubtful:
        print(f"  {doubtful}")
    structured_reports.write(args.sr, predictions, sources, network=f"run {name_of(run)}")
    jobs = inputs.jobs(args.jobs)
    reports.write(args.report, predictions, sources, predictor, run, n_jobs=jobs, progress=args.progress)
    pictures = args.out.with_name(f"{args.out.stem}_crops")
    synthetic = all(in_synthetic_cohort(source.path) for source in sources)
    located = [pair for pair in zip(sources, predictions, strict=True) if pair[1].discs is not None]
    meaningless = predictor.synthetic_only and not synthetic
    drawn = _draw_crops(
        located[: args.pictures], predictor.spec, pictures, synthetic=synthetic, with_grades=not meaningless
    )
    if drawn:
        print(f"  pictures of {counted(drawn)} in {pictures}")
    if meaningless:
        print(f"NOTE: the network was {SYNTHETIC_WARNING}.")


def _draw_crops(
    located: list[tuple[StudySource, StudyPrediction]],
    spec: CropSpec,
    folder: Path,
    *,
    synthetic: bool,
    with_grades: bool,
) -> int:
    """The located discs and the graded crops of studies as pictures; how many studies could be drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from .. import viz
    from ..crops.extraction import extract_crops
    from ..files import file_name
    from ..studies.study import load_study

    drawn = 0
    for source, prediction in located:
        name = file_name(source.study_id)
        try:
            study = load_study(source)
            crops = extract_crops(study, prediction.discs, spec)
            figure = viz.show_disc_points(study, prediction.discs, crops=crops, synthetic=synthetic)
            viz.save(figure, folder / f"{name}_discs.png")
            grades = prediction.probabilities if with_grades else None
            figure = viz.show_crops(crops, probabilities=grades, synthetic=synthetic)
            viz.save(figure, folder / f"{name}_crops.png")
            drawn += 1
        except Exception as error:  # the grades are written; a picture that fails must not look like their failure
            logger.warning("study %s: no picture: %s", source.study_id, error)
        finally:
            pyplot.close("all")
    return drawn


def score(args: argparse.Namespace) -> None:
    """`lumbar score`: the competition's metric of two tables, or of a run's out-of-fold predictions."""
    solution = inputs.read_csv(args.solution)
    submission, references = inputs.predictions(args.submission)
    from ..metrics.score import score_frames

    partial_table = args.predicted_only or args.submission.is_dir()
    columns = {"out-of-fold": score_frames(solution, submission, only_submitted=partial_table).to_json(), **references}
    width = 16 if references else 0
    if references:
        print(" " * 18, *(f"{name.replace('_', ' '):>{width}}" for name in columns))
    for term, title in SCORE_TITLES.items():
        print(f"{title:<18}", *(f"{column[term]:>{width}.6f}" for column in columns.values()))


COMMANDS = {
    "phantom": phantom,
    "localize": localize,
    "crops": crops,
    "train": train,
    "predict": predict,
    "score": score,
    "doctor": machine.doctor,
    "kaggle": machine.kaggle,
}
