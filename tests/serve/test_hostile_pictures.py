"""Pictures that are made to hurt, by every way in: refused in words, at once, without being unpacked."""

from __future__ import annotations

import base64
import io
import random
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from vitrify.serve.errors import BadRequest, TooLarge
from vitrify.serve.pictures import checked, size_of, texts_of

AT_ONCE = 1.0  # seconds
LITTLE = 24 << 20  # bytes that a request of a few megabytes may need: its body, its parts, its base64
WAYS = ("native", "raw", "json", "form", "png-info")


def chunk(kind, data, checksum=None):
    """A PNG's."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum or zlib.crc32(kind + data))


def header(width, height):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


SIGNATURE, PIXELS, END = b"\x89PNG\r\n\x1a\n", chunk(b"IDAT", zlib.compress(bytes(310))), chunk(b"IEND", b"")


def png_of(*chunks, width=10, height=10):
    """Of 10x10 pixels, with these chunks before them."""
    return SIGNATURE + header(width, height) + b"".join(chunks) + PIXELS + END


def gigabytes(count):
    """So many GiB of zeros, as zlib packs them."""
    packer = zlib.compressobj(9)
    packed = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed[:2] + packed[2:] * (1024 * count)


def saved(form, size=(96, 80), mode="RGB", **options):
    image = Image.new("RGB", size, (250, 200, 0))
    image.paste((40, 40, 40), (20, 20, 40, 60))
    out = io.BytesIO()
    image.convert(mode).save(out, form, **options)
    return out.getvalue()


def jpeg_with(*segments):
    data = saved("JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def resized(data, width, height):
    """A JPEG whose header says another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def animated(count, form="WEBP", size=(8, 8)):
    frames = [Image.new("RGB", size, (n % 255, n // 255, 0)) for n in range(count)]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:], duration=1, lossless=True)
    return out.getvalue()


def riff(*chunks):
    parts = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) & 1) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WEBP" + parts


def canvas(width, height, flags=2):
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


def other(form, **options):
    return saved(form, **options)


EXIF = b"Exif\0\0MM\0*\0\0\0\x08"
# name -> bytes and what the reason names; none of them is given to a decoder
REFUSED = {
    "png of 50000x50000": (png_of(width=50_000, height=50_000), "50000x50000 pixels"),
    "png of 2^31 squared": (png_of(width=2**31 - 1, height=2**31 - 1), "2147483647x"),
    "png of no pixels": (png_of(width=0, height=10), "0x10 pixels"),
    "png with two headers": (png_of(header(50_000, 50_000)), "two headers"),
    "png with a wrong checksum": (SIGNATURE + header(10, 10)[:-1] + b"?" + PIXELS + END, "checksum"),
    "png without pixels": (SIGNATURE + header(10, 10) + END, "no pixels"),
    "png that begins elsewhere": (SIGNATURE + PIXELS + header(10, 10) + END, "does not begin with its header"),
    "png with a chunk beyond its end": (SIGNATURE + header(10, 10) + b"\x7f\xff\xff\xfftEXt", "no pixels"),
    "png of 300000 chunks": (png_of(chunk(b"aaAa", b"") * 300_000), "many chunks"),
    "png of a hundred packed texts": (png_of(chunk(b"zTXt", b"a\0\0" + gigabytes(1)[:2000]) * 100), "many texts"),
    "png with much exif": (png_of(chunk(b"eXIf", EXIF[6:] + bytes(2_000_000))), "much EXIF"),
    "apng of 100000 frames": (
        png_of(chunk(b"acTL", struct.pack(">II", 100_000, 0)), chunk(b"fcTL", bytes(26)) * 100_000), "many chunks"
    ),
    "jpeg of 65500x65500": (resized(saved("JPEG"), 65_500, 65_500), "65500x65500 pixels"),
    "jpeg of no pixels": (resized(saved("JPEG"), 10, 0), "10x0 pixels"),
    "jpeg with two sizes": (jpeg_with(segment(0xC0, b"\x08\0\x08\0\x08\x01\x01\x11\0")), "two sizes"),
    "jpeg of a million segments": (jpeg_with(segment(0xE1, b"") * 1_000_000), "many segments"),
    "jpeg with megabytes between": (jpeg_with(b"\xff" * 3_000_000), "between its segments"),
    "jpeg with zeros between": (jpeg_with(segment(0xFE, b"-"), bytes(3_000_000)), "no segment"),
    "jpeg with much exif": (jpeg_with(segment(0xE1, EXIF + bytes(65_000)) * 40), "much metadata"),
    "jpeg with much of photoshop": (jpeg_with(segment(0xED, b"Photoshop 3.0\0" + bytes(60_000)) * 70), "metadata"),
    "jpeg of 1000 scans": (saved("JPEG", progressive=True) + segment(0xDA, b"\x01\x01\0\0\0\0") * 1000, "many scans"),
    "jpeg that ends in its header": (saved("JPEG")[:100], "ends too soon"),
    "jpeg without a size": (b"\xff\xd8\xff\xda\0\x08\x01\x01\0\0\x3f\0", "no pixels"),
    "webp of 2^24 squared": (riff(canvas(2**24, 2**24)), "16777216x16777216 pixels"),
    "webp of 16383x16383": (riff((b"VP8L", b"\x2f" + struct.pack("<I", 0x3FFE | 0x3FFE << 14))), "16383x16383"),
    "webp of thousands of large frames": (
        riff(canvas(4096, 4096), *[(b"ANMF", bytes(24))] * 5000), "4096x4096 pixels in 5000 frames"
    ),
    "webp of 300000 chunks": (riff(canvas(8, 8), *[(b"abcd", b"")] * 300_000), "many chunks"),
    "webp with much exif": (riff(canvas(8, 8), (b"EXIF", EXIF + bytes(200_000))), "much EXIF"),
    "webp that is longer than its data": (saved("WEBP")[:60], "ends too soon"),
    "webp of nothing": (riff((b"ABCD", b"")), "does not begin with a frame"),
    "gif": (other("GIF"), "no PNG, JPEG or WebP"),
    "tiff": (other("TIFF"), "no PNG, JPEG or WebP"),
    "bmp": (other("BMP"), "no PNG, JPEG or WebP"),
    "ico": (other("ICO"), "no PNG, JPEG or WebP"),
    "eps": (other("EPS"), "no PNG, JPEG or WebP"),
    "pdf": (other("PDF"), "no PNG, JPEG or WebP"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "no PNG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "no PNG, JPEG or WebP"),
    "avif": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "no PNG, JPEG or WebP"),
    "gif that says it is webp later": (b"GIF89a" + saved("WEBP"), "no PNG, JPEG or WebP"),
    "one byte": (b"\x89", "no PNG, JPEG or WebP"),
    "a signature alone": (SIGNATURE, "ends too soon"),
    "jpeg's mark alone": (b"\xff\xd8\xff", "ends too soon"),
    "webp's mark alone": (b"RIFF\0\0\0\0WEBP", "does not begin with a frame"),
}  # fmt: skip
GOOD_PNG, GOOD_JPEG, GOOD_WEBP = saved("PNG"), saved("JPEG"), saved("WEBP")
# headers that are fine, over data that is not: a decoder says so
DAMAGED = {
    "png whose text unpacks to gigabytes": png_of(chunk(b"zTXt", b"a\0\0" + gigabytes(2))),
    "png whose itxt unpacks to gigabytes": png_of(chunk(b"iTXt", b"a\0\1\0\0\0" + gigabytes(2))),
    "png whose profile unpacks to gigabytes": png_of(chunk(b"iCCP", b"a\0\0" + gigabytes(2))),
    "png with less pixels than it says": png_of(width=3000, height=3000),
    "png of noise": SIGNATURE + header(10, 10) + chunk(b"IDAT", bytes(range(256))) + END,
    "png cut at half": GOOD_PNG[: len(GOOD_PNG) // 2],
    "png of an unknown colour": SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 7, 9, 0, 0, 0)) + PIXELS + END,
    "jpeg cut at half": GOOD_JPEG[: GOOD_JPEG.index(b"\xff\xda") + 40],
    "webp whose frame is larger than its canvas": riff(canvas(8, 8, 0), (b"VP8L", saved("WEBP", lossless=True)[20:])),
    "webp of noise": riff((b"VP8L", b"\x2f" + struct.pack("<I", 9 | 9 << 14) + bytes(range(200)))),
}
# odd, and fine all the same, as every decoder has it: a JPEG's missing blocks are grey, the first frame counts
TAKEN = {
    "png whose pixels have a wrong checksum": png_of().replace(PIXELS, PIXELS[:-1] + b"?"),
    "jpeg larger than its data": resized(GOOD_JPEG, 2000, 2000),
    "png with more pixels than it says": png_of(chunk(b"tEXt", b"a\0b")).replace(
        PIXELS, chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    ),
    "png with a zip behind": GOOD_PNG + b"PK\3\4" + bytes(1000),
    "jpeg with html behind": GOOD_JPEG + b"<script>alert(1)</script>",
    "apng": animated(20, "PNG"),
    "webp of 2000 small frames": animated(2000),
    "jpeg with a profile": jpeg_with(
        *[segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 20]) + bytes(9)) for n in range(20)]
    ),
    "jpeg with a table of the same bytes": jpeg_with(
        segment(0xE1, EXIF + struct.pack(">H", 5000)
                + b"".join(struct.pack(">HHII", n + 1000, 7, 50_000, 8) for n in range(5000)) + bytes(4))
    ),
}  # fmt: skip


