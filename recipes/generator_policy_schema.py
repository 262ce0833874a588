"""Typed configuration of a generator that acts as a policy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from omegaconf import MISSING

from recipes.schema import METHODS, MOST_LENGTH, ORDERS, CommonConfig, max_parameters, text_encoder, video_base
from toolkit.base.options import option

SAMPLES = ("plan", "joint")


@dataclass
class GeneratorPolicyConfig:
    """How a generator acts; null = as its checkpoint says, or what suits the generator."""

    sample: str | None = option(
        None,
        "what it makes of a picture: plan = the actions alone, joint = a whole sample, actions and video; null = plan, "
        "where the generator has plans",
        choices=SAMPLES,
    )
    n_action_steps: int | None = option(
        None, "steps of a sample that are executed before the next one; null = all", least=1, most=MOST_LENGTH
    )
    num_inference_steps: int | None = option(None, "steps of the solver, of a joint sample", least=1, most=10_000)
    guidance_scale: float | None = option(None, "of a joint sample; 1 = no guidance", least=0, most=100)
    method: str | None = option(None, "solver of a joint sample", choices=METHODS)
    order: str | None = option(None, "which stream of a joint sample comes first", choices=ORDERS)
    negative_prompt: str | None = option(None, "what guidance leads away from, with a pretrained video model")
    save_predicted_video: bool | None = option(
        None, "keep the pictures of joint samples: vag evaluate and lerobot-eval then write them as videos"
    )
    instruction_encoder: str | None = text_encoder()
    base: str | None = video_base()


def chosen(config: GeneratorPolicyConfig) -> tuple[dict[str, Any], str | None]:
    """The settings that a config names, and where the pretrained video model is."""
    named = {one.name: getattr(config, one.name) for one in fields(GeneratorPolicyConfig)}
    base = named.pop("base")
    return {name: value for name, value in named.items() if value is not None}, base


@dataclass
class GeneratorPolicyCommandConfig(CommonConfig, GeneratorPolicyConfig):
    checkpoint: str = option(MISSING, "generator directory written by train-generator")
    max_parameters: int = max_parameters()
