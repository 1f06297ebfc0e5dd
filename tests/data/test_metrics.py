"""Metrics against sums by hand and against scikit-learn and scipy."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics as sk

from fedexperts.data.metrics import (
    METRICS,
    OF_SCORES,
    Area,
    accuracy,
    f1,
    macro_auc,
    macro_f1,
    matthews,
    over_clients,
    pearson,
    spearman,
)

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


@settings(deadline=None)
@given(two(st.integers(0, 3), np.int64))
def test_classes_agree_with_scikit_learn(values):
    labels, guesses = values
    average = "macro" if max(labels.max(), guesses.max()) > 1 else "binary"
    assert accuracy(labels, guesses) == pytest.approx(sk.accuracy_score(labels, guesses))
    assert f1(labels, guesses) == pytest.approx(sk.f1_score(labels, guesses, average=average, zero_division=0))
    if len(set(labels)) > 1 and len(set(guesses)) > 1:
        assert matthews(labels, guesses) == pytest.approx(sk.matthews_corrcoef(labels, guesses))


@settings(deadline=None)
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


# ---- macro means, pooled and by client


def test_macro_f1_leaves_out_classes_without_positives():
    labels, guesses = a(0, 0, 1, 1), a(0, 2, 1, 1)
    assert macro_f1(labels, guesses) == pytest.approx((2 / 3 + 1) / 2)
    assert f1(labels, guesses) == pytest.approx((2 / 3 + 1 + 0) / 3)  # which counts class 2 as a failure of its own


def test_macro_f1_of_two_classes_has_both():
    assert macro_f1(LABELS, GUESSES) == pytest.approx((4 / 6 + 2 / 4) / 2)


def test_a_constant_prediction_on_uneven_classes_has_a_low_macro_f1():
    labels = np.repeat(np.arange(10), [100, *[2] * 9])
    assert accuracy(labels, np.zeros(118)) > 0.8
    assert macro_f1(labels, np.zeros(118, dtype=int)) == pytest.approx((2 * 100 / 218) / 10)


def scores(n: int = 60, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    raw = rng.normal(size=(n, classes)).round(1) + 1.2 * np.eye(classes)[labels]  # rounded, so that there are ties
    return labels, np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)


def area(labels: np.ndarray, scores_NC: np.ndarray) -> float | None:
    return macro_auc(labels, scores_NC).value


def test_auc_by_hand():
    # class 0: 0.9 and 0.4 against 0.5 and 0.1: three of four pairs are in order; class 1 has the same in reverse
    assert area(a(0, 0, 1, 1), a([0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9])) == pytest.approx(0.75)
    assert area(a(0, 1), a([0.5, 0.5], [0.5, 0.5])) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_auc_agrees_with_scikit_learn_where_all_classes_have_positives(seed):
    labels, p_NC = scores(seed=seed)
    assert area(labels, p_NC) == pytest.approx(sk.roc_auc_score(labels, p_NC, multi_class="ovr", average="macro"))
    assert area(labels, np.log(p_NC)) == pytest.approx(area(labels, p_NC))
    assert macro_auc(labels, p_NC).left_out == 0


def test_auc_leaves_out_classes_without_positives():
    labels, p_NC = scores()
    kept = labels != 2
    each = [sk.roc_auc_score(labels[kept] == c, p_NC[kept, c]) for c in (0, 1, 3)]
    found = macro_auc(labels[kept], p_NC[kept])
    assert found.value == pytest.approx(np.mean(each))
    assert found.left_out == 1


def test_where_there_is_no_curve_there_is_no_area():
    """Not that of a guess: a test set of one class says nothing of how classes are told apart."""
    labels, p_NC = scores()
    assert macro_auc(np.zeros(60, dtype=int), p_NC) == Area(None, 4)
    assert macro_auc(a(1), np.zeros((1, 2))) == Area(None, 2)
    assert macro_auc(labels, np.full((60, 4), np.nan)) == Area(None, 4)


def test_scores_that_are_no_numbers_leave_out_their_class_alone():
    labels, p_NC = scores()
    spoilt = p_NC.copy()
    spoilt[3, 1] = np.nan
    each = [sk.roc_auc_score(labels == c, p_NC[:, c]) for c in (0, 2, 3)]
    assert macro_auc(labels, spoilt) == Area(pytest.approx(np.mean(each)), 1)


def test_auc_takes_infinite_scores_in_their_order():
    scores_NC = np.array([[0.0, -np.inf], [-1.0, -2.0], [-3.0, 0.0]])
    assert area(a(0, 0, 1), scores_NC) == 1


@pytest.mark.parametrize("labels", [a(0, 4, 1), a(0, 1), a()])
def test_auc_refuses_scores_that_do_not_fit(labels):
    with pytest.raises(ValueError, match="a row for each label, a column for each class"):
        macro_auc(labels, np.zeros((3, 4)))


def test_pooled_is_over_samples_and_the_mean_over_clients():
    judged = {"a": (a(0, 0, 0, 1), a(0, 0, 0, 0)), "b": (a(1), a(1))}
    over = over_clients(accuracy, judged)
    assert over.by_client == {"a": 0.75, "b": 1.0}
    assert (over.pooled, over.mean) == (0.8, 0.875)
    assert over_clients(macro_f1, judged).by_client["b"] == 1
    with pytest.raises(ValueError, match="at least one client"):
        over_clients(accuracy, {})


def test_pooled_auc_is_of_all_scores_together():
    labels, p_NC = scores()
    over = over_clients(area, {"a": (labels[:20], p_NC[:20]), "b": (labels[20:], p_NC[20:])})
    assert over.pooled == area(labels, p_NC)
    assert over.by_client["a"] == area(labels[:20], p_NC[:20])
    assert over.left_out == 0


def test_a_client_of_one_class_has_no_auc_and_no_part_in_the_mean():
    labels, p_NC = scores()
    one = labels == 2
    over = over_clients(area, {"a": (labels, p_NC), "one class": (labels[one], p_NC[one])})
    assert over.by_client == {"a": area(labels, p_NC), "one class": None}
    assert (over.mean, over.left_out) == (area(labels, p_NC), 1)
    none = over_clients(area, {"one class": (labels[one], p_NC[one])})
    assert (none.pooled, none.mean, none.left_out) == (None, None, 1)


@pytest.mark.parametrize("name", METRICS)
@given(values=two(st.floats(allow_nan=True, allow_infinity=True), np.float64))
@example(values=(a(1e308, 1.7e308, -1.7e308), a(1e308, 1.7e308, 1e308)))
@example(values=(a(5e-324, 0.0), a(0.0, 5e-324)))
@example(values=(a(1.0, 1.0 + 2e-16), a(3.0, 3.0)))
@settings(max_examples=60, deadline=None)
def test_a_metric_is_always_a_number(name, values):
    labels, guesses = values
    labels = np.nan_to_num(labels)  # labels are checked when they are read
    if name not in OF_SCORES:
        labels, guesses = (np.nan_to_num(x).clip(0, 3).astype(int) for x in (labels, guesses))
    assert -1 <= METRICS[name](labels, guesses) <= 1
