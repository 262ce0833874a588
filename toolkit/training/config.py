"""Options of every training: length, optimiser, and where it runs. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.base.options import option

MOST_STEPS = 1_000_000_000
MOST_BATCH = 65_536
MOST_THREADS = 1024
MOST_PROCESSES = 65_536
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("no", "bf16", "auto")
TRACKERS = (
    "tensorboard",
    "wandb",
    "trackio",
    "mlflow",
    "aim",
    "comet_ml",
    "swanlab",
    "clearml",
    "dvclive",
)  # accelerate's


@dataclass
class OptimConfig:
    """Length and optimiser of one training stage."""

    steps: int = option(1000, "gradient steps", least=1, most=MOST_STEPS)
    batch_size: int = option(16, "clips of one batch, for each process", least=1, most=MOST_BATCH)
    gradient_accumulation: int = option(1, "batches of one gradient step", least=1, most=MOST_BATCH)
    learning_rate: float = option(3e-4, "of AdamW, after the warm-up", least=0, most=1)
    betas: list[float] | None = option(
        None, "of AdamW; null = the policy's own, of other networks [0.9,0.95]", least=0, below=1
    )
    epsilon: float | None = option(None, "of AdamW; null = the policy's own, of other networks 1e-8", above=0, most=1)
    weight_decay: float | None = option(
        None, "of AdamW, for matrices; null = the policy's own, of other networks 0.01", least=0, most=10
    )
    warmup_steps: int = option(
        50, "steps in which the rate rises; it falls as a cosine after", least=0, most=MOST_STEPS
    )
    gradient_clip: float | None = option(
        None,
        "largest norm of a gradient, longer ones are shortened; null = the policy's own, of other networks 1",
        above=0,
        most=1_000_000_000,
    )
    ema_decay: float = option(0.995, "of the average of the weights that is saved; 0 = the last ones", least=0, below=1)
    log_every: int = option(20, "steps from one line of the log to the next", least=1, most=MOST_STEPS)
    checkpoint_every: int = option(500, "steps from one checkpoint to the next", least=1, most=MOST_STEPS)


@dataclass
class RuntimeConfig:
    """Where and how to compute."""

    device: str = option("auto", "what computes; auto = a GPU where there is one", choices=DEVICES)
    mixed_precision: str = option(
        "no", "bf16 on a CPU without AMX or AVX-512 is far slower; auto = bf16 on a GPU alone", choices=PRECISIONS
    )
    threads: int = option(0, "CPU threads of torch; 0 = torch's default", least=0, most=MOST_THREADS)
    compile: bool = option(False, "torch.compile the blocks that repeat: a minute at the start, for long trainings")
    tracker: str = option("tensorboard", "where scalars go, if its package is installed", choices=TRACKERS)


@dataclass
class ParallelismConfig:
    """How the processes of a training share a pretrained network; the names are those of LeRobot's settings."""

    dp_replicate: int | None = option(
        None,
        "groups of processes that hold the network side by side; null = all processes / dp_shard",
        least=1,
        most=MOST_PROCESSES,
    )
    dp_shard: int = option(
        1,
        "processes that the blocks of a pretrained network are divided among (FSDP2); 1 = each holds all of it",
        least=1,
        most=MOST_PROCESSES,
    )
