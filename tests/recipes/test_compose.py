"""What a config may hold: every option tells its help and its range, and one function checks them all."""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from omegaconf import OmegaConf

from recipes import cli, kinds, terminal
from recipes.compose import checked_config, command_words, compose_config, listed, typed
from recipes.evaluate_generator import GIVEN
from recipes.kinds import kind_of, members
from recipes.ranges import check_ranges
from recipes.stages import make_stage
from recipes.study_schema import SCHEMAS
from toolkit.base.errors import UserError
from toolkit.data.batches import make_sources
from toolkit.envs import shifts
from toolkit.training.runtime import RuntimeConfig, check_runtime
from vag_core import clocks, sampling

CONFIGS = Path(cli.__file__).parent / "configs"
ODD = [
    *("a (1)", "lr=3", "a,b", "{x}", "[y]", "it's", 'say "x"', "back\\", "back\\'s", "\\", "a\\\\", "données/é", "#1"),
    *("5", "1e3", "true", "nan", "a:b", "a  b", "$HOME", "%s", "&;|<>", "'", "' x", "x'", '"', "~", "+x", "@y", "日本"),
]


def schemas() -> Iterator[tuple[str, type]]:
    """Every dataclass that a config is made of, by name."""
    waiting: list[Any] = list(SCHEMAS.values())
    seen = set()
    while waiting:
        schema = waiting.pop()
        if schema in seen:
            continue
        seen.add(schema)
        yield schema.__name__, schema
        for kind in members(schema).values():
            parts = (kind.type, *get_args(kind.type), *kind.told.get("kinds", ()))
            waiting += [part for part in parts if dataclasses.is_dataclass(part)]


def element(kind: Any) -> Any:
    """`dict[str, list[int]]` -> `int`."""
    while get_origin(kind) in (list, dict):
        kind = kinds.without_none(get_args(kind)[-1])
    return kind


@pytest.mark.parametrize(("name", "schema"), sorted(schemas()))
def test_every_option_has_help_and_every_number_a_range(name: str, schema: type) -> None:
    for key, kind in members(schema).items():
        assert kind.told.get("help", "").strip(), f"{name}.{key} has no help"
        assert kind.told.keys() <= {
            "help",
            "least",
            "most",
            "above",
            "below",
            "choices",
            "paths",
            "numbers",
            "none",
            "kinds",
        }
        if element(kind.type) in (int, float):
            assert {"least", "above"} & kind.told.keys(), f"{name}.{key} has no lower bound"
            assert {"most", "below"} & kind.told.keys(), f"{name}.{key} has no upper bound"
            for bound in kind.told.keys() & {"least", "most", "above", "below"}:
                assert float("-inf") < kind.told[bound] < float("inf")
        if kind.type is Any:
            assert kind.told.get("paths") or kind.told.get("numbers"), f"{name}.{key} takes anything"


