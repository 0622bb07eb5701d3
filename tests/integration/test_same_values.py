"""One run, every recorder: a figure is the same number wherever it is kept."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import wandb
from torch.utils.data import default_collate

from interptrain import ConceptBank, Steerer, find_sites, suppress
from interptrain.concepts.bank import Readout
from interptrain.recorders import JSONLRecorder, MemoryRecorder, TensorBoardRecorder, WandbRecorder, read_curves
from tests.helpers.models import HOOK, WIDTH, Sentences, llama
from tests.helpers.records import finite, tensorboard_points, tensorboard_texts, wandb_points, wandb_rows

STEPS, FULL_AT = 8, 3


class FullDisk:
    """A recorder whose disk is full after some reports."""

    def __init__(self):
        self.taken = 0

    def record(self, report):
        if self.taken == FULL_AT:
            raise OSError(28, "No space left on device")
        self.taken += 1


@dataclass
class Run:
    folder: Path
    memory: MemoryRecorder
    full: FullDisk
    losses: list[float]
    warnings: list[str]

    @property
    def expected(self):
        return finite(self.memory.curves())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    random = torch.Generator().manual_seed(1)
    dictionary = Readout({}, {"W_dec": torch.randn(40, WIDTH, generator=random)}, torch.ones(40, dtype=torch.bool))
    bank = ConceptBank.from_directions(
        {"pirate": torch.randn(3, WIDTH, generator=random), "royal": torch.randn(WIDTH, generator=random)}, hook=HOOK
    )
    bank = replace(bank, readouts={HOOK: dictionary})
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    memory, file, full, losses = MemoryRecorder(), JSONLRecorder(folder / "curves.jsonl"), FullDisk(), []
    with (
        warnings.catch_warnings(record=True) as warned,
        wandb.init(project="test", dir=folder, mode="offline", settings=wandb.Settings(silent=True)) as logged,
        TensorBoardRecorder(folder / "tensorboard") as tensorboard,
    ):
        recorders = [full, memory, file, tensorboard, WandbRecorder(logged)]
        sites = find_sites(model, bank, where="update")
        steerer = Steerer(bank, sites, suppress("pirate"), where="update", discover_every=4, recorders=recorders)
        warnings.simplefilter("always")
        with steerer.attach(model, optimizer):
            for step in range(STEPS):
                batch = default_collate([*Sentences(count=4, seed=step)])
                steerer.watch(batch["labels"])
                loss = model(**batch).loss
                loss.backward()
                steerer.before_step()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                logged.log({"loss": loss.item()}, step=step)
    return Run(folder, memory, full, losses, [str(each.message) for each in warned])


def test_the_run_measured_what_there_is_to_compare(run):
    names = ("pirate/demand", "pirate/demand/null", "royal/demand/z", "royal/write/cumulative", "pirate/achieved")
    assert {f"concept/{name}" for name in names} <= run.expected.keys()
    assert list(run.expected["concept/pirate/demand"]) == list(range(STEPS))
    assert list(run.expected[f"interptrain/discovery/{HOOK}/top"]) == [0, 4]
    assert len(set(run.expected["concept/pirate/demand"].values())) == STEPS


def test_a_file_of_lines_holds_the_curves_to_the_last_bit(run):
    assert read_curves(run.folder / "curves.jsonl") == run.memory.curves()


def test_wandb_holds_the_whole_history_to_the_last_bit(run):
    assert wandb_points(run.folder) == run.expected


def test_tensorboard_holds_it_to_half_a_unit_in_the_last_place_of_float32(run):
    points = {tag: dict(found) for tag, found in tensorboard_points(run.folder / "tensorboard").items()}
    assert points.keys() == run.expected.keys()
    for tag, expected in run.expected.items():
        assert points[tag] == pytest.approx(expected, rel=2**-24, abs=0), tag


def test_tables_of_latents_are_in_wandb_and_tensorboard_at_the_same_steps(run):
    table = f"interptrain/discovery/{HOOK}"
    assert [row["interptrain/step"] for row in wandb_rows(run.folder) if table in row] == [0, 4]
    ((_, texts),) = tensorboard_texts(run.folder / "tensorboard").items()
    assert [step for step, _ in texts] == [0, 4]
    first = run.memory.reports[0].discoveries[HOOK].rows()
    assert [int(line.split("|")[2]) for line in texts[0][1].splitlines()[2:]] == [row["latent"] for row in first]


def test_what_the_loop_logs_under_steps_of_its_own_is_all_there(run):
    assert [(row["_step"], row["loss"]) for row in wandb_rows(run.folder)] == list(enumerate(run.losses))


def test_a_recorder_whose_disk_is_full_is_left_out_and_the_others_go_on(run):
    assert run.full.taken == FULL_AT
    assert [text for text in run.warnings if "FullDisk" in text] == [
        "FullDisk raised OSError: [Errno 28] No space left on device; it takes no more reports, "
        "training and steering go on"
    ]
    assert len(run.memory.reports) == STEPS
