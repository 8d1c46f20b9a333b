"""What sang, when, at a glance: a recording's spectrogram above a strip for each species, as one PNG a recording."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli.pictures import INK, PAPER, QUIET, SAME
from cli.strips import CELLS, Strips
from cli.time_axis import TimeAxis, elapsed
from embeddings.file_names import file_name, plain_word

if TYPE_CHECKING:
    from cli.overview import Overview
    from embeddings.recordings import Recording
    from embeddings.store import Store, StoreReader
    from stage2_heads.base import Head
    from stage2_heads.predict import Detecting
    from stage2_heads.prediction_files import Provenance

__all__ = ["draw_pictures"]

_KEY = "Cisticola picture"  # what a picture was made of stands inside it, so that it is not drawn twice
_DESIGN = "1"
_SHOWN_CHARACTERS = 28  # of a species
_WIDTH_IN, _RIGHT_IN, _SPECTROGRAM_IN, _STRIP_IN, _GAP_IN = 10.4, 0.55, 2.3, 0.38, 0.08
_ABOVE_IN, _BELOW_IN, _DPI = 0.62, 0.7, 120
_BELOW_THRESHOLD, _GRID = "#b9c2ca", "#eceae4"


def draw_pictures(
    folder: Path,
    limit: int,
    head: Head,
    store: Store,
    reader: StoreReader,
    rows: np.ndarray,
    about: Provenance,
    detecting: Detecting,
) -> dict[str, list[str]]:
    """Draw the first recordings of some rows, one after the other; a picture that is there already stays as it is.

    reader : of the head's blocks in the store;  rows : (n,) numbers of those predicted, in their order
    Returns the pictures "drawn" and "kept" before, and what is "missing": recordings whose audio is gone, and why.
    """
    from cli.common import console, print_names, progress
    from cli.overview import overview_of
    from embeddings.errors import AudioError
    from embeddings.files import write_atomically
    from embeddings.moved import AudioFinder
    from stage2_heads.predict import predict
    from stage2_heads.stretches import stretches

    catalogue = store.catalogue.recordings
    places = store.place_of_row[rows]
    runs = np.flatnonzero(np.append(True, places[1:] != places[:-1])) if len(places) else places
    chosen = list(dict.fromkeys(places[runs].tolist()))[:limit]
    names = _file_names(catalogue)
    finder = AudioFinder()
    told: dict[str, list[str]] = {"drawn": [], "kept": [], "missing": []}
    with progress("drawing", len(chosen), "pictures") as advance:
        for place in chosen:
            recording, path = catalogue[place], folder / names[place]
            own = rows[places == place]
            key = _key(recording, about, detecting, store.rows.start_s[own])
            made_of = _made_of(path)
            if made_of == key:
                told["kept"].append(str(path))
            elif path.exists() and made_of is None:
                told["missing"].append(f"{path} is there, and no prediction drew it; it is left as it is")
            elif (audio := finder.find(recording)) is None:
                name = _line(recording.filename or recording.path.name)
                told["missing"].append(f"{name}: its audio is no longer at {recording.path}")
            else:
                try:
                    overview = overview_of(audio)
                    scored = predict(head, reader, own, detecting)
                    parts = stretches(scored, store.rows, store.place_of_row, catalogue)
                    start_s, end_s = store.rows.start_s[own], store.rows.end_s[own]
                    strips = Strips.of(parts, detecting, start_s, end_s)
                    picture = _drawn(recording, overview, strips, about, detecting, key)
                    write_atomically(path, partial(_write, content=picture))
                    told["drawn"].append(str(path))
                except AudioError as error:
                    told["missing"].append(str(error))
            advance(1)
    kept = f", {len(told['kept'])} were there" if told["kept"] else ""
    console().print(f"Pictures: {len(told['drawn'])} drawn{kept}, in {folder}.", soft_wrap=True)
    print_names("No picture can be drawn of", told["missing"])
    return told


def _drawn(
    recording: Recording, overview: Overview, strips: Strips, about: Provenance, detecting: Detecting, key: str
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from cli.pictures import RANGE_DB, draw_spectrogram, small_png
    from stage2_heads.prediction_files import began_at

    n = len(strips.columns)
    names = [_name(about, column) for column in strips.columns.tolist()]
    left_in = max(0.8, 0.3 + 0.084 * max(map(len, names), default=0))
    below_in = _BELOW_IN + n * (_STRIP_IN + _GAP_IN)
    height_in = below_in + _SPECTROGRAM_IN + _ABOVE_IN
    figure = Figure(figsize=(_WIDTH_IN, height_in), facecolor=PAPER)
    FigureCanvasAgg(figure)
    wide = (_WIDTH_IN - left_in - _RIGHT_IN) / _WIDTH_IN
    length_s = max(overview.duration_s, strips.end_s)

    def panel(bottom_in: float, panel_in: float) -> Any:
        axes = figure.add_axes((left_in / _WIDTH_IN, bottom_in / height_in, wide, panel_in / height_in))
        axes.set_xlim(0, length_s)
        axes.spines[:].set_visible(False)
        axes.tick_params(colors=QUIET, labelsize=8, length=2, labelbottom=False)
        return axes

    top = panel(below_in, _SPECTROGRAM_IN)
    seconds = overview.power.shape[1] * overview.column_s
    draw_spectrogram(top, overview.levels(RANGE_DB), seconds, overview.highest_hz)
    top.set(xlim=(0, length_s), ylim=(0, overview.highest_hz / 1000), facecolor="black")
    top.set_ylabel("kHz", color=QUIET, fontsize=8)
    top.yaxis.get_major_locator().set_params(integer=True, nbins=6)
    time = TimeAxis.of(began_at(recording.recorded_at), length_s)
    top.set_xticks(time.ticks_s)
    edges = np.linspace(0, strips.end_s, CELLS + 1)
    for place, column in enumerate(strips.columns.tolist()):
        axes = panel(_BELOW_IN + (n - 1 - place) * (_STRIP_IN + _GAP_IN), _STRIP_IN)
        _draw_strip(axes, edges, strips.scores[place], strips.found[place], float(about.thresholds[column]))
        found, best = bool(strips.found[place].any()), float(np.nan_to_num(strips.scores[place]).max())
        weight = "bold" if found else "normal"
        beside = {"transform": axes.transAxes, "va": "center", "parse_math": False, "fontweight": weight}
        colour = INK if found else QUIET
        axes.text(-0.012, 0.45, names[place], ha="right", fontsize=9, color=colour, **beside)
        axes.text(1.008, 0.45, _score(best), ha="left", fontsize=8.5, color=colour, **beside)
        axes.set_xticks(time.ticks_s, time.labels)
        axes.tick_params(labelbottom=place == n - 1, bottom=place == n - 1)
    _write_around(figure, left_in, recording, overview, strips, about, time.words)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is shown as boxes
        return small_png(
            figure, _DPI, {_KEY: key, "Description": f"{about.words}. Detections: {detecting.words}."}, _palette()
        )


def _draw_strip(axes: Any, edges: np.ndarray, scores: np.ndarray, found: np.ndarray, threshold: float) -> None:
    """Height is the score; what is a detection is dark and has a bar below it, so that no colour has to be told."""
    axes.set(ylim=(-0.2, 1), facecolor="white")
    axes.set_yticks([])
    axes.grid(axis="x", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for wanted, colour in ((~found, _BELOW_THRESHOLD), (found, SAME)):
        axes.stairs(np.where(wanted, scores, np.nan), edges, fill=True, color=colour, linewidth=0)
    axes.stairs(np.where(found, -0.2, np.nan), edges, baseline=-0.06, fill=True, color=INK, linewidth=0)
    axes.axhline(threshold, color=INK, linewidth=0.7, linestyle=(0, (1, 2.5)), alpha=0.7)
    axes.axhline(0, color=QUIET, linewidth=0.5)


def _palette() -> np.ndarray:
    """Magma, and every other colour of the picture on its way to the background."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    shares = np.linspace(0, 1, 9)[:, None]
    mixed = [
        (1 - shares) * to_rgb(colour) + shares * to_rgb(background)
        for colour in (INK, QUIET, SAME, _BELOW_THRESHOLD)
        for background in (PAPER, "white")
    ]
    colours = np.concatenate([colormaps["magma"](np.linspace(0, 1, 80))[:, :3], [to_rgb(_GRID)], *mixed])
    return np.round(255 * colours).astype(np.uint8)


