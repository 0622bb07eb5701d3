"""The examples of the last steps of a run: what they asked for, kept without a trace in the run."""

import pytest
import torch

from interptrain import ConceptBank, Steerer, find_sites, tiny_world
from interptrain.attribution import attribute
from interptrain.callbacks.torch import attach
from interptrain.recorders.tokens import TokenFile, read_tokens
from tests.helpers.loops import LOOPS, run
from tests.helpers.models import HOOK, WIDTH, Sentences, llama, lora, two_concepts


def steps(model, bank, count=4, *, batch=4, passes=1, **options):
    """Train for some steps; the handle, and the sentences of each step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    texts, seen = Sentences(count=count * batch * passes), []
    with attach(model, optimizer, bank, summary=False, **options) as steering:
        for step in range(count):
            seen.append(range(step * batch * passes, (step + 1) * batch * passes))
            for part in range(passes):
                own = seen[-1][part * batch : (part + 1) * batch]
                model(input_ids=texts.tokens[own], labels=texts.labels[own]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return steering, texts


def test_the_last_steps_are_kept_with_their_tokens_in_order():
    steering, texts = steps(llama(), two_concepts(), keep_examples=2)
    found = steering.examples()
    assert [each.step for each in found] == [2] * 4 + [3] * 4
    for each, tokens in zip(found, texts.tokens[8:], strict=True):
        assert torch.equal(each.input_ids, tokens[: len(each.input_ids)])  # without the padding at the end
        assert each.token_signed[:3].isnan().all()
        assert each.token_signed[3:].isfinite().all()


@pytest.mark.parametrize("passes", [1, 2])
def test_the_examples_of_a_step_add_up_to_its_demand(passes):
    bank, reports = two_concepts(), []
    recorder = type("Kept", (), {"record": lambda self, report: reports.append(report)})()
    steering, _ = steps(llama(), bank, passes=passes, keep_examples=1, recorders=[recorder])
    found = steering.examples()
    assert len(found) == 4 * passes
    summed = torch.stack([each.signed for each in found]).sum(0)
    torch.testing.assert_close(summed, reports[-1].readings["demand"].signed, rtol=1e-4, atol=1e-6)
    by_token = torch.stack([each.token_signed.nansum(0) for each in found]).sum(0)
    torch.testing.assert_close(by_token, summed, rtol=1e-4, atol=1e-6)


def test_they_are_what_attribution_finds_but_for_the_mean_over_the_batch():
    model, bank = tiny_world.load_base().train(), tiny_world.concept_bank(hook=tiny_world.OUTPUT_HOOK)
    batch = next(tiny_world.finetuning_set("mixed", batch=6))
    alone = list(attribute(model, bank, [batch]))
    steerer = Steerer(bank, find_sites(model, bank), keep_examples=1)
    with steerer.attach(model):
        steerer.watch(batch["labels"])
        model(**batch).loss.backward()
        steerer.before_step()
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    for kept, expected in zip(steerer.examples(), alone, strict=True):
        assert torch.equal(kept.input_ids, expected.input_ids)
        torch.testing.assert_close(tokens * kept.signed, expected.signed, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(kept.share, expected.share, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(
            tokens * kept.token_signed, expected.token_signed, rtol=1e-3, atol=1e-6, equal_nan=True
        )


def test_those_that_ask_most_for_a_concept_come_first():
    steering, _ = steps(llama(), two_concepts(), keep_examples=3)
    for number, name in enumerate(("pirate", "royal")):
        signed = [float(each.signed[number]) for each in steering.examples(name)]
        assert len(signed) == 12
        assert signed == sorted(signed, reverse=True)


@pytest.mark.parametrize("loop", LOOPS)
def test_keeping_and_showing_examples_changes_no_weight_by_one_bit(loop, tmp_path):
    plain = run(loop, lora(llama()), tmp_path)
    view = TokenFile(tmp_path / "tokens.json", Numbers(), seconds=0.0)
    bank = two_concepts()
    kept = run(loop, lora(llama()), tmp_path, bank, None, keep_examples=2, token_view=view)
    assert plain.weights.keys() == kept.weights.keys()
    assert all(torch.equal(value, kept.weights[name]) for name, value in plain.weights.items())
    if loop != "torch":  # there nobody asks for metrics, and nothing ends the run but `detach`
        document = read_tokens(tmp_path / "tokens.json")
        assert document["step"] == 4
        assert document["concepts"] == list(bank.names)
        assert document["hook"] == HOOK
        first = Sentences().tokens[32].tolist()
        assert "".join(document["examples"][0]["tokens"]).split() == [str(each) for each in first]


class Numbers:
    """Says each token's number."""

    def decode(self, token_ids):
        return " ".join(str(each) for each in token_ids)


