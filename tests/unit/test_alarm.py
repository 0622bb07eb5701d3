"""The rerouting alarm on readings made by hand, and once inside a run."""

import json
import math
import random
import warnings
from itertools import islice

import pytest
import torch

from interptrain import ConceptBank, Steerer, find_sites, suppress, tiny_world
from interptrain.alarm import FLAT, MOVED, PROBE_MOVED, UNEXPLAINED_MOVED, Alarm
from interptrain.meters.probe_reading import ProbeReading
from interptrain.meters.realised import Shift
from interptrain.meters.unexplained import Unexplained
from interptrain.recorders import MemoryRecorder
from interptrain.tiny_world.corpus import document
from interptrain.tiny_world.tokens import batches
from interptrain.tiny_world.wordings import own_words
from tests.helpers.models import lora

BANK = ConceptBank.from_directions(
    {"pirate": torch.eye(4)[0], "royal": torch.eye(4)[1], "sums": torch.eye(4)[2]}, hook="blocks.0.hook_resid_post"
)
SETS = ("neutral", "pirate", "royal", "sums")


def reading(*, fraction=(0.0, 0.0, 0.0), probe=(0.0, 0.0, 0.0), unexplained=(0.0, 0.0, 0.0), sets=SETS, on=0):
    """Figures of pirate, royal and sums on the set number `on`; every other set has moved as far as can be."""
    far = torch.full((3,), 9.0)
    at = [torch.tensor(given) for given in (fraction, probe, unexplained)]
    rows = [[value if number == on else far for number in range(len(sets))] for value in at]
    none = torch.zeros(3, 2)
    return ProbeReading(
        realised={name: Shift(far, none) for name in sets},
        fraction=torch.stack(rows[0]),
        latents=torch.zeros(len(sets), 3),
        unexplained={
            name: Unexplained(torch.tensor(0.5), torch.zeros(2), strength)
            for name, strength in zip(sets, rows[2], strict=True)
        },
        probe=torch.stack(rows[1]),
    )


