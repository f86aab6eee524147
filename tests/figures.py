"""What tests read from a figure: its words, and its picture."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def text_of(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(plt.Text))


def rendered(figure: Figure, dpi: int = 50) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    return buffer.getvalue()
