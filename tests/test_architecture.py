"""The packages import in one direction only, and the generator needs no robot software."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"toolkit", "vag_core", "policies", "recipes"}
ALLOWED = {
    "toolkit": {"toolkit"},
    "vag_core": {"vag_core"},
    "policies": {
        *("policies", "toolkit.base", "toolkit.data"),
        *("vag_core.flow_matching", "vag_core.checkpoint", "vag_core.representation"),
    },
    "recipes": HOUSE,
}
# What LeRobot imports to find what we register, policies and environment alike.
PLUGIN = {"policies/plugin/lerobot_policy_vag/__init__.py": "toolkit.envs.lerobot_plugin"}
FLOORS = ({"base"}, {"data"}, {"envs", "training"}, {"evaluation"}, {"reporting"})  # of toolkit, from the ground up


OF_A_FOLDER = {"policies/vag_policy": {"vag_core"}}  # beside what its package may import


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, with `from a import b` as both `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_follow_the_arrows(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files

    def allowed_in(path: Path) -> set[str]:
        return ALLOWED[package] | OF_A_FOLDER.get(str(path.parent.relative_to(ROOT)), set())

    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[0] in HOUSE
        and PLUGIN.get(str(path.relative_to(ROOT))) != name
        and not any(name == allowed or name.startswith(allowed + ".") for allowed in allowed_in(path))
    ]
    assert not wrong


def test_folders_of_the_toolkit_import_only_from_floors_below() -> None:
    floor = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
    wrong = []
    for path in (ROOT / "toolkit").rglob("*.py"):
        folder, *below = path.relative_to(ROOT / "toolkit").parts
        assert below or path.name == "__init__.py", f"{path} stands on no floor"
        for name in imported(path) if below else ():
            package, _, rest = name.partition(".")
            other = rest.split(".")[0]
            if package == "toolkit" and other != folder and floor[other] >= floor[folder]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_no_recipe_speaks_to_a_simulator() -> None:
    """They speak to `toolkit.envs.base`, and open worlds by their specs; Meta-World is one of them."""
    own = {"metaworld", "rendering", "lerobot_env", "lerobot_world", "adapters", "aloha"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "recipes").rglob("*.py")
        for name in imported(path)
        if name.removeprefix("toolkit.envs.") in own or name.split(".")[0] in ("metaworld", "mujoco", "gymnasium")
    ]
    assert not wrong
    above = [path for folder in ("evaluation", "reporting") for path in (ROOT / "toolkit" / folder).glob("*.py")]
    assert not [path for path in above if {f"toolkit.envs.{name}" for name in own} & imported(path)]


def test_generator_and_its_training_import_without_robot_packages() -> None:
    """What a GPU image with the core dependencies alone can import."""
    code = (
        "import sys\n"
        "for name in 'lerobot mujoco metaworld av pandas pyarrow matplotlib scipy'.split():\n"
        "    sys.modules[name] = None\n"
        "for name in 'diffusers transformers peft'.split():\n"
        "    sys.modules[name] = None\n"
        "import vag_core, recipes.cli, recipes.train_generator\n"
        "import vag_core.backbones.models, vag_core.backbones.branch\n"
        "import vag_core.backbones.text, vag_core.backbones.tiny\n"
        "import vag_core.backbones.svd, vag_core.backbones.tiny_svd\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_are_short() -> None:
    """No file of the packages over 400 lines, no function over 60, its docstring counted."""
    long = []
    for path in (path for package in sorted(HOUSE) for path in (ROOT / package).rglob("*.py")):
        text = path.read_text()
        if (lines := len(text.splitlines())) > 400:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = int(node.end_lineno or 0) - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name} has {lines} lines"] if lines > 60 else []
    assert not long
