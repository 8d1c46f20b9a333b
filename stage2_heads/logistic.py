"""Logistic regression for many species at once."""

from __future__ import annotations

from dataclasses import dataclass

from stage2_heads.linear import LinearHead, LinearSettings

__all__ = ["LogisticHead", "LogisticSettings"]


@dataclass(frozen=True)
class LogisticSettings(LinearSettings):
    """As every linear head's. Steps may be longer than an SVM's: the loss bends an eighth as much."""

    c: float = 30.0
    learning_rate: float = 1.6


class LogisticHead(LinearHead):
    """One-against-the-rest logistic regression; decisions are log-odds."""

    kind = "logistic"
    settings_type = LogisticSettings
    firmness = 3.0  # its loss curves less
    settings: LogisticSettings

    @property
    def loss(self) -> str:
        return "log"
