# SPDX-License-Identifier: Apache-2.0
"""Pictures of folders and tables: what is read, in which order, what is refused, what is drawn."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxneuro.data import PictureRows, Places, Processor, Subset, batches, counted_per_row, in_turns, read_pictures
from jaxneuro.errors import UserError

HALF = Processor(resize=(4, 4), resample="nearest", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def save(path, colour=(255, 0, 0), size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Six pictures of each of two groups, all different."""
    for k, name in enumerate(("cats", "dogs")):
        for i in range(6):
            save(tmp_path / "pictures" / name / f"{i}.png", (40 * i, 100 * k, 7))
    return tmp_path / "pictures"


def names(pictures):
    return {group: [f.name for f in files.files] for group, files in pictures.items()}


def test_a_sub_folder_is_a_group_and_order_is_by_name(folder):
    save(folder / "dogs" / "deep" / "z.JPG")
    save(folder / "dogs" / ".hidden" / "a.png")
    save(folder / "dogs" / "license-plate.png")
    (folder / "dogs" / "README.md").write_text("about")
    (folder / "dogs" / "Thumbs.db").write_text("litter")
    found = names(read_pictures(folder))
    assert list(found) == ["cats", "dogs"]
    assert found["cats"] == [f"cats/{i}.png" for i in range(6)]
    assert found["dogs"] == [*(f"dogs/{i}.png" for i in range(6)), "dogs/deep/z.JPG", "dogs/license-plate.png"]


def test_order_does_not_depend_on_the_file_system(folder, monkeypatch):
    before = names(read_pictures(folder, most_per_group=3, seed=5))
    real = os.scandir

    class Backwards(list):
        def __enter__(self):
            return iter(self)

        def __exit__(self, *_):
            pass

        def close(self):
            pass

        def __next__(self):
            return self.pop()

    monkeypatch.setattr(os, "scandir", lambda *a: Backwards(list(real(*a))[::-1]))
    monkeypatch.setattr(os, "listdir", lambda p, ls=os.listdir: ls(p)[::-1])
    assert names(read_pictures(folder, most_per_group=3, seed=5)) == before


def test_drawn_with_the_seed_over_the_whole_folder(folder):
    drawn = [names(read_pictures(folder, most_per_group=3, seed=s))["cats"] for s in range(20)]
    assert drawn[0] == names(read_pictures(folder, most_per_group=3, seed=0))["cats"]
    assert {name for some in drawn for name in some} == {f"cats/{i}.png" for i in range(6)}
    assert all(len(some) == 3 for some in drawn)
    assert read_pictures(folder, most_per_group=3).of_all == {"cats": 6, "dogs": 6}


def test_a_bad_file_is_no_picture_that_was_not_drawn(folder):
    (folder / "cats" / "z.png").write_bytes(b"none")
    found = read_pictures(folder, skip_bad=True)
    assert (found.of_all, found.bad) == ({"cats": 6, "dogs": 6}, {"cats": 1, "dogs": 0})
    note = found.skipped_note()
    assert "1 bad file was skipped" in note
    assert "no whole picture of a known kind" in note
    assert "skip_bad" not in note
    assert "Replace it" not in note


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "seen"),
    [
        ("RGB", (10, 200, 30), "png", (10, 200, 30)),
        ("L", 77, "png", (77, 77, 77)),
        ("I;16", 77 * 256 + 3, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("P", 0, "gif", (0, 0, 0)),
        ("RGBA", (255, 0, 0, 0), "png", (255, 255, 255)),
        ("LA", (0, 128), "png", (127, 127, 127)),
        ("CMYK", (0, 255, 255, 0), "tiff", (255, 0, 0)),
        ("RGB", (10, 200, 30), "webp", (10, 200, 30)),
        ("RGB", (10, 200, 30), "ppm", (10, 200, 30)),
        ("RGB", (10, 200, 30), "bmp", (10, 200, 30)),
    ],
)
def test_every_mode_comes_as_rgb(tmp_path, mode, colour, kind, seen):
    options = {"lossless": True} if kind == "webp" else {}
    save(tmp_path / f"a.{kind}", colour, mode=mode, **options)
    (picture,) = read_pictures(tmp_path, one_group=True)[tmp_path.name]
    assert picture.mode == "RGB"
    np.testing.assert_allclose(np.asarray(picture)[3, 3], seen, atol=1)


