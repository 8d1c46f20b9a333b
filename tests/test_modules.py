"""How modules import each other: by public names, and in the directions of CONTRIBUTING.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "embeddings": {"embeddings"},
    "stage1_backbones": {"embeddings", "stage1_backbones"},
    "stage2_heads": {"embeddings", "stage2_heads"},
    "cli": {"embeddings", "stage1_backbones", "stage2_heads", "cli"},
}


def imports(room: str) -> Iterator[tuple[str, str, str]]:
    """(file:line, module, name) of everything that a room imports, also inside functions."""
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.module or "", alias.name
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", alias.name, ""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_public_names_of_the_rooms_below_it_only(room):
    ours = [(where, module, name) for where, module, name in imports(room) if module.split(".")[0] in MAY_IMPORT]
    assert ours
    assert not [(where, name) for where, _, name in ours if name.startswith("_")]
    assert not [(where, module) for where, module, _ in ours if module.split(".")[0] not in MAY_IMPORT[room]]
