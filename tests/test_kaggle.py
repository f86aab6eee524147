"""Kaggle: what is found there, what is built to be uploaded, and a library that is attached and completes itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from importlib import metadata
from pathlib import Path

import pytest

from lumbar_utils import kaggle
from lumbar_utils.cli import main
from lumbar_utils.errors import DataError
from lumbar_utils.kaggle import environment, wheels
from lumbar_utils.localization import DiscLocalizer
from lumbar_utils.models.ensemble import Ensemble, Member

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ".".join(map(str, sys.version_info[:2]))


@pytest.fixture(scope="module")
def attached(tmp_path_factory):
    """The library's data set without a classifier, for this Python, from what is installed here."""
    out, lacking = kaggle.build_dataset(
        tmp_path_factory.mktemp("kaggle") / "dataset", owner="somebody", python=PYTHON, offline=True
    )
    assert lacking == {}
    return out


def bare_python(folder: Path) -> Path:
    """A Python with pip and nothing else but what site-packages here brings through links, without timm-3d."""
    from kaggle_rehearsal import image

    return image(folder)


@pytest.mark.parametrize("mount", ["{slug}", "competitions/{slug}", "datasets/somebody/{slug}", "my-copy"])
def test_the_competition_is_found_in_all_of_kaggles_places(tmp_path, mount):
    folder = tmp_path / mount.format(slug=kaggle.COMPETITION_SLUG)
    (folder / "train_images" / "1" / "2").mkdir(parents=True)
    (folder / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n")
    (tmp_path / "another-set").mkdir()
    assert kaggle.find_competition_folder(tmp_path) == folder


def test_the_competitions_own_name_is_preferred_and_absence_is_none(tmp_path):
    assert kaggle.find_competition_folder(tmp_path) is None
    assert kaggle.find_competition_folder(tmp_path / "absent") is None
    for name in ("a-copy", f"competitions/{kaggle.COMPETITION_SLUG}"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train_series_descriptions.csv").touch()
    assert kaggle.find_competition_folder(tmp_path).name == kaggle.COMPETITION_SLUG


@pytest.fixture
def only_timm_3d(monkeypatch):
    """Wheels of the decoders are left out; packing them takes seconds."""
    monkeypatch.setattr(kaggle.upload, "collect_wheels", partial(wheels.collect_wheels, packages=("timm-3d",)))


def test_the_dataset_holds_library_weights_and_wheels(tmp_path, only_timm_3d):
    run, options = tmp_path / "run", {"python": PYTHON, "offline": True}
    with pytest.raises(DataError, match="no weights"):
        kaggle.build_dataset(tmp_path / "out", run, **options)
    (run / "classifier").mkdir(parents=True)
    (run / "classifier" / "model.safetensors").write_text("classifier")
    own = DiscLocalizer.shipped().save(run / "localizer") / "model.safetensors"
    out, lacking = kaggle.build_dataset(tmp_path / "out", run, owner="somebody", **options)
    assert lacking == {}
    assert (out / "localizer" / "model.safetensors").read_bytes() == own.read_bytes()
    (own.parent / "config.json").write_text('{"pixel_mm": 2.0}')
    with pytest.raises(DataError, match="older version"):  # here, and not on a machine without internet
        kaggle.build_dataset(out, run, **options)
    own.unlink()  # a run that was not fine-tuned uses the shipped localizer
    kaggle.build_dataset(out, run, **options)  # once more into the same folder
    assert not (out / "localizer").exists()
    assert (out / "classifier" / "model.safetensors").read_text() == "classifier"
    kaggle.build_dataset(out, **options)  # and without weights, to train there
    assert not (out / "classifier").exists()
    assert (out / "lumbar_utils" / "weights" / "shipped_localizer" / "model.safetensors").is_file()
    assert not list(out.rglob("__pycache__"))
    assert [path.name.split("-")[0] for path in (out / "wheels").iterdir()] == ["timm_3d"]
    with pytest.raises(DataError, match="not empty"):
        kaggle.build_dataset(run, run, **options)
    with pytest.raises(DataError, match="6 to 50"):
        kaggle.build_dataset(tmp_path / "other", slug="a b", **options)


def test_the_command_builds_both_and_says_how_to_push(tmp_path, only_timm_3d, capsys):
    command = ["kaggle", "build", str(tmp_path / "dist"), "--owner", "somebody", "--offline", "--python", PYTHON]
    assert main(command) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    pushes = [line for line in lines if line.startswith("kaggle ")]
    assert pushes[0] == f"kaggle datasets create -p {tmp_path / 'dist' / 'dataset'} --dir-mode zip"
    assert [line.rpartition("/")[2][:2] for line in pushes[2:]] == ["01", "02", "03", "04", "05", "06"]
    for line in pushes:
        assert Path(line.split(" -p ")[1].split()[0]).is_dir()
    about = json.loads((tmp_path / "dist" / "kernels" / "05_kaggle_inference" / "kernel-metadata.json").read_text())
    assert about["kernel_sources"]  # no weights were packed: they come from notebook 04
    assert main([*command, "--notebooks", str(tmp_path)]) == 1
    assert "they come with a clone" in capsys.readouterr().err


def test_the_attached_library_completes_itself_offline_and_child_processes_find_it(attached, tmp_path):
    """On a Python without timm-3d and without the decoders, from a read-only folder, with no index to ask."""
    python = bare_python(tmp_path / "image")
    code = (
        "import importlib.util as u, subprocess, sys; assert u.find_spec('timm_3d') is None\n"
        "sys.path.append(sys.argv[1]); import lumbar_utils as lu; print(*lu.kaggle.prepare_session(), sep='\\n')\n"
        "assert 'pydicom' not in sys.modules\n"
        "print('again:', *lu.kaggle.prepare_session())\n"
        "child = 'import gdcm, openjpeg, importlib.util as u; '\n"
        'child += \'print(*(u.find_spec(name).origin for name in ("lumbar_utils", "timm_3d")))\'\n'
        "subprocess.run([sys.executable, '-c', child], check=True)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(python), "-c", code, str(attached)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    installed, again, child = done.stdout.splitlines()
    assert installed.startswith("installed ") and installed.count(",") == len(wheels.LACKING) - 1
    assert again.strip() == "again:"
    library, timm_3d = child.split()
    assert library.startswith(f"{attached}/lumbar_utils/") and timm_3d.startswith(f"{tmp_path / 'image'}/")


def test_a_wheel_that_does_not_fit_costs_only_itself(tmp_path):
    (tmp_path / "wheels").mkdir()
    strange = tmp_path / "wheels" / "nowhere_codec-1.0-cp27-cp27m-manylinux1_x86_64.whl"
    with zipfile.ZipFile(strange, "w") as archive:
        archive.writestr("nowhere_codec.py", "")
    before = os.environ.get("PYTHONPATH")
    try:
        (line,) = kaggle.prepare_session(tmp_path)
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    assert line.startswith("nowhere-codec 1.0 could not be installed") and "not a supported wheel" in line


def test_a_wheel_packed_again_is_the_installed_package(tmp_path):
    assert wheels.collect_wheels(tmp_path, python=PYTHON, offline=True, packages=("timm-3d",)) == {}
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"timm_3d-{metadata.version('timm-3d')}-py3-none-any.whl"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, str(tmp_path / "target"), str(wheel)], check=True)
    installed = Path(importlib.util.find_spec("timm_3d").origin).parent
    files = [path.relative_to(installed) for path in installed.rglob("*.py")]
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "target" / "timm_3d" / file).read_bytes() == (installed / file).read_bytes()


