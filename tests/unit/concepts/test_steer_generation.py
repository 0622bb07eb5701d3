"""A direction added while a model generates."""

import pytest
import torch

from interptrain.concepts.steer_generation import adding, gap
from interptrain.sites.hooks import HookPoint
from tests.helpers.models import HOOK, WIDTH, WORDS, gpt2, llama


def residuals(model, ids, **adds):
    """The stream behind the hook's layer, read at the next block, as it is and with something added."""
    seen = []
    with torch.no_grad():
        for context in (None, adds):
            handle = HookPoint.parse("blocks.2.hook_resid_pre").listen(model, lambda h: seen.append(h.clone()))
            if context is None:
                model(input_ids=ids)
            else:
                with adding(model, HOOK, **context):
                    model(input_ids=ids)
            handle.remove()
    return seen


@pytest.mark.parametrize("build", [llama, gpt2])
def test_what_is_added_is_the_vector_and_stands_at_the_tokens_that_were_asked_for(build):
    model, ids, vector = build().eval(), torch.randint(1, WORDS, (2, 5)), torch.randn(WIDTH)
    plain, steered = residuals(model, ids, vector=vector, place="throughout")
    torch.testing.assert_close(steered - plain, vector.expand(2, 5, WIDTH), atol=1e-5, rtol=1e-5)
    plain, steered = residuals(model, ids, vector=vector, place="start")
    torch.testing.assert_close((steered - plain)[:, -1], vector.expand(2, WIDTH), atol=1e-5, rtol=1e-5)
    assert torch.equal(steered[:, :-1], plain[:, :-1])


def test_at_the_start_alone_later_tokens_are_left_as_they_are():
    model = llama().eval()
    one = torch.randint(1, WORDS, (2, 1))
    plain, steered = residuals(model, one, vector=torch.randn(WIDTH), place="start")
    assert torch.equal(plain, steered)


def test_generation_with_a_vector_of_zeros_is_the_model_s_own_and_nothing_stays_behind():
    model, ids = llama().eval(), torch.randint(1, WORDS, (2, 4))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    plain = model.generate(ids, **options)
    with adding(model, HOOK, torch.zeros(WIDTH)):
        assert torch.equal(model.generate(ids, **options), plain)
    with pytest.raises(RuntimeError, match="in the middle"), adding(model, HOOK, torch.randn(WIDTH)):
        raise RuntimeError("in the middle")
    assert torch.equal(model.generate(ids, **options), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_hook_that_is_not_in_the_model_is_refused():
    with pytest.raises(ValueError, match="layer 9"), adding(llama(), "blocks.9.hook_resid_post", torch.randn(WIDTH)):
        pass


def test_the_gap_is_how_far_the_means_lie_apart_along_the_direction():
    shown, other = torch.randn(5, WIDTH), torch.randn(7, WIDTH)
    direction = torch.nn.functional.normalize(shown.mean(0) - other.mean(0), dim=0)
    assert gap(direction, shown, other) == pytest.approx(float((shown.mean(0) - other.mean(0)).norm()))
    assert gap(-direction, shown, other) == pytest.approx(-gap(direction, shown, other))
