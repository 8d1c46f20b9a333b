"""The backbones that a head's vectors come from: copies in the head, or where its store keeps them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.common import describe_named_backbones

if TYPE_CHECKING:
    from embeddings.contract import Fingerprint
    from embeddings.store import Store
    from stage2_heads.base import Head

__all__ = ["backbones_of", "carry_backbones", "copy_backbones", "gather_backbones"]


def backbones_of(head: Head, head_path: Path, named: list[str]) -> list[str]:
    """NAME=PLACE of the backbones that made a head's blocks: those named, or else the head's copies, or its store's.

    Raises InputError when one is nowhere, ContractError when it is another one.
    """
    from embeddings.contract import require_same_blocks
    from embeddings.errors import InputError

    if not head.blocks_:
        raise InputError(f"head {head_path} does not say which backbones made its vectors; it predicts on stores only.")
    available: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, source in describe_named_backbones(named):
        available[source.name], places[source.name] = source.fingerprint, place
    alike = [fingerprint for _, fingerprint in head.blocks_]
    for name, fingerprint in head.blocks_:
        if list(available.values()).count(fingerprint) >= alike.count(fingerprint):
            continue
        found = next((p for p in _candidates(head, head_path, name) if _made_by(p, fingerprint)), None)
        if found is None and named:
            break  # the contract says how those that were named differ
        if found is None:
            raise InputError(
                f"the backbone of block {name!r} is neither in {head_path} nor in the store it was fitted on "
                f"({head.provenance.get('store', 'unknown')}). Name it with --backbone {name}=FOLDER; `heads fit "
                "--with-backbones` makes heads that need nothing else."
            )
        available[name], places[name] = fingerprint, str(found)
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
    """Give a head that was made of another one the same copies, or none where that one has none."""
    from embeddings.files import replace_folder
    from stage2_heads.head_files import BACKBONES

    source = from_head / BACKBONES
    if from_head.resolve() == to_head.resolve():
        return
    if source.is_dir():
        replace_folder(to_head / BACKBONES, lambda temporary: _copy(source, temporary))
    else:
        shutil.rmtree(to_head / BACKBONES, ignore_errors=True)


def gather_backbones(from_heads: Sequence[Path], to_head: Path) -> None:
    """Give a head that was made of several the copies of all of them; a block that several have is taken once."""
    from embeddings.files import replace_folder
    from stage2_heads.head_files import BACKBONES

    sources = {p.name: p for head in from_heads for p in sorted((head / BACKBONES).glob("*")) if p.is_dir()}

    def fill(temporary: Path) -> None:
        for name, source in sources.items():
            shutil.copytree(source, temporary / name)

    if sources:
        replace_folder(to_head / BACKBONES, fill)
    else:
        shutil.rmtree(to_head / BACKBONES, ignore_errors=True)


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


def _candidates(head: Head, head_path: Path, name: str) -> list[Path]:
    from embeddings.errors import CisticolaError
    from embeddings.layout import StoreLayout
    from stage2_heads.head_files import BACKBONES

    candidates = [head_path / BACKBONES / name]
    for one in (head, *head.members_):
        try:
            layout = StoreLayout(Path(str(one.provenance.get("store", ""))))
            candidates.append(layout.backbone_path(layout.blocks[name]))
        except (CisticolaError, KeyError):
            continue  # the store has gone; the head may have copies of its own
    return candidates


def _made_by(place: Path, fingerprint: Fingerprint) -> bool:
    """Whether a backbone lies there, and is the one that is meant."""
    from stage1_backbones.registry import describe_backbone

    return (place / "backbone.json").is_file() and describe_backbone(place).fingerprint == fingerprint
