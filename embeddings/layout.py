"""What a store's folder looks like: its description, its blocks, and where each shard lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embeddings.contract import BlockSource, Fingerprint, Heard
from embeddings.errors import InputError, StoreError
from embeddings.files import read_json, replace_folder, write_json
from embeddings.recordings import save_catalogue
from embeddings.splits import Split
from embeddings.windows import WindowPlan

__all__ = ["DTYPES", "FORMAT", "HASHES", "Block", "StoreLayout", "create_layout", "write_header"]

FORMAT = "cisticola-store-1"
DTYPES = ("float16", "float32")
CATALOGUE = "catalogue.arrow"
ENGINES = "engines.json"
HASHES = "hashes.arrow"  # the cache of content hashes; it is there before the store is


@dataclass(frozen=True)
class Block:
    """One backbone's vectors in a store. `backbone` is where the backbone lies, relative to the store or absolute."""

    name: str
    dim: int
    fingerprint: Fingerprint
    backbone: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Block:
        return cls(value["name"], value["dim"], Fingerprint(value["fingerprint"]), value["backbone"])

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dim": self.dim,
            "fingerprint": dict(self.fingerprint.fields),
            "backbone": self.backbone,
        }


class StoreLayout:
    """A store's description, without its rows: all that a writer needs, whatever the store's size."""

    def __init__(self, path: Path) -> None:
        """Open an existing store. Raises StoreError when there is none or its description is damaged."""
        self.path = Path(path)
        if not (self.path / "store.json").is_file():
            raise StoreError(
                f"{self.path} is not a store (no store.json). Make one with: embed extract ... --out {path}"
            )
        header = read_json(self.path / "store.json", what="store description")
        if header.get("format") != FORMAT:
            raise StoreError(
                f"{self.path} has format {header.get('format')!r}; this version reads {FORMAT!r}. "
                f"Extract it again, or use the version of Cisticola that made it."
            )
        try:
            self.plan = WindowPlan(**header["windows"])
            self.dtype: str = header["dtype"]
            self.blocks = {b["name"]: Block.from_json(b) for b in header["blocks"]}
            self.split_settings: dict[str, Any] = header["split"]
        except (KeyError, TypeError) as error:
            raise StoreError(f"{self.path / 'store.json'} lacks {error}. It was edited or cut short.") from None

    def row_path(self, shard: str) -> Path:
        return self.path / "rows" / f"{shard}.arrow"

    def vector_path(self, block: str, shard: str) -> Path:
        return self.path / "blocks" / block / f"{shard}.arrow"

    def choose_blocks(self, names: Iterable[str] | None = None) -> list[Block]:
        """The named blocks in that order; all of them when None. Raises InputError for an unknown name."""
        chosen = list(names) if names is not None else list(self.blocks)
        unknown = [name for name in chosen if name not in self.blocks]
        if unknown:
            raise InputError(f"{self.path} has no block {', '.join(unknown)}; it has {', '.join(self.blocks)}.")
        if len(set(chosen)) != len(chosen):
            raise InputError(f"a block is named twice in {', '.join(chosen)}.")
        return [self.blocks[name] for name in chosen]

    def backbone_path(self, block: Block) -> Path:
        """The folder of the backbone that made a block: the store's own copy, or where it is linked."""
        return self.path / block.backbone if not Path(block.backbone).is_absolute() else Path(block.backbone)

    def heard(self, names: Iterable[str] | None = None) -> Heard:
        """What the backbones of the named blocks were trained and selected on."""
        files = [self.backbone_path(block) / "heard.json" for block in self.choose_blocks(names)]
        return Heard().union(*(Heard.from_json(read_json(f, what="list of heard recordings")) for f in files))

    def engines(self, machine: str, asked: str) -> dict[str, Any]:
        """Block -> record of the engine that was chosen before on this machine for the same wish."""
        path = self.path / ENGINES
        remembered = read_json(path, what="engines that were chosen") if path.is_file() else {}
        return remembered.get(machine, {}).get(asked, {})

    def remember_engines(self, machine: str, asked: str, records: Mapping[str, Any]) -> None:
        """Keep a choice, so that a resumed extraction runs the same engine and gives the same bits."""
        path = self.path / ENGINES
        remembered = read_json(path, what="engines that were chosen") if path.is_file() else {}
        remembered.setdefault(machine, {}).setdefault(asked, {}).update(records)
        write_json(path, remembered)

    def add_block(self, source: BlockSource, *, link: bool) -> None:
        """Declare a further block; its vectors are still to be computed for every sealed shard."""
        block = _keep_backbone(self.path, source, link)
        self.blocks[block.name] = block
        write_header(self.path, self.plan, self.dtype, list(self.blocks.values()), self.split_settings)


def create_layout(
    path: Path, sources: Sequence[BlockSource], plan: WindowPlan, *, dtype: str, split: Split, link: bool
) -> None:
    """Make an empty store for these blocks, with a copy of (or a link to) each backbone."""
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}.")
    path = Path(path)
    if path.exists() and (not path.is_dir() or not all(_is_of_a_beginning(entry.name) for entry in path.iterdir())):
        raise InputError(f"{path} exists and is not a store. Name an empty or a new folder with --out.")
    blocks = [_keep_backbone(path, source, link) for source in sources]
    save_catalogue(path / CATALOGUE, [])
    write_header(path, plan, dtype, blocks, {"kind": split.kind, "seed": split.seed, "valid_fold": split.valid_fold})


def _is_of_a_beginning(name: str) -> bool:
    """Whether a creation that was killed may have left it."""
    return name in (HASHES, ENGINES, "backbones", CATALOGUE) or name.endswith(".tmp")


def _keep_backbone(path: Path, source: BlockSource, link: bool) -> Block:
    place = f"backbones/{source.name}"
    origin = getattr(source, "folder", None)
    if link and origin is not None:
        place = str(Path(origin).resolve())
    else:
        replace_folder(path / place, source.save)
    return Block(source.name, source.dim, source.fingerprint, place)


def write_header(path: Path, plan: WindowPlan, dtype: str, blocks: list[Block], split: dict[str, Any]) -> None:
    """Write a store's description; with it the folder becomes a store."""
    header = {"format": FORMAT, "windows": plan.to_json(), "dtype": dtype, "split": split}
    write_json(path / "store.json", {**header, "blocks": [block.to_json() for block in blocks]})
