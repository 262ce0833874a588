"""GPUs that a dry run estimates for: memory, and FLOP/s of matrix products as the vendor's data sheets give them.

Peaks are without sparsity, which the sheets' headlines count twice. Memory is the nominal number times 10^9; a card has
up to 7 % more (24 GB are 24 GiB), which is left to the CUDA context and to gaps between blocks of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.base.options import option


@dataclass(frozen=True)
class Gpu:
    """memory: GB; bf16: TFLOP/s of tensor cores with float32 sums; float32: of what is not bfloat16."""

    memory: int
    bf16: float
    float32: float

    @property
    def bytes(self) -> float:
        return self.memory * 1e9


GPUS = {
    "rtx4090": Gpu(24, 165.2, 82.6),  # NVIDIA Ada GPU Architecture white paper, appendix A
    "a6000": Gpu(48, 154.8, 38.7),  # NVIDIA RTX A6000 data sheet: 309.7 with sparsity
    "l40s": Gpu(48, 362.05, 91.6),  # NVIDIA L40S data sheet: 733 with sparsity
    "a100": Gpu(80, 312.0, 19.5),  # NVIDIA A100 80GB data sheet
    "h100": Gpu(80, 989.4, 66.9),  # NVIDIA H100 SXM data sheet: 1,979 with sparsity
    "h200": Gpu(141, 989.4, 66.9),  # NVIDIA H200 SXM data sheet
}


@dataclass
class DryRunConfig:
    """Options of a command that can say what it would take."""

    dry_run: bool = option(
        False,
        "train nothing: say what a step takes in weights, memory, FLOP and seconds, and what fits on a GPU; nothing is "
        "downloaded or decoded, dataset= may be left out",
    )
    gpu: str = option("h100", "what a dry run estimates for", choices=tuple(GPUS))
    peak_share: float = option(
        0.4, "of the GPU's bf16 peak that a dry run takes as reached: an assumption", above=0, most=1
    )
