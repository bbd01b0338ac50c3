"""Generated from nbs/6_lab/29b_course.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import base64
import io
import json
import numpy as np
import pytest
import queue
import tempfile
import torch
from PIL import Image
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from inspect import unwrap
from pathlib import Path
from torch import nn
from tqdm import tqdm
from types import SimpleNamespace
from unittest.mock import patch
from vlp_course import lab
from vlp_course.data import assets
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import course_vocabulary
from vlp_course.lab import found_pictures
from vlp_course.models.clip import CLIP
from vlp_course.models.controls import BagOfWords
from vlp_course.models.controls import PixelEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.course import (
    BOARD,
    GLANCE,
    NOTE,
    SHOWN,
    TUNED,
    beside,
    fill_board,
    glance,
    live_rows,
    page_of,
    picture_tag,
    run,
    train_rows,
)


@pytest.fixture(scope="module")
def setup_8dd9b54f():
    def made_up(name, seed=7, value=0.5, without=()):
        """A result as lab.run_row returns it, with invented numbers."""
        metrics = {c: value for c in BOARD.values() if c not in without}
        return {
            "row": name,
            "seed": seed,
            "budget": "quick",
            "cpu_s": 61.0,
            "metrics": metrics,
            "samples": [[0, 1, 2, 3, 4]] * 6,
        }

    def pretended(name, budget, seed, out, progress, watch, score=True):
        """Stands in for lab.run_row: ticks once a step, trains nothing."""
        for _ in range(lab.row_of(name).quick):
            watch()
        return made_up(name, seed) | {"out": out, "budget": budget} | ({} if score else {"metrics": {}, "samples": []})

    def glanced(name, out):
        """Stands in for glance."""
        return {"metrics": {"seen/r1": len(name) / 100}, "samples": [[len(str(out))]]}

    class Threads(ThreadPoolExecutor):
        """Threads where train_rows asks for processes."""

        def __init__(self, workers, context, start, args):
            super().__init__(workers, initializer=start, initargs=args)

    return Threads, glanced, made_up, pretended


@pytest.fixture(scope="module")
def setup_2b56c917():
    class Strict(HTMLParser):
        """Collects tags and text, and raises where a closing tag does not match."""

        void = {"meta", "img"}

        def __init__(self):
            super().__init__(convert_charrefs=True)
            self.open, self.found, self.text = [], [], []

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, dict(attrs)))
            if tag not in self.void:
                self.open.append(tag)

        def handle_endtag(self, tag):
            if not self.open or self.open.pop() != tag:
                raise ValueError(f"</{tag}> closes nothing")

        def handle_data(self, data):
            self.text.append(data)

    def parsed(page):
        """The parsed page; raises for one whose tags do not nest."""
        parser = Strict()
        parser.feed(page), parser.close()
        if parser.open:
            raise ValueError(f"never closed: {parser.open}")
        return parser

    def tiny_clip(seed=0, dim=16):
        """A random CLIP of width 16 that reads pixels."""
        torch.manual_seed(seed)
        vocabulary = course_vocabulary()
        return CLIP(PixelEncoder(dim, 2, 1), BagOfWords(nn.Embedding(len(vocabulary), dim)), vocabulary, dim).eval()

    class Oracle(nn.Module):
        """Reads the answer from the scene's number: every caption finds its own picture. Needs distinct captions."""

        def __init__(self, captions):
            super().__init__()
            self.captions, self.weight = captions, nn.Parameter(torch.zeros(1))

        def encode_image(self, batch):
            return self.encode([self.captions.index(c) for c in batch.caption])

        def encode_text(self, text):
            return self.encode([int(i) for i in text.ids[:, 0]])

        def tokenize(self, texts):
            return type(course_vocabulary().tokenize(["a"]))(
                torch.tensor([[self.captions.index(t)] for t in texts]), torch.ones(len(texts), 1) > 0
            )

        def encode(self, numbers):
            rows = torch.eye(len(self.captions))[numbers]
            return Tokens(rows, rows[:, None], torch.ones(len(rows), 1) > 0)

        def similarity(self, image, text):
            return image.pooled @ text.pooled.T

    return Oracle, parsed, tiny_clip


