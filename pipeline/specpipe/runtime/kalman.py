"""A Kalman filter: estimates several hidden values, of which every observation shows a sum.

R. E. Kalman, "A New Approach to Linear Filtering and Prediction Problems", 1960.
"""

from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import Floats


@dataclass
class Kalman:
    """Hidden values that wander, with what is known of them."""

    covariance: Floats  # [n, n]  of the errors of `mean`
    wander: Floats  # [n, n]  what is added to it between two observations
    noise: float  # standard deviation of an observation
    mean: Floats = field(init=False)  # [n]

    def __post_init__(self) -> None:
        """Expect zeros."""
        self.mean = np.zeros(len(self.covariance))

    def observe(self, weights: Floats, error: float) -> None:
        """Take note that the sum of the values times `weights` [n] seems higher by `error`."""
        self.covariance = self.covariance + self.wander
        shared = self.covariance @ weights
        gain = shared / (float(weights @ shared) + self.noise**2)
        self.mean = self.mean + gain * error
        self.covariance = self.covariance - np.outer(gain, shared)
