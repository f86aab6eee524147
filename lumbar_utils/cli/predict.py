"""`lumbar predict`, DICOM to submission with logs, pictures and reports, and `lumbar score`, the metric of one."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError, OutputError, counted
from . import inputs
from .arguments import COUNT, DEVICE, JOBS, PATH, POINTS, add_command, number

if TYPE_CHECKING:
    from ..crops import CropSpec
    from ..inference import Predictor, StudyPrediction
    from ..studies import StudySource

logger = logging.getLogger(__name__)

TITLES = {
    "spinal": "spinal canal",
    "foraminal": "foraminal",
    "subarticular": "subarticular",
    "any_severe_spinal": "any severe spinal",
    "total": "score",
}


def add(commands) -> None:
    """Add both commands to the parser's."""
    parser = add_command(commands, "predict", predict, resumes=True, help="predict the severities of studies")
    parser.add_argument("path", **PATH)
    about = (
        "a run folder with classifier/ (one network, or an ensemble.json), and localizer/ unless the shipped one is to "
        "be used (default: the library's own classifier if it has one, else runs/demo, then Kaggle's data sets)"
    )
    parser.add_argument("--weights", type=Path, metavar="RUN", help=about)
    parser.add_argument(
        "--out", type=Path, default=Path("submission.csv"), metavar="CSV", help="the submission (default: %(default)s)"
    )
    parser.add_argument("--points", **POINTS)
    parser.add_argument("--part", choices=("test", "train"), default="test", help="of a competition folder")
    parser.add_argument("--mirror", action="store_true", help="predict the mirrored study as well; twice the time")
    hours = number(float, 0, 1e6, "a number of hours, 0 or more")
    about = "finish within so many hours (default: %(default)g, as Kaggle allows; 0: take any time)"
    parser.add_argument("--hours", type=hours, default=9.0, metavar="H", help=about)
    parser.add_argument("--pictures", type=COUNT, default=12, metavar="N", help="crop pictures (default: %(default)s)")
    about = (
        "also write a DICOM structured report per study into DIR; it carries the images' patient and study, names and "
        "ids included, so that an archive can file it (needs highdicom)"
    )
    parser.add_argument("--sr", type=Path, metavar="DIR", help=about)
    about = "an HTML page and a JSON file for every study, and an index.html"
    parser.add_argument("--report", type=Path, metavar="DIR", help=about)
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--jobs", **JOBS)

    parser = add_command(commands, "score", score, help="the competition's score of a submission")
    parser.add_argument("solution", type=Path, metavar="SOLUTION.csv")
    about = "a CSV file, or the folder of a trained classifier"
    parser.add_argument("submission", type=Path, metavar="SUBMISSION", help=about)
    about = "score the studies that SUBMISSION names and leave out the rest"
    parser.add_argument("--predicted-only", action="store_true", help=about)


def predict(args: argparse.Namespace) -> None:
    """Read, localize, crop and predict; write all 25 rows of every study. Where views are missing or files broken, the
    rest of the study is used, and a log tells what was missing. Pages, pictures and structured reports show plain
    frequencies; the submission alone carries the metric's weights.
    Research software. Not a medical device, not for diagnosis.

    Beside submission.csv it writes submission_log.csv (study, what was wrong or missing), submission_log.jsonl (the
    same for programs, with codes) and submission_crops/ (a picture of the crops of the first studies). A run that was
    interrupted is resumed by the same command. When time gets short, mirrored studies are given up first, then networks
    of an ensemble, least weight first; studies that are left at the end get the class prior. The log tells what was
    given up, when and why.

    examples:
      lumbar predict scans --report reports                              any tree of DICOM files; reports/index.html
      lumbar predict scans --points points.csv --out grades.csv          discs corrected by hand
      lumbar predict data --weights runs/first --out submission.csv      the test part of a competition folder
      lumbar predict data --weights runs/first --hours 2 --mirror        complete and in time in any case
    """
    started = time.monotonic()
    path, run = inputs.data_path(args.path), inputs.classifier_folder(args.weights)
    inputs.check_table(args.out)
    _check_reports(args)
    from .. import localization
    from ..inference import Predictor, run_inference
    from ..models.ensemble import name_of, run_of
    from ..studies import CompetitionFolder, find_studies
    from ..studies.competition import in_synthetic_cohort, is_competition_folder

    sources = find_studies(path, part=args.part, progress=args.progress)
    if not sources:
        raise DataError(f"{path} names no study of the {args.part} part")
    options = {"n_jobs": min(args.jobs, len(sources)), "progress": args.progress}
    discs = localization.read_any_points(args.points, sources, **options) if args.points is not None else {}
    # A classifier goes with the localizer that cut its training crops; only where that is absent, with the shipped one.
    localizer = inputs.open_localizer(inputs.localizer_folder(None, run=run_of(run)))
    predictor = Predictor(run, device=args.device, localizer=localizer, mirror=args.mirror)
    folder = CompetitionFolder.open(path) if is_competition_folder(path) else None
    done = run_inference(
        predictor,
        sources,
        args.out,
        discs=discs,
        sample=folder.sample_submission if folder is not None and args.part == "test" else None,
        hours=args.hours or None,
        started=started,
        **options,
    )
    predictions = done.predictions
    prior = sum(prediction.fallback for prediction in predictions)
    incomplete = sum(bool(prediction.missing_views) and not prediction.fallback for prediction in predictions)
    print(f"predictions of {counted(len(predictions))} in {args.out}")
    print(f"  {incomplete} lack a view, {prior} got the class prior instead; details in {done.log}")
    for line in str(done).splitlines():
        print(f"  {line}")
    inputs.print_low_confidence({p.study_id: p.discs for p in predictions if p.discs is not None})
    if unlike := [p.study_id for p in predictions if (p.unlike_training or 0) > 1]:
        print(f"  unlike the training data, by the images of {counted(len(unlike))}: {', '.join(unlike[:5])}")
    if args.sr is not None:
        save_structured_reports(args.sr, predictions, sources, network=f"run {name_of(run)}")
    if args.report is not None:
        from ..report import ReportFolder

        reports = ReportFolder(args.report, model=_describe_model(predictor, run))
        reports.add_all(sources, predictions, predictor.spec, n_jobs=args.jobs, progress=args.progress)
        made = counted(reports.written, "report", "reports")
        print(f"  {made}, {len(reports.failures)} failed; open {reports.finish()}")
    synthetic = all(in_synthetic_cohort(source.path) for source in sources)
    meaningless = predictor.synthetic_only and not predictor.measured and not synthetic
    _draw_crops(args, zip(sources, predictions, strict=True), predictor.spec, synthetic, meaningless)
    if predictions and predictions[0].notice and not synthetic:
        print(f"NOTE: the network was {predictions[0].notice}.")


