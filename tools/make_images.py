"""Make all pictures of the README from phantoms: `python tools/make_images.py [NAME ...]`, without names all.

The gallery (montage, viewer, attribution, report) shows the network of `runs/demo`, so `make run` comes before it, and
the report needs Chromium. The others read no file but the shipped localizer's weights, and the same command gives
the same pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from matplotlib.figure import Figure
from pictures import architecture, gallery, localization, phantoms

from lumbar_utils import viz

IMAGES = ROOT / "images"
ARCHITECTURE = ROOT / "lumbar_utils" / "viz" / "architecture.png"
"""In the library, because notebook 04 shows it wherever it runs."""
MAX_BYTES = 600_000
PICTURES = {
    "title": phantoms.title,
    "orientation": phantoms.orientation,
    "architecture": architecture.architecture,
    "levels": phantoms.levels,
    "crops": phantoms.crops,
    "phantom": phantoms.phantom,
    "localizer": localization.localizer,
    "montage": gallery.montage,
    "viewer": gallery.viewer,
    "attribution": gallery.attribution,
    "report": gallery.report,
}


def main() -> None:
    for name in sys.argv[1:] or PICTURES:
        if name not in PICTURES:
            sys.exit(f"unknown picture {name!r}, expected some of {', '.join(PICTURES)}")
        path = ARCHITECTURE if name == "architecture" else IMAGES / f"{name}.png"
        picture = PICTURES[name]()
        if path == ARCHITECTURE:
            path.write_bytes(picture.png(dpi=120))
        elif isinstance(picture, Figure):
            viz.save(picture, path, dpi=120)
        else:  # a photograph of a browser: 256 colours are enough
            picture.quantize(256).save(path, optimize=True)
        size = path.stat().st_size
        if size > MAX_BYTES:
            sys.exit(f"{path.name} has {size} bytes, more than {MAX_BYTES}")
        print(f"{path.relative_to(ROOT)}  {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
