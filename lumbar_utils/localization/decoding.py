"""From heat maps to a chain of points: all levels are decided together.

One level alone is easy to mistake for its neighbour, a row of them is not: their probabilities are multiplied, and a
prior on the distances and on the bending of the chain excludes what no spine does. The candidates are the peaks of
all levels' maps together, and places that neighbours suggest where a peak is missing. Every chain through them is
weighted (a second-order hidden Markov model), so the result carries posterior probabilities, not just the best chain:
the confidence of a level falls when its neighbour would have fitted as well. Where the network knows the discs above
and below the five, they are links of the same chain: their places speak for or against the labels of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

from ..labels import LEVELS
from .heat_maps import HeatMaps


@dataclass(frozen=True)
class ChainPrior:
    """What is known of a chain of canal points before any image is seen: it rules out what no spine does. Its steps do
    not prefer a chain to the same one a level higher or lower, for people differ more than the steps of one spine do.
    Only the image's height prefers one of the two, and weakly (`middle_row`)."""

    step_mm: float = 33.0  # from a point to the next lower one, of any two neighbours
    step_spread: float = 0.22  # SD of a step's logarithm: body height, collapsed discs, slips
    # SD of the logarithm of the ratio of neighbouring steps, and of the angle between them: wide enough for a steep
    # lumbosacral junction behind a wedge-shaped L5, where real steps of 14 to 25 mm follow ones of 34.
    ratio_spread: float = 0.2
    bend_degrees: float = 20.0
    min_step_mm: float = 15.0  # shorter and longer steps are excluded
    max_step_mm: float = 56.0
    min_mass: float = 2e-3  # probability mass of a level at a place where the heat maps show nothing of it
    min_spurious: float = 0.1  # least probability that a peak is none of the chain's discs, however strong it is
    # Where L3/L4 lies in the height of the image, and its SD: technicians centre the scan on L3. In the competition's
    # 1,975 studies 0.53 with 0.05, doubled here, and never worth more than two SD, since other scans may be cut
    # otherwise.
    middle_row: float = 0.53
    middle_spread: float = 0.1
    # Probability mass is raised to the power of its inverse: the networks' errors at neighbouring levels have one
    # cause, so the levels must not be multiplied as if they were independent.
    temperature: float = 1.0


PEAK_RADIUS_MM = 9.0
"""Mass within this distance belongs to a peak; a third of the shortest usual distance between discs."""
MIN_PEAK_DISTANCE_MM = 1.2 * PEAK_RADIUS_MM
MIN_PEAK = 0.01  # peaks of less mass than this, for every level, are noise
MAX_PEAKS = 20
STRONG_PEAK = 0.1  # only peaks of at least this mass suggest places for missing neighbours
OBSERVED = 0.05  # a level with less of its mass than this at its place counts as imputed from its neighbours
MIDDLE_LEVEL = "l3_l4"
ANCHORS = ("l5_s1", "s1_s2")  # discs at the sacrum: without either of them in view nothing tells lumbar levels apart


@dataclass(frozen=True, eq=False)
class Chain:
    """Places of k levels, from `decode_chain`."""

    voxels: np.ndarray  # (k, 3) fractional (slice, row, column) of the heat maps
    mass: np.ndarray  # (k,) how much of each level's probability lies at its place
    posterior: np.ndarray  # (k,) probability of the place, given all levels' heat maps
    flags: tuple[str, ...]  # k, "" where observed, else "interpolated", "extrapolated" or "outside" (of the image)
    anchored: bool = True  # whether the sacrum's upper or first disc is seen, from which the others are counted


