"""A prompt whose places are filled: the stream changes there by what was given, and nothing else is touched."""

import pytest
import torch

from interptrain import tiny_world
from interptrain.concepts.injection import Asked, last_token, likelihood, placeholder, say
from interptrain.sites.hooks import HookPoint
from tests.helpers.models import gpt2, llama
from tests.unit.sites.families import CONFIGS, model_of

IDS, PLACES, HOOK = torch.tensor([3, 7, 5, 7, 9, 2]), (1, 3), "blocks.1.hook_resid_pre"
NEVER = 10**6  # ends no text


def asked(**options):
    return Asked(IDS, PLACES, **({"hook": HOOK} | options))


def vectors(rows, width=32):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


def streams(model, ids, hook=HOOK):
    seen = []
    handle = HookPoint.parse(hook).listen(model, lambda stream: seen.append(stream.detach().clone()))
    with torch.no_grad():
        model(input_ids=ids)
    handle.remove()
    return seen[0]


def hooks_of(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("added", [False, True])
def test_the_stream_changes_at_the_places_by_exactly_what_was_given_and_nowhere_else(added):
    model, given, ids = llama().eval(), vectors(2), IDS.expand(2, -1)
    before = streams(model, ids)
    with asked(added=added).filled(model, given):
        after = streams(model, ids)
    expected = before.clone()
    for place in PLACES:
        expected[:, place] = before[:, place] + given if added else given
    assert torch.equal(after, expected)


def test_what_stands_in_front_of_the_first_place_is_untouched_in_every_layer():
    model, ids = llama().eval(), IDS.expand(2, -1)
    for hook in (HOOK, "blocks.2.hook_resid_post"):
        before = streams(model, ids, hook)
        with asked().filled(model, vectors(2)):
            after = streams(model, ids, hook)
        assert torch.equal(after[:, : PLACES[0]], before[:, : PLACES[0]])
    assert not torch.equal(after[:, -1], before[:, -1])


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_filled_where_it_was_asked_and_left_as_it_was(family):
    model = model_of(family).eval()
    width, ids = model.config.get_text_config().hidden_size, IDS.expand(2, -1) % model.config.vocab_size
    given = vectors(2, width).to(next(model.parameters()).dtype)
    before, hooks = streams(model, ids), hooks_of(model)
    with Asked(ids[0], PLACES, HOOK).filled(model, given):
        after = streams(model, ids)
    assert torch.equal(after[:, PLACES[0]], given)
    assert torch.equal(streams(model, ids), before)
    assert hooks_of(model) == hooks


def test_hooks_are_gone_and_the_mode_is_back_after_an_error_too():
    model = llama().train()
    with pytest.raises(RuntimeError), asked().filled(model, vectors(2)):
        model(input_ids=IDS.expand(3, -1))  # two vectors for three rows
    no_words = torch.full((2, 2), 999)
    with pytest.raises(IndexError):
        likelihood(model, asked(), no_words, torch.ones(2, 2, dtype=torch.bool), vectors(2))
    say(model, asked(), vectors(2), tokens=3, end=[NEVER])
    assert hooks_of(model) == 0
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_what_is_said_by_keys_and_values_is_what_whole_passes_say(make):
    model, given = make().eval(), 8 * vectors(3)
    said, counted = say(model, asked(), given, tokens=5, end=[NEVER])
    ids = IDS.expand(3, -1)
    for word in range(5):
        with torch.no_grad(), asked().filled(model, given):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], 1)
        assert torch.equal(said[:, word], ids[:, -1])
    assert counted.all()


def test_nothing_after_an_end_counts_and_all_ended_is_the_end():
    model, given = llama().eval(), 8 * vectors(1)
    whole, _ = say(model, asked(), given, tokens=6, end=[NEVER])
    end = int(whole[0, 2])
    first = whole[0].tolist().index(end)
    said, counted = say(model, asked(), given, tokens=6, end=[end])
    assert said.shape[1] == first + 1
    assert counted[0].tolist() == [True] * first + [False]


def test_the_likelihood_is_that_of_the_counted_tokens_one_by_one():
    model, given = llama().eval(), vectors(2)
    said, counted = torch.tensor([[4, 6, 8], [2, 2, 5]]), torch.tensor([[True, True, False], [True, True, True]])
    found = likelihood(model, asked(), said, counted, given)
    for row in range(2):
        logs, ids = [], IDS
        for word, counts in zip(said[row], counted[row], strict=True):
            with torch.no_grad(), asked().filled(model, given[row : row + 1]):
                logits = model(input_ids=ids[None]).logits[0, -1].double()
            logs += [float(logits.log_softmax(-1)[word])] if counts else []
            ids = torch.cat([ids, word[None]])
        assert found[row].item() == pytest.approx(sum(logs) / len(logs), abs=1e-4)


def test_the_word_that_stands_there_already_changes_nothing():
    model = llama().eval()
    there = placeholder(model, Asked(IDS, (3,), HOOK))
    at = Asked(IDS, (3,), HOOK)
    said = say(model, at, there, tokens=4, end=[NEVER])[0]
    assert torch.equal(said, say(model, at, None, tokens=4, end=[NEVER])[0])
    counted = torch.ones_like(said, dtype=torch.bool)
    assert torch.allclose(
        likelihood(model, at, said, counted, there), likelihood(model, at, said, counted, None), atol=1e-5
    )


def test_entropy_and_similarity_are_those_of_the_last_token():
    model, given, along = llama().eval(), vectors(2), torch.eye(32)[0]
    entropy, similarity = last_token(model, asked(), given, "blocks.2.hook_resid_post", along)
    with torch.no_grad(), asked().filled(model, given):
        stream = streams(model, IDS.expand(2, -1), "blocks.2.hook_resid_post")[:, -1]
        p = model(input_ids=IDS.expand(2, -1)).logits[:, -1].softmax(-1)
    assert torch.allclose(entropy, torch.distributions.Categorical(p).entropy(), atol=1e-5)
    assert torch.allclose(similarity, stream[:, 0] / stream.norm(dim=-1), atol=1e-6)


def test_a_word_of_the_embedded_world_can_be_filled_in_by_its_embedding():
    """The positive control: `0` in the prompt, the vector of `5` in its place, and the sum is that of 5."""
    model, tokenizer = tiny_world.load_base(), tiny_world.load_tokenizer()
    ids = torch.tensor(tokenizer("<q> find 1 2 plus 0 . <a>")["input_ids"])
    at = Asked(ids, (5,), "blocks.0.hook_resid_pre")
    five = model.get_input_embeddings().weight.detach()[[tokenizer.convert_tokens_to_ids("5")]]
    said, counted = say(model, at, five, tokens=8, end=[tokenizer.eos_token_id])
    assert "1 7" in tokenizer.decode(said[0][counted[0]])


@pytest.mark.parametrize("places", [(), (6,), (-1,)])
def test_a_place_outside_of_the_prompt_is_refused(places):
    with pytest.raises(ValueError, match="expected places among 6 tokens"):
        Asked(IDS, places, HOOK)


def test_a_model_without_keys_and_values_is_refused():
    model = llama().eval()
    whole = model.forward
    model.forward = lambda use_cache, **given: whole(use_cache=False, **given)
    with pytest.raises(ValueError, match="keeps no keys and values"):
        say(model, asked(), None, tokens=2, end=[NEVER])
