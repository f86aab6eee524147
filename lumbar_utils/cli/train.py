"""`lumbar train localizer` and `lumbar train classifier`."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, counted
from . import inputs
from .arguments import COUNT, DEVICE, JOBS, PATH, POINTS, POSITIVE, SIZE, add_command, add_group, number

if TYPE_CHECKING:
    import pandas as pd

    from ..crops import CropCache, CropSpec
    from ..localization import DiscLocalizer
    from ..studies import CompetitionFolder
    from ..training import AugmentConfig, TrainConfig

MAX_MEASURED = 200
"""Studies on which the localizer's error is measured: enough for a spread, and their images have to be read again."""


def add(commands) -> None:
    """Add both commands to the parser's."""
    parts = add_group(
        commands,
        "train",
        "localizer|classifier",
        help="train the localizer or the classifier",
        description="Train one of the two networks. Both leave weights and their configuration in the run folder.",
        epilog="examples:\n"
        "  lumbar train localizer data --run runs/first\n"
        "  lumbar train classifier data --run runs/first --epochs 20",
    )
    localizer = add_command(parts, "localizer", train_localizer, help="the localizer")
    classifier = add_command(parts, "classifier", train_classifier, resumes=True, help="the classifier")
    for parser in (localizer, classifier):
        parser.add_argument("path", **PATH | {"metavar": "DATA", "help": "a competition folder, real or synthetic"})
        parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="the run folder, such as runs/first")
        parser.add_argument("--seed", type=COUNT, metavar="S", help="instead of the configuration's; the folds stay")
        parser.add_argument(
            "--config", type=Path, metavar="JSON", help="fields of training.TrainConfig; the rest default"
        )
        parser.add_argument("--device", **DEVICE)
        parser.add_argument("--jobs", **JOBS)
    localizer.add_argument("--fold", type=COUNT, metavar="N", help="the fold to hold out (default: 0)")
    localizer.add_argument("--steps", type=POSITIVE, metavar="N", help="optimiser steps")
    localizer.add_argument("--from-scratch", action="store_true", help="do not start from the shipped localizer")
    classifier.add_argument(
        "--fold", type=_fold, metavar="N", help="the fold to hold out (default: 0), or all: one network a fold"
    )
    classifier.add_argument("--points", **POINTS)
    classifier.add_argument("--size", **SIZE)
    classifier.add_argument(
        "--denoise", type=Path, metavar="RUN", help="leave out labels hardly possible by RUN, trained with --fold all"
    )
    classifier.add_argument(
        "--initial", metavar="RUN", help="start from these weights, with their network and size of crops"
    )
    classifier.add_argument("--epochs", type=POSITIVE, metavar="N", help="instead of the configuration's")


def _fold(text: str) -> int | str:
    return text if text == "all" else number(int, 0, float("inf"), "a fold's number or all")(text)


def _config(args: argparse.Namespace) -> tuple[TrainConfig, dict]:
    """The configuration with what the options say, and the JSON in the file that --config names."""
    from ..files import read_json
    from ..training.config import TrainConfig

    given = read_json(args.config) if args.config else {}
    changes = {name: getattr(args, name, None) for name in ("epochs", "seed", "fold", "device")}
    changes = {name: value for name, value in changes.items() if value not in (None, "all")}
    return replace(TrainConfig.from_json(given, args.config or ""), **changes), given


def train_localizer(args: argparse.Namespace) -> None:
    """Fine-tune the localizer that ships with the library on the canal points of train_label_coordinates.csv, without
    its annotation errors, and measure its error on the fold that `train classifier` with the same --config and --fold
    holds out. The result in RUN/localizer is used from then on wherever RUN is; of what it was trained on, points out
    of fold come from the shipped localizer.

    examples:
      lumbar train localizer data --run runs/first
      lumbar train localizer data --run runs/first --from-scratch
    """
    folder = inputs.competition(args.path)
    from .. import localization
    from ..devices import choose_compute
    from ..kaggle.workspace import split_studies
    from ..training.checkpoints import only_training

    config, _ = _config(args)
    changes = {"seed": config.seed} | ({} if args.steps is None else {"steps": args.steps})
    held_out: list[str] = []
    if folder.labels is not None and 1 < config.folds <= len(folder.labels):
        # The fold that `lumbar train classifier` holds out: crops of studies that the localizer was trained on would
        # be centred too well.
        held_out = split_studies(folder, config.fold, folds=config.folds, fold_seed=config.fold_seed)[1]
    start = None if args.from_scratch else inputs.open_localizer(None)
    defaults = localization.LocalizerTraining if start is None else localization.LocalizerTraining.fine_tuning
    with only_training(args.run):
        localizer = localization.train_localizer(
            folder,
            [study_id for study_id in folder.study_ids("train") if study_id not in set(held_out)],
            start=start,
            training=replace(defaults(), **changes),
            out=args.run / "localizer",
            device=choose_compute(config.device).device,
            n_jobs=args.jobs,
            progress=args.progress,
        )
    print(f"weights in {args.run / 'localizer'}")
    if held_out:
        _print_errors(folder, sorted(held_out), localizer, n_jobs=args.jobs, progress=args.progress)


