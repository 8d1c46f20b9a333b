"""Linear heads: one weight matrix for all species, fitted out of core by minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from embeddings.errors import InputError
from stage2_heads.base import Head, Progress, required_array
from stage2_heads.descent import SCHEDULES, BestWeights, Descent, Hold, MeanWeights
from stage2_heads.folds import inner_slice
from stage2_heads.kernel_features import KINDS, KernelFeatures
from stage2_heads.metrics import known_cmap
from stage2_heads.rows import LabelledRows
from stage2_heads.standardise import Standardiser

__all__ = ["LinearHead", "LinearSettings"]

_SMALL_STEP = 30_000_000  # multiplications of a step below which threads cost more than they bring
_STATISTICS_ROWS = 4096  # rows read at a time for means and deviations
_RECENT_UPDATES = 100  # partial_fit averages the weights of about so many updates
_SLOWING_UPDATES = 100  # partial_fit's steps shrink as (1 + updates / this) ** -0.5
_UPDATES_OF_MORE = 300  # at least, when a fitted head learns more rows
_FIRMEST_NEW = 0.3  # of a class that has no earlier positives: what holds it, beside its rows
_LOOKS = 25  # at the held-out slice, in a fit that may stop early


@dataclass(frozen=True)
class LinearSettings:
    """How a linear head learns.

    c               weight of a row's loss against the weights' length, as scikit-learn's C: the objective is
                    |w|^2 / 2 + c * sum of losses, so more rows regularise less
    class_balanced  positives and negatives of a class weigh alike in sum
    epochs          passes over the rows, more when `min_updates` needs them
    min_updates     updates at least, so that a few hundred rows converge
    learning_rate   of vectors of mean squared length 1
    schedule        late: whole for the first half, then falling to 0; cosine; constant
    averaging       the second half's weights are averaged
    patience        looks (of 25) at a held-out seventh of the recordings without a better cmAP before the fit stops
                    and keeps the best weights; 0: no recording is held out, and the fit runs to its end
    features        none: linear; fourier, nystroem: `n_features` features that approximate a Gaussian kernel,
                    exp(-gamma |x - x'|^2), of vectors of mean squared length 1
    """

    c: float = 1.0
    class_balanced: bool = False
    epochs: int = 4
    min_updates: int = 2000
    batch_size: int = 256
    learning_rate: float = 0.2
    schedule: str = "late"
    averaging: bool = True
    patience: int = 0
    features: str = "none"
    n_features: int = 2048
    gamma: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("c", "learning_rate", "gamma"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name}={getattr(self, name)} must be a positive number.")
        for name in ("epochs", "min_updates", "batch_size", "n_features"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be 1 or more.")
        if self.patience < 0:
            raise InputError(f"patience={self.patience} must be 0 or more.")
        for name, allowed in (("schedule", tuple(SCHEDULES)), ("features", ("none", *KINDS))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}.")


class LinearHead(Head):
    """One against the rest over standardised blocks, by descent on one weight matrix.

    A fractional target t counts as t of a positive and 1 - t of a negative.
    coef_ : (dim or n_features, c), intercept_ : (c,) float64;  standardiser_ : what makes vectors comparable
    features_ : the kernel approximation, or None
    """

    settings_type: ClassVar[type] = LinearSettings
    learns_partial_truth = True
    firmness: ClassVar[float] = 10.0  # of the hold on earlier weights; chosen on 140 recordings of 20 species
    start_offset: ClassVar[float] = -1.0  # decisions begin at "absent"
    settings: LinearSettings

    def __init__(self, settings: LinearSettings | None = None) -> None:
        super().__init__(settings)
        self.features_: KernelFeatures | None = None
        self._n_rows = self._n_updates = self._n_averaged = 0
        self._known: np.ndarray = np.zeros(0)
        self._positives: np.ndarray = np.zeros(0)

    @property
    def loss(self) -> str:
        """A name in `stage2_heads.descent.LOSSES`."""
        raise NotImplementedError

    def _learn(self, rows: LabelledRows, progress: Progress) -> np.ndarray | None:
        held_out = inner_slice(rows, self.settings.seed) if self.settings.patience else None
        fitting = rows if held_out is None else rows.subset(~held_out)
        selecting = None if held_out is None or not held_out.any() else rows.subset(held_out)
        with self._few_threads(fitting):
            self._descend(fitting, selecting, progress)
        return held_out

    def _descend(self, rows: LabelledRows, selecting: LabelledRows | None, progress: Progress) -> None:
        settings = self.settings
        self.standardiser_ = Standardiser.fit((X for X, _ in rows.batches(_STATISTICS_ROWS)), rows.dims)
        self._draw_features(rows.sample(settings.n_features, settings.seed))
        self._reset_weights()
        self._n_rows = rows.n_rows
        self._known, self._positives = rows.known_counts()

        n_updates = self._n_updates_over(rows, settings.min_updates)
        mean, best, look_every = MeanWeights(self._w, self._b), BestWeights(settings.patience), n_updates // _LOOKS
        for done in self._updates(rows, self._descent(), n_updates, settings.seed, mean, progress):
            if selecting is not None and (done % max(1, look_every) == 0 or done == n_updates):
                self.coef_, self.intercept_ = mean.weights()
                best.look(self._merit(selecting), self.coef_, self.intercept_)
            if best.is_over:
                break
        self._n_updates = done
        self._continue_from(*(mean.weights() if best.weights is None else best.weights))

    def _learn_rows(self, rows: LabelledRows, seed: int, progress: Progress) -> None:
        """Go on with new rows: the weights that explain them, held near those that explained the earlier rows.

        In place of the earlier rows' loss stands a parabola around the weights that they gave: as steep as if their
        vectors were spread over all directions alike, times `firmness`, because they are not. Kernel features share a
        direction that such a parabola does not hold: there it takes plain steps.
        """
        if self.features_ is not None:
            super()._learn_rows(rows, seed, progress)
            return
        known, positives = rows.known_counts()
        hold = self._hold_beside(rows.n_rows, positives)
        self._n_rows += rows.n_rows
        self._known, self._positives = self._known + known, self._positives + positives
        n_updates = self._n_updates_over(rows, min(_UPDATES_OF_MORE, self.settings.min_updates))
        mean = MeanWeights(self._w, self._b)
        with self._few_threads(rows):
            for _ in self._updates(rows, self._descent(hold), n_updates, seed, mean, progress):
                pass
        self._n_updates += n_updates
        self._continue_from(*mean.weights())

    def _hold_beside(self, n_rows: int, positives: np.ndarray) -> Hold:
        """How firmly each class is held when so many rows come, with so many positives, (c,)."""
        c, n_before = self.settings.c, self._n_rows
        firm = np.full(len(self.labels_), 1 + self.firmness * c * n_before / self._width)
        # Rows without a class hardly resist it: it is held by the rows that it had.
        firm = np.minimum(firm, _FIRMEST_NEW * c * n_rows * (1 + self._positives / np.maximum(positives, 1e-9)))
        offset_firm = 1 + c * n_before
        return Hold(
            self._w.copy(),
            self._b.copy(),
            firmness=(firm / (firm + c * n_rows)).astype(np.float32),
            offset_firmness=offset_firm / (offset_firm + c * n_rows),
        )

    def _updates(
        self,
        rows: LabelledRows,
        update: Descent,
        n_updates: int,
        seed: int,
        mean: MeanWeights,
        progress: Progress,
    ) -> Iterator[int]:
        """Updates on rows in a drawn order, epoch by epoch, averaged into `mean`; yields how many are done."""
        settings, schedule = self.settings, SCHEDULES[self.settings.schedule]
        done = 0
        while done < n_updates:
            for X, Y in rows.batches(min(settings.batch_size, rows.n_rows), seed=_epoch_seed(seed, done)):
                update(self._prepared(X, out=X), Y, settings.learning_rate * schedule(done / n_updates))
                done += 1
                if settings.averaging and done > n_updates // 2:
                    mean.add()
                yield done
                if done == n_updates:
                    break
            progress(done / n_updates)

    def _n_updates_over(self, rows: LabelledRows, fewest: int) -> int:
        per_epoch = math.ceil(rows.n_rows / min(self.settings.batch_size, rows.n_rows))
        return max(self.settings.epochs * per_epoch, fewest)

    def _few_threads(self, rows: LabelledRows) -> AbstractContextManager[Any]:
        """One thread where a step is over before a second one has woken up."""
        width = rows.dim if self.settings.features == "none" else self.settings.n_features
        small = min(self.settings.batch_size, rows.n_rows) * width * len(rows.labels) < _SMALL_STEP
        return threadpool_limits(1 if small else None, user_api="blas")

    def _learn_more(self, X: np.ndarray, Y: np.ndarray) -> None:
        settings = self.settings
        if not hasattr(self, "standardiser_"):
            self.standardiser_ = Standardiser.fit([X], self.dims_)
            if settings.features != "none":
                self.features_ = self._features_of(self.standardiser_.apply(X))
            self._reset_weights()
        self._n_rows += len(X)
        self._known = self._known + (~np.isnan(Y)).sum(axis=0)
        self._positives = self._positives + np.nansum(Y, axis=0, dtype=np.float64)
        order = np.random.default_rng((settings.seed, self._n_updates)).permutation(len(X))
        update = self._descent()
        for start in range(0, len(X), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            rate = settings.learning_rate / math.sqrt(1 + self._n_updates / _SLOWING_UPDATES)
            update(self._prepared(X[chosen]), Y[chosen], rate)
            self._n_updates += 1
            self._n_averaged = min(self._n_averaged + 1, _RECENT_UPDATES)
            self.coef_ += (self._w - self.coef_) / self._n_averaged
            self.intercept_ += (self._b - self.intercept_) / self._n_averaged

    def _decide(self, X: np.ndarray) -> np.ndarray:
        return self._prepared(X).astype(np.float64) @ self.coef_ + self.intercept_

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "coef": self.coef_,
            "intercept": self.intercept_,
            "mean": self.standardiser_.mean,
            "scale": self.standardiser_.scale,
            "positives": self._positives,
            **({} if (self._known == self._n_rows).all() else {"known": self._known}),
            "counts": np.array([self._n_rows, self._n_updates], dtype=np.int64),
        }
        if self.features_ is not None:
            arrays |= {"feature_points": self.features_.points, "feature_mixing": self.features_.mixing}
        return arrays

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        dim, n_classes = sum(self.dims_), len(self.labels_)
        self.standardiser_ = Standardiser(
            required_array(arrays, "mean", (dim,), np.float32),
            required_array(arrays, "scale", (dim,), np.float32),
            self.dims_,
        )
        kind = self.settings.features
        if kind != "none":
            points = required_array(
                arrays, "feature_points", (dim, None) if kind == "fourier" else (None, dim), np.float32
            )
            m = points.shape[1 if kind == "fourier" else 0]
            mixing = required_array(arrays, "feature_mixing", (m,) if kind == "fourier" else (m, m), np.float32)
            self.features_ = KernelFeatures(kind, self._gamma, points, mixing)
        self._reset_weights()
        self._positives = required_array(arrays, "positives", (n_classes,), np.float64)
        self._n_rows, self._n_updates = (int(v) for v in required_array(arrays, "counts", (2,), np.int64))
        self._known = (
            required_array(arrays, "known", (n_classes,), np.float64)
            if "known" in arrays
            else np.full(n_classes, float(self._n_rows))
        )
        self._continue_from(
            required_array(arrays, "coef", (self._width, n_classes), np.float64),
            required_array(arrays, "intercept", (n_classes,), np.float64),
        )

    @property
    def _width(self) -> int:
        return sum(self.dims_) if self.features_ is None else self.features_.n_features

    @property
    def _gamma(self) -> float:
        """Of standardised vectors, whose mean squared length is the number of blocks."""
        return self.settings.gamma / len(self.dims_)

    def _prepared(self, X: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        X = self.standardiser_.apply(X, out=out)
        return X if self.features_ is None else self.features_.apply(X)

    def _draw_features(self, rows: LabelledRows) -> None:
        self.features_ = None
        if self.settings.features != "none":
            self.features_ = self._features_of(
                np.concatenate([self.standardiser_.apply(X) for X, _ in rows.batches(_STATISTICS_ROWS)])
            )

    def _features_of(self, standardised: np.ndarray) -> KernelFeatures:
        settings = self.settings
        return KernelFeatures.draw(settings.features, settings.n_features, self._gamma, standardised, settings.seed)

    def _reset_weights(self) -> None:
        n_classes = len(self.labels_)
        self._w = np.zeros((self._width, n_classes), np.float32)
        self._b = np.full(n_classes, self.start_offset, np.float32)
        self.coef_, self.intercept_ = self._w.astype(np.float64), self._b.astype(np.float64)
        self._n_rows = self._n_updates = self._n_averaged = 0
        self._known, self._positives = np.zeros(n_classes), np.zeros(n_classes)

    def _widen(self, n: int) -> None:
        def wider(array: np.ndarray, value: float) -> np.ndarray:
            fresh = np.full((*array.shape[:-1], n), value, array.dtype)
            return np.concatenate([array, fresh], axis=-1)

        offset = float(self.intercept_.mean())  # about as rare as the others
        self._w, self._b = wider(self._w, 0.0), wider(self._b, offset)
        self.coef_, self.intercept_ = wider(self.coef_, 0.0), wider(self.intercept_, offset)
        self._known, self._positives = wider(self._known, float(self._n_rows)), wider(self._positives, 0.0)

    def _continue_from(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        """Take averaged weights as the fitted ones; later updates start from them."""
        self.coef_, self.intercept_ = coef, intercept
        self._w, self._b = coef.astype(np.float32), intercept.astype(np.float32)
        self._n_averaged = 0

    def _descent(self, hold: Hold | None = None) -> Descent:
        positive, negative = self._class_weights()
        return Descent(
            self._w,
            self._b,
            loss=self.loss,
            decay=1.0 / (self.settings.c * self._n_rows) if hold is None else 0.0,
            positive_weight=positive,
            negative_weight=negative,
            squared_length=len(self.dims_) if self.features_ is None else 1.0,
            hold=hold,
        )

    def _class_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight of a positive and of a negative of each class, float32 (c,)."""
        if not self.settings.class_balanced:
            ones = np.ones(len(self.labels_), np.float32)
            return ones, ones
        half = self._known / 2
        positives = np.clip(self._positives, 1.0, np.maximum(self._known - 1.0, 1.0))
        return (half / positives).astype(np.float32), (half / (self._known - positives + 1e-9)).astype(np.float32)

    def _merit(self, rows: LabelledRows) -> float:
        """Present-only cmAP over windows."""
        decided = [(self._decide(X), Y.copy()) for X, Y in rows.batches(_STATISTICS_ROWS)]
        return known_cmap(np.concatenate([Y for _, Y in decided]), np.concatenate([d for d, _ in decided]))


def _epoch_seed(seed: int, n_done: int) -> int:
    return int(np.random.SeedSequence((seed, n_done)).generate_state(1)[0])
