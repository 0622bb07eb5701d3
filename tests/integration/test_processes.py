"""Steering and metering in several processes: what they do together is what one process does with the whole batch."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from interptrain import ConceptBank, Steerer, amplify, find_sites, gate, hold, one_sided, penalise, retain, suppress
from interptrain.concepts.bank import Readout
from interptrain.interventions import ablate, prevent, route
from interptrain.recorders import MemoryRecorder
from interptrain.sites.sharding import local, wholes
from tests.helpers.models import HOOK, WORDS, gpt2, llama, lora
from tests.helpers.processes import counted_collectives, in_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*LoRA writers start with B already:UserWarning")
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
    "clip-norm": (suppress("pirate"), {"clip_norm": 0.2}),
}


def make_bank(width=WIDTH):
    rows = torch.randn(4, width, generator=torch.Generator().manual_seed(1))
    return ConceptBank.from_directions({"pirate": rows[:3], "royal": rows[3]}, hook=HOOK)


EVEN = make_bank(32)


def batches(steps):
    """For each step ids and labels; every sentence has as many tokens in the loss."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
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


def train(
    model, *acts, where, wrap=alone, rank=0, count=1, bank=None, spoil=None, null_every=2, steps=STEPS, **options
):
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
        for ids, labels in batches(steps):
            with counted_collectives() as counts:
                steerer.watch(labels[share])
                wrapped(input_ids=ids[share], labels=labels[share]).loss.backward()
                if spoil is not None:
                    spoil(rank, model)
                steerer.before_step()
                optimizer.step()
                optimizer.zero_grad()
            collectives.append((counts["all_reduce"], counts["all_gather"]))
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
        "sharded": all(isinstance(each, DTensor) for each in model.parameters()),
    }


def whole(parameter):
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def assert_same(found, expected, *, start, tolerance=1e-5, drawn=(), figures=True):
    """Weights to a share of how far they moved, every curve and null group to 20 times that share of its size.

    Not what follows from random draws that each process makes (`drawn`), nor the figures of interventions, which each
    process has of its own tokens.
    """
    moved = max(float((expected["weights"][name] - value).abs().max()) for name, value in start.items())
    assert moved > 0.01
    for name, value in expected["weights"].items():
        assert (found["weights"][name] - value).abs().max() <= tolerance * moved, name
    for one, other in zip(found["curves"], expected["curves"], strict=True):
        if not figures:
            one, other = ({k: v for k, v in each.items() if k.startswith("concept/")} for each in (one, other))
        one, other = ({k: v for k, v in each.items() if not any(w in k for w in drawn)} for each in (one, other))
        nothing = {key for key in one if key.endswith("signed/z") and abs(other[key[:-2]]) < tolerance}
        one, other = (
            {key: each[key] for key in each.keys() - nothing} for each in (one, other)
        )  # 0/0, but for rounding
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


def check_together(
    make, wrap, where, folder, *, count=2, rules=("suppress", "amplify", "one-sided", "norm-cap"), **options
):
    """Several rules, in one process and in several; and each of them does something."""

    def run(rank, count):
        share = {"where": where, "wrap": wrap, "rank": rank, "count": count} | options
        return {rule: train(make(), RULES[rule][0], **RULES[rule][1], **share) for rule in rules}

    start = {name: each.detach().clone() for name, each in make().named_parameters()}
    found = in_processes(count, run, folder)
    for rule in rules:
        alone = expected(make, rule, where, **options)
        assert apart(alone, expected(make, None, where, **options)) > 1e-3
        for each in found:
            assert_same(each[rule], alone, start=start)
    return found


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_two_processes_are_one(wrap, model, where, tmp_path):
    check_together(MODELS[model], WRAPS[wrap], where, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_four_processes_are_one(wrap, model, where, tmp_path):
    check_together(MODELS[model], WRAPS[wrap], where, tmp_path, count=4)


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_is_clipped_is_the_norm_over_all_processes(wrap, tmp_path):
    unclipped = train(odd_llama(), suppress("pirate"), where="gradient")
    assert apart(expected(odd_llama, "clip-norm", "gradient"), unclipped) > 1e-2
    check_together(odd_llama, WRAPS[wrap], "gradient", tmp_path, rules=["clip-norm"])


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_what_is_sharded_on_its_second_axis_is_one_too(where, tmp_path):
    check_together(even_llama, by_second_axis, where, tmp_path, rules=["norm-cap", "amplify"], bank=EVEN)


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_biases_and_transposed_layers_are_sharded_too(where, tmp_path):
    check_together(even_gpt2, by_fsdp, where, tmp_path, rules=["norm-cap", "one-sided"], bank=EVEN)


@pytest.mark.parametrize("where", ["gradient", "update"])
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])  # 4: more padding than factors
def test_a_process_may_hold_nothing_of_a_factor(where, count, tmp_path):
    check_together(lora_of_rank_one, by_fsdp, where, tmp_path, count=count, rules=["suppress", "one-sided"])


