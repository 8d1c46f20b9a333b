"""Both tracks in one network, trained together: waveform planes laid over the picture, or two bodies and a join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from embeddings.errors import InputError
from embeddings.settings import from_fields
from stage1_backbones.efficientnet import EfficientNet, EfficientNetSettings
from stage1_backbones.joins import JOINS, Neck
from stage1_backbones.network import OUTPUTS, TrainableNetwork, make_classifier, require_one_of
from stage1_backbones.spectrogram import PictureSettings, VggishSettings
from stage1_backbones.two_tracks import AUDIO, PICTURE, TwoTrackFrontEnd
from stage1_backbones.vggish_bigru import VggishBigru, VggishBigruSettings
from stage1_backbones.weights import load_image_weights

__all__ = ["FUSIONS", "Fusion", "FusionSettings", "create"]

PLANES = ("early", "early_permuted", "early_placed")
FUSIONS = (*PLANES, *JOINS)
_PLANE_ORDER = {"early": (0, 1, 2), "early_permuted": (2, 0, 1)}
_SEGMENTS = 3  # of a hierarchical network, unless it is told otherwise
_EARLY_RANK = 144  # gives the early networks about as many weights as a second body and a join have


@dataclass(frozen=True)
class FusionSettings:
    """How two tracks become one network, and each track's own settings.

    how       early: three planes of samples added to the three channels of the picture; early_permuted: in another
              order; early_placed: each channel learns which planes it takes; deep: joint network; crossing: low-rank
              products; weighted: learnt weighted sum; gated; cross_attention; hierarchical: frames, then segments
    window_s  a segment;  segments: that many in a row are heard at once, above 1 by `hierarchical` only
    model, picture              the picture track, as in EfficientNetSettings
    width, patch_dim, gru_dim, front_end  the audio track, as in VggishBigruSettings; `early` has none of its own
    """

    how: str = "weighted"
    window_s: float = 5.0
    segments: int | None = None
    model: str = "tf_efficientnet_lite0"
    picture: PictureSettings = field(default_factory=PictureSettings)
    width: str = "light"
    patch_dim: int = 128
    gru_dim: int = 128
    front_end: VggishSettings = field(default_factory=VggishSettings)
    classifier: str = "linear"
    output: str = "sigmoid"

    def __post_init__(self) -> None:
        require_one_of("how", self.how, FUSIONS)
        require_one_of("output", self.output, OUTPUTS)
        if not (self.window_s * self.picture.sample_rate_hz).is_integer():
            raise InputError(
                f"network.window_s={self.window_s} is no whole number of samples at {self.picture.sample_rate_hz} Hz."
            )
        several = self.how == "hierarchical"
        if self.segments is None:
            object.__setattr__(self, "segments", _SEGMENTS if several else 1)
        if (self.segments or 0) < 1 or (several != (self.segments != 1)):
            raise InputError(
                f"network.segments={self.segments} does not go with network.how={self.how}: hierarchical hears 2 or "
                "more segments in a row, every other fusion one."
            )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FusionSettings:
        """Raises InputError when a track is switched off, or a setting is unknown or wrong."""
        for name, track, alone in (("picture", PICTURE, "vggish_bigru"), ("front_end", AUDIO, "efficientnet")):
            if name in value and not isinstance(value[name], Mapping | PictureSettings | VggishSettings):
                raise InputError(
                    f"network.{name}={value[name]!r} leaves a fusion without its {track} track; it needs both. Train "
                    f"{alone} for the other track alone."
                )
        return from_fields(cls, value, "network")


class Fusion(TrainableNetwork):
    """One waveform at the picture's rate, heard as a picture and as audio; one vector of a window."""

    kind = "fusion"
    tracks = (PICTURE, AUDIO)
    front_end: TwoTrackFrontEnd

    def __init__(self, settings: FusionSettings, n_labels: int) -> None:
        super().__init__()
        self.settings = s = settings
        self.sample_rate_hz = s.picture.sample_rate_hz
        self.window_s = s.window_s * (s.segments or 1)
        self.output = s.output
        picture = EfficientNetSettings(model=s.model, picture=s.picture)
        self.picture = _without_classifier(EfficientNet(picture, 1))
        self.audio: VggishBigru | None = None
        self.placing: nn.Parameter | None = None
        if s.how in PLANES:
            self.join: nn.Module = Neck(self.picture.dim, _EARLY_RANK)
            self.dim = self.picture.dim
            if s.how == "early_placed":
                self.placing = nn.Parameter(torch.eye(3))
        else:
            audio = VggishBigruSettings(
                width=s.width, window_s=s.window_s, patch_dim=s.patch_dim, gru_dim=s.gru_dim, front_end=s.front_end
            )
            self.audio = _without_classifier(VggishBigru(audio, 1))
            join = JOINS[s.how](self.picture.dim, self.audio.dim, s.segments or 1)
            self.join, self.dim = join, join.dim
        patches: Any = self.audio.front_end if self.audio else None
        self.front_end = TwoTrackFrontEnd(
            self.picture.front_end,
            patches,
            segment_s=s.window_s,
            segments=s.segments or 1,
        )
        self.classifier = make_classifier(s.classifier, self.dim, n_labels)

    def inputs(self, waveforms: torch.Tensor) -> torch.Tensor:
        """waveforms : (n, window_s * sample_rate_hz) in [-1, 1].  Returns (n, segments, length), both tracks."""
        with torch.no_grad():
            inputs = self.front_end(waveforms)
            return self.front_end.silence(inputs, self.silenced) if self.silenced in self.tracks else inputs

    def pictures_of(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.front_end.pictures_of(inputs)

    def features_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs : (n, segments, length).  Returns (n, dim)."""
        pictures = self.picture.coloured(self.front_end.track(inputs, PICTURE))
        audio = self.front_end.track(inputs, AUDIO)
        if self.audio is None:
            maps = self.picture.maps_of(pictures + self._planes(audio))
            return self.join(self.picture.pooling(maps))
        return self.join(self.picture.maps_of(pictures), self.audio.states_of(audio))

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Inside, both tracks would have to be mixed at once: the vector only."""
        return {"vector": self.join}

    def settings_json(self) -> dict[str, Any]:
        return asdict(self.settings)

    def fingerprint_fields(self) -> dict[str, Any]:
        s = self.settings
        audio = {"width": s.width, **asdict(s.front_end)} if self.audio else "samples, spread 1"
        return {
            "kind": self.kind,
            "how": s.how,
            "segments": s.segments,
            "model": s.model,
            "front_end": {"picture": asdict(s.picture), "audio": audio},
            "normalisation": self.picture.fingerprint_fields()["normalisation"],
        }

    def _planes(self, samples: torch.Tensor) -> torch.Tensor:
        """The window's first samples, in order of time, as three planes of the picture's size; zeros if too few.

        samples : (n, n_samples).  Returns (n, 3, n_mels, n_frames).
        Source: the early fusion of the BirdCLEF 2023 reference, plane by plane.
        """
        _, n_mels, n_frames = self.front_end.shapes[PICTURE]
        needed = 3 * n_mels * n_frames
        samples = nn.functional.pad(samples[:, :needed], (0, max(0, needed - samples.shape[1])))
        planes = samples.reshape(-1, 3, n_mels, n_frames)
        if self.placing is not None:
            shares = torch.softmax(self.placing, dim=1)
            return torch.einsum("cp,nphw->nchw", shares, planes)
        return planes[:, list(_PLANE_ORDER[self.settings.how])]


def create(settings: Mapping[str, Any], n_labels: int, weights: str) -> Fusion:
    """Build the network. weights : of the picture track, as for an EfficientNet; the audio track starts at random."""
    network = Fusion(FusionSettings.from_json(settings), n_labels)
    load_image_weights(network.picture.body, network.settings.model, weights)
    return network


def _without_classifier(network: Any) -> Any:
    network.classifier = nn.Identity()
    return network
