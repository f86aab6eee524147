"""The process in which compressed pixels are decoded; started by `decoding`, not imported by it.

Speaks over its standard streams: a line of JSON and the encapsulated frames come in, a line of JSON and the decoded
values go out, until the input ends. Nothing is pickled. Memory is limited, so that a decoder that is led astray ends
this process and nothing else.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import BinaryIO

import numpy as np
from pydicom.pixels import get_decoder

MAX_MEMORY = 4 * 2**30
"""Bytes that decoding may add to this process; the largest image that is accepted needs less."""


def main() -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a decoder prints must not come between the answers
    warnings.simplefilter("ignore")
    _limit_memory()
    _answer(answers, {"ready": True}, b"")
    while line := requests.readline():
        request = json.loads(line)
        data = requests.read(request.pop("bytes"))
        try:
            values = _decode(data, **request)
            answer, payload = {"dtype": values.dtype.str, "shape": values.shape}, values.tobytes()
        except Exception as error:
            answer, payload = {"issue": " ".join(str(error).split()) or type(error).__name__}, b""
        _answer(answers, answer, payload)


def _decode(data: bytes, *, syntax: str, plugin: str, options: dict) -> np.ndarray:
    return get_decoder(syntax).as_array(
        data, raw=True, decoding_plugin=plugin, pixel_keyword="PixelData", allow_excess_frames=False, **options
    )[0]


def _answer(stream: BinaryIO, header: dict, payload: bytes) -> None:
    stream.write(json.dumps({**header, "bytes": len(payload)}).encode() + b"\n" + payload)
    stream.flush()


def _limit_memory() -> None:
    """Where the system can: Linux counts address space reliably, others do not."""
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = used + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