@pytest.mark.parametrize("command", SCHEMAS)
def test_defaults_and_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = OmegaConf.to_container(compose_config(command, []))
    check_ranges(command, config)
    assert cli.main([command, "--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())

    def look(schema: Any, prefix: str = "") -> None:
        for key, kind in members(schema).items():
            if dataclasses.is_dataclass(kind.type):
                look(kind.type, f"{prefix}{key}.")
            else:
                assert f" {prefix}{key}=" in page
                assert kind.told["help"] in page

    look(SCHEMAS[command])


def test_help_shows_groups_with_their_choices(capsys: pytest.CaptureFixture[str]) -> None:
    for words, group, choices in (
        (["pretrain"], "policy=pi05_compact", "act, diffusion, diffusion_compact, eo1"),
        (["train-generator"], "generator=vag", "action_only, forward_dynamics"),
        (["demo"], "experiment=null", "one of bridge, smoke"),
        (["benchmark", "generators"], "experiment=null", "one of generators_h100"),
    ):
        cli.main([*words, "--help"])
        page = capsys.readouterr().out
        assert re.search(rf"  {group} +one of {choices.removeprefix('one of ')}", page)
    assert "(1 to 1,000,000)" in page


def test_help_needs_no_torch() -> None:
    code = "import sys; from recipes import cli; cli.main(['pretrain', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_shipped_choice_is_in_range(path: Path) -> None:
    group = path.parent.name
    commands = {"policy": "pretrain", "generator": "train-generator"}
    command = commands.get(group) or next(
        name for name in SCHEMAS if f"vag {name} experiment={path.stem}" in path.read_text()
    )
    needed = {"pretrain": ["real=[x]"], "train-generator": ["dataset=x"], "synthesize": ["checkpoint=x"]}.get(
        command, []
    )
    checked_config(command, [f"{group}={path.stem}", *needed])


def test_choices_are_those_of_the_code_that_reads_them() -> None:
    def known(command: str, key: str) -> tuple[str, ...]:
        kind = kind_of(command, key)
        assert kind is not None
        return tuple(kind.told["choices"])

    assert known("evaluate", "suites") == known("ablate", "suites") == tuple(shifts.SUITES)
    assert known("collect", "positions") == known("evaluate", "positions") == shifts.POSITIONS
    assert known("synthesize", "sampler.method") == sampling.METHODS
    assert known("synthesize", "sampler.order") == clocks.ORDERS
    assert known("evaluate-generator", "given") == GIVEN
    nothing: Any = None
    with pytest.raises(UserError, match=f"expected {' or '.join(known('pretrain', 'normalization'))}"):
        make_sources([nothing], [1.0], 1, normalization="evil")


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("pretrain", ["optim.learning_rate=inf"], "optim.learning_rate=inf is not a finite number; expected a number"),
        ("pretrain", ["optim.learning_rate=1e999"], "is not a finite number"),
        ("pretrain", ["optim.ema_decay=nan"], "optim.ema_decay=nan is not a finite number; expected at least 0 and"),
        ("pretrain", ["optim.ema_decay=2"], "optim.ema_decay=2.0: expected at least 0 and less than 1"),
        ("pretrain", ["optim.ema_decay=1"], "less than 1"),
        ("pretrain", ["optim.gradient_clip=-1"], "optim.gradient_clip=-1.0: expected more than 0"),
        ("pretrain", ["optim.batch_size=1000000000"], "optim.batch_size=1000000000: expected at least 1 and at most"),
        ("pretrain", ["optim.weight_decay=-inf"], "not a finite number"),
        ("pretrain", ["real_shares=[1,nan]"], "real_shares=[nan] is not a finite number"),
        ("pretrain", ["image_size=100000"], "image_size=100000: expected at least 4 and at most 2,048"),
        ("pretrain", ["policy.options={depth:{of:[1,nan]}}"], "is not a finite number"),
        ("pretrain", ["policy.options.width=-inf"], "policy.options={width:-inf} is not a finite number"),
        ("pretrain", ["runtime.threads=1000000"], "runtime.threads=1000000: expected at least 0 and at most 1,024"),
        ("pretrain", ["runtime.device=tpu"], "runtime.device=tpu: expected one of auto, cpu, cuda"),
        ("pretrain", ["normalization=Shared"], "expected one of shared, per_source. Did you mean 'shared'?"),
        ("pretrain", ["seed=18446744073709551616"], "seed=18446744073709551616: expected at least 0 and at most"),
        ("pretrain", ["real=[[a]]"], "real=[[a]]: expected a text"),
        ("pretrain", ["real=['']"], "real=[''] holds an empty text"),
        ("synthesize", ["checkpoint=x", "sampler.guidance_scale=nan"], "sampler.guidance_scale=nan is not a finite"),
        ("synthesize", ["checkpoint=x", "sampler.order=any"], "sampler.order=any: expected one of synchronised"),
        ("train-generator", ["dataset=x", "dataset_shares=[nan]"], "dataset_shares=[nan] is not a finite number"),
        (
            "train-generator",
            ["dataset=x", "generator=vag_grid", "generator.action.bridge.grid=[4,4,0]"],
            "bridge.grid=[0]: expected at",
        ),
        ("train-generator", ["dataset=x", "generator.video.depth=10000000"], "generator.video.depth=10000000: exp"),
        ("train-generator", ["dataset=x", "tokenizer_optim.groups=0"], "tokenizer_optim.groups=0: expected at least 1"),
        ("train-generator", ["dataset=[[a]]"], "dataset=[[a]]: expected a path, or a list of paths"),
        ("train-generator", ["dataset=[a,5]"], "dataset=[a,5]: expected a path, or a list of paths"),
        ("train-generator", ["dataset=null"], "dataset=null: expected a path, or a list of paths"),
        ("benchmark data", ["large_gigabytes=100000"], "large_gigabytes=100000: expected at least 1 and at most 1,000"),
        ("benchmark policies", ["checkpoints={a:5}"], "checkpoints={a:5}: expected a path, or a list of paths"),
        ("benchmark policies", ["checkpoints={a:{b:c}}"], "expected a path, or a list of paths"),
        ("benchmark policies", ["checkpoints={../../a:b}"], "checkpoints={../../a:...}: expected a name"),
        ("benchmark generators", ["seeds=[-1]"], "seeds=[-1]: expected at least 0"),
        ("benchmark generators", ["variants={a:{overrides:[x]}}"], "variants.a.system=... is required"),
        ("ablate", ["grid=[a]", "steps=1", "gap=[nan,0.5]"], "gap=[nan] is not a finite number"),
        ("ablate", ["grid=[a]", "steps=1", "policy_steps={a:0}"], "policy_steps={a:0}: expected at least 1"),
        ("ablate", ["grid=[a]", "steps=1", "rounds={other_tasks:0}"], "rounds={other_tasks:0}: expected at least 1"),
        ("train-generator", ["dataset=x", "labelled_fraction=-0.1"], "labelled_fraction=-0.1"),
        ("train-generator", ["dataset=x", "labelled_fraction=1.5"], "labelled_fraction=1.5"),
        ("train-generator", ["dataset=x", "labelled_fraction=[1,few]"], "labelled_fraction=[1,few]"),
        ("train-generator", ["dataset=x", "dataset_shares=[1,-1]"], "dataset_shares=[-1"),
        ("train-generator", ["dataset=x", "dataset_shares=[1,nan]"], "dataset_shares=[nan"),
        ("ablate", ["grid=[a]", "steps=1", "generator_seeds=[4294967296]"], "generator_seeds=[4294967296]: expected"),
        ("import", ["source=x", "task=" + "a" * 10_001], "has 10,001 characters; at most 10,000"),
        ("import", ["source=x", "image_keys={a:''}"], "image_keys={a:''} holds an empty text"),
    ],
)
def test_values_that_cannot_be_are_named_with_what_was_expected(command: str, words: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        checked_config(command, words)


def test_what_large_machines_need_is_in_range() -> None:
    words = [
        "optim.batch_size=8192",
        "optim.steps=2000000",
        "image_size=1024",
        "seed=4294967295",
        "runtime.threads=256",
    ]
    checked_config("pretrain", ["real=[x]", *words])
    checked_config("collect", ["episodes_per_task=5000", "num_steps=2000", "workers=256", "first_seed=2000000000"])
    big = [
        "image_size=1024",
        "generator.video.width=4096",
        "generator.video.depth=48",
        "generator.video.heads=32",
    ]
    checked_config("train-generator", ["dataset=[a,b]", *big])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain", "real=[${oc.env:HOME}]"], "'${' is not read"),
        (["train-generator", "dataset=${nope}"], "'${' is not read"),
        (["train-generator", "dataset=x", "generator=${oc.env:HOME}"], "'${' is not read"),
        (["train-generator", "dataset=x", "optim.steps=${oc.decode:5}"], "'${' is not read"),
        (["demo", "collect=['seed=${oc.env:NOPE}']"], "'${' is not read"),
        (["inspect", "${oc.env:HOME}"], "'${' is not read"),
        (["pretrain", "policy.options.${x}=5"], "'${' is not read"),
        (["collect", ""], "got an empty word"),
        (["collect", "=x"], "expected key=value, got '=x'"),
        (["collect", "out="], "'out=' gives no value"),
        (["collect", "out=''"], "out='' holds an empty text"),
        (["collect", "seed= "], "gives no value"),
        (["collect", "a.b.c.d=1"], "unknown key 'a.b.c.d'"),
        (["collect", ".=1"], "expected key=value, got '.=1'"),
        (["collect", "x" * 20_000 + "=1"], "unknown key 'xxx"),
        (["collect", "x" * 200_000 + "=1"], "has 200,002 characters"),
        (["collect", "seed=" + "9" * 5000], "Exceeds the limit"),
        (["collect", "tasks=" + "[" * 300 + "]" * 300], "too deeply nested"),
        (["collect", "seed=1,2"], "'seed=1,2' gives several values"),
        (["collect", "tasks=range(3)"], "gives several values"),
        (["train-generator", "dataset=x", "generator@optim=vag"], "keys have no '@'"),
        (["pretrain", "~policy.options"], "keys are neither added nor deleted"),
        (["pretrain", "policy.options=5"], "policy.options"),
        (["pretrain", "policy.options=[1]"], "policy.options"),
        (["pretrain", "policy=[a]"], "does not exist"),
        (["demo", "experiment=ablate_cpu"], "experiment=ablate_cpu does not exist. Valid: bridge, smoke"),
        (["collect", "out=a\0b"], "control character"),
        (["import", "a\nb"], "control character"),
        (["inspect", "caf\udce9"], r"'caf\udce9' is not valid UTF-8"),
        (["inspect", "dataset=caf\udce9"], r"'dataset=caf\udce9' is not valid UTF-8"),
        (["caf\udce9"], r"unknown command 'caf\udce9'"),
        (["collect", "caf\udce9=1"], "is not valid UTF-8"),
        (["pretrain", "real=[runs [1]/a]"], "need quotes of their own: real=['runs (1)/a','b']"),
        (["pretrain", "real=[données (1)/a=b]"], "données (1)/a=b: not found"),
        (["inspect", "a", "b"], "takes one dataset, got 'a' and 'b'"),
        (["inspect", "a", "dataset=b"], "got 'a' and 'dataset=b'; give one of them"),
        (["demo", "policies=[evil]"], "unknown policy 'evil'"),
        (["demo", "tasks=[evil]"], "unknown Meta-World task 'evil'"),
        (["demo", "evaluate=['suites=[evil]']"], "suites=[evil]: expected one of"),
        (["demo", "evaluate=['episodes_per_task=0']"], "episodes_per_task=0: expected at least 1"),
        (["demo", "synthesize=['sampler.method=evil']"], "sampler.method=evil: expected one of"),
        (["demo", "train_generator=['generator=evil']"], "generator=evil does not exist"),
        (["benchmark", "policies", "checkpoints={a:x}", "tasks=[evil]"], "unknown Meta-World task 'evil'"),
        (["benchmark", "policies", "checkpoints={a:x}", "evaluate=['positions=evil']"], "positions=evil: expected one"),
        (
            ["benchmark", "generators", "systems=[vag]", "suites=[dense]", "tasks=[evil]"],
            "unknown Meta-World task 'evil'",
        ),
        (
            ["ablate", "grid=['arm=real_few']", "steps=9", "evaluate=['max_steps=0']"],
            "max_steps=0: expected at least 1",
        ),
        (["ablate", "grid=['arm=real_few']", "steps=9", "collect=['num_steps=0']"], "num_steps=0: expected at least 1"),
    ],
)
def test_words_that_cannot_be_meant_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("vag: error: ")
    assert expected in lines[0]
    assert len(lines[0]) < 4200
    assert not list(tmp_path.glob("outputs/*/*/*/run.json")), "a later stage had begun"


