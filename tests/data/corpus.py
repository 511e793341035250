"""Images of every kind that is read, strange ones, and broken ones, each with what is to come of it.

What is expected does not pass through the program: pixels are known before they are encoded.

H, W upright height and width in pixels    D bits of a sample
"""

import functools
import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

Pixels = NDArray[np.uint8]
ROWS, COLUMNS = np.mgrid[:24, :40]
# 64 colours, so that a palette holds them; no symmetry, so that no turn looks like another; smooth, for lossy formats.
PICTURE: Pixels = np.stack(
    [30 + COLUMNS // 5 * 28, 220 - ROWS // 3 * 25, 60 + (COLUMNS // 5 + ROWS // 3) * 10], -1
).astype(np.uint8)
OTHER = PICTURE[::-1, ::-1, ::-1]  # a second frame or page
GREY = PICTURE[..., 1]
ALPHA = (COLUMNS * 6).astype(np.uint8)
EXACT, ROUNDED, LOSSY = 0.0, 1.0, 6.0
"""Mean difference allowed, in levels of 255."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A file. pixels: what is to be read, uint8 [H, W, 3], or None if it is to be refused. loss: see EXACT. reason: a
    part of why it is refused. sure: whether it is known which of the two; otherwise it may be refused as well."""

    name: str
    data: bytes
    pixels: Pixels | None = None
    loss: float = EXACT
    reason: str = ""
    sure: bool = True

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]


def saved(pixels: NDArray[Any] | Image.Image, form: str, **more: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, form, **more)
    return data.getvalue()


def in_colour(grey: NDArray[Any]) -> Pixels:
    return np.repeat(grey[..., None], 3, 2).astype(np.uint8)


def on_white(pixels: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    share = alpha[..., None] / 255
    return np.round(pixels * share + 255 * (1 - share)).astype(np.uint8)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png_file(size: Sequence[int], depth: int, colour: int, lines: bytes, before: bytes = b"", way: int = 0) -> bytes:
    """A PNG of [H, W] = `size`, of filtered `lines` with chunks `before` them; `way` is 1 for interlaced ones."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, way))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def png(samples: NDArray[Any], depth: int, colour: int, *, before: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of `samples`, [H, W, channels] of D = `depth` bits, of a kind that Pillow may not write."""
    lines = b""
    for top, left, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        for row in samples[top::down, left::right]:
            flat = row.reshape(-1).astype(">u2")
            bits = np.unpackbits(flat.view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - depth :]
            lines += b"\0" + np.packbits(bits).tobytes()
    return png_file(samples.shape[:2], depth, colour, lines, before, int(interlaced))


def tiff(
    samples: NDArray[Any], *, extra: Sequence[int] = (), order: str = "<", tile: int = 0, rows: int = 0, kind: int = 1
) -> bytes:
    """An uncompressed TIFF of `samples`, [H, W, bands], in strips of `rows` or in tiles; `extra` says what bands beyond
    colours are (0 nothing, 1 and 2 alpha), `kind` what numbers are (1 unsigned, 3 float)."""
    height, width, bands = samples.shape
    samples = samples.astype(samples.dtype.newbyteorder(order))
    if tile:
        full = np.pad(samples, ((0, -height % tile), (0, -width % tile), (0, 0)))
        corners = itertools.product(range(0, height, tile), range(0, width, tile))
        pieces = [full[top : top + tile, left : left + tile].tobytes() for top, left in corners]
    else:
        rows = rows or height
        pieces = [samples[top : top + rows].tobytes() for top in range(0, height, rows)]
    starts = list(itertools.accumulate(map(len, pieces), initial=8))
    tags = {256: [width], 257: [height], 258: [samples.itemsize * 8] * bands, 259: [1], 262: [2 if bands > 2 else 1]}
    tags |= {277: [bands], 339: [kind] * bands}
    sizes = [len(piece) for piece in pieces]
    if tile:
        tags |= {322: [tile], 323: [tile], 324: starts[:-1], 325: sizes}
    else:
        tags |= {273: starts[:-1], 278: [rows], 279: sizes}
    tags |= {338: list(extra)} if extra else {}
    at = starts[-1] + 2 + 12 * len(tags) + 4
    directory, beyond = struct.pack(order + "H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}I", *values)
        if len(body) > 4:
            beyond, body = beyond + body, struct.pack(order + "I", at + len(beyond))
        directory += struct.pack(order + "HHI", tag, 4, len(values)) + body
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", starts[-1])
    return start + b"".join(pieces) + directory + bytes(4) + beyond


def ycck() -> bytes:
    """A JPEG of luma, chroma and black, as Adobe's programs write them: inks inverted, then converted."""
    inks = Image.fromarray(255 - PICTURE).convert("YCbCr")
    stored = np.dstack([np.asarray(inks), np.full(GREY.shape, 255, np.uint8)])
    data = saved(Image.fromarray(255 - stored, "CMYK"), "JPEG", quality=98)
    adobe = data.index(b"Adobe")
    return data[: adobe + 11] + b"\2" + data[adobe + 12 :]


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def turned(orientation: int) -> Pixels:
    """Return the pixels of PICTURE as they are shown with an orientation."""
    upright = {1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1]}
    sideways = {5: PICTURE, 6: PICTURE[::-1], 7: PICTURE[::-1, ::-1], 8: PICTURE[:, ::-1]}
    return upright[orientation] if orientation < 5 else sideways[orientation].swapaxes(0, 1)


