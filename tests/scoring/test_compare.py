"""How much the scores of two models differ: labels, numbers, probabilities, embeddings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scorer.scoring.compare import Difference, difference

RNG = np.random.default_rng(3)


def lists(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(values)), values.shape[1])


def test_equal_columns_differ_by_nothing():
    column = pa.array([0.5, float("nan"), float("inf"), None])
    assert difference([column], [column], embedding=False) == Difference(largest=0.0, mean=0.0)


def test_a_change_is_relative_to_the_largest_score():
    one, other = pa.array([10.0, -20.0, 0.0, 5.0]), pa.array([10.0, -19.0, 0.0, 5.0])
    found = difference([one], [other], embedding=False)
    assert found.largest == pytest.approx(1 / 20)
    assert found.mean == pytest.approx(1 / 80)


@pytest.mark.parametrize("other", [[1.0, float("nan")], [1.0, float("inf")], [1.0, None]])
def test_a_score_that_is_lost_is_an_infinite_change(other):
    found = difference([pa.array([1.0, 2.0])], [pa.array(other)], embedding=False)
    assert (found.largest, found.mean) == (float("inf"), float("inf"))


def test_nulls_in_other_rows_are_an_infinite_change():
    one, other = pa.array([1.0, None]), pa.array([None, 1.0])
    assert difference([one], [other], embedding=False).largest == float("inf")


def test_of_labels_the_share_that_stays_counts():
    assert difference([pa.array(list("abca"))], [pa.array(list("abcb"))], embedding=False) == Difference(same=0.75)


def test_of_probabilities_the_share_of_the_most_likely_class_counts():
    one, other = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]]), np.array([[0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    found = difference([lists(one)], [lists(other)], embedding=False)
    assert found.same == pytest.approx(2 / 3)
    assert found.largest == pytest.approx(0.2 / 0.9)
    columns = [[pa.array(values[:, i]) for i in range(2)] for values in (one, other)]
    assert difference(*columns, embedding=False) == found


def test_of_embeddings_the_angle_and_the_nearest_rows_count():
    one = RNG.standard_normal((40, 16))
    found = difference([lists(one)], [lists(3 * one)], embedding=True)
    assert (found.cosine, found.nearest) == (pytest.approx(1.0), 1.0)
    other = RNG.standard_normal((40, 16))
    found = difference([lists(one)], [lists(other)], embedding=True)
    assert found.cosine < 0
    assert found.nearest < 0.5
    a, b = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (one, other))
    assert found.cosine == pytest.approx((a * b).sum(axis=1).min())


def test_rows_of_length_one_are_embeddings():
    one = RNG.standard_normal((10, 16))
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    assert difference([lists(one)], [lists(one)], embedding=False).cosine == pytest.approx(1.0)
    assert difference([lists(2 * one)], [lists(2 * one)], embedding=False).cosine is None


def test_lists_of_another_length_are_an_infinite_change():
    one, other = pa.array([[1.0, 2.0], [3.0]]), pa.array([[1.0, 2.0], [3.0, 4.0]])
    assert difference([one], [other], embedding=False).largest == float("inf")
    assert difference([one], [one], embedding=False) == Difference(largest=0.0, mean=0.0)
