"""Figures with their intervals as words, the same in every table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stage2_heads.score_report import Figure

__all__ = ["figure_words"]


def figure_words(figure: Figure | None, *, sign: bool = False) -> str:
    """.732 (.690-.771), or with `sign`, as differences are told, +.041 (-.002 to +.084). "" where undefined."""
    if figure is None or figure.value is None:
        return ""
    value, low, high = (_number(number, sign) for number in (figure.value, figure.low, figure.high))
    return f"{value} ({low}{' to ' if sign else '-'}{high})"


def _number(value: float | None, sign: bool) -> str:
    """Three digits after the point, and none before it but 1: .732, +.041, 1.000."""
    assert value is not None
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text
