"""Modules import to their left only: data <- features <- user_models <- modeling <- ... <- cli."""

from __future__ import annotations

import ast
import importlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pluralrlhf"
ORDER = [
    {"errors", "files", "hub", "locks", "metrics"},
    {"data"},
    {"features"},
    {"user_models"},
    {"modeling"},
    {"rewards"},
    {"environments"},
    {"trainers"},
    {"evaluation"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imported_rooms(path: Path) -> set[str]:
    """Top-level rooms of the package that a file imports, wherever in the file."""
    module = ["pluralrlhf", *path.relative_to(PACKAGE).with_suffix("").parts]
    package = module if path.name == "__init__.py" else module[:-1]
    package = package[:-1] if path.name == "__init__.py" else package
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            names = [base] if len(base) > 1 or base[:1] != ["pluralrlhf"] else [[*base, a.name] for a in node.names]
        rooms |= {name[1] for name in names if name[:1] == ["pluralrlhf"] and len(name) > 1}
    return rooms


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_reaches_to_its_right(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in RANK, f"`{room}` is not in the layout"
    for other in imported_rooms(path):
        if other != room:
            assert RANK[other] < RANK[room], f"{path.name} ({room}) imports {other}"


def test_the_guard_sees_relative_imports():
    assert "errors" in imported_rooms(PACKAGE / "features" / "cache.py")
    assert "trainers" in imported_rooms(PACKAGE / "cli" / "train_reward.py")


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['pluralrlhf']; from pluralrlhf.cli import main; main(['-h']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_importing_the_package_registers_the_model():
    code = (
        "import pluralrlhf; from transformers import AutoConfig; "
        "print(type(AutoConfig.for_model('personalized_reward')).__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "PersonalizedRewardModelConfig"


def test_only_the_advice_on_an_optional_kernel_is_not_shown(caplog):
    importlib.import_module("pluralrlhf")
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with caplog.at_level("WARNING", logger=logger.name):
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
        logger.warning("Something else of %s.", "4 bits")
    assert [record.getMessage() for record in caplog.records] == ["Something else of 4 bits."]
