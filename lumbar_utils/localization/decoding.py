"""From the network's maps to a chain of points: all levels are decided together.

One level alone is easy to mistake for its neighbour, a row of them is not: their evidence is multiplied, and a
prior on the distances and on the bending of the chain excludes what no spine does. The candidates are the peaks of
all levels' maps together, and places that neighbours suggest where a peak is missing. Every chain through them is
weighed (a second-order hidden Markov model), so the result carries posterior probabilities, not just the best chain:
the confidence of a level falls when its neighbour would have fitted as well. Where the network knows the discs above
and below the five, they are links of the same chain: their places speak for or against the names of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from ..labels import LEVELS


@dataclass(frozen=True)
class ChainPrior:
    """What is known of a chain of canal points before any image is seen.

    It rules out what no spine does. By its steps it takes no side between a chain and the same one a level higher or
    lower: people differ more than the steps of one spine do, and what phantoms measure there need not hold for
    patients. Only the image's height speaks, quietly, for one of the two (`middle_row`).

    Parameters
    ----------
    step_mm : float
        Typical distance from a point to the next lower one, of any two neighbours.
    step_spread : float
        Standard deviation of the logarithm of a step. Covers body height, collapsed discs and slips.
    ratio_spread : float
        The same for the ratio of neighbouring steps.
    bend_degrees : float
        Standard deviation of the angle between neighbouring steps.
    shortest_mm, longest_mm : float
        Steps outside are excluded.
    missing : float
        Evidence of a level at a place where the network sees nothing of it.
    unnamed : float
        Least probability that a peak is none of the chain's discs, however strong it is.
    middle_row, middle_spread : float
        Where L3/L4 lies in the height of the image, as a fraction, and its standard deviation: technicians centre
        the scan on L3. In the competition's 1,975 studies 0.53 with 0.05, doubled here, and never worth more than
        two standard deviations, since other scans may be cut otherwise.
    temperature : float
        The networks' evidence is raised to the power of its inverse: their errors at neighbouring levels are of one
        origin, so it must not be multiplied as if each level spoke for itself.
    """

    step_mm: float = 33.0
    step_spread: float = 0.2
    ratio_spread: float = 0.14
    bend_degrees: float = 14.0
    shortest_mm: float = 18.0
    longest_mm: float = 56.0
    missing: float = 2e-3
    unnamed: float = 0.1
    middle_row: float = 0.53
    middle_spread: float = 0.1
    temperature: float = 1.0


PEAK_RADIUS_MM = 9.0
"""Mass within this distance belongs to a peak; a third of the shortest usual distance between discs."""
MIN_PEAK = 0.01
"""Peaks of less mass than this, for every level, are noise."""
MIDDLE_LEVEL = "l3_l4"
MAX_PEAKS = 20
STRONG_PEAK = 0.1
"""Only peaks of at least this mass suggest places for missing neighbours."""
SUPPORTED = 0.05
"""A chosen place with less of its level's mass than this counts as placed by the neighbours."""
ANCHORS = ("l5_s1", "s1_s2")
"""Discs at the sacrum: without either of them in view nothing tells lumbar levels apart."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Result of `decode_chain`: voxel positions are fractional (slice, row, column) of the given maps.

    `support` is each level's mass at its place, `posterior` the probability of the place given all evidence,
    `agreement` the share of member_predictions that name the chain alike, `anchored` whether the sacrum's upper or
    first disc is seen, from which the names of the others are counted.
    """

    voxels: np.ndarray
    support: np.ndarray
    posterior: np.ndarray
    flags: tuple[str, ...]
    agreement: float = 1.0
    anchored: bool = True


