"""Draws what each augmentation does to one invented call: python -m benchmarks.augmentations docs/augmentations.png"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cli.synthetic import RATE_HZ, SPECIES, Voice, noise_bed
from stage1_backbones.augment import AugmentSettings, augment_pictures, augment_waveforms
from stage1_backbones.mixup import Mixing
from stage1_backbones.spectrogram import PictureFrontEnd

WINDOW_S = 5.0
_OFF = AugmentSettings()
_SOUNDS: dict[str, AugmentSettings] = {
    "as recorded": _OFF,
    "Gaussian noise, 5 dB below": replace(_OFF, noise_p=1.0, noise_snr_db=(5.0, 5.0)),
    "background (rain), 0 dB": replace(_OFF, background_p=1.0, background_snr_db=(0.0, 0.0), background_folder="rain"),
    "gain, +18 dB, clipped": replace(_OFF, gain_p=1.0, gain_db=(18.0, 18.0)),
    "time shift": replace(_OFF, shift_p=1.0),
    "random filter, 20 dB": replace(_OFF, filter_p=1.0, filter_db=20.0),
}
_PICTURES: dict[str, AugmentSettings] = {
    "time mask": replace(_OFF, time_mask_p=1.0, time_mask_share=0.4),
    "frequency mask": replace(_OFF, frequency_mask_p=1.0, frequency_mask_share=0.4),
    "cutmix with another call": replace(_OFF, cutmix_p=1.0),
}


def singing(species: int, rng: np.random.Generator) -> np.ndarray:
    """A window of one invented species over faint wind, float32 (n_samples,)."""
    n_samples = round(WINDOW_S * RATE_HZ)
    phrase = SPECIES[species].phrase(Voice(), rng)
    sound = np.resize(np.concatenate([phrase, np.zeros(RATE_HZ // 2)]), n_samples)
    return (0.2 * sound + 0.004 * noise_bed("wind", n_samples, rng)).astype(np.float32)


def pictures() -> list[tuple[str, np.ndarray]]:
    """(name, picture (n_mels, n_frames)) of every augmentation."""
    rng = np.random.default_rng(4)
    calls = torch.from_numpy(np.stack([singing(0, rng), singing(5, rng)]))
    rain = [noise_bed("rain", 2 * calls.shape[1], rng).astype(np.float32)]
    front_end: Callable[[torch.Tensor], torch.Tensor] = PictureFrontEnd()
    drawn = []
    for name, settings in _SOUNDS.items():
        varied = augment_waveforms(calls[:1], settings, RATE_HZ, np.random.default_rng(1), rain)
        drawn.append((name, front_end(varied)[0, 0].numpy()))
    for name, settings in _PICTURES.items():
        seen = front_end(calls)[:, 0]
        augment_pictures([seen], torch.eye(2), settings, np.random.default_rng(10))
        drawn.append((name, seen[0].numpy()))
    mixing = Mixing("", torch.tensor([1, 0]), torch.tensor([0.6, 0.6]), "convex")
    drawn.append(("mixup as sound, .6 and .4", front_end(mixing.values(calls))[0, 0].numpy()))
    drawn.append(("mixup as pictures, .6 and .4", mixing.values(front_end(calls))[0, 0].numpy()))
    return drawn


def draw(path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(4, 3).ravel()
    for axes, (name, picture) in zip(all_axes, pictures(), strict=False):
        axes.imshow(picture, origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1, extent=(0, WINDOW_S, 0, 128))
        axes.set_title(name, fontsize=10, loc="left")
        axes.set(xticks=range(6), yticks=[])
        axes.tick_params(labelsize=8)
    for axes in all_axes[len(pictures()) :]:
        axes.axis("off")
    figure.supxlabel("seconds", fontsize=9)
    figure.supylabel("mel bands, 20 Hz to 16 kHz", fontsize=9)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=75)
    Image.open(drawn).convert("RGB").quantize(96).save(path, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "augmentations.png"))
