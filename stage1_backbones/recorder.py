"""What a recorder wrote about a recording, in its file name and header: when, where, with what, how well powered.

Sources: the firmware of AudioMoth (comments in LIST/INFO), the GUANO metadata specification 1.0, Wildlife Acoustics'
Song Meter and Frontier Labs' file names, and the RIFF, RF64 and BW64 chunk layouts.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import BinaryIO

__all__ = ["RecorderNote", "recorder_note"]

_MAX_CHUNKS = 64  # a header with more than these is hostile or damaged
_MAX_TEXT_BYTES = 8192  # of one chunk; recorders write a few hundred
_MAX_WORD = 120  # characters of a field
_UNSET_CLOCK_YEAR = 1970  # a recorder whose clock nobody set counts from here
_HEX_NAME_S = (1_451_606_400, 1 << 31)  # 2016, before the first AudioMoth, to 2038, where 32-bit time ends


@dataclass(frozen=True)
class RecorderNote:
    """What name and header say; "" or None where they say nothing.

    recorded_at    start of the recording, ISO 8601, with the offset from UTC where it is known
    recorder       make, model and serial number in one text
    gain           as the recorder words it: "medium", "2", "18 dB", "6, 18 dB" (one a channel)
    battery_v      volts; "greater than 4.9V" and "less than 2.5V" give the bound itself
    temperature_c  degrees Celsius, inside the recorder
    latitude, longitude  degrees, WGS 84; both or neither
    """

    recorded_at: str = ""
    recorder: str = ""
    gain: str = ""
    battery_v: float | None = None
    temperature_c: float | None = None
    latitude: float | None = None
    longitude: float | None = None


def recorder_note(path: Path) -> RecorderNote:
    """Read a recording's name and, in a wav file, its header; a few KB at most, whatever the file's length.

    GUANO beats AudioMoth's comment, and both beat the name, field by field; a time with an offset beats one without.
    Never raises: what cannot be read or understood is left out.
    """
    path = Path(path)
    info, guano_text = _header_texts(path)
    header = [_from_guano(guano_text), _from_comment(info.get("ICMT", ""), info.get("IART", ""))]
    notes = [*header, _from_name(path)]
    times = [note.recorded_at for note in header if note.recorded_at]
    # A name is a weaker witness than any header: its offset is a habit of the maker, not a record.
    recorded_at = next((t for t in times if _has_offset(t)), times[0] if times else notes[-1].recorded_at)
    place = next((note for note in notes if note.latitude is not None), RecorderNote())
    return RecorderNote(
        recorded_at=recorded_at,
        recorder=next((note.recorder for note in notes if note.recorder), ""),
        gain=next((note.gain for note in notes if note.gain), ""),
        battery_v=next((note.battery_v for note in notes if note.battery_v is not None), None),
        temperature_c=next((note.temperature_c for note in notes if note.temperature_c is not None), None),
        latitude=place.latitude,
        longitude=place.longitude,
    )


# ---- file names

_DATED = re.compile(r"(?:(?P<prefix>.+)_)?(?P<date>\d{8})_(?P<time>\d{6})(?:_?\d{3})?T?$", re.ASCII)
# Frontier Labs' recorders name the zone (with a T); whoever renames files may, too. "_053000-0600" may be a span.
_ZONED = re.compile(
    r"(?:(?P<prefix>.+)_)?(?P<date>\d{8})"
    r"(?:T(?P<time>\d{6})(?P<zone>Z|[+-](?:0\d|1[0-4])[0-5]\d)|_(?P<time2>\d{6})(?P<zone2>Z|\+(?:0\d|1[0-4])[0-5]\d))"
    r"(?:_|$)",
    re.ASCII,
)
_AUDIOMOTH_SERIAL = re.compile(r"[0-9A-F]{16}$")
_SONG_METER_SERIAL = re.compile(r"(?:^|_)((?:S[0-9M][A-Z0-9]|SM[A-Z]|2[LMSU][A-Z]|S[0-9]U)\d{5})(?:_|$)", re.ASCII)


def _from_name(path: Path) -> RecorderNote:
    stem = path.stem
    moth = path.suffix == ".WAV"  # AudioMoth writes capitals; a dated name in small letters may be anybody's local time
    if re.fullmatch(r"[0-9A-F]{8}", stem) and (moth or not stem.isdecimal()):
        seconds = int(stem, 16)
        if _HEX_NAME_S[0] <= seconds < _HEX_NAME_S[1]:
            return RecorderNote(datetime.fromtimestamp(seconds, UTC).isoformat(), recorder="AudioMoth")
    if zoned := _ZONED.match(stem):
        written, form = "".join(part or "" for part in zoned.groups()[1:]), "%Y%m%d%H%M%S%z"
    elif zoned := _DATED.match(stem):
        written, form = zoned["date"] + zoned["time"], "%Y%m%d%H%M%S"
    else:
        return RecorderNote()
    try:
        when = datetime.strptime(written, form)
    except ValueError:
        return RecorderNote()
    prefix = zoned["prefix"] or ""
    recorder = ""
    if _AUDIOMOTH_SERIAL.match(prefix):
        recorder, moth = f"AudioMoth {prefix}", True
    elif prefix:
        serial = _SONG_METER_SERIAL.search(prefix)
        recorder, moth = (f"Song Meter {serial[1]}" if serial else ""), False
    return RecorderNote(_iso(when.replace(tzinfo=UTC) if moth and when.tzinfo is None else when), recorder)


# ---- AudioMoth's comment

_RECORDED = re.compile(
    r"Recorded at (\d\d:\d\d:\d\d)(?:\.\d+)? (\d\d/\d\d/\d{4})"
    r"(?: \(UTC(?:(?P<sign>[+-])(?P<hours>\d{1,2})(?::(?P<minutes>\d\d))?)?\))?",
    re.ASCII,
)
_BY = re.compile(r"by ([\w-]*Moth[\w-]*) ([0-9A-Fa-f]{8,16})\b", re.ASCII)
_DEPLOYMENT = re.compile(r"during deployment ([0-9A-Fa-f]{8,16})\b")
_GAIN = re.compile(r"at (?:gain setting (\d+)|([a-z]+(?:-[a-z]+)?) gain)\b")
_BATTERY = re.compile(r"battery (?:state )?was (?:greater than |less than |[<>] ?)?(\d+(?:\.\d+)?) ?V", re.ASCII)
_TEMPERATURE = re.compile(r"temperature was (-?\d+(?:\.\d+)?) ?C", re.ASCII)


def _from_comment(comment: str, artist: str) -> RecorderNote:
    if not (by := _RECORDED.search(comment)) and "Moth" not in comment:
        return RecorderNote()
    recorded_at = ""
    if by:
        # Firmware that names no zone had no zones yet: its clock ran in UTC.
        offset = timedelta(hours=int(by["hours"] or 0), minutes=int(by["minutes"] or 0))
        try:
            when = datetime.strptime(f"{by[2]} {by[1]}", "%d/%m/%Y %H:%M:%S")
            recorded_at = _iso(when.replace(tzinfo=timezone(-offset if by["sign"] == "-" else offset)))
        except ValueError:
            pass
    recorder = _word(artist) if "Moth" in artist else ""
    if maker := _BY.search(comment):
        recorder = f"{maker[1]} {maker[2]}"
    elif deployment := _DEPLOYMENT.search(comment):  # stands where the serial number would
        recorder = f"{recorder or 'AudioMoth'} (deployment {deployment[1]})"
    gain = _GAIN.search(comment)
    battery, temperature = _BATTERY.search(comment), _TEMPERATURE.search(comment)
    return RecorderNote(
        recorded_at,
        recorder,
        _word(gain[1] or gain[2]) if gain else "",
        _number(battery[1], 0, 100) if battery else None,
        _number(temperature[1], -100, 150) if temperature else None,
    )


# ---- GUANO

_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,]\d+)? ?(?:(Z)|([+-])(\d{1,2}):?(\d\d)?)?$", re.ASCII | re.I
)


def _from_guano(text: str) -> RecorderNote:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip(" \t\0"))
    make, model, serial = (_word(fields.get(key, "")) for key in ("make", "model", "serial"))
    latitude, longitude = _position(fields.get("loc position", ""))
    return RecorderNote(
        _guano_time(fields.get("timestamp", "")),
        " ".join(dict.fromkeys(word for word in (make, model, serial) if word)),
        _guano_gain(fields),
        _number(fields.get("oad|battery voltage", ""), 0, 100),
        _number(fields.get("temperature int", ""), -100, 150),
        latitude,
        longitude,
    )


def _guano_time(text: str) -> str:
    """ISO 8601, also with the one-digit hours of offset that some Song Meters write ("+1:00")."""
    found = _TIMESTAMP.match(text)
    if not found:
        return ""
    date, time, zulu, sign, hours, minutes = found.groups()
    try:
        when = datetime.fromisoformat(f"{date}T{time}")
        if zulu or sign:
            offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
            when = when.replace(tzinfo=timezone(-offset if sign == "-" else offset))
    except ValueError:
        return ""
    return _iso(when)


def _guano_gain(fields: Mapping[str, str]) -> str:
    decibels = re.findall(r'"gain" ?: ?(-?\d+(?:\.\d+)?)', fields.get("wa|song meter|audio settings", ""))
    if decibels:
        return _word(", ".join(dict.fromkeys(decibels)) + " dB")
    setting = re.search(r"\bGAIN (\S+)", fields.get("oad|recording settings", ""))
    return _word(setting[1]) if setting else ""


def _position(text: str) -> tuple[float | None, float | None]:
    words = text.replace(",", " ").split()
    latitude = _number(words[0], -90, 90) if len(words) == 2 else None
    longitude = _number(words[1], -180, 180) if len(words) == 2 else None
    # 0 0 is what receivers write that found no satellite.
    if latitude is None or longitude is None or (latitude == 0 and longitude == 0):
        return None, None
    return latitude, longitude


# ---- wav chunks


def _header_texts(path: Path) -> tuple[dict[str, str], str]:
    """The INFO fields and the GUANO text of a wav file; empty when it is none, or cannot be read."""
    info: dict[str, str] = {}
    guano = ""
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return info, guano
        with open(path, "rb", buffering=0) as file:  # unbuffered: a buffer would fetch audio at every seek
            for name, size in _chunks(file):
                if name == b"LIST":
                    for key, value in _info_fields(file.read(min(size, _MAX_TEXT_BYTES))):
                        info.setdefault(key, value)
                elif name == b"guan" and not guano:
                    guano = file.read(min(size, _MAX_TEXT_BYTES)).decode("utf-8", "replace")
    except (OSError, ValueError):  # ValueError: a path with a zero byte in it
        pass
    return info, guano


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and size in bytes of each chunk, with the file standing at its first byte; audio is sought over."""
    start = file.read(12)
    if len(start) < 12 or start[:4] not in (b"RIFF", b"RF64", b"BW64") or start[8:] != b"WAVE":
        return
    data_size: int | None = None
    place = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"ds64" and size >= 16:
            sizes = file.read(16)
            data_size = struct.unpack("<Q", sizes[8:])[0] if len(sizes) == 16 else None
        elif name == b"data" and size == 0xFFFFFFFF:
            if data_size is None:
                return
            size = data_size
        else:
            yield name, size
        place += 8 + size + size % 2
        if place >= 1 << 62:  # beyond what a file system can seek to
            return


def _info_fields(content: bytes) -> Iterator[tuple[str, str]]:
    if content[:4] != b"INFO":
        return
    place = 4
    while place + 8 <= len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        value = content[place + 8 : place + 8 + size].split(b"\0", 1)[0]
        yield content[place : place + 4].decode("latin-1"), value.decode("utf-8", "replace")
        place += 8 + size + size % 2


# ---- small things


def _iso(when: datetime) -> str:
    return "" if when.year <= _UNSET_CLOCK_YEAR else when.isoformat()


def _has_offset(iso: str) -> bool:
    return datetime.fromisoformat(iso).tzinfo is not None


def _number(text: str, low: float, high: float) -> float | None:
    """A finite number within limits that a recorder could mean; None otherwise."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and low <= value <= high else None


def _word(text: str) -> str:
    """One line without control characters, of bounded length."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_WORD]
