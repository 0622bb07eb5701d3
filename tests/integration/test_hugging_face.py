"""The callback inside real Hugging Face and TRL trainers."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from interptrain import ConceptBank, gate, hold, observe, suppress
from interptrain.callbacks.transformers import ConceptSteering
from interptrain.checkpoint import load_state
from interptrain.optimizers import bare
from interptrain.recorders import MemoryRecorder
from tests.helpers.loops import hugging_face
from tests.helpers.models import HOOK, WIDTH, WORDS, Sentences, llama, lora, two_concepts, weights


@pytest.fixture
def bank():
    return two_concepts()


def quiet(bank, rule=None, **options):
    return ConceptSteering(bank, rule, summary=False, **options)


def differ(one, other):
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_curves_reach_every_sink_and_the_history(bank, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    seen = []

    class Sink(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    run = hugging_face(
        llama(), tmp_path, Sink(), quiet(bank, suppress("pirate")), logging_steps=2, max_steps=4,
        report_to=["tensorboard"],
    )  # fmt: skip
    run.train()
    assert [logs["concept/pirate/gain"] for logs in seen if "loss" in logs] == [0.0, 0.0]
    assert [entry["concept/pirate/gain"] for entry in run.state.log_history if "loss" in entry] == [0.0, 0.0]
    (file,) = {path.parent for path in (tmp_path / "tb").rglob("events*")}
    events = EventAccumulator(str(file))
    events.Reload()
    written = {event.step: event.value for event in events.Scalars("train/concept/pirate/demand")}
    logged = {entry["step"]: entry["concept/pirate/demand"] for entry in run.state.log_history if "loss" in entry}
    assert written == pytest.approx(logged, rel=1e-6)


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_hundreds_of_figures_are_kept_off_the_screen(bank, disable_tqdm, tmp_path, capsys):
    run = hugging_face(
        llama(), tmp_path, quiet(bank), logging_steps=1, max_steps=2, disable_tqdm=disable_tqdm
    )  # fmt: skip
    run.train()
    shown = "".join(capsys.readouterr())
    assert shown.count("'loss'") == 2
    assert "concept/" not in shown
    assert "concept/pirate/demand" in run.state.log_history[0]


def test_a_trainer_that_takes_the_labels_out_of_the_call_is_said(bank, tmp_path):
    with pytest.warns(UserWarning, match="the trainer takes the labels out of the model's call"):
        hugging_face(llama(), tmp_path, quiet(bank), label_smoothing_factor=0.1, max_steps=1).train()


def test_logged_values_are_means_over_the_steps_between(bank, tmp_path):
    recorder = MemoryRecorder()
    run = hugging_face(llama(), tmp_path, quiet(bank, recorders=[recorder]), logging_steps=2, max_steps=4)
    run.train()
    each = recorder.curves()["concept/pirate/demand"]
    logged = [entry["concept/pirate/demand"] for entry in run.state.log_history if "loss" in entry]
    assert logged == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], rel=1e-5)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_equals_one_that_was_not_stopped(bank, stop, tmp_path):
    texts = Sentences(count=8, seed=5).tokens
    probe = [{"input_ids": texts, "attention_mask": torch.ones_like(texts)}]

    def train(folder, steps, *, resume=None):
        model, recorder = lora(llama()), MemoryRecorder()
        rules = [suppress("pirate"), gate("royal", tokens=0.2), hold("royal", probe)]
        callback = quiet(
            bank, rules, where="update", recorders=[recorder], probes={"neutral": probe}, probe_every=2,
        )  # fmt: skip
        hugging_face(
            model, folder, callback, max_steps=steps, save_strategy="steps", save_steps=1
        ).train(resume_from_checkpoint=resume)  # fmt: skip
        return weights(model), recorder.curves()

    whole, curves = train(tmp_path / "whole", 5)
    train(tmp_path / "half", stop)
    resumed, rest = train(tmp_path / "half", 5, resume=str(tmp_path / "half" / f"checkpoint-{stop}"))
    assert differ(whole, resumed) == 0.0
    assert rest == {key: values[stop:] for key, values in curves.items() if any(v is not None for v in values[stop:])}
    plain = lora(llama())
    hugging_face(plain, tmp_path).train()
    assert differ(whole, weights(plain)) > 1e-4


def test_a_checkpoint_of_another_bank_or_cut_off_is_an_error_and_one_without_steering_is_said(bank, tmp_path):
    def train(callback=None, steps=2, resume=None, folder="run"):
        callbacks = [] if callback is None else [callback]
        hugging_face(
            llama(), tmp_path / folder, *callbacks, max_steps=steps, save_strategy="steps", save_steps=1,
            logging_steps=1,
        ).train(resume_from_checkpoint=resume)  # fmt: skip

    train(quiet(bank, suppress("pirate")))
    half = tmp_path / "run" / "checkpoint-1"
    with safe_open(half / "interptrain.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"])["steps"] == [1]
    other = ConceptBank.from_directions({"pirate": torch.ones(WIDTH), "royal": torch.eye(WIDTH)[0]}, hook=HOOK)
    with pytest.raises(ValueError, match="the same concepts but other directions"):
        train(quiet(other), resume=str(half))
    with pytest.raises(ValueError, match="is of concepts pirate, royal; this run has royal"):
        train(quiet(bank.select("royal")), resume=str(half))
    with pytest.raises(ValueError, match=r"of other sites: .*1 sites gone \(lm_head"):
        train(quiet(bank, skip=["lm_head*"]), resume=str(half))
    with pytest.raises(ValueError, match="where='gradient'; this run has 'update'"):
        train(quiet(bank, where="update"), resume=str(half))
    (half / "interptrain.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="cannot read the steering state in"):
        train(quiet(bank), resume=str(half))
    (half / "interptrain.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no interptrain\.safetensors: it was cut off"):
        train(quiet(bank), resume=str(half))
    train(folder="plain")
    with pytest.warns(UserWarning, match="has no steering state"):
        train(quiet(bank), resume=str(tmp_path / "plain" / "checkpoint-1"), folder="plain")


def test_a_state_that_cannot_be_written_is_said_and_the_run_goes_on(bank, tmp_path):
    class InTheWay(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            (tmp_path / f"checkpoint-{state.global_step}" / "interptrain.safetensors").mkdir(parents=True)

    run = hugging_face(
        llama(), tmp_path, InTheWay(), quiet(bank), max_steps=2, save_strategy="steps", save_steps=1
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the steering state of step 1 is not saved, the run goes on"):
        run.train()
    assert run.state.global_step == 2


def test_nothing_is_left_behind_after_training_an_error_or_an_interruption(bank, tmp_path):
    class Stops(TrainerCallback):
        def __init__(self, error):
            self.error = error

        def on_step_end(self, args, state, control, **kwargs):
            raise self.error

    for error in (None, RuntimeError("stop"), KeyboardInterrupt()):
        model = llama()
        others = [] if error is None else [Stops(error)]
        run = hugging_face(model, tmp_path, quiet(bank, suppress("pirate"), clip_norm=1.0), *others)
        order = list(run.callback_handler.callbacks)
        if error is None:
            run.train()
        else:
            with pytest.raises(type(error)):
                run.train()
        assert hooks(model) == 0
        assert run.callback_handler.callbacks == order
        optimizer = bare(run.optimizer)
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks


def test_a_callback_serves_a_second_training_and_starts_anew(bank, tmp_path):
    recorder = MemoryRecorder()
    callback = quiet(bank, suppress("pirate"), recorders=[recorder])
    first, second = llama(), llama()
    hugging_face(first, tmp_path, callback, max_steps=3).train()
    hugging_face(second, tmp_path, callback, max_steps=3).train()
    assert differ(weights(first), weights(second)) == 0.0
    curves = recorder.curves()
    assert curves["step"] == [0.0, 1.0, 2.0] * 2
    assert curves["concept/pirate/demand/cumulative"][:3] == curves["concept/pirate/demand/cumulative"][3:]


def test_two_callbacks_at_once_have_names_of_their_own(bank, tmp_path):
    first = quiet(bank, suppress("pirate"), name="one")
    second = quiet(bank.select("royal"), observe(), name="two")
    run = hugging_face(
        llama(), tmp_path, first, second, max_steps=2, logging_steps=1, save_strategy="steps", save_steps=1
    )
    run.train()
    logged = run.state.log_history[0]
    assert logged["one/concept/pirate/gain"] == 0.0
    assert "two/concept/royal/demand" in logged
    assert "concept/royal/demand" not in logged
    states = {
        name: load_state(tmp_path / "checkpoint-2" / f"interptrain-{name}.safetensors") for name in ("one", "two")
    }
    assert states["one"]["concepts"] == ["pirate", "royal"]
    assert states["two"]["concepts"] == ["royal"]
    with pytest.raises(ValueError, match="two ConceptSteering callbacks have the name 'one'"):
        hugging_face(llama(), tmp_path, quiet(bank, name="one"), quiet(bank, name="one")).train()


def tokenizer():
    """Twenty-four words and a pad; the model's vocabulary."""
    vocabulary = {f"w{number}": number for number in range(WORDS - 1)} | {"[PAD]": WORDS - 1}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="w0", unk_token="w0")


