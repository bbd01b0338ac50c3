"""Generated from nbs/3_fusion/14_blip.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.data.grammar import grammar_words
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import UNK
from vlp_course.data.pairs import Vocabulary
from vlp_course.decoding import beam_search
from vlp_course.decoding import greedy
from vlp_course.decoding import nucleus
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.med import MED
from vlp_course.nn.med import Writer
from vlp_course.nn.transformer import DecoderState
from vlp_course.train import Recipe
from vlp_course.train import fit
from vlp_course.models.blip import BLIP, Queue, Separate, build


@pytest.fixture(scope="module")
def setup_d3d0b4aa():
    def tiny(kind=BLIP, seed=0, **options):
        """A BLIP of width 16 with the words of the training captions."""
        words = " ".join(SceneSet("train", 90).captions).split()
        torch.manual_seed(seed)
        vocabulary = Vocabulary(words)
        return kind(
            ImageEncoder(16, 2),
            MED(torch.randn(len(vocabulary), 16), 2),
            vocabulary,
            len(vocabulary),
            16,
            2,
            **{"queue": 70} | options,
        )

    FEATURES = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)

    def tiny_batch(model, indices=(0, 1, 2, 6, 9)):
        """Scenes with random features and the model's word ids."""
        return SceneSet("train", 90, features=FEATURES).batch(np.array(indices), model.tokenize)

    def step_of(model, batch, step=0):
        return model(batch, step=step, generator=torch.Generator().manual_seed(0))

    return FEATURES, step_of, tiny, tiny_batch


