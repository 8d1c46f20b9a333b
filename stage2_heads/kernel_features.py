"""Features in which a linear head draws curved boundaries: approximations of a Gaussian kernel."""

from __future__ import annotations

import math

import numpy as np

from embeddings.errors import InputError

__all__ = ["KINDS", "KernelFeatures"]

KINDS = ("fourier", "nystroem")
_TINY = 1e-12


class KernelFeatures:
    """x -> features whose scalar products approximate exp(-gamma |x - x'|^2).

    fourier   sqrt(2 / m) cos(x @ directions + phases), directions drawn from the kernel's spectrum
    nystroem  k(x, landmarks) @ whitening, for landmarks drawn from the training rows
    Sources: Rahimi and Recht 2007, Random Features for Large-Scale Kernel Machines; Williams and Seeger 2001, Using the
    Nystroem Method to Speed Up Kernel Machines.
    """

    def __init__(self, kind: str, gamma: float, points: np.ndarray, mixing: np.ndarray) -> None:
        """points : (dim, m) directions, or (m, dim) landmarks;  mixing : (m,) phases, or (m, m) whitening; float32."""
        self.kind, self.gamma = kind, float(gamma)
        self.points = np.ascontiguousarray(points, np.float32)
        self.mixing = np.ascontiguousarray(mixing, np.float32)

    @classmethod
    def draw(cls, kind: str, n_features: int, gamma: float, rows: np.ndarray, seed: int) -> KernelFeatures:
        """rows : (n, dim) standardised training rows, of which nystroem takes `n_features`, or all when fewer."""
        rng = np.random.default_rng((seed, 7))
        if kind == "fourier":
            directions = rng.standard_normal((rows.shape[1], n_features)) * math.sqrt(2 * gamma)
            return cls(kind, gamma, directions, rng.uniform(0, 2 * math.pi, n_features))
        if kind != "nystroem":
            raise InputError(f"features={kind!r} is not a kernel approximation; choose {', '.join(KINDS)}.")
        chosen = np.sort(rng.permutation(len(rows))[:n_features])
        landmarks = np.asarray(rows[chosen], np.float32)
        values, vectors = np.linalg.eigh(_gaussian(landmarks, landmarks, gamma).astype(np.float64))
        return cls(kind, gamma, landmarks, (vectors / np.sqrt(np.maximum(values, _TINY))) @ vectors.T)

    @property
    def n_features(self) -> int:
        return self.mixing.shape[-1]

    def apply(self, X: np.ndarray) -> np.ndarray:
        """X : (n, dim) float32, standardised.  Returns float32 (n, n_features)."""
        if self.kind == "fourier":
            features = X @ self.points
            features += self.mixing
            np.cos(features, out=features)
            features *= np.float32(math.sqrt(2 / self.n_features))
            return features
        return _gaussian(X, self.points, self.gamma) @ self.mixing


def _gaussian(X: np.ndarray, landmarks: np.ndarray, gamma: float) -> np.ndarray:
    squared = np.einsum("ij,ij->i", X, X)[:, None] - 2 * (X @ landmarks.T) + np.einsum("ij,ij->i", landmarks, landmarks)
    return np.exp(-np.float32(gamma) * np.maximum(squared, 0))
