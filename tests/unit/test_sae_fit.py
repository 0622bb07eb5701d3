"""Does an SAE fit a model: the right layer passes, a wrong one is named, and nothing of the run changes."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from interptrain import ConceptBank, tiny_world
from interptrain.alarm import Alarm
from interptrain.callbacks.torch import attach
from interptrain.concepts.saelens import from_saelens
from interptrain.interventions import retain
from interptrain.sae_fit import LEAST, SAMPLE, Fit, FitCheck
from interptrain.tiny_world.shipped import load_sae
from tests.helpers.loops import LOOPS, largest_difference
from tests.helpers.loops import run as run_in
from tests.helpers.models import WIDTH, llama
from tests.unit.concepts.test_places import MLP_IN, MLP_OUT, Z, sae_at, seen, texts

HOOKS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))
NEUTRAL = tiny_world.probe_batches(32)["neutral"]


def bank_at(hook, trained_at=HOOKS[2]):
    return from_saelens(load_sae(hook=trained_at), {"pirate": [3, 17]}, hook=hook)


@pytest.mark.parametrize("trained_at", [HOOKS[2], HOOKS[3]])
@pytest.mark.parametrize("hook", HOOKS)
def test_a_real_sae_fits_its_own_layer_alone_and_a_wrong_one_is_told_which(trained_at, hook):
    (fit,) = FitCheck(bank_at(hook, trained_at)).look(tiny_world.load_base(), NEUTRAL)
    assert fit.doubtful == (hook != trained_at)
    assert fit.explained > 0.95 if hook == trained_at else fit.explained < 0.9
    assert set(fit.elsewhere) == set(HOOKS) - {hook}
    if hook != trained_at:
        assert f"{trained_at}: was the SAE trained there?" in fit.doubt()


def test_the_figure_is_that_of_the_definition_over_the_texts_tokens():
    model, sae = tiny_world.load_base(), load_sae().requires_grad_(False)
    (fit,) = FitCheck(bank_at(HOOKS[2])).look(model, NEUTRAL)
    (stream,) = seen(model, {key: NEUTRAL[0][key] for key in ("input_ids", "attention_mask")}, HOOKS[2])
    counted = NEUTRAL[0]["attention_mask"].bool()
    counted[:, 0] = False  # `<q>`, the BOS token
    tokens = stream[counted]
    tokens = tokens[:: -(-len(tokens) // SAMPLE)]
    lost = (tokens - sae(tokens)).double().square().sum() / (tokens - tokens.mean(0)).double().square().sum()
    assert fit.tokens == len(tokens) >= LEAST
    assert fit.explained == pytest.approx(1 - float(lost), abs=1e-5)


def test_another_model_is_doubted_at_every_layer():
    base = tiny_world.load_base()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.std() + (parameter.ndim == 1))
    (fit,) = FitCheck(bank_at(HOOKS[2])).look(base, NEUTRAL)
    assert fit.doubtful
    assert fit.explained < 0.5


@pytest.mark.parametrize(
    ("sae", "reads", "writes"), [(sae_at(Z), Z, Z), (sae_at(MLP_IN, "transcoder", out=MLP_OUT), MLP_IN, MLP_OUT)]
)
def test_what_reads_elsewhere_is_held_against_what_it_reconstructs(sae, reads, writes):
    model, batch = llama().eval(), texts(rows=16)
    model.config.bos_token_id = None
    bank = from_saelens(sae, {"pirate": [3]}, model=model)
    (fit,) = FitCheck(bank).look(model, [batch])
    given, target = (h.flatten(0, 1) for h in seen(model, batch, reads, writes))
    lost = (target - sae(given)).double().square().sum() / (target - target.mean(0)).double().square().sum()
    assert fit.explained == pytest.approx(1 - float(lost), rel=1e-4)
    assert set(fit.elsewhere) == {writes.replace("blocks.1", f"blocks.{layer}") for layer in (0, 2)}


def run(bank, *, rules=None, steps=3, **options):
    """Losses of a short run, the model, and what the check found; every random number that is drawn shows in them."""
    torch.manual_seed(0)
    model = tiny_world.load_base().train()
    model.model.layers[1].eval()
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(model.model.layers[0].mlp.act_fn, torch.nn.Dropout(0.2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    passes, losses = [], []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    settings = {"summary": False, "discover_every": None}
    with attach(model, optimizer, bank, rules, **(settings | options)) as steering:
        flags = [module.training for module in model.modules()]
        for batch in islice(tiny_world.finetuning_set("mixed"), steps):
            loss = model(**batch).loss
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    return losses, passes, flags, steering.sae_fits, model


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("autocast", [False, True])
def test_looking_changes_no_bit_of_a_run_and_costs_no_pass_without_probes(autocast):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses, passes, flags, fits, model = run(bank_at(HOOKS[2]))
        expected, plain_passes, plain_flags, none, _ = run(bank_at(HOOKS[2]), check_saes=False)
    assert losses == expected
    assert passes == plain_passes == [True] * 3
    assert flags == plain_flags
    assert none == ()
    assert fits[0].explained > 0.9
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.layers.modules())


@pytest.mark.usefixtures("unchecked_shapes")
def test_with_probes_it_costs_one_pass_of_the_neutral_set_in_eval_mode():
    probes = {"neutral": NEUTRAL}
    losses, passes, flags, fits, _ = run(bank_at(HOOKS[2]), probes=probes)
    expected, plain_passes, plain_flags, _, _ = run(bank_at(HOOKS[2]), probes=probes, check_saes=False)
    assert losses == expected
    assert passes.count(False) == plain_passes.count(False) + 1
    assert flags == plain_flags
    (direct,) = FitCheck(bank_at(HOOKS[2])).look(tiny_world.load_base(), NEUTRAL)
    assert fits[0].tokens == direct.tokens
    assert fits[0].explained > 0.9


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("probes", [None, {"neutral": NEUTRAL}])
def test_a_wrong_layer_is_warned_of_and_the_right_one_shown(probes, capsys):
    with pytest.warns(UserWarning, match=r"\.9\d at blocks\.2\.hook_resid_post: was the SAE trained there\?"):
        run(bank_at(HOOKS[1]), probes=probes, steps=1)
    capsys.readouterr()
    run(bank_at(HOOKS[2]), probes=probes, steps=1, summary=True)  # warnings of the package are errors here
    said = " ".join(capsys.readouterr().out.split())
    assert "the SAE at blocks.2.hook_resid_post explains .9" in said
    assert "of other layers at most ." in said


@pytest.mark.usefixtures("unchecked_shapes")
def test_passes_of_an_intervention_and_padding_are_not_looked_at():
    batch = {key: value[:3] for key, value in next(iter(tiny_world.finetuning_set("mixed"))).items()}
    attended = int(batch["attention_mask"].sum()) - 3  # but for `<q>`, the BOS token
    model, tokens = tiny_world.load_base().train(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    anchor = retain([batch], 1.0)  # its passes are of the shape of the training batch
    with attach(model, optimizer, bank_at(HOOKS[2]), [anchor], summary=False, discover_every=None) as steering:
        for _ in range(3):
            model(**batch).loss.backward()
            optimizer.step()
            tokens.append([fit.tokens for fit in steering.sae_fits])
    assert attended < LEAST <= 2 * attended
    assert tokens == [[], [2 * attended], [2 * attended]]


def test_what_is_said_names_the_better_layer_or_what_else_may_be_wrong():
    right = Fit("a", 0.92, {"b": 0.95}, 100)
    assert not right.doubtful  # .95 leaves more than half of what .92 leaves
    assert str(right) == "the SAE at a explains .92 of the variance (100 tokens), of other layers at most .95, at b"
    assert "and .97 at b: was the SAE trained there?" in Fit("a", 0.31, {"b": 0.97, "c": 0.5}, 100).doubt()
    poor = Fit("a", 0.31, {"b": 0.3}, 100, prepend_bos=True, with_bos=0.0)
    assert poor.doubtful
    assert "behind a BOS token, which .00 of these texts begin with" in poor.doubt()
    assert Fit("a", float("nan"), {}, 0).doubtful


def test_a_bank_without_an_sae_is_not_looked_at():
    bank = ConceptBank.from_directions({"pirate": torch.ones(WIDTH)}, hook=HOOKS[1])
    assert FitCheck(bank).look(llama(), [texts()]) == ()


def a_pass(model, rows, length):
    ids = torch.randint(2, 20, (rows, length))
    return model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_pass_that_broke_off_or_was_not_of_training_leaves_nothing_to_the_next():
    model = tiny_world.load_base()
    check = FitCheck(bank_at(HOOKS[2]))
    check.listen(model)
    with torch.no_grad():
        a_pass(model, 8, 20)
    assert check.fits == ()
    broken = model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        a_pass(model, 8, 20)
    broken.remove()
    a_pass(model, 3, 10)  # too few: waits for more
    assert check.fits == ()
    a_pass(model, 4, 12)
    assert check.fits[0].tokens == 3 * 10 + 4 * 12
    assert not any(module._forward_hooks for module in model.model.layers)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("loop", LOOPS)
def test_every_loop_makes_the_check_and_no_weight_changes_by_it(loop, tmp_path):
    model, bank = llama(), from_saelens(sae_at("blocks.1.hook_resid_post"), {"pirate": [3]})
    bank = replace(bank, model=None)
    with pytest.warns(UserWarning, match=r"the SAE at blocks\.1\.hook_resid_post explains .* of this model's"):
        checked = run_in(loop, llama(), tmp_path / "a", bank, None, steps=2)
    plain = run_in(loop, model, tmp_path / "b", bank, None, steps=2, check_saes=False)
    assert largest_difference(checked, plain) == 0


def test_a_compiled_model_s_training_is_not_looked_at_and_that_is_said(capsys):
    model = tiny_world.load_base()
    model.compile(backend="eager")
    with attach(model, torch.optim.SGD(model.parameters(), lr=0.1), bank_at(HOOKS[2]), discover_every=None) as steering:
        assert steering.sae_fits == ()
    assert "SAEs are not checked, since the model is compiled" in " ".join(capsys.readouterr().out.split())


def test_a_start_that_fails_leaves_no_hook_of_the_check():
    model = tiny_world.load_base()
    with pytest.raises(ValueError, match="the alarm watches royal"):
        attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), bank_at(HOOKS[2]), summary=False,
            alarm=Alarm({"pirate": ["royal"]}),
        )  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.layers.modules())