def send(http, server, way, data):
    """The answer to a picture."""
    text = base64.b64encode(data).decode()
    if way == "native":
        return http.post("/v1/jobs", json={"model": server.labels, "pictures": [text]})
    if way == "png-info":
        return http.post("/sdapi/v1/png-info", json={"image": "data:image/png;base64," + text})
    path = f"/models/{server.labels}"
    if way == "json":
        return http.post(path, json={"inputs": text})
    if way == "form":
        return http.post(path, files={"image": ("a.png", data, "image/png")})
    return http.post(path, content=data, headers={"Content-Type": "image/png"})


def reason(way, answer):
    """What the protocol's own error says."""
    said = answer.json()
    if way == "native":
        assert set(said["error"]) == {"code", "what", "fix"}
        return said["error"]["what"]
    if way == "png-info":
        assert said["error"] in ("bad_request", "too_large")
        return said["detail"]
    assert set(said) == {"error", "error_type"}
    return said["error"]


def memory(server, field):
    """VmHWM, VmRSS of the front process, in bytes."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak(server):
    """The peak is what is resident now."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    return memory(server, "VmRSS")


def ended(http, job):
    until = time.monotonic() + 20
    while job["status"] in ("queued", "running") and time.monotonic() < until:
        time.sleep(0.02)
        job = http.get(job["links"]["self"]).json()
    return job