def _print_errors(folder: CompetitionFolder, study_ids: list[str], localizer: DiscLocalizer, **options) -> None:
    """How good a localizer is on studies with known points: in the patient, and on the labelled images."""
    from .. import localization
    from ..studies import find_studies

    reference = localization.reference_points(folder, study_ids, **options)
    if not reference:
        return
    sources = [source for source in find_studies(folder.root, part="train") if source.study_id in reference]
    found, _ = localization.locate_studies(sources, localizer, **options)
    print(f"on {counted(len(reference))} that it was not trained on:")
    for name, value in localization.summary(localization.evaluate_points(found, reference)).items():
        print(f"  {name:<28} {value:.4g}")
    inputs.print_low_confidence(found)
    if folder.coordinates is not None:
        compared = localization.evaluate_on_images(folder, list(reference), found, **options)
        print("against the cleaned table of points, on the images that were marked:")
        print("  " + localization.image_summary(compared).round(3).to_string().replace("\n", "\n  "))


def train_classifier(args: argparse.Namespace) -> None:
    """Cut training crops around the table's points (RUN/crops), find the discs of the held-out studies as those of new
    patients (with RUN/localizer where it was not trained on them, else with the shipped one), cut theirs
    (RUN/crops_found), and train the classifier. With --fold all, one network a fold, their ensemble, and out-of-fold
    predictions for all studies.

    examples:
      lumbar train classifier data --run runs/first
      lumbar train classifier data --run runs/first --config my.json --epochs 20
      lumbar train classifier data --run runs/first --fold all
      lumbar train classifier data --run runs/first --initial runs/demo      phantoms as a head start
      lumbar train classifier data --run runs/second --denoise runs/first      where first had --fold all

    my.json holds what is to be other than usual, for instance
      {"epochs": 20, "classifier": {"family": "2.5d", "slice_pooling": "attention"}, "augment": {"cutmix": 0.3}}
    and for the plain network that the design began with
      {"classifier": {"head": "unified", "split_sides": false, "auxiliary": false, "dropout": 0, "view_dropout": 0}}
    unless it names augment.shift_mm, crops are shifted by the localizer's error on the held-out studies.

    on several GPUs, once the crops are there (with its own --config and, after --fold all, --all-folds):
      accelerate launch --multi_gpu --num_processes 2 -m lumbar_utils.training \\
          runs/first/crops data/train.csv runs/first/classifier --found runs/first/crops_found
    """
    folder = inputs.competition(args.path)
    from ..kaggle.workspace import split_studies
    from ..models.ensemble import first_member
    from ..models.run_folder import RunConfig
    from ..training.checkpoints import only_training
    from ..training.cross_validation import fit_folds
    from ..training.train import fit

    (config, given), every = _config(args), args.fold == "all"
    spec = inputs.crop_spec(args.size)
    if args.initial is not None:
        initial = args.initial
        if initial != "shipped":
            initial = str(inputs.weights_folder("classifier", Path(initial)))
        start = RunConfig.load(first_member(initial))
        network = config.classifier if "classifier" in given else start.classifier
        config = replace(config, initial=initial, classifier=network)
        spec = spec if args.size else start.crops
    if folder.labels is None:
        raise DataError(f"{folder.root} has no train.csv, so there is nothing to train on")
    labelled = list(folder.labels["study_id"])
    held_out = []
    if every or config.folds > 1:  # folds that cannot be are refused here, before the work
        held_out = split_studies(folder, config.fold, folds=config.folds, fold_seed=config.fold_seed)[1]
    training = set(labelled) if every else set(labelled) - set(held_out)
    options = {"synthetic_only": folder.is_synthetic, "progress": args.progress}
    if args.denoise is not None:
        options["training_labels"] = _denoised(folder, args.denoise, training)
    held_out = labelled if every else held_out
    with only_training(args.run):
        cache, found = _training_crops(folder, training, held_out, spec, args)
        if "shift_mm" not in given.get("augment", {}):
            config = replace(config, augment=_shifted_by_localizer_errors(config.augment, folder, found, args))
        options |= {"held_out_crops": found}
        if every:
            result = fit_folds(cache, folder.labels, config, args.run / "classifier", **options)
        else:
            options["held_out"] = [study_id for study_id in held_out if study_id in found]
            result = fit(cache, folder.labels, config, args.run / "classifier", **options)
    print(f"weights and {len(result.study_ids)} out-of-fold predictions in {result.folder}")
    for name, score in result.scores.items():
        print(f"  {name.replace('_', ' '):<15} {score}")