def palette() -> Image.Image:
    colours, indices = np.unique(PICTURE.reshape(-1, 3), axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(GREY.shape).astype(np.uint8), "P")
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def two() -> dict[str, Any]:
    """What gives an image a second frame; a new one each time, as an image remembers how it was saved."""
    return {"save_all": True, "append_images": [Image.fromarray(OTHER)]}


def sound() -> Iterator[Entry]:
    """Every format, and every kind of pixels in it."""

    def read(name: str, data: bytes, pixels: Pixels = PICTURE, loss: float = EXACT) -> Entry:
        return Entry(f"format-{name}", data, pixels, loss)

    fine = {"quality": 95}
    yield read("baseline.jpg", saved(PICTURE, "JPEG", **fine), loss=LOSSY)
    yield read("progressive.jpg", saved(PICTURE, "JPEG", progressive=True, **fine), loss=LOSSY)
    yield read("restarts.jpg", saved(PICTURE, "JPEG", restart_marker_blocks=2, **fine), loss=LOSSY)
    yield read("grey.jpg", saved(GREY, "JPEG", **fine), in_colour(GREY), LOSSY)
    inks = np.dstack([255 - PICTURE, np.zeros_like(GREY)])
    yield read("cmyk.jpg", saved(Image.fromarray(inks, "CMYK"), "JPEG", **fine), loss=LOSSY)
    yield read("ycck.jpg", ycck(), loss=LOSSY)
    yield read("phone.mpo", saved(PICTURE, "MPO", **two(), **fine), loss=LOSSY)
    for depth in (1, 2, 4, 8):
        values = (COLUMNS // 5 + ROWS // 6) % 2**depth
        expected = in_colour(values * (255 // (2**depth - 1)))
        yield read(f"grey{depth}.png", png(values[..., None], depth, 0), expected)
        colours = PICTURE[0, : 2**depth * 5 : 5] if depth < 4 else PICTURE.reshape(-1, 3)[:: 960 // 2 ** min(depth, 8)]
        colours = np.resize(colours, (2**depth, 3)).astype(np.uint8)
        table = chunk(b"PLTE", colours.tobytes())
        yield read(f"palette{depth}.png", png(values[..., None], depth, 3, before=table), colours[values])
        clear = np.linspace(0, 255, 2**depth).astype(np.uint8)
        data = png(values[..., None], depth, 3, before=table + chunk(b"tRNS", clear.tobytes()))
        yield read(f"palette-alpha{depth}.png", data, on_white(colours[values], clear[values]), ROUNDED)
    deep = np.arange(960, dtype=np.int64).reshape(24, 40, 1) * 68
    yield read("grey16.png", png(deep, 16, 0), in_colour(np.round(deep[..., 0] / 257)))
    yield read("rgb16.png", png(PICTURE * np.int64(257), 16, 2))
    for depth, factor in ((8, 1), (16, 257)):
        both = np.dstack([GREY, ALPHA]) * np.int64(factor)
        yield read(f"grey-alpha{depth}.png", png(both, depth, 4), on_white(in_colour(GREY), ALPHA), ROUNDED)
        all_four = np.dstack([PICTURE, ALPHA]) * np.int64(factor)
        yield read(f"rgba{depth}.png", png(all_four, depth, 6), on_white(PICTURE, ALPHA), ROUNDED)
    yield read("interlaced.png", png(PICTURE, 8, 2, interlaced=True))
    yield read("animated.apng", saved(PICTURE, "PNG", **two()))
    frames = {"save_all": True, "append_images": [palette().transpose(Image.Transpose.ROTATE_180)]}
    yield read("one.gif", saved(palette(), "GIF"))
    first = (np.asarray(palette())[..., None] == 0) * np.uint8(255)
    yield read("alpha.gif", saved(palette(), "GIF", transparency=0), np.maximum(PICTURE, first))
    yield read("animated.gif", saved(palette(), "GIF", **frames, duration=50, loop=0))
    yield read("lossy.webp", saved(PICTURE, "WEBP", **fine), loss=LOSSY)
    yield read("lossless.webp", saved(PICTURE, "WEBP", lossless=True))
    yield read("animated.webp", saved(PICTURE, "WEBP", lossless=True, **two()))
    clear = np.dstack([PICTURE, ALPHA])
    yield read("alpha.webp", saved(clear, "WEBP", lossless=True, exact=True), on_white(PICTURE, ALPHA), ROUNDED)
    yield read("colour.bmp", saved(PICTURE, "BMP"))
    yield read("palette.bmp", saved(palette(), "BMP"))
    yield read("bits.bmp", saved(GREY > 128, "BMP"), in_colour((GREY > 128) * 255))
    yield read("colour.ppm", saved(PICTURE, "PPM"))
    yield read("deep.pgm", b"P5 40 24 65535\n" + deep.astype(">u2").tobytes(), in_colour(np.round(deep[..., 0] / 257)))
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        yield read(f"{compression}.tif", saved(PICTURE, "TIFF", compression=compression))
    yield read("jpeg.tif", saved(PICTURE, "TIFF", compression="jpeg", quality=95), loss=LOSSY)
    bits = Image.fromarray(GREY > 128)
    yield read("fax.tif", saved(bits, "TIFF", compression="group4"), in_colour((GREY > 128) * 255))
    yield read("pages.tif", saved(PICTURE, "TIFF", **two()))
    yield read("strips.tif", tiff(PICTURE, rows=5))
    yield read("tiles.tif", tiff(PICTURE, tile=16))
    yield read("big-endian.tif", tiff(PICTURE, order=">", rows=7))
    yield read("grey16.tif", tiff(deep.astype(np.uint16)), in_colour(np.round(deep[..., 0] / 257)))
    yield read("rgb16.tif", tiff(PICTURE * np.uint16(257)))
    yield read("alpha.tif", tiff(clear, extra=[2]), on_white(PICTURE, ALPHA), ROUNDED)
    yield read("cmyk.tif", saved(Image.fromarray(inks, "CMYK"), "TIFF"))
    if features.check("avif"):
        yield read("lossy.avif", saved(PICTURE, "AVIF", quality=95), loss=LOSSY)
        yield read("animated.avif", saved(PICTURE, "AVIF", quality=95, **two()), loss=LOSSY)


def strange() -> Iterator[Entry]:
    """What other programs stumble over, and what has no meaning as a picture."""
    for orientation in range(1, 9):
        for form, more in (("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            data, loss = saved(PICTURE, form, exif=exif(orientation), **more), LOSSY if form == "JPEG" else EXACT
            yield Entry(f"exif-{orientation}.{form.lower()}", data, turned(orientation), loss)
    broken = exif(1).tobytes()[:20] + b"\xff" * 20
    yield Entry("exif-broken.jpg", saved(PICTURE, "JPEG", quality=95, exif=broken), PICTURE, LOSSY)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for what, profile in (("srgb", srgb), ("wide", wide), ("broken", srgb[:40] + b"\xff" * 300), ("empty", b"\0")):
        yield Entry(f"profile-{what}.jpg", saved(PICTURE, "JPEG", quality=95, icc_profile=profile), PICTURE, LOSSY)
        yield Entry(f"profile-{what}.png", saved(PICTURE, "PNG", icc_profile=profile), PICTURE)
    yield Entry("size-1x1.png", saved(PICTURE[:1, :1], "PNG"), PICTURE[:1, :1])
    long = np.resize(PICTURE, (10000, 1, 3)).astype(np.uint8)
    yield Entry("size-1x10000.png", saved(long, "PNG"), long)
    yield Entry("name-png-as.jpg", saved(PICTURE, "PNG"), PICTURE)
    yield Entry("name-jpeg-as.tif", saved(PICTURE, "JPEG", quality=95), PICTURE, LOSSY)

    yield from odd_colours()
    bands = np.dstack([PICTURE, GREY, ALPHA])
    four = "4 bands, of which 3 are known to be colours or alpha; save those alone"
    for name, data, reason in (
        ("bands-4", tiff(bands[..., :4], extra=[0]), four),
        ("bands-unsaid", tiff(bands[..., :4]), "4 bands"),
        ("range-float", tiff(np.float32(GREY)[..., None], kind=3), "float"),
        ("range-wide", saved(Image.fromarray(GREY.astype(np.int32) * 70000), "TIFF"), "16 bits"),
        ("range-negative", saved(Image.fromarray(GREY.astype(np.int32) - 255), "TIFF"), "16 bits"),
    ):
        yield Entry(f"{name}.tif", data, reason=reason)
    yield Entry("foreign-empty.jpg", b"", reason="empty file")
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"
    yield Entry("foreign-page.jpg", page, reason="known format")
    yield Entry("foreign-postscript.jpg", saved(PICTURE, "EPS"), reason="known format")
    yield Entry("foreign-zeros.jpg", bytes(5000), reason="known format")


def odd_colours() -> Iterator[Entry]:
    """One colour that is transparent, white that is zero, alpha that is none, and other spaces of colours."""
    key = PICTURE[0, 0]
    for depth, factor in ((8, 1), (16, 257)):
        for kind, colour, values, clear in (("grey", 0, GREY[..., None], key[1:2]), ("rgb", 2, PICTURE, key)):
            named = chunk(b"tRNS", (clear * np.uint16(factor)).astype(">u2").tobytes())
            data = png(values * np.int64(factor), depth, colour, before=named)
            seen = np.where((values - clear).any(2, keepdims=True), values, 255)
            yield Entry(f"colours-clear-{kind}{depth}.png", data, np.broadcast_to(seen, PICTURE.shape))
    black, white = (struct.pack("<HHII", 262, 4, 1, zero_is) for zero_is in (1, 0))
    for depth, values in ((8, GREY), (16, GREY * np.uint16(257))):
        data = tiff(values[..., None]).replace(black, white)
        yield Entry(f"colours-white-is-zero{depth}.tif", data, in_colour(255 - GREY))
    header = struct.pack("<IiiHHIIiiII4I", 108, 40, 24, 1, 32, 3, 3840, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = b"BM" + struct.pack("<IHHI", 122 + 3840, 0, 0, 122) + header.ljust(108, b"\0")
    for kind, alpha, seen in (("no", ALPHA * 0, PICTURE), ("some", ALPHA, on_white(PICTURE, ALPHA))):
        body = np.dstack([PICTURE[::-1, :, ::-1], alpha[::-1]]).tobytes()
        yield Entry(f"colours-{kind}-alpha.bmp", start + body, seen, ROUNDED)
    picture, spaces = Image.fromarray(PICTURE), (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    lab = ImageCms.profileToProfile(picture, *spaces, outputMode="LAB")
    yield Entry("colours-lab.tif", saved(lab, "TIFF"), PICTURE, LOSSY)
    # Pillow before 13 read four bytes a pixel where there are three.
    is_read = int(PIL.__version__.partition(".")[0]) >= 13
    data = saved(picture.convert("YCbCr"), "TIFF")
    yield Entry("colours-ycbcr.tif", data, PICTURE if is_read else None, LOSSY, reason="truncated")


def bombs() -> Iterator[Entry]:
    """A few bytes that say that they are more than 179 million pixels."""

    def bomb(name: str, data: bytes, at: int = 0, size: bytes = b"", reason: str = "million pixels") -> Entry:
        return Entry(f"bomb-{name}", data[:at] + size + data[at + len(size) :], reason=reason)

    yield bomb("large.png", png_file((60000, 60000), 8, 2, b""))
    large = struct.pack(">HH", 65500, 65500)
    for kind, more in (("baseline", {}), ("progressive", {"progressive": True})):
        data = saved(PICTURE, "JPEG", **more)
        yield bomb(f"{kind}.jpg", data, data.index(struct.pack(">HH", *GREY.shape)), large)
    data, small, large = saved(palette(), "GIF"), struct.pack("<HH", 40, 24), struct.pack("<HH", 65500, 65500)
    yield bomb("screen.gif", data.replace(small, large, 1))
    yield bomb("frame.gif", data.replace(small, large))
    data = saved(np.dstack([PICTURE, ALPHA]), "WEBP", quality=80)  # with a canvas of its own
    yield bomb("canvas.webp", data, data.index(b"VP8X") + 12, b"\xff" * 6, "")
    data = saved(PICTURE, "WEBP", lossless=True)
    yield bomb("lossless.webp", data, data.index(b"VP8L") + 9, struct.pack("<I", 0x3FFF | 0x3FFF << 14), "")
    yield bomb("large.bmp", saved(PICTURE, "BMP"), 18, struct.pack("<II", 2**30, 2**30))
    data = tiff(PICTURE)
    for tag, side in ((256, 40), (257, 24)):
        data = data.replace(struct.pack("<HHII", tag, 4, 1, side), struct.pack("<HHII", tag, 4, 1, 10**6))
    yield bomb("large.tif", data)
    yield bomb("large.ppm", b"P6 1000000 1000000 255\n" + bytes(100))
    if features.check("avif"):
        data = saved(PICTURE, "AVIF")
        yield bomb("large.avif", data, data.index(b"ispe") + 8, struct.pack(">II", 65500, 65500), "")
    # Small pictures, and metadata that grow: the pixels are sound, whatever becomes of the rest.
    zeros = zlib.compress(bytes(6 * 10**7), 1)
    for kind, start in ((b"iCCP", b"icc\0\0"), (b"zTXt", b"Comment\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        data = png(PICTURE, 8, 2, before=chunk(kind, start + zeros))
        yield Entry(f"bomb-{kind.decode().lower()}.png", data, PICTURE, sure=False)


def truncated() -> Iterator[Entry]:
    """Cut all over the file, and at each of its last bytes: refused, or read in full where only what follows the first
    picture is lost."""
    for name, data in ((entry.name, entry.data) for entry in sound() if entry.pixels is PICTURE):
        with Image.open(io.BytesIO(data)) as image:
            whole = np.asarray(image.convert("RGB"))
        for cut in sorted({*range(1, len(data), len(data) // 40), *range(len(data) - 14, len(data))}):
            yield Entry(f"cut-{cut:05d}-{name.removeprefix('format-')}", data[:cut], whole, sure=False)


def flipped() -> Iterator[Entry]:
    """Some bytes are others: nothing is known of what comes out, other than that all who read it agree."""
    generator = np.random.default_rng(6)
    for entry in sound():
        for number in range(3):
            data = bytearray(entry.data)
            for at in generator.integers(0, min(len(data), (60, 300, len(data))[number]), number + 1):
                data[at] ^= 1 << generator.integers(8)
            yield Entry(f"flip-{number}-{entry.name.removeprefix('format-')}", bytes(data), None, sure=False)


@functools.cache
def corpus() -> tuple[Entry, ...]:
    return (*sound(), *strange(), *bombs(), *truncated(), *flipped())
