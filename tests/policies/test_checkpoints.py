"""Checkpoints of strangers: nothing that they name is run, fetched or built, and each is refused in one line."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.processor import ProcessorStepRegistry, tokenizer_processor
from lerobot.processor.pipeline import IdentityProcessorStep
from safetensors.torch import load_file, save_file

from policies.checkpoint_config import Loading, read_config
from policies.checkpoints import checkpoint_directory, load_weights
from policies.factory import PolicyObjective
from policies.known_types import FIXED, POLICY_TYPES, STEPS, TEXTS, WORDS
from policies.stock import load_policy
from recipes.cli import main
from toolkit.base.errors import UserError
from toolkit.data.conventions import Conventions
from toolkit.data.seen_scenes import read_scenes

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
FEATURES = {
    "input_features": {
        "observation.image": {"type": "VISUAL", "shape": [3, 64, 64]},
        "observation.state": {"type": "STATE", "shape": [4]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [4]}},
}

watched: list[str] | None = None
OUTSIDE = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")


def listen(event: str, arguments: tuple[Any, ...]) -> None:
    if watched is not None and (
        event in (*OUTSIDE, "socket.getaddrinfo") or (event == "import" and arguments[0].startswith("evil"))
    ):
        watched.append(f"{event} {arguments}"[:200])


sys.addaudithook(listen)


@contextmanager
def nothing_leaves(but: str = "nothing at all") -> Iterator[None]:
    """Inside, no process is started, no host asked for and no module of a stranger imported."""
    global watched
    watched = []
    try:
        yield
        assert [event for event in watched if but not in event] == []
    finally:
        watched = None


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def config(**values: Any) -> Callable[[Path], None]:
    return lambda directory: edit(directory / "config.json", lambda found: {**found, **values})


def step(file: str, place: int, **values: Any) -> Callable[[Path], None]:
    """Put something else in the place of a step."""

    def change(found: dict[str, Any]) -> None:
        found["steps"][place] = values

    return lambda directory: edit(directory / file, change)


def changed_step(file: str, name: str, **values: Any) -> Callable[[Path], None]:
    """Change the config of a step."""

    def change(found: dict[str, Any]) -> None:
        for entry in found["steps"]:
            if entry["registry_name"] == name:
                entry["config"].update(values)

    return lambda directory: edit(directory / file, change)


def entry_of(file: str, name: str, **values: Any) -> Callable[[Path], None]:
    """Change the entry of a step."""

    def change(found: dict[str, Any]) -> None:
        for entry in found["steps"]:
            if entry["registry_name"] == name:
                entry.update(values)

    return lambda directory: edit(directory / file, change)


def without(file: str, name: str) -> Callable[[Path], None]:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "steps": [entry for entry in found["steps"] if entry["registry_name"] != name]}

    return lambda directory: edit(directory / file, change)


def added(file: str, name: str, **values: Any) -> Callable[[Path], None]:
    """One more step, after all others."""

    def change(found: dict[str, Any]) -> None:
        found["steps"].append({"registry_name": name, "config": values})

    return lambda directory: edit(directory / file, change)


def twice(found: dict[str, Any]) -> None:
    found["steps"] += [entry for entry in found["steps"] if "state_file" in entry]


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).write_text(content) and None


def weight(value: float) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        weights[max(weights)].view(-1)[-1] = value
        save_file(weights, directory / "model.safetensors")

    return change


def statistics(change: Callable[[dict[str, torch.Tensor]], Any], of: str = "post") -> Callable[[Path], None]:
    def run(directory: Path) -> None:
        path = next(directory.glob(f"policy_{of}processor_step_*.safetensors"))
        tensors = {key: value.clone() for key, value in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return run


POPEN = {"class": "subprocess.Popen", "config": {"args": ["touch", "PWNED"]}}
NEST = "[" * 5000 + "]" * 5000

HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "class": (step(PRE, 0, **POPEN), "names the Python class 'subprocess.Popen'"),
    "class beside a name": (entry_of(PRE, "device_processor", **{"class": "os.system"}), "the Python class"),
    "class of the postprocessor": (step(POST, 0, **POPEN), "names the Python class"),
    "class of a module nearby": (step(PRE, 0, **{"class": "evil_module.Step", "config": {}}), "the Python class"),
    "name that is no text": (
        lambda directory: edit(directory / PRE, lambda found: {**found, "name": {"class": "subprocess.Popen"}}),
        "'name' is .* expected a text",
    ),
    "unknown step": (step(PRE, 0, registry_name="evil_step", config={}), r"allow=\[evil_step\]"),
    "step of no policy": (
        step(PRE, 0, registry_name="reward_classifier_processor", config={"pretrained_path": "evil/x"}),
        "no step of a known policy",
    ),
    "unknown key of a step": (
        changed_step(PRE, "normalizer_processor", stats={}),
        r"\(normalizer_processor\): unknown key 'stats'",
    ),
    "step config as text": (entry_of(PRE, "device_processor", config="cpu"), "expected a mapping"),
    "step as text": (lambda d: edit(d / PRE, lambda v: {**v, "steps": ["device_processor"]}), "step 0 is str"),
    "steps as a mapping": (lambda d: edit(d / PRE, lambda v: {**v, "steps": {}}), "expected 'steps', a list"),
    "no JSON": (text(POST, "{"), "not valid JSON"),
    "processor as a list": (text(PRE, "[]"), "holds list; expected dict"),
    "state file outside": (
        entry_of(PRE, "normalizer_processor", state_file="../x.safetensors"),
        r"state_file is '../x\.safetensors'; expected the plain name",
    ),
    "state file absolute": (entry_of(PRE, "normalizer_processor", state_file="/etc/passwd"), "plain name"),
    "state file of another kind": (entry_of(PRE, "normalizer_processor", state_file="a.pt"), "plain name"),
    "state file that is not there": (entry_of(PRE, "normalizer_processor", state_file="a.safetensors"), "not found"),
    "state file as a number": (entry_of(PRE, "normalizer_processor", state_file=3), "plain name"),
    "no steps at all": (lambda d: edit(d / POST, lambda v: {**v, "steps": []}), "no step 'unnormalizer_processor'"),
    "no normaliser": (without(PRE, "normalizer_processor"), "no step 'normalizer_processor'"),
    "no batching": (without(PRE, "to_batch_processor"), "no step 'to_batch_processor'"),
    "no words": (
        without(PRE, "pi05_compact_instruction_tokenizer"),
        "no step 'pi05_compact_instruction_tokenizer', which a pi05_compact policy needs",
    ),
    "no statistics": (statistics(lambda t: t.pop("action.q01")), "no statistics 'q01' of 'action'"),
    "statistics of another width": (
        statistics(lambda t: t.update({"action.q01": torch.zeros(7)})),
        r"'q01' of 'action' have shape \(7,\), expected \(3,\)",
    ),
    "statistics that training divides by, of another width": (
        statistics(lambda t: t.update({"action.q99": torch.zeros(7)}), "pre"),
        r"preprocessor.json: statistics 'q99' of 'action' have shape \(7,\), expected \(3,\)",
    ),
    "no statistics that training divides by": (
        statistics(lambda t: t.pop("action.q01"), "pre"),
        "preprocessor.json: normalizer_processor has no statistics 'q01' of 'action'",
    ),
    "statistics that are not finite": (statistics(lambda t: t["action.q01"].fill_(np.nan)), "not finite"),
    "another normalisation": (
        changed_step(POST, "unnormalizer_processor", norm_map={"ACTION": "IDENTITY"}),
        "does not normalise 'action' as config.json says",
    ),
    "features left out": (changed_step(POST, "unnormalizer_processor", features={}), "does not normalise 'action'"),
    "longer words": (
        changed_step(PRE, "pi05_compact_instruction_tokenizer", length=100_000),
        "'length' is 100000; config.json says 16",
    ),
    "absurd number in a step": (
        changed_step(PRE, "pi05_compact_instruction_tokenizer", length=10**12),
        "'length' is 1000000000000; expected at most",
    ),
    "scaled twice": (lambda d: edit(d / POST, twice), "has 2 steps 'unnormalizer_processor', expected one"),
    "scaled both ways": (added(POST, "normalizer_processor"), "'normalizer_processor', expected none"),
    # Known steps that make no sense in a row.
    "names of nothing": (changed_step(PRE, "rename_observations_processor", rename_map=None), "do not fit each other"),
    "names as numbers": (
        changed_step(PRE, "rename_observations_processor", rename_map={"observation.state": 5}),
        "do not fit each other",
    ),
    "names exchanged": (
        changed_step(PRE, "rename_observations_processor", rename_map={"observation.image": "observation.state"}),
        "do not fit each other",
    ),
    "pictures taken away": (added(PRE, "groot_n1_7_pack_inputs_v1"), "do not fit each other"),
    "state of another width": (added(PRE, "evo1_pad_state_processor", max_state_dim=5000), "do not fit each other"),
    "numbers of another kind": (changed_step(PRE, "device_processor", float_dtype="float16"), "do not fit each other"),
    "actions nowhere": (changed_step(POST, "device_processor", device="meta"), "do not fit each other"),
    "actions of another width": (
        added(POST, "evo1_action_processor", action_dim=1),
        r"actions of shape \(1, \d+, 1\); expected \(1, \d+, 3\)",
    ),
    "absolute actions of nothing": (added(POST, "absolute_actions_processor", enabled=True), "do not fit each other"),
    "unknown type": (config(type="evil"), r"type 'evil', expected a policy"),
    "type as a list": (config(type=["act"]), "expected a policy"),
    "backbone from the hub": (config(vision_backbone="hf-hub:evil/net"), "allow_repo"),
    "backbone nearby": (config(vision_backbone="local-dir:evil"), "another repository or directory"),
    "kernel": (config(vision_backbone="evil/net"), "'vision_backbone' names another repository"),
    "negative width": (config(width=-8), "cannot build|not a valid"),
    "width of nothing": (config(expert_width=0), "cannot build|of another shape"),
    "width": (config(expert_width=200_000), "'expert_width' is 200000; expected at most 12800"),
    "width by the rules": (config(expert_width=12_800), "asks for a larger pi05_compact policy than the file holds"),
    "depth": (config(depth=10**7), "'depth' is 10000000"),
    "depth by the rules": (config(depth=10_000), "asks for a larger pi05_compact policy than the file holds"),
    "numbers as texts": (config(depth="10000000"), "'depth' is the text '10000000'; expected a number"),
    "fractions": (config(depth=2.5), "not a valid pi05_compact configuration"),
    "not a number": (config(max_period=float("nan")), "'max_period' is nan; expected a finite number"),
    "infinity": (config(sampling_temperature=float("inf")), "expected a finite number"),
    "tables beside the weights": (config(state_bins=10**9), "'state_bins' is 1000000000"),
    "huge pictures": (
        config(
            input_features={
                **FEATURES["input_features"],
                "observation.image": {"type": "VISUAL", "shape": [3, 8192, 8192]},
            }
        ),
        r"feature 'observation.image' has shape \[3, 8192, 8192\]",
    ),
    "no side": (
        config(output_features={"action": {"type": "ACTION", "shape": [None]}}),
        r"feature 'action' has shape \[None\]; expected",
    ),
    "odd sides": (
        config(
            input_features={**FEATURES["input_features"], "observation.image": {"type": "VISUAL", "shape": [3, 33, 32]}}
        ),
        "of another shape",
    ),
    "no picture": (
        config(input_features={**FEATURES["input_features"], "observation.image": {"type": "VISUAL", "shape": [-1]}}),
        "has shape",
    ),
    "another camera": (
        config(
            input_features={
                **FEATURES["input_features"],
                "observation.images.b": {"type": "VISUAL", "shape": [3, 9, 9]},
            }
        ),
        "weights missing",
    ),
    "a picture that is none": (
        config(
            input_features={
                "observation.image": {"type": "STATE", "shape": [3]},
                "observation.state": {"type": "STATE", "shape": [4]},
            }
        ),
        "no feature of type VISUAL",
    ),
    "features as text": (config(input_features="all"), "not a valid pi05_compact configuration"),
    "features of no kind": (config(input_features={"observation.image": 3}), "not a valid pi05_compact"),
    "long text": (config(vision_backbone="a" * 5000), "has 5000 letters"),
    "long list": (config(tags=["a"] * 20_000), "'tags' has 20000 items"),
    "unknown field": (config(horizont=1), "not a valid pi05_compact configuration"),
    "nested": (text("config.json", '{"type": ' + NEST + "}"), "nested|not valid JSON"),
    "nested processor": (text(PRE, '{"steps": ' + NEST + "}"), "nested|not valid JSON"),
    "nested a little": (config(tags=json.loads("[" * 70 + "]" * 70)), "nested more than 64 deep"),
    "large JSON": (text("config.json", '{"type": "' + "a" * (2 << 20) + '"}'), "bytes; at most"),
    "NaN among the weights": (weight(np.nan), "holds numbers that are not finite"),
    "infinity among the weights": (weight(-np.inf), "holds numbers that are not finite"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "safetensors only"),
    "pickled weights": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin") and None,
        "safetensors only",
    ),
}


@pytest.fixture
def copy(originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a good checkpoint, and a module beside the user's feet that must not be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text("open('PWNED', 'w').close()\nStep = dict\n")
    shutil.copytree(originals["pi05_compact"], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_strangers_checkpoint_is_refused_in_one_line(copy: Path, name: str) -> None:
    change, message = HOSTILE[name]
    load_policy(copy)  # good until then
    change(copy)
    with nothing_leaves(), pytest.raises(UserError, match=message) as refusal:
        load_policy(copy)
    told = str(refusal.value)
    assert "\n" not in told
    assert len(told) < 600
    assert str(copy) in told
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
@pytest.mark.parametrize(
    "name",
    [
        *("class", "unknown step", "unknown key of a step", "state file outside", "no steps at all", "unknown type"),
        *("backbone from the hub", "width by the rules", "NaN among the weights", "nested", "negative width"),
    ],
)
def test_the_commands_refuse_it_too(
    copy: Path, dataset: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    HOSTILE[name][0](copy)
    data = [f"real=[{dataset}]"] if command == "finetune" else []
    with nothing_leaves(but="git"):  # which a run asks for the commit
        assert main([command, f"checkpoint={copy}", "out=out", *data]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vag: ")]
    assert len(lines) == 1
    assert str(copy) in lines[0]
    assert not list(Path().rglob("PWNED"))


@pytest.mark.parametrize("file", ["seen_scenes.json", "conventions.json"])
def test_what_lies_beside_a_checkpoint_may_be_nested_too(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text('{"push": ' + "[" * 100_000)
    read: Any = read_scenes if file == "seen_scenes.json" else Conventions.read
    with pytest.raises(UserError, match=file) as refusal:
        read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_open_loop_evaluation_takes_the_same_door(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HOSTILE["class"][0](copy)
    assert main(["evaluate", f"checkpoint={copy}", "dataset=nowhere", "out=out"]) == 2
    assert "names the Python class" in capsys.readouterr().err


def test_the_instruction_step_is_needed_where_the_policy_takes_it(originals: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(originals["diffusion_compact"], tmp_path / "copy")
    load_policy(copy)
    changed_step(PRE, "vag_instruction_embedding", width=4096)(copy)
    with pytest.raises(UserError, match="'width' is 4096; config.json says 64"):
        load_policy(copy)
    changed_step(PRE, "vag_instruction_embedding", width=64, path="/nowhere")(copy)
    with pytest.raises(UserError, match="/nowhere: directory not found"):
        load_policy(copy)
    without(PRE, "vag_instruction_embedding")(copy)
    with pytest.raises(UserError, match="no step 'vag_instruction_embedding'"):
        load_policy(copy)


# ----------------------------------------------------------------------------------------------------- sizes


def peak_megabytes(during: Callable[[], Any]) -> float:
    """How far the process's memory rises above what it is now."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    during()
    return (status("VmHWM") - before) / 1024