def _write_around(
    figure: Any,
    left_in: float,
    recording: Recording,
    overview: Overview,
    strips: Strips,
    about: Provenance,
    time: str,
) -> None:
    left, right, height_in = left_in / _WIDTH_IN, 1 - _RIGHT_IN / _WIDTH_IN, figure.get_figheight()

    def write(x: float, y_in: float, text: str, **how: Any) -> None:
        figure.text(x, y_in / height_in, text, **{"fontsize": 8, "color": QUIET, "parse_math": False, **how})

    name = _line(recording.filename or recording.path.name)
    write(left, height_in - 0.34, _short(name, 70), fontsize=12, fontweight="bold", color=INK)
    facts = f"{elapsed(overview.duration_s)} long · {time}"
    if overview.problem:
        facts = f"stops decoding here · {facts}"
    write(left, height_in - 0.53, facts)
    n_found = int(strips.found.any(axis=1).sum()) + strips.n_more
    more = f" ({strips.n_more} of them not shown)" if strips.n_more else ""
    write(right, height_in - 0.53, f"{n_found or 'no'} species detected{more}", ha="right", color=INK)
    write(left, 0.2, "■", color=SAME, fontsize=9)
    write(left + 0.016, 0.2, "detection, with a bar below")
    write(left + 0.19, 0.2, "■", color=_BELOW_THRESHOLD, fontsize=9)
    write(left + 0.206, 0.2, "score below the threshold")
    write(left + 0.37, 0.2, "┄", color=INK, fontsize=9)
    write(left + 0.39, 0.2, "threshold")
    write(right, 0.2, f"head {_short(about.head, 40)}", ha="right")


