"""The recipe: settings from files and command lines, sampling, no-call recordings, front ends and poolings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import torch
from test_training import run, settings, tones
from typer.testing import CliRunner

from embeddings.errors import InputError
from embeddings.recordings import Recording
from embeddings.settings import from_fields, merged, parse_assignments
from stage1_backbones.augment import AugmentSettings
from stage1_backbones.batches import BatchMaker, TrainingBatches, _recording_weights
from stage1_backbones.crops import Crops
from stage1_backbones.losses import LossSettings
from stage1_backbones.mixup import MixSettings
from stage1_backbones.pooling import POOLINGS, make_pooling
from stage1_backbones.recipe import TrainingSettings
from stage1_backbones.recipes import RECIPES, recipe_of
from stage1_backbones.registry import create_network
from stage1_backbones.spectrogram import CONTRASTS, PictureFrontEnd, PictureSettings, pcen
from stage1_backbones.training import plan_training


def recording(i: int, label: str) -> Recording:
    return Recording(f"r{i}", Path(f"{i}.wav"), primary_label=label)


class TestSettings:
    @pytest.mark.parametrize("name", RECIPES)
    @pytest.mark.parametrize("kind", ["efficientnet", "vggish_bigru"])
    def test_every_recipe_makes_settings_that_come_back_from_json(self, name, kind):
        made = TrainingSettings.from_json(recipe_of(kind, name))
        assert TrainingSettings.from_json(made.to_json()) == made

    def test_the_default_recipe_varies_its_windows_and_the_plain_one_does_not(self):
        default, plain = (TrainingSettings.from_json(recipe_of("efficientnet", name)) for name in ("default", "plain"))
        assert default.augment.noise_p > 0
        assert default.loss.name == "bce"
        assert plain.augment.noise_p == plain.augment.cutmix_p == plain.ema_decay == 0
        with pytest.raises(InputError, match="default, plain"):
            recipe_of("efficientnet", "fancy")

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ({"epoch": 3}, "recipe has no setting 'epoch'.*Did you mean epochs"),
            ({"augment": {"nois_p": 1}}, "recipe.augment has no setting 'nois_p'"),
            ({"augment": 3}, "must be a group of settings"),
            ({"epochs": 2.5}, "recipe.epochs=2.5 must be a whole number"),
            ({"epochs": True}, "must be a whole number"),
            ({"learning_rate": "fast"}, "recipe.learning_rate='fast' must be a number"),
            ({"augment": {"noise_snr_db": "loud"}}, "must be a list"),
            ({"loss": {"balance": 0.5}}, "belongs to loss.name=cosine_bce"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_place(self, value, words):
        with pytest.raises(InputError, match=words):
            TrainingSettings.from_json({"kind": "efficientnet", **value})

    def test_numbers_that_yaml_reads_as_text_or_whole_are_taken(self):
        made = TrainingSettings.from_json({"kind": "efficientnet", "learning_rate": "3e-4", "weight_decay": 0})
        assert (made.learning_rate, made.weight_decay) == (3e-4, 0.0)

    def test_assignments_are_laid_over_a_recipe_group_by_group(self):
        values = merged(recipe_of("efficientnet"), parse_assignments(["augment.noise_p=0.1", "loss.name=cosine_bce"]))
        made = TrainingSettings.from_json(values)
        assert made.augment.noise_p == 0.1
        assert made.augment.filter_p == TrainingSettings.from_json(recipe_of("efficientnet")).augment.filter_p
        assert made.network == {"classifier": "cosine", "output": "sigmoid"}
        for wrong in ("epochs", "epochs=[", "a=1;a.b=2"):
            with pytest.raises(InputError, match="--set"):
                parse_assignments(wrong.split(";"))

    def test_a_required_setting_and_a_wrong_type_of_file_are_told(self):
        with pytest.raises(InputError, match="lacks kind"):
            TrainingSettings.from_json({})
        with pytest.raises(InputError, match="group of settings"):
            from_fields(LossSettings, ["bce"], "loss")


class TestSampling:
    TARGETS = np.eye(3, dtype=np.float32)[[0] * 16 + [1] * 4 + [2]]

    @pytest.mark.parametrize(("sampling", "power"), [("inverse_sqrt", 0.5), ("balanced", 0.0)])
    def test_labels_are_drawn_by_their_counts_power(self, sampling, power):
        weights = _recording_weights(self.TARGETS, sampling)
        assert weights is not None
        per_label = weights @ self.TARGETS
        counts = np.array([16.0, 4.0, 1.0]) ** power
        np.testing.assert_allclose(per_label, counts / counts.sum())

    def test_uniform_sampling_hears_every_recording_equally_often(self, tmp_path):
        recordings = tones(tmp_path, n=3, seconds=5.0)
        crops = Crops(recordings, 16_000, 5.0)
        targets = np.arange(6, dtype=np.float32)[:, None] / 10
        batches = TrainingBatches(crops, targets, settings(crops_per_recording=2), maker=None)
        drawn = np.concatenate([batches[0, b][1].numpy().ravel() for b in range(batches.n_batches)])
        np.testing.assert_allclose(np.sort(drawn), np.repeat(targets.ravel(), 2))
        again = np.concatenate([batches[0, b][1].numpy().ravel() for b in range(batches.n_batches)])
        other = np.concatenate([batches[1, b][1].numpy().ravel() for b in range(batches.n_batches)])
        assert np.array_equal(drawn, again)
        assert not np.array_equal(drawn, other)

    def test_batches_made_beside_the_network_are_those_made_ahead_of_it(self, tmp_path):
        recordings = tones(tmp_path, n=3, seconds=5.0)
        crops, targets = Crops(recordings, 16_000, 5.0), np.eye(6, dtype=np.float32)
        varied = settings(
            mixup=MixSettings(where="sound"), augment=AugmentSettings(noise_p=0.5, shift_p=0.5, cutmix_p=0.5)
        )
        maker = BatchMaker(create_network("vggish_bigru", {}, 6, "none"), varied)
        ahead = TrainingBatches(crops, targets, varied, maker)[1, 0]
        beside = maker(*TrainingBatches(crops, targets, varied, None)[1, 0])
        for one, other in zip(ahead, beside, strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(ahead[1], ahead[1].round())  # labels were mixed

    def test_loud_crops_hold_the_call(self, tmp_path):
        import soundfile

        samples = 1e-3 * np.random.default_rng(0).normal(size=60 * 16_000)
        samples[40 * 16_000 : 41 * 16_000] = 0.5 * np.sin(np.arange(16_000))
        soundfile.write(tmp_path / "long.wav", samples, 16_000)
        crops = Crops([Recording("x", tmp_path / "long.wav", primary_label="a")], 16_000, 5.0)
        rng = np.random.default_rng(1)
        loud = np.mean([np.abs(crops.loud(0, rng)).max() > 0.1 for _ in range(50)])
        anywhere = np.mean([np.abs(crops.random(0, rng)).max() > 0.1 for _ in range(50)])
        assert loud > 0.9 > 0.4 > anywhere


class TestNoCall:
    def test_recordings_without_a_call_are_negatives_and_never_a_class(self, tmp_path):
        recordings = tones(tmp_path, n=4)
        recordings[0] = replace(recordings[0], primary_label="NoCall")
        plan = plan_training(recordings, settings())
        assert plan.labels == ("high", "low")
        summary = run(recordings, tmp_path / "out", settings(epochs=1))
        assert summary.labels == ("high", "low")

    def test_heads_take_them_as_negatives_and_scores_count_them_so(self):
        from stage2_heads.labels import RecordingLabels, class_set, primary_codes, target_matrix

        known = [RecordingLabels("1", "a"), RecordingLabels("2", "nocall"), RecordingLabels("3", "b", ("a",))]
        assert class_set(known) == ("a", "b")
        assert target_matrix(known, ("a", "b")).tolist() == [[1, 0], [0, 0], [1, 1]]
        assert primary_codes(known, ("a", "b")).tolist() == [0, -1, 1]


class TestFrontEnd:
    def test_pcen_equals_librosas(self):
        power = np.abs(np.random.default_rng(0).normal(size=(2, 20, 150))).astype(np.float32) ** 2 * 2**31 * 1e-4
        ours = pcen(torch.from_numpy(power), 512 / 32_000).numpy()
        t_frames = 0.4 * 32_000 / 512
        b = (np.sqrt(1 + 4 * t_frames**2) - 1) / (2 * t_frames**2)
        for one, found in zip(power, ours, strict=True):
            # librosa starts its smoother at 1 whatever it hears; ours starts at the first frame.
            theirs = librosa.pcen(one, sr=32_000, hop_length=512, zi=(1 - b) * one[:, :1])
            np.testing.assert_allclose(found, theirs, rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("contrast", CONTRASTS)
    def test_every_contrast_gives_finite_pictures_that_gain_does_not_change_much(self, contrast):
        front_end = PictureFrontEnd(PictureSettings(contrast=contrast))
        sound = 0.1 * torch.randn(1, 160_000, generator=torch.Generator().manual_seed(0))
        quiet, loud = front_end(sound)[0, 0], front_end(sound * 4)[0, 0]
        assert torch.isfinite(front_end(torch.zeros(1, 160_000))).all()
        assert torch.corrcoef(torch.stack([quiet.ravel(), loud.ravel()]))[0, 1] > 0.98

    def test_taking_out_each_bands_mean_removes_a_steady_tone(self):
        t = torch.arange(160_000) / 32_000
        hum = 0.1 * torch.sin(2 * torch.pi * 2000 * t)[None] + 1e-4 * torch.randn(1, 160_000)
        plain, without = (PictureFrontEnd(PictureSettings(contrast=c))(hum)[0, 0] for c in ("spread", "band"))
        row = int(plain.mean(dim=1).argmax())
        assert plain[row, 20:-20].mean() > plain.mean() + 2 * plain.std()
        assert abs(without[row, 20:-20].mean() - without.mean()) < 0.5 * without.std()

    def test_an_unknown_contrast_is_refused(self):
        with pytest.raises(InputError, match="window, spread, band, pcen"):
            PictureSettings(contrast="high")


class TestPooling:
    @pytest.mark.parametrize("name", POOLINGS)
    def test_constant_maps_pool_to_their_constant(self, name):
        maps = torch.rand(2, 6, 1, 1).expand(2, 6, 4, 10)
        torch.testing.assert_close(make_pooling(name, 6)(maps), maps[:, :, 0, 0], rtol=1e-4, atol=1e-5)

    def test_gem_lies_between_mean_and_maximum(self):
        maps = torch.rand(2, 6, 4, 10)
        pooled = make_pooling("gem", 6)(maps)
        assert (pooled > maps.mean((2, 3))).all()
        assert (pooled < maps.amax((2, 3))).all()

    def test_attention_learns_where_in_time_to_look(self):
        pooling = make_pooling("attention", 1)
        torch.nn.init.constant_(pooling.attend.weight, 50.0)
        maps = torch.zeros(1, 1, 4, 10)
        maps[..., 3] = 1.0
        assert float(pooling(maps).detach()) > 0.99

    @pytest.mark.parametrize("name", POOLINGS)
    def test_a_network_with_it_learns_in_every_part_and_has_its_own_fingerprint(self, name):
        network = create_network(
            "efficientnet", {"pooling": name, "picture": {"n_mels": 64, "hop_samples": 1024}}, 3, "none"
        )
        network.logits_of(network.inputs(torch.randn(2, 160_000) * 0.1)).sum().backward()
        assert all(p.grad is not None for p in network.pooling.parameters())
        assert network.fingerprint_fields()["pooling"] == {"average": "global average"}.get(name, name)


class TestCommand:
    def invoke(self, *arguments: object):
        from cli.backbones import app

        words = ["train", *map(str, arguments)]
        return CliRunner().invoke(app, words, catch_exceptions=False, standalone_mode=False)

    def test_a_dry_run_says_what_how_much_and_how_long(self, synthetic_set, tmp_path):
        result = self.invoke(
            synthetic_set, "--backbone", "vggish_bigru", "--out", tmp_path / "b", "--valid-fold", "1/3", "--dry-run"
        )
        printed = " ".join(result.output.split())
        assert "16 recordings of 4 labels to train on, 8 to fit and 8 kept apart; 8 held out (k-fold)" in printed
        assert "minutes on this machine" in printed
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--set", "loss.name=hinge"], "bce, weighted_bce"),
            (["--set", "augment.background_p=0.5"], "without background_folder"),
            (["--set", "augment.background_p=0.5", "--set", "augment.background_folder=/nowhere"], "is not a folder"),
            (["--set", "network.output=softmax"], "contradicts loss.name=bce"),
            (["--recipe", "nowhere.yaml"], "does not exist"),
            (["--group", "author"], "goes with --valid-fold 2/5"),
            (["--valid-fold", "9/3"], "fold 9 of 3"),
            (["--set", "network.widht=light"], "network has no setting 'widht'"),
        ],
    )
    def test_contradictions_are_told_before_any_training(self, synthetic_set, tmp_path, arguments, words):
        with pytest.raises(InputError, match=words):
            self.invoke(synthetic_set, "--backbone", "vggish_bigru", "--out", tmp_path / "b", *arguments)
        assert not (tmp_path / "b" / "settings.json").exists()

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--how", "late"],
            ["--target", "age"],
            ["--split", "half"],
            ["--device", "abacus"],
            ["--valid-fold", "9/3"],
            ["--group", "author"],
            ["--valid-fold", "1/3", "--group", "mood"],
            ["--set", "sampling=fair"],
            ["--weights", "nowhere.safetensors"],
        ],
        ids=str,
    )
    def test_a_value_that_there_is_not_is_told_before_any_recording_is_read(
        self, synthetic_set, tmp_path, monkeypatch, arguments
    ):
        monkeypatch.setattr("embeddings.catalogue_sources.read_catalogue", None)  # calling it would fail
        with pytest.raises(InputError):
            self.invoke(synthetic_set, "--backbone", "fusion", "--out", tmp_path / "b", *arguments)
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize(("batch_size", "windows"), [(4, 4), (500, 8)])
    def test_the_time_of_a_step_is_measured_on_a_few_windows_however_large_the_batch(
        self, monkeypatch, batch_size, windows
    ):
        from stage1_backbones import training

        now, heard = [0.0], []

        class Slow(torch.nn.Linear):
            window_s, sample_rate_hz = 1.0, 8

            def forward(self, waveforms):
                heard.append(len(waveforms))
                now[0] += 0.5 * len(waveforms)  # half a second a window
                return super().forward(waveforms)

        monkeypatch.setattr(training, "create_network", lambda *_: Slow(8, 3))
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
        seconds = training.seconds_a_step(settings(batch_size=batch_size, accumulate=2), 3)
        assert seconds == pytest.approx(0.5 * batch_size * 2)
        assert heard == [windows] * 2
