"""The one training loop: generator, tokenizer and policies all train through it.

It sees two Protocols only: `loss(batch) -> (loss, metrics)` and `batch(step, part) -> batch`.

A step has one batch, whose size is `batch_size` times the batches that are accumulated times the processes. Each of
these takes its part of it, every so-many-th clip, and the mean of the losses of the parts is that of the whole batch:
what is learned does not depend on how the batch is divided.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from toolkit.base.errors import NotFiniteError, UserError
from toolkit.base.progress import progress
from toolkit.data.batches import RNG, BatchSource, Part
from toolkit.training.checkpoint import load_checkpoint, save_checkpoint, saved_steps
from toolkit.training.config import OptimConfig as OptimConfig
from toolkit.training.config import ParallelismConfig as ParallelismConfig
from toolkit.training.fsdp import FullySharded, called_as_units, shard
from toolkit.training.logging import ScalarLog
from toolkit.training.optim import ExponentialMovingAverage, load_trained_state, make_optimizer, warmup_cosine
from toolkit.training.out_of_memory import ELSE, Memory, one_line_if_full, training_advice
from toolkit.training.parallel import average_gradients, clip_gradients, mean_over_processes, mixed_seed, share_weights
from toolkit.training.runtime import (
    RuntimeConfig,
    bf16_peak,
    forwards,
    make_accelerator,
    precision,
    repeated_blocks,
    seed_everything,
)
from toolkit.training.watch import Watch, let_look

WHOLE = ParallelismConfig()  # each process holds the whole objective
THROUGHPUT = ("samples_per_second", "flop_per_second", "flop_per_sample", "bf16_peak_share")


def train(
    objective: nn.Module,
    data: BatchSource,
    config: OptimConfig,
    runtime: RuntimeConfig,
    directory: Path,
    description: str,
    watch: Watch | None = None,
    *,
    seed: int = 0,
    parallelism: ParallelismConfig = WHOLE,
) -> tuple[dict[str, float], dict[str, float]]:
    """Train `objective`, which is on the CPU, in place and leave its averaged weights in it.

    Returns the last metrics and the values of `Throughput`, of all processes. Continues from `directory/checkpoints`
    where one is found; the result is then bit for bit that of an uninterrupted run, since what is drawn for a step
    depends on `seed`, `description`, the step and the part of its batch alone. `watch` looks on. The main process
    writes. `parallelism` may divide the objective among processes (`fsdp`); the main one alone then has its weights in
    the end. Raises UserError for a loss, gradient, weight or average that is not finite: no such number is ever saved.
    """
    accelerator = make_accelerator(runtime, directory)
    share_weights(objective.train())
    shards = shard(objective, parallelism, accelerator.device, precision(runtime))
    objective.to(accelerator.device)
    optimizer, config = make_optimizer(objective, config)
    average = ExponentialMovingAverage(objective, config.ema_decay)
    checkpoints = directory / "checkpoints"
    first, metrics = load_checkpoint(checkpoints, objective, optimizer, average, config.steps, shards)
    accelerator.wait_for_everyone()  # all have read it, and the main process may write the next one
    advance = GradientSteps(accelerator, objective, optimizer, config, runtime.compile, f"{seed} {description}")
    advance.parallelism = parallelism
    speed = Throughput(accelerator.device, metrics, accelerator.num_processes)
    log = ScalarLog(accelerator, directory, first)
    batches = on_device(data, advance.places_from(first), accelerator.device)
    let_look(watch, log, objective, average, first, resumed=True, everywhere=shards is not None)
    bar = progress(description=description, total=config.steps, initial=first, unit="step")
    for done in range(first + 1, config.steps + 1):
        with one_line_if_full(accelerator.device, advance.advice, optimizer, lambda: f". {last_good(checkpoints)}"):
            values, norm = advance(done - 1, batches, speed)
        average.update(objective, done - 1)
        speed.count(config.batch_size * config.gradient_accumulation * accelerator.num_processes)
        bar.update()
        saving = done % config.checkpoint_every == 0 or done == config.steps or bool(watch and watch.due(done))
        if done % config.log_every == 0 or saving:
            metrics = mean_over_processes(values, accelerator.device)
            last = {"gradient_norm": float(norm), "learning_rate": advance.learning_rate(done - 1)}
            check_finite({"loss": metrics["loss"], "gradient norm": norm}, description, done, checkpoints)
            bar.set_postfix(loss=f"{metrics['loss']:.4f}")
            metrics |= speed.measure()
            log.scalars(done, metrics | last)
        if saving and (accelerator.is_main_process or shards is not None):
            try:
                save_checkpoint(checkpoints, done, objective, optimizer, average, metrics, shards)
            except NotFiniteError as error:
                raise diverged(description, str(error), done, checkpoints) from error
        speed.leave_out(let_look(watch, log, objective, average, done, everywhere=shards is not None))
    for opened in (bar, batches, log):
        opened.close()
    finish(objective, average, shards)
    return {key: value for key, value in metrics.items() if key not in THROUGHPUT}, speed.values


def finish(objective: nn.Module, average: ExponentialMovingAverage, shards: FullySharded | None) -> None:
    """Leave the averaged weights in the objective, on the CPU; of one that is divided in the main process alone."""
    load_trained_state(objective, average.shadow)
    share_weights(objective)  # what is measured in a forward pass differs: running statistics of normalisation
    if shards is None:
        objective.to("cpu")
    else:
        shards.make_whole()
    objective.eval()


class GradientSteps:
    """Call it for one step of the optimiser, on as many batches as are accumulated."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: OptimConfig,
        compiles: bool,
        seed: str,
    ) -> None:
        """seed: names the training, whatever its steps draw."""
        self.accelerator, self.objective, self.optimizer, self.config = accelerator, objective, optimizer, config
        blocks = repeated_blocks(objective) if compiles else []
        self.compiled = [(block, torch.compile(block.forward)) for block in blocks]
        self.seed = seed
        self.parallelism = WHOLE

    def parts(self) -> list[Part]:
        """The parts of a step's batch that this process takes, in order."""
        accumulated, processes = self.config.gradient_accumulation, self.accelerator.num_processes
        first = self.accelerator.process_index
        return [Part(first + i * processes, accumulated * processes) for i in range(accumulated)]

    def places_from(self, step: int) -> Iterator[tuple[int, Part]]:
        """What this process reads, from a step to the last one."""
        return ((number, part) for number in range(step, self.config.steps) for part in self.parts())

    def advice(self, memory: Memory) -> str:
        """The line of a step that a GPU has no memory for."""
        group = "tokenizer_optim" if self.seed.endswith(" tokenizer") else "optim"
        helps = getattr(self.objective, "memory_helps", ELSE)
        return training_advice(memory, self.config.batch_size, self.config.gradient_accumulation, group, helps)

    def learning_rate(self, step: int) -> float:
        return self.config.learning_rate * warmup_cosine(step, self.config.steps, self.config.warmup_steps)

    def __call__(
        self, step: int, batches: Iterator[dict[str, Any]], speed: Throughput
    ) -> tuple[dict[str, Tensor | float], Tensor]:
        """Loss and metrics, the mean of this process, and the norm of the gradient of all before it was clipped."""
        parts, values = self.parts(), dict[str, Tensor | float]()
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_scale"] * self.learning_rate(step)
        for part in parts:
            batch = next(batches)
            # For the whole batch, of which an objective that knows of parts takes its rows.
            batch[RNG] = torch.Generator(self.accelerator.device).manual_seed(mixed_seed(f"{self.seed} {step}"))
            seed_everything(mixed_seed(f"{self.seed} {step} {part.index}"))  # dropout, and whatever draws by itself
            first = step == 0 and part is parts[0]
            # Counting changes the last bit of sums: never at a step that depends on when training was interrupted.
            # It would also switch compilation off for good. A block that is computed again must be the same one.
            with count_flop() if first else nullcontext() as counter, forwards([] if first else self.compiled):
                with self.accelerator.autocast(), called_as_units(self.parallelism):
                    loss, metrics = cast(Any, self.objective).loss(batch)
                (loss.float() / len(parts)).backward()
            if counter is not None:
                speed.flop = counter.get_total_flops() / self.config.batch_size
            for key, value in {"loss": loss.detach(), **metrics}.items():
                values[key] = values.get(key, 0.0) + value / len(parts)
        trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        average_gradients(trained)
        assert self.config.gradient_clip is not None  # `make_optimizer` has settled it
        norm = clip_gradients(trained, self.config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return values, norm


class Throughput:
    """Speed of all processes, without the steps up to the first measurement if there are more: code is compiled there.

    values: samples_per_second; flop_per_sample of the first step (matrix products, convolutions and attention, forwards
    and backwards); flop_per_second; on a GPU bf16_peak_share of it in what that GPU was measured to reach in large
    matrix products, times the processes.
    """

    def __init__(self, device: torch.device, before: dict[str, float], processes: int = 1) -> None:
        self.values = {key: before[key] for key in THROUGHPUT if key in before}  # of a run that was killed at its end
        self.flop = before.get("flop_per_sample", 0.0)
        self.peak = processes * bf16_peak(device) if device.type == "cuda" else None
        self._started, self._samples, self._warm = time.perf_counter(), 0, False

    def count(self, samples: int) -> None:
        self._samples += samples

    def leave_out(self, seconds: float) -> None:
        """Time just spent on something else."""
        self._started += seconds

    def measure(self) -> dict[str, float]:
        """The numbers of `THROUGHPUT` as they are now."""
        rate = self._samples / (time.perf_counter() - self._started)
        self.values = {"samples_per_second": rate, "flop_per_second": rate * self.flop, "flop_per_sample": self.flop}
        if self.peak is not None:
            self.values["bf16_peak_share"] = rate * self.flop / self.peak
        if not self._warm:
            self._started, self._samples, self._warm = time.perf_counter(), 0, True
        return self.values


def check_finite(numbers: dict[str, float | Tensor], description: str, step: int, checkpoints: Path) -> None:
    """Raise UserError, see `diverged`, for one that is not."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise diverged(description, f"the {name} is {float(number)}", step, checkpoints)


def diverged(description: str, reason: str, step: int, checkpoints: Path) -> UserError:
    """One line on a training whose numbers are no longer finite."""
    return UserError(
        f"{description}: diverged, {reason} (seen at step {step}); {last_good(checkpoints)}. Try a lower "
        "optim.learning_rate, with overwrite=true"
    )


def last_good(checkpoints: Path) -> str:
    """Which checkpoint there is to go on from."""
    good = list(saved_steps(checkpoints).values())
    return f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint from before"


def on_device(
    data: BatchSource, places: Iterable[tuple[int, Part]], device: torch.device
) -> Generator[dict[str, Any], None, None]:
    """The parts of batches at these places (step, part) in the order of training, on the device.

    For a GPU the next one is made meanwhile, in memory that it reads by itself: the process need not wait for a copy.
    Sources that draw from torch's own generator (`draws_from_torch`) make theirs in turn.
    """

    def made(place: tuple[int, Part]) -> dict[str, Any]:
        batch = data.batch(*place)
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()} if on_gpu else batch

    on_gpu = device.type == "cuda"
    ahead = on_gpu and not getattr(data, "draws_from_torch", False)
    with ThreadPoolExecutor(1) if ahead else nullcontext() as pool:
        for batch in one_ahead(made, places, pool) if pool else map(made, places):
            yield {k: v.to(device, non_blocking=on_gpu) if isinstance(v, Tensor) else v for k, v in batch.items()}


def one_ahead[Item, Made](make: Callable[[Item], Made], items: Iterable[Item], pool: Executor) -> Iterator[Made]:
    """`make` of each item, in order; that of the next one is begun before one is handed out."""
    waiting: Future[Made] | None = None
    for item in items:
        begun = pool.submit(make, item)
        if waiting is not None:
            yield waiting.result()
        waiting = begun
    if waiting is not None:
        yield waiting.result()


def count_flop() -> FlopCounterMode:
    """Context that counts floating-point operations, attention on the CPU included, which PyTorch leaves out."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        batch, heads, queries, width = query
        return 2 * batch * heads * queries * key[2] * (width + value[3])

    def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return 5 * attention(query, key, value) // 2  # five products, of which the first is made again

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mapping = {cpu: attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)