def decode_chain(maps: HeatMaps, chain: tuple[str, ...] = LEVELS, prior: ChainPrior | None = None) -> Chain | None:
    """The most probable chain of places of the maps' levels, `labels.LEVELS` or `network.CHAIN`; None when there are
    fewer than two peaks, or no chain that a spine could be."""
    prior = prior or ChainPrior()
    peaks, masses = find_peaks(maps)
    if len(peaks) < 2:
        return None
    extent = np.array(maps.probability.shape[2:]) * maps.spacing
    places = _with_suggestions(peaks, masses.max(axis=0) >= STRONG_PEAK, len(chain), prior)
    mass = np.full((len(chain), len(places)), prior.min_mass)
    mass[:, : len(peaks)] += masses
    in_plane = places[:, 1:]
    outside = np.any((in_plane < 0) | (in_plane > extent), axis=1)
    mass[:, outside] += 0.5 * maps.absent[:, None]
    log_mass = np.log(mass)
    # A peak that the chain leaves out must be no disc of it; the more mass it has, the less likely that is.
    log_mass[:, : len(peaks)] -= np.log(np.maximum(1 - masses.sum(axis=0), prior.min_spurious))
    off_middle = (in_plane[:, 0] / extent[0] - prior.middle_row) / prior.middle_spread
    log_mass /= prior.temperature
    log_mass[chain.index(MIDDLE_LEVEL)] -= 0.5 * np.clip(off_middle, -2, 2) ** 2
    weighed = _weigh_chains(places, log_mass, prior)
    if weighed is None:
        return None
    marginal, best = weighed
    points, own_mass = places[best], np.zeros(len(chain))
    for level in np.flatnonzero(best < len(peaks)):
        own_mass[level] = masses[level, best[level]]
        points[level] = _refined(maps, level, peaks[best[level]])
    slices = np.interp(points[:, 0], maps.offsets, np.arange(len(maps.offsets)))
    voxels = np.column_stack([slices, points[:, 1:] / maps.spacing - 0.5])
    posterior = marginal[np.arange(len(chain)), best]
    flags = tuple(_flag(level, own_mass, outside[best]) for level in range(len(chain)))
    anchored = any(mass >= OBSERVED for name, mass in zip(chain, own_mass, strict=True) if name in ANCHORS)
    return Chain(voxels, own_mass, posterior, flags, anchored)


def _flag(level: int, mass: np.ndarray, outside: np.ndarray) -> str:
    if outside[level]:
        return "outside"
    if mass[level] < OBSERVED:
        observed = np.flatnonzero(mass >= OBSERVED)
        return "interpolated" if len(observed) and observed[0] < level < observed[-1] else "extrapolated"
    return ""


def find_peaks(maps: HeatMaps) -> tuple[np.ndarray, np.ndarray]:
    """Where any level has mass, (m, 3) in mm along the normal, downward and backward from the image's edge, and how
    much of each level's mass lies there, (k, m)."""
    remaining = maps.probability.sum(axis=0)
    levels = len(remaining)
    strength = ndimage.gaussian_filter(remaining, (0, *(3.0 / np.asarray(maps.spacing))), mode="constant").max(axis=0)
    size = [int(2 * (PEAK_RADIUS_MM / 1.5) / s) | 1 for s in maps.spacing]
    tops = np.argwhere((strength == ndimage.maximum_filter(strength, size)) & (strength > 0))
    order = np.argsort(-strength[tuple(tops.T)])[: 4 * MAX_PEAKS]
    peaks, masses = [], []
    for top in tops[order]:
        row, column = maps.rows_mm[top[0]], maps.columns_mm[top[1]]
        if any(np.hypot(row - peak[1], column - peak[2]) < MIN_PEAK_DISTANCE_MM for peak in peaks):
            continue
        rows, columns, disk = maps.disk(row, column, PEAK_RADIUS_MM)
        own = remaining[:, rows, columns] * disk
        mass = own.sum(axis=(1, 2))
        if mass.max() < MIN_PEAK:
            continue
        remaining[:, rows, columns] -= own
        weight = own.sum(axis=0)
        row = weight.sum(axis=1) @ maps.rows_mm[rows] / weight.sum()
        column = weight.sum(axis=0) @ maps.columns_mm[columns] / weight.sum()
        through = maps.probability[:, :, rows, columns].sum(axis=(1, 2, 3))
        peaks.append((through @ maps.offsets / through.sum(), row, column))
        masses.append(mass)
        if len(peaks) == MAX_PEAKS:
            break
    return np.array(peaks).reshape(-1, 3), np.array(masses).reshape(-1, levels).T


