"""Which words say a concept: an integral of the signed demand, of each text alone, and a voice's words above others."""

import copy
from itertools import islice

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from interptrain import ConceptBank, tiny_world
from interptrain.attribution_said import LENGTH, median_norms, said
from interptrain.concepts.contrast import auc, collect, difference_of_means
from interptrain.sites.hooks import HookPoint
from interptrain.tiny_world.concepts import CONTRASTS, draw
from interptrain.tiny_world.corpus import finetuning_documents
from interptrain.tiny_world.sae import HOOK as MIDDLE
from interptrain.tiny_world.tokens import encode
from interptrain.tiny_world.wordings import own_words
from tests.helpers.models import HOOK, WIDTH, gpt2, llama, lora, two_concepts
from tests.unit.test_attribution import batch_of, rows

POINTS = 81  # of the integral


def assert_same(found, expected, tolerance=2e-5):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("make", [llama, gpt2, lambda: lora(llama())], ids=["llama", "gpt2", "lora"])
def test_an_example_s_figures_do_not_depend_on_its_batch_or_its_padding(make):
    model, bank, given = make(), two_concepts(), rows()
    alone = [next(said(model, bank, [batch_of([row])])) for row in given]
    order = [4, 0, 3, 5, 2, 1]
    turned = said(
        model, bank, [batch_of([given[n] for n in order[:4]], padding=9), batch_of([given[n] for n in order[4:]])]
    )
    for number, found in zip(order, turned, strict=True):
        assert_same(found, alone[number])


def test_figures_stand_at_the_labels_in_the_loss_and_nowhere_else():
    given = [*rows(3, lengths=(12, 7, 5)), {"input_ids": [1, 2, 3], "labels": [-100] * 3}]
    for found, row in zip(said(llama(), two_concepts(), [batch_of(given)]), given, strict=True):
        assert found.shape == (len(row["input_ids"]), 2)
        labelled = torch.tensor(row["labels"]) != -100
        assert torch.equal(found.isfinite(), labelled[:, None].expand(-1, 2))


def test_the_figure_is_the_signed_demand_of_the_token_s_own_loss_integrated_along_the_concept():
    """In float64, by the trapezoidal rule; `-sum_s m . dl_t/dh_s` is what autograd gives for a step along m."""
    model, bank, row = llama().double(), two_concepts(), rows()[0]
    ids, target = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
    mean = normalize(bank.select("pirate").directions.double().sum(0), dim=0)
    caught = []
    with HookPoint.parse(HOOK).listen(model, caught.append), torch.no_grad():
        model(input_ids=ids)
    far = LENGTH * float(median_norms(caught[0], torch.ones_like(ids).bool()))
    asked = []
    for step in torch.linspace(-far, far, POINTS, dtype=torch.float64):
        along = step.clone().requires_grad_()
        handle = HookPoint.parse(HOOK).edit(model, lambda h, along=along: h + along * mean)
        losses = cross_entropy(model(input_ids=ids).logits[0, :-1], target[1:], reduction="none")
        handle.remove()
        asked.append(torch.stack([-torch.autograd.grad(each, along, retain_graph=True)[0] for each in losses]))
    integral = torch.trapezoid(torch.stack(asked, -1), dx=2 * far / (POINTS - 1))
    found = next(said(model, bank, [batch_of([row])]))[:, bank.names.index("pirate")]
    kept = target[1:] != -100
    assert integral[kept].abs().max() > 1e-3
    torch.testing.assert_close(found[1:][kept].double(), integral[kept], rtol=1e-3, atol=1e-5)


def test_the_opposite_direction_says_the_opposite_and_no_length_says_nothing():
    model, batch = llama(), batch_of(rows())
    ahead = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    bank = ConceptBank.from_directions({"ahead": ahead, "back": -ahead}, hook=HOOK)
    for found in said(model, bank, [batch]):
        assert torch.equal(found[3:, 0], -found[3:, 1])
        assert found[3:].abs().max() > 1e-3
    for found in said(model, bank, [batch], length=0.0):
        assert torch.equal(found[3:], torch.zeros_like(found[3:]))


def test_each_concept_is_added_at_its_last_hook_whatever_the_order_of_the_bank():
    low, high = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
    direction = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    early = ConceptBank.from_directions({"early": direction[0], "both": direction[1]}, hook=low)
    late = ConceptBank.from_directions({"both": direction[1]}, hook=high)
    model, batch = llama(), batch_of(rows())
    both = said(model, late.merge(early), [batch])
    for found, first, second in zip(
        both, said(model, late, [batch]), said(model, early.select("early"), [batch]), strict=True
    ):
        assert_same(found, torch.cat([first, second], -1))


@pytest.mark.parametrize("ended", ["to the end", "after one", "by an error"])
def test_the_model_is_left_as_it_was(ended):
    model = lora(llama()).train()
    model.base_model.model.model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    found = said(model, two_concepts(), [batch_of(rows())] + [{}] * (ended == "by an error"))
    if ended == "to the end":
        assert len(list(found)) == 6
    elif ended == "after one":
        next(found)
        found.close()
    else:
        with pytest.raises(KeyError):
            list(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_the_words_of_a_voice_are_marked_along_its_own_direction_alone():
    model, tokenizer = tiny_world.load_base(), tiny_world.load_tokenizer()
    directions = {
        name: difference_of_means(
            *(
                collect(model, MIDDLE, [encode(tokenizer, draw(each, "search", 3, count=64))])
                for each in CONTRASTS[name]
            )
        )
        for name in ("pirate", "royal")
    }
    bank = ConceptBank.from_directions(directions, hook=MIDDLE)
    batch = encode(tokenizer, list(islice(finetuning_documents("mixed", 3), 64)))
    found = torch.cat(list(said(model, bank, [batch])))
    own = torch.tensor(tokenizer.convert_tokens_to_ids(sorted(own_words("pirate"))))
    mine = torch.isin(batch["input_ids"][batch["attention_mask"].bool()], own)
    read = found[:, 0].isfinite()
    pirate, royal = auc(found[read & mine], found[read & ~mine]).tolist()
    assert pirate > 0.85
    assert royal < 0.6


def test_a_hook_point_that_the_model_has_not_is_named():
    bank = ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook="blocks.7.hook_resid_post")
    with pytest.raises(ValueError, match=r"blocks\.7\.hook_resid_post' is at layer 7 but"):
        next(said(llama(), bank, [batch_of(rows())]))