TRL = {
    "per_device_train_batch_size": 4, "max_steps": 3, "report_to": [], "use_cpu": True, "disable_tqdm": True,
    "bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2,
}  # fmt: skip


def sentences(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, WORDS - 1, (count, 8), generator=generator).tolist()
    return [" ".join(f"w{word}" for word in row) for row in rows]


def sft(folder, model, *callbacks):
    data = Dataset.from_dict({"prompt": sentences(12, 0), "completion": sentences(12, 1)})
    return SFTTrainer(
        model, args=SFTConfig(str(folder), max_length=32, **TRL), train_dataset=data, processing_class=tokenizer(),
        callbacks=list(callbacks),
    )  # fmt: skip


def dpo(folder, model, *callbacks):
    data = Dataset.from_dict({"prompt": sentences(12, 0), "chosen": sentences(12, 1), "rejected": sentences(12, 2)})
    return DPOTrainer(
        model, args=DPOConfig(str(folder), max_length=32, **TRL), train_dataset=data, processing_class=tokenizer(),
        callbacks=list(callbacks),
    )  # fmt: skip


def grpo(folder, model, *callbacks):
    options = TRL | {"num_generations": 4, "max_completion_length": 6, "seed": 0}
    return GRPOTrainer(
        model, args=GRPOConfig(str(folder), **options), train_dataset=Dataset.from_dict({"prompt": sentences(12, 0)}),
        reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
        processing_class=tokenizer(), callbacks=list(callbacks),
    )  # fmt: skip


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_trl_trainers_are_read_and_steered(bank, make, tmp_path):
    recorder, model, plain = MemoryRecorder(), lora(llama()), lora(llama())
    run = make(tmp_path, model, quiet(bank, suppress("pirate"), where="update", recorders=[recorder]))
    run.train()
    make(tmp_path, plain).train()
    assert differ(weights(model), weights(plain)) > 1e-4
    curves = recorder.curves()
    assert curves["concept/pirate/achieved"] == pytest.approx([0.0] * 3, abs=1e-2)
    assert all(value is not None for value in curves["concept/pirate/demand"])
    assert any("concept/pirate/write" in entry for entry in run.state.log_history)


def test_observing_a_trl_run_changes_no_weight_by_one_bit(bank, tmp_path):
    model, plain = lora(llama()), lora(llama())
    sft(tmp_path, model, quiet(bank)).train()
    sft(tmp_path, plain).train()
    assert differ(weights(model), weights(plain)) == 0.0
