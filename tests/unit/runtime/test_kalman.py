"""The filter against the closed form of what it computes step by step."""

import numpy as np

from specpipe.runtime.kalman import Kalman


def test_values_that_do_not_wander_are_those_of_bayesian_regression() -> None:
    rng = np.random.default_rng(0)
    root, noise = rng.normal(size=(4, 4)), 0.3
    prior = root @ root.T + np.eye(4)
    weights, values = rng.normal(size=(50, 4)), rng.normal(size=50)
    found = Kalman(prior, np.zeros((4, 4)), noise)
    for row, value in zip(weights, values, strict=True):
        found.observe(row, value - float(row @ found.mean))
    precision = np.linalg.inv(prior) + weights.T @ weights / noise**2
    np.testing.assert_allclose(found.covariance, np.linalg.inv(precision), atol=1e-9)
    expected = np.linalg.solve(precision, weights.T @ values / noise**2)
    np.testing.assert_allclose(found.mean, expected, atol=1e-9)


def test_what_wanders_more_follows_an_observation_of_the_sum() -> None:
    found = Kalman(np.diag([1e-4, 1e-4]), np.diag([0.09, 0.0001]), 0.1)
    for _ in range(50):
        found.observe(np.ones(2), 1.0 - float(found.mean.sum()))
    assert found.mean.sum() > 0.99 and found.mean[0] > 20 * found.mean[1]
