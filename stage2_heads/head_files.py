"""A head as a folder: JSON for what it is, safetensors for its numbers, JSON for what it has heard. No code in it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embeddings.contract import Fingerprint, Heard
from embeddings.errors import InputError
from embeddings.files import read_json, replace_folder, write_json
from stage2_heads.base import Head
from stage2_heads.calibration import Calibration
from stage2_heads.tuned import Tuning

__all__ = ["BACKBONES", "FORMAT", "FORMAT_VERSION", "held_alone", "read_head", "write_head"]

FORMAT = "cisticola-head"
FORMAT_VERSION = 2
_UNTUNED_VERSION = 1  # written where nothing was tuned: versions of Cisticola that know no tuning read it right
_DESCRIPTION, _WEIGHTS, _HEARD, _MEMBERS = "head.json", "head.safetensors", "heard.json", "members"
BACKBONES = "backbones"  # copies of those that made its blocks, where a head is to stand alone


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """From reading a head to saving it again: no two commands at once, of which the later would undo the earlier.

    Raises InputError at once while another process holds the head, and for the folder that this one runs in, which
    would be gone under its feet. Where the system knows no such locks, nobody is refused.
    """
    if folder.resolve() == Path.cwd():
        raise InputError(f"{folder.resolve()} is replaced when the head is saved; run this from another folder.")
    try:
        import fcntl
    except ImportError:  # not a Unix
        fcntl = None  # type: ignore[assignment]
    descriptor = None
    try:
        while fcntl is not None and folder.is_dir():
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{folder} is being updated or tuned by another command. Run this one again when that has ended, "
                    "or name another folder with --out."
                ) from None
            except OSError:  # a shared disk without locks
                break
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                break
            os.close(descriptor)  # it was saved anew between opening and locking
            descriptor = None
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def write_head(head: Head, folder: Path) -> None:
    """Write a fitted head in the place of the one there, whole, or leave that as it was.

    What else lies in the folder (predictions, notes) is not the head's, and stays.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if not head.labels_:
        raise InputError(f"this {head.kind} head is not fitted; there is nothing to save.")
    if folder.exists() and not (folder.is_dir() and ((folder / _DESCRIPTION).exists() or not any(folder.iterdir()))):
        raise InputError(f"{folder} exists and is not a head; choose another name, nothing was overwritten.")

    def fill(temporary: Path) -> None:
        tuned = head.tuning_.arrays() if head.tuning_ is not None else {}
        try:
            save_file({**head._arrays(), **tuned}, str(temporary / _WEIGHTS))
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"the head's weights cannot be written to {folder}: {error}") from None
        tuned_on = {"tuned_on": sorted(head.tuned_on_)} if head.tuned_on_ else {}
        write_json(temporary / _HEARD, {**head.heard_.to_json(), **tuned_on})
        if (folder / BACKBONES).is_dir():
            shutil.copytree(folder / BACKBONES, temporary / BACKBONES)
        for i, member in enumerate(head.members_):
            write_head(member, temporary / _MEMBERS / str(i))
        write_json(temporary / _DESCRIPTION, _describe(head, _sha256(temporary / _WEIGHTS)))

    replace_folder(folder, fill, own=(_DESCRIPTION, _WEIGHTS, _HEARD, _MEMBERS, BACKBONES))


