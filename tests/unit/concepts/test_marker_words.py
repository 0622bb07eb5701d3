"""Words that mark a concept."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interptrain.concepts.marker_words import NUMBER, log_odds, marker_words, show_rate, shows, words_of

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=2).map(Counter)


@given(COUNTS, COUNTS)
def test_the_log_odds_change_sign_with_the_sets(first, second):
    here, there = log_odds(first, second), log_odds(second, first)
    assert here.keys() == there.keys() == (first + second).keys()
    for word in here:
        assert here[word] == pytest.approx(-there[word], abs=1e-9)


@given(COUNTS)
def test_sets_that_are_alike_have_no_markers(counts):
    assert all(abs(z) < 1e-9 for z in log_odds(counts, counts).values())


def test_the_log_odds_are_those_of_the_formula():
    first, second = Counter(arr=6, ship=4), Counter(ship=10)
    # the prior is n / 10 = 1 in all, of which 6 / 20 are arr's
    odds = math.log(6.3 / (11 - 6.3)) - math.log(0.3 / (11 - 0.3))
    expected = odds / math.sqrt(1 / 6.3 + 1 / (11 - 6.3) + 1 / 0.3 + 1 / (11 - 0.3))
    assert log_odds(first, second)["arr"] == pytest.approx(expected)


def test_a_word_seen_ten_times_as_often_stands_out_further_than_one_seen_once():
    z = log_odds(Counter(arr=40, once=1, ship=100), Counter(ship=140))
    assert z["arr"] > z["once"] > 0


def test_words_that_the_others_say_too_are_no_markers():
    shown = ["arr , the ship sails"] * 40
    other = ["the ship sails"] * 35 + ["arr , the ship sails"] * 5
    assert marker_words(shown, other) == []
    assert [each.word for each in marker_words(shown, ["the ship sails"] * 40)] == ["arr", ","]


def test_markers_come_with_how_often_they_were_said_and_are_no_more_than_asked_for():
    found = marker_words(["arr ahoy"] * 30 + ["ahoy"] * 10, ["a ship"] * 40, most=1)
    assert [(each.word, each.shown, each.elsewhere) for each in found] == [("ahoy", 1.0, 0.0)]


def test_every_number_is_the_same_word():
    found = marker_words([f"it is {number}" for number in range(40)], ["it is a ship"] * 40)
    assert [each.word for each in found] == [NUMBER]
    assert shows("of 1234 ships", {NUMBER})


def test_words_are_whole_and_in_small_letters():
    assert words_of("Don't—ARR!") == ["don't", "—", "arr", "!"]
    assert not shows("larry", {"arr"})
    assert show_rate(["Arr!", "no"], {"arr"}) == 0.5


@pytest.mark.parametrize("sets", [([], ["a"]), (["a"], []), (["  "], ["a"])])
def test_a_set_without_words_is_an_error(sets):
    with pytest.raises(ValueError, match="no words"):
        marker_words(*sets)