def decode_chain(
    probability: np.ndarray,
    absent: np.ndarray,
    *,
    offsets: np.ndarray,
    spacing: tuple[float, float],
    chain: tuple[str, ...] = LEVELS,
    prior: ChainPrior | None = None,
) -> Chain | None:
    """Find the most probable chain of places.

    Parameters
    ----------
    probability : ndarray, shape (n, k, h, w)
        Per level a distribution over all voxels; rows run downward, columns from front to back.
    absent : ndarray, shape (k,)
        The rest of each level's probability: not in view.
    offsets : ndarray, shape (n,)
        mm of the slices along their normal, ascending.
    spacing : (float, float)
        mm between rows and between columns.
    chain : tuple of str
        The k levels: `labels.LEVELS` or `network.CHAIN`.

    Returns
    -------
    Chain or None
        None when there are fewer than two peaks, or no chain that a spine could be.
    """
    prior = prior or ChainPrior()
    centres, masses = find_peaks(probability, offsets, spacing)
    if len(centres) < 2:
        return None
    extent = np.array([probability.shape[2] * spacing[0], probability.shape[3] * spacing[1]])
    places, peak_of = _with_suggestions(centres, masses.max(axis=0) >= STRONG_PEAK, len(chain), prior)
    evidence = np.full((len(chain), len(places)), prior.missing)
    evidence[:, : len(centres)] += masses
    in_plane = places[:, 1:]
    outside = np.any((in_plane < 0) | (in_plane > extent), axis=1)
    evidence[:, outside] += 0.5 * absent[:, None]
    log_evidence = np.log(evidence)
    # A peak that the chain leaves out must be no disc of it; the more mass it has, the less likely that is.
    log_evidence[:, : len(centres)] -= np.log(np.maximum(1 - masses.sum(axis=0), prior.unnamed))
    off_middle = (in_plane[:, 0] / extent[0] - prior.middle_row) / prior.middle_spread
    log_evidence /= prior.temperature
    log_evidence[chain.index(MIDDLE_LEVEL)] -= 0.5 * np.clip(off_middle, -2, 2) ** 2
    marginal, best = _weigh_chains(places, log_evidence, prior)
    if best is None:
        return None
    posterior = marginal[np.arange(len(chain)), best]
    support = np.array([masses[level, peak_of[c]] if peak_of[c] >= 0 else 0.0 for level, c in enumerate(best)])
    points = places[best].copy()
    for level, c in enumerate(best):
        if peak_of[c] >= 0:
            points[level] = refine(probability, level, centres[peak_of[c]], offsets, spacing)
    flags = tuple(_flag(level, support, outside[best]) for level in range(len(chain)))
    slices = np.interp(points[:, 0], offsets, np.arange(len(offsets)))
    voxels = np.stack([slices, points[:, 1] / spacing[0] - 0.5, points[:, 2] / spacing[1] - 0.5], axis=1)
    return Chain(voxels, support, posterior, flags)


def _flag(level: int, support: np.ndarray, outside: np.ndarray) -> str:
    if outside[level]:
        return "outside"
    if support[level] < SUPPORTED:
        seen = np.flatnonzero(support >= SUPPORTED)
        return "interpolated" if len(seen) and seen[0] < level < seen[-1] else "extrapolated"
    return ""