@pytest.fixture(scope="module")
def labels(server):
    """Of a good picture; the model is loaded then, and the server has seen a large body."""
    with server.client() as http:
        send(http, server, "native", SIGNATURE + bytes(6_000_000))
        return send(http, server, "raw", GOOD_PNG).json()


@pytest.fixture(autouse=True)
def unharmed(server, labels):
    """After each of these the server answers at once, and labels as before."""
    yield
    assert server.process.poll() is None
    with server.client() as http:
        start = time.monotonic()
        assert http.get("/healthz").json() == {"status": "ok"}
        assert time.monotonic() - start < AT_ONCE
        assert send(http, server, "raw", GOOD_PNG).json() == labels


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_header(http, server, name):
    data, why = REFUSED[name]
    for way in WAYS:
        before, start = forget_peak(server), time.monotonic()
        answer = send(http, server, way, data)
        took, grown = time.monotonic() - start, memory(server, "VmHWM") - before
        assert answer.status_code in (413, 422), (way, answer.text[:300])
        assert why in reason(way, answer), way
        assert took < AT_ONCE, way
        assert grown < LITTLE + 4 * len(data), way


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_behind_a_fine_header(http, server, name):
    data = DAMAGED[name]
    for way in ("raw", "json", "form"):
        start = time.monotonic()
        answer = send(http, server, way, data)
        assert time.monotonic() - start < AT_ONCE, way
        assert (answer.status_code, answer.json()["error_type"]) == (422, "bad_input"), (way, answer.text[:300])
        assert "decoded" in answer.json()["error"] or "read" in answer.json()["error"]
    answer = send(http, server, "native", data)
    assert answer.status_code == 202
    job = ended(http, answer.json())
    assert (job["status"], job["error"]["code"]) == ("failed", "bad_input")
    assert job["error"]["fix"]


