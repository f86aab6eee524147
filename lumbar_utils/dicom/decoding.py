"""Compressed frames to values, in a process of its own.

The decoders (python-gdcm, OpenJPEG) are native code: a damaged stream can end the process they run in, and did so
in one of 250 damaged files. So one helper process decodes for each process that reads; when it ends, or takes too
long, the file is refused, and the next file gets a new one. Starting it takes a third of a second, once; a frame
passes through the pipe in about a millisecond.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np

SECONDS_TO_START = 120.0
"""Importing numpy and the decoders; slow network storage and busy machines included."""
SECONDS = 60.0
SECONDS_PER_PIXEL = 1e-6
"""A frame decodes in 10 to 50 ms; what takes longer than this and `SECONDS` will not end on a busy machine either."""


class DecodingError(Exception):
    """Why a stream could not be decoded, in words."""


class _Helper:
    """One decoding process."""

    def __init__(self):
        self._waits = False
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.decoder_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._within(SECONDS_TO_START, self._receive, "the decoders cannot be started")

    def decode(self, request: dict, data: bytes, seconds: float) -> np.ndarray:
        """Send a request and wait for its answer; raises `DecodingError`, after which `usable` may be False."""

        def exchange() -> tuple[dict, bytes]:
            self._process.stdin.write(json.dumps({**request, "bytes": len(data)}).encode() + b"\n" + data)
            self._process.stdin.flush()
            return self._receive()

        self._waits = True  # still so after an exception from outside: a study's timer, or the user's interrupt
        answer, payload = self._within(seconds, exchange, "the decoder crashed on it")
        self._waits = False
        if "issue" in answer:
            raise DecodingError(answer["issue"])
        return np.frombuffer(bytearray(payload), answer["dtype"]).reshape(answer["shape"])

    def usable(self) -> bool:
        """Whether it lives, and its next answer will be to the next request and not to one that nobody waited for."""
        return self._process.poll() is None and not self._waits

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # half a request still lies in the first, and cannot be sent any more
                stream.close()

    def _receive(self) -> tuple[dict, bytes]:
        answer = json.loads(self._process.stdout.readline())
        payload = self._process.stdout.read(answer["bytes"])
        if len(payload) != answer["bytes"]:
            raise EOFError
        return answer, payload

    def _within(self, seconds: float, call, otherwise: str):
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), self._process.kill()))
        timer.start()
        try:
            return call()
        except (OSError, ValueError, EOFError) as error:  # of a broken pipe or of half an answer
            self.close()
            reason = f"the decoder took more than {seconds:.0f} s" if late.is_set() else otherwise
            raise DecodingError(reason) from error
        finally:
            timer.cancel()


class _Decoders:
    """The helper of this process; a process that was forked from it gets its own."""

    def __init__(self):
        self._helper: _Helper | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._inherited: list[_Helper] = []

    def decode(self, request: dict, data: bytes, seconds: float) -> np.ndarray:
        if self._owner != os.getpid():  # after a fork: its pipes belong to the parent, its lock may be held there
            self._inherited.append(self._helper)
            self._helper, self._owner, self._lock = None, os.getpid(), threading.Lock()
        with self._lock:
            if self._helper is None or not self._helper.usable():
                self.close()
                self._helper = _Helper()
            return self._helper.decode(request, data, seconds)

    def close(self) -> None:
        if self._helper is not None and self._owner == os.getpid():
            self._helper.close()


_decoders = _Decoders()
atexit.register(_decoders.close)


def decode_compressed(data: bytes, syntax: str, plugin: str, options: dict) -> np.ndarray:
    """Decode encapsulated frames of a transfer syntax; `plugin` and `options` are those of `pydicom.pixels.Decoder`.

    Raises `DecodingError` when the decoder refuses the stream, crashes on it, or does not come to an end.
    """
    pixels = options["rows"] * options["columns"] * options["number_of_frames"]
    request = {"syntax": str(syntax), "plugin": plugin, "options": options}
    return _decoders.decode(request, data, SECONDS + SECONDS_PER_PIXEL * pixels)