def _check_reports(args: argparse.Namespace) -> None:
    """Raise at once, and not after an hour of work, what would keep reports from being written."""
    if args.sr is not None:
        from ..report.structured_report import require_highdicom

        require_highdicom()
        inputs.check_folder(args.sr, "--sr")
    if args.report is not None:
        from ..report import ReportFolder

        ReportFolder(args.report)


def save_structured_reports(
    folder: Path, predictions: Sequence[StudyPrediction], sources: Sequence[StudySource], *, network: str
) -> None:
    """Write a DICOM structured report per study into `folder`; print how many, and why others got none."""
    from ..report.structured_report import write_structured_reports

    written, refused = write_structured_reports(predictions, sources, folder, network=network)
    reports = counted(len(written), "structured report", "structured reports")
    print(f"  {reports} in {folder}, with the patient's name as in the images")
    if refused:
        print(f"  {counted(len(refused))} got none, the first because {next(iter(refused.values()))}")


def _describe_model(predictor: Predictor, run: Path) -> dict:
    """What a report tells about the networks; folders by their names, since a path may name a person."""
    from ..localization import localizer_origin
    from ..models.ensemble import name_of, run_of

    folder = inputs.localizer_folder(None, run=run_of(run))
    localizer = localizer_origin(predictor.localizer, folder and Path(folder.parent.name, folder.name))
    return {
        "name": name_of(run),
        "networks": len(predictor.models),
        "mirrored": predictor.mirror,
        "calibrated": predictor.calibration is not None,
        "disc_localizer": localizer.removeprefix("localizer: "),
    }


def _draw_crops(
    args: argparse.Namespace,
    graded: Iterable[tuple[StudySource, StudyPrediction]],
    spec: CropSpec,
    synthetic: bool,
    meaningless: bool,
) -> None:
    """Pictures of the located discs and the crops of the first studies, with predictions where they mean anything."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from .. import viz
    from ..crops import extract_crops
    from ..files import file_name
    from ..inference.preprocessing import message_of
    from ..studies import load_study

    folder, drawn = args.out.with_name(f"{args.out.stem}_crops"), 0
    for source, prediction in [pair for pair in graded if pair[1].discs is not None][: args.pictures]:
        name = file_name(source.study_id)
        try:
            study = load_study(source)
            crops = extract_crops(study, prediction.discs, spec)
            figure = viz.show_disc_points(study, prediction.discs, crops=crops, synthetic=synthetic)
            viz.save(figure, folder / f"{name}_discs.png")
            probabilities = None if meaningless else prediction.probabilities
            figure = viz.show_crops(crops, probabilities=probabilities, synthetic=synthetic)
            viz.save(figure, folder / f"{name}_crops.png")
            drawn += 1
        except OutputError:
            raise
        except Exception as error:  # the submission is written; a failing picture must not look like its failure
            logger.warning("study %s: no picture: %s", source.study_id, message_of(error))
        finally:
            pyplot.close("all")
    if drawn:
        print(f"  pictures of {counted(drawn)} in {folder}")


def score(args: argparse.Namespace) -> None:
    """Compute the competition's metric: the mean of three weighted log losses (spinal, foraminal, subarticular) and the
    any-severe-spinal term. Lower is better; equal probabilities everywhere give about 1.0. For a run, the references
    that its manifest holds stand beside its own.

    SOLUTION is train.csv (study_id and 25 columns of Normal/Mild, Moderate, Severe or empty) or the long form (row_id,
    normal_mild, moderate, severe, sample_weight). Rows without a label are not scored.

    examples:
      lumbar score solution.csv submission.csv
      lumbar score train.csv runs/first/classifier              its out-of-fold predictions, one fold or all
      lumbar score train.csv part.csv --predicted-only          the studies that part.csv names
    """
    solution = inputs.read_csv(args.solution)
    submission, references = inputs.predictions(args.submission)
    from ..metrics import score_frames

    only_submitted = args.predicted_only or args.submission.is_dir()
    own = score_frames(solution, submission, only_submitted=only_submitted).to_json()
    columns = {"out-of-fold": own, **references}
    width = 16 if references else 0
    if references:
        print(" " * 18, *(f"{name.replace('_', ' '):>{width}}" for name in columns))
    for term, title in TITLES.items():
        print(f"{title:<18}", *(f"{column[term]:>{width}.6f}" for column in columns.values()))
