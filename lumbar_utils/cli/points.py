"""`lumbar points`: rename the points of a study by a level, and take points to and from 3D Slicer."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import DataError, counted
from . import inputs
from .arguments import POINTS, add_command, add_group


def add(commands) -> None:
    """Add the group and its three commands to the parser's."""
    parts = add_group(
        commands, "points", "shift|export|import", help="correct disc points, exchange them with 3D Slicer"
    )
    parser = add_command(parts, "shift", shift, help="rename the points of studies by whole levels")
    parser.add_argument("points", **POINTS)
    parser.add_argument("--study", action="append", required=True, metavar="ID", help="may be given several times")
    parser.add_argument(
        "--by", type=int, required=True, metavar="N", help="1: the point of L1/L2 becomes that of L2/L3"
    )
    parser.add_argument("--out", type=Path, metavar="CSV", help="the table to write (default: POINTS itself)")
    parser = add_command(parts, "export", export, help="one point list of 3D Slicer a study")
    parser.add_argument("points", **POINTS)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the .mrk.json files")
    parser = add_command(parts, "import", import_, help="a table of point lists of 3D Slicer, or of others' points")
    parser.add_argument("points", **POINTS)
    parser.add_argument("--images", type=Path, metavar="DATA", help="the studies of a table that holds pixels")
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="the table to write")


def shift(args: argparse.Namespace) -> None:
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


def export(args: argparse.Namespace) -> None:
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


def import_(args: argparse.Namespace) -> None:
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