def test_cmyk_jpeg_is_no_negative(tmp_path):
    save(tmp_path / "a.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
    (picture,) = read_pictures(tmp_path, one_group=True)[tmp_path.name]
    np.testing.assert_allclose(np.asarray(picture)[3, 3], (255, 0, 0), atol=12)


def test_a_picture_stands_as_its_exif_says(tmp_path):
    a = np.zeros((2, 4, 3), np.uint8)
    a[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    Image.fromarray(a).save(tmp_path / "a.png", exif=exif)
    (picture,) = read_pictures(tmp_path, one_group=True)[tmp_path.name]
    np.testing.assert_array_equal(np.asarray(picture), np.rot90(a, -1))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, kind, row, columns, clear=b"", palette=b""):
    """A PNG of one row, as other programs write what Pillow does not: 16 bits beside transparency."""
    head = struct.pack(">IIBBBBB", columns, 1, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", head), (b"PLTE", palette), (b"tRNS", clear), (b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*p) for p in parts if p[1]) + chunk(b"IEND", b"")


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


GREY, WHITE = 77 * 257, (255, 255, 255)
DEEP = {
    "grey.png": (png(16, 0, words(0, GREY, GREY + 100, 65535), 4), [(0,) * 3, (77,) * 3, (77,) * 3, WHITE]),
    "grey, nearest.png": (png(16, 0, words(GREY - 100, GREY + 200), 2), [(77,) * 3, (78,) * 3]),
    "grey, clear.png": (png(16, 0, words(GREY, GREY + 1), 2, clear=words(GREY)), [WHITE, (77,) * 3]),
    "grey, alpha.png": (png(16, 4, words(GREY, 65535, 0, 0), 2), [(77,) * 3, WHITE]),
    "colours, clear.png": (png(16, 2, words(65535, 0, 0, 0, 65535, GREY), 2, clear=words(0, 65535, GREY)),
                           [(255, 0, 0), WHITE]),
    "colours, alpha.png": (png(16, 6, words(65535, 0, 0, 65535, 0, 0, 0, 0), 2), [(255, 0, 0), WHITE]),
    "eight, clear.png": (png(8, 2, bytes([9, 0, 0, 1, 2, 3]), 2, clear=words(1, 2, 3)), [(9, 0, 0), WHITE]),
    "palette, clear.png": (png(8, 3, b"\0\1", 2, b"\0\xff", b"\0\0\0\0\xff\0"), [WHITE, (0, 255, 0)]),
    "a.pgm": (b"P5\n2 1\n65535\n" + words(GREY, 65535), [(77,) * 3, WHITE]),
    "thousand.pgm": (b"P5\n2 1\n1000\n" + words(500, 1000), [(128,) * 3, WHITE]),
    "text.pgm": (b"P2\n2 1\n65535\n19789 65535\n", [(77,) * 3, WHITE]),
    "a.ppm": (b"P6\n1 1\n65535\n" + words(65535, GREY, 0), [(255, 77, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_and_transparency(tmp_path, name):
    """Scaled over the whole range, to the nearest; what is transparent is white."""
    (tmp_path / name).write_bytes(DEEP[name][0])
    (picture,) = read_pictures(tmp_path, one_group=True)[tmp_path.name]
    assert [tuple(p) for p in np.asarray(picture)[0].tolist()] == DEEP[name][1]


@pytest.mark.parametrize("values", [np.array([[1, 70000]], np.int32), np.array([[0.5, 1]], np.float32)])
def test_numbers_of_no_known_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a[.]tiff holds numbers of no known range"):
        read_pictures(tmp_path, one_group=True)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_several_frames_the_first_is_read_and_said(tmp_path, kind):
    first, second = (Image.new("RGB", (2, 2), colour) for colour in ("white", "black"))
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[second])
    second.save(tmp_path / f"b.{kind}")
    found = read_pictures(tmp_path, one_group=True)
    assert found.moving_note() == f"1 file holds several pictures, of which the first is read: a.{kind}"
    np.testing.assert_allclose(np.asarray(found[tmp_path.name][0]), 255, atol=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"most_per_group": 2.0}, "most_per_group = 2.0 is not a positive whole number"),
        ({"most_per_group": 0}, "most_per_group = 0 is not a positive whole number"),
        ({"most_per_group": True}, "most_per_group = true is not"),
        ({"most_per_group": "2"}, "most_per_group = '2' is not"),
        ({"most_per_group": float("nan")}, "most_per_group = nan is not"),
        ({"seed": -1}, "seed = -1 is not a whole number from 0"),
        ({"seed": 1.5}, "seed = 1.5 is not"),
        ({"path_field": 3}, "path_field = 3 is not"),
        ({"document_field": ["a"]}, "document_field = "),
    ],
)
def test_options_of_another_kind(folder, options, said):
    with pytest.raises(UserError, match=said):
        read_pictures(folder, **options)


def bomb():
    """A PNG of a few bytes that says 100,000 x 100,000."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "text.png": (b"no picture at all", "no whole picture"),
    "empty.jpg": (b"", "no whole picture"),
    "bomb.png": (bomb(), "89,478,485 pixels"),
    "notes.docx": (b"words", "no picture by its name"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no whole picture"),
}


@pytest.mark.parametrize("name", [*BAD, "cut.png", "cut.jpg", "gone.png", "pipe.png"])
def test_what_is_no_whole_picture_is_refused_or_counted(folder, name):
    path = folder / "cats" / name
    said = BAD.get(name, (b"", name))[1]
    if name.startswith("cut"):
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif name == "gone.png":
        path.symlink_to(folder / "nowhere.png")
    elif name == "pipe.png":
        os.mkfifo(path)
    else:
        path.write_bytes(BAD[name][0])
    with pytest.raises(UserError, match=said) as e:
        read_pictures(folder)
    assert name in str(e.value)
    found = read_pictures(folder, skip_bad=True)
    assert found.n_skipped == 1
    assert name in found.skipped_note()
    assert len(found["cats"]) == 6


def test_of_bad_ones_others_are_drawn(folder):
    for i in range(10):
        (folder / "cats" / f"bad{i}.png").write_bytes(b"?")
    found = read_pictures(folder, skip_bad=True, most_per_group=6)
    assert names(found)["cats"] == [f"cats/{i}.png" for i in range(6)]


def test_one_group(folder):
    assert names(read_pictures(folder / "cats", one_group=True)) == {"cats": [f"{i}.png" for i in range(6)]}
    assert names(read_pictures(folder / "cats" / "0.png", one_group=True)) == {"0": ["0.png"]}
    with pytest.raises(UserError, match="in no group"):
        read_pictures(folder / "cats")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda f: f / "gone", "no file or folder 'gone'"),
        (lambda f: (f / "birds").mkdir() or f, "no pictures in group 'birds'"),
        (lambda f: save(f / "loose.png") and f, "lies beside the sub-folders"),
        (lambda f: f / "cats" / "0.png", "no folder and no table"),
    ],
)
def test_what_is_no_folder_of_groups(folder, make, said):
    with pytest.raises(UserError, match=said):
        read_pictures(make(folder))


def test_a_table_says_groups_and_documents(folder):
    rows = [{"path": f"{g}/{i}.png", "group": i % 2, "document": i // 2} for g in ("cats", "dogs") for i in range(6)]
    table = folder / "table.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    found = read_pictures(table, document_field="document")
    assert names(found)["0"] == [f"{g}/{i}.png" for g in ("cats", "dogs") for i in (0, 2, 4)]
    blocks = PictureRows(found, HALF, Places((2, 2))).block
    assert blocks.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    (folder / "table.csv").write_text("file,kind\ncats/0.png,a\ncats/9.png,b\n,b\ndogs/1.png,b\n")
    with pytest.raises(UserError, match="path_field"):
        read_pictures(folder / "table.csv")
    with pytest.raises(UserError, match=r"table[.]csv, line 4: the field 'file' is empty"):
        read_pictures(folder / "table.csv", path_field="file", group_field="kind")
    found = read_pictures(folder / "table.csv", path_field="file", group_field="kind", skip_bad=True)
    assert names(found) == {"a": ["cats/0.png"], "b": ["dogs/1.png"]}
    assert found.n_skipped == 2
    (folder / "table.csv").write_text("path,group,of\ncats/0.png,a,1\n ,b,2\ncats/9.png,b,3\ndogs/1.png,b,\n")
    found = read_pictures(folder / "table.csv", document_field="of", skip_bad=True)
    assert (names(found), found.n_skipped) == ({"a": ["cats/0.png"], "b": ["dogs/1.png"]}, 2)
    (folder / "table.csv").write_text("path,group\ncats/9.png,b\ndogs/1.png,b\n")
    with pytest.raises(UserError, match=r"9[.]png"):
        read_pictures(folder / "table.csv")


def test_rows_are_what_the_processor_makes_and_fillers_are_empty(folder):
    rows = PictureRows(read_pictures(folder), HALF, Places((2, 2), first=1))
    want = HALF([Image.open(folder / g / f"{i}.png") for g in ("cats", "dogs") for i in range(6)])
    batch = rows.rows(np.arange(14))
    np.testing.assert_array_equal(batch["tokens"][:12], want)
    assert not batch["tokens"][12:].any()
    assert not batch["mask"][12:].any()
    assert batch["window"].tolist() == [*range(12), -1, -1]
    assert batch["counted"][0].tolist() == [False, True, True, True, True]
    assert rows.tokens_per_group.tolist() == [24, 24]
    np.testing.assert_array_equal(counted_per_row(rows), batch["counted"][:12].sum(1))
    np.testing.assert_array_equal(rows.shown(7), np.asarray(Image.open(folder / "dogs" / "1.png"))[:4, :4])
    several = list(batches(in_turns(Subset(rows, range(2, 11)), 0), batch_size=4))
    assert sorted(w for b in several for w in b["window"].tolist()) == [-1, -1, -1, *range(2, 11)]


def test_counting_reads_no_picture(folder, monkeypatch):
    rows = PictureRows(read_pictures(folder), HALF, Places((2, 2)))
    monkeypatch.setattr(PictureRows, "_pixels", lambda *_: pytest.fail("decoded"))
    assert counted_per_row(Subset(rows, [3, 5])).tolist() == [4, 4]


def test_one_content_is_one_block(folder):
    (folder / "cats" / "copy.png").write_bytes((folder / "cats" / "2.png").read_bytes())
    rows = PictureRows(read_pictures(folder), HALF, Places((2, 2)))
    at = [f.name for f in rows.files]
    assert rows.block[at.index("cats/copy.png")] == rows.block[at.index("cats/2.png")]
    assert len(np.unique(rows.block)) == 12


def test_fingerprints_are_of_contents(folder):
    def now(processor=HALF, **options):
        return PictureRows(read_pictures(folder, **options), processor, Places((2, 2))).fingerprint

    before = now()
    os.rename(folder / "cats" / "0.png", folder / "cats" / "00.png")
    assert now() == before
    assert now(most_per_group=5) != before
    assert now(Processor(resize=(4, 4))) != before
    save(folder / "cats" / "00.png", (1, 2, 3))
    assert now() != before


def test_a_picture_that_changed_is_refused(folder):
    rows = PictureRows(read_pictures(folder), HALF, Places((2, 2)))
    save(folder / "cats" / "3.png", (9, 9, 9), size=(16, 16))
    with pytest.raises(UserError, match="changed while it was in use"):
        rows.rows([3])


def test_pictures_of_two_sizes_need_a_crop(tmp_path):
    save(tmp_path / "a.png", size=(8, 8))
    save(tmp_path / "b.png", size=(8, 16))
    rows = PictureRows(read_pictures(tmp_path, one_group=True), Processor(resize=4), Places((2, 2)))
    with pytest.raises(UserError, match="one size"):
        rows.rows([0, 1])
