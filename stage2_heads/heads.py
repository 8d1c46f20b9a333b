"""The door to all heads: what there is, how to make one, how to read one back."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from embeddings.errors import InputError
from embeddings.settings import from_fields
from stage2_heads.base import Head
from stage2_heads.head_files import read_head

__all__ = ["HEADS", "HeadKind", "create_head", "list_heads", "load_head"]


@dataclass(frozen=True)
class HeadKind:
    """A kind of head: its name, what it is in a line, and where its class is (imported when asked for)."""

    name: str
    summary: str
    module: str
    class_name: str

    def load_class(self) -> type[Head]:
        loaded = getattr(import_module(self.module), self.class_name)
        assert issubclass(loaded, Head)
        return loaded


HEADS: Mapping[str, HeadKind] = {
    kind.name: kind
    for kind in (
        HeadKind("svm", "linear support vectors, one against the rest, out of core", "stage2_heads.svm", "SvmHead"),
        HeadKind("logistic", "logistic regression, otherwise as svm", "stage2_heads.logistic", "LogisticHead"),
        HeadKind("mlp", "a small network with mixup and early stopping", "stage2_heads.mlp", "MlpHead"),
        HeadKind("knn", "similarity-weighted votes of the nearest windows", "stage2_heads.knn", "KnnHead"),
        HeadKind(
            "prototypes", "cosines to a mean a class, for few recordings", "stage2_heads.prototypes", "PrototypeHead"
        ),
        HeadKind("online", "learns a stream window by window, and notices drift", "stage2_heads.online", "OnlineHead"),
        HeadKind("fused", "a head a block, weighed by unheard recordings", "stage2_heads.fused", "FusedHead"),
    )
}

_SEEDS = 2**32  # as scikit-learn and numpy count them
_COMBINED = HeadKind("combined", "fitted heads that answer together", "stage2_heads.combined", "CombinedHead")


def list_heads() -> list[HeadKind]:
    """Every kind of head, in a fixed order."""
    return list(HEADS.values())


def create_head(name: str, **settings: Any) -> Head:
    """An unfitted head.

    name      one of `HEADS`;  settings: fields of that head's settings, the rest keep their defaults
    Raises InputError that lists what is allowed, or names a value of another type.

    >>> create_head("knn", k=10).settings.k
    10
    """
    head_type = _class_of(name)
    made: Any = from_fields(head_type.settings_type, settings, name)
    if not 0 <= getattr(made, "seed", 0) < _SEEDS:
        raise InputError(f"{name}.seed={made.seed} must be a whole number from 0 to {_SEEDS - 1}.")
    return head_type(made)


def load_head(folder: str | Path) -> Head:
    """Read a saved head of any kind. No code is loaded from the folder.

    Raises InputError when the folder is not a head, or is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a head's folder (head.json, head.safetensors, heard.json).")
    return read_head(folder, lambda kind: _COMBINED.load_class() if kind == _COMBINED.name else _class_of(kind))


def _class_of(name: str) -> type[Head]:
    if name == _COMBINED.name:
        raise InputError("a combined head is made of fitted ones: heads combine HEAD... --out DIR.")
    kind = HEADS.get(name)
    if kind is None:
        near = difflib.get_close_matches(name, HEADS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"no head is called {name!r}; there are {', '.join(HEADS)}.{hint}")
    return kind.load_class()
