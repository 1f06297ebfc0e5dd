"""Metrics against sums by hand and against scikit-learn and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics as sk

from fedexperts.data.metrics import METRICS, OF_SCORES, accuracy, f1, matthews, pearson, spearman

CLASSES = [name for name in METRICS if name not in OF_SCORES]


def a(*values):
    return np.array(values)


def two(elements, dtype):
    return st.integers(1, 30).flatmap(lambda n: st.tuples(*[arrays(dtype, n, elements=elements)] * 2))


# ---- by hand: TP 2, FP 1, FN 1, TN 1


LABELS, GUESSES = a(1, 1, 1, 0, 0), a(1, 1, 0, 1, 0)


def test_binary_by_hand():
    assert accuracy(LABELS, GUESSES) == pytest.approx(3 / 5)
    assert f1(LABELS, GUESSES) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert matthews(LABELS, GUESSES) == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))


def test_macro_f1_by_hand():
    labels, guesses = a(0, 0, 1, 1, 2, 2), a(0, 1, 1, 1, 2, 0)
    assert f1(labels, guesses) == pytest.approx((2 / 4 + 4 / 5 + 2 / 3) / 3)


def test_the_number_of_classes_decides_on_macro():
    assert f1(LABELS, GUESSES, classes=3) == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_correlations_by_hand():
    assert pearson(a(1, 2, 3), a(1, 2, 6)) == pytest.approx(5 / np.sqrt(2 * 14))
    assert spearman(a(1, 2, 3), a(1, 2, 6)) == pytest.approx(1)
    assert spearman(a(1, 2, 3, 4), a(10, 10, 20, 5)) == pytest.approx(-1.5 / np.sqrt(5 * 4.5))  # ranks 2.5, 2.5, 4, 1


@pytest.mark.parametrize("name", METRICS)
def test_being_right_throughout_is_one(name):
    assert METRICS[name](LABELS, LABELS) == pytest.approx(1)


# ---- where others divide by zero


@pytest.mark.parametrize("name", ["matthews", "spearman", "pearson"])
def test_predictions_that_are_all_the_same_tell_nothing(name):
    assert METRICS[name](LABELS, np.ones(5, dtype=int)) == METRICS[name](np.ones(5, dtype=int), LABELS) == 0
    assert METRICS[name](a(1), a(1)) == 0


def test_f1_without_a_positive_is_zero():
    zeros = np.zeros(3, dtype=int)
    assert f1(zeros, zeros) == f1(LABELS, np.zeros(5, dtype=int)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [spearman, pearson])
def test_a_prediction_that_is_not_finite_is_worth_nothing(metric, value):
    assert metric(a(1.0, 2.0, 3.0), a(1.0, 2.0, value)) == 0


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e150])
def test_the_scale_of_scores_does_not_matter(scale):
    assert pearson(a(1, 2, 4), a(1, 2, 3) * scale) == pytest.approx(pearson(a(1, 2, 4), a(1, 2, 3)))


@pytest.mark.parametrize("name", METRICS)
def test_arrays_of_different_lengths_or_none_are_refused(name):
    for labels, guesses in [(a(1, 0), a(1)), (a(), a()), (np.zeros((2, 2)), np.zeros((2, 2)))]:
        with pytest.raises(ValueError, match="must be of one length"):
            METRICS[name](labels, guesses)


# ---- against scikit-learn and scipy


@given(two(st.integers(0, 3), np.int64))
def test_classes_agree_with_scikit_learn(values):
    labels, guesses = values
    average = "macro" if max(labels.max(), guesses.max()) > 1 else "binary"
    assert accuracy(labels, guesses) == pytest.approx(sk.accuracy_score(labels, guesses))
    assert f1(labels, guesses) == pytest.approx(sk.f1_score(labels, guesses, average=average, zero_division=0))
    if len(set(labels)) > 1 and len(set(guesses)) > 1:
        assert matthews(labels, guesses) == pytest.approx(sk.matthews_corrcoef(labels, guesses))


@given(two(st.integers(-50, 50).map(lambda n: n / 8), np.float64))
def test_correlations_agree_with_scipy(values):
    labels, guesses = values
    if len(set(labels)) > 1 and len(set(guesses)) > 1:
        assert pearson(labels, guesses) == pytest.approx(stats.pearsonr(labels, guesses).statistic, abs=1e-12)
        assert spearman(labels, guesses) == pytest.approx(stats.spearmanr(labels, guesses).statistic, abs=1e-12)
    else:
        assert pearson(labels, guesses) == spearman(labels, guesses) == 0


@pytest.mark.parametrize("name", CLASSES)
def test_the_order_of_samples_does_not_matter(name):
    order = a(4, 2, 0, 1, 3)
    assert METRICS[name](LABELS[order], GUESSES[order]) == METRICS[name](LABELS, GUESSES)
