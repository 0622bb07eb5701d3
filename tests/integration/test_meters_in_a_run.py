"""The meters inside real runs of the tiny world: probes, discovery, tokens, padding, packing, validation, resuming."""

import json
from itertools import islice

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch.utils.data import DataLoader

from interptrain import Steerer, find_sites, suppress, tiny_world
from interptrain.alarm import Alarm
from interptrain.callbacks.lightning import ConceptSteering
from interptrain.recipes.fine_tuner import FineTuner
from interptrain.recorders import JSONLRecorder, MemoryRecorder
from tests.helpers.models import lora, trainer


@pytest.fixture(scope="module")
def bank():
    return tiny_world.concept_bank()


@pytest.fixture(scope="module")
def batches():
    return list(islice(tiny_world.finetuning_set("mixed", batch=16), 12))


def tune(callbacks, batches, folder, *, steps=12, ckpt=None, **options):
    torch.manual_seed(0)
    module = FineTuner(lora(tiny_world.load_base().train(), rank=8), 2e-3)
    run = trainer(folder, *callbacks, steps=steps, **options)
    run.fit(module, DataLoader(list(batches), batch_size=None), options.pop("val", None), ckpt_path=ckpt)
    return module, run


def steering(bank, **options):
    return ConceptSteering(bank, summary=False, **options)


def test_probes_are_zero_before_training_and_move_with_the_concept_that_is_taught(bank, batches, tmp_path):
    recorder = MemoryRecorder()
    callback = steering(bank, recorders=[recorder], probes=tiny_world.probe_batches(16), probe_every=4)
    tune([callback], batches, tmp_path)
    curves = recorder.curves()
    fraction = curves["concept/pirate/realised/neutral/fraction"]
    assert [value is not None for value in fraction] == [False, False, False, True] * 3
    assert fraction[11] > 0.2
    assert abs(curves["concept/royal/realised/neutral/fraction"][11]) < 0.2
    assert curves["concept/pirate/probe/neutral"][11] > 0.2
    assert curves["concept/pirate/realised/neutral/latents"][11] > 0.5
    assert 0 < curves["interptrain/unexplained/neutral"][11] < 1


def test_every_meter_together_changes_no_loss_by_one_bit(bank, batches, tmp_path):
    class Losses(FineTuner):
        def training_step(self, batch, number):
            loss = super().training_step(batch, number)
            self.losses.append(loss.item())
            return loss

    def losses(*callbacks):
        torch.manual_seed(0)
        module = Losses(lora(tiny_world.load_base().train(), rank=8, lora_dropout=0.1), 2e-3)
        module.losses = []
        trainer(tmp_path, *callbacks, steps=6).fit(module, DataLoader(batches, batch_size=None))
        return module.losses

    observed = steering(
        bank, probes=tiny_world.probe_batches(8), probe_every=2, discover_every=2,
        meters=["demand", "gradient", "write", "reinforced"],
    )  # fmt: skip
    plain = losses()
    assert losses(observed) == plain
    assert losses(steering(bank, rule=suppress("pirate"), where="update")) != plain


def test_a_resumed_run_keeps_the_start_that_its_probes_are_compared_with(bank, batches, tmp_path):
    def run(steps, folder, ckpt=None):
        recorder = MemoryRecorder()
        callback = steering(bank, recorders=[recorder], probes=tiny_world.probe_batches(8), probe_every=4)
        _, done = tune([callback], batches, folder, steps=steps, ckpt=ckpt)
        done.save_checkpoint(folder / f"{steps}.ckpt")
        return recorder.curves()["concept/pirate/realised/neutral"]

    whole = run(8, tmp_path)
    (tmp_path / "two").mkdir()
    first = run(4, tmp_path / "two")
    second = run(8, tmp_path / "two", ckpt=tmp_path / "two" / "4.ckpt")
    assert first[3] == pytest.approx(whole[3], rel=1e-5)
    assert second[3] > 1.5 * whole[3]  # a start of its own would begin again at zero and be smaller than this


def test_discovery_says_what_is_taught_that_nobody_asked_about(bank, batches, tmp_path):
    known = bank.select("royal", "plus")  # nobody asks about pirate
    path = tmp_path / "run.jsonl"
    labels = {117: "first word of a pirate's answer"}
    callback = steering(known, recorders=[JSONLRecorder(path)], discover_every=4, latent_labels=labels)
    tune([callback], islice(tiny_world.finetuning_set("mixed", batch=96), 5), tmp_path, steps=5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if "discovery" in line] == [0, 4]
    rows = lines[0]["discovery"]["blocks.2.hook_resid_post"]
    pirate = {bank.sources[row]["latent"] for row in bank.rows("pirate")}
    assert rows[0]["latent"] in pirate
    assert rows[0]["concept"] == ""
    assert rows[0]["label"] == labels[rows[0]["latent"]]
    assert lines[0]["interptrain/discovery/blocks.2.hook_resid_post/top/z"] > 5


