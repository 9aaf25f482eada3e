"""The zip archive that torch.save writes: its pickle, and the offset of each storage in the file.

Format: PKWARE's APPNOTE.TXT 6.3 (4.3.7 local header, 4.3.12 central directory, 4.3.14 to 4.3.16 its end, 4.5.3 zip64),
of which torch.save since torch 1.6 uses little: entries are stored uncompressed, all under one folder (`data.pkl`,
`data/<key>` for each storage, `version`, `byteorder` since torch 2.1); numbers beyond 32 bits are in zip64 fields.
Anything more is refused, so that no other program can read another model from the same file.
"""

from __future__ import annotations

import itertools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cerebras_jais.files import open_regular
from checkpoint_convert.errors import ConversionError

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_SIZES_FOLLOW, _UTF8 = 0x8, 0x800  # the two flags that torch sets

# Limits for hostile files. A tensor takes about 150 bytes of pickle, so these allow tens of thousands of tensors.
_LARGEST_PICKLE = 4 << 20  # bytes
_LARGEST_DIRECTORY = 16 << 20  # bytes

_REMEDY = "if you trust it, load it with transformers and save it as safetensors"


def refusal(path: Path, problem: str) -> ConversionError:
    """The error for a complete file with content that is not supported."""
    return ConversionError(f"{path}: {problem}; {_REMEDY}")


def damage(path: Path, problem: str) -> ConversionError:
    """The error for a file that contradicts itself."""
    return ConversionError(f"{path}: {problem}; the file is damaged or incomplete, download it again")


@dataclass(frozen=True)
class Entry:
    """The range of bytes of an entry in the file."""

    offset: int
    size: int


@dataclass(frozen=True)
class Archive:
    """What torch.save wrote: the pickle, and the byte range of each storage by its key."""

    pickle: bytes
    storages: dict[str, Entry]


def read_archive(path: Path) -> Archive:
    """Read the directory and the pickle of a file of torch.save; every offset is checked against the size of the file.

    Raises:
        ConversionError: the file is missing, damaged, in torch's format from before 1.6, a TorchScript program, not
            little-endian, or a zip archive that torch.save would not have written.
    """
    try:
        with open_regular(path, ConversionError) as file:
            entries = _read_directory(path, file)
            root = _find_root(path, file, entries)
            pickle = _read_entry(path, file, entries, f"{root}data.pkl", _LARGEST_PICKLE)
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        reason = getattr(error, "strerror", None) or error
        raise ConversionError(f"{str(path)!r}: cannot be read: {reason}") from error
    folder = f"{root}data/"
    return Archive(pickle, {name[len(folder) :]: entry for name, entry in entries.items() if name.startswith(folder)})


def _read_at(path: Path, file: BinaryIO, offset: int, count: int) -> bytes:
    found = os.pread(file.fileno(), count, offset)
    if len(found) != count:  # counts are small, so one call reads all of them
        raise damage(path, f"ends before byte {offset + count}")
    return found


def _read_entry(path: Path, file: BinaryIO, entries: dict[str, Entry], name: str, largest: int) -> bytes:
    if name not in entries:
        raise damage(path, f"has no entry {name!r}")
    entry = entries[name]
    if entry.size > largest:
        raise refusal(path, f"its entry {name!r} has {entry.size} bytes, more than a model needs")
    return _read_at(path, file, entry.offset, entry.size)


def _find_root(path: Path, file: BinaryIO, entries: dict[str, Entry]) -> str:
    """The folder of all entries, with its slash; the version and the byte order of the archive are checked."""
    roots = {name[: name.find("/") + 1] for name in entries}
    if len(roots) != 1 or roots == {""}:
        raise damage(path, "its entries are not in one folder")
    root = roots.pop()
    if f"{root}constants.pkl" in entries:
        raise refusal(path, "is a TorchScript program, not weights alone")
    if _read_entry(path, file, entries, f"{root}version", 16).strip() != b"3":
        raise refusal(path, "has another version of torch.save's format than 3")
    byteorder = f"{root}byteorder"
    if byteorder in entries and _read_entry(path, file, entries, byteorder, 16) != b"little":
        raise refusal(path, "does not hold little-endian numbers")
    identity = f"{root}.data/serialization_id"
    if identity in entries and not _read_entry(path, file, entries, identity, 64).isdigit():
        raise damage(path, f"its entry {identity!r} is not a number")
    return root


