"""The kernel benchmark: its sets, its arithmetic, its baselines against float64, and a tiny run of it all."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import kernel
from benchmarks.kernel import LLAMA_8B, SETS, Machine, Model, ShapeSet, Step, moved_bytes, summary
from interptrain.projection.grouped import TorchProjector
from tests.helpers import baselines
from tests.helpers.baselines import Flat, Loop, PerParameter, Projected, energy_errors, exact, largest_error

CPU = torch.device("cpu")
TINY = Model(layers=2, hidden=24, intermediate=40, keys=8)
SHAPES = {
    "factors": ShapeSet(TINY, torch.float32, 3, rank=4),
    "one direction, rank one": ShapeSet(TINY, torch.float32, 1, rank=1),
    "whole matrices": ShapeSet(TINY, torch.float32, 5),
    "tokens": ShapeSet(TINY, torch.float32, 3, tokens=17),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MAKERS = {
    "loop": Loop,
    "per parameter": PerParameter,
    "flat": Flat,
    "torch": lambda matrices: Projected(TorchProjector(), matrices, reads=True),
}


def elements(shapes, layers=4):
    return sum(site.rows * site.columns for site in shapes.sites(layers))


def test_lora_on_all_linears_of_an_8b_llama_has_224_factors_on_the_stream():
    sites = SETS["cuda"]["lora16-8b-bf16-k16"].sites(layers=4)
    assert len(sites) == 224
    assert sum(site.axis == 1 for site in sites) == 5 * 32
    assert elements(SETS["cuda"]["lora16-8b-bf16-k16"]) == 14_680_064
    assert elements(SETS["cuda"]["lora64-8b-fp32-k16"]) == 4 * 14_680_064


def test_a_whole_8b_layer_has_the_elements_of_its_seven_linears():
    assert elements(SETS["cuda"]["full-8b-bf16-k16"], layers=1) == 218_103_808
    assert elements(SETS["cuda"]["full-8b-bf16-k16"], layers=3) == 3 * 218_103_808


def test_writers_share_one_direction_set_and_every_norm_has_its_own():
    sites = SETS["cuda"]["lora16-8b-bf16-k16"].sites(layers=4)
    assert {site.directions for site in sites if site.axis == 0} == {0}
    assert len({site.directions for site in sites}) == 1 + 2 * LLAMA_8B.layers
    assert [site.directions for site in sites[:7]] == [1, 1, 1, 2, 2, 0, 0]


def test_every_site_has_the_stream_s_width_on_its_residual_axis():
    for group in SETS.values():
        for shapes in group.values():
            for site in shapes.sites(layers=2):
                assert (site.rows, site.columns)[site.axis] == shapes.model.hidden


def test_the_floor_is_one_reading_and_one_writing_at_the_copy_rate():
    assert moved_bytes(14_680_064, torch.bfloat16, steered=True) / 4.3e12 == pytest.approx(13.7e-6, rel=5e-3)
    assert moved_bytes(14_680_064, torch.float32, steered=True) / 4.3e12 == pytest.approx(27.3e-6, rel=5e-3)
    assert moved_bytes(100, torch.bfloat16, steered=False) == 200


def test_ratios_are_of_the_same_round_so_that_drift_cancels():
    drift = [1.0, 7.0, 2.0, 30.0]
    times = {"loop": [(4 * each, each) for each in drift], "flat": [(each, each / 2) for each in drift]}
    found = summary(times, floor=0.5, cuda=True)
    assert found["flat"]["against"]["loop"] == {"median": 0.25, "low": 0.25, "high": 0.25}
    assert found["loop"]["against"]["flat"]["median"] == 4
    assert found["flat"]["seconds"]["median"] == 4.5
    assert found["flat"]["of_floor"]["median"] == 9
    assert found["loop"]["host_seconds"]["median"] == 4.5


@pytest.mark.parametrize("in_place", [False, True], ids=["copied", "where they lie"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("maker", MAKERS)
def test_every_baseline_gives_the_float64_formula(maker, shapes, dtype, in_place, monkeypatch):
    if in_place:
        monkeypatch.setattr(baselines, "LARGE", 0)
    step = Step(replace(shapes, dtype=dtype), 2, CPU)
    arm = MAKERS[maker](step.matrices)
    arm()
    unit = torch.finfo(dtype).eps / 2
    changed = 0.0
    for original, matrix in zip(step.originals, step.matrices, strict=True):
        assert largest_error(original, matrix.columns) <= unit * arm.roundings(shapes.directions) + 1e-5
        changed += float((matrix.columns.double() - original.columns.double()).norm())
    assert (changed > 1) == shapes.steered
    assert arm.reads or (maker == "per parameter" and shapes.steered)
    if arm.reads:
        assert energy_errors(step.originals, arm.energies()).max() <= 4 * unit + 1e-4


def test_the_formula_that_arms_are_checked_by_removes_the_components():
    step = Step(SHAPES["factors"], 2, CPU)
    for original in step.originals:
        value, energy = exact(original)
        left = (original.basis.double() @ value).square().sum(-1)
        assert (left < 1e-10 * energy).all()
        outside = original.columns.double() - value
        torch.testing.assert_close(original.basis.T.double() @ (original.basis.double() @ outside), outside)


def test_half_of_a_made_up_gradient_s_energy_lies_along_its_directions():
    step = Step(ShapeSet(replace(TINY, hidden=256), torch.float32, 4, rank=64), 2, CPU)
    shares = [exact(each)[1].sum() / each.columns.double().square().sum() for each in step.originals]
    assert torch.stack(shares).mean() == pytest.approx(0.5, abs=0.03)


def test_an_arm_sees_the_same_gradients_in_every_call(monkeypatch):
    monkeypatch.setattr(kernel, "last_cache", lambda: 2**10)
    step = Step(SHAPES["factors"], 2, CPU)
    seen = []
    Machine(CPU, repeats=3).seconds(
        lambda: seen.append([step.gradients[0].clone(), step.gradients[0].zero_()][0]), step.restore
    )
    assert len(seen) == 3
    assert all(torch.equal(each.T, step.originals[0].columns) for each in seen)


def test_a_pattern_chooses_sets_of_any_device_and_a_wrong_one_is_refused():
    assert list(kernel.chosen([], CPU)) == list(SETS["cpu"])
    assert list(kernel.chosen(["cpu"], torch.device("cuda"))) == list(SETS["cpu"])
    assert list(kernel.chosen(["tokens*k64"], CPU)) == ["tokens16k-4096-bf16-k64"]
    with pytest.raises(ValueError, match="no set matches 'tokns'"):
        kernel.chosen(["tokns"], CPU)


def test_times_are_shown_to_three_digits_in_the_unit_that_fits():
    assert [kernel.shown(each) for each in (13.7e-6, 0.00099951, 0.25, 0.99961, 12.34)] == [
        "13.7 us", "1 ms", "250 ms", "1 s", "12.3 s",
    ]  # fmt: skip


def run(monkeypatch, tmp_path, *words, device="cpu", shapes=SHAPES):
    tiny = {name: replace(each, dtype=torch.bfloat16) if name == "factors" else each for name, each in shapes.items()}
    monkeypatch.setattr(kernel, "SETS", {device: tiny})
    monkeypatch.setattr(kernel, "last_cache", lambda: 2**20)
    out = tmp_path / "results" / "kernel.json"
    kernel.main(["--device", device, "--rounds", "3", "--layers", "2", "--out", str(out), *words])
    return json.loads(out.read_text())


def assert_complete(document, arms):
    assert set(document["sets"]) == set(SHAPES)
    for name, each in document["sets"].items():
        assert list(each["arms"]) == [arm for arm in arms if each["steered"] or not arm.endswith("energies too")], name
        assert each["floor_seconds"] == each["moved_bytes"] / document["copy_bytes_a_second"]
        for arm, figures in each["arms"].items():
            assert figures["check"]["right"], (name, arm)
            assert figures["energies"] == (arm not in ("per parameter", "torch", "cuda") or not each["steered"])
            assert 0 < figures["seconds"]["low"] <= figures["seconds"]["median"] <= figures["seconds"]["high"]
            assert set(figures["against"]) == set(each["arms"])


def test_a_tiny_run_writes_a_result_whose_arms_are_all_right(monkeypatch, tmp_path, capsys):
    arms = ["loop", "per parameter", "flat", "torch", "torch, energies too"]
    document = run(monkeypatch, tmp_path, "--arms", *arms)
    assert_complete(document, arms)
    whole = document["sets"]["whole matrices"]
    assert (whole["timed_layers"], whole["extrapolated_layers"]) == (2, TINY.layers)
    loop = whole["arms"]["loop"]
    assert loop["extrapolated_seconds"] == pytest.approx(loop["seconds"]["median"] * TINY.layers / 2)
    assert document["settings"]["rounds"] == 3
    assert {"torch", "interptrain"} <= set(document["versions"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*SHAPES, *arms))


def test_the_markdown_table_has_one_header_and_rows_as_wide(monkeypatch, tmp_path, capsys):
    run(monkeypatch, tmp_path, "--arms", "loop", "flat", "--against", "flat", "--markdown")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| set | arm |")
    assert "x flat" in lines[0]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3 * len(SHAPES)


@pytest.mark.parametrize("spoilt", ["values", "energies"])
def test_a_wrong_arm_ends_the_run_and_writes_nothing(monkeypatch, tmp_path, spoilt):
    class Wrong(Flat):
        def __call__(self):
            super().__call__()
            if spoilt == "values" and self._steered:
                self._copies[0][-1][0, 0] = torch.nan
            self._found = [each * (1.1 if spoilt == "energies" else 1) for each in self._found]

    monkeypatch.setattr(kernel, "Flat", Wrong)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path, "--arms", "loop", "flat")
    assert isinstance(ended.value.code, str)  # printed to stderr, and status 1
    assert "factors, flat" in ended.value.code
    assert "loop" not in ended.value.code
    assert not (tmp_path / "results").exists()


def test_an_arm_that_cannot_compile_is_skipped_with_its_reason(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise RuntimeError("no compiler here\nand a long trace")

    monkeypatch.setattr(torch, "compile", refuse)
    document = run(monkeypatch, tmp_path, "--arms", "flat", "flat compiled")
    for each in document["sets"].values():
        assert each["arms"]["flat compiled"] == {"skipped": "torch.compile: no compiler here"}
        assert each["arms"]["flat"]["check"]["right"]


def test_the_torch_path_is_never_timed_under_the_kernels_name(monkeypatch):
    monkeypatch.setattr(kernel.Backend, "on", lambda self, device: TorchProjector())
    assert isinstance(kernel.projector("torch", CPU), TorchProjector)
    with pytest.raises(kernel.Skipped, match="gave TorchProjector"):
        kernel.projector("cuda", CPU)


@pytest.mark.slow
def test_compiled_batches_give_the_float64_formula(monkeypatch, tmp_path):
    arms = ["loop", "flat compiled"]
    document = run(monkeypatch, tmp_path, "--arms", *arms)
    assert_complete(document, arms)
    assert all(each["arms"]["flat compiled"]["compile_seconds"] > 0 for each in document["sets"].values())


@pytest.mark.gpu
def test_a_tiny_run_on_a_gpu_times_the_kernels_too(monkeypatch, tmp_path):
    model = Model(layers=2, hidden=256, intermediate=512, keys=128)
    shapes = {name: replace(each, model=model, rank=each.rank and 16) for name, each in SHAPES.items()}
    arms = [arm for arm in kernel.ARMS if arm != "flat compiled"]
    document = run(monkeypatch, tmp_path, "--arms", *arms, device="cuda", shapes=shapes)
    assert_complete(document, arms)
    assert document["sets"]["factors"]["arms"]["cuda"]["host_seconds"]["median"] > 0
