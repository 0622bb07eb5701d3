"""Inoculation prompts: the prefix is read, never learned, and everything else is as it was."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from interptrain.interventions import Intervention
from interptrain.interventions.inoculate import inoculate
from interptrain.meters.tokens import loss_positions
from tests.helpers.models import Sentences, llama

PREFIX = [21, 22, 23]
EXAMPLE = {"input_ids": [0, 5, 6, 7], "attention_mask": [1, 1, 1, 1], "labels": [-100, -100, 6, 7]}


def tensors(example):
    return {key: torch.tensor(value) for key, value in example.items()}


def alike(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("keep", [0, 1, 4])
@pytest.mark.parametrize("given", [PREFIX, tuple(PREFIX), torch.tensor(PREFIX)], ids=["list", "tuple", "tensor"])
def test_without_the_prefix_the_example_is_what_it_was(keep, given):
    found = inoculate(given, keep=keep)(EXAMPLE)
    inside = slice(keep, keep + len(PREFIX))
    assert found["input_ids"][inside] == PREFIX
    assert found["attention_mask"][inside] == [1] * len(PREFIX)
    assert found["labels"][inside] == [-100] * len(PREFIX)
    for values in found.values():
        del values[inside]
    assert found == EXAMPLE


@pytest.mark.parametrize("keep", [0, 1])
def test_lists_tensors_and_batches_come_to_the_same(keep):
    put, other = inoculate(PREFIX, keep=keep), {**EXAMPLE, "input_ids": [0, 9, 8, 7]}
    alike(put(tensors(EXAMPLE)), tensors(put(EXAMPLE)))
    batch = put(default_collate([tensors(EXAMPLE), tensors(other)]))
    alike(batch, default_collate([tensors(put(EXAMPLE)), tensors(put(other))]))


def test_what_was_given_is_left_alone():
    given = {key: list(value) for key, value in EXAMPLE.items()}
    inoculate(PREFIX)(given)
    assert given == EXAMPLE


@pytest.mark.parametrize("left_out", ["labels", "attention_mask"])
def test_keys_that_an_example_has_not_are_not_made(left_out):
    given = {key: value for key, value in EXAMPLE.items() if key != left_out}
    assert set(inoculate(PREFIX)(given)) == set(given)


def test_types_stay_as_they_are():
    given = {"input_ids": torch.tensor([1, 2], dtype=torch.int32), "attention_mask": torch.tensor([True, True])}
    found = inoculate(PREFIX)(given)
    assert found["input_ids"].dtype == torch.int32
    assert found["attention_mask"].dtype == torch.bool


def test_the_loss_is_of_the_same_tokens_given_the_prefix():
    model, batch = llama().eval(), next(iter(DataLoader(Sentences(), batch_size=8)))
    found = inoculate(PREFIX)(batch)
    assert loss_positions(found["labels"]).sum() == loss_positions(batch["labels"]).sum()
    ids = torch.cat([torch.tensor(PREFIX).expand(8, -1), batch["input_ids"]], dim=1)
    said = model(input_ids=ids).logits[:, len(PREFIX) - 1 : -1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(said, batch["labels"].flatten())
    torch.testing.assert_close(model(**found).loss, expected)
    assert not torch.isclose(model(**batch).loss, expected)


def test_left_padding_stays_in_front_and_says_nothing():
    model, short = llama().eval(), tensors(EXAMPLE)
    pad = {"input_ids": 3, "attention_mask": 0, "labels": -100}
    padded = {key: torch.cat([torch.full((2,), pad[key]), value]) for key, value in short.items()}
    long = {**tensors({key: value + value[:2] for key, value in EXAMPLE.items()})}
    batch = inoculate(PREFIX, keep=1)(default_collate([padded, long]))
    alone = inoculate(PREFIX, keep=1)(short)
    alike({key: value[0, 2:] for key, value in batch.items()}, alone)
    with torch.no_grad():
        together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, 2:]
        apart = model(input_ids=alone["input_ids"][None]).logits[0]
    torch.testing.assert_close(together, apart)


def test_only_the_chosen_examples_get_it():
    put = inoculate(PREFIX, where=lambda example: 5 in example["input_ids"])
    assert len(put(EXAMPLE)["input_ids"]) == 7
    assert put({"input_ids": [1, 2], "topic": "sums"}) == {"input_ids": [1, 2], "topic": "sums"}


def test_a_batch_cannot_be_chosen_from():
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match="picks single examples, found a batch"):
        inoculate(PREFIX, where=lambda _example: True)(batch)


@pytest.mark.parametrize("batched", [False, True])
def test_other_keys_of_the_same_length_are_refused_by_name_and_the_rest_goes_along(batched):
    given = tensors(EXAMPLE) | {"position_ids": torch.arange(4), "special_tokens_mask": torch.zeros(4), "topic": "sums"}
    if batched:
        given = default_collate([given, given])
    with pytest.raises(ValueError, match="position_ids, special_tokens_mask would be out of step"):
        inoculate(PREFIX)(given)
    del given["position_ids"], given["special_tokens_mask"]
    assert inoculate(PREFIX)(given)["topic"] == (["sums", "sums"] if batched else "sums")


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"labels has shape \[3\], and input_ids \[4\]"):
        inoculate(PREFIX)({**EXAMPLE, "labels": [1, 2, 3]})


def test_an_example_that_is_shorter_than_what_is_kept_is_refused():
    with pytest.raises(ValueError, match="keeps 5 leading tokens, but an example has only 4"):
        inoculate(PREFIX, keep=5)(EXAMPLE)


def test_lists_of_lists_are_refused():
    with pytest.raises(TypeError, match="without batched=True"):
        inoculate(PREFIX)({"input_ids": [[1, 2], [3]]})


def test_what_is_no_row_of_tokens_is_refused():
    with pytest.raises(TypeError, match=r"a list of ids, or a tensor \[token\] or \[batch, token\]; found 'words'"):
        inoculate(PREFIX)({"input_ids": "words"})


@pytest.mark.parametrize(("prefix", "keep"), [([], 0), ([3, -1], 0), ([3], -1)])
def test_a_prefix_without_tokens_negative_ids_and_a_negative_keep_are_refused(prefix, keep):
    with pytest.raises(ValueError, match="found"):
        inoculate(prefix, keep=keep)


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_prefix_in_words_is_refused_with_what_makes_ids_of_it():
    with pytest.raises(TypeError, match=r"found 'Y' in a str; tokenizer\(text, add_special_tokens=False\)"):
        inoculate("Yarr")


def test_it_can_be_sent_to_the_workers_of_a_data_set_and_is_no_intervention():
    put = inoculate(PREFIX, keep=1)
    assert pickle.loads(pickle.dumps(put)) == put
    assert not isinstance(put, Intervention)