@pytest.fixture(scope="module")
def setup_ab36aeb0():
    def slow_itc(model, image, text, slow, alpha):
        """Contrast with the queue, row by row: the targets written out as lists."""
        scale, losses = model.logit_scale.exp(), []
        for queries, teachers, name in ((image, slow["image"], "text"), (text, slow["text"], "image")):
            candidates, keys = [*slow[name], *getattr(model.queue, name)], [*slow["key"], *model.queue.key]
            for i, query in enumerate(queries):
                logits = torch.stack([scale * query @ c for c in candidates])
                teacher = torch.stack([scale * teachers[i] @ c for c in candidates]).softmax(0)
                right = torch.tensor([float(key == slow["key"][i]) for key in keys])
                target = (1 - alpha) * right / right.sum() + alpha * teacher
                losses.append(-(target * logits.log_softmax(0)).sum())
        return sum(losses) / len(losses)

    return slow_itc


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "c1db85b3")
def test_contrast_equals_its_slow_twin(setup_ab36aeb0, setup_d3d0b4aa):
    slow_itc = setup_ab36aeb0
    _, _, tiny, _ = setup_d3d0b4aa
    model = tiny()
    slow = {
        "image": F.normalize(torch.randn(5, 16), dim=-1),
        "text": F.normalize(torch.randn(5, 16), dim=-1),
        "key": torch.tensor([7.0, 8.0, 9.0, 8.0, 5.0]).double(),
    }
    model.queue.key[3:5] = torch.tensor([9.0, 7.0])  # captions seen before: positives too
    image, text = F.normalize(torch.randn(5, 16), dim=-1), F.normalize(torch.randn(5, 16), dim=-1)
    for alpha in (0.0, 0.3):
        torch.testing.assert_close(
            model._itc(image, text, slow, alpha), slow_itc(model, image, text, slow, alpha), rtol=0, atol=1e-5
        )
    assert model._itc(image, text, slow, 0.3) != model._itc(image, text, slow, 0.0)


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "15f0e1ad")
def test_losses_start_where_knowing_nothing_starts(setup_d3d0b4aa):
    _, step_of, tiny, tiny_batch = setup_d3d0b4aa
    model = tiny(queue=640)
    losses = step_of(model, tiny_batch(model, range(60))).losses
    words = len(model.vocabulary)
    assert losses["lm"].item() == pytest.approx(math.log(words), abs=1.0) and losses["itm"].item() == pytest.approx(
        0.6365, abs=0.15
    )
    assert set(losses) == {"itc", "itm", "lm"} and all(v.dtype == torch.float32 for v in losses.values())


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "e854dcee")
def test_one_text_model_or_three(setup_d3d0b4aa):
    _, step_of, tiny, tiny_batch = setup_d3d0b4aa
    shared, apart = tiny(), tiny(Separate)
    batch = tiny_batch(shared)
    assert shared.med("read") is shared.med("match") is shared.med("write")
    each = [{p.data_ptr() for p in apart.med(mode).parameters()} for mode in ("read", "match", "write")]
    assert not (each[0] & each[1] or each[1] & each[2] or each[0] & each[2])
    apart.load_state_dict(shared.state_dict(), strict=False)  # the heads too
    assert all(
        torch.equal(step_of(shared, batch).losses[k], v) for k, v in step_of(apart, batch).losses.items()
    )  # the same start
    count = lambda model: sum(p.numel() for p in model.parameters() if p.requires_grad)
    med = shared.med("read")
    assert count(apart) - count(shared) == sum(count(med.only(m)) for m in ("read", "match", "write")) - count(med)


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "9b84e224")
def test_gradients_reach_what_they_should(setup_d3d0b4aa):
    _, step_of, tiny, tiny_batch = setup_d3d0b4aa
    for kind in (BLIP, Separate):
        model = tiny(kind)
        sum(step_of(model, tiny_batch(model)).losses.values()).backward()
        grads = {
            n: p.grad is not None and bool(p.grad.abs().sum() > 0)
            for n, p in model.named_parameters()
            if p.requires_grad
        }
        without = [n for n, got in grads.items() if not got]
        assert all(
            n.endswith(("key.bias", "score.bias")) for n in without
        )  # a softmax does not see what is added to all
        assert all(p.grad is None for p in model.slow.parameters()) and not any(
            p.requires_grad for p in model.slow.parameters()
        )
    model = tiny()
    step_of(model, tiny_batch(model)).losses["itc"].backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any("cross" in n or "causal" in n or "head" in n for n in touched) and "logit_scale" in touched


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "2666b631")
def test_forward_changes_nothing_after_step_does(setup_d3d0b4aa):
    _, step_of, tiny, tiny_batch = setup_d3d0b4aa
    model = tiny(momentum=0.5)
    before, out = checkpoint_sha(model), step_of(model, tiny_batch(model))
    assert checkpoint_sha(model) == before and not any(v.requires_grad for v in out.state.values())
    with torch.no_grad():
        for p in model.towers.parameters():
            p.add_(1.0)
        old = {n: p.clone() for n, p in model.slow.named_parameters()}
        model.after_step(out.state, step=8)
        for n, p in model.slow.named_parameters():
            torch.testing.assert_close(p, 0.5 * old[n] + 0.5 * model.towers.get_parameter(n))
    assert not any("cross" in n or "causal" in n for n in old)  # neither decoder nor cross-attention is copied
    assert torch.equal(model.queue.text[:5], out.state["text"]) and model.queue.place.item() == 5
    model.logit_scale.data.fill_(9.0)
    model.after_step(out.state, step=0)
    assert model.logit_scale.exp().item() == pytest.approx(1000)  # temperature 0.001


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "8d7216a8")
def test_queue_is_a_ring():
    queue = Queue(5, 2)
    for start in (0, 3):
        rows = torch.arange(start, start + 3.0)
        queue.push(rows[:, None].expand(3, 2), -rows[:, None].expand(3, 2), rows.double())
    assert (
        queue.key.tolist() == [5, 1, 2, 3, 4]
        and queue.image[:, 0].tolist() == [5, 1, 2, 3, 4]
        and queue.text[0].tolist() == [-5, -5]
    )
    assert queue.place.item() == 1
    with pytest.raises(ValueError, match="a batch of 6 for a queue of 5"):
        queue.push(torch.zeros(6, 2), torch.zeros(6, 2), torch.zeros(6).double())


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "884e0f1b")
def test_killed_and_resumed_is_the_same_run(setup_d3d0b4aa):
    FEATURES, _, tiny, _ = setup_d3d0b4aa
    data, recipe = SceneSet("train", 90, features=FEATURES), Recipe(8, batch_size=9, lr=1e-3, warmup=2, seed=31)
    whole = fit(tiny(), data, recipe, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        for kill in (3, 6, None):
            model = tiny()
            moves = model.after_step

            def after_step(state, step, kill=kill, moves=moves):
                if step == kill:
                    raise KeyboardInterrupt
                moves(state, step)

            model.after_step = after_step
            try:
                run = fit(model, data, recipe, Path(folder), save_every=2, progress=False)
            except KeyboardInterrupt:
                pass
    del model.after_step
    assert checkpoint_sha(model) == checkpoint_sha(whole.model) and run.losses == whole.losses
    names = set(model.state_dict())
    assert {"queue.image", "queue.text", "queue.key", "queue.place"} < names and any(
        n.startswith("slow.med.") for n in names
    )
    assert model.queue.place.item() == 8 * 9 % 70


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "430d4c5e")
def test_losses_fall(setup_d3d0b4aa):
    FEATURES, _, tiny, _ = setup_d3d0b4aa
    run = fit(
        tiny(), SceneSet("train", 90, features=FEATURES), Recipe(25, batch_size=18, lr=1e-2, warmup=3), progress=False
    )
    assert (
        np.mean(run.losses["lm"][-5:]) < 0.75 * run.losses["lm"][0]
        and np.mean(run.losses["itc"][-5:]) < 0.9 * run.losses["itc"][0]
    )


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "8a3f23fb")
def test_match_is_a_difference_of_logits_and_similarity_a_cosine(setup_d3d0b4aa):
    _, _, tiny, tiny_batch = setup_d3d0b4aa
    model = tiny().eval()
    with torch.no_grad():
        image, text = model.encode_image(tiny_batch(model)), model.encode_text(tiny_batch(model).text)
        cosine, fused = model.similarity(image, text), model.fuse(image, text)
        odds = model.match_head(fused.pooled).softmax(-1)
        torch.testing.assert_close(model.match(image, text).exp(), odds[:, 1] / odds[:, 0])
        other = model.match(Tokens(*(x[[1, 0, 2, 3, 4]] for x in image)), text)
    assert cosine.shape == (5, 5) and cosine.abs().max() <= 1 + 1e-6 and fused.tokens.shape[::2] == (5, 16)
    assert (other != model.match(image, text)).tolist() == [True, True, False, False, False]


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "50e80273")
def test_three_searches_write(setup_d3d0b4aa):
    _, _, tiny, tiny_batch = setup_d3d0b4aa
    model = tiny().eval()
    image = model.encode_image(tiny_batch(model))
    draw = lambda seed: model.generate(image, nucleus, top_p=0.9, generator=torch.Generator().manual_seed(seed))
    assert model.generate(image) == model.generate(image, beam_search, beams=1)
    assert draw(0) == draw(0) != draw(1) and all(len(c.split()) <= 23 for c in draw(0))


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "53d690b6")
def test_no_marks_are_written_and_unknown_words_do_no_harm(setup_d3d0b4aa):
    _, _, tiny, tiny_batch = setup_d3d0b4aa
    model = tiny().eval()
    model.word_head.bias.data[MASK] = 30.0  # it would say [MASK] for ever
    assert set(model.generate(model.encode_image(tiny_batch(model)))) == {""}
    model = BLIP(
        ImageEncoder(16, 2), MED(torch.randn(40, 16), 2), Vocabulary("a b c d e f g h".split()), 7, 16, 2, queue=70
    )
    image, ids = (
        torch.randn(2, 4, 16),
        torch.tensor([[2, 5, 12, 3], [2, 9, 6, 3]]),
    )  # 12 and 9: beyond the seven that the head knows
    tokens = Tokens(image.mean(1), image, torch.ones(2, 4, dtype=torch.bool))
    assert model._lm(tokens, ids) != model._lm(tokens, ids.where(ids < 7, UNK))  # read as they are, told as [UNK]


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "23a1082a")
def test_mistakes_are_one_clear_line(setup_d3d0b4aa):
    _, _, tiny, _ = setup_d3d0b4aa
    with pytest.raises(ValueError, match="unknown size 'whole'"):
        build("whole")
    with pytest.raises(ValueError, match="caption of 23 words"):
        tiny().tokenize(["cat " * 23])


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "03808664")
def test_small_model_keeps_the_course_vocabulary():
    model = build(seed=0)
    assert model.med("write").embed.num_embeddings == len(model.vocabulary) + 2
    start = torch.zeros(1, 1, dtype=torch.long)
    assert model.med("match").begin(start, 0).item() == len(model.vocabulary)
    assert len(model.word_head.bias) == len(Vocabulary(grammar_words())) < len(model.vocabulary)


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "3c06d12d")
def test_alpha_at():
    def alpha_at(step: int, ramp: int = 508, alpha: float = 0.4) -> float:
        return alpha * min(1, step / ramp)

    assert [alpha_at(s) for s in (0, 254, 508, 9999)] == pytest.approx([0, 0.2, 0.4, 0.4])


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "3c06d12d")
def test_alpha_at_starter_fails():
    def alpha_at(step: int, ramp: int = 508, alpha: float = 0.4) -> float:
        return alpha

    with pytest.raises(Exception):
        assert [alpha_at(s) for s in (0, 254, 508, 9999)] == pytest.approx([0, 0.2, 0.4, 0.4])


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "ae75a642")
def test_prompt(setup_d3d0b4aa):
    _, _, tiny, tiny_batch = setup_d3d0b4aa

    def continued(model: BLIP, image: Tokens, prompt: str) -> list[str]:
        start = torch.tensor([model.vocabulary.encode(prompt)[:-1]]).expand(len(image.tokens), -1)
        med = model.med("write")
        found = greedy(
            DecoderState(Writer(med, model.word_head), image.tokens),
            med.begin(start, 1),
            EOS,
            len(med.position) - start.shape[1],
        )
        return [" ".join([prompt, *(model.vocabulary.words[i] for i in ids)]) for ids in found]

    model = tiny().eval()
    model.word_head.bias.data[:5] = -50.0  # words only: an untrained model would write marks too
    with torch.no_grad():
        image = model.encode_image(tiny_batch(model))
        texts = continued(model, image, "on a")
        assert all(text.startswith("on a ") for text in texts)
        free = model.generate(image)
        assert continued(model, image, free[0].split()[0])[0] == free[0]


@pytest.mark.nb("nbs/3_fusion/14_blip.ipynb", "ae75a642")
def test_prompt_starter_fails(setup_d3d0b4aa):
    _, _, tiny, tiny_batch = setup_d3d0b4aa

    def continued(model: BLIP, image: Tokens, prompt: str) -> list[str]:
        return model.generate(image)

    with pytest.raises(Exception):
        model = tiny().eval()
        model.word_head.bias.data[:5] = -50.0  # words only: an untrained model would write marks too
        with torch.no_grad():
            image = model.encode_image(tiny_batch(model))
            texts = continued(model, image, "on a")
            assert all(text.startswith("on a ") for text in texts)
            free = model.generate(image)
            assert continued(model, image, free[0].split()[0])[0] == free[0]
