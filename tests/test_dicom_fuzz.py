"""The reader survives anything: thousands of damaged files, and files made to take all memory or all time.

Only the library's own errors come out, each file costs bounded time and memory, and no decoder takes the process along.
`tools/fuzz_reader.py` runs any number of cases; here runs what continuous integration has time for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gdcm
import numpy as np
import pytest
from dicom_files import AXIAL, SAGITTAL, image, recompress, write, write_series
from dicom_mutations import mutate, valid_file, valid_files

from lumbar_utils.dicom import decoding, parsing
from lumbar_utils.dicom.series import read_series, read_slices
from lumbar_utils.errors import DicomError, LumbarError
from lumbar_utils.inference.preprocessing import StudyTimeout, time_limit
from lumbar_utils.studies.study import find_studies, load_study

ROOT = Path(__file__).resolve().parent.parent
CASES = 2500

READ_IN_LITTLE_MEMORY = """
import json, resource, sys, time, zlib  # zlib before gdcm, which brings its own and breaks the one that comes later
from pathlib import Path
import gdcm, openjpeg
sys.path.insert(0, "tests")
from hostile_files import hostile_files
from lumbar_utils.dicom.series import read_slices, scan_headers
from lumbar_utils.errors import LumbarError
files = list(hostile_files(Path(sys.argv[1])))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20,) * 2)
for name, path in files:
    begun, issue = time.process_time(), ""
    for read in (scan_headers, read_slices):
        try:
            read(path)
        except LumbarError as error:
            issue = str(error)
    print(json.dumps([name, issue, time.process_time() - begun]), flush=True)
