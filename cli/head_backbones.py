"""The backbones that a head's vectors come from: copies in the head, or where its store keeps them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.common import describe_named_backbones

if TYPE_CHECKING:
    from embeddings.store import Store
    from stage2_heads.base import Head

__all__ = ["backbones_of", "carry_backbones", "copy_backbones"]


def backbones_of(head: Head, head_path: Path, named: list[str]) -> list[str]:
    """NAME=PLACE of the backbones that made a head's blocks: those named, or else the head's copies, or its store's.

    Raises InputError when one is nowhere, ContractError when it is another one.
    """
    from embeddings.contract import require_same_blocks
    from embeddings.errors import InputError
    from stage1_backbones.registry import describe_backbone

    if not head.blocks_:
        raise InputError(f"head {head_path} does not say which backbones made its vectors; it predicts on stores only.")
    available: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, source in describe_named_backbones(named):
        available[source.name], places[source.name] = source.fingerprint, place
    for name, _ in head.blocks_ if not named else ():
        found = next((p for p in _candidates(head, head_path, name) if (p / "backbone.json").is_file()), None)
        if found is None:
            raise InputError(
                f"the backbone of block {name!r} is neither in {head_path} nor in the store it was fitted on "
                f"({head.provenance.get('store', 'unknown')}). Name it with --backbone {name}=FOLDER; `heads fit "
                "--with-backbones` makes heads that need nothing else."
            )
        available[name], places[name] = describe_backbone(found).fingerprint, str(found)
    names = require_same_blocks(head.blocks_, available, who=f"head {head_path}", where="the backbones found")
    return [f"{name}={places[name]}" for name in names]


def copy_backbones(store: Store, names: list[str], head_path: Path) -> None:
    """Put copies of a store's backbones into a head, in place of those that it had."""
    from embeddings.files import replace_folder
    from stage1_backbones.registry import describe_backbone
    from stage2_heads.head_files import BACKBONES

    def fill(temporary: Path) -> None:
        for block in store.choose_blocks(names):
            source = describe_backbone(store.backbone_path(block))
            source.name = block.name
            source.save(temporary / block.name)

    replace_folder(head_path / BACKBONES, fill)


def carry_backbones(from_head: Path, to_head: Path) -> None:
    """Give a head that was made of another one the same copies, where that one has any."""
    from embeddings.files import replace_folder
    from stage2_heads.head_files import BACKBONES

    source = from_head / BACKBONES
    if source.is_dir() and from_head.resolve() != to_head.resolve():
        replace_folder(to_head / BACKBONES, lambda temporary: _copy(source, temporary))


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _candidates(head: Head, head_path: Path, name: str) -> list[Path]:
    from embeddings.errors import CisticolaError
    from embeddings.layout import StoreLayout
    from stage2_heads.head_files import BACKBONES

    candidates = [head_path / BACKBONES / name]
    try:
        layout = StoreLayout(Path(str(head.provenance.get("store", ""))))
        candidates.append(layout.backbone_path(layout.blocks[name]))
    except (CisticolaError, KeyError):
        pass  # the store has gone; the head may have copies of its own
    return candidates
