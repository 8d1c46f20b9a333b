"""The errors that Cisticola raises on purpose: each says what, what was got, what is allowed and what to do."""

from __future__ import annotations

__all__ = [
    "AudioError",
    "CisticolaError",
    "ContractError",
    "EngineError",
    "InputError",
    "ScoreRangeError",
    "StoreError",
]


class CisticolaError(Exception):
    """Base of every deliberate error; the command line prints it without a trace and exits with 2."""


class InputError(CisticolaError):
    """A table, folder, option or file that the user named cannot be used as asked."""


class AudioError(CisticolaError):
    """One recording cannot be decoded, or not to its end. It never stops a batch."""


class StoreError(CisticolaError):
    """A store is missing, damaged, or not of this version."""


class ContractError(CisticolaError):
    """Vectors and a model, or two stores, were not made the same way and must not be compared."""


class EngineError(CisticolaError):
    """An inference engine does not give the vectors of the reference, and was asked for by name."""


class ScoreRangeError(CisticolaError):
    """Scores that padded cmAP cannot rank: not finite, below 0, or not below 1 in float64."""
