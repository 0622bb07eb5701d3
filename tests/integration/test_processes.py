"""Steering and metering in several processes: what they do together is what one process does with the whole batch."""

from functools import cache

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from interptrain import ConceptBank, Steerer, amplify, find_sites, gate, one_sided, suppress
from interptrain.recorders import MemoryRecorder
from tests.helpers.models import HOOK, WORDS, gpt2, llama, lora
from tests.helpers.processes import counted_collectives, in_processes

WIDTH, ROWS, LENGTH, STEPS = 33, 8, 10, 3  # no number of processes divides the width


def odd_llama(*, seed=0):
    """A Llama whose widths, 33, 24 and 5, are divided unevenly: of 5 rows the last of four processes has none."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=5, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


def odd_lora(*, rank=3):
    model = lora(odd_llama(), rank=rank).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # not from B = 0: then half of the first step would be zero
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def lora_of_rank_one():
    """Of whose inner factors, of one row, the second process holds nothing."""
    return odd_lora(rank=1)


def even_llama():
    return llama().double()


def even_gpt2():
    return gpt2().double()


MODELS = {"full": odd_llama, "lora": odd_lora}
RULES = {
    "suppress": (suppress("pirate"), {}),
    "amplify": (amplify("pirate", 1.5), {}),
    "one-sided": (one_sided(suppress("pirate")), {}),
    "norm-cap": (amplify("pirate", 30.0), {"norm_cap": 0.1}),
}


def make_bank(width=WIDTH):
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(1))
    return ConceptBank.from_directions({"pirate": rows[:3], "royal": rows[3]}, hook=HOOK)


EVEN = make_bank(32)


def batches():
    """For each step ids and labels; every sentence has as many tokens in the loss."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        ids = torch.randint(1, WORDS, (ROWS, LENGTH), generator=generator)
        labels = ids.clone()
        labels[:, :3] = -100
        yield ids, labels


def alone(model):
    return model, model


def by_ddp(model):
    return DistributedDataParallel(model), model


def by_fsdp(model, **options):
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    inner = model.get_base_model() if "peft" in type(model).__module__ else model
    for block in inner.model.layers if "Llama" in type(inner).__name__ else inner.transformer.h:
        fully_shard(block, mesh=mesh, **options)
    return (fully_shard(model, mesh=mesh, **options),) * 2


def by_second_axis(model):
    """Matrices are divided on their second axis."""
    return by_fsdp(model, shard_placement_fn=lambda parameter: Shard(parameter.ndim - 1))


WRAPS = {"ddp": by_ddp, "fsdp2": by_fsdp}