def read_head(folder: Path, class_of: Callable[[str], type[Head]]) -> Head:
    """Read what `write_head` wrote. class_of : kind -> class, raising InputError for a kind it does not know.

    Raises InputError when a file is missing, cut short, edited, or of a later version.
    """
    description = read_json(folder / _DESCRIPTION, what="head description")
    if description.get("format") != FORMAT:
        raise InputError(f"{folder / _DESCRIPTION} is of format {description.get('format')!r}, not {FORMAT!r}.")
    version = description.get("version")
    if version not in (_UNTUNED_VERSION, FORMAT_VERSION):
        raise InputError(
            f"{folder} is of version {version!r}; this Cisticola reads {_UNTUNED_VERSION} and {FORMAT_VERSION}. Update "
            "it."
        )
    head_type = class_of(str(description.get("kind")))
    try:
        head = head_type(head_type.settings_type(**description["settings"]))
        labels = description["labels"]
        head._begin(
            tuple(str(entry["label"]) for entry in labels), tuple(int(block["dim"]) for block in description["blocks"])
        )
        head.names_ = {
            entry["label"]: (entry["scientific_name"], entry["common_name"])
            for entry in labels
            if entry["scientific_name"] or entry["common_name"]
        }
        head.blocks_ = tuple(
            (str(block["name"]), Fingerprint(block["fingerprint"]))
            for block in description["blocks"]
            if block["fingerprint"] is not None
        )
        head.calibration_ = Calibration.from_json(description["calibration"])
        head.windows_ = str(description["windows"])
        head.secondary_weight_ = float(description["secondary_weight"])
        head.provenance = dict(description["provenance"])
        expected, n_members = str(description["weights_sha256"]), int(description.get("members", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / _DESCRIPTION} was edited or is incomplete ({type(error).__name__}: {error}). Fit the head anew."
        ) from None
    heard = read_json(folder / _HEARD, what="list of heard recordings")
    try:
        head.heard_, head.tuned_on_ = Heard.from_json(heard), frozenset(heard.get("tuned_on", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / _HEARD} was edited or is incomplete ({type(error).__name__}: {error}). Fit the head anew."
        ) from None
    arrays = _read_weights(folder / _WEIGHTS, expected)
    tuned = Tuning.take_arrays(arrays)
    head.members_ = tuple(read_head(folder / _MEMBERS / str(i), class_of) for i in range(n_members))
    head._restore(arrays)
    if version == FORMAT_VERSION:
        try:
            head.tuning_ = Tuning.from_json(description["tuning"], tuned, head.labels_, str(folder / _DESCRIPTION))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"the tuning in {folder / _DESCRIPTION} was edited or is incomplete ({type(error).__name__}: {error}). "
                "Run `heads tune` again on a whole head, or fit it anew."
            ) from None
    return head


def _describe(head: Head, weights_sha256: str) -> dict[str, Any]:
    named: list[tuple[str, dict[str, Any] | None]] = [(n, dict(f.fields)) for n, f in head.blocks_]
    blocks = named or [("", None)] * len(head.dims_)
    return {
        "format": FORMAT,
        "version": _UNTUNED_VERSION if head.tuning_ is None else FORMAT_VERSION,
        "kind": head.kind,
        "settings": head._settings_json(),
        "labels": [
            {
                "label": label,
                "scientific_name": head.names_.get(label, ("", ""))[0],
                "common_name": head.names_.get(label, ("", ""))[1],
            }
            for label in head.labels_
        ],
        "blocks": [
            {"name": name, "dim": dim, "fingerprint": fields}
            for (name, fields), dim in zip(blocks, head.dims_, strict=True)
        ],
        "calibration": head.calibration_.to_json(),
        "calibrated_on": head.calibrated_on_,
        "windows": head.windows_,
        "secondary_weight": head.secondary_weight_,
        "provenance": head.provenance,
        "weights_sha256": weights_sha256,
        **({"members": len(head.members_)} if head.members_ else {}),
        **({} if head.tuning_ is None else {"tuning": head.tuning_.to_json(head.labels_)}),
    }


def _read_weights(path: Path, expected_sha256: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not path.is_file():
        raise InputError(f"the head's weights {path} are missing; copy the whole folder, or fit the head anew.")
    found = _sha256(path)
    if found != expected_sha256:
        raise InputError(
            f"the head's weights {path} were cut short or changed: sha256 {found[:12]}..., "
            f"head.json says {expected_sha256[:12]}.... Copy the folder again, or fit the head anew."
        )
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"the head's weights {path} cannot be read: {error}. Fit the head anew.") from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
