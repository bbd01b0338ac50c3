"""Generated from nbs/0_start/02a_assets.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import contextlib
import hashlib
import importlib.util
import io
import os
import pytest
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from unittest import mock
from vlp_course.data.assets import (
    ASSETS,
    Asset,
    AssetError,
    CORE,
    _announce,
    _archive,
    _asset,
    _complaint,
    _digest,
    _download,
    atomic,
    cache_dir,
    checksums,
    extract,
    fetch,
    members,
    read,
)


@pytest.fixture(scope="module")
def setup_589a4604():
    def write_zip(path: Path, **files: str) -> bytes:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(name), text)  # ZipInfo: a fixed date, so the same bytes each time
        return path.read_bytes()

    @contextmanager
    def shelf(offline="0"):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in ("cache", "mine"):
                (root / name).mkdir()
            data = write_zip(root / "tiny-1.0-py3-none-any.whl", cat="meow" * 50, dog="woof" * 50)
            pin = Asset(
                "tiny",
                "tiny==1.0",
                "tiny-1.0-py3-none-any.whl",
                hashlib.sha256(data).hexdigest(),
                len(data) / 1e6,
                "none",
                "tests",
            )
            where = {"VLP_CACHE": str(root / "cache"), "VLP_ASSETS": str(root / "mine"), "VLP_OFFLINE": offline}
            with mock.patch.dict(os.environ, where), mock.patch.dict(ASSETS, {"tiny": pin}):
                yield root, pin, data

    def fake_pip(content: bytes, file: str = "tiny-1.0-py3-none-any.whl", code: int = 0, stderr: str = ""):
        "Stands in for subprocess.run: writes `content` where pip would, and notes the command."

        def run(command, **_):
            run.commands.append(command)
            run.pins.append(Path(command[command.index("--requirement") + 1]).read_text())
            if code == 0:
                (Path(command[command.index("--dest") + 1]) / file).write_bytes(content)
            return subprocess.CompletedProcess(command, code, "", stderr)

        run.commands, run.pins = [], []
        return mock.patch.object(subprocess, "run", run), run.commands

    def message(action) -> str:
        "The text of the AssetError that `action` raises; one line."
        try:
            action()
        except AssetError as error:
            assert "\n" not in str(error), error
            return str(error)
        raise AssertionError("no AssetError")

    return fake_pip, message, shelf


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "fec304f3")
def test_pins_are_complete():
    assert len(ASSETS) == 13 and CORE == (
        "emoji-pictures",
        "openmoji",
        "emoji-names",
        "emoji-keywords",
        "emoji-classes",
        "vision-weights",
        "text-weights",
    )
    for name, asset in ASSETS.items():
        assert asset.name == name and asset.licence and asset.use
        assert len(asset.sha256) == 64 and int(asset.sha256, 16) > 0
        package, version = asset.spec.split("==")
        # a file named for another package or version would be a slip in the list
        assert asset.file.lower().replace("_", "-").startswith(f"{package.lower().replace('_', '-')}-{version}")
        assert asset.source == (not asset.file.endswith(".whl"))
    assert len({asset.sha256 for asset in ASSETS.values()}) == 13


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "0ce7ef30")
def test_core_stays_light():
    assert sum(ASSETS[name].mb for name in CORE) < 210
    assert all(asset.mb < 100 for asset in ASSETS.values())


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "4712c960")
def test_cache_folder_follows_the_variable():
    with mock.patch.dict(os.environ, {"VLP_CACHE": "/data/vlp"}):
        assert cache_dir() == Path("/data/vlp")
    with mock.patch.dict(os.environ, {"VLP_CACHE": "", "XDG_CACHE_HOME": "/home/ann/.cache"}):
        assert cache_dir() == Path("/home/ann/.cache/vlp_course")


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "76e86c96")
def test_unknown_name_lists_the_known():
    try:
        _asset("text-wieghts")
    except AssetError as error:
        assert str(error).startswith("unknown asset 'text-wieghts'; known: emoji-pictures, openmoji, ")
        assert "\n" not in str(error)
    else:
        raise AssertionError("no error")


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "722bffb9")
def test_hash_of_abc():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "abc"
        path.write_bytes(b"abc")  # the example of the standard itself (FIPS 180-4)
        assert _digest(path, 0, 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "e7291a68")
def test_a_file_is_hashed_once_until_it_changes(setup_589a4604):
    _, _, shelf = setup_589a4604
    with shelf() as (root, pin, data), mock.patch.object(hashlib, "file_digest", wraps=hashlib.file_digest) as count:
        path = root / "mine" / pin.file
        path.write_bytes(data)
        assert [_complaint(pin, path) for _ in range(5)] == [""] * 5 and count.call_count == 1
        path.write_bytes(data[:-1])
        problem = _complaint(pin, path)
        assert count.call_count == 2
        assert pin.sha256[:12] in problem and "NOT used" in problem and str(path) in problem


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "36836c4f")
def test_long_work_speaks_and_short_work_is_silent():
    spoken = io.StringIO()
    with contextlib.redirect_stderr(spoken):
        with _announce("short work", after=5.0):
            pass
        with _announce("long work (3 MB)", after=0.01):
            threading.Event().wait(0.3)
    assert spoken.getvalue() == "long work (3 MB) ...\n"


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "4931f16b")
def test_a_target_appears_whole_or_not_at_all():
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "deep" / "weights.bin"
        with contextlib.suppress(ConnectionError):
            with atomic(target) as part:
                part.write_bytes(b"half")
                raise ConnectionError
        assert list(target.parent.iterdir()) == []  # neither target nor litter
        with atomic(target) as part:
            part.write_bytes(b"whole")
            assert not target.exists()
        assert target.read_bytes() == b"whole" and len(list(target.parent.iterdir())) == 1


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "b05e6961")
def test_an_unwritable_cache_is_said_in_one_line(setup_589a4604):
    _, message, _ = setup_589a4604
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_text("I am not a folder")

        def write():
            with atomic(Path(folder) / "file" / "weights.bin"):
                pass

        assert "VLP_CACHE" in message(write) and "cannot write" in message(write)


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "a5fd51d7")
def test_pip_is_asked_for_one_pinned_file(setup_589a4604):
    fake_pip, _, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        patch, commands = fake_pip(data)
        with patch as pip:
            path = _download(pin, root / "cache" / pin.file)
        assert path.read_bytes() == data and path == root / "cache" / pin.file
        assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
        assert pip.pins == [f"tiny==1.0 --hash=sha256:{pin.sha256}\n"]
        assert {"--no-deps", "--only-binary"} <= set(commands[0]) and len(commands) == 1
        assert [p.name for p in path.parent.iterdir()] == [pin.file]


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "4cc9c76c")
def test_a_failing_pip_names_size_and_way_out(setup_589a4604):
    fake_pip, message, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        patch, _ = fake_pip(
            b"", code=1, stderr="WARNING: retrying\nERROR: No matching distribution found for tiny==1.0\n"
        )
        with patch:
            text = message(lambda: _download(pin, root / "cache" / pin.file))
    assert "tiny==1.0" in text and "MB" in text and "No matching distribution" in text and "VLP_ASSETS" in text


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "912507ad")
def test_without_pip_the_message_says_how_to_get_it(setup_589a4604):
    _, message, shelf = setup_589a4604
    with shelf() as (root, pin, data), mock.patch.object(importlib.util, "find_spec", return_value=None):
        text = message(lambda: _download(pin, root / "cache" / pin.file))
    assert "no pip" in text and "uv pip install pip" in text and "VLP_ASSETS" in text


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "adabde0b")
def test_cache_first_then_your_folder_then_pip(setup_589a4604):
    fake_pip, _, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        (root / "mine" / pin.file).write_bytes(data)
        patch, commands = fake_pip(data)
        with patch:
            assert fetch("tiny").parent == root / "mine"  # used where it lies, not copied
            (root / "mine" / pin.file).unlink()
            assert fetch("tiny").parent == root / "cache" / "assets" and len(commands) == 1
            assert fetch("tiny").parent == root / "cache" / "assets" and len(commands) == 1


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "9fa8c611")
def test_offline_never_calls_pip(setup_589a4604):
    fake_pip, message, shelf = setup_589a4604
    with shelf(offline="1") as (root, pin, data):
        patch, commands = fake_pip(data)
        with patch:
            text = message(lambda: fetch("tiny"))
        assert commands == [] and "VLP_OFFLINE=1" in text and "MB" in text and "VLP_ASSETS" in text
        (root / "mine" / pin.file).write_bytes(data)
        assert fetch("tiny").read_bytes() == data


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "e0439b1f")
def test_a_torn_file_in_the_cache_is_replaced_and_kept_aside(setup_589a4604):
    fake_pip, _, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        path = root / "cache" / "assets" / pin.file
        path.parent.mkdir()
        path.write_bytes(data[: len(data) // 2])
        patch, commands = fake_pip(data)
        with patch, contextlib.redirect_stderr(io.StringIO()) as spoken:
            assert fetch("tiny").read_bytes() == data and len(commands) == 1
        assert (path.parent / (pin.file + ".bad")).read_bytes() == data[: len(data) // 2]
        assert "NOT used" in spoken.getvalue() and spoken.getvalue().count("\n") == 1


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "3f60fffe")
def test_one_changed_byte_is_refused(setup_589a4604):
    fake_pip, message, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        changed = bytearray(data)
        changed[40] ^= 1
        (root / "mine" / pin.file).write_bytes(changed)
        text = message(lambda: fetch("tiny"))
        assert "NOT used" in text and str(root / "mine" / pin.file) in text and "replace it" in text
        assert pin.sha256[:12] in text and hashlib.sha256(changed).hexdigest()[:12] in text
        (root / "mine" / pin.file).unlink()
        patch, _ = fake_pip(bytes(changed))  # and the same if it comes over the network
        with patch:
            assert "NOT used" in message(lambda: fetch("tiny"))
        assert list((root / "cache" / "assets").iterdir()) == []


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "94c2fab7")
def test_members_and_bytes_come_from_inside(setup_589a4604):
    _, message, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        (root / "mine" / pin.file).write_bytes(data)
        assert members("tiny") == ["cat", "dog"] and members("tiny", prefix="d") == members("tiny", suffix="og") == [
            "dog"
        ]
        assert read("tiny", "dog") == b"woof" * 50
        assert checksums("tiny") == {"cat": zlib.crc32(b"meow" * 50), "dog": zlib.crc32(b"woof" * 50)}
        text = message(lambda: read("tiny", "bird"))
        assert "no member 'bird'" in text and pin.file in text and "members('tiny')" in text


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "c104dd00")
def test_a_damaged_member_is_named(setup_589a4604):
    _, message, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        bent = bytearray(data)
        bent[data.index(b"dog") + 5] ^= 255  # inside the packed bytes of `dog`
        (root / "mine" / pin.file).write_bytes(bent)
        with mock.patch.dict(ASSETS, {"tiny": Asset(**{**vars(pin), "sha256": hashlib.sha256(bent).hexdigest()})}):
            assert read("tiny", "cat") == b"meow" * 50
            assert message(lambda: read("tiny", "dog")).startswith("dog in tiny is damaged")


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "875761b0")
def test_an_extracted_file_heals(setup_589a4604):
    _, _, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        (root / "mine" / pin.file).write_bytes(data)
        path = extract("tiny", "cat")
        made = path.stat().st_mtime_ns
        assert path.read_bytes() == b"meow" * 50 and root / "cache" in path.parents
        assert extract("tiny", "cat").stat().st_mtime_ns == made  # the second call makes nothing
        path.write_bytes(b"mreow" * 50)
        assert extract("tiny", "cat").read_bytes() == b"meow" * 50


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "a38bfc03")
def test_two_processes_do_not_share_a_file_position(setup_589a4604):
    _, _, shelf = setup_589a4604
    with shelf() as (root, pin, data):
        (root / "mine" / pin.file).write_bytes(data)
        here = _archive("tiny")
        assert _archive("tiny") is here
        with mock.patch.object(os, "getpid", return_value=-1):  # as in a forked data-loading worker
            assert _archive("tiny") is not here


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "96777f50")
def test_a_real_core_asset_is_what_its_pin_says():
    path = fetch("emoji-keywords")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == ASSETS["emoji-keywords"].sha256
    assert "em/emojis.json" in members("emoji-keywords")


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "c63ba76e")
def test_bad_files(setup_589a4604):
    _, _, shelf = setup_589a4604

    def bad_files(folder: Path) -> list[str]:
        there = [asset for asset in ASSETS.values() if (folder / asset.file).exists()]
        return sorted(asset.file for asset in there if _complaint(asset, folder / asset.file))

    with shelf() as (root, pin, data):
        (root / "mine" / pin.file).write_bytes(data)
        (root / "mine" / "notes.txt").write_text("not an asset")
        assert bad_files(root / "mine") == []
        (root / "mine" / pin.file).write_bytes(data + b" ")
        assert bad_files(root / "mine") == [pin.file]


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "c63ba76e")
def test_bad_files_starter_fails(setup_589a4604):
    _, _, shelf = setup_589a4604

    def bad_files(folder: Path) -> list[str]:
        return []  # compare each file that is there with its pin

    with pytest.raises(Exception):
        with shelf() as (root, pin, data):
            (root / "mine" / pin.file).write_bytes(data)
            (root / "mine" / "notes.txt").write_text("not an asset")
            assert bad_files(root / "mine") == []
            (root / "mine" / pin.file).write_bytes(data + b" ")
            assert bad_files(root / "mine") == [pin.file]


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "fabaab1e")
def test_folder_hash():
    def folder_hash(folder: Path) -> str:
        total = hashlib.sha256()
        for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
            if path.is_file():  # name and content go in as two hashes of fixed length, so that no border can move
                total.update(hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
                total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def made(files: dict[str, str], order) -> str:
        with tempfile.TemporaryDirectory() as folder:
            for name in order:
                path = Path(folder) / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(files[name])
            return folder_hash(Path(folder))

    files = {"a.txt": "one", "b/c.txt": "two", "d.txt": "three"}
    base = made(files, files)
    assert base == made(files, reversed(files)) and len(base) == 64
    assert base != made({"a.txt": "onet", "b/c.txt": "wo", "d.txt": "three"}, files)  # the border moved
    renamed = {"a.txt": "one", "b/e.txt": "two", "d.txt": "three"}
    assert base != made(renamed, renamed)


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "fabaab1e")
def test_folder_hash_starter_fails():
    def folder_hash(folder: Path) -> str:
        total = hashlib.sha256()
        for path in folder.rglob("*"):
            if path.is_file():
                total.update(path.read_bytes())  # what is missing?
        return total.hexdigest()

    with pytest.raises(Exception):

        def made(files: dict[str, str], order) -> str:
            with tempfile.TemporaryDirectory() as folder:
                for name in order:
                    path = Path(folder) / name
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(files[name])
                return folder_hash(Path(folder))

        files = {"a.txt": "one", "b/c.txt": "two", "d.txt": "three"}
        base = made(files, files)
        assert base == made(files, reversed(files)) and len(base) == 64
        assert base != made({"a.txt": "onet", "b/c.txt": "wo", "d.txt": "three"}, files)  # the border moved
        renamed = {"a.txt": "one", "b/e.txt": "two", "d.txt": "three"}
        assert base != made(renamed, renamed)


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "1e9b8e8c")
def test_fetch_all(setup_589a4604):
    _, message, shelf = setup_589a4604

    def fetch_all(names) -> list[Path]:
        paths, problems = [], []
        for name in names:
            try:
                paths.append(fetch(name))
            except AssetError as error:
                problems.append(str(error))
        if problems:
            raise AssetError(" | ".join(problems))
        return paths

    with shelf(offline="1") as (root, pin, data):
        (root / "mine" / pin.file).write_bytes(data)
        assert fetch_all(["tiny"]) == [root / "mine" / pin.file]
        text = message(lambda: fetch_all(["dragons", "tiny", "unicorns"]))
        assert "'dragons'" in text and "'unicorns'" in text and text.count(" | ") == 1


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "1e9b8e8c")
def test_fetch_all_starter_fails(setup_589a4604):
    _, message, shelf = setup_589a4604

    def fetch_all(names) -> list[Path]:
        return [fetch(name) for name in names]

    with pytest.raises(Exception):
        with shelf(offline="1") as (root, pin, data):
            (root / "mine" / pin.file).write_bytes(data)
            assert fetch_all(["tiny"]) == [root / "mine" / pin.file]
            text = message(lambda: fetch_all(["dragons", "tiny", "unicorns"]))
            assert "'dragons'" in text and "'unicorns'" in text and text.count(" | ") == 1


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "655c85ea")
def test_forge_crc():
    def forge_crc(data: bytes, wanted: int) -> bytes:
        base = zlib.crc32(data + bytes(4))
        rows = [(zlib.crc32(data + (1 << k).to_bytes(4, "little")) ^ base, 1 << k) for k in range(32)]
        rest, tail = wanted ^ base, 0
        for bit in range(32):  # Gaussian elimination; adding is XOR
            effect, chosen = rows.pop(next(i for i, (effect, _) in enumerate(rows) if effect >> bit & 1))
            rows = [(e ^ effect, c ^ chosen) if e >> bit & 1 else (e, c) for e, c in rows]
            if rest >> bit & 1:
                rest, tail = rest ^ effect, tail ^ chosen
        return tail.to_bytes(4, "little")

    honest = b"caption: a cat on the left of a dog."
    lie = b"caption: a dog on the left of a cat."[:-4]
    forged = lie + forge_crc(lie, zlib.crc32(honest))
    assert len(forged) == len(honest) and forged != honest
    assert zlib.crc32(forged) == zlib.crc32(honest)
    assert hashlib.sha256(forged).digest() != hashlib.sha256(honest).digest()


@pytest.mark.nb("nbs/0_start/02a_assets.ipynb", "655c85ea")
def test_forge_crc_starter_fails():
    def forge_crc(data: bytes, wanted: int) -> bytes:
        base = zlib.crc32(data + bytes(4))
        effect = [zlib.crc32(data + (1 << k).to_bytes(4, "little")) ^ base for k in range(32)]
        return bytes(4)  # choose the bits k whose effects add up (XOR) to wanted ^ base

    with pytest.raises(Exception):
        honest = b"caption: a cat on the left of a dog."
        lie = b"caption: a dog on the left of a cat."[:-4]
        forged = lie + forge_crc(lie, zlib.crc32(honest))
        assert len(forged) == len(honest) and forged != honest
        assert zlib.crc32(forged) == zlib.crc32(honest)
        assert hashlib.sha256(forged).digest() != hashlib.sha256(honest).digest()
