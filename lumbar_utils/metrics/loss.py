"""The competition's metric as a loss on logits, for training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..labels import MISSING, N_SEVERITIES, SEVERITY_WEIGHTS
from .score import FAMILY_TARGETS, SEVERE, _checked_labels


@dataclass(frozen=True)
class CompetitionLoss:
    """The metric's four terms on logits, missing labels masked, and the mean of the terms; made by `fitted`.

    In a batch of few studies the sum of weights jumps with every severe case; dividing by it would make severe
    cases count less exactly where they are. The terms are divided by the number of labelled rows times the training
    part's mean weight instead, which makes the expectation over batches the metric itself.
    """

    mean_weights: tuple[float, float, float, float]  # of a labelled row of each family, of a study for the fourth term
    any_severe: float = 1.0  # weight of the fourth term; 1 is the metric
    class_weights: bool = True  # False replaces 1/2/4 by 1/1/1, for the first phase of a training in two

    @classmethod
    def fitted(cls, labels: np.ndarray, *, any_severe: float = 1.0, class_weights: bool = True) -> CompetitionLoss:
        """A loss whose denominators are the mean weights of these labels, int (n_studies, 25), -1 = not labelled."""
        labels = _checked_labels(labels)
        weights = np.where(labels == MISSING, 0.0, np.asarray(_weights(class_weights))[labels])
        parts = [weights[:, targets] for targets in FAMILY_TARGETS.values()]
        parts.append(weights[:, FAMILY_TARGETS["spinal"]].max(axis=1))
        means = (part.sum() / max(int((part > 0).sum()), 1) for part in parts)
        return cls(tuple(float(mean) or 1.0 for mean in means), any_severe, class_weights)

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor, share: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, 25, 3) and integer labels (B, 25), -1 = missing, to a scalar; 0 when nothing is labelled.

        `share` (B,) in 0..1 is how much each row counts, as where a study is a mixture of two.
        """
        log_p = logits.float().log_softmax(-1)
        labels = labels.long()
        known = labels != MISSING
        weight = log_p.new_tensor(_weights(self.class_weights))[labels.clamp(min=0)] * known
        share = log_p.new_ones(len(labels)) if share is None else share
        loss = -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * weight
        terms = [
            self._mean(loss[:, targets], weight[:, targets], share[:, None], i)
            for i, targets in enumerate(FAMILY_TARGETS.values())
        ]
        spinal = FAMILY_TARGETS["spinal"]
        known, labels, weight = known[:, spinal], labels[:, spinal], weight[:, spinal]
        log_severe = log_p[:, spinal, SEVERE].masked_fill(~known, -np.inf)
        top = log_severe.argmax(dim=1, keepdim=True)
        picked = log_p[:, spinal].gather(1, top[..., None].expand(-1, -1, N_SEVERITIES))[:, 0]
        study_weight = weight.amax(dim=1)
        severe = ((labels == SEVERE) & known).any(dim=1)
        study_loss = -picked[:, SEVERE].where(severe, picked[:, :SEVERE].logsumexp(-1)) * study_weight
        any_severe = self._mean(study_loss, study_weight, share, 3)
        return (sum(terms) + self.any_severe * any_severe) / (3 + self.any_severe)

    def _mean(self, loss: torch.Tensor, weight: torch.Tensor, share: torch.Tensor, term: int) -> torch.Tensor:
        rows = ((weight > 0) * share).sum()
        return (loss * share).sum() / (rows.clamp(min=1e-6) * self.mean_weights[term])


def _weights(class_weights: bool) -> tuple[float, ...]:
    return SEVERITY_WEIGHTS if class_weights else (1.0,) * N_SEVERITIES