@pytest.mark.parametrize(
    "values",
    [
        {"expert_width": 12_800},
        {"depth": 10_000},
        {"tokenizer_buckets": 409_600, "width": 12_800},
        {"chunk_size": 8192},
    ],
)
def test_a_network_larger_than_its_file_is_not_built(copy: Path, values: dict[str, int]) -> None:
    config(**values)(copy)

    def refused() -> None:
        with pytest.raises(UserError, match="than the file holds|of another shape"):
            load_policy(copy)

    assert peak_megabytes(refused) < 150


def test_an_act_checkpoint_of_absurd_size_is_not_built(tmp_path: Path) -> None:
    small = {"chunk_size": 4, "n_action_steps": 3, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32}
    directory = written(tmp_path / "act", "act", **small)
    get_policy_class("act")(read_config(directory)).save_pretrained(directory)
    load_weights(read_config(directory), directory)
    config(dim_model=51_200, n_heads=4)(directory)
    with pytest.raises(UserError, match="asks for a larger act policy than the file holds"):
        load_policy(directory)
    config(dim_model=32, n_heads=2, chunk_size=10**9)(directory)
    with pytest.raises(UserError, match="'chunk_size' is 1000000000"):
        load_policy(directory)


def test_the_limit_is_lifted_by_max_parameters(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = sum(value.numel() for value in load_file(copy / "model.safetensors").values())
    with pytest.raises(UserError, match=rf"holds {numbers} numbers; at most 10 .*max_parameters={numbers}"):
        load_policy(copy, loading=Loading(max_parameters=10))
    load_policy(copy, loading=Loading(max_parameters=numbers))
    for limit, message in ((10, "at most 10 are loaded"), (0, "max_parameters=0: expected at least 1")):
        assert main(["evaluate", f"checkpoint={copy}", f"out=out{limit}", f"max_parameters={limit}"]) == 2
        assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- types and repositories


def written(directory: Path, kind: str, **values: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"type": kind, **FEATURES, **values}))
    return directory