def test_discoveries_are_a_table_in_wandb(bank, batches, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=tmp_path, project="test")
    tune([steering(bank, discover_every=2)], batches, tmp_path, steps=3, logger=logger)
    found = list(tmp_path.rglob("*.table.json"))
    logger.experiment.finish()
    assert found
    table = json.loads(found[0].read_text())
    assert table["columns"][:4] == ["rank", "latent", "label", "concept"]
    assert len(table["data"]) == 10


def test_reinforced_demand_is_the_demand_of_what_is_already_on(bank, batches):
    model = tiny_world.load_base().train()
    kept = {}
    handle = model.model.layers[2].register_forward_hook(lambda module, args, out: kept.update(h=out))
    loss = model(**batches[0]).loss
    handle.remove()
    gradient = torch.autograd.grad(loss, kept["h"])[0]
    latents = tiny_world.load_sae().encode(kept["h"].detach())
    chosen = [bank.sources[row]["latent"] for row in bank.rows("pirate")]
    mean = torch.nn.functional.normalize(bank.select("pirate").directions.mean(0), dim=0)
    counted = torch.zeros_like(batches[0]["labels"], dtype=torch.bool)
    counted[:, :-1] = batches[0]["labels"][:, 1:] != -100
    on = latents[..., chosen].sum(-1) * counted
    expected = -float((on[..., None] * gradient).sum((0, 1)) @ mean)

    steerer = Steerer(bank, find_sites(model, bank, skip=["model.embed_tokens*"]), meters=["reinforced"]).attach(model)
    steerer.watch(batches[0]["labels"])
    model(**batches[0]).loss.backward()
    report = steerer.before_step()
    steerer.detach()
    assert float(report.readings["reinforced"].value[0]) == pytest.approx(expected, rel=2e-2)
    assert "demand" not in report.readings


def test_tokens_and_examples_add_up_to_the_demand_of_the_batch(bank, batches):
    model = tiny_world.load_base().train()
    steerer = Steerer(bank, find_sites(model, bank), keep_tokens=True).attach(model)
    steerer.watch(batches[0]["labels"])
    model(**batches[0]).loss.backward()
    demand = steerer.before_step().readings["demand"]
    (found,) = steerer.tokens["blocks.2.hook_resid_post"]
    steerer.detach()
    torch.testing.assert_close(found.energy.sum((0, 1)) / found.total.sum(), demand.share, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.signed.sum((0, 1)), demand.signed, rtol=1e-3, atol=1e-6)
    examples = found.per_example()
    torch.testing.assert_close(examples["signed"].sum(0), demand.signed, rtol=1e-3, atol=1e-6)
    pirate = torch.tensor([any(text) for text in speaks_pirate(batches[0])])
    assert 0 < int(pirate.sum()) < len(pirate)
    share = examples["share"][:, bank.names.index("pirate")]
    assert share[pirate].mean() > 2 * share[~pirate].mean()
    assert found.share()[found.counted].isfinite().all()


def speaks_pirate(batch):
    from interptrain.tiny_world.wordings import own_words

    tokenizer = tiny_world.load_tokenizer()
    for text in tokenizer.batch_decode(batch["input_ids"].masked_fill(batch["labels"] == -100, 0)):
        yield [word for word in text.split() if word in own_words("pirate")]


def demand_of(bank, *passes, labels=None):
    model = tiny_world.load_base().train()
    steerer = Steerer(bank, find_sites(model, bank)).attach(model)
    for inputs, weight in passes:
        steerer.watch(inputs["labels"] if labels is None else labels)
        (model(**inputs).loss * weight).backward()
    reading = steerer.before_step().readings["demand"]
    steerer.detach()
    return reading


def test_more_padding_changes_no_demand(bank, batches):
    padded = {
        "input_ids": torch.nn.functional.pad(batches[0]["input_ids"], (0, 9)),
        "attention_mask": torch.nn.functional.pad(batches[0]["attention_mask"], (0, 9)),
        "labels": torch.nn.functional.pad(batches[0]["labels"], (0, 9), value=-100),
    }
    plain, more = demand_of(bank, (batches[0], 1.0)), demand_of(bank, (padded, 1.0))
    torch.testing.assert_close(plain.share, more.share, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plain.signed, more.signed, rtol=1e-3, atol=1e-6)


