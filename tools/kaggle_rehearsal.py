"""Notebook 05 in an imitation of Kaggle, offline: a submission tried before it is made.

A data set is built as `lumbar kaggle build` builds it and laid out as Kaggle lays it out, every folder zipped and
unpacked again, read-only, beside a competition folder whose test part consists of phantoms that no training has seen.
The Python that runs there has the packages of this one without those that Kaggle lacks, and without this clone. In
namespaces of its own, with that tree mounted at /kaggle and no network, the notebook of the kernel folder is executed
as it is, from its first cell to its last. Then its submission is checked: rows, order, finite, sums, columns, and,
unless told otherwise (--no-score), its score against the weighted prior.

    python tools/kaggle_rehearsal.py --run runs/demo
    python tools/kaggle_rehearsal.py --run runs/demo --mount plain --sample one --studies 4

Needs Linux with `unshare` and user namespaces. Where these are not permitted, it says so, and runs with another path in
the place of /kaggle and the network left on: that rehearses less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWNER = "somebody"
MOUNTS = {
    "owner": (f"datasets/{OWNER}/lumbar-utils", "competitions/rsna-2024-lumbar-spine-degenerative-classification"),
    "plain": ("lumbar-utils", "rsna-2024-lumbar-spine-degenerative-classification"),
}
"""The two forms in which Kaggle mounts a data set and a competition."""
FIRST_ID = 10_000_000_000
"""Ids of the hidden test part; those of a training have at most ten digits."""
UNREACHABLE = ("192.0.2.1", 9)
"""An address of TEST-NET-1 (RFC 5737); nothing is ever sent there, the route alone is asked for."""
CUT = "network: cut, only the loopback device is there"


def main() -> int:
    args = _arguments()
    if args.inside:
        return run_inside(Path(args.inside))
    sys.path.insert(0, str(ROOT))
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="kaggle-rehearsal-", dir=args.scratch))
    try:
        rehearse(scratch, args)
    finally:
        if args.keep:
            print(f"kept: {scratch}")
        else:
            _make_writable(scratch)
            shutil.rmtree(scratch, ignore_errors=True)
    print(f"rehearsed in {time.monotonic() - started:.0f} s")
    return 0


def rehearse(scratch: Path, args: argparse.Namespace) -> None:
    """Build, lay out, run, check; ends the program with a message when something is not as it must be."""
    from lumbar_utils.kaggle import build_dataset, build_kernels

    version = ".".join(map(str, sys.version_info[:2]))
    dataset, lacking = build_dataset(
        scratch / "build" / "dataset", args.run, owner=OWNER, python=version, offline=args.offline
    )
    for package, reason in lacking.items():
        print(f"no wheel of {package}: {reason}")
    kernels = build_kernels(scratch / "build" / "kernels", ROOT / "notebooks", owner=OWNER, weights_packed=True)
    kaggle = scratch / "kaggle"
    place, competition = (kaggle / "input" / part for part in MOUNTS[args.mount])
    upload_and_mount(dataset, place)
    truth = hidden_test(scratch / "cohort", competition, args.studies, args.seed, sample=args.sample)
    (kaggle / "working").mkdir()
    notebook = kaggle / "working" / "__notebook__.ipynb"
    inference = next(folder for folder in kernels if folder.name.startswith("05"))
    shutil.copyfile(next(inference.glob("*.ipynb")), notebook)
    _make_read_only(kaggle / "input")
    python = image(scratch / "image")
    inside = run_in_namespaces(scratch, python)
    print(inside["report"])
    check_surroundings(inside, place, lacking, isolated=inside["isolated"])
    check_submission(
        kaggle / "working" / "submission.csv", competition, truth, place / "classifier", score=not args.no_score
    )


def upload_and_mount(dataset: Path, place: Path) -> None:
    """Each folder becomes an archive, as `--dir-mode zip` makes it, and is unpacked into a folder of its name."""
    place.mkdir(parents=True)
    archives = place.parent / f".{place.name}-upload"
    archives.mkdir()
    for entry in sorted(dataset.iterdir()):
        if entry.is_dir():
            shutil.unpack_archive(shutil.make_archive(str(archives / entry.name), "zip", entry), place / entry.name)
        elif entry.name != "dataset-metadata.json":
            shutil.copy2(entry, place)
    shutil.rmtree(archives)


def hidden_test(made: Path, competition: Path, n_studies: int, seed: int, *, sample: str) -> Path:
    """A competition folder like the one of a submission's second run, and the truth about it, which is kept away.

    Its test part has ids that no training has seen, shuffled as Kaggle's are; its sample submission names them all or
    the first one only; nothing says that the studies are synthetic. The training part is there as a table.
    """
    import numpy as np
    import pandas as pd

    from lumbar_utils.phantom.cohort import generate_cohort

    # The other part lends its table of labels: a competition's folder has one.
    generate_cohort(
        made, n_studies=n_studies + 2, seed=seed, test_fraction=n_studies / (n_studies + 2),
        n_jobs=-1, progress=False,
    )  # fmt: skip
    competition.mkdir(parents=True)
    table = pd.read_csv(made / "test_series_descriptions.csv", dtype=str)
    ids = list(table["study_id"].unique())
    order = np.random.default_rng(seed).permutation(len(ids))
    new = {study_id: str(FIRST_ID + 7919 * int(number)) for study_id, number in zip(ids, order, strict=True)}
    table["study_id"] = table["study_id"].map(new)
    table.to_csv(competition / "test_series_descriptions.csv", index=False)
    for study_id in ids:
        if (made / "test_images" / study_id).is_dir():
            shutil.copytree(made / "test_images" / study_id, competition / "test_images" / new[study_id])
    submission = pd.read_csv(made / "sample_submission.csv", dtype={"row_id": str})
    own = submission["row_id"].str.partition("_")
    submission["row_id"] = own[0].map(new) + "_" + own[2]
    named = submission if sample == "all" else submission[own[0] == ids[0]]
    named.to_csv(competition / "sample_submission.csv", index=False)
    for name in ("train.csv", "train_series_descriptions.csv", "train_label_coordinates.csv"):
        shutil.copyfile(made / name, competition / name)
    truth = pd.read_csv(made / "truth" / "labels.csv", dtype={"study_id": str})
    truth = truth[truth["study_id"].isin(new)].assign(study_id=lambda t: t["study_id"].map(new))
    truth.to_csv(made / "truth.csv", index=False)
    return made / "truth.csv"


def image(folder: Path) -> Path:
    """A Python with the packages of this one, as links, without what Kaggle lacks and without this clone; its path."""
    import sysconfig
    from importlib import metadata

    from lumbar_utils.kaggle.wheels import LACKING

    absent = {"__pycache__"}
    for package in (*LACKING, "lumbar_utils"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            absent |= {file.parts[0] for file in metadata.files(package) or ()}

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        ours = entry.name.startswith(("lumbar_utils", "__editable__"))
        if not ours and entry.name not in absent and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    # Kernels of Jupyter are found by a file that names the interpreter: this one's, and no other.
    kernel = folder / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    start = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.log_level=40"]
    kernel.joinpath("kernel.json").write_text(json.dumps({"argv": start, "language": "python", "display_name": "3"}))
    return python


def run_in_namespaces(scratch: Path, python: Path) -> dict:
    """Execute the notebook; what `run_inside` found out there, as a dict."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TZ", "OMP_NUM_THREADS")}
    environment = kept | {"HOME": "/tmp", "JUPYTER_PREFER_ENV_PATH": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    script = shutil.copyfile(__file__, scratch / "inside.py")
    command = [str(python), str(script), "--inside", "/kaggle"]
    if may_unshare():
        root = scratch / "root"
        root.mkdir()
        text = ENTER.format(root=root, kaggle=scratch / "kaggle", command=" ".join(map(_quoted, command)))
        command = ["unshare", "--map-root-user", "--mount", "--net", "bash", "-euc", text]
    else:
        print("NOTE: namespaces are not permitted here: /kaggle is another path, and the network is NOT cut")
        environment["LUMBAR_KAGGLE"] = command[-1] = str(scratch / "kaggle")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the rehearsal failed inside:\n{done.stdout[-4000:]}{done.stderr[-6000:]}")
    return json.loads((scratch / "kaggle" / "working" / "inside.json").read_text("utf-8"))


ENTER = """
mount --make-rprivate /
mount -t tmpfs none {root}
for entry in /*; do
  name="${{entry#/}}"
  if [ -L "$entry" ]; then cp -a "$entry" "{root}/$name"
  elif [ -d "$entry" ] && [ "$name" != kaggle ]; then mkdir "{root}/$name"; mount --rbind "$entry" "{root}/$name"; fi
done
mkdir -p {root}/kaggle/input {root}/kaggle/working
mount --bind {kaggle}/input {root}/kaggle/input
mount -o remount,bind,ro {root}/kaggle/input
mount --bind {kaggle}/working {root}/kaggle/working
cd {root}/kaggle/working
exec chroot {root} {command}
"""
"""A root of its own: everything that is there, by reference, and /kaggle. Nothing outside is changed."""


def may_unshare() -> bool:
    """Whether this user may make namespaces for mounts and network, and mount in them."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--map-root-user", "--mount", "--net", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def run_inside(kaggle: Path) -> int:
    """In there: execute the notebook, and write down what it met. Imports nothing of ours."""
    import nbformat
    from nbclient import NotebookClient

    working = kaggle / "working"
    os.chdir(working)
    isolated = kaggle == Path("/kaggle")
    if isolated:
        _raise_loopback()  # the notebook's kernel is spoken to over it
    book = nbformat.read(working / "__notebook__.ipynb", as_version=4)
    if not isolated:
        for cell in book.cells:
            cell.source = cell.source.replace("/kaggle/", f"{kaggle}/")
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    book.cells.insert(0, nbformat.v4.new_markdown_cell("A rehearsal. **All studies are synthetic phantoms.**"))
    asked = "import json, timm_3d, lumbar_utils\nprint(json.dumps([lumbar_utils.__file__, timm_3d.__file__, sys.path]))"
    book.cells.append(nbformat.v4.new_code_cell(asked))
    client = NotebookClient(
        book, timeout=9 * 3600, kernel_name="python3", resources={"metadata": {"path": str(working)}}
    )
    try:
        client.execute()
    finally:
        nbformat.write(book, working / "executed.ipynb")
    library, timm_3d, path = json.loads(_printed(book.cells[-1]))
    try:
        (kaggle / "input" / "written").touch()
        read_only = False
    except OSError:
        read_only = True
    found = {
        "isolated": isolated,
        "network": network_devices(),
        "reachable": _has_route(),
        "library": library,
        "timm_3d": timm_3d,
        "path": path,
        "read_only": read_only,
        "report": next(_printed(cell) for cell in code if "environment_report" in cell.source),
    }
    (working / "inside.json").write_text(json.dumps(found), "utf-8")
    return 0


def _printed(cell) -> str:
    return "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout")


def _raise_loopback() -> None:
    """A new network namespace has one device, which is down. netdevice(7): SIOCSIFFLAGS, IFF_UP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        import fcntl

        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1))


