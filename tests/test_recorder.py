"""What a recorder wrote into a file's name and header is read, and nothing it could write raises."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from fakes import FakeBackbone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embeddings.recordings import Catalogue, Recording, with_recorder_notes
from embeddings.splits import Split
from embeddings.store import Store
from embeddings.windows import WindowPlan
from stage1_backbones.recorder import RecorderNote, recorder_note

# Wordings as the firmware versions 1.0 to 1.10 write them.
OLD = (
    "Recorded at 19:17:30 17/02/2018 (UTC) by AudioMoth 0FE081F80FE081F0 at gain setting 2 while battery state was 4.5V"
)
NEW = (
    "Recorded at 05:00:00 01/04/2021 (UTC{zone}) by AudioMoth 248D9B045EC9EE79 at medium-high gain while battery was "
    "{battery} and temperature was {temperature}C."
)
SONG_METER = (
    "GUANO|Version:1.0\nFirmware Version:4.6\nMake:Wildlife Acoustics, Inc.\nModel:Song Meter Mini\nSerial:SMA00646\n"
    'WA|Song Meter|Audio settings:[{"rate":24000,"gain":18}]\nTimestamp:2020-10-17 13:05:00+1:00\n'
    "Loc Position:54.75656 -1.59106\nTemperature Int:-1.25\nSamplerate:24000 \n"
)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def info(**fields: str) -> bytes:
    return chunk(b"LIST", b"INFO" + b"".join(chunk(k.encode(), v.encode() + b"\0\0") for k, v in fields.items()))


def write_wav(path: Path, *chunks: bytes, kind: bytes = b"RIFF") -> Path:
    content = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 48000, 96000, 2, 16)) + b"".join(chunks)
    path.write_bytes(kind + struct.pack("<I", min(len(content), 0xFFFFFFFF)) + content)
    return path


DATA = chunk(b"data", b"\0" * 1001)


@pytest.mark.parametrize(
    ("name", "recorded_at", "recorder"),
    [
        ("20210401_050000.WAV", "2021-04-01T05:00:00+00:00", ""),
        ("20210401_050000T.WAV", "2021-04-01T05:00:00+00:00", ""),
        ("20210401_050000.wav", "2021-04-01T05:00:00", ""),
        ("5E90A4D4.WAV", "2020-04-10T16:54:44+00:00", "AudioMoth"),
        ("248D9B045EC9EE79_20210401_050000.WAV", "2021-04-01T05:00:00+00:00", "AudioMoth 248D9B045EC9EE79"),
        ("SMA00351_20210401_050000.wav", "2021-04-01T05:00:00", "Song Meter SMA00351"),
        ("2MA04827_20250227_073902.wav", "2025-02-27T07:39:02", "Song Meter 2MA04827"),
        ("S4A07532_20190401_050000.wav", "2019-04-01T05:00:00", "Song Meter S4A07532"),
        ("20190801T063000+1000_Owl.flac", "2019-08-01T06:30:00+10:00", ""),
        ("20190801T063000-0330_REC_[-27.4+153.1].flac", "2019-08-01T06:30:00-03:30", ""),
        ("site-2_20240501_203000+0200.wav", "2024-05-01T20:30:00+02:00", ""),
        ("SMA00351_20240501_203000+0200.wav", "2024-05-01T20:30:00+02:00", "Song Meter SMA00351"),
        ("20240501_203000+0200.WAV", "2024-05-01T20:30:00+02:00", ""),
        ("20240501_053000-0600.wav", "", ""),
        ("20240501_203000Z.wav", "2024-05-01T20:30:00+00:00", ""),
        ("20241301_203000+0200.wav", "", ""),
        ("20240501_203000+0260.wav", "", ""),
        ("marsh-3_20210401_050000.flac", "2021-04-01T05:00:00", ""),
        ("20211301_050000.WAV", "", ""),
        ("19700101_000003.WAV", "", ""),
        ("20210401.WAV", "", ""),  # eight digits of a date are also hexadecimal: 1987
        ("XC123456.mp3", "", ""),
        ("60012345.wav", "", ""),
    ],
)
def test_names_of_recorders_tell_the_time(tmp_path, name, recorded_at, recorder):
    assert recorder_note(tmp_path / name) == RecorderNote(recorded_at, recorder)


def test_the_old_comment_of_audiomoth_is_read(tmp_path):
    note = recorder_note(write_wav(tmp_path / "a.wav", info(ICMT=OLD), DATA))
    assert note == RecorderNote("2018-02-17T19:17:30+00:00", "AudioMoth 0FE081F80FE081F0", "2", 4.5)


@pytest.mark.parametrize(
    ("zone", "offset"), [("", "+00:00"), ("+2", "+02:00"), ("-3", "-03:00"), ("+5:30", "+05:30"), ("-9:30", "-09:30")]
)
def test_the_zones_of_newer_comments_become_offsets(tmp_path, zone, offset):
    comment = NEW.format(zone=zone, battery="4.2V", temperature="-20.7")
    note = recorder_note(write_wav(tmp_path / "20210401_030000.WAV", info(ICMT=comment), DATA))
    assert note == RecorderNote(f"2021-04-01T05:00:00{offset}", "AudioMoth 248D9B045EC9EE79", "medium-high", 4.2, -20.7)


@pytest.mark.parametrize(("battery", "volts"), [("greater than 4.9V", 4.9), ("less than 2.5V", 2.5), ("3.6V", 3.6)])
def test_battery_bounds_give_the_bound(tmp_path, battery, volts):
    comment = NEW.format(zone="", battery=battery, temperature="3.4")
    assert recorder_note(write_wav(tmp_path / "a.wav", info(ICMT=comment), DATA)).battery_v == volts


def test_a_deployment_stands_beside_the_serial_of_the_artist_field(tmp_path):
    comment = (
        "Recorded at 19:30:00 12/11/2021 (UTC) during deployment 0011223344556677 using external microphone at low "
        "gain while battery was greater than 4.9V and temperature was 9.5C."
    )
    note = recorder_note(write_wav(tmp_path / "a.wav", info(IART="AudioMoth 248D9B045EC9EE79", ICMT=comment), DATA))
    assert note.recorder == "AudioMoth 248D9B045EC9EE79 (deployment 0011223344556677)"
    assert (note.gain, note.temperature_c) == ("low", 9.5)


def test_guano_after_the_audio_is_read_and_beats_the_name(tmp_path):
    path = write_wav(tmp_path / "SMA00646_20201017_120500.wav", DATA, chunk(b"guan", SONG_METER.encode()))
    assert recorder_note(path) == RecorderNote(
        "2020-10-17T13:05:00+01:00",
        "Wildlife Acoustics, Inc. Song Meter Mini SMA00646",
        "18 dB",
        None,
        -1.25,
        54.75656,
        -1.59106,
    )


def test_a_header_time_without_offset_beats_the_names_but_not_one_with_offset(tmp_path):
    guano = chunk(b"guan", b"GUANO|Version: 1.0\nTimestamp: 2021-04-01T07:00:00\nMake: Somebody\n")
    path = write_wav(tmp_path / "20210401_050000.WAV", DATA, guano)
    assert recorder_note(path).recorded_at == "2021-04-01T07:00:00"
    path = write_wav(
        tmp_path / "b.wav", info(ICMT=NEW.format(zone="+2", battery="4.2V", temperature="1.0")), DATA, guano
    )
    assert recorder_note(path).recorded_at == "2021-04-01T05:00:00+02:00"


@pytest.mark.parametrize("place", ["0 0", "91 10", "nan 1", "12", "1 2 3", "here there"])
def test_places_that_no_receiver_found_are_left_out(tmp_path, place):
    note = recorder_note(write_wav(tmp_path / "a.wav", DATA, chunk(b"guan", f"Loc Position: {place}\n".encode())))
    assert note == RecorderNote()


def test_rf64_with_its_audio_length_in_ds64_is_read(tmp_path):
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, 1000, 500, 0))
    data = b"data" + struct.pack("<I", 0xFFFFFFFF) + b"\0" * 1000
    path = write_wav(tmp_path / "a.wav", ds64, data, chunk(b"guan", SONG_METER.encode()), kind=b"RF64")
    assert recorder_note(path).latitude == 54.75656


def test_a_long_recording_costs_a_few_kilobytes(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_wav(path, chunk(b"guan", b"Make: M\n" + b" " * 100_000), info(ICMT=OLD))
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(b"data" + struct.pack("<I", 3 << 30))
        file.seek(3 << 30, os.SEEK_CUR)
        file.write(chunk(b"guan", SONG_METER.encode()))
    read: list[int] = []

    def counting(file, mode, buffering):
        handle = open(file, mode, buffering=buffering)  # noqa: SIM115

        class Counted:
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda self, *_: handle.close()  # noqa: E731
            seek = handle.seek

            def read(self, n):
                content = handle.read(n)
                read.append(len(content))
                return content

        return Counted()

    monkeypatch.setattr("stage1_backbones.recorder.open", counting, raising=False)
    assert recorder_note(path).recorder == "M"
    assert sum(read) < 16_384


def test_what_is_no_file_is_known_by_its_name_only(tmp_path):
    os.mkfifo(tmp_path / "20210401_050000.WAV")
    assert recorder_note(tmp_path / "20210401_050000.WAV").recorded_at == "2021-04-01T05:00:00+00:00"
    assert recorder_note(tmp_path) == RecorderNote()
    assert recorder_note(Path("zero\0byte.wav")) == RecorderNote()


def finite_and_tidy(note: RecorderNote) -> bool:
    return all(text.isprintable() for text in (note.recorded_at, note.recorder, note.gain))


names = st.from_regex(r"[0-9A-F_]{1,30}(\.WAV|\.wav)", fullmatch=True)
fuzz = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(names, st.binary(max_size=300), st.sampled_from([b"RIFF", b"RF64"]))
def test_random_chunks_never_raise(tmp_path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(kind + b"\0\0\0\0WAVE" + content)
    assert finite_and_tidy(recorder_note(path))


@fuzz
@given(
    st.sampled_from([info(ICMT=OLD), chunk(b"guan", SONG_METER.encode())]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=12),
    st.integers(0, 400),
)
def test_damaged_headers_never_raise(tmp_path, content, changes, kept):
    damaged = bytearray(content[: max(8, kept)])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    assert finite_and_tidy(recorder_note(write_wav(tmp_path / "a.wav", bytes(damaged), DATA)))


@fuzz
@given(st.text(max_size=60), st.sampled_from(["Timestamp", "Loc Position", "Temperature Int", "Serial"]))
def test_any_guano_value_is_survived(tmp_path, value, key):
    content = f"GUANO|Version: 1.0\n{key}: {value}\n".encode("utf-8", "replace")
    assert finite_and_tidy(recorder_note(write_wav(tmp_path / "a.wav", chunk(b"guan", content))))


def test_a_tables_own_place_wins_and_places_are_taken_whole():
    note = {"latitude": 1.0, "longitude": 2.0, "recorder": "R", "battery_v": 4.0, "unknown": 1}
    given_place = Recording("a", Path("a.wav"), latitude=50.0)
    (filled,) = with_recorder_notes([given_place], lambda path: note)
    assert (filled.latitude, filled.longitude, filled.recorder, filled.battery_v) == (50.0, None, "R", 4.0)
    (filled,) = with_recorder_notes([Recording("b", Path("b.wav"), recorder="mine")], lambda path: note)
    assert (filled.latitude, filled.longitude, filled.recorder) == (1.0, 2.0, "mine")


def test_a_resume_keeps_the_stores_notes_and_opens_only_new_files(tmp_path, monkeypatch):
    from cli.extraction import _with_recorder_notes

    store = Store.create(
        tmp_path / "s", [FakeBackbone()], WindowPlan(), dtype="float16", split=Split("all", 0, "", {}), link=False
    )
    paths = [write_wav(tmp_path / f"{name}.wav", info(ICMT=OLD), DATA) for name in "ab"]
    first, second = (Recording(path.stem, path) for path in paths)
    store.add_recordings(_with_recorder_notes(Catalogue((first,)), store).recordings)
    store.reload()

    opened = []
    monkeypatch.setattr("stage1_backbones.recorder.recorder_note", lambda path: opened.append(path) or RecorderNote())
    again = _with_recorder_notes(Catalogue((first, second)), store)
    assert [r.battery_v for r in again] == [4.5, None]
    assert opened == [second.path]