def _denoised(folder: CompetitionFolder, run: Path, training: set[str]) -> pd.DataFrame:
    """The labels without those of training studies that the out-of-fold predictions of a run make hardly possible."""
    from ..labels import TARGETS, split_row_id
    from ..training.label_denoising import denoise_table

    predictions, labels = inputs.predictions(run)[0], folder.labels
    own = labels["study_id"].isin(training)
    named = predictions["row_id"].astype(str).map(lambda row_id: split_row_id(row_id)[0])
    if not named.isin(training).any():
        raise DataError(
            f"{run} has predictions of {named.nunique()} studies, and of no training study; train it with "
            "--fold all, which gives out-of-fold predictions of every study"
        )
    table = labels.copy()
    table[own] = denoise_table(labels[own], predictions[named.isin(training)])
    before, after = (int(t.loc[own, list(TARGETS)].notna().sum().sum()) for t in (labels, table))
    print(f"{before - after} of {before} labels are left out of the training, hardly possible by {run}")
    return table


def _training_crops(
    folder: CompetitionFolder, training: set[str], held_out: list[str], spec: CropSpec, args: argparse.Namespace
) -> tuple[CropCache, CropCache]:
    """Crops to train on, around the table's points where it has any; crops of held-out studies, around found points."""
    from .. import localization
    from ..crops import build_crop_cache
    from ..studies import find_studies

    options = {"n_jobs": args.jobs, "progress": args.progress}
    validation = set(held_out)
    sources = [s for s in find_studies(folder.root, part="train") if s.study_id in training | validation]
    to_train = [source for source in sources if source.study_id in training]
    to_predict = [source for source in sources if source.study_id in validation]
    known = {}
    if folder.coordinates is not None and args.points is None:
        known = localization.points_from_table(folder, [source.study_id for source in to_train], **options)[0]
    to_locate = [source for source in sources if source.study_id not in known or source.study_id in validation]
    localizer = inputs.localizer_folder(None, run=args.run)
    discs = inputs.discs_of(to_locate, points=args.points, localizer=localizer, out_of_fold=True, **options)
    if args.points is None:
        localization.write_points(args.run / "crops_found" / "points.csv", discs.values())
    build = partial(build_crop_cache, spec=spec, **options)
    cache = build(to_train, {**discs, **known}, args.run / "crops")
    return cache, build(to_predict, discs, args.run / "crops_found")


def _shifted_by_localizer_errors(
    augment: AugmentConfig, folder: CompetitionFolder, found: CropCache, args: argparse.Namespace
) -> AugmentConfig:
    """Crops shifted by the error measured on the held-out studies; as configured, where no true points are known."""
    import numpy as np

    from ..localization import reference_points

    if folder.coordinates is None and not (folder.root / "truth" / "discs.csv").is_file():
        return augment
    measured = found.study_ids[:: 1 + len(found.study_ids) // MAX_MEASURED]
    truth = reference_points(folder, list(measured), n_jobs=args.jobs, progress=args.progress)
    errors = np.array([found[s].points.points - truth[s] for s in measured if s in truth]).reshape(-1, 3)
    if not np.isfinite(errors).all(axis=1).any():
        return augment
    augment = augment.with_localizer_errors(errors)
    shift = ", ".join(f"{mm:.2f}" for mm in augment.shift_mm)
    print(f"training crops are shifted by the localizer's error: {shift} mm (left-right, front-back, up-down)")
    return augment
