"""Generated from nbs/5_prompting/23_cpt.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import numpy as np
import pytest
import torch
from torch import nn
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.finetune import parameter_groups
from vlp_course.finetune import train_steps
from vlp_course.models.fusion import OneTower
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.prompts.cpt import (
    CPT,
    Cue,
    Regions,
    TEMPLATES,
    ask,
    balanced,
    cpt_loss,
    fill,
    number_of,
    paint,
    see,
    trunk,
)


@pytest.fixture(scope="module")
def setup_3f493b19():
    def toy(dim=16, seed=0):
        """A small single stream in float64, with weights large enough to matter."""
        words = "a an small big red blue pink zero owl star circle on the left of above in top white ground one".split()
        vocabulary = Vocabulary([*words, "color", "sky"])  # the last two cannot be named
        torch.manual_seed(seed)
        model = OneTower(
            ImageEncoder(dim),
            TextEncoder(torch.randn(len(vocabulary), dim)),
            MergedEncoder(dim, 2),
            vocabulary,
            len(words) + 5,
            dim,
        )
        return model.double().eval()

    def toy_regions(items=3, boxes=4, seed=0):
        g = torch.Generator().manual_seed(seed)
        texts = ["a small owl", "a big star left of a small owl", "a circle", "an owl on the left"][:items]
        right = torch.zeros(items, boxes, dtype=torch.bool)
        right[torch.arange(items), torch.randint(boxes, (items,), generator=g)] = True
        draw = lambda *shape: torch.rand(*shape, 12288, generator=g).double()
        return Regions(
            texts,
            ["noun"] * items,
            100 * torch.rand(items, boxes, 4, generator=g).double(),
            right,
            draw(items),
            draw(items, boxes),
        )

    return toy, toy_regions


@pytest.fixture(scope="module")
def setup_e83a7644():
    def slow_choice(model, regions, cue, item):
        best, place = -float("inf"), None
        for n in range(regions.painted.shape[1]):
            score = ask(model, see(model, regions.painted[item, n][None]), [fill(cue.template, regions.texts[item])])[
                0, number_of(model, cue.word)
            ]
            if score > best:
                best, place = score, n
        return place, best

    return slow_choice


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "8fe238ba")
def test_paint_by_hand():
    image = np.full((5, 7, 3), 100, np.uint8)
    done = paint(image, (1, 2, 4, 5), (240, 0, 30), 0.5)
    assert done[3, 2].tolist() == [170, 50, 65] and (image == 100).all()
    assert ((done != 100).any(2)).sum() == 9 and (done[2:5, 1:4] != 100).all()
    assert (paint(image, (0, 0, 7, 5), (9, 8, 7), 1) == (9, 8, 7)).all() and (
        paint(image, (0, 0, 7, 5), (9, 8, 7), 0) == 100
    ).all()
    for box in ((0, 0, 8, 3), (-1, 0, 3, 3), (3, 0, 3, 4)):
        with pytest.raises(ValueError, match=r"proposal \(.*\) is empty or leaves a picture of 7 x 5"):
            paint(image, box, (0, 0, 0), 0.5)
    with pytest.raises(ValueError, match="alpha is 127: opacity lies between 0 and 1"):
        paint(image, (0, 0, 2, 2), (0, 0, 0), 127)


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "28354938")
def test_sentences_by_hand():
    query = "a small star left of a big owl"
    assert [fill(t, query) for t in TEMPLATES[:3]] == [
        f"{query} is in [MASK] color",
        f"{query} in [MASK]",
        f"{query} [MASK]",
    ]
    assert [fill(t, query) for t in TEMPLATES[3:5]] == [
        "a [MASK] star left of a big owl",
        "a small [MASK] star left of a big owl",
    ]
    assert (
        fill(TEMPLATES[5], "an owl") == "an [MASK] owl on a white ground"
        and fill(TEMPLATES[4], "a big one") == "a big [MASK] one"
    )
    with pytest.raises(ValueError, match=r"'\{query\} is red' has 0 gaps \[MASK\]: exactly one is needed"):
        fill("{query} is red", query)
    with pytest.raises(ValueError, match=r"has 2 gaps"):
        fill("[MASK] {query} [MASK]", query)
    with pytest.raises(ValueError, match="expression 'a small red' has no noun: there is no slot for the colour"):
        fill(TEMPLATES[0], "a small red")


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "c34644ee")
def test_the_gap_alone_and_in_a_batch(setup_3f493b19):
    toy, _ = setup_3f493b19
    model = toy()
    texts = ["a small [MASK] owl", "[MASK] star", "a big star left of a small owl is in [MASK] color"]
    features = torch.rand(3, 12288, generator=torch.Generator().manual_seed(1)).double()
    found = ask(model, see(model, features), texts)
    for k, text in enumerate(texts):  # one by one: no padding
        numbers = [MASK if w == "[MASK]" else model.vocabulary.index.get(w, 1) for w in text.split()]
        ids = torch.tensor([[2, *numbers, 3]])
        states = model.fusion.stream(
            see(model, features[k : k + 1]), model.text_encoder(Tokenized(ids, torch.ones_like(ids, dtype=torch.bool)))
        )[0]
        alone = model.head(states[0, ids[0].tolist().index(MASK)], model.text_encoder.embed.weight)
        torch.testing.assert_close(found[k], alone)
    assert found.shape == (3, 26) and (found[0] - found[1]).abs().max() > 0.1


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "200f3dcb")
def test_bad_questions(setup_3f493b19):
    toy, _ = setup_3f493b19
    model = toy()
    with pytest.raises(ValueError, match=r"'a small owl' has 0 gaps \[MASK\]"):
        ask(model, see(model, torch.rand(1, 12288).double()), ["a small owl"])
    for word in ("none", "sky"):
        with pytest.raises(ValueError, match=f"colour word '{word}' is not among the 26 words that the model can name"):
            number_of(model, word)
    assert number_of(model, "red") == 9
    with pytest.raises(
        ValueError, match="Linear has no head for covered words: CPT needs a fusion model trained by MLM"
    ):
        trunk(nn.Linear(2, 2))


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "67458f0b")
def test_as_the_slow_version(setup_e83a7644, setup_3f493b19):
    slow_choice = setup_e83a7644
    toy, toy_regions = setup_3f493b19
    for seed in range(3):
        model, some, cue = toy(seed=seed), toy_regions(seed=seed), Cue("red", (240, 0, 30), 0.5, TEMPLATES[3])
        scores = CPT(model, cue)(some)
        for k in range(3):
            place, best = slow_choice(model, some, cue, k)
            assert int(scores[k].argmax()) == place
            torch.testing.assert_close(scores[k].max(), best)


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "8db24e15")
def test_order_of_proposals_is_free(setup_3f493b19):
    toy, toy_regions = setup_3f493b19
    model, some, cue = toy(), toy_regions(), Cue("blue", (0, 0, 255), 0.5, TEMPLATES[4])
    turn = torch.tensor([2, 0, 3, 1])
    moved = some._replace(painted=some.painted[:, turn], right=some.right[:, turn])
    torch.testing.assert_close(CPT(model, cue)(some)[:, turn], CPT(model, cue)(moved))
    assert torch.equal(
        CPT(model, cue)(some._replace(painted=some.plain[:, None].expand(-1, 4, -1))).std(1) < 1e-9,
        torch.ones(3, dtype=torch.bool),
    )


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "ba5d81a6")
def test_loss_by_hand():
    logits = torch.zeros(2, 4)
    assert cpt_loss(logits, torch.tensor([True, False]), 1, 3).item() == pytest.approx(
        np.log(4)
    )  # equal scores: log of the number of words
    logits = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0]])
    z = np.log(2 + np.exp(2))
    right, wrong = z - (0.9 * 2 + 0.1 * 2 / 3), z - 0.1 * 2 / 3  # 0.9 on the target, 0.1 spread over three words
    assert cpt_loss(logits, torch.tensor([True, False]), 1, 2).item() == pytest.approx((right + wrong) / 2)
    assert cpt_loss(logits, torch.tensor([True, True]), 1, 2, 0).item() == pytest.approx(z - 2)


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "dbeffb45")
def test_one_right_and_one_wrong():
    right = torch.tensor([[False, True, False, True, False], [True, False, False, False, False]])
    g, seen = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        some = balanced(right, g)
        assert right.gather(1, some).tolist() == [[True, False]] * 2
        seen |= {(k, int(n)) for k in range(2) for n in some[k]}
    assert len(seen) == 10
    with pytest.raises(ValueError, match="a picture has no right or no wrong proposal: there is nothing to balance"):
        balanced(torch.tensor([[True, True]]), g)


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "5caaceec")
def test_training_fits_and_leaves_word_vectors_alone(setup_3f493b19):
    toy, toy_regions = setup_3f493b19
    model, some, cue = toy(), toy_regions(4), Cue("pink", (255, 0, 200), 0.5, TEMPLATES[4])
    before, g, learner = copy.deepcopy(model.state_dict()), torch.Generator().manual_seed(0), CPT(model, cue)
    groups = parameter_groups(learner, [], 3e-3)
    train_steps(learner, groups, lambda step: learner.loss(some, g), 40)
    assert some.right.gather(1, learner(some).argmax(1, keepdim=True)).all()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # the given model is not touched
    after = learner.model.state_dict()
    assert torch.equal(after["text_encoder.embed.weight"], before["text_encoder.embed.weight"])  # bit for bit
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert {"image_encoder", "text_encoder", "fusion", "head"} <= changed
    embed = learner.model.text_encoder.embed.weight
    assert not embed.requires_grad and all(p is not embed for group in groups for p in group["params"])


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "c9838e85")
def test_coats():
    def coats(alpha, n):
        return 1 - (1 - alpha) ** n

    image = np.full((4, 4, 3), 200, np.uint8)
    twice = paint(paint(image, (0, 0, 4, 4), (20, 40, 60), 0.3), (0, 0, 4, 4), (20, 40, 60), 0.3).astype(int)
    once = paint(image, (0, 0, 4, 4), (20, 40, 60), coats(0.3, 2)).astype(int)
    assert abs(twice - once).max() <= 1 and coats(0.5, 3) == pytest.approx(0.875)


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "c9838e85")
def test_coats_starter_fails():
    def coats(alpha, n):
        return n * alpha

    with pytest.raises(Exception):
        image = np.full((4, 4, 3), 200, np.uint8)
        twice = paint(paint(image, (0, 0, 4, 4), (20, 40, 60), 0.3), (0, 0, 4, 4), (20, 40, 60), 0.3).astype(int)
        once = paint(image, (0, 0, 4, 4), (20, 40, 60), coats(0.3, 2)).astype(int)
        assert abs(twice - once).max() <= 1 and coats(0.5, 3) == pytest.approx(0.875)


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "36263020")
def test_lead():
    def lead(logits, word, none):
        return logits[:, word] - logits[:, none]

    logits = torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 0.5]])
    assert lead(logits, 1, 2).tolist() == [3.0, 3.5]
    torch.testing.assert_close(
        lead(logits + torch.tensor([[7.0], [-2.0]]), 1, 2), lead(logits, 1, 2)
    )  # a shift of all scores says nothing


@pytest.mark.nb("nbs/5_prompting/23_cpt.ipynb", "36263020")
def test_lead_starter_fails():
    def lead(logits, word, none):
        return logits[:, word]

    with pytest.raises(Exception):
        logits = torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 0.5]])
        assert lead(logits, 1, 2).tolist() == [3.0, 3.5]
        torch.testing.assert_close(
            lead(logits + torch.tensor([[7.0], [-2.0]]), 1, 2), lead(logits, 1, 2)
        )  # a shift of all scores says nothing