@pytest.mark.parametrize(
    ("kind", "values"),
    [("groot", {}), ("pi0_fast", {}), ("wall_x", {}), ("gaussian_actor", {"vision_encoder_name": "evil/x"})],
)
def test_types_that_run_python_out_of_a_repository_need_a_word(
    tmp_path: Path, kind: str, values: dict[str, Any]
) -> None:
    directory = written(tmp_path / kind, kind, **values)
    with nothing_leaves(), pytest.raises(UserError, match=f"a '{kind}' policy runs Python .*allow_remote_code=true"):
        read_config(directory)
    trusted = Loading(allow_remote_code=True, allow_repo=("evil/x",))
    if kind != "groot":  # which has features of its own
        assert read_config(directory, trusted).type == kind


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("smolvla", "vlm_model_name", "evil/x"),
        ("smolvla", "vlm_model_name", "evil"),
        ("smolvla", "vlm_model_name", "./evil"),
        ("xvla", "tokenizer_name", "evil/x"),
        ("multi_task_dit", "text_encoder_name", "/evil/clip"),
        ("multi_task_dit", "vision_encoder_name", "evil/clip"),
        ("molmoact2", "checkpoint_path", "evil/x"),
        ("molmoact2", "checkpoint_revision", "refs/pr/7"),
        ("eo1", "vlm_base", "evil/x"),
        ("eo1", "attn_implementation", "evil/kernels"),
        ("eo1", "vlm_config", {"_name_or_path": "evil/x"}),
        ("eo1", "vlm_config", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("xvla", "florence_config", {"vision_config": {"auto_map": {}}}),
        ("evo1", "vlm_model_name", "evil/x"),
        ("fastwam", "tokenizer_model_id", "evil/x"),
        ("lingbot_va", "wan_pretrained_path", "evil/x"),
        ("vla_jepa", "qwen_model_name", "evil/x"),
        ("act", "vision_backbone", "evil/x"),
        ("gaussian_actor", "vision_encoder_name", "evil/x"),
    ],
)
def test_a_field_that_names_another_repository_needs_a_word(tmp_path: Path, kind: str, field: str, value: Any) -> None:
    directory = written(tmp_path / kind, kind, **{field: value})
    loading = Loading(allow_remote_code=True)
    with nothing_leaves(), pytest.raises(UserError, match=f"'{field}' (names another repository|holds 'auto_map')"):
        read_config(directory, loading)
    if isinstance(value, str) and kind in ("smolvla", "xvla", "multi_task_dit", "evo1", "gaussian_actor"):
        named = Loading(allow_remote_code=True, allow_repo=(value,))
        assert getattr(read_config(directory, named), field) == value