"""


def test_thousands_of_damaged_files_raise_only_errors_of_our_own():
    """Ends with status 0: no other exception, no hang, no more than 768 MiB, no crash of the process."""
    command = [sys.executable, str(ROOT / "tools" / "fuzz_reader.py"), "--cases", str(CASES), "--seed", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert sum(summary["outcome"].values()) == CASES and summary["findings"] == 0
    assert summary["outcome"]["refused"] > CASES / 2, "most damage should be noticed"
    assert summary["outcome"]["read"] > CASES / 20, "some damage hits what does not matter"


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_parsed_without_pydicom_read_as_with_it(tmp_path, monkeypatch):
    """Also that the plain parser leaves what is odd to pydicom: the same values, or the same refusal."""

    def read(path: Path) -> str | list:
        try:
            slices = read_slices(path)
        except DicomError as error:
            return str(error)
        return [(s.instance_number, s.geometry.spacing, *s.geometry.position, s.pixels.tobytes()) for s in slices]

    names = ("Explicit VR Little Endian", "Implicit VR Little Endian", "8 bits", "signed 12 bits")
    files = [file for file in valid_files(tmp_path / "valid") if file.name in names]
    parse, parsed, path = parsing.parse_plain, [], tmp_path / "case.dcm"
    for case in range(1000):
        rng = random.Random(f"plain {case}")
        path.write_bytes(mutate(rng, rng.choice(files), files)[0])
        monkeypatch.setattr(parsing, "parse_plain", lambda data: parsed.append(parse(data)) or parsed[-1])
        found = read(path)
        monkeypatch.setattr(parsing, "parse_plain", lambda data: None)
        assert found == read(path), case
    assert sum(dataset is not None for dataset in parsed) > 150 and parsed.count(None) > 150


def test_files_that_claim_to_be_huge_are_refused_before_memory_is_taken(tmp_path):
    """Read with 512 MiB to spare: gigabytes of rows, frames, lengths, items and deflated zeros in small files."""
    command = [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) >= 18
    for name, issue, seconds in results:
        assert not any(word in issue for word in ("MemoryError", "allocate", "bad_alloc")), (name, issue)
        assert seconds < 15, (name, seconds)
        assert issue or name == "200 sequences of known length", f"{name} was read"
    issues = {name: issue for name, issue, _ in results}
    assert "deflated bytes unpack to more than" in issues["deflated gigabytes"]
    assert "has more elements than any image" in issues["two million items"]
    assert "has more elements than any image" in issues["half a million elements in order"]
    assert "cannot hold them" in issues["rle of 16000 x 16000"]


def test_the_same_seed_damages_files_alike_and_every_kind_of_damage_is_done(tmp_path):
    files, again = valid_files(tmp_path), valid_files(tmp_path)
    assert files == again
    words = set()
    for case in range(150):
        content, what = mutate(random.Random(case), random.Random(case).choice(files), files)
        assert (content, what) == mutate(random.Random(case), random.Random(case).choice(again), again)
        words |= set(what.split(", "))
    done = {"bytes", "cut", "splice", "length", "vr", "tag", "syntax", "value", "sequence", "frames", "fragments"}
    assert done <= words


# Decoders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compressed(tmp_path) -> Path:
    return recompress(write(tmp_path / "a.dcm", image()), gdcm.TransferSyntax.JPEGLosslessProcess14_1)


def test_a_decoder_that_crashes_costs_only_its_file(compressed, monkeypatch):
    expected = read_slices(compressed)[0].pixels
    decoding._decoders._helper._process.kill()
    monkeypatch.setattr(decoding._Helper, "usable", lambda self: True)  # as when it dies of what it was just given
    with pytest.raises(DicomError, match=r"a\.dcm: .*cannot be decoded: the decoder crashed on it"):
        read_slices(compressed)
    monkeypatch.undo()
    np.testing.assert_array_equal(read_slices(compressed)[0].pixels, expected)


def test_a_decoder_that_does_not_end_is_ended(compressed, monkeypatch):
    read_slices(compressed)
    helper = decoding._decoders._helper
    helper._process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(decoding, "SECONDS", 0.2)
    with pytest.raises(DicomError, match="the decoder took more than 0 s"):
        read_slices(compressed)
    monkeypatch.undo()
    assert len(read_slices(compressed)) == 1 and not helper.usable()


def test_an_answer_that_nobody_waited_for_is_never_taken_for_the_next_files(compressed, tmp_path):
    """A study's timer or the user interrupts while a frame is decoded; its answer then still lies in the pipe."""
    other = image(pixels=np.arange(24 * 20).reshape(24, 20))
    other = recompress(write(tmp_path / "b.dcm", other), gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    expected = read_slices(other)[0].pixels
    helper = decoding._decoders._helper
    helper._process.send_signal(signal.SIGSTOP)
    with pytest.raises(StudyTimeout), time_limit(0.2):
        read_slices(compressed)
    helper._process.send_signal(signal.SIGCONT)
    np.testing.assert_array_equal(read_slices(other)[0].pixels, expected)


def test_a_process_that_was_forked_has_a_decoder_of_its_own(compressed):
    read_slices(compressed)
    child = os.fork()
    if child == 0:
        try:
            fine = read_slices(compressed)[0].pixels.shape == (24, 20)
            fine = fine and decoding._decoders._owner == os.getpid()
        finally:
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(read_slices(compressed)) == 1


# Folders -----------------------------------------------------------------------------------------------------------

T1 = {"RepetitionTime": 550, "EchoTime": 10, "ScanningSequence": "SE"}


def test_damaged_files_in_a_study_never_cost_its_healthy_series(tmp_path):
    """Three series, in folders or all in one under random names; one or two of them are damaged."""
    files = valid_files(tmp_path / "valid")
    for number, (orientation, tags) in enumerate([(SAGITTAL, {}), (SAGITTAL, T1), (AXIAL, {})]):
        folder = tmp_path / "clean" / str(number)
        write_series(folder, orientation=orientation, series_uid=f"1.2.3.{number}", SeriesDescription="x", **tags)
    clean = {path.relative_to(tmp_path / "clean"): path for path in (tmp_path / "clean").rglob("*.dcm")}
    for case in range(60):
        rng = random.Random(case)
        root, flat = tmp_path / f"case {case}", rng.random() < 0.4
        damaged = set(rng.sample("012", rng.choice((1, 1, 2))))
        for name, path in clean.items():
            to = root / (f"{rng.getrandbits(60):x}" if flat else name)
            to.parent.mkdir(parents=True, exist_ok=True)
            hit = name.parts[0] in damaged and rng.random() < 0.7
            base = valid_file("of the series", path) if rng.random() < 0.7 else rng.choice(files)
            to.write_bytes(mutate(rng, base, files)[0] if hit else path.read_bytes())
        found = {}
        for source in find_studies(root):
            try:
                found |= {series.series_id: series for series in load_study(source).series}
            except LumbarError as error:
                assert "no series can be read" in str(error)
        for number in set("012") - damaged:
            series = found[f"1.2.3.{number}"]
            assert max(map(len, series.stacks)) >= 5, (case, series.issues)
        shutil.rmtree(root)


def test_a_series_of_too_many_slices_is_read_in_part_and_says_so(tmp_path, monkeypatch):
    write_series(tmp_path, offsets=range(0, 40, 4))
    monkeypatch.setattr("lumbar_utils.dicom.series.MAX_SLICES", 6)
    series = read_series(tmp_path)
    assert series.n_slices == 6 and str(series.issues[0]).startswith("4 more files are not read: 6 slices")
    monkeypatch.undo()
    monkeypatch.setattr("lumbar_utils.dicom.series.MAX_PIXELS", 24 * 20 * 3)
    assert read_series(tmp_path).n_slices == 3


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImagePositionPatient": ["1e300", "0", "0"]}, "lies in no scanner"),
        ({"ImagePositionPatient": [0, 0, 2e5]}, "lies in no scanner"),
        ({"PixelSpacing": ["1e-30", "1"]}, "PixelSpacing is not 0.01 to 100.0 mm"),
        ({"PixelSpacing": ["1e30", "1"]}, "PixelSpacing is not 0.01 to 100.0 mm"),
    ],
)
def test_places_and_sizes_beyond_any_scanner_are_refused(tmp_path, tags, message):
    with pytest.raises(DicomError, match=message):
        read_slices(write(tmp_path / "1.dcm", image(**tags)))
