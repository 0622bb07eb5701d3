"""Hold: the step back is the one worked out by hand, and nothing else happens to the model."""

import copy
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interptrain import ConceptBank, Steerer, find_sites, observe
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.interventions import hold
from interptrain.readings import METERS
from interptrain.recorders import MemoryRecorder
from tests.helpers.interventions import (
    FIRST,
    LATER,
    LAYERS,
    Bare,
    assert_identical,
    attached,
    every_model,
    make_bank_at_two_hooks,
    make_steerer,
    sgd,
    trainable,
    unit_mean,
)
from tests.helpers.models import HOOK, WIDTH, WORDS, Sentences, fit, llama, weights


@pytest.fixture
def bank():
    return make_bank_at_two_hooks()


def texts(count=4, seed=5, labels=None):
    """One batch of probe texts; the label asked for is the sixth token's alone."""
    ids = Sentences(count=count, seed=seed).tokens
    if labels is None:
        labels = torch.where(torch.arange(ids.shape[1]) == 5, ids, -100)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def stepped(model, bank, *acts, times=1, lr=0.05, meters=()):
    """Train for some optimizer steps; the model and the last step's figures."""
    recorder, optimizer = MemoryRecorder(), sgd(model, lr)
    with attached(model, bank, *acts, optimizer=optimizer, recorders=[recorder], meters=meters) as steerer:
        for number in range(times):
            given = Sentences(seed=number)[:8]
            steerer.watch(given["labels"])
            model(**given).loss.backward()
            steerer.before_step()
            optimizer.step()
            optimizer.zero_grad()
    return model, recorder.reports[-1].scalars()


def along(bank, *hooks):
    """The read-out along the concept's unit means, from the model's own hidden states."""

    def read(model, batch):
        states = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
        found = [states[LAYERS[hook]] @ unit_mean(bank, hook=hook) for hook in hooks]
        return torch.stack([each[:, :-1][batch["labels"][:, 1:] != -100] for each in found], dim=-1)

    return read


def log_odds(*words):
    def read(model, batch):
        p = model(input_ids=batch["input_ids"]).logits.softmax(-1)[..., list(words)].sum(-1)
        return (p / (1 - p)).log()[:, :-1][batch["labels"][:, 1:] != -100]

    return read


def excess(model, start, read, batch, margin=0.0):
    with torch.no_grad():
        before = read(start, batch)
    return (read(model, batch) - before - margin).clamp_min(0).mean()


def step_back_(model, start, read, batch, margin=0.0):
    """`theta - L / ||dL||^2 dL`, by hand."""
    L = excess(model, start, read, batch, margin)
    if L == 0:
        return 0.0
    dL = torch.autograd.grad(L, trainable(model), allow_unused=True)
    squares = sum(each.square().sum() for each in dL if each is not None)
    with torch.no_grad():
        for parameter, each in zip(trainable(model), dL, strict=True):
            if each is not None:
                parameter -= L / squares * each
    return float(L.detach())


def assert_moved_alike(found, wanted, start, *, tolerance=1e-4):
    """Parameters are the same, to a share of how far any of them has moved."""
    before, after = weights(start), weights(wanted)
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    for name, value in weights(found).items():
        assert (value - after[name]).abs().max() <= tolerance * moved, name


@every_model
def test_the_step_back_is_the_one_worked_out_by_hand(bank, make):
    held, figures = stepped(make(), bank, hold("pirate", [texts()]))
    by_hand, _ = stepped(make(), bank)
    there = weights(by_hand)
    L = step_back_(by_hand, make(), along(bank, HOOK, FIRST), texts())
    assert L > 0
    assert figures["interptrain/hold/pirate/excess"] == pytest.approx(L, rel=1e-4)
    assert_moved_alike(held, by_hand, make())
    back = weights(held)
    length = math.sqrt(sum(float((back[name] - there[name]).square().sum()) for name in there))
    assert figures["interptrain/hold/pirate/moved"] == pytest.approx(length, rel=1e-3)


@every_model
def test_read_by_words_it_holds_their_log_odds(bank, make):
    held, figures = stepped(make(), bank, hold("pirate", [texts(8)], words=[3, 7, 11]))
    by_hand, _ = stepped(make(), bank)
    L = step_back_(by_hand, make(), log_odds(3, 7, 11), texts(8))
    assert L > 0
    assert figures["interptrain/hold/pirate/excess"] == pytest.approx(L, rel=1e-3)
    assert_moved_alike(held, by_hand, make())


