"""The repository itself: three lists of dependencies in step, nothing astray, nothing from one machine only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import phyldm_core
from phyldm_core.running.report import figures_page

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch"}  # conda-forge → the package's own name
LOCKED_FOR = {"sys_platform": "linux", "platform_system": "Linux", "python_version": "3.11"}  # others add a few
GPU_PARTS = ("nvidia", "cuda", "triton")  # what torch adds on Linux where its build has CUDA


def ranges(requirements) -> dict[str, SpecifierSet]:
    parsed = [Requirement(r) for r in requirements]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def declared() -> dict[str, SpecifierSet]:
    return ranges(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])


def pins() -> dict[str, Version]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    assert all(len(pair) == 2 for pair in pairs), "requirements.txt holds pins only: no options, paths or ranges"
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def kept_files() -> list[Path]:
    """All that git keeps or would keep."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in answer.stdout.split("\0") if name and (ROOT / name).exists()]


def test_conda_and_pip_install_the_same_libraries_in_the_same_ranges():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = ranges(item for item in listed if isinstance(item, str))
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    assert conda.pop("pip") == SpecifierSet()
    from_pip = next(item["pip"] for item in listed if isinstance(item, dict))  # what conda-forge does not have
    conda |= ranges(item for item in from_pip if not item.startswith("-e"))
    assert {CONDA_NAMES.get(name, name): specifier for name, specifier in conda.items()} == declared()


def test_every_declared_library_is_pinned_within_its_range():
    pinned = pins()
    outside = {name: str(pinned.get(name)) for name, span in declared().items() if pinned.get(name) not in span}
    assert not outside


def test_no_pin_belongs_to_one_build_of_a_library():
    assert not [f"{name} {version}" for name, version in pins().items() if version.local]
    assert pins()["torch"] == Version("2.13.0")


def test_pins_are_complete_and_nothing_is_left_over():
    """Follow what each library asks for, from those we declare: the pins are exactly what is reached."""
    reached, ahead = set(), [(name, frozenset()) for name in declared()]
    while ahead:
        name, extras = ahead.pop()
        if (name, extras) in reached:
            continue
        reached.add((name, extras))
        for requirement in map(Requirement, metadata.requires(name) or []):
            child = canonicalize_name(requirement.name)
            marker = requirement.marker
            wanted = marker is None or any(marker.evaluate(LOCKED_FOR | {"extra": extra}) for extra in extras or {""})
            if wanted and not child.startswith(GPU_PARTS):
                ahead.append((child, frozenset(requirement.extras)))
    assert {name for name, _ in reached} == set(pins())


def test_installed_versions_are_the_pinned_ones():
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("the pins are for the environment that make builds")
    installed = {name: Version(metadata.version(name)).public for name in pins()}
    assert installed == {name: str(version) for name, version in pins().items()}


@pytest.mark.parametrize("name", ["environment.yml", "requirements.txt"])
def test_every_direct_dependency_says_why_it_is_here(name):
    text = (ROOT / name).read_text().partition("# What those ask for")[0]
    lines = [line for line in text.splitlines() if re.match(r"( *- )?[\w-]+[=<>]", line)]
    assert len(lines) >= len(declared())
    assert not [line for line in lines if not re.search(r"  # \w", line)]


@pytest.mark.parametrize("folder", ["phyldm_core", "tests"])
def test_every_library_imported_is_declared(folder):
    allowed = set(ranges(PROJECT["dependencies"])) if folder == "phyldm_core" else set(declared())
    providers = metadata.packages_distributions()
    undeclared, files = {}, list((ROOT / folder).rglob("*.py"))
    own = {"phyldm_core"} | {path.stem for path in files} | set(sys.stdlib_module_names)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for top in {module.split(".")[0] for module in modules} - own:
                if not allowed & {canonicalize_name(name) for name in providers.get(top, [])}:
                    undeclared.setdefault(top, set()).add(path.name)
    assert not undeclared


def test_top_level_holds_what_the_readme_promises_and_nothing_else():
    folders = {"notebooks", "phyldm_core", "data", "figures", "tests"}
    lists = {"environment.yml", "pyproject.toml", "requirements.txt"}
    top = {path.relative_to(ROOT).parts[0] for path in kept_files()}
    assert top == folders | lists | {"README.md", "LICENSE", "CITATION.cff", "Makefile", ".ci", ".gitignore"}


def test_the_page_of_figures_is_what_their_captions_give():
    folder = ROOT / "figures"
    page, pictures = folder / "README.md", {path.stem for path in folder.glob("fig*.png")}
    made_now = figures_page(folder, ROOT / "notebooks")
    assert page.read_text(encoding="utf-8") == made_now, "phyldm reproduce, or report.write_figures_page, makes it anew"
    assert pictures == {path.stem for path in folder.glob("fig*.json")}
    assert len(list(folder.rglob("fig*.png"))) <= 30


def test_the_order_of_the_folders_is_told_in_the_package():
    """With one sentence each, the folder's own."""
    told = re.findall(r"^- ``(\w+)``: (.+)\.$", phyldm_core.__doc__, re.MULTILINE)
    folders = {path.parent.name: path for path in (ROOT / "phyldm_core").glob("*/__init__.py")}
    assert set(folders) == {name for name, _ in told} - {"cli"}
    for name, sentence in told:
        if name in folders:
            own = ast.get_docstring(ast.parse(folders[name].read_text(encoding="utf-8")))
            assert own.lower().startswith(sentence.lower()), name


def test_the_readme_is_short_and_opens_with_the_page_that_needs_nothing():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert "figures/explore.html" in text.partition("\n\n")[2].partition("\n\n")[0]
    linked = [ROOT / path for path in re.findall(r"\]\(((?:figures|notebooks|data)/[^)#]+)\)", text)]
    assert not [path for path in linked if not path.exists()]


def test_importing_the_package_imports_nothing():
    tree = ast.parse((ROOT / "phyldm_core" / "__init__.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_nothing_kept_names_a_machine_or_a_registry():
    astray = re.compile(
        r"(?:/home/|/Users/|/root/|/work/)\w"  # somebody's folders
        r"|\b(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com)\b"
        r"|--(?:(?:extra-)?index-url|find-links)"
    )
    found = []
    for path in kept_files():
        if path.suffix not in {".png", ".gz", ".safetensors"}:
            text = path.read_text(encoding="utf-8")
            found += [f"{path.relative_to(ROOT)}: {hit.group()}" for hit in astray.finditer(text)]
    assert not found


def test_citation_gives_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == phyldm_core.__version__ == metadata.version("phyldm_core")


def test_the_syllabus_covers_every_chapter_and_its_links_lead_somewhere():
    notebooks = ROOT / "notebooks"
    text = (notebooks / "SYLLABUS.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\((\d\d_\w+\.ipynb)\)", text))
    assert linked == {path.name for path in notebooks.glob("[0-9][0-9]_*.ipynb")}
    for chapter, numbers in re.findall(r"\b(\d\d): ((?:\d, )*\d)\b", text):  # exercises, as in "01: 1, 2"
        (path,) = notebooks.glob(f"{chapter}_*.ipynb")
        assert max(map(int, numbers.split(", "))) <= path.read_text(encoding="utf-8").count("<summary>Solution")