def test_a_generator_that_cannot_be_built_is_told_before_the_stages_begin() -> None:
    make_stage("x", "train-generator", {"dataset": "x"})
    for word, expected in (
        ("generator.video.kind=ditt", "video.kind = 'ditt': the other fields are those of dit; see generator/video"),
        ("generator.tokenizer.kind=vae", "tokenizer.kind = 'vae': the other fields are those of conv"),
        ("generator.num_frames=18", "num_frames = 18: expected 1 + a multiple of"),
    ):
        with pytest.raises(UserError, match=re.escape(expected)):
            make_stage("x", "train-generator", {"dataset": "x"}, [word])


def test_threads_are_in_range_without_the_command_line_too() -> None:
    for threads in (-1, 1_000_000):
        with pytest.raises(UserError, match=f"runtime.threads = {threads}: expected at least 0 and at most 1024"):
            check_runtime(RuntimeConfig(threads=threads))


def test_a_policy_type_that_is_none_is_told_before_the_stages_begin() -> None:
    make_stage("x", "pretrain", {"real": ["x"]}, ["policy=diffusion"])
    with pytest.raises(UserError, match="policy.type=difusion does not exist. Did you mean 'diffusion'"):
        make_stage("x", "pretrain", {"real": ["x"]}, ["policy.type=difusion"])


