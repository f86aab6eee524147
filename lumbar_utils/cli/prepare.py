"""`lumbar phantom`, `lumbar localize` and `lumbar crops`: what training and prediction start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DataError, counted
from . import inputs
from .arguments import COUNT, JOBS, LOCALIZER, PATH, POINTS, POSITIVE, SIZE, add_command, number


def add(commands) -> None:
    """Add the three commands to the parser's."""
    parser = add_command(commands, "phantom", phantom, resumes=True, help="make a synthetic cohort")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder of the cohort")
    parser.add_argument("--studies", type=POSITIVE, default=120, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=COUNT, default=0, metavar="S", help="default: %(default)s")
    parser.add_argument("--profile", choices=("demo", "rsna"), default="demo", help="default: %(default)s")
    about = "people, contrasts and artefacts far beyond reality, to test the robustness of a localizer"
    parser.add_argument("--randomise", action="store_true", help=about)
    fraction = number(float, 0, 1, "a number, at least 0 and less than 1")
    about = "of the studies (default: %(default)s)"
    parser.add_argument("--test-fraction", type=fraction, default=0.2, metavar="F", help=about)
    parser.add_argument("--jobs", **JOBS)

    parser = add_command(commands, "localize", localize, help="find the five discs, foramina and recesses")
    parser.add_argument("path", **PATH)
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table to write")
    parser.add_argument("--weights", **LOCALIZER)
    parser.add_argument("--jobs", **JOBS)

    parser = add_command(commands, "crops", crops, resumes=True, help="cut the region around each disc")
    parser.add_argument("path", **PATH)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the cache folder")
    parser.add_argument("--points", **POINTS)
    parser.add_argument("--size", **SIZE)
    parser.add_argument("--weights", **LOCALIZER)
    parser.add_argument("--jobs", **JOBS)


def phantom(args: argparse.Namespace) -> None:
    """Write a synthetic cohort: real DICOM files and tables in the competition's layout, and the truth (disc positions,
    latent anatomy, how often each label is given) in OUT/truth. Same seed, same bytes.

    profiles:
      demo   small matrices and few slices; a study a second on 2 cores
      rsna   matrices, slice counts and spacings of the real set; a study in five seconds

    examples:
      lumbar phantom data --studies 120
      lumbar phantom big --studies 2000 --seed 7 --profile rsna --jobs 8
    """
    from ..phantom.cohort import generate_cohort

    generate_cohort(
        args.out,
        n_studies=args.studies,
        seed=args.seed,
        profile=args.profile,
        randomise=args.randomise,
        test_fraction=args.test_fraction,
        n_jobs=args.jobs,
        progress=args.progress,
    )
    made = counted(args.studies, "synthetic study", "synthetic studies")
    print(f"{made} in {args.out}; their truth in {args.out / 'truth'}")


def localize(args: argparse.Namespace) -> None:
    """Find the 25 points of a study, at each of the five discs the canal, both foramina and both recesses, and write
    them as a table: study_id, series_id, level, x, y, z (patient coordinates LPS, mm), confidence (0..1), flag,
    condition (which of the five it is), instance_number (of its slice). The flag is "" when all is well, else for
    example "interpolated"; "low_confidence" at all canal points when the whole spine may be labelled one level too high
    or too low; "estimated" where no scan shows a foramen or recess and it was placed from the canal. --points of the
    other commands takes the canal's rows.
    The localizer that ships with the library was trained on synthetic phantoms; --weights names another one.

    examples:
      lumbar localize data --out points.csv                       all studies of a competition folder
      lumbar localize scans/patient1 --out points.csv             one study or one series
      lumbar localize scans --weights runs/first --out points.csv
    """
    path, folder = inputs.data_path(args.path), inputs.localizer_folder(args.weights)
    inputs.check_table(args.out)
    from .. import localization, studies
    from ..crops.target_points import TargetLocalizer

    localizer = TargetLocalizer(inputs.open_localizer(folder))
    sources = studies.find_studies(path, progress=args.progress)
    found, failed = localization.locate_studies(sources, localizer, n_jobs=args.jobs, progress=args.progress)
    if not found:
        raise DataError(f"the discs were found in none of {counted(len(sources))}; {next(iter(failed.values()))}")
    localization.write_points(args.out, found.values())
    discs = {study_id: points.discs for study_id, points in found.items()}
    flagged = sum(points.flagged for points in discs.values())
    print(f"{counted(len(found))} in {args.out}, {flagged} of them with a flag; {len(failed)} failed")
    inputs.print_low_confidence(discs)


def crops(args: argparse.Namespace) -> None:
    """Cut a box around each disc from every view, in one anatomical orientation, and keep them in a cache folder that
    training reads. What is there already is not made again. The boxes, through-plane x in-plane: sagittal T2
    30 x 70 x 70 mm, axial T2 30 x 70 x 70, sagittal T1 90 x 70 x 70.

    examples:
      lumbar crops data --out runs/first/crops
      lumbar crops data --points points.csv --out crops --jobs 8
    """
    path = inputs.data_path(args.path)
    inputs.check_folder(args.out, "--out")
    if args.points is not None and args.weights is not None:
        raise DataError("--points gives the discs and --weights the localizer to find them: give one of the two")
    localizer = None if args.points is not None else inputs.localizer_folder(args.weights)
    from ..crops import build_crop_cache
    from ..studies import find_studies

    sources = find_studies(path, progress=args.progress)
    options = {"n_jobs": args.jobs, "progress": args.progress}
    discs = inputs.discs_of(sources, points=args.points, localizer=localizer, **options)
    cache = build_crop_cache(sources, discs, args.out, spec=inputs.crop_spec(args.size), **options)
    if not len(cache):
        raise DataError(f"no study could be cropped; {next(iter(cache.failures.values()), 'there is none')}")
    print(f"crops of {counted(len(cache))} in {args.out}, {len(cache.failures)} failed")