def test_a_tokenizer_of_another_repository_needs_a_word(copy: Path) -> None:
    def add(found: dict[str, Any]) -> None:
        name = {"tokenizer_name": "evil/x"}
        found["steps"].append({"registry_name": "tokenizer_processor", "config": name})

    edit(copy / PRE, add)
    with nothing_leaves(), pytest.raises(UserError, match="'tokenizer_name' names another repository .*allow_repo"):
        load_policy(copy)
    with pytest.raises(UserError, match="cannot load the processors"):  # it is asked for, and not there
        load_policy(copy, loading=Loading(allow_repo=("evil/x",)))
    step(PRE, -1, registry_name="action_tokenizer_processor", config={"action_tokenizer_name": "lerobot/x"})(copy)
    with nothing_leaves(), pytest.raises(UserError, match=r"\(action_tokenizer_processor\) runs Python"):
        load_policy(copy)


def test_own_defaults_pass_and_nothing_is_fetched_that_is_in_the_file(tmp_path: Path) -> None:
    """What LeRobot writes for its types is read, without the fields that make it download."""
    read = []
    for kind in POLICY_TYPES:
        if kind in ("groot", "eo1", "fastwam", "molmoact2"):  # cannot be made without a robot or transformers
            continue
        defaults = draccus.encode(PreTrainedConfig.get_choice_class(kind)(device="cpu"))
        known = {**defaults, **FEATURES, "pretrained_path": "lerobot/base", "repo_id": "somebody/else"}
        with nothing_leaves():
            config = read_config(written(tmp_path / kind, kind, **known), Loading(allow_remote_code=True))
        assert config.pretrained_path is None
        assert config.repo_id is None
        assert not config.push_to_hub
        for field in ("pretrained_backbone_weights", "vision_weights", "load_vlm_weights"):
            assert not getattr(config, field, None)
        read.append(kind)
    assert {"act", "diffusion", "pi0", "pi05", "smolvla", "pi05_compact"} <= set(read)