@pytest.mark.parametrize("hooks", [(FIRST,), (HOOK,)])
def test_the_hook_points_can_be_chosen(bank, hooks):
    held, _ = stepped(llama(), bank, hold("pirate", [texts()], hooks=hooks))
    by_hand, _ = stepped(llama(), bank)
    assert step_back_(by_hand, llama(), along(bank, *hooks), texts()) > 0
    assert_moved_alike(held, by_hand, llama())


def test_steps_back_are_taken_one_after_another_on_the_texts_in_turn(bank):
    batches = [texts(seed=seed) for seed in (5, 6, 7)]
    held, _ = stepped(llama(), bank, hold("pirate", batches, hooks=[HOOK], steps=2), times=2)
    by_hand, turns = llama(), iter([*batches, batches[0]])
    optimizer = sgd(by_hand)
    for number in range(2):
        by_hand(**Sentences(seed=number)[:8]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for batch in (next(turns), next(turns)):
            step_back_(by_hand, llama(), along(bank, HOOK), batch)
    assert_moved_alike(held, by_hand, llama())


def moves(count, lr=0.05):
    """What a step does to each text's activation at the hook, `[text, d_model]`."""
    plain, _ = stepped(llama(), ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=HOOK), lr=lr)
    batch = texts(count)
    with torch.no_grad():
        after, before = (
            model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states[2][:, 4]
            for model in (plain, llama())
        )
    return after - before


def taught(*changes, lr=0.05):
    """A bank of the one direction in which a step moves the texts as far as these say, up to one factor."""
    wanted = torch.tensor(changes)
    return ConceptBank.from_directions({"pirate": torch.linalg.pinv(moves(len(changes), lr)) @ wanted}, hook=HOOK)


def test_what_one_text_has_gained_is_gone_to_first_order():
    """What is left of it falls with the square of the step."""
    left = []
    for lr in (0.1, 0.01):
        bank = taught(1.0, lr=lr)
        models = [stepped(llama(), bank, *acts, lr=lr)[0] for acts in ([], [hold("pirate", [texts(1)])])]
        before, after = (float(excess(model, llama(), along(bank, HOOK), texts(1)).detach()) for model in models)
        left.append(after / before)
    assert left[0] < 0.2
    assert left[1] < 0.2 * left[0] + 1e-4


def test_what_several_texts_have_gained_goes_in_a_few_steps(bank):
    """One step takes most of it: along the mean gradient one text falls too far and another not far enough."""
    found = []
    for acts in ([], [hold("pirate", [texts(8)])], [hold("pirate", [texts(8)], steps=10)]):
        model, _ = stepped(llama(), bank, *acts)
        found.append(float(excess(model, llama(), along(bank, HOOK, FIRST), texts(8)).detach()))
    assert found[1] < 0.6 * found[0]
    assert found[2] < 0.05 * found[0]


def test_the_fall_of_one_text_does_not_pay_for_the_rise_of_another():
    bank = taught(1.0, -3.0)
    plain, _ = stepped(llama(), bank)
    read = along(bank, HOOK)
    rise, fall = (read(plain, texts(2)) - read(llama(), texts(2))).flatten().tolist()
    assert rise > 0 > rise + fall
    held, figures = stepped(llama(), bank, hold("pirate", [texts(2)]))
    assert figures["interptrain/hold/pirate/excess"] == pytest.approx(rise / 2, rel=1e-3)
    assert float(excess(held, llama(), read, texts(2)).detach()) < 0.1 * rise


def test_texts_below_their_start_cost_nothing():
    bank = taught(-1.0, -3.0)
    held, figures = stepped(llama(), bank, hold("pirate", [texts(2)]))
    assert figures["interptrain/hold/pirate/excess"] == figures["interptrain/hold/pirate/moved"] == 0
    assert_identical(held, stepped(llama(), bank)[0])


def test_a_margin_is_allowed_on_every_text():
    bank = taught(1.0, 3.0)
    plain, _ = stepped(llama(), bank)
    low, high = sorted((along(bank, HOOK)(plain, texts(2)) - along(bank, HOOK)(llama(), texts(2))).flatten().tolist())
    margin = (low + high) / 2
    held, figures = stepped(llama(), bank, hold("pirate", [texts(2)], margin=margin))
    assert figures["interptrain/hold/pirate/excess"] == pytest.approx((high - margin) / 2, rel=1e-3)
    step_back_(plain, llama(), along(bank, HOOK), texts(2), margin)
    assert_moved_alike(held, plain, llama())
    beyond, _ = stepped(llama(), bank, hold("pirate", [texts(2)], margin=2 * high))
    assert_identical(beyond, stepped(llama(), bank)[0])


