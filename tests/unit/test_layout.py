"""Where files go, and that no name leads anywhere else."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ncr_worker.errors import ConfigError, Rejected
from ncr_worker.pipelines.deliver.layout import Layout, Placement, glob_to_regex, load_layout
from ncr_worker.pipelines.deliver.model import DeliverArgs, Delivery, Item, with_names
from ncr_worker.settings import Settings

LAYOUT = load_layout(Settings())
RUN = "0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"


def place(*names: str, layout: Layout = LAYOUT) -> Placement:
    return layout.place("J1", "CH-7", [f"J1/CH-7/{name}" for name in names])


def refusal(*names: str, layout: Layout = LAYOUT) -> Rejected:
    with pytest.raises(Rejected) as caught:
        place(*names, layout=layout)
    return caught.value


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("GLB_files/whatever.glb", "CH-7/CH-7.glb"),
        ("glb_files/Whatever.GLB", "CH-7/CH-7.glb"),
        ("Materials/Oak.glb", "CH-7/materials/Oak.glb"),
        ("Materials/oak.png", "CH-7/materials/oak.png"),
        ("Materials/deep/oak.png", "CH-7/materials/oak.png"),
        ("sources/maps/oak.exr", "CH-7/sources/oak.exr"),
        ("chair.blend", "CH-7/sources/CH-7.blend"),
        ("work/old/chair.blend", "CH-7/sources/CH-7.blend"),
        ("Docs/Sheet.pdf", "CH-7/docs/Sheet.pdf"),
        ("a/B/c.txt", "CH-7/b/c.txt"),
        ("readme.txt", "CH-7/readme.txt"),
        ("GLB_files/deeper/x.glb", "CH-7/deeper/x.glb"),
    ],
)
def test_the_default_layout(name: str, target: str) -> None:
    placement = place(name)
    assert placement.folder == "CH-7"
    assert placement.files == ((f"J1/CH-7/{name}", target),)


@pytest.mark.parametrize("name", ["source_1.jpg", "photos/source_front.AVIF", "Materials/source_x.png"])
def test_source_photos_are_left_out(name: str) -> None:
    placement = place(name, "readme.txt")
    assert placement.left_out == (f"J1/CH-7/{name}",)
    assert len(placement.files) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("GLB_files/a.glb", "GLB_files/b.glb"),
        ("Docs/a.txt", "docs/a.txt"),
        ("docs/A.txt", "docs/a.txt"),
        ("docs/caf\u00e9.txt", "docs/cafe\u0301.txt"),
        ("docs/stra\u00dfe.txt", "docs/strasse.txt"),
    ],
)
def test_two_keys_for_one_target_are_both_named(one: str, other: str) -> None:
    error = refusal(one, other)
    assert error.code == "layout_collision"
    assert f"J1/CH-7/{one}" in str(error)
    assert f"J1/CH-7/{other}" in str(error)


def test_a_file_cannot_also_be_a_folder() -> None:
    for names in (("docs", "x/docs/a.txt"), ("x/docs/a.txt", "docs")):
        assert refusal(*names).code == "layout_collision"


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "a\\b", "nul\0", "tab\t", "new\nline", "x" * 256,
     "\u00e9" * 128, "rtl\u202egpj.exe", "iso\u2066x", "lone\ud800", "line\u2028sep", "/".join(["d" * 200] * 6), ""],
)  # fmt: skip
def test_hostile_names_are_refused(name: str) -> None:
    assert refusal(f"docs/{name}").code == "layout_unsafe_name"


@pytest.mark.parametrize("sku", ["..", "a/b", "", "x\0", "."])
def test_hostile_skus_are_refused(sku: str) -> None:
    with pytest.raises(Rejected) as caught:
        LAYOUT.place("J1", sku, [f"J1/{sku}/a.txt"])
    assert caught.value.code == "layout_unsafe_name"


def test_a_key_of_another_job_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        LAYOUT.place("J1", "CH-7", ["J2/CH-7/a.txt"])
    assert caught.value.code == "layout_no_rule"


def test_a_job_of_which_all_is_left_out_is_refused() -> None:
    assert refusal("source_1.jpg").code == "layout_empty"


def write(folder: Path, text: str) -> Settings:
    path = folder / "layout.toml"
    path.write_text(text)
    return Settings(layout_file=str(path))


def test_own_rules(tmp_path: Path) -> None:
    text = """
        prefix = "{job_id}/{sku}/"
        folder = "vendor/{sku}"
        [[rules]]
        regex = '(?P<view>front|back)_(?P<size>\\d+)\\.png'
        target = "vendor/{sku}/{view}/{size}.{ext}"
        """
    layout = load_layout(write(tmp_path, text))
    assert place("front_20.png", layout=layout).files == (("J1/CH-7/front_20.png", "vendor/CH-7/front/20.png"),)
    assert place("front_20.png", layout=layout).folder == "vendor/CH-7"
    assert refusal("other.png", layout=layout).code == "layout_no_rule"


@pytest.mark.parametrize(
    "text",
    [
        "folder = 1",
        'folder = "{sku}"\nrules = []',
        'folder = "{file}"\n[[rules]]\nmatch = "**"',
        'folder = "{sku}"\n[[rules]]\nmatch = "**"\nregex = ".*"',
        'folder = "{sku}"\n[[rules]]\nregex = "("',
        'folder = "{sku}"\n[[rules]]\nmatch = "**"\ntarget = "{nobody}"',
        'folder = "{sku}"\n[[rules]]\nmatch = "**"\ntarget = "{sku.__class__}"',
        'folder = "{sku}"\n[[rules]]\nmatch = "**"\ntarget = "{sku!r}"',
        "no toml",
    ],
)
def test_wrong_rules_name_the_setting(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="LAYOUT_FILE"):
        load_layout(write(tmp_path, text))


def test_a_target_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    layout = load_layout(write(tmp_path, 'folder = "{sku}"\n[[rules]]\nmatch = "**"\ntarget = "other/{file}"'))
    with pytest.raises(Rejected) as caught:
        layout.place("J1", "CH-7", ["a.txt"])
    assert caught.value.code == "layout_unsafe_name"


@pytest.mark.parametrize("glob", ["a{", "}", "a{b", "[x]", "a.b", "(", "{a,b", "{}", "\\"])
def test_what_is_no_glob_stands_for_itself_or_is_harmless(glob: str) -> None:
    assert re.compile(glob_to_regex(glob))


HOSTILE = ["..", ".", "", "/", "\\", "\0", "\u202e", "\ud800", "a" * 256, "A", "a", "\u00e9", "e\u0301", "x.glb", "ß"]


UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def outcome(names: list[str], sku: str) -> Placement | Rejected:
    try:
        return LAYOUT.place("J1", sku, [f"J1/{sku}/{name}" for name in names])
    except Rejected as error:
        return error


def harmless(names: list[str], sku: str) -> bool:
    """Asserts that the layout refuses with a message that can be logged, or stays inside; whether it stayed."""
    placement = outcome(names, sku)
    if isinstance(placement, Rejected):
        assert placement.code.startswith("layout_")
        assert str(placement).encode()
        return False
    targets = [target for _, target in placement.files]
    assert placement.folder == sku
    for target in targets:
        assert posixpath.normpath(target) == target
        assert target.startswith(f"{sku}/")
        assert "\\" not in target
        assert not any(unicodedata.category(letter) in UNPRINTABLE for letter in target)
        assert not any(unicodedata.bidirectional(letter) in TURNING for letter in target)
        assert max(len(part.encode()) for part in target.split("/")) <= 255
    assert len({unicodedata.normalize("NFC", target).casefold() for target in targets}) == len(targets)
    stays_inside(placement)
    return True


def stays_inside(placement: Placement) -> None:
    """What the stages make of it: no path leaves the job's folder, nor the staging folder on the server."""
    items = tuple(Item(key=key, target=target, size=1, etag="e") for key, target in placement.files)
    args = DeliverArgs(job_id="J1", username="ann", campaign="spring")
    parcel = with_names(Delivery(args=args, folder=placement.folder, items=items), RUN)
    for hidden in (parcel.staging, parcel.backup):
        assert posixpath.dirname(hidden) == posixpath.dirname(placement.folder)
        assert len(posixpath.basename(hidden).encode()) <= 255
    for path in parcel.manifest:
        assert posixpath.normpath(posixpath.join(parcel.staging, path)).startswith(f"{parcel.staging}/")
    assert all(re.fullmatch("[0-9a-f]{32}", item.local_name) for item in items)
    assert len({item.local_name for item in items}) == len(items)


