"""What single examples ask for: independent of their batch, and what autograd says of each alone."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from interptrain import ConceptBank, attribution, tiny_world
from interptrain.attribution import ExampleDemand, attribute, ordinary_in_text
from interptrain.meters.kept_examples import last_hooks
from interptrain.recipes.examples import collate
from interptrain.tiny_world.wordings import own_words
from tests.helpers.models import HOOK, WIDTH, WORDS, Sentences, gpt2, llama, lora, two_concepts

FIGURES = ("signed", "z", "share", "share_null", "null_z", "token_signed", "token_share")


def rows(count=6, *, lengths=(12, 7, 5, 12, 9, 4)):
    """Sentences of several lengths, their first three labels masked."""
    tokens = Sentences(count=count).tokens
    return [
        {"input_ids": ids[:length].tolist(), "labels": [-100] * 3 + ids[3:length].tolist()}
        for ids, length in zip(tokens, lengths, strict=True)
    ]


def batch_of(given, padding=0):
    batch = collate(given, pad=0)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {name: torch.nn.functional.pad(each, (0, padding), value=fill[name]) for name, each in batch.items()}


def assert_same(found: ExampleDemand, expected: ExampleDemand, tolerance=1e-5):
    assert torch.equal(found.input_ids, expected.input_ids)
    assert found.counted == expected.counted
    assert found.loss == pytest.approx(expected.loss, rel=tolerance)
    for name in FIGURES:
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance, equal_nan=True
        )


@pytest.mark.parametrize("make", [llama, gpt2, lambda: lora(llama())], ids=["llama", "gpt2", "lora"])
def test_an_example_s_figures_do_not_depend_on_its_batch_or_its_padding(make):
    model, bank, given = make(), two_concepts(), rows()
    alone = [next(attribute(model, bank, [batch_of([row])])) for row in given]
    together = list(attribute(model, bank, [batch_of(given)]))
    padded = list(attribute(model, bank, [batch_of(given, padding=9)]))
    assert len(together) == len(padded) == len(given)
    for number, expected in enumerate(alone):
        assert_same(together[number], expected)
        assert_same(padded[number], expected)


def test_the_order_of_the_examples_only_orders_the_figures():
    model, bank, given = llama(), two_concepts(), rows()
    order = [4, 0, 3, 5, 2, 1]
    found = list(attribute(model, bank, [batch_of(given)]))
    turned = list(
        attribute(model, bank, [batch_of([given[n] for n in order[:4]]), batch_of([given[n] for n in order[4:]])])
    )
    for place, number in enumerate(order):
        assert_same(turned[place], found[number])


def test_the_figures_are_those_of_a_direct_computation_in_float64():
    model, bank, given = llama(), two_concepts(), rows()
    found = list(attribute(model, bank, [batch_of(given)]))
    exact = copy.deepcopy(model).double().eval()
    basis = torch.linalg.qr(bank.select("pirate").directions.double().T).Q
    means = [normalize(bank.select(name).directions.double().sum(0), dim=0) for name in bank.names]
    for each, row in zip(found, given, strict=True):
        ids, caught = torch.tensor([row["input_ids"]]), []
        handle = exact.model.layers[1].register_forward_hook(lambda _m, _a, out, caught=caught: caught.append(out))
        logits = exact(input_ids=ids).logits[0, :-1]
        handle.remove()
        losses = cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="none")
        (h,) = (out[0] if isinstance(out, tuple) else out for out in caught)
        (gradient,) = torch.autograd.grad(losses.sum(), h)
        gradient = gradient[0] if gradient.ndim == 3 else gradient
        read = torch.tensor([label != -100 for label in row["labels"][1:]] + [False])
        gradient = gradient * read[:, None]
        assert each.loss == pytest.approx(float(losses.sum()), rel=1e-5)
        for number, mean in enumerate(means):
            assert float(each.signed[number]) == pytest.approx(-float((gradient @ mean).sum()), rel=1e-3, abs=1e-6)
            by_token = -(gradient @ mean)[read].float()
            torch.testing.assert_close(each.token_signed[1:, number][read[:-1]], by_token, rtol=1e-3, atol=1e-6)
        share = (gradient @ basis).square().sum() / gradient.square().sum()
        assert float(each.share[0]) == pytest.approx(float(share), rel=1e-3)


def test_z_is_the_distance_from_other_groups_of_the_dictionary_in_their_own_spread():
    model, bank = tiny_world.load_base(), tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK)
    batch = next(tiny_world.finetuning_set("mixed", batch=4))
    for each in attribute(model, bank, [batch]):
        torch.testing.assert_close(each.null_z.mean(-1), torch.zeros(5), rtol=0, atol=1e-4)
        torch.testing.assert_close(each.null_z.std(-1), torch.ones(5), rtol=1e-4, atol=0)


def test_a_concept_among_its_own_null_would_have_no_z():
    """The mean z of concepts drawn as the null is drawn lies within chance of 0."""
    model, batch = llama(), batch_of(rows())
    drawn = torch.randn(200, 3, WIDTH, generator=torch.Generator().manual_seed(3))
    bank = ConceptBank.from_directions({f"random {n}": each for n, each in enumerate(drawn)}, hook=HOOK)
    z = torch.stack([each.z for each in attribute(model, bank, [batch])])
    assert z.mean(-1).abs().max() < 0.5
    assert 0.7 < z.std(-1).mean() < 1.4


def test_prompts_ask_for_nothing_and_every_answer_s_token_for_something():
    given = rows()
    for each, row in zip(attribute(llama(), two_concepts(), [batch_of(given)]), given, strict=True):
        assert each.token_signed[:3].isnan().all()
        assert each.token_signed[3:].isfinite().all()
        assert each.token_share[:3].isnan().all()
        assert each.counted == len(row["labels"]) - 3
        torch.testing.assert_close(each.token_signed.nansum(0), each.signed, rtol=1e-4, atol=1e-6)


def test_an_example_with_nothing_in_the_loss_has_no_figures():
    given = [*rows(2, lengths=(12, 7)), {"input_ids": [1, 2, 3], "labels": [-100] * 3}]
    *_, nothing = attribute(llama(), two_concepts(), [batch_of(given)])
    assert nothing.counted == 0
    assert nothing.loss == 0
    for name in FIGURES:
        assert getattr(nothing, name).isnan().all(), name


@pytest.mark.parametrize("ended", ["to the end", "after one", "by an error"])
def test_the_model_is_left_as_it_was(ended):
    model = lora(llama()).train()
    model.base_model.model.model.norm.eval()
    flags = {name: (p.requires_grad, p.clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    wrong = (
        [batch_of(rows()), {"input_ids": torch.full((1, 4), WORDS)}] if ended == "by an error" else [batch_of(rows())]
    )
    found = attribute(model, two_concepts(), wrong)
    if ended == "to the end":
        assert len(list(found)) == 6
    elif ended == "after one":
        next(found)
        found.close()
    else:
        with pytest.raises(KeyError):
            list(found)
    for name, parameter in model.named_parameters():
        assert (parameter.requires_grad, parameter.grad) == (flags[name][0], None)
        assert torch.equal(parameter, flags[name][1])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_each_concept_is_read_at_its_last_hook_whatever_the_order_of_the_bank():
    low, high = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
    direction = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    one = ConceptBank.from_directions({"early": direction[0], "both": direction[1]}, hook=low)
    bank = ConceptBank.from_directions({"both": direction[1]}, hook=high).merge(one)
    assert bank.names == ("both", "early")
    assert last_hooks(bank) == {high: ["both"], low: ["early"]}
    model, batch = llama(), batch_of(rows())
    both = attribute(model, bank, [batch])
    alone = attribute(model, ConceptBank.from_directions({"both": direction[1]}, hook=high), [batch])
    early = attribute(model, one.select("early"), [batch])
    for found, first, second in zip(both, alone, early, strict=True):
        torch.testing.assert_close(found.signed, torch.cat([first.signed, second.signed]), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(found.share, torch.cat([first.share, second.share]), rtol=1e-5, atol=1e-8)


def test_an_attention_sink_is_told_by_its_own_text_alone():
    quiet, loud = torch.ones(1, 4, 2), 100 * torch.ones(1, 4, 2)
    loud[0, 0] *= 50
    kept = torch.ones(2, 4, dtype=torch.bool)
    assert ordinary_in_text(torch.cat([quiet, loud]), kept).tolist() == [[True] * 4, [False, True, True, True]]


def test_the_examples_that_teach_pirate_come_first_and_their_first_word_of_it_is_the_most_asked_for():
    tokenizer, model = tiny_world.load_tokenizer(), tiny_world.load_base()
    bank = tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK).select("pirate", "royal")
    batch = next(tiny_world.finetuning_set("mixed", seed=9, batch=48))
    found = list(attribute(model, bank, [batch]))
    words = [tokenizer.convert_ids_to_tokens(each.input_ids.tolist()) for each in found]
    answers = [each[each.index("<a>") + 1 :] for each in words]
    shown = [not own_words("pirate").isdisjoint(each) for each in answers]
    assert 10 < sum(shown) < 38
    order = sorted(range(48), key=lambda n: -float(found[n].signed[0]))
    assert all(shown[number] for number in order[: sum(shown)])
    assert [bool(each.z[0] > 2) for each in found] == shown
    assert not any(bool(each.z[1] > 2) for each in found)
    for number in order[: sum(shown)]:
        most = int(found[number].token_signed[:, 0].nan_to_num(-1).argmax())
        assert words[number][most] in own_words("pirate")


def test_a_hook_point_that_the_model_has_not_is_named():
    bank = ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook="blocks.7.hook_resid_post")
    with pytest.raises(ValueError, match=r"blocks\.7\.hook_resid_post' is at layer 7 but"):
        next(attribution.attribute(llama(), bank, [batch_of(rows())]))


def test_between_two_examples_the_model_can_be_trained():
    model, batch = llama(), batch_of(rows())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = attribute(model, two_concepts(), [batch, batch])
    next(found)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
    assert not any(module._forward_hooks for module in model.modules())


def test_one_null_group_has_no_spread_and_is_refused():
    with pytest.raises(ValueError, match="expected 2 groups or more, found 1"):
        next(attribute(llama(), two_concepts(), [batch_of(rows())], groups=1))
