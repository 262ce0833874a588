"""The loop: schedules, averages, and a resume that changes nothing."""

import importlib.util
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.base.errors import UserError
from toolkit.data.batches import ALL, RNG, Part
from toolkit.training.loop import OptimConfig, one_ahead, train
from toolkit.training.optim import ExponentialMovingAverage, make_optimizer, warmup_cosine
from toolkit.training.runtime import RuntimeConfig, bf16_peak, make_accelerator, repeated_blocks, seed_everything


class Regression(nn.Module):
    """Fits noise, with dropout and fresh noise in the loss, so that random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.3), nn.SiLU(), nn.BatchNorm1d(16), nn.Linear(16, 1))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.layers(batch["x"]) - batch["y"] + 0.1 * torch.randn(1)).square().mean()
        return error, {"error": error.detach()}


class Numbers:
    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at

    def batch(self, step: int, part: Part = ALL) -> dict[str, Tensor]:
        if step == self.fail_at:
            raise KeyboardInterrupt
        rng = torch.Generator().manual_seed(step * part.count + part.index)
        x = torch.randn(8, 3, generator=rng)
        return {"x": x, "y": x.sum(1, keepdim=True)}


CPU = RuntimeConfig(device="cpu", threads=1)


def fit(directory: Path, data: Numbers, **changes: Any) -> Regression:
    seed_everything(0)
    model = Regression()
    config = OptimConfig(**{"steps": 12, "checkpoint_every": 4, "log_every": 5, "warmup_steps": 2, **changes})
    train(model, data, config, CPU, directory, "test")
    return model


@pytest.mark.parametrize("fail_at", [3, 4, 7, 11])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_is_bit_exact(tmp_path: Path, fail_at: int, accumulation: int) -> None:
    options = {"gradient_accumulation": accumulation}
    whole = fit(tmp_path / "whole", Numbers(), **options)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", Numbers(fail_at), **options)
    torch.rand(5)  # whatever happens between
    resumed = fit(tmp_path / "cut", Numbers(), **options)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["step_000012"]


def test_what_is_frozen_is_in_no_average_and_no_checkpoint(tmp_path: Path) -> None:
    """And a resumed training is bit for bit the same: who builds the module brings the frozen weights."""

    def fit_frozen(directory: Path, data: Numbers) -> Regression:
        seed_everything(0)
        model = Regression()
        model.layers[0].requires_grad_(False)
        config = OptimConfig(steps=12, checkpoint_every=4, warmup_steps=2)
        train(model, data, config, CPU, directory, "test")
        return model

    seed_everything(0)
    start = Regression().state_dict()
    whole = fit_frozen(tmp_path / "whole", Numbers())
    with pytest.raises(KeyboardInterrupt):
        fit_frozen(tmp_path / "cut", Numbers(7))
    resumed = fit_frozen(tmp_path / "cut", Numbers())
    frozen = {"layers.0.weight", "layers.0.bias"}
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
        assert torch.equal(tensor, start[name]) == (name in frozen), name
    for part in ("model", "ema"):
        kept = load_file(tmp_path / "cut/checkpoints/step_000012" / f"{part}.safetensors")
        assert kept.keys() == start.keys() - frozen
    assert ExponentialMovingAverage(whole, 0.9).shadow.keys() == start.keys() - frozen


def test_accumulation_equals_a_larger_batch() -> None:
    """Two half batches of a mean loss give the gradient of the whole batch."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 1))

        def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            return (batch["x"] @ self.weight - batch["y"]).square().mean(), {}

    class Halves(Numbers):
        def batch(self, step: int, part: Part = ALL) -> dict[str, Tensor]:
            return {k: v[part.index :: part.count] for k, v in super().batch(step).items()}

    import tempfile

    weights = []
    for data, accumulation in ((Numbers(), 1), (Halves(), 2)):
        model = Line()
        with tempfile.TemporaryDirectory() as folder:
            train(
                model,
                data,
                OptimConfig(steps=5, gradient_accumulation=accumulation, warmup_steps=1),
                CPU,
                Path(folder),
                "x",
            )
        weights.append(model.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-7)