@pytest.mark.parametrize("name", TAKEN)
def test_odd_but_fine(http, server, name):
    start = time.monotonic()
    answer = send(http, server, "raw", TAKEN[name])
    assert answer.status_code == 200, answer.text[:300]
    assert len(answer.json()) == 5
    assert time.monotonic() - start < AT_ONCE


def test_nothing_at_all(http, server):
    for way in WAYS:
        start = time.monotonic()
        answer = send(http, server, way, b"")
        assert answer.status_code == 422, (way, answer.text[:300])
        assert reason(way, answer)
        assert time.monotonic() - start < AT_ONCE


@pytest.mark.parametrize("good", [GOOD_PNG, GOOD_JPEG, GOOD_WEBP], ids=["png", "jpeg", "webp"])
def test_cut_anywhere(http, server, good):
    """Refused wherever something of the picture is missing; a PNG may lack its last chunk, which says nothing."""
    for end in sorted({1, 4, 8, 11, 12, 13, 20, 24, 30, 33, 40, 41, 50, *range(60, len(good), 1 + len(good) // 12)}):
        start = time.monotonic()
        answer = send(http, server, "raw", good[:end])
        assert time.monotonic() - start < AT_ONCE
        assert answer.status_code == 422 or (answer.status_code == 200 and end >= len(good) - 16), (end, answer.text)


def test_a_damaged_picture_fails_alone(http, server, labels):
    """Those that are labelled in the same call do not notice; of one request's pictures all fail, for it is one job."""

    def ask(data):
        with server.client() as own:
            return send(own, server, "raw", data)

    bad = [DAMAGED["png cut at half"], DAMAGED["jpeg cut at half"]]
    with ThreadPoolExecutor(14) as pool:
        answers = list(pool.map(ask, [GOOD_PNG] * 6 + bad + [GOOD_PNG] * 6))
    assert [answer.status_code for answer in answers] == [200] * 6 + [422] * 2 + [200] * 6
    for answer in answers[:6] + answers[8:]:
        assert [one["label"] for one in answer.json()] == [one["label"] for one in labels]
    texts = [base64.b64encode(data).decode() for data in (GOOD_PNG, bad[0])]
    job = http.post("/v1/jobs", json={"model": server.labels, "pictures": texts}).json()
    assert ended(http, job)["error"]["code"] == "bad_input"


def test_many_small_files_of_many_pixels(http, server):
    """A white picture of 32 million pixels is 100 kB: 200 of them would be 19 GB decoded."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 + 3 * 8000)) for _ in range(4000)) + packer.flush()
    large = SIGNATURE + header(8000, 4000) + chunk(b"IDAT", packed) + END
    text = base64.b64encode(large).decode()
    start = time.monotonic()
    answer = http.post("/v1/jobs", json={"model": server.labels, "pictures": [text] * 100})
    assert answer.status_code == 413, answer.text[:300]
    assert "8000x4000" in answer.json()["error"]["what"]
    assert time.monotonic() - start < AT_ONCE


def test_too_many_pictures(http, server):
    text = base64.b64encode(GOOD_PNG).decode()
    answer = http.post("/v1/jobs", json={"model": server.labels, "pictures": [text] * 257})
    assert answer.status_code == 422
    assert "257 pictures" in answer.json()["error"]["what"]


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:9/a.png", "HTTPS://example.org/a.png", "file:///etc/passwd", "/etc/passwd", "../../a.png",
     "data:text/html,<b>", "data:image/png;base64", "not base64 at all", "ÄÖÜ", "\u202e", "A", "===="],
)  # fmt: skip
def test_no_addresses_no_paths(http, server, address):
    asked = (
        ("native", http.post("/v1/jobs", json={"model": server.labels, "pictures": [address]})),
        ("json", http.post(f"/models/{server.labels}", json={"inputs": address})),
        ("png-info", http.post("/sdapi/v1/png-info", json={"image": address})),
    )
    for way, answer in asked:
        assert answer.status_code == 422, (way, answer.text[:300])
        assert "root:" not in reason(way, answer)


def test_png_info_reads_texts_and_unpacks_little(http, server):
    texts = [chunk(b"tEXt", b"parameters\0a fox"), chunk(b"zTXt", b"packed\0\0" + zlib.compress(b"b" * 1000))]
    texts.append(chunk(b"iTXt", b"other\0\0\0de\0\0" + "größer".encode()))
    assert texts_of(png_of(*texts)) == {"parameters": "a fox", "packed": "b" * 1000, "other": "größer"}
    said = send(http, server, "png-info", png_of(*texts)).json()
    assert (said["info"], said["items"]["other"]) == ("a fox", "größer")
    for name in ("png whose text unpacks to gigabytes", "png whose itxt unpacks to gigabytes"):
        before, start = forget_peak(server), time.monotonic()
        answer = send(http, server, "png-info", DAMAGED[name])
        assert answer.status_code == 413, answer.text[:300]
        assert "too much text" in answer.json()["detail"]
        assert time.monotonic() - start < AT_ONCE
        assert memory(server, "VmHWM") - before < LITTLE + 4 * len(DAMAGED[name])
    assert send(http, server, "png-info", png_of(chunk(b"zTXt", b"a\0\0noise"))).status_code == 422


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_sizes_are_those_that_pillow_reads(form, mode):
    able = {"PNG": ("RGB", "L", "RGBA", "1", "P", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "L", "RGBA")}
    if mode not in able[form]:
        pytest.skip(f"{form} has no {mode}")
    for size in ((1, 1), (3, 517), (640, 7)):
        for options in ({}, {"progressive": True}, {"lossless": True}, {"exif": EXIF + bytes(6)}):
            data = saved(form, size, mode, **options)
            assert size_of(data) == (*size, 1) == (*Image.open(io.BytesIO(data)).size, 1)
    assert size_of(animated(7, size=(9, 5))) == (9, 5, 7)


@pytest.mark.parametrize("good", [GOOD_PNG, GOOD_JPEG, GOOD_WEBP, animated(5)], ids=["png", "jpeg", "webp", "frames"])
def test_the_headers_reader_never_fails_otherwise(good):
    """5000 files with a few wrong bytes: either a size or one of two errors."""
    rng, outcomes = random.Random(1), set()
    for _ in range(5000):
        data = bytearray(good[: rng.choice((len(good), rng.randrange(len(good))))])
        for _ in range(rng.randrange(1, 8)):
            if data:
                data[rng.randrange(min(len(data), 200))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            checked(bytes(data), 64_000_000)
            texts_of(bytes(data))
            outcomes.add("taken")
        except (BadRequest, TooLarge) as exc:
            outcomes.add(exc.code)
    assert outcomes >= {"taken", "bad_request"}
