"""Pictures of calls: a query's spectrogram beside those of its nearest calls, as one PNG; or a single stretch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embeddings.errors import InputError

__all__ = [
    "INK",
    "PAPER",
    "QUIET",
    "RANGE_DB",
    "SAME",
    "Call",
    "calls_of_search",
    "draw_similar_calls",
    "draw_spectrogram",
    "draw_stretch",
    "small_png",
]

_RATE_HZ = 32_000
_N_FFT, _HOP_SAMPLES = 1024, 160
_HIGHEST_HZ = 10_000
_HIGHEST_STRETCH_HZ = 12_000.0
RANGE_DB = 40  # from a call's loudest moment down to black
_COLUMNS = 2
_COLOURS = 256
INK, PAPER, QUIET = "#22303c", "#fbfaf7", "#7b8794"
_QUERY, SAME, _OTHER = "#22303c", "#2a9d8f", "#e07a3f"


@dataclass(frozen=True)
class Call:
    """A stretch of a recording, and what to write above it.

    similarity  to the query, in [-1, 1]; None for the query itself
    same        it is of the query's species; None where that is not known
    """

    path: Path
    start_s: float
    end_s: float
    name: str
    recording: str
    similarity: float | None = None
    same: bool | None = None


def calls_of_search(result: Mapping[str, Any], label: str, name: str, recording: str) -> tuple[Call, list[Call]]:
    """The query and its neighbours, from what `embed search --json` wrote.

    label, name, recording  the query's primary label ("" when unknown), its common name and how to call its file
    The query is shown where its best neighbour found it. Raises InputError when the search found nothing.
    """
    neighbours = result["neighbours"]
    if not neighbours:
        raise InputError(f"the search for {result['query']} found nothing to draw.")
    start_s = neighbours[0]["query_start_s"]
    length_s = max(n["end_s"] - n["start_s"] for n in neighbours)
    query = Call(Path(result["query"]), start_s, start_s + length_s, name, recording)
    return query, [
        Call(
            Path(n["path"]),
            n["start_s"],
            n["end_s"],
            n["common_name"] or n["primary_label"],
            n["filename"],
            n["similarity"],
            n["primary_label"] == label if label and n["primary_label"] else None,
        )
        for n in neighbours
    ]


def draw_similar_calls(query: Call, neighbours: Sequence[Call], path: Path) -> None:
    """Draw the query and its nearest calls, most similar first, into a PNG. Raises AudioError for a lost recording."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from embeddings.files import write_atomically

    calls = [query, *neighbours]
    n_rows = -(-len(calls) // _COLUMNS)
    figure = Figure(figsize=(12.5, 2.6 * n_rows + 0.4), facecolor=PAPER)
    FigureCanvasAgg(figure)
    grid = figure.subplots(n_rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    length_s = max(call.end_s - call.start_s for call in calls)
    for place, axes in enumerate(grid.flat):
        if place >= len(calls):
            axes.set_visible(False)
            continue
        _draw_call(axes, calls[place], place, length_s)
        if place % _COLUMNS == 0:
            axes.set_ylabel("kHz", color=QUIET, fontsize=9)
        if place + _COLUMNS >= len(calls):
            axes.set_xlabel("seconds", color=QUIET, fontsize=9)
            axes.tick_params(labelbottom=True)
    figure.subplots_adjust(left=0.045, right=0.985, top=1 - 0.42 / figure.get_figheight(), bottom=0.07, hspace=0.3)
    figure.subplots_adjust(wspace=0.07)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130, facecolor=PAPER))


def _draw_call(axes: Any, call: Call, rank: int, length_s: float) -> None:
    decibels = _spectrogram(call)
    shown_s = min(call.end_s - call.start_s, length_s)
    draw_spectrogram(axes, decibels, shown_s, _HIGHEST_HZ)
    axes.set(xlim=(0, length_s), ylim=(0, _HIGHEST_HZ / 1000), facecolor="black")
    colour = _QUERY if call.similarity is None else {True: SAME, False: _OTHER, None: QUIET}[call.same]
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.6 if call.similarity is None else 1.8)
    axes.tick_params(colors=QUIET, labelsize=8, length=2)
    head = "Query" if call.similarity is None else f"{rank}"
    bold = {"fontsize": 11, "fontweight": "bold", "transform": axes.transAxes, "va": "bottom"}
    axes.text(0.0, 1.035, f"{head}  {call.name}", color=colour, **bold)
    facts = f"{call.recording}, {call.start_s:.1f}–{call.end_s:.1f} s"
    if call.similarity is not None:
        facts = f"similarity {call.similarity:.2f}  ·  {facts}"
    axes.text(1.0, 1.04, facts, color=QUIET, fontsize=8.5, ha="right", va="bottom", transform=axes.transAxes)