def test_what_cannot_be_packed_is_named_with_the_reason(tmp_path):
    lacking = wheels.collect_wheels(tmp_path, python="2.7", offline=True, packages=("python-gdcm", "no-such-package"))
    assert "does not fit Python 2.7" in lacking["python-gdcm"] and "not installed here" in lacking["no-such-package"]
    assert not list(tmp_path.iterdir())


def test_all_members_of_an_ensemble_are_packed_without_checkpoints(tmp_path, only_timm_3d):
    classifier = tmp_path / "run" / "classifier"
    Ensemble((Member("fold_0"), Member("fold_1"))).save(classifier)
    for fold in ("fold_0", "fold_1"):
        (classifier / fold).mkdir()
        for name in ("model.safetensors", "checkpoint.safetensors", "config.json"):
            (classifier / fold / name).write_text(fold)
    out, _ = kaggle.build_dataset(tmp_path / "out", tmp_path / "run", python=PYTHON, offline=True)
    packed = sorted(str(path.relative_to(out / "classifier")) for path in (out / "classifier").rglob("*.*"))
    assert packed == ["ensemble.json", *(f"fold_{i}/{n}" for i in (0, 1) for n in ("config.json", "model.safetensors"))]
    (classifier / "fold_1" / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"no weights in .*fold_1"):
        kaggle.build_dataset(out, tmp_path / "run")