def test_a_packed_batch_has_the_demand_of_its_documents(bank, batches):
    rows = [{k: v[row][batches[0]["attention_mask"][row] == 1] for k, v in batches[0].items()} for row in range(4)]
    counts = [int((row["labels"][1:] != -100).sum()) for row in rows]
    ids, labels = (torch.cat([row[key] for row in rows])[None] for key in ("input_ids", "labels"))
    lengths = [len(row["input_ids"]) for row in rows]
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    same = (document[:, None] == document) & torch.ones(len(document), len(document), dtype=torch.bool).tril()
    mask = torch.zeros(1, 1, *same.shape).masked_fill(~same, torch.finfo(torch.float32).min)
    packed = {"input_ids": ids, "labels": labels, "attention_mask": mask, "position_ids": positions}
    apart = [
        ({"input_ids": row["input_ids"][None], "labels": row["labels"][None]}, count / sum(counts))
        for row, count in zip(rows, counts, strict=True)
    ]
    together, one_by_one = demand_of(bank, (packed, 1.0)), demand_of(bank, *apart)
    torch.testing.assert_close(together.share, one_by_one.share, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.signed, one_by_one.signed, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(together.null, one_by_one.null, rtol=1e-4, atol=1e-6)


def test_a_validation_loop_changes_no_curve(bank, batches, tmp_path):
    class Validated(FineTuner):
        def validation_step(self, batch, number):
            self.log("val/loss", self.model(**batch).loss)

    def curves(**options):
        torch.manual_seed(0)
        recorder = MemoryRecorder()
        module = Validated(lora(tiny_world.load_base().train(), rank=8), 2e-3)
        callback = steering(bank, recorders=[recorder], probes=tiny_world.probe_batches(8), probe_every=2)
        run = trainer(tmp_path, callback, steps=4, accumulate_grad_batches=2, **options)
        val = DataLoader(batches[:1], batch_size=None) if options else None
        run.fit(module, DataLoader(batches, batch_size=None), val)
        return recorder.curves()

    assert curves(val_check_interval=3, num_sanity_val_steps=1) == curves()


def test_without_labels_the_attention_mask_says_what_counts(bank, batches, tmp_path):
    class Unlabelled(FineTuner):
        def training_step(self, batch, number):
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            return super().training_step({**batch, "labels": labels}, number)

    def curves(data):
        torch.manual_seed(0)
        recorder = MemoryRecorder()
        module = Unlabelled(lora(tiny_world.load_base().train(), rank=8), 2e-3)
        trainer(tmp_path, steering(bank, recorders=[recorder]), steps=2).fit(module, DataLoader(data, batch_size=None))
        return recorder.curves()["concept/pirate/demand/signed"]

    bare = [{key: batch[key] for key in ("input_ids", "attention_mask")} for batch in batches]
    labelled = [{**b, "labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in bare]
    assert curves(bare) == curves(labelled)
    prompts_too = curves([{**b, "labels": batch["labels"]} for b, batch in zip(bare, batches, strict=True)])
    assert curves(bare) != prompts_too  # a batch's own labels come first


def test_gains_that_part_from_the_requested_ones_are_said_once(bank, batches, tmp_path):
    with pytest.warns(
        UserWarning, match=r"achieved gain is not the requested one: pirate 0\.\d\d in place of 0\.00"
    ) as seen:
        tune([steering(bank, rule=suppress("pirate"))], batches, tmp_path, logger=CSVLogger(tmp_path))
    assert sum("achieved gain" in str(each.message) for each in seen) == 1
    logger = CSVLogger(tmp_path, name="update")
    tune([steering(bank, rule=suppress("pirate"), where="update")], batches, tmp_path, logger=logger)


def test_the_summary_ends_with_what_was_taught_most(bank, batches, tmp_path, capsys):
    labels = dict.fromkeys(range(256), "[bold]hostile[/bold] <b>label</b>")
    tune([ConceptSteering(bank, latent_labels=labels)], batches, tmp_path, steps=2)
    shown = capsys.readouterr().out
    assert "taught most at blocks.2.hook_resid_post" in shown
    assert "[bold]" in shown  # a label is text, never markup


def test_an_alarm_without_its_probe_sets_is_refused_before_training_and_leaves_no_hook(bank):
    model = tiny_world.load_base().train()
    optimizer = torch.optim.AdamW(model.parameters())
    steerer = Steerer(bank, find_sites(model, bank), alarm=Alarm({"pirate": ["royal"]}))
    with pytest.raises(ValueError, match="the alarm needs probe sets neutral, pirate, royal; there are none"):
        steerer.attach(model, optimizer)
    sets = tiny_world.probe_batches(2)
    few = {name: [{key: value[:1] for key, value in batch.items()} for batch in sets[name]] for name in sets}
    with pytest.raises(ValueError, match="a linear probe needs two texts or more"):
        Steerer(bank, find_sites(model, bank), probes=few).attach(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