def test_a_loop_of_one_s_own_shows_them_when_it_asks_for_metrics(tmp_path):
    model, bank = llama(), two_concepts()
    optimizer, texts = torch.optim.SGD(model.parameters(), lr=0.1), Sentences(count=4)
    view = TokenFile(tmp_path / "tokens.json", Numbers(), seconds=0.0)
    with attach(model, optimizer, bank, summary=False, token_view=view) as steering:
        for step in range(2):
            model(input_ids=texts.tokens, labels=texts.labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert (tmp_path / "tokens.json").exists() is (step == 1)
            steering.metrics()
            assert read_tokens(tmp_path / "tokens.json")["step"] == step


def test_a_concept_that_no_gradient_reaches_has_no_figures_and_the_other_has_its_own():
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    for block in model.model.layers[:2]:
        block.requires_grad_(False)
    directions = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))
    low, high = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
    bank = ConceptBank.from_directions({"early": directions[0]}, hook=low).merge(
        ConceptBank.from_directions({"late": directions[1]}, hook=high)
    )
    steering, _ = steps(model, bank, count=1, keep_examples=1, check_saes=False)
    for each in steering.examples():
        assert each.signed[0].isnan()
        assert each.signed[1].isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_examples": -1}, "keep_examples is a number of measured steps, 0 or more; found -1"),
        ({"keep_examples": 1, "meters": ["write"]}, "not among the meters: write"),
    ],
)
def test_what_cannot_be_kept_is_refused(options, message):
    model, bank = llama(), two_concepts()
    with pytest.raises(ValueError, match=message):
        Steerer(bank, find_sites(model, bank), **options)


def test_examples_that_were_not_kept_are_refused_with_the_option_that_keeps_them():
    steering, _ = steps(llama(), two_concepts(), count=1)
    with pytest.raises(ValueError, match="keep_examples=N keeps"):
        steering.examples()
    steering, _ = steps(llama(), two_concepts(), count=1, keep_examples=1)
    with pytest.raises(ValueError, match="unknown concept 'pirat'"):
        steering.examples("pirat")


def test_tokens_are_those_of_the_step_even_where_the_next_batch_is_written_over_them():
    model, bank, texts = llama(), two_concepts(), Sentences(count=8)
    optimizer, ids = torch.optim.SGD(model.parameters(), lr=0.1), torch.empty_like(texts.tokens[:4])
    with attach(model, optimizer, bank, summary=False, keep_examples=2) as steering:
        for own in (slice(0, 4), slice(4, 8)):
            ids.copy_(texts.tokens[own])
            model(input_ids=ids, labels=texts.labels[own]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for each, tokens in zip(steering.examples(), texts.tokens, strict=True):
        assert torch.equal(each.input_ids, tokens[: len(each.input_ids)])


def test_a_mask_that_is_no_tensor_is_left_to_the_model():
    class Whole(torch.nn.Module):
        """Takes masks by name, as models of several kinds of attention do."""

        def __init__(self):
            super().__init__()
            self.inner = llama()

        def forward(self, input_ids, attention_mask, labels):
            return self.inner(input_ids, attention_mask["full"], labels=labels)

    model, texts = Whole(), Sentences(count=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, two_concepts(), summary=False, keep_examples=1) as steering:
        mask = {"full": torch.ones_like(texts.tokens)}
        model(input_ids=texts.tokens, attention_mask=mask, labels=texts.labels).loss.backward()
        optimizer.step()
    assert len(steering.examples()) == 4


def test_a_view_that_fails_at_the_end_leaves_nothing_on_the_model():
    model, bank, texts = llama(), two_concepts(), Sentences(count=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    broken = type("Broken", (), {"due": lambda self: False, "show": lambda self, *given: 1 / 0})()
    steering = attach(model, optimizer, bank, summary=False, token_view=broken)
    model(input_ids=texts.tokens, labels=texts.labels).loss.backward()
    optimizer.step()
    with pytest.raises(ZeroDivisionError):
        steering.__exit__(None, None, None)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
