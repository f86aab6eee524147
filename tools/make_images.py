"""Make all pictures of the README from phantoms: `python tools/make_images.py [NAME ...]`.

No file is read but the shipped disc finder's weights; the same command gives the same pictures. Without names: all.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pictures import architecture, finder, phantoms

from lumbar_utils import views

IMAGES = ROOT / "images"
LARGEST_BYTES = 600_000
PICTURES = {
    "title": phantoms.title,
    "orientation": phantoms.orientation,
    "architecture": architecture.architecture,
    "levels": phantoms.levels,
    "crops": phantoms.crops,
    "phantom": phantoms.phantom,
    "localizer": finder.localizer,
}


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        if name not in PICTURES:
            sys.exit(f"unknown picture {name!r}, expected some of {', '.join(PICTURES)}")
        path = IMAGES / f"{name}.png"
        views.save(PICTURES[name](), path, dpi=120)
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            sys.exit(f"{path.name} has {size} bytes, more than {LARGEST_BYTES}")
        print(f"images/{path.name}  {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
