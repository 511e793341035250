"""Ways to spoil a file. Files with few wrong bytes, fields or lengths get further into a parser than noise does."""

import json
import random
import struct
from typing import Any

SIZES = (0, 1, 2, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = ("", "x", "../../x", "/etc/passwd", "\x1b[2J", "\x00", "\ud800", "é\n<script>", "F32", "<f4", "-1", "9" * 40)
VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [None], {"": None}, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**400),
    *(-1, *SIZES),
    *TEXTS,
)


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Flip, replace, remove or double some bytes, or cut off the rest."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        size = len(spoiled)
        at = rng.randrange(size) if size else 0
        if rng.random() < 0.3:  # in headers and footers
            at = rng.choice((at % 64, max(0, size - 1 - at % 512)))
        end = at + rng.choice((1, 2, 4, 8, 64, size))
        number = struct.pack(rng.choice("<>") + "Q", rng.choice(SIZES))[: rng.choice((2, 4, 8))]
        match rng.randrange(6):
            case 0 if size:
                spoiled[at] ^= 1 << rng.randrange(8)
            case 1:
                spoiled[at : at + len(number)] = number
            case 2:
                spoiled[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 3:
                spoiled[at:at] = spoiled[at : min(end, at + 4096)]
            case 4:
                del spoiled[at:end]
            case 5 if rng.random() < 0.3:
                del spoiled[at:]
    return bytes(spoiled)


def spoil_value(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one part replaced, left out, doubled or renamed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.08:
        if type(value) is int and abs(value) < 2**62 and rng.random() < 0.3:
            return value + rng.choice((-1, 1, value, -2 * value, 0.5))
        if isinstance(value, str) and rng.random() < 0.2:
            return value + rng.choice(TEXTS)
        return rng.choice(VALUES)
    table: dict[Any, Any] = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    name = rng.choice(list(table))
    match rng.randrange(10):
        case 0:
            del table[name]
        case 1:
            table[rng.choice(TEXTS) if isinstance(value, dict) else len(table)] = table[name]
        case 2:
            table[name] = table[rng.choice(list(table))]
        case _:
            table[name] = spoil_value(table[name], rng)
    return table if isinstance(value, dict) else list(table.values())


def spoil_json(data: bytes, rng: random.Random) -> bytes:
    """Change a few parts of a JSON document, or rarely its bytes."""
    if rng.random() < 0.002:
        return rng.choice((b"[", b'{"a":')) * 100_000
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # spoiled before
        return spoil(data, rng)
    if rng.random() < 0.1:
        return spoil(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = spoil_value(value, rng)
    return json.dumps(value).encode().replace(b"Infinity", rng.choice((b"Infinity", b"1e999")))


def spoil_lines(data: bytes, rng: random.Random) -> bytes:
    """Change, leave out, double or replace a line of JSON Lines, or rarely any bytes."""
    if rng.random() < 0.1:
        return spoil(data, rng)
    lines = data.splitlines() or [b""]
    at = rng.randrange(len(lines))
    others = ([], lines[at : at + 1] * rng.choice((2, 50)), [rng.choice((b"", b"null", b"[]", b"0", b"\xff", b"nan"))])
    spoiled = [spoil_json(lines[at], rng)]
    lines[at : at + 1] = rng.choice((*others, *[spoiled] * 5))
    return b"\n".join(lines) + b"\n" * rng.randrange(2)


def spoil_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON of the header and correct its length, or change any bytes."""
    if rng.random() < 0.4:
        return spoil(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = spoil_json(data[8 : 8 + size].rstrip(), rng)
    length = len(header) if rng.random() < 0.95 else rng.choice(SIZES)
    return length.to_bytes(8, "little") + header + data[8 + size :]


TAR_NAMES = (b"../../x.png", b"/etc/x.png", b"a\x1b[2J\n.png", b"\xff.png", b".png", b"", b"a/../../b.png", b"x.cls")
TAR_NUMBERS = (b"77777777777", b"-1", b"", b"8", b"00000000001", b"\x80" + b"\xff" * 11, b"\x80" + bytes(10) + b"\1")
TAR_TYPES = tuple(bytes([kind]) for kind in (*b"0123456789LKVMNSXxgA", 0, 255))
# First byte, width and values of name, mode, size, time, type, name of a link, magic, prefix, and sparse parts.
TAR_FIELDS = (
    *((0, 100, TAR_NAMES), (100, 8, TAR_NUMBERS), (124, 12, TAR_NUMBERS), (136, 12, TAR_NUMBERS), (156, 1, TAR_TYPES)),
    *((157, 100, TAR_NAMES), (257, 8, TAR_NUMBERS), (345, 155, TAR_NAMES), (386, 97, TAR_NUMBERS)),
)


def spoil_tar(data: bytes, rng: random.Random) -> bytes:
    """Change fields of headers and correct their checksums, or change any bytes."""
    if rng.random() < 0.3:
        return spoil(data, rng)
    spoiled = bytearray(data)
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    for at in rng.choices(headers, k=rng.choice((1, 1, 2, 3))):
        first, width, values = rng.choice(TAR_FIELDS)
        value = rng.choice((*values, rng.randbytes(width)))
        spoiled[at + first : at + first + width] = value[:width].ljust(width, b"\0")
        block = spoiled[at : at + 148] + b" " * 8 + spoiled[at + 156 : at + 512]
        spoiled[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(spoiled)