def test_no_two_draws_of_a_run_share_a_seed(tmp_path: Path) -> None:
    """Neither of two steps, parts of a step, stages or runs; a part draws for itself, and with the others."""
    own, common = [], []

    class Watched(Regression):
        def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
            own.append(torch.initial_seed())
            common.append(batch[RNG].initial_seed())
            return super().loss(batch)

    for stage, seed in (("tokenizer", 0), ("generator", 0), ("generator", 1)):
        config = OptimConfig(steps=6, gradient_accumulation=2, warmup_steps=1)
        train(Watched(), Numbers(), config, CPU, tmp_path / f"{stage}{seed}", stage, seed=seed)
    assert len({*own, *common}) == 3 * 6 * 2 + 3 * 6
    assert all(a == b for a, b in zip(common[::2], common[1::2], strict=True))


def test_what_was_drawn_before_changes_no_training(tmp_path: Path) -> None:
    weights = []
    for stirred in range(2):
        seed_everything(0)
        model = Regression()
        torch.rand(stirred)
        train(model, Numbers(), OptimConfig(steps=3, warmup_steps=1), CPU, tmp_path / str(stirred), "test", seed=4)
        weights.append(model.layers[0].weight)
    assert torch.equal(*weights)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Numbers(5))
    path = next((tmp_path / "checkpoints").iterdir()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot resume"):
        fit(tmp_path, Numbers())


def edit_state(folder: Path, **changes: Any) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, name: str, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / f"{name}.safetensors")
    edit(tensors)
    save_file(tensors, folder / f"{name}.safetensors")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{
        f"state {text[:12]}": lambda folder, text=text: (folder / "state.json").write_text(text)
        for text in ("{}", "[]", "text", "null", '{"a":' * 999 + "1" + "}" * 999, '{"step": 4}')
    },
    "step of another training": lambda folder: edit_state(folder, step=999_999),
    "step as text": lambda folder: edit_state(folder, step="4"),
    "metrics as text": lambda folder: edit_state(folder, metrics={"loss": "small"}),
    "renamed weight": lambda folder: edit_tensors(folder, "model", lambda t: t.update(other=t.popitem()[1])),
    "misshapen weight": lambda folder: edit_tensors(folder, "model", lambda t: t.update({min(t): torch.zeros(7)})),
    "misshapen average": lambda folder: edit_tensors(folder, "ema", lambda t: t.update({min(t): torch.zeros(7)})),
    "missing average": lambda folder: edit_tensors(folder, "ema", lambda t: t.popitem() and None),
    "misshapen moment": lambda folder: edit_tensors(
        folder, "optimizer", lambda t: t.update({"0.exp_avg": torch.ones(5)})
    ),
    "moment of nothing": lambda folder: edit_tensors(
        folder, "optimizer", lambda t: t.update({"99.exp_avg": torch.ones(1)})
    ),
    "no average": lambda folder: (folder / "ema.safetensors").unlink(),
    "moment without a number": lambda folder: edit_tensors(folder, "optimizer", lambda t: t.update(x=torch.ones(1))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_one_line_whatever_is_wrong(damage: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Numbers(5))
    DAMAGES[damage](tmp_path / "checkpoints/step_000004")
    with pytest.raises(UserError, match=r"step_000004: cannot resume from it \(") as caught:
        fit(tmp_path, Numbers())
    assert "\n" not in str(caught.value)


def test_folders_of_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Numbers(5))
    for name in ("step_old", "step_", "step_1e9", "step_999999999999", "backup"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "mine").touch()
    (tmp_path / "checkpoints/step_000099").touch()  # a file
    fit(tmp_path, Numbers())
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == sorted(
        ["backup", "step_", "step_000012", "step_000099", "step_1e9", "step_999999999999", "step_old"]
    )


