"""Training batches: windows drawn, varied and turned into what the network sees, in an order that the seed decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from stage1_backbones.augment import augment_pictures, augment_waveforms, read_beds
from stage1_backbones.crops import Crops
from stage1_backbones.mixup import draw_mixing
from stage1_backbones.network import TrainableNetwork
from stage1_backbones.recipe import TrainingSettings

__all__ = ["BatchMaker", "TrainingBatches", "TrainingLoader"]

_AHEAD = 4  # batches made ahead while the network works


class BatchMaker:
    """Waveforms to what the first layer sees, varied on the way; on the device on which the waveforms lie."""

    def __init__(self, network: TrainableNetwork, settings: TrainingSettings) -> None:
        """Raises InputError when the folder of noise beds holds no audio."""
        self._network, self._settings = network, settings
        folder = settings.augment.background_folder
        self._beds = read_beds(Path(folder), network.sample_rate_hz, network.window_s) if folder else []

    def __call__(self, waveforms: Tensor, targets: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """waveforms : (n, samples);  targets : (n, n_labels);  key : what the draws depend on, and nothing else."""
        rng = np.random.default_rng(key)
        augment, mixup = self._settings.augment, self._settings.mixup
        waveforms = augment_waveforms(waveforms, augment, self._network.sample_rate_hz, rng, self._beds)
        if mixup.where == "sound":
            generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
            mixing = draw_mixing(mixup, len(waveforms), {}, generator)
            waveforms, targets = mixing.values(waveforms), mixing.targets(targets)
        inputs = self._network.inputs(waveforms)
        return inputs, augment_pictures(self._network.pictures_of(inputs), targets, augment, rng)


class TrainingBatches:
    """Batch b of epoch e as (inputs, targets); without `maker` as (waveforms, targets, key), to be made elsewhere."""

    def __init__(self, crops: Crops, targets: np.ndarray, settings: TrainingSettings, maker: BatchMaker | None) -> None:
        """targets : (n_recordings, n_labels) float32; draws follow the largest one of each recording."""
        self._crops, self._targets, self._settings, self._maker = crops, targets, settings, maker
        self._weights = _recording_weights(targets, settings.sampling)
        self.n_batches = settings.n_batches(len(crops))
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, int))

    def __getitem__(self, place: tuple[int, int]) -> tuple:
        epoch, b = place
        s = self._settings
        key = (s.seed, epoch, b)
        rng = np.random.default_rng((*key, 1))
        chosen = self._order_of(epoch)[b * s.batch_size : (b + 1) * s.batch_size]
        windows = [
            self._crops.loud(int(i), rng) if rng.random() < s.loud_crops else self._crops.random(int(i), rng)
            for i in chosen
        ]
        waveforms, targets = torch.from_numpy(np.stack(windows)), torch.from_numpy(self._targets[chosen])
        return (waveforms, targets, key) if self._maker is None else self._maker(waveforms, targets, key)

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            rng = np.random.default_rng((self._settings.seed, epoch))
            n = len(self._crops) * self._settings.crops_per_recording
            if self._weights is None:
                order = rng.permutation(np.repeat(np.arange(len(self._crops)), self._settings.crops_per_recording))
            else:
                order = rng.choice(len(self._crops), n, p=self._weights)
            self._order = (epoch, order)
        return self._order[1]


class TrainingLoader:
    """An epoch's batches in order, made by a thread of their own, ahead of the network.

    A thread and not a forked process: forking is not safe where other libraries have started threads.
    What makes batches (transforms, numpy's draws) lets the network's threads run meanwhile.
    """

    def __init__(self, batches: TrainingBatches, epoch: Callable[[], int]) -> None:
        """epoch : says which epoch it is. It is asked: what a training loop tells loaders is wrong after a resume."""
        self._batches, self._epoch = batches, epoch

    def __len__(self) -> int:
        return self._batches.n_batches

    def __iter__(self) -> Iterator[tuple]:
        epoch = self._epoch()
        pool = ThreadPoolExecutor(1, "batches", _leave_cores_to_the_network)
        ahead: deque[Future[tuple]] = deque()
        try:
            for b in range(len(self) + _AHEAD):
                if b < len(self):
                    ahead.append(pool.submit(self._batches.__getitem__, (epoch, b)))
                if b >= _AHEAD:
                    yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_cores_to_the_network() -> None:
    """OpenMP's number of threads is each thread's own: the network keeps all of its."""
    threadpool_limits(1, user_api="openmp")


def _recording_weights(targets: np.ndarray, sampling: str) -> np.ndarray | None:
    """Probability of each recording, by how many have its label; None when all are drawn equally often.

    Recordings without any label count as one more label.
    """
    if sampling == "uniform":
        return None
    targets = np.nan_to_num(targets)
    labels = np.where(targets.max(axis=1) > 0, targets.argmax(axis=1), targets.shape[1])
    weights = np.bincount(labels)[labels].astype(float) ** (-0.5 if sampling == "inverse_sqrt" else -1.0)
    return weights / weights.sum()