def test_the_submission_is_copied_on_kaggle_only(tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("row_id")
    monkeypatch.setattr(kaggle.workspace, "KAGGLE_WORKING", tmp_path / "absent")
    assert kaggle.copy_submission(tmp_path / "mine.csv") is None
    monkeypatch.setattr(kaggle.workspace, "KAGGLE_WORKING", tmp_path)
    assert kaggle.copy_submission(tmp_path / "mine.csv").read_text() == "row_id"
    assert kaggle.copy_submission(tmp_path / "submission.csv") == tmp_path / "submission.csv"


def test_the_machine_is_described_with_reasons(tmp_path):
    machine = kaggle.describe_machine(tmp_path)
    assert machine.cores >= 1 and machine.free_disk_gb > 0
    assert machine.compute.reason and str(machine).startswith(f"{machine.cores} cores, ")
    assert kaggle.describe_machine(tmp_path / "not" / "made yet").free_disk_gb > 0


def test_time_left_is_known_on_kaggle_only_and_shorter_for_a_submission(tmp_path, monkeypatch):
    monkeypatch.setattr(kaggle.workspace, "KAGGLE_WORKING", tmp_path / "absent")
    assert kaggle.session_seconds_left() is None
    monkeypatch.setattr(kaggle.workspace, "KAGGLE_WORKING", tmp_path)
    monkeypatch.setattr(environment, "_age_of_first_process", lambda: 3600.0)
    monkeypatch.delenv("KAGGLE_IS_COMPETITION_RERUN", raising=False)
    assert kaggle.session_seconds_left() == 11 * 3600
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    assert kaggle.session_seconds_left() == 8 * 3600


MAKERS = {"localizer": "02", "crops": "03", "crops_found": "03", "classifier": "04"}
"""Folders of a run, and the notebooks that write them."""


def makers_of_what_is_read(number: str) -> set[str]:
    """Numbers of the notebooks whose folders a notebook names."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    code = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    named = re.findall(r"""(?:work\.run / |find_weights\()["'](\w+)["']""", code)
    return {MAKERS[name] for name in named if name in MAKERS} | ({"02"} if "find_localizer(" in code else set())


def test_kernels_name_their_sources_the_t4_and_no_internet(tmp_path):
    folders = kaggle.build_kernels(tmp_path / "kernels", ROOT / "notebooks", owner="somebody")
    about = [json.loads((folder / "kernel-metadata.json").read_text()) for folder in folders]
    assert [folder.name[:2] for folder in folders] == ["01", "02", "03", "04", "05", "06"]
    for folder, one in zip(folders, about, strict=True):
        assert not one["enable_internet"] and one["dataset_sources"] == ["somebody/lumbar-utils"]
        assert one["competition_sources"] == [kaggle.COMPETITION_SLUG]
        assert (
            one["enable_gpu"] == (one.get("machine_shape") == "NvidiaTeslaT4") == (folder.name[:2] not in ("01", "06"))
        )
        book = json.loads((folder / one["code_file"]).read_text())
        assert all(not cell.get("outputs") for cell in book["cells"])
        original = json.loads((ROOT / "notebooks" / one["code_file"]).read_text())
        assert [cell["source"] for cell in book["cells"]] == [cell["source"] for cell in original["cells"]]
    names = {folder.name[:2]: one["id"] for folder, one in zip(folders, about, strict=True)}
    for number, one in zip(names, about, strict=True):
        needed = {names[maker] for maker in makers_of_what_is_read(number)} - {one["id"]}
        assert needed <= set(one["kernel_sources"]), f"notebook {number} reads the output of {needed}"
    again = kaggle.build_kernels(tmp_path / "kernels", ROOT / "notebooks", weights_packed=True)
    assert json.loads((again[4] / "kernel-metadata.json").read_text())["kernel_sources"] == []
    (tmp_path / "kernels" / "mine").mkdir()
    with pytest.raises(DataError, match="was not made by"):
        kaggle.build_kernels(tmp_path / "kernels", ROOT / "notebooks")
    with pytest.raises(DataError, match="expected notebooks 01 to 06"):
        kaggle.build_kernels(tmp_path / "others", tmp_path)


PUSH = """
import json, shutil, sys
from pathlib import Path
from kaggle.api.kaggle_api_extended import KaggleApi
extended = sys.modules[KaggleApi.__module__]  # `kaggle.api` itself is an object by now

class Client:  # what would go over the network ends here
    def __enter__(self): return self
    def __exit__(self, *args): pass
    @property
    def datasets(self): return self
    @property
    def kernels(self): return self
    dataset_api_client = kernels_api_client = property(lambda self: self)
    def create_dataset(self, request):
        sent.append({"slug": request.slug, "owner": request.owner_slug, "files": len(request.files)})
        return extended.ApiCreateDatasetResponse()
    def save_kernel(self, request):
        sent.append({name: getattr(request, name) for name in KERNEL})
        return extended.ApiSaveKernelResponse()

KERNEL = ("slug", "language", "kernel_type", "enable_gpu", "enable_internet", "is_private", "machine_shape",
          "dataset_data_sources", "competition_data_sources", "kernel_data_sources")
sent, folder, out = [], Path(sys.argv[1]), Path(sys.argv[2])

class Api(KaggleApi):
    def dataset_status(self, ref): raise extended.HTTPError("not there yet")
    def build_kaggle_client(self): return Client()
    def _upload_blob(self, path, *args):
        shutil.copy2(path, out)
        return "token"

api = Api()
api.config_values["username"] = "somebody"
answer = api.dataset_create_new(str(folder / "dataset"), dir_mode="zip", quiet=True)
for kernel in sorted((folder / "kernels").iterdir()):
    api.kernels_push(str(kernel))
print("SENT" + json.dumps(sent))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("kaggle") is None, reason="the kaggle package is not installed (pip install kaggle six)"
)
def test_the_kaggle_package_accepts_what_is_built(attached, tmp_path):
    """Its own checks of metadata and its own archives, up to where an account would be needed."""
    shutil.copytree(attached, tmp_path / "built" / "dataset")
    kaggle.build_kernels(tmp_path / "built" / "kernels", ROOT / "notebooks", owner="somebody")
    (tmp_path / "sent").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    environment |= {"HOME": str(tmp_path), "KAGGLE_CONFIG_DIR": str(tmp_path)}  # nobody's account
    command = [sys.executable, "-c", PUSH, str(tmp_path / "built"), str(tmp_path / "sent")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "does not resolve" not in done.stdout  # titles and ids belong together
    dataset, *kernels = json.loads(done.stdout.partition("SENT")[2])
    assert dataset == {"slug": "lumbar-utils", "owner": "somebody", "files": 2}
    assert len(kernels) == 6 and kernels[4]["machine_shape"] == "NvidiaTeslaT4"
    assert all(kernel["enable_internet"] is False and kernel["is_private"] is True for kernel in kernels)
    # The archives hold what the folders held, at the place where Kaggle unpacks them.
    assert {path.name for path in (tmp_path / "sent").iterdir()} == {"lumbar_utils.zip", "wheels.zip"}
    names = zipfile.ZipFile(tmp_path / "sent" / "lumbar_utils.zip").namelist()
    built = [p.relative_to(attached / "lumbar_utils").as_posix() for p in (attached / "lumbar_utils").rglob("*.*")]
    assert {n for n in names if not n.endswith("/")} == {n for n in built if (attached / "lumbar_utils" / n).is_file()}
