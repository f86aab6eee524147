"""Feed the DICOM reader with damaged files and see that only the library's own errors come out.

python tools/fuzz_reader.py --cases 50000 --seed 7        any number of cases; nothing is left behind
python tools/fuzz_reader.py --seed 7 --case 123 --keep .  one case again, and its file

Every case is one valid file, damaged by `tests/dicom_mutations.py`, read by `read_slices` and `scan_headers`. The cases
run in a child process with a limit on its memory; a case that kills the process (a decoder in native code), takes
longer than the bound, needs the limit, or raises anything but a `LumbarError` is a finding, and the next case goes on.
Prints a line a finding and a summary as JSON; exit status 1 when there was a finding.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from dicom_mutations import mutate, valid_files

from lumbar_utils.dicom.series import read_slices, scan_headers
from lumbar_utils.errors import LumbarError

UNWANTED = ("MemoryError", "Unable to allocate", "bad_alloc", "the decoder took more than")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the processor, that one case may take")
    parser.add_argument("--memory", type=int, default=768, help="MiB that the reader may add to its process")
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case is not None:
        args.first, args.cases = args.case, 1
    return child(args) if args.child else parent(args)


def parent(args: argparse.Namespace) -> int:
    """Start a child for the cases, and another one behind each case that kills it."""
    total, findings, slowest, peak = Counter(), [], 0.0, 0
    at, last = args.first, args.first + args.cases
    while at < last:
        command = [sys.executable, __file__, "--child", "--seed", str(args.seed), "--first", str(at)]
        command += ["--cases", str(last - at), "--seconds", str(args.seconds), "--memory", str(args.memory)]
        command += ["--keep", str(args.keep)] if args.keep else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        output, errors = process.communicate()
        reports = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        started = at - 1
        for report in reports:
            if "finding" in report:
                findings.append(report)
                print(json.dumps(report), flush=True)
            elif "done" in report:
                total.update(report["done"])
                slowest, peak, started = max(slowest, report["slowest"]), max(peak, report["peak"]), report["last"]
        if process.returncode == 0:
            break
        why = "hangs" if process.returncode == -signal.SIGPROF else f"ends the process ({process.returncode})"
        started += 1
        finding = {"finding": why, "case": started, "seed": args.seed, "said": errors[-1500:]}
        findings.append(finding)
        total[why] += 1
        print(json.dumps(finding), flush=True)
        at = started + 1
    print(
        json.dumps(
            {
                "cases": args.cases,
                "outcome": dict(total),
                "slowest_s": slowest,
                "peak_mib": peak,
                "findings": len(findings),
            }
        )
    )
    return 1 if findings else 0


def child(args: argparse.Namespace) -> int:
    """Run the cases one after the other, in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = valid_files(folder / "valid")
        for file in files:  # loads the decoders before memory is limited
            (folder / "case.dcm").write_bytes(file.content)
            read_slices(folder / "case.dcm")
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + args.memory * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in range(args.first, args.first + args.cases):
            rng = random.Random(f"{args.seed} {case}")
            content, what = mutate(rng, rng.choice(files), files)
            (folder / "case.dcm").write_bytes(content)
            if args.keep and args.case is not None:
                (args.keep / f"{args.seed}_{case}.dcm").write_bytes(content)
            signal.setitimer(signal.ITIMER_PROF, 3 * args.seconds)  # ends the process, native code included
            begun, outcome = time.process_time(), "read"
            finding = ""
            try:
                read_slices(folder / "case.dcm")
            except LumbarError as error:
                crashed = "crashed on it" in str(error)
                outcome = "refused after the decoding process crashed" if crashed else "refused"
                finding = next((words for words in UNWANTED if words in str(error)), "")
            except BaseException as error:
                finding = outcome = f"raises {type(error).__name__}: {error}"
            try:
                scan_headers(folder / "case.dcm")
            except BaseException as error:
                finding = outcome = f"scan_headers raises {type(error).__name__}: {error}"
            took = time.process_time() - begun
            signal.setitimer(signal.ITIMER_PROF, 0)
            if took > args.seconds:
                finding = f"takes {took:.1f} s"
            if finding:
                print(json.dumps({"finding": finding[:500], "case": case, "seed": args.seed, "what": what}), flush=True)
                if args.keep:
                    (args.keep / f"{args.seed}_{case}.dcm").write_bytes(content)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            done = {"done": {outcome[:60]: 1}, "slowest": took, "peak": peak, "last": case}
            print(json.dumps(done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
