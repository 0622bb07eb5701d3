"""Tokens that a direction promotes, and the texts it is active in."""

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from interptrain.concepts.logit_lens import logit_lens
from interptrain.concepts.top_texts import neighbours, top_texts
from tests.helpers.models import WIDTH, gpt2, llama, lora


def gemma():
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=24, final_logit_softcapping=None, **sizes, **heads))


def final_norm(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.transformer.ln_f if hasattr(inner, "transformer") else inner.model.norm


@pytest.mark.parametrize("build", [llama, gpt2, gemma, lambda: lora(llama())])
def test_the_lens_is_the_slope_of_the_logits_where_the_stream_is_far_from_the_direction(build):
    model = build().eval()
    norm = final_norm(model)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(WIDTH) + 0.5)
    row, stream = torch.randn(1, WIDTH), torch.randn(WIDTH)
    if isinstance(norm, nn.LayerNorm):
        stream -= stream.mean()
    flat = row - row.mean() if isinstance(norm, nn.LayerNorm) else row
    stream -= stream @ flat[0] / flat.square().sum() * flat[0]  # so that the norm's spread stays what it is
    head = model.get_output_embeddings()
    with torch.no_grad():
        slope = (head(norm(stream + 1e-2 * row)) - head(norm(stream - 1e-2 * row)))[0]
    slope -= slope.mean()
    found = logit_lens(model, row)[0]
    assert float(torch.cosine_similarity(found, slope, dim=0)) > 0.999
    assert abs(float(found.mean())) < 1e-5


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="found no head"):
        logit_lens(llama().model, torch.randn(1, WIDTH))


def test_the_texts_with_the_largest_activation_come_first():
    values, text = torch.tensor([0.1, 3.0, -1.0, 5.0, 0.0]), torch.tensor([0, 0, 1, 2, 2])
    assert [each.text for each in top_texts(values, text, 2)] == [2, 0]
    assert top_texts(torch.full((2,), -torch.inf), torch.tensor([0, 1]), 3) == []
    assert top_texts(torch.zeros(0), torch.zeros(0, dtype=torch.long), 3) == []


def test_neighbours_are_the_nearest_rows_without_the_direction_s_own():
    rows = torch.nn.functional.normalize(torch.randn(9, 4), dim=-1)
    found = neighbours(rows[3], rows, 20, without=(3,))
    assert [number for number, _ in found] == sorted(set(range(9)) - {3}, key=lambda n: -float(rows[n] @ rows[3]))
    assert float(rows[3] @ rows[3]) == pytest.approx(1.0)
