"""Settings from what people write (JSON, YAML, name=value): frozen dataclasses, and errors that name the field."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from embeddings.errors import InputError

__all__ = ["from_fields", "merged", "parse_assignments", "read_yaml"]

Settings = TypeVar("Settings")


def from_fields(cls: type[Settings], values: Any, where: str) -> Settings:
    """Build a dataclass of settings from a mapping, nested ones from nested mappings.

    where : what the mapping is called in errors, such as "augment"
    Raises InputError that names an unknown field and the one near it, or a value of another type.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise InputError(f"{where}={values!r} must be a group of settings (name: value).")
    hints = typing.get_type_hints(cls)
    allowed = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for name, value in values.items():
        field = allowed.get(str(name))
        if field is None:
            near = difflib.get_close_matches(str(name), allowed, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(f"{where} has no setting {name!r}; it has {', '.join(allowed)}.{hint}")
        given[field.name] = _converted(value, hints[field.name], f"{where}.{name}")
    missing = [
        n for n, f in allowed.items() if n not in given and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    return cls(**given)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`a.b=1` and the like as nested mappings; values are read as YAML.

    >>> parse_assignments(["augment.noise_p=0.5", "epochs=3", "mixup.where=both"])
    {'augment': {'noise_p': 0.5}, 'epochs': 3, 'mixup': {'where': 'both'}}
    """
    import yaml

    found: dict[str, Any] = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set {text} is not name=value.")
        *groups, last = name.strip().split(".")
        inside = found
        for group in groups:
            inside = inside.setdefault(group, {})
            if not isinstance(inside, dict):
                raise InputError(f"--set {text}: {group} was given a value of its own before.")
        try:
            inside[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--set {text} cannot be read: {error}") from None
    return found


def read_yaml(path: Path) -> Any:
    """Plain values of a YAML file; no code in it is run. Raises InputError when it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; name a YAML file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {error}") from None


def merged(below: Any, *above: Any) -> dict[str, Any]:
    """Settings with others laid over them, group by group.

    >>> merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 4}})
    {'a': 1, 'b': {'c': 2, 'd': 4}}
    """
    result = dict(below)
    for layer in above:
        if not isinstance(layer, Mapping):
            raise InputError(f"{layer!r} must be a group of settings (name: value).")
        for name, value in layer.items():
            old = result.get(name)
            result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _converted(value: Any, hint: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_fields(typing.cast(type, hint), value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        others = [option for option in options if option is not type(None)]
        return _converted(value, others[0], where) if len(others) == 1 else value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InputError(f"{where}={value!r} must be a list.")
        if options[1:] == (Ellipsis,):
            return tuple(_converted(part, options[0], f"{where}[{i}]") for i, part in enumerate(value))
        return tuple(value)
    if origin is Mapping and not isinstance(value, Mapping):
        raise InputError(f"{where}={value!r} must be a group of settings (name: value).")
    if origin is not None or hint is Any:  # a mapping that its owner checks
        return value
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        if abs(int(value)) > _LARGEST:
            raise InputError(f"{where}={value} is too large a number.")
        return int(value)
    if hint is float and isinstance(value, (Real, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-3 as text
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{where}={value!r} must be a number.")
        return number
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        raise InputError(f"{where}={value!r} must be {_WORDS.get(hint, hint.__name__)}.")
    return value


_LARGEST = 2**63 - 1
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
