"""Writing files when the disk is full, when processes are killed in the middle, and when two write at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumbar_utils.errors import DataError, OutputError
from lumbar_utils.files import atomically, lock_folder, remove_leftovers

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name == "nt", reason="no such locks here")


def in_another_process(code: str, folder: Path) -> int:
    """Run code that may kill its process; the exit status."""
    start = "import os, signal, sys, time; from pathlib import Path; from lumbar_utils.files import *\n"
    start += "folder = Path(sys.argv[1])\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", start + code, str(folder)], env=environment, check=False).returncode


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"model.safetensors: cannot be written .*No space left"):
        atomically(path, full)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"result\.csv: cannot be written"):
        atomically(tmp_path / "file" / "result.csv", Path.touch)


def test_any_number_may_write_one_file_at_once(tmp_path):
    path, together, failed = tmp_path / "x.safetensors", threading.Barrier(4), []

    def write(temporary):
        together.wait(20)  # all of them are in the middle of it
        save_file({"x": torch.ones(1000)}, temporary)
        together.wait(20)

    def attempt():
        try:
            atomically(path, write)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and load_file(path)["x"].sum() == 1000
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize("moment", ["pass", "f.write_text('half')", "(f.parent / '.tmpX1y2Z3').write_text('half')"])
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path, moment):
    path = tmp_path / ("checkpoint" * 12)
    code = f"def write(f):\n {moment}\n os.kill(os.getpid(), signal.SIGKILL)\natomically(folder / {path.name!r}, write)"
    for _ in range(2):
        assert in_another_process(code, tmp_path) == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1, "the second has removed what the first left"

    def write(temporary):
        remove_leftovers(tmp_path)
        assert [left.name for left in tmp_path.iterdir()] == [temporary.parent.name]
        temporary.write_text("whole")

    atomically(path, write)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


@posix
def test_a_lock_ends_with_its_process_and_does_not_live_on_in_its_children(tmp_path):
    with lock_folder(tmp_path) as held, lock_folder(tmp_path) as again:
        assert held and again is False
        assert (
            in_another_process("with lock_folder(folder) as held: sys.exit(7 if held is False else 0)", tmp_path) == 7
        )
    code = "with lock_folder(folder): os.fork() and os.kill(os.getpid(), signal.SIGKILL); time.sleep(8)"
    assert in_another_process(code, tmp_path) == -signal.SIGKILL
    until, held = time.monotonic() + 3, False
    while not held and time.monotonic() < until:  # the child may not have run yet
        with lock_folder(tmp_path) as held:
            time.sleep(0.05)
    assert held


@posix
def test_where_there_are_no_locks_files_are_written_all_the_same(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with tempfile.TemporaryDirectory(dir=tmp_path, prefix=".file.", suffix=".lumbar-partial") as other:
        atomically(tmp_path / "file", Path.touch)
        assert Path(other).is_dir(), "it may be another's"
    with lock_folder(tmp_path) as held:
        assert held is None
    assert issubclass(OutputError, DataError)
