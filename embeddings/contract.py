"""What a block of an embedding is, and who may be compared with whom."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from embeddings.errors import ContractError

__all__ = ["Backbone", "BlockSource", "Fingerprint", "Heard", "RowReader", "require_same_blocks"]


@dataclass(frozen=True)
class Fingerprint:
    """Everything that changes the meaning of a block's numbers, as plain JSON values.

    `fields` holds weights (a hash), front end, sample rate, `window_s`, inner windows and their pooling, and the
    normalisation inside the network. Hop, dtype on disk, engine and versions are provenance and stay out.
    """

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits; equal digests mean interchangeable vectors."""
        text = json.dumps(self.fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def differences(self, other: Fingerprint) -> list[str]:
        """The fields that differ, each as `name: ours != theirs`."""
        names = sorted(set(self.fields) | set(other.fields))
        missing = "absent"
        return [
            f"{name}: {self.fields.get(name, missing)!r} != {other.fields.get(name, missing)!r}"
            for name in names
            if self.fields.get(name, missing) != other.fields.get(name, missing)
        ]


@dataclass(frozen=True)
class Heard:
    """The recordings that a model was trained or selected on, so that it is never scored on them.

    Recordings are named twice over: by content hash, and by xeno-canto id, because the same recording reaches
    another collection re-encoded. `unpublished` is a sentence for models whose training recordings nobody can list.
    """

    trained_on: frozenset[str] = frozenset()
    selected_on: frozenset[str] = frozenset()
    xeno_canto_ids: frozenset[str] = frozenset()
    unpublished: str = ""

    def covers(self, recording: str, xeno_canto_id: str = "") -> bool:
        """Whether this model has heard the recording (content hash) or its xeno-canto id."""
        return (
            recording in self.trained_on
            or recording in self.selected_on
            or (xeno_canto_id != "" and xeno_canto_id in self.xeno_canto_ids)
        )

    def union(self, *others: Heard) -> Heard:
        """All that any of them has heard."""
        everyone = (self, *others)
        return Heard(
            trained_on=frozenset().union(*(h.trained_on for h in everyone)),
            selected_on=frozenset().union(*(h.selected_on for h in everyone)),
            xeno_canto_ids=frozenset().union(*(h.xeno_canto_ids for h in everyone)),
            unpublished=" ".join(dict.fromkeys(h.unpublished for h in everyone if h.unpublished)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "trained_on": sorted(self.trained_on),
            "selected_on": sorted(self.selected_on),
            "xeno_canto_ids": sorted(self.xeno_canto_ids),
            "unpublished": self.unpublished,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Heard:
        return cls(
            trained_on=frozenset(value["trained_on"]),
            selected_on=frozenset(value["selected_on"]),
            xeno_canto_ids=frozenset(value["xeno_canto_ids"]),
            unpublished=value.get("unpublished", ""),
        )


class BlockSource(Protocol):
    """What is known of a backbone without running it.

    name             the block's name in a store
    sample_rate_hz   the rate that it expects
    window_s         seconds of one window
    dim              length of a vector
    fingerprint      what its numbers mean
    heard            what it was trained and selected on
    """

    name: str
    sample_rate_hz: int
    window_s: float
    dim: int

    @property
    def fingerprint(self) -> Fingerprint: ...

    @property
    def heard(self) -> Heard: ...

    def save(self, folder: Path) -> None:
        """Write all that `load_backbone` needs to embed the same way again."""
        ...


@runtime_checkable
class Backbone(BlockSource, Protocol):
    """What extraction needs of a network. Whoever follows it can be used."""

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        """waveforms : (n, window_s * sample_rate_hz) float32 in [-1, 1].  Returns float32 (n, dim)."""
        ...


class RowReader(Protocol):
    """Fused embeddings by row number: a store's, or an array's.

    dims  length of each block, in the order in which they stand side by side
    """

    dims: tuple[int, ...]

    @property
    def n_rows(self) -> int: ...

    def read(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """rows : (n,) int64, any order.  Returns float32 (n, sum(dims)), in `out[:n]` when `out` is given."""
        ...


def require_same_blocks(
    expected: Iterable[tuple[str, Fingerprint]], available: Mapping[str, Fingerprint], *, who: str, where: str
) -> list[str]:
    """Find, for each expected block in order, the available block with the same fingerprint.

    Of several with one fingerprint that of the same name is taken, and each of them once while others are left.
    Returns the names under which `available` holds them. Raises ContractError that names the differing fields.
    """
    names: list[str] = []
    wanted = list(expected)
    kept = {name for name, fingerprint in wanted if name in available and available[name].digest == fingerprint.digest}
    for name, fingerprint in wanted:
        alike = [other for other, has in available.items() if has.digest == fingerprint.digest]
        alike.sort(key=lambda other: (other != name, other in names, other in kept))
        found = alike[0] if alike else None
        if found is None:
            nearest = available.get(name)
            if nearest is None:
                detail = f"{where} has {', '.join(available) or 'no blocks'}, none with that fingerprint"
            else:
                detail = f"its block {name!r} in {where} differs in {'; '.join(fingerprint.differences(nearest))}"
            raise ContractError(
                f"{who} was fitted on block {name!r} ({fingerprint.digest[:8]}), but {detail}. "
                f"Extract {where} with the backbone that {who} was fitted on, or fit a new head."
            )
        names.append(found)
    return names