def find_peaks(
    probability: np.ndarray, offsets: np.ndarray, spacing: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Places where any level has mass, and how much of each level's mass lies there.

    Returns
    -------
    centres : ndarray, shape (k, 3)
        mm along the normal, downward and backward; rows and columns count from the image's edge.
    masses : ndarray, shape (levels, k)
    """
    flat = probability.sum(axis=0)
    sigma = 3.0 / np.asarray(spacing)
    smooth = ndimage.gaussian_filter(flat, (0, *sigma), mode="constant")
    strength = smooth.max(axis=0)
    size = [int(2 * (PEAK_RADIUS_MM / 1.5) / s) | 1 for s in spacing]
    tops = np.argwhere((strength == ndimage.maximum_filter(strength, size)) & (strength > 0))
    order = np.argsort(-strength[tuple(tops.T)])[: 4 * MAX_PEAKS]
    rows = (np.arange(flat.shape[1]) + 0.5) * spacing[0]
    columns = (np.arange(flat.shape[2]) + 0.5) * spacing[1]
    levels = probability.shape[1]
    centres, masses = [], []
    remaining = flat.copy()
    for top in tops[order]:
        row, column = rows[top[0]], columns[top[1]]
        if any(np.hypot(row - c[1], column - c[2]) < 1.2 * PEAK_RADIUS_MM for c in centres):
            continue
        near_rows = np.flatnonzero(np.abs(rows - row) <= PEAK_RADIUS_MM)
        near_columns = np.flatnonzero(np.abs(columns - column) <= PEAK_RADIUS_MM)
        box = np.ix_(range(levels), near_rows, near_columns)
        disk = np.hypot(rows[near_rows][:, None] - row, columns[near_columns] - column) <= PEAK_RADIUS_MM
        share = remaining[box] * disk
        mass = share.sum(axis=(1, 2))
        if mass.max() < MIN_PEAK:
            continue
        remaining[box] -= share
        weight = share.sum(axis=0)
        total = weight.sum()
        row = float((weight.sum(axis=1) * rows[near_rows]).sum() / total)
        column = float((weight.sum(axis=0) * columns[near_columns]).sum() / total)
        through = probability[:, :, near_rows[0] : near_rows[-1] + 1, near_columns[0] : near_columns[-1] + 1]
        along = float(through.sum(axis=(1, 2, 3)) @ offsets / through.sum())
        centres.append((along, row, column))
        masses.append(mass)
        if len(centres) == MAX_PEAKS:
            break
    return np.array(centres).reshape(-1, 3), np.array(masses).reshape(-1, levels).T


def refine(
    probability: np.ndarray, level: int, centre: np.ndarray, offsets: np.ndarray, spacing: tuple[float, float]
) -> np.ndarray:
    """Mean place in mm of a level's mass near a peak; of all levels' mass where this level has hardly any."""
    rows = (np.arange(probability.shape[2]) + 0.5) * spacing[0]
    columns = (np.arange(probability.shape[3]) + 0.5) * spacing[1]
    near_rows = np.flatnonzero(np.abs(rows - centre[1]) <= PEAK_RADIUS_MM)
    near_columns = np.flatnonzero(np.abs(columns - centre[2]) <= PEAK_RADIUS_MM)
    part = probability[:, :, near_rows[0] : near_rows[-1] + 1, near_columns[0] : near_columns[-1] + 1]
    disk = np.hypot(rows[near_rows][:, None] - centre[1], columns[near_columns] - centre[2]) <= PEAK_RADIUS_MM
    weight = part[:, level] * disk
    if weight.sum() < SUPPORTED:
        weight = part.sum(axis=1) * disk
    total = weight.sum()
    return np.array(
        [
            weight.sum(axis=(1, 2)) @ offsets / total,
            weight.sum(axis=(0, 2)) @ rows[near_rows] / total,
            weight.sum(axis=(0, 1)) @ columns[near_columns] / total,
        ]
    )


def _with_suggestions(
    centres: np.ndarray, strong: np.ndarray, links: int, prior: ChainPrior
) -> tuple[np.ndarray, np.ndarray]:
    """Add places suggested by pairs of peaks: half-way where one is missing, further on beyond the ends.

    Returns the places (k, 3) and for each the index of its peak, -1 for a suggestion.
    """
    places = [*centres]

    def suggest(place: np.ndarray) -> None:
        if all(np.hypot(*(place - other)[1:]) > 1.2 * PEAK_RADIUS_MM for other in places):
            places.append(place)

    sure = centres[strong]
    for a in sure:
        for b in sure:
            gap = np.linalg.norm(b - a)
            if b[1] <= a[1]:
                continue
            parts = int(np.round(gap / prior.step_mm))
            if parts in (2, 3) and abs(b[2] - a[2]) < 0.7 * gap:
                for i in range(1, parts):
                    suggest(a + (b - a) * i / parts)
    edges = [(a, b) for a in sure for b in sure if b[1] > a[1] and 22 < np.linalg.norm(b - a) < 48]
    # All links but the two that are seen may lie beyond the image. The shortest way first: a pair further off, or
    # whichever of equal peaks happens to be listed first, must not take the place of a better guess.
    for i in range(1, links - 1):
        for a, b in edges:
            suggest(a - i * (b - a))
            suggest(b + i * (b - a))
    return np.array(places), np.array([*range(len(centres)), *[-1] * (len(places) - len(centres))])


def _weigh_chains(places: np.ndarray, evidence: np.ndarray, prior: ChainPrior) -> tuple[np.ndarray, np.ndarray | None]:
    """Forward-backward over pairs of neighbouring places.

    Returns the posterior probability of each place for each level (levels, k) and the best chain (levels,) as place
    indices, None when no chain is possible.
    """
    levels = len(evidence)
    step = places[None, :, :] - places[:, None, :]
    length = np.linalg.norm(step, axis=-1)
    allowed = (length >= prior.shortest_mm) & (length <= prior.longest_mm) & (step[..., 1] > 0.25 * length)
    upper, lower = np.nonzero(allowed)
    nothing = np.zeros((levels, len(places)))
    if not len(upper):
        return nothing, None
    edge, edge_length = step[upper, lower], length[upper, lower]
    direction = edge / edge_length[:, None]
    bend = np.degrees(np.arccos(np.clip(direction @ direction.T, -1, 1))) / prior.bend_degrees
    log_length = np.log(edge_length)
    ratio = (log_length[None, :] - log_length[:, None]) / prior.ratio_spread
    transition = np.where(lower[:, None] == upper[None, :], -0.5 * (ratio**2 + bend**2), -np.inf)
    usual = -0.5 * ((log_length - np.log(prior.step_mm)) / prior.step_spread) ** 2
    start = evidence[0, upper] + evidence[1, lower] + usual
    forward, best, back = [start], start, []
    with np.errstate(invalid="ignore"):
        for i in range(levels - 2):
            emit = evidence[i + 2, lower] + usual
            forward.append(special.logsumexp(forward[-1][:, None] + transition, axis=0) + emit)
            scores = best[:, None] + transition
            back.append(scores.argmax(axis=0))
            best = scores.max(axis=0) + emit
        total = special.logsumexp(forward[-1])
        if not np.isfinite(total):
            return nothing, None
        backward = [np.zeros(len(upper))]
        for i in reversed(range(levels - 2)):
            emit = evidence[i + 2, lower] + usual
            backward.insert(0, special.logsumexp(transition + (emit + backward[0])[None, :], axis=1))
    marginal = nothing.copy()
    for i in range(levels - 1):
        weight = np.exp(forward[i] + backward[i] - total)
        if i == 0:
            np.add.at(marginal[0], upper, weight)
        np.add.at(marginal[i + 1], lower, weight)
    last = int(best.argmax())
    edges = [last]
    for pointer in reversed(back):
        edges.insert(0, int(pointer[edges[0]]))
    return marginal, np.array([upper[edges[0]], *lower[edges]])