@every_model
def test_a_hold_with_nothing_to_hold_leaves_run_and_curves_as_they_are(bank, make, tmp_path):
    runs = []
    nothing = [hold("pirate", [texts()], margin=1e6), hold("sums", [texts()], words=[1, 2], margin=1e6)]
    for acts in ([observe()], nothing):
        recorder = MemoryRecorder()
        callback = ConceptSteering(bank, acts, where="update", recorders=[recorder], summary=False)
        runs.append((fit(make(), tmp_path, callback, steps=2), recorder.curves()))
    (plain, curves), (held, found) = runs
    assert plain.losses == held.losses
    assert_identical(plain, held)
    for name, curve in curves.items():
        assert curve == found[name], name


def test_the_meters_count_no_probe_pass_where_it_acts(bank):
    """What the first step asks for and what the optimizer writes are known before the hold acts."""
    _, plain = stepped(llama(), bank, meters=METERS)
    _, held = stepped(llama(), bank, hold("pirate", [texts()], steps=3), meters=METERS)
    assert held["interptrain/hold/pirate/moved"] > 0
    for name, figure in plain.items():
        assert figure == held[name], name


def test_frozen_parameters_never_move(bank):
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].mlp.requires_grad_(False)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    start = weights(model)
    held, figures = stepped(model, bank, hold("pirate", [texts()]))
    assert figures["interptrain/hold/pirate/moved"] > 0
    assert {name for name, value in weights(held).items() if torch.equal(value, start[name])} == frozen


def spoil(model, change):
    """From now on change the activation at the hook in passes that do not train."""
    model.model.layers[1].register_forward_hook(
        lambda module, _args, output: output if module.training else change(output)
    )


SPOILED = {
    "nan": lambda h: h * math.nan,
    "inf": lambda h: h * math.inf,
    "inf read, finite gradient": lambda h: h + math.inf,
    "gradient too long to square": lambda h: h * 1e25,
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_what_is_not_finite_in_the_read_out_never_reaches_the_parameters(change):
    bank = ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=HOOK)
    runs = []
    for acts in ([], [hold("pirate", [texts()])]):
        model = llama().train()
        optimizer = sgd(model)
        with attached(model, bank, *acts, optimizer=optimizer) as steerer:
            spoil(model, change)
            model(**Sentences()[:8]).loss.backward()
            steerer.before_step()
            optimizer.step()
        runs.append(model)
    assert_identical(*runs)
    assert all(parameter.isfinite().all() for parameter in runs[1].parameters())


def with_dropout():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS, n_embd=WIDTH, n_layer=3, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5, tie_word_embeddings=False,
        )
    ).train()  # fmt: skip


def test_dropout_is_off_in_the_probe_passes_and_on_again_after_them(bank):
    model = with_dropout()
    model.transformer.h[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(1)
    held, figures = stepped(model, bank, hold("pirate", [texts()], steps=2), times=2)
    assert [module.training for module in held.modules()] == modes

    by_hand, start = with_dropout(), with_dropout().eval()
    by_hand.transformer.h[0].mlp.eval()
    optimizer = sgd(by_hand)
    torch.manual_seed(1)
    for number in range(2):
        optimizer.zero_grad()
        by_hand(**Sentences(seed=number)[:8]).loss.backward()
        optimizer.step()
        training = {module: module.training for module in by_hand.modules()}
        by_hand.eval()
        L = [step_back_(by_hand, start, along(bank, HOOK, FIRST), texts()) for _ in range(2)]
        for module, mode in training.items():
            module.training = mode
    assert figures["interptrain/hold/pirate/excess"] == pytest.approx(L[0], rel=1e-3)
    assert_moved_alike(held, by_hand, with_dropout())


def test_a_step_that_the_scaler_skips_is_not_held_back(bank):
    model, scaler = llama(), torch.amp.GradScaler("cpu")
    optimizer, start = sgd(model), weights(model)
    with attached(model, bank, hold("pirate", [texts()]), optimizer=optimizer) as steerer:
        scaler.scale(model(**Sentences()[:8]).loss).backward()
        next(model.parameters()).grad[0, 0] = math.inf
        scaler.unscale_(optimizer)
        steerer.before_step(loss_scale=scaler.get_scale())
        scaler.step(optimizer)
        assert int(steerer.state_dict()["interventions"]["hold/pirate/turn"]) == 0
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())