@pytest.mark.parametrize("text", ODD)
def test_texts_need_no_quotes(text: str) -> None:
    """Whatever letters they hold, for every key that takes one, and when one command hands them to another."""
    keys = ["out", "tokenizer_from", "generator.tokenizer.kind", "instruction_encoder"]
    keys += [] if text.startswith("[") else ["dataset"]  # that would be a list
    words = [f"{key}={text}" for key in keys]
    config = checked_config("train-generator", ["dataset=x", *words, f"synthetic={listed([text, 'b'])}"])
    assert [OmegaConf.select(config, key) for key in keys] == [text] * len(keys)
    assert config.synthetic == [text, "b"]
    words = [f"{key}={typed(text)}" for key in ("checkpoints.a", "out")]
    config = checked_config("benchmark policies", [*words, f"checkpoints.b={text}/x"])
    assert (config.checkpoints, config.out) == ({"a": text, "b": f"{text}/x"}, text)


def test_texts_in_lists_need_no_quotes_but_for_commas() -> None:
    assert compose_config("pretrain", ["real=[runs (1)/a=b,'c,d', é:f]"]).real == ["runs (1)/a=b", "c,d", "é:f"]
    assert compose_config("train-generator", ["dataset=[a=b(1),c]"]).dataset == ["a=b(1)", "c"]


