"""The 32 kHz log-mel picture beside librosa's."""

from __future__ import annotations

import numpy as np

from benchmarks.timing import Result, compared, one_thread, ratio_of

NAME = "front_end"
_WINDOWS = 24


def run() -> list[Result]:
    """Five-second windows to mel decibels, one thread each side."""
    import librosa
    import torch

    from stage1_backbones.spectrogram import PictureFrontEnd, PictureSettings

    settings = PictureSettings()
    rng = np.random.default_rng(0)
    waveforms = (0.1 * rng.standard_normal((_WINDOWS, 5 * settings.sample_rate_hz))).astype(np.float32)
    tensors = torch.from_numpy(waveforms)
    front_end = PictureFrontEnd(settings)

    def theirs() -> None:
        for waveform in waveforms:
            power = librosa.feature.melspectrogram(
                y=waveform,
                sr=settings.sample_rate_hz,
                n_fft=settings.n_fft,
                hop_length=settings.hop_samples,
                n_mels=settings.n_mels,
                fmin=settings.low_hz,
                fmax=settings.high_hz,
            )
            librosa.power_to_db(power, top_db=settings.top_db)

    def ours() -> None:
        with torch.inference_mode():
            front_end.mel_db(tensors)

    with one_thread():
        other_s, ours_s = ratio_of(theirs, ours)
    what = f"PictureFrontEnd.mel_db with librosa melspectrogram + power_to_db, {_WINDOWS} windows of 5 s, 1 thread"
    audio_s = 5 * _WINDOWS
    return [compared(NAME, other_s, ours_s, 2.0, what, threads=1, audio_s_per_s=round(audio_s / ours_s))]