@pytest.fixture(scope="module")
def setup_e7ea0f21(setup_8dd9b54f):
    _, _, made_up, _ = setup_8dd9b54f

    def job_without_work(folder, failing=None):
        """Runs the job with stand-ins for data, training and models; returns what it printed and in which order it worked."""
        scenes, calls = SceneSet("test", 9), []
        note = lambda what, value=None: lambda *a, **k: calls.append((what, *a[:1])) or value
        live = [made_up(row.name) for row in live_rows()]
        stand_ins = dict(
            test_set=lambda name, **k: scenes,
            train_rows=note("train", live),
            assets=SimpleNamespace(**vars(assets) | {"fetch": note("fetch")}),
        )
        floor = {c: 0.25 for c in (BOARD | TUNED).values()}
        with (
            patch.multiple(unwrap(run).__module__, **stand_ins),
            patch("vlp_course.lab.prepare", note("prepare")),
            patch("vlp_course.lab.show", note("show")),
            patch("sys.stdout", io.StringIO()),
            patch("vlp_course.lab.chance", lambda: floor),
            patch("sys.stderr", io.StringIO()) as spoken,
            patch.multiple(unwrap(page_of).__module__, page_of=lambda lines, found: f"page of {', '.join(found)}"),
        ):
            lines = run(7, folder / "results", folder / "out" / "page.html", folder / "runs")
        return lines, calls, spoken.getvalue()

    return job_without_work


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "5df4d592")
def test_side_by_side_equals_one_by_one(setup_8dd9b54f):
    Threads, glanced, _, pretended = setup_8dd9b54f
    bars = []
    loud = lambda bar=tqdm, **keys: bars.append(bar(**keys, disable=False, file=io.StringIO())) or bars[-1]
    context = lambda kind: SimpleNamespace(Queue=queue.Queue)
    with (
        patch.multiple(
            unwrap(train_rows).__module__, ProcessPoolExecutor=Threads, get_context=context, tqdm=loud, glance=glanced
        ),
        patch("vlp_course.lab.run_row", pretended),
    ):
        results = train_rows(7, Path("runs"))
    folders = {row.name: Path("runs") / f"{row.name}-s7" for row in live_rows()}
    slow = [pretended(name, "quick", 7, out, False, lambda: None) | glanced(name, out) for name, out in folders.items()]
    assert results == slow  # all rows, in the order of the board
    assert bars[0].n == bars[0].total == sum(row.quick for row in live_rows())  # every step counted once


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "4b1fc3f7")
def test_only_what_is_missing_is_recorded(setup_8dd9b54f):
    _, _, made_up, _ = setup_8dd9b54f
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for name, seed in (("linear", 0), ("clip", 1)):
            lab.save_json(lab.result_path(results, "scenes", made_up(name, seed) | {"budget": "quick"}), {"kept": name})
        done = []
        quiet = dict(
            side_by_side=lambda jobs: done.extend(jobs) or [made_up(name, seed) for name, seed, *_ in jobs],
            assets=SimpleNamespace(CORE=("a",), fetch=lambda name: None),
        )
        with patch.multiple(unwrap(fill_board).__module__, **quiet), patch("vlp_course.lab.prepare", lambda rows: None):
            made = fill_board(results, Path("runs"), seeds=(0, 1))
            rows = [row.name for row in lab.board_rows() if row.sets]
            assert len(made) == 2 * len(rows) - 2 and {name for name, *_ in done} == set(rows)
            assert ("linear", 0) not in {job[:2] for job in done} and (
                "linear",
                1,
                Path("runs/linear-s1"),
                results,
            ) in done
            for name, seed, _, out in done:
                lab.save_json(lab.result_path(out, "scenes", {"row": name, "budget": "quick", "seed": seed}), {})
            assert fill_board(results, Path("runs"), seeds=(0, 1)) == []


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "bf051485")
def test_a_worker_keeps_its_result(setup_8dd9b54f):
    _, glanced, _, pretended = setup_8dd9b54f
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("vlp_course.lab.run_row", pretended),
        patch.object(unwrap(train_rows).__globals__["_start"], "queue", queue.Queue(), create=True),
        patch.multiple(unwrap(train_rows).__module__, glance=glanced),
    ):
        kept, unkept = (
            unwrap(train_rows).__globals__["_work"](("linear", 3, None, out)) for out in (Path(folder), None)
        )
        assert kept["metrics"].keys() == set(BOARD.values()) and unkept == kept | glanced("linear", None)
        assert json.loads((Path(folder) / "scenes/linear-quick-s3.json").read_text())["seed"] == 3
        assert len(list(Path(folder).rglob("*.json"))) == 1


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "c593de6c")
def test_a_glance_scores_what_the_table_shows():
    asked = []
    stand_ins = dict(evaluate=lambda model, *keys: asked.append(keys) or {"seen/r1": 0.5})
    with (
        patch.multiple(unwrap(glance).__module__, **stand_ins),
        patch("vlp_course.lab.load_row", lambda name, out: (name, out)),
        patch("vlp_course.lab.found_pictures", lambda model, pixels, pretrained: [model, pixels, pretrained]),
    ):
        found = [glance(name, Path("there")) for name in ("clip-from-scratch", "lm")]
    assert SHOWN == ("seen", "twemoji", "openmoji", "nouns") and GLANCE == 1002
    assert asked == [(True, True, list(SHOWN), GLANCE), (False, True, ["seen"], GLANCE)]
    assert found[1] == {"metrics": {"seen/r1": 0.5}, "samples": [("lm", Path("there")), False, True]}


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "b9de6a39")
def test_a_row_that_fails_stops_the_job(setup_8dd9b54f):
    Threads, _, _, _ = setup_8dd9b54f

    def broken(*args, **keys):
        raise RuntimeError("step 3: losses are not finite")

    context = lambda kind: SimpleNamespace(Queue=queue.Queue)
    with (
        patch.multiple(unwrap(train_rows).__module__, ProcessPoolExecutor=Threads, get_context=context),
        patch("vlp_course.lab.run_row", broken),
        pytest.raises(RuntimeError, match="step 3: losses are not finite"),
    ):
        train_rows(7, Path("runs"))


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "c9ba7286")
def test_live_beside_recorded(setup_8dd9b54f):
    _, _, made_up, _ = setup_8dd9b54f
    live = [made_up(row.name, value=0.5, without=["pointing"] if row.pixels else ()) for row in live_rows()]
    recorded = [made_up("clip", seed, value) for seed, value in enumerate((0.90, 0.92, 0.94))]
    recorded[0]["metrics"] |= {"vqa/mean": 0.7, "nlvr/all": 0.5}
    floor = {c: 0.25 for c in (BOARD | TUNED).values()}
    with patch("vlp_course.lab.chance", lambda: floor):
        header, *lines = beside(live, recorded)
    assert header == ["row", "CPU-s", *BOARD, *TUNED] and len(lines) == len(lab.board_rows()) + 1
    clip = next(line for line in lines if line[0] == lab.row_of("clip").title)
    assert clip[1:3] == ["61", "50.0 (92.0 ± 5.0)"]  # live, then recorded by hand: notebook 29
    assert clip[-3:] == ["(70.0)", "(-)", "(50.0)"] and all(
        "†" in name for name in header[-3:]
    )  # fine-tuned: recorded alone
    recorded_only = next(line for line in lines if line[0] == lab.row_of("clip-untrained-trunk").title)
    assert recorded_only[1:3] == ["-", "(-)"]  # not live, and nothing recorded here
    del live[0]["metrics"]["seen/r1"]  # a live row whose galleries would take too long
    with patch("vlp_course.lab.chance", lambda: floor):
        assert next(line for line in beside(live, recorded) if line[0] == lab.row_of("clip").title)[1:3] == [
            "61",
            "(92.0 ± 5.0)",
        ]
    pixels = next(line for line in lines if line[0] == lab.row_of("clip-from-scratch").title)
    assert pixels[header.index("pointing")] == "(-)"  # no backbone, no pointing, nothing recorded
    assert lines[-1] == ["Chance", "0", *["25.0"] * len(BOARD | TUNED)] and all(
        len(line) == len(header) for line in lines
    )


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "8e79c2bd")
def test_a_picture_carries_itself(setup_2b56c917):
    _, parsed, _ = setup_2b56c917
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    ((tag, values),) = parsed(picture_tag(pixels, True, 'an "owl" <b> & more')).found
    assert tag == "img" and values["class"] == "hit" and values["alt"] == values["title"] == 'an "owl" <b> & more'
    head, data = values["src"].split(",")
    assert head == "data:image/png;base64"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) == pixels).all()  # lossless
    assert 'class=""' in picture_tag(pixels, False, "a cat")


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "3fff25b0")
def test_the_right_model_finds_the_right_picture(setup_2b56c917):
    Oracle, _, tiny_clip = setup_2b56c917
    scenes = SceneSet("test", 9)
    assert len(set(scenes.captions)) == 9
    with patch.multiple(unwrap(found_pictures).__module__, test_set=lambda *a: scenes):
        found = found_pictures(Oracle(scenes.captions), [3, 7])
        assert [rows[0] for rows in found] == [3, 7] and all(len(rows) == len(set(rows)) == 5 for rows in found)
        model = tiny_clip()
        random = found_pictures(model, [3, 7], count=9)  # a random model: any order, each picture once
    assert [sorted(rows) for rows in random] == [list(range(9))] * 2
    with torch.no_grad():  # the slow twin: one picture at a time
        text = model.encode_text(model.tokenize([scenes.captions[3]])).pooled
        one = [float(model.encode_image(scenes.batch([i])).pooled @ text.T) for i in range(9)]
    assert random[0] == sorted(range(9), key=lambda i: -one[i])


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "5f012a3e")
def test_the_page_stands_alone(setup_2b56c917):
    _, parsed, _ = setup_2b56c917
    scenes = SceneSet("test", 9)
    lines = [["row", "R@1"], ["A < B & C", "50.0 (92.0 ± 5.0)"]]
    with patch.multiple(unwrap(page_of).__module__, test_set=lambda *a, **k: scenes):
        page = page_of(
            lines,
            {"Oracle": [[3, 4, 5, 0, 1], [7, 8, 6, 0, 1]], "Random": [[2, 4, 1, 3, 0], [8, 5, 2, 1, 0]]},
            queries=(3, 7),
        )
    tags = parsed(page)
    images = [values for tag, values in tags.found if tag == "img"]
    assert len(images) == 2 * 2 * 5 and all(values["src"].startswith("data:image/png;base64,") for values in images)
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "link", "iframe", "object"})
    assert "url(" not in page and "@import" not in page and "://" not in page  # no request to anywhere
    assert all(values["alt"].removesuffix(", the right one") in scenes.captions for values in images)
    hits = [values for values in images if values["class"] == "hit"]
    assert len(hits) == 3 and all(values["alt"].endswith(", the right one") for values in hits)
    text = " ".join(tags.text)
    assert "A < B & C" in text and NOTE in text and "92.0 ± 5.0" in text and scenes.captions[3] in text
    assert "Noto Emoji, © Google, Apache License 2.0" in text
    assert (
        page.startswith("<!doctype html>")
        and ("html", {"lang": "en"}) in tags.found
        and ("meta", {"charset": "utf-8"}) in tags.found
    )


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "adb77627")
def test_the_parser_is_strict(setup_2b56c917):
    _, parsed, _ = setup_2b56c917
    for wrong in ("<p><b>x</p></b>", "<table><tr></table>", "</p>", "<div>"):
        with pytest.raises(ValueError):
            parsed(wrong)


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "0a0dc88c")
def test_the_steps_in_order(setup_e7ea0f21):
    job_without_work = setup_e7ea0f21
    with tempfile.TemporaryDirectory() as folder:
        lines, calls, spoken = job_without_work(Path(folder))
        assert (Path(folder) / "out" / "page.html").read_text() == "page of CLIP, CLIP, random batches"
    kinds = list(dict.fromkeys(kind for kind, *_ in calls))
    assert kinds == ["fetch", "prepare", "train", "show"]
    assert [call[1] for call in calls if call[0] == "fetch"] == list(assets.CORE)
    assert [f"{n}/4" in spoken for n in (1, 2, 3, 4)] == [True] * 4 and "done. Open" in spoken and "seed 7" in spoken
    assert len(lines) == len(lab.board_rows()) + 2


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "10d90aef")
def test_nowhere_to_write():
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "out").write_text("a file where the page's folder should be")
        with (
            patch.multiple(unwrap(run).__module__, train_rows=None),
            pytest.raises(FileExistsError),
        ):  # before anything is trained
            run(7, Path(folder), Path(folder) / "out" / "page.html", Path(folder) / "runs")


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "737b6773")
def test_base64_length():
    def base64_length(n):
        """Letters of n bytes in base64."""
        return -(-n // 3) * 4  # every begun triple becomes four letters

    assert all(base64_length(n) == len(base64.b64encode(bytes(n))) for n in range(100))


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "737b6773")
def test_base64_length_starter_fails():
    def base64_length(n):
        """Letters of n bytes in base64."""
        return n * 4 // 3  # forgets the padding

    with pytest.raises(Exception):
        assert all(base64_length(n) == len(base64.b64encode(bytes(n))) for n in range(100))


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "799da91d")
def test_pool_time():
    def pool_time(times, workers=2):
        """Seconds until the last worker is done."""
        free = [0.0] * workers  # when each worker becomes free
        for t in times:
            free[free.index(min(free))] += t
        return max(free)

    # Longest first is the classic rule (Graham 1969): never worse than 4/3 of the best possible.
    assert pool_time([60] * 6) == 180 and pool_time([60] * 5) == 180 and pool_time([5, 5, 90], 3) == 90
    assert pool_time([30, 30, 30, 90]) == 120 and pool_time([90, 30, 30, 30]) == 90


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "799da91d")
def test_pool_time_starter_fails():
    def pool_time(times, workers=2):
        """Seconds until the last worker is done."""
        return sum(times) / workers  # as if rows could be cut into pieces

    with pytest.raises(Exception):
        assert pool_time([60] * 6) == 180 and pool_time([60] * 5) == 180 and pool_time([5, 5, 90], 3) == 90
        assert pool_time([30, 30, 30, 90]) == 120 and pool_time([90, 30, 30, 30]) == 90


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "8f81f48a")
def test_siblings_found():
    def siblings_found(query, found):
        """How many of the found pictures are siblings of the right one."""
        return sum(i != query and i // 3 == query // 3 for i in found)

    assert (
        siblings_found(4, [4, 3, 5, 0, 8]) == 2
        and siblings_found(4, [0, 1, 2, 6, 7]) == 0
        and siblings_found(0, [1, 0]) == 1
    )


@pytest.mark.nb("nbs/6_lab/29b_course.ipynb", "8f81f48a")
def test_siblings_found_starter_fails():
    def siblings_found(query, found):
        """How many of the found pictures are siblings of the right one."""
        return sum(i != query for i in found)  # counts every wrong picture

    with pytest.raises(Exception):
        assert (
            siblings_found(4, [4, 3, 5, 0, 8]) == 2
            and siblings_found(4, [0, 1, 2, 6, 7]) == 0
            and siblings_found(0, [1, 0]) == 1
        )