def test_of_several_optimizers_it_acts_after_the_last(bank):
    def half(model):
        several = trainable(model)
        return torch.optim.SGD(several[::2], lr=0.05), torch.optim.SGD(several[1::2], lr=0.05)

    model = llama()
    one, other = half(model)
    steerer = make_steerer(model, bank, hold("pirate", [texts()]))
    with steerer.attach(model, one, other):
        model(**Sentences()[:8]).loss.backward()
        for optimizer in (one, other):
            steerer.before_step(optimizer)
        one.step()
        other.step()
    assert_moved_alike(model, stepped(llama(), bank, hold("pirate", [texts()]))[0], llama())


def test_the_start_and_the_present_are_read_in_full_precision(bank):
    model, seen = llama(), []
    optimizer = sgd(model)
    model.model.layers[0].register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision("high")
    try:
        with attached(model, bank, hold("pirate", [texts()]), optimizer=optimizer):
            model(**Sentences()[:8]).loss.backward()
            optimizer.step()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "high", "highest"]  # the start, the loop's own pass, the hold's


def test_the_probe_texts_are_read_without_labels_at_every_token_that_is_attended(bank):
    batch = texts(2, labels=None)
    batch["attention_mask"] = torch.arange(12).lt(9).long().repeat(2, 1)
    del batch["labels"]
    _, figures = stepped(llama(), bank, hold("pirate", [batch], hooks=[HOOK]))
    plain, start = stepped(llama(), bank)[0], llama()
    after, before = (
        model(**batch, output_hidden_states=True).hidden_states[2][:, :9] @ unit_mean(bank) for model in (plain, start)
    )
    wanted = float((after - before).clamp_min(0).mean())
    assert figures["interptrain/hold/pirate/excess"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margin": -0.1}, "margin must be finite and 0 or more"), ({"margin": math.nan}, "margin must be finite"),
        ({"margin": math.inf}, "margin must be finite"), ({"steps": 0}, "at least one step"),
        ({"words": []}, "at least one token id"), ({"words": [3, -1]}, "none below 0"),
        ({"words": [3], "hooks": [HOOK]}, "one of the two"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        hold("pirate", [texts()], **options)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (hold("pirate", []), "is empty"), (hold("ghost", [texts()]), "unknown concept 'ghost'"),
        (hold("ghost", [texts()], words=[3]), "unknown concept 'ghost'"),
        (hold("pirate", [texts()], hooks=[LATER]), "no directions at 'blocks.2"),
        (hold("pirate", [texts()], hooks=[]), "no hook points of 'pirate' are chosen"),
        (hold("pirate", [texts()], words=[3, WORDS]), f"below {WORDS}, the size of the vocabulary"),
        (hold("pirate", [texts()], words=range(WORDS)), "not all of them"),
        (hold("pirate", [{"input_ids": texts()["input_ids"]}]), "must have input_ids, attention_mask"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_training(bank, act, words):
    model = llama()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=words):
        attached(model, bank, act)
    assert_identical(model, before)


def test_without_an_optimizer_nobody_would_know_when_to_act(bank):
    model = llama()
    steerer = make_steerer(model, bank, hold("pirate", [texts()]), where="gradient")
    with pytest.raises(ValueError, match=r"hold acts after the optimizer's step: attach\(model, optimizer\)"):
        steerer.attach(model)


@pytest.mark.parametrize("other", [{}, {"words": [3]}], ids=["the same", "by words"])
def test_a_concept_is_held_once(bank, other):
    with pytest.raises(ValueError, match="'hold/pirate' is there already"):
        attached(llama(), bank, hold("pirate", [texts()]), hold("pirate", [texts()], **other))


def test_a_model_of_which_nothing_below_the_hook_trains_is_refused_by_name(bank):
    model = llama()
    for part in (model.model.embed_tokens, *model.model.layers[:2]):
        part.requires_grad_(False)
    optimizer = sgd(model)
    with Steerer(bank, find_sites(llama(), bank, where="update"), [hold("pirate", [texts()])], where="update").attach(
        model, optimizer
    ):
        model(**Sentences()[:8]).loss.backward()
        with pytest.raises(ValueError, match="nothing that trains has a part in what hold/pirate reads"):
            optimizer.step()


def test_a_model_without_logits_cannot_be_read_by_words(bank):
    with pytest.raises(ValueError, match=r"output \(Tensor\) has no logits"):
        attached(Bare(), bank, hold("pirate", [texts()], words=[3]))
