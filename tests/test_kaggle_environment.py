"""The environment report: what it says, to people and to machines, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import types
from pathlib import Path

import pytest
import torch

from lumbar_utils import devices
from lumbar_utils.cli import main
from lumbar_utils.kaggle import environment

ROOT = Path(__file__).resolve().parent.parent
KAGGLES_TORCH = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.fixture
def gpus(monkeypatch):
    """Makes torch answer as on a machine with these GPUs."""

    def fake(name: str, capability: tuple[int, int], count: int = 1, built_for=KAGGLES_TORCH, computes: bool = True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built_for))
        monkeypatch.setattr(devices, "_issue_with", lambda device: "" if computes else "no kernel image is available")

    return fake


def subjects(found: environment.EnvironmentReport) -> dict[str, environment.Finding]:
    return {finding.subject: finding for finding in found.findings}


def test_a_p100_is_refused_with_the_reason_and_the_cpu_goes_on(gpus, tmp_path, capsys):
    gpus("Tesla P100-PCIE-16GB", (6, 0))
    found = environment.environment_report(run=tmp_path)
    assert found.machine.compute.device.type == "cpu"
    line = subjects(found)["device"]
    assert line.level == "warning" and not found.issues
    for words in ("Tesla P100", "compute capability is 6.0", "7.0 and newer", "GPU T4 x2", "the CPU is used instead"):
        assert words in line.text
    assert main(["doctor", "--run", str(tmp_path)]) == 0
    assert "Tesla P100" in capsys.readouterr().out


def test_a_gpu_that_fails_to_compute_is_refused_whatever_it_claims(gpus, tmp_path):
    gpus("Tesla T4", (7, 5), computes=False)
    line = subjects(environment.environment_report(run=tmp_path))["device"]
    assert line.level == "warning" and "no kernel image is available" in line.text


def test_two_t4_compute_in_float16_and_training_is_told_of_both(gpus, tmp_path):
    gpus("Tesla T4", (7, 5), count=2)
    found = environment.environment_report(run=tmp_path)
    assert found.machine.compute.dtype == torch.float16 and found.machine.compute.device.type == "cuda"
    assert "no bfloat16" in subjects(found)["device"].text
    assert subjects(found)["GPUs"].text.startswith("2;") and "accelerate launch" in subjects(found)["GPUs"].text


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((6, 0), KAGGLES_TORCH, False),
        ((7, 5), KAGGLES_TORCH, True),
        ((8, 9), KAGGLES_TORCH, True),  # runs code for 8.0 and 8.6
        ((8, 0), ["sm_86"], False),  # newer code of the same major number does not run on it
        ((12, 1), ["sm_90", "compute_120"], True),  # compiled by the driver
        ((9, 0), ["sm_90a"], True),
        ((6, 0), [], True),  # a torch that does not say is asked by computing
        ((6, 0), ["gfx90a"], True),
    ],
)
def test_code_fits_a_gpu_by_the_rules_of_cuda(capability, built_for, fits):
    assert (devices.lack_of_code(capability, built_for) == "") == fits


def test_the_report_is_short_and_names_data_weights_and_decoders(cohort, tmp_path):
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "model.safetensors").touch()
    found = environment.environment_report(
        cohort, tmp_path, notes=["installed timm-3d 1.0.1", "gdcm could not be installed"]
    )
    text = str(found)
    assert len(text.splitlines()) <= 12
    lines = subjects(found)
    assert "6 train, 2 test" in lines["data"].text and "synthetic" in lines["data"].text
    assert "classifier in" in lines["weights"].text and "the shipped localizer" in lines["weights"].text
    assert "JPEG lossless" in lines["decoders"].text and "JPEG 2000" in lines["decoders"].text
    assert "a clone" in lines["library"].text
    assert found.warnings[0] == "attached: gdcm could not be installed"


def test_the_shipped_classifier_is_named_where_nothing_was_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("lumbar_utils.models.run_folder.SHIPPED_CLASSIFIER", tmp_path / "shipped")
    for words in ("no classifier yet", "the shipped classifier"):
        line = subjects(environment.environment_report(run=tmp_path / "run"))["weights"]
        assert line.text == f"{words}; the shipped localizer"
        (tmp_path / "shipped").mkdir(exist_ok=True)


def test_an_absent_decoder_is_a_warning_that_says_which_files(monkeypatch, tmp_path):
    from pydicom.pixels import get_decoder

    monkeypatch.setattr(get_decoder("1.2.840.10008.1.2.4.70"), "_available", {})
    line = subjects(environment.environment_report(run=tmp_path))["decoders"]
    assert line.level == "warning"
    assert "JPEG lossless: none" in line.text and "JPEG 2000: none" not in line.text
    assert "pip install python-gdcm, and restart" in line.text


def test_absent_and_old_packages_and_a_full_disk_are_found(monkeypatch, tmp_path):
    versions = {"torch": "1.9.1", "timm-3d": "not installed"}
    line = environment._versions(versions)
    assert line.level == "issue" and "pip install timm-3d" in line.text
    assert environment._versions({"torch": "1.9.1"}).level == "warning"
    assert (
        environment._versions({"torch": "2.10.0+cu128", "Python": "3.12.1"}).text == "torch 2.10.0+cu128, Python 3.12.1"
    )
    assert "(tested: 2.15.0, 2.10.0)" in environment._versions({"torch": "2.12.0"}).text
    full = types.SimpleNamespace(total=1, used=1, free=10**8)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: full)
    assert any("too little disk" in issue for issue in environment.environment_report(run=tmp_path).issues)


def test_machines_get_json_and_an_exit_code(tmp_path, capsys):
    assert main(["doctor", "--json", "--run", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["issues"] == [] and report["device"] and report["reason"]
    assert report["versions"]["torch"]["installed"] == torch.__version__.split("+")[0]
    assert main(["doctor", str(tmp_path / "absent"), "--json", "--run", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert not json.loads(out)["ok"] and "absent" in json.loads(out)["issues"][0]
    assert len(err.strip().splitlines()) == 1


def test_a_tree_of_dicom_files_is_fine_for_grading_and_a_mistyped_folder_is_not(cohort, tmp_path):
    tree = tmp_path / "scans"
    shutil.copytree(next((cohort / "train_images").iterdir()), tree / "somebody")
    (tree / "a note").write_text("which comes first, and is no image")
    line = subjects(environment.environment_report(tree, tmp_path))["data"]
    assert line.level == "warning" and "MR images in" in line.text and "tables of a competition folder" in line.text
    line = subjects(environment.environment_report(tmp_path / "scnas", tmp_path))["data"]
    assert line.level == "issue" and line.text.endswith("scnas does not exist")
    (tmp_path / "empty").mkdir()
    assert subjects(environment.environment_report(tmp_path / "empty", tmp_path))["data"].level == "issue"


def test_the_tested_versions_are_those_of_the_requirements():
    ours, kaggles = pins("requirements.txt"), pins("requirements-kaggle.txt")
    for package, tested in environment.TESTED.items():
        if package != "Python":
            assert tested == tuple(dict.fromkeys((ours[package], kaggles[package]))), package
    readme = re.search(r"3\.11 or 3\.12", (ROOT / "README.md").read_text("utf-8"))
    assert readme and environment.TESTED["Python"] == ("3.11", "3.12")


def test_an_hour_before_the_end_of_a_session_the_report_warns(monkeypatch):
    monkeypatch.setattr(environment, "session_seconds_left", lambda: 1800.0)
    assert environment._time() == environment.Finding("time", "about 0.5 h left of this Kaggle session", "warning")
    monkeypatch.setattr(environment, "session_seconds_left", lambda: 8 * 3600.0)
    assert environment._time().level == "ok"