def test_every_text_field_of_lerobot_has_been_looked_at() -> None:
    """A field that a new release adds is taken to name a repository, and this test asks to look at it."""
    named = {
        *("vlm_base", "vlm_model_name", "model_id", "tokenizer_model_id", "text_encoder_model_id", "base_model_id"),
        *("vision_encoder_name", "text_encoder_name", "base_model_path", "tokenizer_assets_repo", "dataset_paths"),
        *("output_dir", "wan_pretrained_path", "checkpoint_path", "checkpoint_revision", "text_tokenizer_name"),
        *("discrete_action_tokenizer", "action_tokenizer_name", "action_tokenizer_path", "qwen_model_name"),
        *("jepa_encoder_name", "pretrained_name_or_path", "tokenizer_name"),
    }
    for kind, config_class in PreTrainedConfig.get_known_choices().items():
        assert kind in POLICY_TYPES, f"{kind}: a new type; read its code"
        texts = {field.name for field in fields(config_class) if "str" in str(field.type) or "Path" in str(field.type)}
        assert texts <= named | WORDS | TEXTS | FIXED.keys() | POLICY_TYPES[kind].fixed.keys(), kind
        assert not texts & named & (WORDS | TEXTS)


def test_needed_steps_are_those_that_lerobot_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anything:
        @classmethod
        def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
            return cls()

    monkeypatch.setattr(tokenizer_processor, "_transformers_available", True)
    for name in ("AutoTokenizer", "AutoProcessor"):
        monkeypatch.setattr(tokenizer_processor, name, Anything)
    features = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    compared = 0
    for kind, known in POLICY_TYPES.items():
        if kind in ("groot", "eo1", "fastwam", "molmoact2"):
            continue
        config = PreTrainedConfig.get_choice_class(kind)(device="cpu")
        config.input_features, config.output_features = features, {"action": PolicyFeature(FeatureType.ACTION, (4,))}
        pipelines = make_pre_post_processors(config)
        for pipeline, needed in zip(pipelines, (known.before, known.after), strict=True):
            for made in pipeline.steps:
                name = made._registry_name
                assert name in STEPS
                assert set(made.get_config()) <= STEPS[name], name
            made_of = {made._registry_name for made in pipeline.steps} - {"rename_observations_processor"}
            assert set(needed) == made_of - known.if_set.keys(), kind
            compared += 1
    assert compared >= 30