def _spectrogram(call: Call) -> np.ndarray:
    """Decibels below the call's loudest moment, (bins up to 10 kHz, frames), without the steady background."""
    from stage1_backbones.audio import read_audio

    samples = read_audio(call.path, _RATE_HZ, start_s=call.start_s, duration_s=call.end_s - call.start_s)
    return _decibels(samples, _RATE_HZ, _N_FFT, _HOP_SAMPLES, _HIGHEST_HZ)


def _decibels(samples: np.ndarray, rate_hz: int, n_fft: int, hop_samples: int, highest_hz: float) -> np.ndarray:
    import librosa

    power = np.abs(librosa.stft(samples, n_fft=n_fft, hop_length=hop_samples)) ** 2
    decibels = 10 * np.log10(power[: round(highest_hz * n_fft / rate_hz) + 1] + 1e-12)
    # Steady hum and hiss would fill the picture: bins are shown relative to their own quiet moments, in part.
    decibels -= 0.6 * np.percentile(decibels, 20, axis=1, keepdims=True)
    return decibels - np.percentile(decibels, 99.8)


def draw_spectrogram(axes: Any, decibels: np.ndarray, seconds: float, highest_hz: float) -> None:
    """Fill axes in seconds and kHz with levels.  decibels : (bins from 0 to highest_hz, frames over the seconds)"""
    axes.imshow(
        decibels,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=-RANGE_DB,
        vmax=0,
        extent=(0, seconds, 0, highest_hz / 1000),
        interpolation="bilinear",
        interpolation_stage="data",  # or colours that are none of magma's come between
    )


def draw_stretch(samples: np.ndarray, rate_hz: int) -> bytes:
    """A spectrogram of one stretch of sound as a small PNG, its axes in seconds and kHz.

    samples : float32 (n,), mono, n > 0.  Up to 12 kHz is shown, or as much as the rate holds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_fft = 1 << max(5, round(np.log2(0.032 * rate_hz)))
    highest_hz = min(_HIGHEST_STRETCH_HZ, rate_hz / 2)
    padded = np.pad(samples, (0, max(0, n_fft - len(samples))))
    decibels = _decibels(padded, rate_hz, n_fft, max(1, rate_hz // 200), highest_hz)
    figure = Figure(figsize=(4.4, 1.9), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.15, 0.905, 0.82))
    draw_spectrogram(axes, decibels, len(samples) / rate_hz, highest_hz)
    axes.tick_params(colors=INK, labelsize=7, length=2, pad=2)
    axes.set_ylabel("kHz", color=INK, fontsize=7, labelpad=1)
    axes.xaxis.set_major_formatter(lambda seconds, place: f"{seconds:g} s")
    axes.xaxis.get_ticklabels()[-1].set_horizontalalignment("right")
    for spine in axes.spines.values():
        spine.set_visible(False)
    return small_png(figure, 140)


def small_png(
    figure: Any, dpi: int, texts: Mapping[str, str] | None = None, palette: np.ndarray | None = None
) -> bytes:
    """A figure as a PNG of few colours: noise in full colour costs three times the bytes, and looks no better.

    texts    kept inside the file, by keyword
    palette  uint8 (at most 256, 3); None for those that fit the figure best, which may lose a colour of few pixels
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels, file, kept = io.BytesIO(), io.BytesIO(), PngInfo()
    for keyword, text in (texts or {}).items():
        kept.add_itxt(keyword, text)
    figure.savefig(pixels, format="png", dpi=dpi)
    full = Image.open(pixels).convert("RGB")
    if palette is None:
        few = full.quantize(_COLOURS)
    else:
        few = Image.fromarray(_nearest(np.asarray(full), palette))
        few.putpalette(palette.tobytes())
    few.save(file, format="png", optimize=True, pnginfo=kept)
    return file.getvalue()


def _nearest(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """pixels : uint8 (height, width, 3). Returns uint8 (height, width), exactly; Pillow's own search is coarser."""
    from scipy.spatial import KDTree

    colours, place = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    _, number = KDTree(palette.astype(float)).query(colours.astype(float))
    return number.astype(np.uint8)[place].reshape(pixels.shape[:2])