class Poisoned(Regression):
    """From some loss on one number is not finite, though the loss is."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0
        self.register_buffer("spare", torch.zeros(1))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        loss, metrics = super().loss(batch)
        if self.calls == 7 and self.where == "buffer":
            self.spare = torch.full((1,), float("inf"))
        if self.calls == 7 and self.where == "gradient":
            loss = loss + (self.layers[0].bias * 0).sqrt().sum()  # 0 forwards, NaN backwards
        return loss, metrics


@pytest.mark.parametrize("where", ["buffer", "gradient"])
def test_numbers_that_are_not_finite_are_never_saved(where: str, tmp_path: Path) -> None:
    seed_everything(0)
    config = OptimConfig(steps=12, checkpoint_every=4, log_every=100, warmup_steps=2)
    last = r"at step 8\); the last good checkpoint is .*step_000004\. Try a lower optim\.learning_rate"
    with pytest.raises(UserError, match=last) as caught:
        train(Poisoned(where), Numbers(), config, CPU, tmp_path, "test")
    assert "diverged" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000004"]


def test_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    class Broken(Numbers):
        def batch(self, step: int, part: Part = ALL) -> dict[str, Tensor]:
            return {k: v * float("nan") for k, v in super().batch(step).items()}

    with pytest.raises(UserError, match=r"diverged, the loss is nan \(seen at step 4\); there is no check"):
        fit(tmp_path, Broken())


def test_schedule_warms_up_and_decays() -> None:
    values = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[10] == pytest.approx(1.0)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] == pytest.approx(0.05, abs=0.001)


def test_average_follows_the_weights_and_keeps_constants() -> None:
    model = nn.Linear(2, 2)
    average = ExponentialMovingAverage(model, 0.9)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    average.update(model, step=10_000)
    torch.testing.assert_close(average.shadow["weight"], before + 0.1)
    assert torch.equal(average.shadow["bias"], model.bias)


def test_only_matrices_decay() -> None:
    optimizer, _ = make_optimizer(Regression(), OptimConfig(weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0)


class Asking(Regression):
    """One layer at a tenth of the rate, the first one at none, and the bias of the last is not to be trained."""

    def optimizer_groups(self) -> tuple[list[dict[str, Any]], float]:
        own = {"betas": (0.5, 0.6), "eps": 1e-5, "weight_decay": 0.3}
        first, norm, last = (self.layers[i] for i in (0, 3, 4))
        return [
            {"params": list(first.parameters()), "lr_scale": 0.1, **own},
            {"params": [*norm.parameters(), last.weight], "lr_scale": 1.0, **own},
        ], 7.0


def test_what_an_objective_asks_for_is_taken_unless_the_user_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    model = Asking()
    optimizer, config = make_optimizer(model, OptimConfig())
    assert [group["lr_scale"] for group in optimizer.param_groups] == [0.1, 0.1, 1.0, 1.0]
    assert {(*group["betas"], group["eps"]) for group in optimizer.param_groups} == {(0.5, 0.6, 1e-5)}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0, 0.3, 0]
    assert (config.betas, config.epsilon, config.weight_decay, config.gradient_clip) == ([0.5, 0.6], 1e-5, 0.3, 7)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["layers.4.bias"]
    assert "1 weights stay as they are" in capsys.readouterr().err

    words: dict[str, Any] = {"betas": [0.8, 0.9], "epsilon": 1e-3, "weight_decay": 0.0, "gradient_clip": 2.0}
    optimizer, config = make_optimizer(Asking(), OptimConfig(**words))
    assert {(*group["betas"], group["eps"]) for group in optimizer.param_groups} == {(0.8, 0.9, 1e-3)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0}
    assert config == OptimConfig(**words)
    with pytest.raises(UserError, match=r"optim.betas=\[0.9\]: expected two numbers"):
        make_optimizer(Asking(), OptimConfig(betas=[0.9]))


def test_others_are_trained_as_ever() -> None:
    optimizer, config = make_optimizer(Regression(), OptimConfig())
    assert {(*group["betas"], group["eps"], group["lr_scale"]) for group in optimizer.param_groups} == {
        (0.9, 0.95, 1e-8, 1.0)
    }
    assert (config.weight_decay, config.gradient_clip) == (0.01, 1.0)


def test_a_group_moves_at_its_own_rate(tmp_path: Path) -> None:
    """The first step of Adam is as long as the rate, whatever the gradient."""
    seed_everything(0)
    model = Asking()
    before = {name: value.clone() for name, value in model.named_parameters()}
    options: dict[str, Any] = {"steps": 1, "warmup_steps": 0, "learning_rate": 1e-2, "weight_decay": 0.0}
    train(model, Numbers(), OptimConfig(**options, ema_decay=0, epsilon=1e-12), CPU, tmp_path, "test")
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.named_parameters()}
    assert moved["layers.0.weight"] == pytest.approx(1e-3, rel=0.01)
    assert moved["layers.4.weight"] == pytest.approx(1e-2, rel=0.01)
    assert moved["layers.4.bias"] == 0


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.SiLU())


@pytest.mark.long
@pytest.mark.timeout(900)  # beside others on two cores, the compiler takes minutes
def test_compiled_training_learns_the_same(tmp_path: Path) -> None:
    weights = {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        seed_everything(0)
        model = Regression()
        model.layers = nn.Sequential(nn.Linear(3, 16), block(), block(), nn.Linear(16, 1))
        runtime = replace(CPU, compile=compiled)
        config = OptimConfig(steps=5, warmup_steps=2, learning_rate=0.01)
        with torch._inductor.config.patch(fallback_random=True):  # draws as uncompiled code does
            throughput = train(model, Numbers(), config, runtime, tmp_path / str(compiled), "test")[1]
        weights[compiled] = model.layers[0].weight
        assert throughput["flop_per_sample"] > 0
        assert "forward" not in vars(model.layers[1])  # what comes after training is not compiled
    torch.testing.assert_close(weights[True], weights[False])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the code of one block serves both


def test_blocks_that_repeat_are_found() -> None:
    layers = [nn.Linear(3, 16), block(), nn.SiLU(), block(), nn.SiLU(), nn.Linear(16, 1)]
    layers.append(layers[3])  # used twice
    assert repeated_blocks(nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(3, 16)})) == [
        layers[1],
        layers[3],
    ]


def test_speed_leaves_the_first_steps_out(tmp_path: Path) -> None:
    class SlowStart(Numbers):
        def batch(self, step: int, part: Part = ALL) -> dict[str, Tensor]:
            if step == 0:
                time.sleep(1.0)
            return super().batch(step)

    config = OptimConfig(steps=10, log_every=5, warmup_steps=2)
    throughput = train(Regression(), SlowStart(), config, CPU, tmp_path, "test")[1]
    assert throughput["samples_per_second"] > 10 * 8 / 1.0


def test_the_next_batch_is_begun_before_one_is_used() -> None:
    begun: list[int] = []

    def make(item: int) -> int:
        if item == 4:
            raise UserError("cannot be read")
        begun.append(item)
        return 10 * item

    with ThreadPoolExecutor(1) as pool:
        batches = one_ahead(make, range(5), pool)
        assert next(batches) == 0
        pool.submit(int).result()  # what was begun is done
        assert begun == [0, 1]
        assert [next(batches) for _ in range(3)] == [10, 20, 30]
        with pytest.raises(UserError, match="cannot be read"):
            next(batches)


def test_scalars_go_to_the_tracker_and_a_resumed_training_goes_on_in_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Cut(Numbers):
        def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
            if step == 6:
                raise KeyboardInterrupt
            return super().batch(step)

    config = OptimConfig(steps=8, log_every=1, checkpoint_every=4, warmup_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(), Cut(), config, CPU, tmp_path, "test")
    train(Regression(), Numbers(), config, CPU, tmp_path, "test")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))  # 5 and 6 once
    assert {"learning_rate", "gradient_norm", "samples_per_second"} <= set(events.Tags()["scalars"])


def test_a_tracker_that_is_not_there_is_named() -> None:
    for name in ("wandb", "mlflow"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(UserError, match=f"runtime.tracker = {name}: its package is not installed"):
                make_accelerator(RuntimeConfig(device="cpu", tracker=name))
    with pytest.raises(UserError, match="runtime.tracker = 'paper': expected one of tensorboard, wandb"):
        make_accelerator(RuntimeConfig(device="cpu", tracker="paper"))


def test_peak_of_large_products_is_measured() -> None:
    assert bf16_peak("cpu", side=64) > 1e6


def test_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"runtime\.device = 'tpu'"):
        make_accelerator(RuntimeConfig(device="tpu"))
    with pytest.raises(UserError, match="mixed_precision"):
        make_accelerator(RuntimeConfig(device="cpu", mixed_precision="int8"))