def test_bare_words_need_no_quotes() -> None:
    texts = [f"{text}/x" for text in ODD if "=" not in text and text[0] not in "~-"]
    assert checked_config("report", cli.keyed_words("report", texts)).runs == texts
    for command in ("score", "replay", "inspect", "export"):
        for text in ("a (1)", "b/lr=3,x{"):
            assert checked_config(command, cli.keyed_words(command, [text])).dataset == text


def test_the_words_of_a_record_hold_any_letters() -> None:
    made: Any = OmegaConf.to_container(checked_config("pretrain", [f"real={listed(ODD)}", "weight_by=it's (a) é"]))
    words = shlex.split(" ".join(command_words("pretrain", made)))
    assert OmegaConf.to_container(compose_config("pretrain", words)) == made


def test_quotes_of_the_users_own_null_and_lists_stay_what_they_are() -> None:
    assert compose_config("collect", ["out='a b'"]).out == "a b"
    assert compose_config("collect", ["out=null"]).out is None
    assert compose_config("train-generator", ["dataset=[a,b]"]).dataset == ["a", "b"]
    assert compose_config("train-generator", cli.keyed_words("train-generator", ["a", "b"])).dataset == ["a", "b"]
    assert cli.keyed_words("collect", ["tasks"]) == ["tasks"]
    words = cli.keyed_words("train-generator", ["generator/action=unet", "a"])
    assert words == ["generator/action=unet", "dataset='a'"]
    assert compose_config("train-generator", words).generator.action.kind == "unet"


def test_a_bare_path_may_look_like_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.keyed_words("inspect", ["lr=3"]) == ["lr=3"]
    (tmp_path / "lr=3").mkdir()
    assert cli.keyed_words("inspect", ["lr=3", "fix=true"]) == ["fix=true", "dataset='lr=3'"]
    (tmp_path / "out=3").mkdir()
    assert cli.keyed_words("inspect", ["out=3"]) == ["out=3"]


def test_more_than_the_memory_holds_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def on_the_cpu() -> int:
        torch.empty(2**60)
        return 0

    def in_python() -> int:
        raise MemoryError

    for work in (on_the_cpu, in_python):
        assert terminal.guarded(work) == 2
        assert re.fullmatch(r"vag: error: out of memory \(.*\); make batch_size.* smaller\n", capsys.readouterr().err)