@ProcessorStepRegistry.register(name="of_a_friend")
class StepOfAFriend(IdentityProcessorStep):
    """A step of a package that the user has installed."""


def test_a_step_of_another_package_is_allowed_by_its_name(copy: Path) -> None:
    edit(copy / PRE, lambda found: found["steps"].append({"registry_name": "of_a_friend", "config": {}}))
    with pytest.raises(UserError, match=r"allow=\[of_a_friend\]"):
        load_policy(copy)
    assert isinstance(load_policy(copy, loading=Loading(allow=("of_a_friend",))), PolicyObjective)
    step(PRE, -1, **POPEN)(copy)
    with nothing_leaves(), pytest.raises(UserError, match="the Python class"):
        load_policy(copy, loading=Loading(allow=("subprocess.Popen", "class")))


def test_a_type_of_another_package_is_allowed_by_its_name(tmp_path: Path) -> None:
    directory = written(tmp_path / "own", "act")
    known = dict(POLICY_TYPES)
    try:
        del POLICY_TYPES["act"]  # as if a plug-in had registered it
        with pytest.raises(UserError, match=r"expected a policy.*allow=\[act\]"):
            read_config(directory)
        assert read_config(directory, Loading(allow=("act",))).type == "act"
        with pytest.raises(UserError, match="names another repository"):
            read_config(written(directory, "act", vision_backbone="evil/x"), Loading(allow=("act",)))
    finally:
        POLICY_TYPES.clear()
        POLICY_TYPES.update(known)
    with pytest.raises(UserError, match="no installed package registers it"):
        read_config(written(directory, "nobodys"), Loading(allow=("nobodys",)))