def network_devices() -> list[str]:
    """Names of the network devices that this process sees."""
    return [name for _, name in socket.if_nameindex()]


def _has_route() -> bool:
    """Whether there is a way to the outside. Connecting a UDP socket looks the route up and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(UNREACHABLE)
        except OSError:
            return False
    return True


def check_surroundings(inside: dict, place: Path, lacking: dict[str, str], *, isolated: bool) -> None:
    """The library came from the mount, timm-3d from its wheel, and nothing else could have helped."""
    mounted = f"/kaggle/{place.relative_to(place.parents[len(place.parts) - place.parts.index('input') - 1])}"
    where = mounted if isolated else str(place)
    _demand(inside["library"].startswith(f"{where}/lumbar_utils/"), f"the library is {inside['library']}, not {where}")
    ours = [p for p in inside["path"] if Path(p) == ROOT or p.startswith(str(ROOT / "tools"))]
    _demand(not ours, f"this clone is on the path: {ours}")
    _demand("/image/" in inside["timm_3d"], f"timm-3d is {inside['timm_3d']}, not the data set's wheel")
    if isolated:
        _demand(inside["network"] == ["lo"], f"the network is not cut: {inside['network']}")
        _demand(not inside["reachable"], "the network is not cut: there is a route to the outside")
        _demand(inside["read_only"], "/kaggle/input can be written to")
        print(CUT)
    # pydicom looks for decoders once: it must not have been imported before the wheels were there.
    _demand("! decoders" not in inside["report"] or bool(lacking), f"decoders are absent:\n{inside['report']}")
    print(f"library: {inside['library']}")


def check_submission(path: Path, competition: Path, truth: Path, weights: Path, *, score: bool) -> None:
    """Columns, rows, their order, finite numbers, sums of one; and whether it beats knowing nothing of the patient."""
    import numpy as np
    import pandas as pd

    from lumbar_utils.inference.predictor import Predictor
    from lumbar_utils.labels import PROBABILITY_COLUMNS, encode_severities, row_ids
    from lumbar_utils.metrics.score import competition_score, read_predictions

    _demand(path.is_file(), f"there is no {path.name} in /kaggle/working")
    table = pd.read_csv(path, dtype={"row_id": str})
    _demand(list(table.columns) == ["row_id", *PROBABILITY_COLUMNS], f"columns {list(table.columns)}")
    ids = list(pd.read_csv(competition / "test_series_descriptions.csv", dtype=str)["study_id"].unique())
    sample = list(pd.read_csv(competition / "sample_submission.csv", dtype=str)["row_id"])
    wanted = sample if len(sample) == 25 * len(ids) else row_ids(ids)
    rows = list(table["row_id"])
    _demand(len(rows) == len(set(rows)), "rows come twice")
    _demand(set(rows) == set(row_ids(ids)), f"{len(rows)} rows, expected the {25 * len(ids)} of the test table")
    _demand(rows == list(wanted), "the rows do not come in the order of the sample submission or the test table")
    values = table[list(PROBABILITY_COLUMNS)].to_numpy(np.float64)
    _demand(np.isfinite(values).all() and (values >= 0).all(), "not all probabilities are finite and at least 0")
    _demand(np.allclose(values.sum(axis=1), 1, atol=1e-6), "rows do not add up to one")
    print(f"submission: {len(rows)} rows of {len(ids)} studies, in order, finite, adding up to one")
    labels = pd.read_csv(truth, dtype={"study_id": str}).set_index("study_id").loc[ids]
    codes = encode_severities(labels)
    own = competition_score(codes, read_predictions(table, ids)).total
    prior = Predictor(weights, "cpu").prior
    known = competition_score(codes, np.tile(prior, (len(ids), 1, 1))).total
    print(
        f"score on {len(ids)} synthetic studies: {own:.4f}; the training's weighted prior {known:.4f}; lower is better"
    )
    _demand(own < known or not score, "the submission is worse than the weighted prior")


def _demand(fine: bool, otherwise: str) -> None:
    if not fine:
        sys.exit(f"the rehearsal failed: {otherwise}")


def _make_read_only(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _make_writable(folder: Path) -> None:
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink())]:
        path.chmod(0o755)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "demo", help="run with classifier/ (runs/demo)")
    parser.add_argument("--mount", choices=sorted(MOUNTS), default="owner", help="form of the mounts")
    parser.add_argument("--sample", choices=("all", "one"), default="one", help="studies in sample_submission.csv")
    parser.add_argument("--studies", type=int, default=12, help="of the hidden test part (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=4321, help="of the hidden test part; a training's is 0")
    parser.add_argument(
        "--offline", action="store_true", help="take wheels from this environment, not from the registry"
    )
    parser.add_argument("--no-score", action="store_true", help="the weights are toys: the score need not be good")
    parser.add_argument("--scratch", help="where the scratch folder is made")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder to look at")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
