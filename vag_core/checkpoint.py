"""Checkpoints that somebody else wrote: what the file holds is compared with the network before it is built.

A config is a few bytes that can ask for any size. So a network is first built on torch's `meta` device, where tensors
have shapes and no memory, and only if its names and shapes are those of the safetensors file, for real. Everything
here raises ValueError with one line that names the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from vag_core.config import MOST_PARAMETERS

Shapes = dict[str, tuple[int, ...]]

MOST_CONFIG_BYTES = 1 << 20
MOST_CONFIG_DEPTH = 32

# Networks build parts that they drop: `diffusion_compact` a ResNet, SmolVLA half of its layers, pi0 13 billion numbers
# on the way to 4. So a network may make so many times what is in the file, and so much more.
MOST_TIMES = 4
SPARE_NUMBERS = 1 << 26
SPARE_TENSORS = 10_000


class TooLargeError(ValueError):
    """A network larger than its file."""


def read_config(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON file: at most 1 MB, 32 deep, without NaN or infinity."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: not found")
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size} bytes; expected at most {MOST_CONFIG_BYTES}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path}: not valid JSON ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}; expected a mapping")
    if _depth(values) > MOST_CONFIG_DEPTH:
        raise ValueError(f"{path}: nested more than {MOST_CONFIG_DEPTH} deep")
    return values


def read_shapes(path: str | Path, max_parameters: int = MOST_PARAMETERS) -> Shapes:
    """Names and shapes of the tensors in a safetensors file; no tensor is read.

    max_parameters: numbers that all of them may have together.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: not found; weights are read from safetensors only")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({first_line(error)})") from error
    if (total := numbers(shapes)) > max_parameters:
        raise ValueError(
            f"{path}: holds {total} numbers; at most {max_parameters} are loaded, more with max_parameters={total}"
        )
    return shapes


def load_network[Network: nn.Module](
    build: Callable[[], Network],
    path: str | Path,
    max_parameters: int = MOST_PARAMETERS,
    what: str = "network",
    rename: Callable[[dict[str, Any], nn.Module], dict[str, Any]] = lambda values, network: values,
) -> Network:
    """The network that `build` makes, with the weights of a safetensors file, and nothing missing or left over.

    build: called twice, first on the `meta` device. what: names it in errors. rename: from what an older version wrote,
    by name, to what is built; called with shapes and the network on the `meta` device, then with tensors and the one
    that is returned. Raises ValueError if the file is damaged or too large, if a weight is missing, unexpected, of
    another shape or not finite, or if the network would be larger than the file; what `build` raises by itself comes
    through.
    """
    path = Path(path)
    shapes = read_shapes(path, max_parameters)
    try:
        plan = plan_network(build, shapes, f"{path}: ", what)
    except TooLargeError:
        raise
    except Exception:  # some networks cannot be built there, such as those that read weights as they are built
        network = _build_within(build, shapes, f"{path}: ", what)
        check_names(network, rename(shapes, network), path, what)
    else:
        check_names(plan, rename(shapes, plan), path, what)
        network = build()
    weights = rename(load_file(path), network)
    check_finite(weights, f"{path}: ")
    # What is tied has one name in the file and several in the network.
    network.load_state_dict(weights, strict=False)
    return network


def plan_network[Network: nn.Module](build: Callable[[], Network], shapes: Shapes, where: str, what: str) -> Network:
    """The network on the `meta` device: shapes without memory.

    Raises TooLargeError, a ValueError, as soon as it has clearly more tensors or numbers than `shapes`, those of a
    file: MOST_TIMES as many and a constant, for parts that are dropped again.
    """
    with unfilled():
        return _counted_build(build, shapes, where, what)


@contextmanager
def unfilled() -> Iterator[None]:
    """Inside, what is built is on the `meta` device, and torch's generator stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _Unfilled():
        yield


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise ValueError that names the first tensor with a NaN or an infinity; where: begins the line."""
    for name, tensor in tensors.items():
        # One pass without a copy: the sum of finite numbers may overflow, so it only acquits.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise ValueError(f"{where}'{name}' holds numbers that are not finite; expected finite ones only")


def numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes hold together."""
    return sum(math.prod(shape) for shape in shapes.values())


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def check_names(
    plan: nn.Module, shapes: Shapes, path: Path, what: str, is_saved: Callable[[str], bool] = lambda name: True
) -> None:
    """Raise ValueError unless the file has just the weights of a network, or those that are saved of it."""
    own = {name: value for name, value in plan.state_dict(keep_vars=True).items() if is_saved(name)}
    loaded = {id(own[name]) for name in own.keys() & shapes.keys()}
    for how, names in (
        ("missing", {name for name in own.keys() - shapes.keys() if id(own[name]) not in loaded}),
        ("unexpected", shapes.keys() - own.keys()),
        ("of another shape", {n for n in own.keys() & shapes.keys() if tuple(own[n].shape) != shapes[n]}),
    ):
        if names:
            raise ValueError(
                f"{path}: {len(names)} weights {how} for a {what}, first '{min(names)[:100]}'; the file does not fit "
                "its config.json, was it written by another version?"
            )


def _build_within[Network: nn.Module](build: Callable[[], Network], shapes: Shapes, where: str, what: str) -> Network:
    """The network for real; no single tensor that it makes is larger than all of it may be."""
    with _SmallTensors(_most_numbers(shapes), f"{where}its config asks for a larger {what} than the file holds"):
        return _counted_build(build, shapes, where, what)


def _most_numbers(shapes: Shapes) -> int:
    return MOST_TIMES * numbers(shapes) + SPARE_NUMBERS


def _counted_build[Network: nn.Module](build: Callable[[], Network], shapes: Shapes, where: str, what: str) -> Network:
    """What `build` makes, stopped where its modules register more than the file holds and may be dropped."""
    most_tensors, most_numbers = MOST_TIMES * len(shapes) + SPARE_TENSORS, _most_numbers(shapes)
    refused = f"{where}its config asks for a larger {what} than the file holds ({numbers(shapes)} numbers)"
    modules = tensors = total = 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, total
        if tensor is not None:
            tensors, total = tensors + 1, total + tensor.numel()
            if tensors > most_tensors or total > most_numbers:
                raise TooLargeError(refused)

    def count_module(module: nn.Module, name: str, part: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > most_tensors:
            raise TooLargeError(refused)

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count_module),
    ]
    try:
        return build()
    finally:
        for hook in hooks:
            hook.remove()


class _Unfilled(TorchFunctionMode):
    """Inside, tensors on the `meta` device, which hold nothing, are not filled: torch would import for seconds."""

    FILLS = ("uniform_", "normal_", "fill_", "zero_", "mul_", "add_", "sub_", "div_", "clamp_", "erfinv_")
    SCALES = ("mul", "__mul__", "__rmul__", "div", "__truediv__", "add", "__add__", "__radd__", "sub", "__sub__")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if func in (torch.randn, torch.rand):
            return torch.empty(*args, **{key: value for key, value in kwargs.items() if key != "generator"})
        first = args[0] if args else kwargs.get("tensor")
        if isinstance(first, Tensor) and first.is_meta:
            if name in self.FILLS or getattr(func, "__module__", None) == nn.init.__name__:
                return first
            if name == "to":  # as constructors move their network to a device
                device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **kwargs)
                return (
                    func(first, dtype) if dtype is not None else first if device is not None else func(*args, **kwargs)
                )
            scaled = first.is_floating_point() and len(args) == 2 and isinstance(args[1], int | float) and not kwargs
            if name in self.SCALES and scaled:
                return torch.empty(first.shape, dtype=first.dtype, device="meta")
        return func(*args, **kwargs)


class _SmallTensors(TorchFunctionMode):
    """Inside, torch makes no tensor of more than so many numbers."""

    FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.eye)

    def __init__(self, most: int, refused: str) -> None:
        super().__init__()
        self.most, self.refused = most, refused

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FACTORIES and func(*args, **{**kwargs, "device": "meta"}).numel() > self.most:
            raise TooLargeError(self.refused)
        return func(*args, **kwargs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [
        inner
        for item in level
        if isinstance(item, dict | list)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
    return depth
