"""The reader survives anything: thousands of damaged files, and files made to take all memory or all time.

Only the library's own errors come out, each file costs bounded time and memory, and no decoder takes the process along.
`tools/fuzz_reader.py` runs any number of cases; here runs what continuous integration has time for.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from dicom_files import enhanced, image, recompress, stack_positions, write, write_series
from dicom_files import SAGITTAL
from dicom_mutations import deflated, mutate, nested, valid_files, with_elements
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, RLELossless

from lumbar_utils.dicom import read_slices, scan_headers
from lumbar_utils.dicom_pixels import decoding
from lumbar_utils.errors import DicomError
from lumbar_utils.labels import SAGITTAL_T2
from lumbar_utils.study import find_studies, load_study

ROOT = Path(__file__).resolve().parent.parent
CASES = 2500

READ_IN_LITTLE_MEMORY = """
import resource, sys, time
from lumbar_utils.dicom import read_slices, scan_headers
from lumbar_utils.errors import LumbarError
import pydicom.pixels, gdcm, openjpeg
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20,) * 2)
for path in sys.argv[1:]:
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for read in (read_slices, scan_headers):
        try:
            read(path)
        except LumbarError as error:
            problem = str(error)
            assert not any(word in problem for word in ("MemoryError", "allocate", "bad_alloc")), problem
    print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, problem)
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


def test_the_same_seed_damages_files_alike_and_every_kind_of_damage_is_done(tmp_path):
    files = valid_files(tmp_path)
    words = set()
    for case in range(400):
        content, what = mutate(random.Random(case), random.Random(case).choice(files), files)
        again, _ = mutate(random.Random(case), random.Random(case).choice(files), files)
        assert content == again or "written" in what
        words |= set(what.split(", "))
    assert {"bytes", "cut", "splice", "length", "vr", "tag", "syntax", "value", "sequence", "frames"} <= words