HARMLESS = ("docs", "Materials", "GLB_files", "b.png", "c.blend", "source_d.jpg", "ok.txt")
PARTS = (*HARMLESS * 6, *HOSTILE)
SKUS = ("CH-7",) * 18 + ("s" * 250,) * 2 + tuple(HOSTILE)


def spelled(code: bytes) -> list[str]:
    """Names of any number of parts: a byte is a usual or hostile part, a character of any script, or begins a name.

    Each example is drawn as one string of bytes: to draw ten thousand times letter by letter takes a minute.
    """
    names: list[list[str]] = [[]]
    letters = iter(code)
    for byte in letters:
        if byte < 160:
            names[-1].append(PARTS[byte % len(PARTS)])
        elif byte < 184:
            number = int.from_bytes([byte % 17, next(letters, 0), next(letters, 0)])
            character = chr(number if byte < 172 else number % 256)
            names[-1] = [*names[-1][:-1], "".join(names[-1][-1:]) + character]
        else:
            names.append([])
    return ["/".join(parts) for parts in names if parts]


def test_no_hostile_name_leaves_the_target_folder() -> None:
    stayed = {True: 0, False: 0}

    @settings(max_examples=10_000, deadline=None)
    @given(st.binary(min_size=1, max_size=16), st.sampled_from(SKUS))
    def check(code: bytes, sku: str) -> None:
        stayed[harmless(spelled(code), sku)] += 1

    check()
    assert min(stayed.values()) > 500  # both ways were gone often