def _name(about: Provenance, column: int) -> str:
    label = about.labels[column]
    scientific, common = about.names.get(label, ("", ""))
    return _short(common or scientific or label)


def _score(value: float) -> str:
    return f".{int(100 * value):02d}" if value < 0.995 else ">.99"


def _write(path: Path, *, content: bytes) -> None:
    path.write_bytes(content)


def _file_names(recordings: Sequence[Recording]) -> list[str]:
    """Of each recording's picture: what every file system takes, and its hash: another card may bring that name."""
    stems = (plain_word(Path(r.filename or r.path.name).stem) or "recording" for r in recordings)
    return [file_name(stem, f"-{r.recording[:8]}.png") for stem, r in zip(stems, recordings, strict=True)]


def _key(recording: Recording, about: Provenance, detecting: Detecting, start_s: np.ndarray) -> str:
    """Changes when the picture would."""
    facts = (_DESIGN, recording.recording, recording.filename, recording.recorded_at, about.words, detecting.words)
    made_of = hashlib.sha256(repr(facts).encode(errors="surrogateescape"))
    for array in (start_s, about.thresholds, detecting.classes):
        made_of.update(np.ascontiguousarray(array).tobytes())
    return made_of.hexdigest()[:24]


def _made_of(path: Path) -> str | None:
    """The key inside a picture; None where there is no picture of ours."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # far larger than we draw
            with Image.open(path) as picture:
                return picture.info.get(_KEY)
    except Exception:  # no picture at all, or one that is made to be unreadable: in any case none of ours
        return None


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _short(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    line = _line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"
