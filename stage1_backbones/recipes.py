"""The recipes that come with Cisticola: `default` is the best that was measured, `plain` the bare one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embeddings.errors import InputError

__all__ = ["RECIPES", "recipe_of"]

_STRONG: dict[str, Any] = {
    "mixup": {"where": "both"},
    "augment": {
        "noise_p": 0.7,
        "noise_snr_db": [0.0, 25.0],
        "shift_p": 0.9,
        "filter_p": 0.8,
        "filter_db": 12.0,
        "time_mask_p": 0.7,
        "time_mask_share": 0.3,
        "frequency_mask_p": 0.7,
        "frequency_mask_share": 0.3,
        "cutmix_p": 0.3,
    },
}
# A network that starts from random weights does not begin to learn when its windows vary so much.
_MILD: dict[str, Any] = {
    "mixup": {"where": "input"},
    "augment": {"noise_p": 0.5, "shift_p": 0.5, "filter_p": 0.5, "time_mask_p": 0.5, "frequency_mask_p": 0.5},
}
# It also needs several times the steps of a fine-tune, and is light enough to take them.
_LONGER = {"crops_per_recording": 4, "min_steps": 1500}

RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "default": {
        "efficientnet": _STRONG,
        "vggish_bigru": {**_MILD, **_LONGER},
        "fusion": _STRONG,
    },
    "plain": {
        "efficientnet": {"ema_decay": 0.0, "loud_crops": 0.0},
        "vggish_bigru": {"ema_decay": 0.0, "loud_crops": 0.0, **_LONGER},
        "fusion": {"ema_decay": 0.0, "loud_crops": 0.0},
    },
}


def recipe_of(kind: str, name: str = "default") -> dict[str, Any]:
    """Training settings of a named recipe for a kind of backbone; those that it does not name keep their defaults.

    Raises InputError when there is no such recipe.
    """
    if name not in RECIPES:
        raise InputError(f"{name!r} is not a recipe; there are {', '.join(RECIPES)}.")
    return {"kind": kind, **RECIPES[name].get(kind, {})}