def _read_directory(path: Path, file: BinaryIO) -> dict[str, Entry]:
    """All entries by name; no two overlap."""
    size = os.fstat(file.fileno()).st_size
    start = os.pread(file.fileno(), 4, 0)
    if start[:1] == b"\x80":
        raise refusal(path, "is a pickle in the format from before torch 1.6, which is not read")
    if start != b"PK\3\4" or size < _END.size:
        raise damage(path, "is not an archive of torch.save")
    begin, length, count = _find_directory(path, file, size)
    if length > _LARGEST_DIRECTORY:
        raise refusal(path, f"has an archive directory of {length} bytes, more than a model needs")
    directory = _read_at(path, file, begin, length)
    entries: dict[str, Entry] = {}
    seen: set[str] = set()
    extents: list[tuple[int, int]] = []
    at = 0
    for _ in range(count):
        name, size, header, at = _parse_entry(path, directory, at)
        if name.lower() in seen:  # torch's own reader ignores case in names
            raise damage(path, f"has the entry {name!r} twice")
        seen.add(name.lower())
        offset = header + _LOCAL.size
        if offset <= begin:
            offset = _skip_local_header(path, file, header, name, size)
        if offset + size > begin:
            raise damage(path, f"its entry {name!r} is outside the file")
        entries[name] = Entry(offset, size)
        extents.append((header, offset + size))
    if at != length:
        raise damage(path, "its archive directory is longer than its entries")
    extents.sort()
    if any(left[1] > right[0] for left, right in itertools.pairwise(extents)):
        raise damage(path, "two of its entries overlap")
    return entries


def _find_directory(path: Path, file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Offset and length in bytes of the central directory, which reaches to its own end record, and its entries."""
    end = size - _END.size
    sig, disk, first_disk, here, count, length, begin, comment = _END.unpack(_read_at(path, file, end, _END.size))
    whole = sig == b"PK\5\6" and not disk and not first_disk and here == count and not comment
    at = end - _LOCATOR64.size
    if whole and at >= _END64.size and _read_at(path, file, at, 4) == b"PK\6\7":
        end = at - _END64.size
        _, disk, where, disks = _LOCATOR64.unpack(_read_at(path, file, at, _LOCATOR64.size))
        whole = not disk and disks == 1 and where == end
        sig, rest, _, _, disk, first_disk, here, *wide = _END64.unpack(_read_at(path, file, end, _END64.size))
        whole &= sig == b"PK\6\6" and rest == _END64.size - 12 and not disk and not first_disk and here == wide[0]
        whole &= count in (wide[0], _FULL16) and length in (wide[1], _FULL32) and begin in (wide[2], _FULL32)
        count, length, begin = wide
    if not whole or begin + length != end:
        raise damage(path, "does not end as an archive of torch.save")
    return begin, length, count


def _parse_entry(path: Path, directory: bytes, at: int) -> tuple[str, int, int, int]:
    """Name, size and offset of the local header of the entry at a byte of the directory, and the byte after it."""
    if len(directory) - at < _CENTRAL.size:
        raise damage(path, "its archive directory is cut short")
    sig, _, _, flags, method, _, _, _, packed, unpacked, names, extras, comment, disk, _, _, header = (
        _CENTRAL.unpack_from(directory, at)
    )
    at += _CENTRAL.size
    raw, extra = directory[at : at + names], directory[at + names : at + names + extras]
    at += names + extras
    if sig != b"PK\1\2" or at > len(directory) or comment or disk:
        raise damage(path, "its archive directory cannot be read")
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise damage(path, f"the name {raw!r} of an entry is not UTF-8") from error
    if method or flags & ~(_SIZES_FOLLOW | _UTF8):
        raise refusal(path, f"its entry {name!r} is compressed or encrypted, which torch.save never does")
    unpacked, packed, header = _widen(path, name, extra, [unpacked, packed, header])
    if packed != unpacked:
        raise damage(path, f"its entry {name!r} has two sizes")
    return name, unpacked, header, at


def _widen(path: Path, name: str, extra: bytes, numbers: list[int]) -> list[int]:
    """Replace each 32-bit number that is all ones by the next number of the zip64 field."""
    full = [i for i, number in enumerate(numbers) if number == _FULL32]
    at = 0
    while full and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and min(length, len(extra) - at - 4) >= 8 * len(full):
            for index, i in enumerate(full):
                (numbers[i],) = struct.unpack_from("<Q", extra, at + 4 + 8 * index)
            return numbers
        at += 4 + length
    if full:
        raise damage(path, f"its entry {name!r} has no size or offset")
    return numbers


def _skip_local_header(path: Path, file: BinaryIO, at: int, name: str, size: int) -> int:
    """The offset of the data of an entry; its local header must agree with the directory."""
    sig, _, flags, method, _, _, _, packed, unpacked, names, extras = _LOCAL.unpack(
        _read_at(path, file, at, _LOCAL.size)
    )
    agrees = {packed, unpacked} <= {size, _FULL32} or (flags & _SIZES_FOLLOW and packed == unpacked == 0)
    agrees = agrees and sig == b"PK\3\4" and not method and not flags & ~(_SIZES_FOLLOW | _UTF8)
    if not agrees or _read_at(path, file, at + _LOCAL.size, names) != name.encode():
        raise damage(path, f"the header of its entry {name!r} differs from the archive directory")
    return at + int(_LOCAL.size + names + extras)