def train(model, *acts, where, wrap=alone, rank=0, count=1, bank=None, spoil=None, null_every=2, **options):
    """Train on a process's share of the batches; the weights, the curves and the collectives of each step."""
    wrapped, model = wrap(model)
    bank = bank or make_bank()
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = (
        torch.optim.SGD(parameters, lr=0.3, momentum=0.9)
        if where == "gradient"
        else torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, foreach=True)
    )
    memory, collectives = MemoryRecorder(), []
    sites = find_sites(model, bank, where=where)
    steerer = Steerer(bank, sites, acts, where=where, recorders=[memory], null_every=null_every, **options)
    share = slice(rank * ROWS // count, (rank + 1) * ROWS // count)
    with steerer.attach(wrapped, optimizer):
        for number, (ids, labels) in enumerate(batches()):
            with counted_collectives() as counts:
                steerer.watch(labels[share])
                wrapped(input_ids=ids[share], labels=labels[share]).loss.backward()
                if spoil is not None:
                    spoil(number, rank, model)
                steerer.before_step()
                optimizer.step()
                optimizer.zero_grad()
            collectives.append(counts["all_reduce"])
    return {
        "weights": {name: whole(each).detach().clone() for name, each in model.named_parameters()},
        "curves": [report.scalars() for report in memory.reports],
        "nulls": [
            null
            for report in memory.reports
            for reading in (report.readings[name] for name in ("demand", "gradient", "write"))
            for null in (reading.null, reading.signed_null)
            if null is not None
        ],
        "collectives": collectives,
    }


def whole(parameter):
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def assert_same(found, expected, *, start, tolerance=1e-5):
    """Weights to a share of how far they moved, every curve and null group to the same share of its size."""
    moved = max(float((expected["weights"][name] - value).abs().max()) for name, value in start.items())
    assert moved > 0.01
    for name, value in expected["weights"].items():
        assert (found["weights"][name] - value).abs().max() <= tolerance * moved, name
    for one, other in zip(found["curves"], expected["curves"], strict=True):
        assert one.keys() == other.keys()
        for suppressed in [key for key in one if key.endswith("write/signed/z") and abs(other[key[:-2]]) < tolerance]:
            del one[suppressed], other[suppressed]  # the ratio of two roundings of 0
        assert one == pytest.approx(other, rel=20 * tolerance, abs=tolerance)
    for one, other in zip(found["nulls"], expected["nulls"], strict=True):
        torch.testing.assert_close(one, other, rtol=20 * tolerance, atol=tolerance, equal_nan=True)


def apart(one, other):
    """How far two runs' weights are apart, at most."""
    return max(float((one["weights"][name] - value).abs().max()) for name, value in other["weights"].items())


@cache
def expected(make, rule, where, **options):
    """What one process makes of the whole batch."""
    act, more = RULES[rule] if rule else ((), {})
    return train(make(), *((act,) if rule else ()), where=where, **more, **options)


def check_together(make, wrap, where, folder, *, count=2, rules=tuple(RULES), **options):
    """Several rules, in one process and in several; and each of them does something."""

    def run(rank, count):
        return {
            rule: train(make(), RULES[rule][0], where=where, wrap=wrap, rank=rank, count=count, **RULES[rule][1], **options)
            for rule in rules
        }

    start = {name: each.detach().clone() for name, each in make().named_parameters()}
    found = in_processes(count, run, folder)
    for rule in rules:
        alone = expected(make, rule, where, **options)
        assert apart(alone, expected(make, None, where, **options)) > 1e-3
        for each in found:
            assert_same(each[rule], alone, start=start)
    return found


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_two_processes_are_one(wrap, model, where, tmp_path):
    check_together(MODELS[model], WRAPS[wrap], where, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_four_processes_are_one(wrap, model, where, tmp_path):
    check_together(MODELS[model], WRAPS[wrap], where, tmp_path, count=4)


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_what_is_sharded_on_its_second_axis_is_one_too(where, tmp_path):
    check_together(even_llama, by_second_axis, where, tmp_path, rules=["norm-cap", "one-sided"], bank=EVEN)


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_biases_and_transposed_layers_are_sharded_too(where, tmp_path):
    check_together(even_gpt2, by_fsdp, where, tmp_path, rules=["norm-cap", "one-sided"], bank=EVEN)


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_process_may_hold_nothing_of_a_factor(where, tmp_path):
    check_together(lora_of_rank_one, by_fsdp, where, tmp_path, rules=["suppress", "one-sided"])


# What a step asks for before the optimizer acts, for its edit, and for what was written. Under DDP every process has
# the whole gradients. Norms that train are gathered anew once they have stepped: before the edit of an update, else
# for what was written; the edit of a gradient finds them as `write` left them. Pairs are gathered, and then whole.
COLLECTIVES = {
    ("ddp", "full", "gradient"): [1, 1, 1],
    ("ddp", "full", "update"): [1, 1, 1],
    ("ddp", "lora", "gradient"): [1, 1, 1],
    ("ddp", "lora", "update"): [1, 1, 1],
    ("fsdp2", "full", "gradient"): [0, 0, 0],
    ("fsdp2", "full", "update"): [0, 0, 0],
    ("fsdp2", "lora", "gradient"): [0, 0, 0],
    ("fsdp2", "lora", "update"): [0, 0, 0],
}


@pytest.mark.parametrize("wrap, model, where", COLLECTIVES)
def test_a_step_takes_few_collectives(wrap, model, where, tmp_path):
    def run(rank, count):
        rules = {"measured": {"null_every": 100}, "unmeasured": {"every": 100}, "nothing": {"every": 100}}
        return {
            name: train(
                MODELS[model](), *([] if name == "nothing" else [suppress("pirate")]), where=where, wrap=WRAPS[wrap],
                rank=rank, count=count, **more,
            )["collectives"][1:]
            for name, more in rules.items()
        }  # fmt: skip

    first, second = in_processes(2, run, tmp_path)
    print(wrap, model, where, first)
    assert first == second