# ----------------------------------------------------------------------------------------------------- hub, saving


def test_the_hub_is_asked_for_the_config_first_and_for_data_alone(
    originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append(options)
        return str(tmp_path / "0123abc")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    shutil.copytree(originals["pi05_compact"], tmp_path / "0123abc")
    assert load_policy(checkpoint_directory("somebody/policy"))
    assert asked[0] == {"allow_patterns": ["config.json"]}
    assert asked[1]["revision"] == "0123abc"
    assert asked[1]["allow_patterns"] == ["*.json", "*.safetensors"]
    assert asked[1]["ignore_patterns"] == ["*/*", "model-*-of-*.safetensors", "adapter_model.safetensors"]
    config(type="groot")(tmp_path / "0123abc")
    with pytest.raises(UserError, match="allow_remote_code"):
        checkpoint_directory("somebody/policy")
    assert len(asked) == 3  # the weights were not asked for


def test_what_is_not_finite_is_not_saved(make_policy: Callable[..., PolicyObjective], tmp_path: Path) -> None:
    objective = make_policy("pi05_compact")
    objective.save_pretrained(tmp_path / "policy")
    before = {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()}
    with torch.no_grad():
        next(objective.policy.parameters()).view(-1)[0] = np.nan
    with pytest.raises(UserError, match=r"not written: weight '.*' holds numbers that are not finite"):
        objective.save_pretrained(tmp_path / "policy")
    objective = make_policy("pi05_compact")
    for made in objective.postprocessor.steps:
        if getattr(made, "_tensor_stats", None):
            made._tensor_stats["action"]["q99"][0] = np.inf
    with pytest.raises(UserError, match=r"not written: statistic 'action\.q99'"):
        objective.save_pretrained(tmp_path / "policy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "policy").iterdir()} == before


def test_saving_over_a_checkpoint_leaves_the_users_own_files(
    make_policy: Callable[..., PolicyObjective], tmp_path: Path
) -> None:
    objective = make_policy("pi05_compact")
    objective.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "seen_scenes.json").write_text("{}")
    objective.save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', which vag did not write"):
        objective.save_pretrained(tmp_path / "policy")
    assert (tmp_path / "policy" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_lerobots_own_classes_are_built_on_meta(tmp_path: Path) -> None:
    """Where a type is not, only single tensors are bounded; those that this machine can build all are."""
    for kind in ("act", "diffusion", "vqbet", "tdmpc", "gaussian_actor"):
        small = {"crop_shape": None} if kind == "diffusion" else {"crop_shape": [60, 60]} if kind == "vqbet" else {}
        config = read_config(written(tmp_path / kind, kind, **small))
        with torch.device("meta"):
            policy = get_policy_class(kind)(config)
        assert {value.device.type for value in policy.parameters()} == {"meta"}


def test_no_compiler_is_started_because_a_file_says_so(
    originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are the weights of a network that was compiled where it was trained others than its own."""
    path = Path(shutil.copytree(originals["diffusion_compact"], tmp_path / "compiled"))
    wanted = load_policy(path).policy.state_dict()
    weights = load_file(path / "model.safetensors")
    renamed = {name.replace("diffusion.unet.", "diffusion.unet._orig_mod."): value for name, value in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, path / "model.safetensors")
    config(compile_model=True)(path)
    monkeypatch.setattr(torch, "compile", None)
    found = load_policy(path).policy.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