def shards_of(whole, dim=0):
    """A whole tensor, as FSDP2 spreads it over all processes."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return distribute_tensor(whole, mesh, [Shard(dim)])


def bits(value):
    return value.contiguous().flatten().view(torch.uint8)


def odd_values(*shape, dtype):
    """Random bits, but first a NaN with a payload, infinities and -0.0."""
    value = torch.empty(shape, dtype=dtype)
    bits(value).random_(256, generator=torch.Generator().manual_seed(6))
    value.flatten()[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0], dtype=dtype)
    bits(value)[0] |= 1
    return value


GATHERED = {  # whole tensors, the axis that is divided, and with four processes the all-reduces and all-gathers
    "evenly": ([((8, 3), 0)], (0, 1)),
    "unevenly, one holds nothing": ([((33, 3), 0), ((5, 7), 0), ((9,), 0)], (0, 1)),
    "by the second axis": ([((3, 8), 1), ((4, 5, 6), 1)], (0, 1)),
    "most hold nothing": ([((1, 40), 0), ((5, 2), 0)], (1, 0)),
}


@pytest.mark.parametrize("case", GATHERED)
def test_whole_tensors_are_gathered_bit_for_bit_by_one_collective(case, tmp_path):
    shapes, expected = GATHERED[case]
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    wanted = [(odd_values(*shape, dtype=dtype), dim) for shape, dim in shapes for dtype in dtypes]

    def run(rank, count):
        sharded = [shards_of(value, dim) for value, dim in wanted]
        with counted_collectives() as counts:
            found = wholes([(local(each), each) for each in sharded])
        same = [torch.equal(bits(one), bits(value)) for one, (value, _) in zip(found, wanted, strict=True)]
        return same, (counts["all_reduce"], counts["all_gather"])

    assert in_processes(4, run, tmp_path) == [([True] * len(wanted), expected)] * 4


# A step's all-reduces: before the optimizer acts (1 where it is measured), for its edit (1 where rows are split), for
# what was written (1 where anything is split). Its all-gathers: of the pairs' factors (1 where they are edited or
# measured) or, once they have stepped, of the norms' weights.
COLLECTIVES = {
    ("ddp", "full", "gradient"): {"measured": (1, 0), "unmeasured": (0, 0)},
    ("ddp", "full", "update"): {"measured": (1, 0), "unmeasured": (0, 0)},
    ("ddp", "lora", "gradient"): {"measured": (1, 0), "unmeasured": (0, 0)},
    ("ddp", "lora", "update"): {"measured": (1, 0), "unmeasured": (0, 0)},
    ("fsdp2", "full", "gradient"): {"measured": (3, 1), "unmeasured": (1, 1)},
    ("fsdp2", "full", "update"): {"measured": (3, 1), "unmeasured": (1, 1)},
    ("fsdp2", "lora", "gradient"): {"measured": (2, 1), "unmeasured": (1, 0)},
    ("fsdp2", "lora", "update"): {"measured": (1, 1), "unmeasured": (0, 1)},
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("wrap", "model", "where"), COLLECTIVES)
def test_a_step_takes_few_collectives(wrap, model, where, tmp_path):
    def last_step(rank, count, *acts, **options):
        run = train(MODELS[model](), *acts, where=where, wrap=WRAPS[wrap], rank=rank, count=count, **options)
        return run["collectives"][-1]

    def run(rank, count):
        return {
            "measured": last_step(rank, count, suppress("pirate"), null_every=100),
            "unmeasured": last_step(rank, count, suppress("pirate"), every=100),
            "nothing": last_step(rank, count, every=100),
        }

    for found in in_processes(2, run, tmp_path):
        assert found == COLLECTIVES[wrap, model, where] | {"nothing": (0, 0)}


@pytest.mark.parametrize("where", ["gradient", "update"])
def test_a_gradient_that_is_not_finite_in_one_process_is_reported_and_not_spread(where, tmp_path):
    def spoil(rank, model):
        if rank == 1:
            model.model.layers[0].mlp.down_proj.weight.grad.to_local()[0, 2] = torch.nan  # of row 17, column 2
            model.model.layers[2].mlp.up_proj.weight.grad.to_local()[0, 4] = torch.inf  # of row 3

    def run(rank, count):
        share = {"wrap": by_fsdp, "rank": rank, "count": count}
        return train(odd_llama(), suppress("pirate"), where=where, spoil=spoil, steps=1, **share)

    for found in in_processes(2, run, tmp_path):
        assert found["curves"][0]["interptrain/nonfinite_sites"] == 2
        spoilt = {name: (~each.isfinite()).nonzero().tolist() for name, each in found["weights"].items()}
        assert {name: places for name, places in spoilt.items() if places} == {
            "model.layers.0.mlp.down_proj.weight": [[17, 2]],
            "model.layers.2.mlp.up_proj.weight": [[3, 4]],
        }


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("wrap", WRAPS)
def test_interventions_on_tokens_and_activations_are_those_of_one_process(wrap, tmp_path):
    acts = {"gate": gate("pirate", threshold=0.1), "ablate": ablate("pirate"), "prevent": prevent("pirate", 0.5)}
    start = {name: each.detach().clone() for name, each in odd_llama().named_parameters()}
    unsteered = expected(odd_llama, None, "gradient")

    def run(rank, count):
        return {
            name: train(odd_llama().train(), act, where="gradient", wrap=WRAPS[wrap], rank=rank, count=count)
            for name, act in acts.items()
        }

    found = in_processes(2, run, tmp_path)
    for name, act in acts.items():
        alone = train(odd_llama().train(), act, where="gradient")
        assert apart(alone, unsteered) > 1e-3
        for each in found:
            assert_same(each[name], alone, start=start, figures=False)


@pytest.mark.parametrize("wrap", WRAPS)
def test_processes_agree_on_the_threshold_that_a_gate_finds(wrap, tmp_path):
    def run(rank, count):
        return train(odd_llama(), gate("pirate"), where="gradient", wrap=WRAPS[wrap], rank=rank, count=count, steps=2)

    both = [found["curves"][-1]["interptrain/gate/pirate/threshold"] for found in in_processes(2, run, tmp_path)]
    assert both[0] == both[1]


def test_probe_texts_and_the_dictionary_are_read_alike_and_leave_the_model_sharded(tmp_path):
    decoder = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(3))
    readout = Readout({}, {"W_dec": decoder}, alive=torch.ones(60, dtype=torch.bool))
    bank = replace(make_bank(), readouts={HOOK: readout})
    ids = torch.randint(1, WORDS, (4, LENGTH), generator=torch.Generator().manual_seed(4))
    probes = {"neutral": [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]}
    options = {"where": "update", "bank": bank, "probes": probes, "probe_every": 1, "discover_every": 1}
    alone = train(odd_llama(), suppress("pirate"), **options)

    def run(rank, count):
        return train(odd_llama(), suppress("pirate"), wrap=by_fsdp, rank=rank, count=count, **options)

    start = {name: each.detach().clone() for name, each in odd_llama().named_parameters()}
    for found in in_processes(2, run, tmp_path):
        assert found["sharded"]  # also the root, which FSDP2 leaves whole when a forward pass has no backward pass
        assert "concept/pirate/realised/neutral" in found["curves"][0]
        assert f"interptrain/discovery/{HOOK}/top" in found["curves"][0]
        assert_same(found, alone, start=start, drawn=("/top/", "/explained/"))


def test_what_needs_whole_parameters_says_so(tmp_path):
    ids = torch.randint(1, WORDS, (2, LENGTH))
    texts = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    acts = [hold("pirate", texts), retain(texts), penalise("pirate", 0.1), route("pirate")]

    def run(rank, count):
        _, model = by_fsdp(odd_llama())
        sites, optimizer = find_sites(model, make_bank(), where="update"), torch.optim.SGD(model.parameters(), lr=0.1)
        said = []
        for act in acts:
            with pytest.raises(ValueError, match=r"whole parameters.*use DDP or one process") as raised:
                Steerer(make_bank(), sites, act, where="update").attach(model, optimizer)
            said.append(str(raised.value).split()[0])
        return said

    assert in_processes(2, run, tmp_path) == [["hold", "retain", "penalise", "route"]] * 2


def by_hsdp(model):
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("copies", "parts"))
    return fully_shard(model, mesh=mesh)


def by_fsdp1(model):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def by_tensor_parallelism(model):
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(model, mesh, {"model.layers.*.mlp.down_proj": RowwiseParallel()})


def with_zero3(model):
    model.lm_head.weight.ds_id = 0
    return model


REFUSED = {
    "FSDP1": (by_fsdp1, "FSDP1"),
    "HSDP": (by_hsdp, "mesh of 2 dimensions"),
    "tensor parallelism": (by_tensor_parallelism, "outside of every FSDP2 module"),
    "ZeRO-3": (with_zero3, "'lm_head.weight' is a parameter of DeepSpeed ZeRO-3"),
}


def test_other_ways_to_spread_a_model_are_refused_by_name(tmp_path):
    def run(rank, count):
        said = {}
        for name, (spread, _) in REFUSED.items():
            model = even_llama()
            steerer = Steerer(EVEN, find_sites(model, EVEN))
            wrapped = spread(model)
            with pytest.raises(TypeError) as raised:
                find_sites(wrapped, EVEN)
            with pytest.raises(TypeError) as again:
                steerer.attach(wrapped)
            assert str(raised.value) == str(again.value)
            said[name] = str(raised.value)
        return said

    for said in in_processes(2, run, tmp_path):
        for name, (_, words) in REFUSED.items():
            assert words in said[name]
            assert "use DDP, or FSDP2" in said[name]


def test_an_optimizer_of_deepspeed_is_refused_by_name():
    model, bank = odd_llama(), make_bank()
    ours = type("DeepSpeedZeroOptimizer", (torch.optim.SGD,), {"__module__": "deepspeed.runtime.zero.stage_1_and_2"})
    with pytest.raises(TypeError, match=r"DeepSpeedZeroOptimizer is DeepSpeed's.*DDP or FSDP2"):
        Steerer(bank, find_sites(model, bank)).attach(model, ours(model.parameters(), lr=0.1))
