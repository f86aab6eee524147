"""`lumbar phantom`, `localize`, `points` and `crops`: what training and prediction start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DataError, counted
from . import inputs
from .arguments import COUNT, JOBS, LOCALIZER, PATH, POINTS, POSITIVE, SIZE, add_command, add_group, number


def add(commands) -> None:
    """Add the four commands to the parser's."""
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

    parts = add_group(
        commands, "points", "shift|export|import", help="correct disc points, exchange them with 3D Slicer"
    )
    parser = add_command(parts, "shift", shift_points, help="rename the points of studies by whole levels")
    parser.add_argument("points", **POINTS)
    parser.add_argument("--study", action="append", required=True, metavar="ID", help="may be given several times")
    parser.add_argument(
        "--by", type=int, required=True, metavar="N", help="1: the point of L1/L2 becomes that of L2/L3"
    )
    parser.add_argument("--out", type=Path, metavar="CSV", help="the table to write (default: POINTS itself)")
    parser = add_command(parts, "export", export_points, help="one point list of 3D Slicer a study")
    parser.add_argument("points", **POINTS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the .mrk.json files")
    about = "a table of point lists of 3D Slicer, or of others' points"
    parser = add_command(parts, "import", import_points, help=about)
    parser.add_argument("points", **POINTS)
    parser.add_argument("--images", type=Path, metavar="DATA", help="the studies of a table that holds pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table to write")

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


def shift_points(args: argparse.Namespace) -> None:
    """Rename the points of studies by whole levels, where the localizer took S1/S2 for L5/S1 or missed L5/S1. A level
    that gets no point is extrapolated and flagged; look at it before it is used.

    examples:
      lumbar points shift points.csv --study 1002894806 --by 1      all points were one disc too low
      lumbar points shift points.csv --study 1002894806 --by -1     all points were one disc too high
    """
    from .. import localization

    out = args.out or args.points
    if out.suffix.lower() != ".csv":
        raise DataError(f"{out} is no table; name the one to write with --out")
    inputs.check_table(out)
    found = dict(localization.read_any_points(args.points))
    unknown = [study for study in args.study if study not in found]
    if unknown:
        raise DataError(f"{args.points} holds no study {unknown[0]!r}, but {counted(len(found))}")
    found |= {study: localization.shift_levels(found[study], args.by) for study in args.study}
    localization.write_points(out, found.values())
    print(f"{counted(len(args.study))} renamed by {args.by:+d} in {out}")


def export_points(args: argparse.Namespace) -> None:
    """Write a point list of 3D Slicer (.mrk.json, LPS mm) for each study: open it beside the study's images, drag the
    points, save it, and give the folder to `lumbar predict --points`.

    example:
      lumbar points export points.csv --out markups
    """
    from ..files import file_name
    from ..localization import read_any_points, write_markups

    inputs.check_folder(args.out, "--out")
    found = read_any_points(args.points)
    for study_id, discs in found.items():
        write_markups(args.out / f"{file_name(study_id)}.mrk.json", discs)
    print(f"{counted(len(found), 'point list', 'point lists')} in {args.out}")


def import_points(args: argparse.Namespace) -> None:
    """Write the table of a folder of point lists of 3D Slicer, or of one. A list's name is its study's id; its points
    are labelled L1/L2 to L5/S1. Or of a table like the competition's train_label_coordinates.csv that somebody has
    corrected: x and y are pixels of images, and a level without a canal point gets one from its recesses or foramina.

    examples:
      lumbar points import markups --out points.csv
      lumbar points import cleaned.csv --images data --out points.csv
    """
    from ..localization import read_any_points, write_points

    inputs.check_table(args.out)
    images = inputs.data_path(args.images) if args.images is not None else None
    found = read_any_points(args.points, images, progress=args.progress)
    write_points(args.out, found.values())
    print(f"{counted(len(found))} in {args.out}")


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
