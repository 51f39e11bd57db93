import numpy as np
import pytest

from cftjax.scores import reliability


def test_reliability_bins_and_calibration_error_by_hand():
    probs = np.array([[0.01, 0.99], [0.03, 0.99], [0.5, 0.99], [1.0, np.nan]])
    labels = np.array([[False, True], [True, True], [True, False], [True, True]])
    known = np.array([[True, True], [True, True], [False, True], [True, True]])
    found = reliability.bins(probs, labels, known)
    assert (found.count[0], found.positive[0], found.count[-1], found.positive[-1]) == (2, 1, 4, 3)
    assert found.predicted[0] == pytest.approx(0.02)
    assert found.observed[-1] == pytest.approx(0.75)
    assert np.isnan(found.observed[7])
    expected = (2 * abs(0.5 - 0.02) + 4 * abs(0.75 - (3 * 0.99 + 1) / 4)) / 6
    assert found.calibration_error == pytest.approx(expected)
    assert (found + found).calibration_error == pytest.approx(expected)
    np.testing.assert_allclose(reliability.probabilities(np.array([[-1e4, 0, 1e4]])), [[0, 0.5, 1]])