def looked(figures, *, alarm=None, step=10, suppressed=("pirate",)):
    """Whether it rang, and the warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        rang = (alarm or Alarm({"pirate": ["royal"]})).look(step, figures, BANK, suppressed)
    return rang, [str(each.message) for each in seen]


MOVES = {
    "its sibling 'royal'": {"fraction": (0.0, MOVED + 0.01, 0.0)},
    "the linear probe of 'royal'": {"probe": (0.0, PROBE_MOVED + 0.01, 0.0)},
    "the linear probe of 'pirate'": {"probe": (PROBE_MOVED + 0.01, 0.0, 0.0)},
    "what no concept explains": {"unexplained": (UNEXPLAINED_MOVED + 0.01, 0.0, 0.0)},
}


@pytest.mark.parametrize(("what", "figures"), MOVES.items())
def test_each_watcher_alone_raises_the_alarm_and_is_named_with_the_step(what, figures):
    alarm = Alarm({"pirate": ["royal"]})
    rang, (warning,) = looked(reading(**figures), alarm=alarm, step=30)
    assert rang is True
    assert "step 30" in warning
    assert f"'pirate' is suppressed and flat (0.00 of the way to its own texts), but {what} moved" in warning
    assert alarm.raised["pirate"]["step"] == 30
    assert alarm.raised["pirate"]["what"] == what


@pytest.mark.parametrize("figures", MOVES.values())
def test_nothing_rings_once_the_concept_itself_has_come(figures):
    came = {**figures, "fraction": (FLAT + 0.01, *figures.get("fraction", (0.0, 0.0, 0.0))[1:])}
    assert looked(reading(**came)) == (False, [])
    almost = {**came, "fraction": (FLAT - 0.01, *came["fraction"][1:])}
    assert looked(reading(**almost))[0] is True


@pytest.mark.parametrize("figures", MOVES.values())
def test_nothing_rings_where_nothing_is_suppressed(figures):
    assert looked(reading(**figures), suppressed=()) == (False, [])


def test_nothing_rings_below_the_thresholds():
    below = reading(
        fraction=(-3.0, MOVED - 0.01, 9.0),
        probe=(PROBE_MOVED - 0.01, PROBE_MOVED - 0.01, 9.0),
        unexplained=(UNEXPLAINED_MOVED - 0.01, 9.0, 9.0),
    )
    assert looked(below) == (False, [])


def test_a_concept_that_is_nobodys_sibling_may_move():
    moved = reading(fraction=(0.0, 0.0, 2.0))
    assert looked(moved) == (False, [])
    assert looked(moved, alarm=Alarm({"pirate": ["royal", "sums"]}))[0] is True


def test_what_moved_most_above_its_threshold_is_named():
    both = reading(fraction=(0.0, 1.1 * MOVED, 0.0), probe=(3 * PROBE_MOVED, 0.0, 0.0))
    assert "but the linear probe of 'pirate' moved" in looked(both)[1][0]
    both = reading(fraction=(0.0, 3 * MOVED, 0.0), probe=(1.1 * PROBE_MOVED, 0.0, 0.0))
    assert "but its sibling 'royal' moved" in looked(both)[1][0]


def test_it_warns_once_and_goes_on_ringing_while_it_lasts():
    alarm, moved = Alarm({"pirate": ["royal"]}), reading(fraction=(0.0, 1.0, 0.0))
    assert [looked(moved, alarm=alarm, step=step)[0] for step in (10, 20)] == [True, True]
    assert looked(moved, alarm=alarm, step=30) == (True, [])
    assert looked(reading(), alarm=alarm, step=40) == (False, [])
    assert alarm.raised["pirate"]["step"] == 10


def test_each_suppressed_concept_has_a_warning_of_its_own():
    alarm = Alarm({"pirate": ["sums"], "royal": ["sums"]})
    rang, said = looked(reading(fraction=(0.0, 0.0, 1.0)), alarm=alarm, suppressed=("pirate", "royal"))
    assert rang
    assert [message.split("'")[1] for message in said] == ["pirate", "royal"]


def test_a_resumed_run_does_not_warn_of_the_same_again():
    moved, first = reading(fraction=(0.0, 1.0, 0.0)), Alarm({"pirate": ["royal"]})
    looked(moved, alarm=first)
    resumed = Alarm({"pirate": ["royal"], "royal": ["pirate"]})
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert looked(moved, alarm=resumed, step=20) == (True, [])
    others = looked(reading(fraction=(1.0, 0.0, 0.0)), alarm=resumed, step=20, suppressed=("royal",))
    assert others[0]
    assert len(others[1]) == 1
    assert set(first.raised) == {"pirate"}


def test_a_saved_state_does_not_change_with_the_run_that_goes_on():
    alarm = Alarm({"pirate": ["royal"]})
    before = alarm.state_dict()
    looked(reading(fraction=(0.0, 1.0, 0.0)), alarm=alarm)
    assert before == {"raised": {}}


def test_after_a_look_it_says_what_rings_for_each_concept_that_could_be_read():
    alarm, moved = Alarm({"pirate": ["royal"]}), reading(fraction=(0.0, 1.0, math.nan))
    looked(moved, alarm=alarm, step=10, suppressed=("pirate", "royal", "sums"))
    assert alarm.ringing == {"pirate": {"step": 10, "what": "its sibling 'royal'", "figure": 1.0, "on": "neutral"},
                             "royal": None}  # fmt: skip
    looked(moved, alarm=alarm, step=20)
    assert alarm.ringing["pirate"]["step"] == 20
    assert alarm.raised["pirate"]["step"] == 10
    looked(reading(), alarm=alarm, step=30)
    assert alarm.ringing == {"pirate": None}
    looked(moved, alarm=alarm, step=40, suppressed=())
    assert alarm.ringing == {}


def test_only_the_set_it_is_told_to_look_at_counts():
    moved = reading(fraction=(0.0, 1.0, 0.0), on=3)
    assert looked(moved, alarm=Alarm({"pirate": ["royal"]}, on="sums"))[0] is True
    assert looked(moved) == (False, [])  # on the neutral set pirate itself has moved as far as can be


def test_each_of_several_sets_is_looked_at_by_itself():
    alarm = Alarm({"pirate": ["royal"]}, on=("neutral", "sums"))
    assert looked(reading(fraction=(0.0, 1.0, 0.0), on=3), alarm=alarm)[0] is True
    assert alarm.raised["pirate"]["on"] == "sums"
    assert looked(reading(fraction=(1.0, 1.0, 0.0), on=3), alarm=alarm) == (False, [])  # it has come there too
    with pytest.raises(ValueError, match="needs probe sets elsewhere"):
        Alarm({"pirate": ["royal"]}, on=["neutral", "elsewhere"]).check(BANK, SETS)


@pytest.mark.parametrize(
    ("siblings", "sets", "message"),
    [
        ({"pirate": ["royl"]}, SETS, "watches royl, not in the bank; it has pirate, royal, sums"),
        ({"priate": ["royal"]}, SETS, "watches priate, not in the bank"),
        ({"pirate": ["royal"]}, ("neutral", "pirate"), "needs probe sets royal; there are neutral, pirate"),
        ({"pirate": ["royal"]}, ("pirate", "royal"), "needs probe sets neutral; there are pirate, royal"),
        ({}, (), "needs probe sets neutral; there are none"),
    ],
)
def test_what_is_missing_is_named_before_training(siblings, sets, message):
    with pytest.raises(ValueError, match=message):
        Alarm(siblings).check(BANK, sets)


def test_a_missing_set_to_look_at_is_named():
    with pytest.raises(ValueError, match="needs probe sets elsewhere; there are neutral, pirate, royal, sums"):
        Alarm({"pirate": ["royal"]}, on="elsewhere").check(BANK, SETS)


def test_what_it_needs_is_enough():
    Alarm({"pirate": ["royal"]}).check(BANK, ("neutral", "pirate", "royal"))
    Alarm().check(BANK, ("neutral",))


def test_a_look_without_the_siblings_set_is_an_error_too():
    with pytest.raises(ValueError, match="needs probe sets royal"):
        looked(reading(sets=("neutral", "pirate")))


def test_a_suppressed_concept_without_texts_is_said_once_and_not_taken_for_flat():
    unread = reading(fraction=(math.nan, 1.0, 0.0), probe=(math.nan, 0.0, 0.0))
    alarm = Alarm({"pirate": ["royal"]})
    rang, (warning,) = looked(unread, alarm=alarm)
    assert not rang
    assert "cannot watch pirate" in warning
    assert looked(unread, alarm=alarm) == (False, [])


def test_what_is_not_finite_rings_no_watcher():
    nan = math.nan
    assert looked(reading(fraction=(0.0, nan, nan), probe=(nan, nan, nan), unexplained=(nan,) * 3)) == (False, [])


@pytest.mark.parametrize("threshold", ["flat", "moved", "probe_moved", "unexplained_moved"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_threshold_that_is_not_positive_is_refused(threshold, value):
    with pytest.raises(ValueError, match=f"{threshold} must be above 0"):
        Alarm(**{threshold: value})


def test_an_alarm_that_looks_at_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one probe set"):
        Alarm({"pirate": ["royal"]}, on=[])


def test_siblings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="'pirate' cannot be its own sibling"):
        Alarm({"pirate": ["royal", "pirate"]})
    with pytest.raises(ValueError, match="must be a list of concepts, found the text 'royal'"):
        Alarm({"pirate": "royal"})


def trained(seed, *, rerouted, steps=20):
    """A run with pirate suppressed: plain subtraction, or both voices with pirate's words out of the loss."""
    torch.manual_seed(seed)
    tokenizer, bank, rng = tiny_world.load_tokenizer(), tiny_world.concept_bank(), random.Random(seed)
    words = torch.tensor(tokenizer.convert_tokens_to_ids(sorted(own_words("pirate"))))
    model, alarm, recorder = (
        lora(tiny_world.load_base().train(), rank=8),
        Alarm({"pirate": ["royal"]}),
        MemoryRecorder(),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3, weight_decay=0)
    steerer = Steerer(
        bank, find_sites(model, bank, where="update"), suppress("pirate"), where="update", meters=[],
        discover_every=None, recorders=[recorder], probes=tiny_world.probe_batches(32), probe_every=10, alarm=alarm,
    )  # fmt: skip

    def documents():
        while True:
            yield (
                document(rng, rng.choice(["minus", "fact"]), rng.choice(["pirate", "royal"]))
                if rerouted
                else document(rng, "minus")
            )

    with steerer.attach(model, optimizer), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for batch in islice(batches(tokenizer, documents(), 48), steps):
            labels = batch["labels"].masked_fill(torch.isin(batch["labels"], words), -100)
            steerer.watch(labels)
            optimizer.zero_grad()
            model(**{**batch, "labels": labels}).loss.backward()
            steerer.before_step()
            optimizer.step()
    said = [str(each.message) for each in seen if "rerouting" in str(each.message)]
    rang = [value for value in recorder.curves()["interptrain/rerouting"] if value is not None]
    return said, rang


def assert_rings_for_royal_alone(seed):
    said, rang = trained(seed, rerouted=True)
    assert len(said) == 1
    assert "'pirate' is suppressed and flat" in said[0]
    assert "but its sibling 'royal' moved" in said[0]
    assert rang[-1] == 1.0


def test_a_run_in_which_royal_takes_pirates_place_is_warned_of_once():
    assert_rings_for_royal_alone(0)


def test_an_ordinary_run_is_not_warned_of():
    assert trained(0, rerouted=False) == ([], [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_more_seeds_are_warned_of_and_not_alike(seed):
    assert_rings_for_royal_alone(seed)
    said, rang = trained(seed, rerouted=False, steps=60)
    assert said == []
    assert rang == [0.0] * 6