def _refined(maps: HeatMaps, level: int, peak: np.ndarray) -> np.ndarray:
    """Mean place in mm of a level's mass near a peak; of all levels' mass where this level has hardly any."""
    rows, columns, disk = maps.disk(peak[1], peak[2], PEAK_RADIUS_MM)
    part = maps.probability[:, :, rows, columns]
    weight = part[:, level] * disk
    if weight.sum() < OBSERVED:
        weight = part.sum(axis=1) * disk
    moments = (
        weight.sum(axis=(1, 2)) @ maps.offsets,
        weight.sum(axis=(0, 2)) @ maps.rows_mm[rows],
        weight.sum(axis=(0, 1)) @ maps.columns_mm[columns],
    )
    return np.array(moments) / weight.sum()


def _with_suggestions(peaks: np.ndarray, strong: np.ndarray, links: int, prior: ChainPrior) -> np.ndarray:
    """Peaks (m, 3), then places that pairs of strong ones suggest: half-way where one is missing, and beyond
    the ends."""
    places = [*peaks]

    def suggest(place: np.ndarray) -> None:
        if all(np.hypot(*(place - other)[1:]) > MIN_PEAK_DISTANCE_MM for other in places):
            places.append(place)

    pairs = [(a, b, np.linalg.norm(b - a)) for a in peaks[strong] for b in peaks[strong] if b[1] > a[1]]
    for a, b, gap in pairs:
        parts = int(np.round(gap / prior.step_mm))
        if parts in (2, 3) and abs(b[2] - a[2]) < 0.7 * gap:
            for i in range(1, parts):
                suggest(a + (b - a) * i / parts)
    # All links but the two that are seen may lie beyond the image. The shortest way first: a pair further off, or
    # whichever of equal peaks happens to be listed first, must not take the place of a better guess.
    for i in range(1, links - 1):
        for a, b, gap in pairs:
            if 22 < gap < 48:
                suggest(a - i * (b - a))
                suggest(b + i * (b - a))
    return np.array(places)


def _weigh_chains(places: np.ndarray, log_mass: np.ndarray, prior: ChainPrior) -> tuple[np.ndarray, np.ndarray] | None:
    """Forward-backward and Viterbi over the steps between places, of a second-order hidden Markov model: the posterior
    of each place for each level (levels, k) and the best chain (levels,) as indices; None when no chain is possible."""
    step = places[None, :, :] - places[:, None, :]
    length = np.linalg.norm(step, axis=-1)
    allowed = (length >= prior.min_step_mm) & (length <= prior.max_step_mm) & (step[..., 1] > 0.25 * length)
    upper, lower = np.nonzero(allowed)
    if not len(upper):
        return None
    edge, edge_length = step[upper, lower], length[upper, lower]
    direction = edge / edge_length[:, None]
    bend = np.degrees(np.arccos(np.clip(direction @ direction.T, -1, 1))) / prior.bend_degrees
    log_length = np.log(edge_length)
    ratio = (log_length[None, :] - log_length[:, None]) / prior.ratio_spread
    transition = np.where(lower[:, None] == upper[None, :], -0.5 * (ratio**2 + bend**2), -np.inf)
    usual = -0.5 * ((log_length - np.log(prior.step_mm)) / prior.step_spread) ** 2
    start = log_mass[0, upper] + log_mass[1, lower] + usual
    emissions = log_mass[2:, lower] + usual
    forward, best, back, backward = [start], start, [], [np.zeros(len(upper))]
    with np.errstate(invalid="ignore"):
        for emission in emissions:
            forward.append(special.logsumexp(forward[-1][:, None] + transition, axis=0) + emission)
            scores = best[:, None] + transition
            back.append(scores.argmax(axis=0))
            best = scores.max(axis=0) + emission
        total = special.logsumexp(forward[-1])
        if not np.isfinite(total):
            return None
        for emission in emissions[::-1]:
            backward.append(special.logsumexp(transition + (emission + backward[-1]), axis=1))
    weights = np.exp(np.array(forward) + backward[::-1] - total)  # of the steps from each level but the last
    marginal = [np.bincount(upper, weights[0], len(places)), *(np.bincount(lower, w, len(places)) for w in weights)]
    edges = [int(best.argmax())]
    for pointer in back[::-1]:
        edges.insert(0, int(pointer[edges[0]]))
    return np.array(marginal), np.array([upper[edges[0]], *lower[edges]])
