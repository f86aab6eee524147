"""How often each grade occurs in the competition's training part (`train.csv` of RSNA 2024, 1,975 studies)."""

from __future__ import annotations

import numpy as np

MODERATE_PERCENT = np.array(
    [
        [3.4, 7.7, 11.7, 12.0, 2.6],
        [3.2, 8.7, 20.8, 31.9, 26.3],
        [3.2, 8.5, 21.0, 31.9, 25.1],
        [4.7, 12.9, 23.0, 31.6, 20.7],
        [5.6, 12.3, 23.0, 31.5, 20.1],
    ]
)
SEVERE_PERCENT = np.array(
    [
        [1.1, 2.7, 6.2, 12.9, 1.0],
        [0.1, 0.6, 2.0, 7.1, 10.4],
        [0.7, 0.3, 2.1, 6.6, 9.6],
        [1.4, 4.2, 9.8, 23.3, 7.4],
        [1.2, 3.7, 10.0, 23.3, 8.8],
    ]
)
"""Percent of the labelled targets graded moderate and severe, shape (5 conditions, 5 levels) as in `labels`."""
