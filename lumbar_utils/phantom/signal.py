"""From tissue to signal: spin-echo and inversion-recovery equations with published relaxation times.

T1, T2 in ms and proton density relative to water, at 1.5 T and 3 T. Sources: Stanisz 2005 (muscle, cord, cartilage,
blood), de Bazelaire 2004 (fat, marrow, kidney), Rooney 2007 and Hopkins 1986 (CSF), Marinelli 2010 and Antoniou 1998
(disc), Bojorquez 2017 (review at 3 T). In a turbo spin echo fat stays bright, because fast refocusing undoes
J-coupling; the T2 given for fat and for marrow is that apparent one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .tissue import N_TISSUES, Tissue

RELAXATION = {
    # tissue: (T1 at 1.5 T, T1 at 3 T, T2 at 1.5 T, T2 at 3 T, proton density)
    Tissue.AIR: (1000, 1000, 1, 1, 0.0),
    Tissue.SKIN: (700, 850, 32, 28, 0.7),
    Tissue.FAT: (290, 370, 130, 120, 0.90),
    Tissue.MUSCLE: (950, 1350, 44, 40, 0.80),
    Tissue.FASCIA: (700, 850, 18, 16, 0.40),
    Tissue.MARROW: (560, 640, 88, 80, 0.68),
    Tissue.CORTEX: (700, 800, 6, 6, 0.15),
    Tissue.ANNULUS: (800, 900, 30, 27, 0.52),
    Tissue.NUCLEUS: (1100, 1300, 125, 110, 0.92),
    Tissue.CSF: (4000, 4200, 1500, 1200, 1.0),
    Tissue.CORD: (760, 950, 82, 76, 0.76),
    Tissue.ROOT: (850, 1050, 72, 68, 0.74),
    Tissue.LIGAMENT: (650, 750, 20, 18, 0.40),
    Tissue.BLOOD: (1400, 1700, 20, 18, 0.12),
    Tissue.VEIN: (700, 900, 160, 140, 0.80),
    Tissue.BOWEL: (700, 850, 75, 68, 0.66),
    Tissue.FLUID: (3200, 3600, 800, 700, 0.88),
    Tissue.GAS: (1000, 1000, 4, 3, 0.05),
    Tissue.KIDNEY: (750, 1150, 85, 78, 0.85),
    Tissue.OEDEMA: (1000, 1200, 130, 120, 0.80),
    Tissue.FATTY_MARROW: (350, 420, 118, 108, 0.82),
    Tissue.SCLEROSIS: (700, 800, 18, 16, 0.30),
    Tissue.EPIDURAL_FAT: (280, 360, 130, 120, 0.95),
    Tissue.CARTILAGE: (1000, 1200, 70, 62, 0.75),
    Tissue.LIVER: (570, 800, 50, 42, 0.74),
}


@dataclass(frozen=True)
class Sequence:
    """Timing in ms; `inversion_time` is 0 for a plain spin echo. `tesla` is 1.5 or 3 or between."""

    repetition_time: float
    echo_time: float
    inversion_time: float = 0.0
    tesla: float = 1.5


def tissue_signal(sequence: Sequence, rng: np.random.Generator | None = None, *, spread: float = 0.06) -> np.ndarray:
    """Signal of every tissue, float32 (N_TISSUES,), water at full recovery being 1; `rng` draws every tissue's
    deviation from the published values, a log-normal of relative size `spread`.

    Spin echo: PD (1 - exp(-TR/T1)) exp(-TE/T2). Inversion recovery: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2).
    """
    t1, t1_high, t2, t2_high, density = np.array([RELAXATION[t] for t in Tissue], dtype=np.float64).T
    mix = np.clip((sequence.tesla - 1.5) / 1.5, 0, 1)
    t1, t2 = t1 + mix * (t1_high - t1), t2 + mix * (t2_high - t2)
    if rng is not None:
        t1, t2, density = (a * np.exp(spread * rng.standard_normal(N_TISSUES)) for a in (t1, t2, density))
    if sequence.inversion_time > 0:
        recovery = np.abs(1 - 2 * np.exp(-sequence.inversion_time / t1) + np.exp(-sequence.repetition_time / t1))
    else:
        recovery = 1 - np.exp(-sequence.repetition_time / t1)
    return (density * recovery * np.exp(-sequence.echo_time / t2)).astype(np.float32)


def random_signal(rng: np.random.Generator) -> np.ndarray:
    """Contrasts for domain randomisation, float32 (N_TISSUES,): some real sequence bent out of shape, or any at all, in
    which CSF, fat and bone stay distinguishable from what they touch: otherwise there is nothing to find."""
    sequence = Sequence(rng.uniform(350, 6000), rng.uniform(5, 140), rng.choice([0, 0, 0, 160, 220]), 1.5)
    base = tissue_signal(sequence, rng, spread=0.35)
    base = base / max(float(base.max()), 1e-3)
    free = rng.uniform(0.02, 1.0, N_TISSUES).astype(np.float32)
    share = np.float32(rng.choice([0.0, 0.2, 0.5, 0.8], p=[0.35, 0.3, 0.2, 0.15]))
    mixed = (1 - share) * base + share * free
    mixed[Tissue.AIR] = 0
    mixed[[Tissue.CORTEX, Tissue.GAS]] *= np.float32(0.25)
    return mixed.astype(np.float32)
