"""Pack the folder to upload as a Kaggle data set: library, timm-3d, weights. This is what `make kaggle` does.

python tools/pack_for_kaggle.py dist/kaggle --run runs/demo
kaggle datasets create -p dist/kaggle --dir-mode zip        after OWNER in dataset-metadata.json is replaced
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lumbar_utils.errors import LumbarError
from lumbar_utils.kaggle import METADATA, build_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/demo"), help="run with classifier/, and localizer/ if fine-tuned"
    )
    parser.add_argument("--owner", default="OWNER", help="your name on Kaggle")
    args = parser.parse_args()
    try:
        out = build_dataset(args.out, args.run, owner=args.owner)
    except LumbarError as problem:
        sys.exit(f"error: {problem}")
    print(f"{out}: set the owner in {METADATA}, then: kaggle datasets create -p {out} --dir-mode zip")


if __name__ == "__main__":
    main()
