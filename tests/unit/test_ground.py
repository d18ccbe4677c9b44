"""The ground stays tidy: what is promised of the tree, the locks, the Makefile and the changelog is looked up."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("schemas", "detectors", "streams", "deploy")
MODULE_LINES_MAX = 500
#: What may stand at the top: the user's list, and what any good repository has.
TOP = {
    *(
        "pyproject.toml",
        "README.md",
        "streams",
        "detectors",
        "schemas",
        "deploy",
        "tests",
        "docker-compose.yml",
    ),
    *("Makefile", "LICENSE", "CHANGELOG.md", "requirements", ".ci"),
    *(".gitignore", ".dockerignore", ".editorconfig"),
}
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
DEVELOPMENT = ("alibi", "local", "demo", "s3", "cpu")


def tracked() -> list[Path]:
    """Files of the checkout: what git knows, or all but what .gitignore names where there is no git."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        paths = [ROOT / name for name in listed.decode().split("\0") if name]
    else:
        skipped = {".venv", "__pycache__", "build", "dist", "htmlcov", "shared"}
        paths = [p for p in ROOT.rglob("*") if not skipped & set(p.relative_to(ROOT).parts)]
        paths = [p for p in paths if not re.match(r"\.\w+(_cache|thesis)$", p.relative_to(ROOT).parts[0])]
    return [path for path in paths if path.is_file()]


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as a person would, even when make runs the tests."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"
    }
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, check=False
    )


def modules() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def requirements(*extras: str, group: bool = False) -> dict[str, Requirement]:
    """Name to requirement of the base package and ``extras``, extras of extras included."""
    optional = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"]]
    wanted = list(extras)
    for extra in wanted:
        for line in optional[extra]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["project"]["name"]:
                wanted += requirement.extras
            else:
                lines.append(line)
    if group:
        lines += PROJECT["dependency-groups"]["dev"]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def locked(name: str) -> dict[str, Version]:
    text = (ROOT / "requirements" / name).read_text()
    return {
        found[1]: Version(found[2])
        for found in re.finditer(r"^([a-z0-9.-]+)==([^ ;\\]+)", text, re.MULTILINE)
    }


def test_the_top_of_the_tree_is_as_agreed() -> None:
    """Nothing stands at the top that is not on the list, and all of the list is there."""
    assert {path.relative_to(ROOT).parts[0] for path in tracked()} == TOP


def test_no_index_host_and_no_path_of_a_machine() -> None:
    """No tracked text names a package index, a home folder or a workplace's folder."""
    # Written in pieces, so that this file passes its own test.
    index = r"(files\.pythonhosted|pypi|repo1?\.maven|registry\.npmjs|test\.pypi)" + r"\.(org|apache\.org)"
    machine = (
        r"(?<![\w.$}/])/(" + "|".join(["home/[a-z]", "Users/[A-Za-z]", "root/", "work/", "opt/wheels"]) + ")"
    )
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if (
                re.search(index, line)
                or re.search(machine, line)
                or re.match(r"\s*--(extra-)?index-url", line)
            ):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize(
    ("lock", "extras", "group"),
    [
        ("dev.txt", DEVELOPMENT, True),
        ("runtime-cpu.txt", ("training", "s3", "cpu"), False),
        ("runtime-gpu.txt", ("training", "s3", "gpu"), False),
    ],
)
def test_locks_are_in_step_with_the_project(lock: str, extras: tuple[str, ...], group: bool) -> None:
    """Every dependency is in the lock at a version its requirement allows; `make lock` puts it there."""
    versions = locked(lock)
    wanted = requirements(*extras, group=group)
    assert {name for name in wanted if name not in versions} == set()
    assert {
        name: str(v) for name, v in versions.items() if name in wanted and v not in wanted[name].specifier
    } == {}


def test_locks_agree_with_each_other() -> None:
    """What ships is what is tested: a package has one version in all locks; the two ONNX Runtimes never meet."""
    tested = locked("dev.txt")
    for lock in LOCKS:
        versions = locked(lock.name)
        if lock.name == "peers.txt":  # an environment of its own, for the benchmark only
            continue
        assert {name for name in versions if name in tested and versions[name] != tested[name]} == set()
        assert not {"onnxruntime", "onnxruntime-gpu"} <= set(versions)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes(lock: Path) -> None:
    """Each entry of a lock is followed by at least one SHA-256, and the header says how to make it again."""
    text = lock.read_text()
    assert text.splitlines()[1] == "#    make lock"
    entries = re.split(r"^(?=[a-z0-9][a-z0-9.-]*==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 3
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_every_dependency_has_a_floor() -> None:
    """No requirement leaves a resolver free to pick a version of years ago."""
    lines = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        lines += [line for line in extra if not line.startswith(PROJECT["project"]["name"])]
    unbounded = [
        line for line in lines if not any(s.operator in (">=", "==") for s in Requirement(line).specifier)
    ]
    assert unbounded == []


def test_modules_are_small() -> None:
    """No module has more than 500 lines."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > MODULE_LINES_MAX} == {}


def test_every_module_says_why_it_exists() -> None:
    """Each module, tests included, opens with a docstring; an empty ``__init__`` is the one exception."""
    silent = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_every_test_says_what_it_shows() -> None:
    """Each test function or method has a docstring."""
    silent = [
        f"{path.name}:{node.name}"
        for path in modules()
        if path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_changelog_knows_the_version() -> None:
    """The newest entry of the changelog is the version of the project."""
    entries = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert entries[0] == PROJECT["project"]["version"]


def test_make_alone_lists_every_target() -> None:
    """`make` prints one line for each phony target and runs nothing."""
    shown = run_make().stdout.splitlines()
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert {line.split()[1] for line in shown} == set(phony[1].split())


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
def test_a_missing_or_wrong_python_is_one_line(python: str) -> None:
    """Set-up with a Python that cannot be used says so in a single line, changes nothing and fails."""
    before = sorted(path.name for path in (ROOT / ".venv").glob("*"))
    ran = run_make("setup", f"PYTHON={python}")
    assert ran.returncode != 0
    assert len((ran.stdout + ran.stderr).strip().splitlines()) == 1
    assert f"PYTHON={python} is not Python 3.11 or 3.12" in ran.stderr
    assert sorted(path.name for path in (ROOT / ".venv").glob("*")) == before


def test_ci_runs_the_developers_command() -> None:
    """`.ci/run` can be executed, stops at the first error and calls `make test`, nothing else."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1] == "make test"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert subprocess.run(["sh", "-n", str(ROOT / ".ci" / "setup")], check=False).returncode == 0


def test_the_distribution_is_the_four_packages() -> None:
    """Name, Pythons, packages and command are those agreed."""
    project = PROJECT["project"]
    assert (project["name"], project["requires-python"]) == ("driftline", ">=3.11,<3.13")
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(PACKAGES)
    assert project["scripts"] == {"driftline": "deploy.cli:main"}
    assert PROJECT["tool"]["uv"]["conflicts"] == [[{"extra": "cpu"}, {"extra": "gpu"}]]
