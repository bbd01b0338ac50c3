"""Generated from nbs/4_pretraining/19b_probing_hf.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import shutil
import tempfile
import torch
import torch.nn.functional as F
import transformers as tf
from PIL import Image
from functools import lru_cache
from pathlib import Path
from torch import nn
from vlp_course.probing_hf import FAMILIES, GREY, grid_regions, load_reader, picture


@pytest.fixture(scope="module")
def setup_b62824fa():
    WORDS = "a the big small red blue owl fox circle square left of right and is on it ground checked striped".split()
    TEXTS = ["a red owl", "the small owls left of a blue fox and a circle", "a square is on it"]

    @torch.no_grad()
    def scaled(model, seed=0):
        """Overwrites every parameter with random numbers of a telling size: fresh biases are 0 and fresh norms 1, which hides errors."""
        made = torch.Generator().manual_seed(seed)
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=made)
            norm = p.ndim == 1 and "norm" in name.lower() and name.endswith("weight")
            p.copy_(
                1 + 0.3 * noise
                if norm
                else 0.3 * noise
                if p.ndim < 2 or "embedding" in name
                else noise * 1.5 / p[0].numel() ** 0.5
            )
        return model.eval()

    def tiny_model(kind, words, context):
        """The class of the published checkpoint, heads included, of width 32 with two layers."""
        text = dict(
            vocab_size=words,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=context,
        )
        sight = {**text, "image_size": 48, "patch_size": 16}
        for key in ("vocab_size", "max_position_embeddings"):
            sight.pop(key)
        if kind == "vilt":
            return tf.ViltForMaskedLM(tf.ViltConfig(**text, image_size=48, patch_size=16, max_image_length=5))
        if kind == "lxmert":
            text.pop("num_hidden_layers")
            return tf.LxmertForPreTraining(
                tf.LxmertConfig(
                    **text,
                    l_layers=2,
                    x_layers=2,
                    r_layers=1,
                    visual_feat_dim=20,
                    num_qa_labels=7,
                    num_object_labels=5,
                    num_attr_labels=6,
                )
            )
        if kind == "visual_bert":
            return tf.VisualBertForPreTraining(tf.VisualBertConfig(**text, visual_embedding_dim=28))
        if kind == "flava":
            parts = dict(
                text_config=text,
                image_config=sight,
                multimodal_config={**sight, "num_hidden_layers": 1},
                init_codebook=False,
            )
            return tf.FlavaForPreTraining(tf.FlavaConfig(**parts, hidden_size=32, projection_dim=12))
        if kind == "clip":
            return tf.CLIPModel(
                tf.CLIPConfig(
                    text_config={
                        **text,
                        "eos_token_id": words - 1,
                        "bos_token_id": words - 2,
                        "pad_token_id": words - 1,
                    },
                    vision_config=sight,
                    projection_dim=12,
                )
            )
        both = dict(text_config={**text, "encoder_hidden_size": 32}, vision_config=sight, image_text_hidden_size=12)
        return tf.BlipForImageTextRetrieval(tf.BlipConfig(**both))

    def save_tiny(kind, folder, words=WORDS, seed=0, context=24):
        """A random model in a directory, as published ones lie there: config, safetensors, tokenizer, image processor."""
        folder = Path(folder, kind)
        folder.mkdir()
        if kind == "clip":
            letters, merges = [chr(i) for i in range(97, 123)], []
            for word in words:  # letters are joined from the left until the word is whole
                parts = [*word[:-1], word[-1] + "</w>"]
                merges += [("".join(parts[:i]), parts[i]) for i in range(1, len(parts))]
            merges = list(dict.fromkeys(merges))
            pieces = list(
                dict.fromkeys(
                    [
                        *letters,
                        *(x + "</w>" for x in letters),
                        *map("".join, merges),
                        "<|startoftext|>",
                        "<|endoftext|>",
                    ]
                )
            )
            (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
        else:
            pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s"]
            (folder / "vocab.txt").write_text("\n".join(pieces))
        with torch.random.fork_rng():
            scaled(tiny_model(kind, len(pieces), context), seed).save_pretrained(folder)
        if kind in SEE:
            SEE[kind]().save_pretrained(folder)
        return folder

    SEE = {
        "vilt": lambda: tf.ViltImageProcessor(size={"shortest_edge": 48}, size_divisor=16),
        "flava": lambda: tf.FlavaImageProcessor(
            size={"height": 48, "width": 48}, crop_size={"height": 48, "width": 48}
        ),
        "clip": lambda: tf.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        "blip": lambda: tf.BlipImageProcessor(size={"height": 48, "width": 48}),
    }

    def some_regions(width):
        """Seven regions of random projections of the picture, with boxes."""
        turn = torch.randn(48, width, generator=torch.Generator().manual_seed(width)) / 7

        def regions(images):
            pixels = torch.stack(
                [torch.from_numpy(np.array(picture(x).resize((28, 4)))).float() / 128 - 1 for x in images]
            )  # items 4 28 3
            cells = pixels.unflatten(2, (7, 4)).permute(0, 2, 1, 3, 4).flatten(2)  # items 7 48
            left = torch.arange(7) / 7
            return cells @ turn, torch.stack([left, 0 * left, left + 1 / 7, 0 * left + 1], 1).expand(
                len(images), -1, -1
            )

        return regions

    WIDTHS = {"lxmert": 20, "visual_bert": 28}
    PLACE = tempfile.TemporaryDirectory()

    def folder_of(kind):
        """Where the tiny model of a type lies, written when first asked for."""
        folder = Path(PLACE.name, kind)
        return folder if folder.exists() else save_tiny(kind, PLACE.name)

    PICTURES = [
        np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
        for i, size in enumerate(((48, 48, 3), (48, 76, 3), (70, 52, 3)))
    ]
    return PICTURES, TEXTS, WIDTHS, folder_of, some_regions


@pytest.fixture(scope="module")
def setup_2c72f820(setup_b62824fa):
    _, _, WIDTHS, folder_of, some_regions = setup_b62824fa

    def reader_of(kind):
        """Its reader."""
        return load_reader(folder_of(kind), regions=some_regions(WIDTHS[kind]) if kind in WIDTHS else None)

    READERS = {kind: reader_of(kind) for kind in FAMILIES}
    return READERS


@pytest.fixture(scope="module")
def setup_3edde302(setup_b62824fa):
    _, _, WIDTHS, folder_of, some_regions = setup_b62824fa
    CLASSES = {
        "vilt": "ViltForMaskedLM",
        "lxmert": "LxmertForPreTraining",
        "visual_bert": "VisualBertForPreTraining",
        "flava": "FlavaForPreTraining",
        "clip": "CLIPModel",
        "blip": "BlipForImageTextRetrieval",
    }

    @lru_cache(maxsize=6)
    def head_of(kind):
        """The published class, heads included."""
        return (
            getattr(tf, CLASSES[kind])
            .from_pretrained(folder_of(kind), **{"max_image_length": -1} if kind == "vilt" else {})
            .eval()
        )

    def by_hand(kind, image, text):
        """One pair prepared as transformers prepares it: words and sight. Nothing is ours but the regions."""
        words = tf.AutoTokenizer.from_pretrained(folder_of(kind))(text, return_tensors="pt")
        if kind in WIDTHS:
            features, boxes = some_regions(WIDTHS[kind])([image])
            return words, {"visual_embeds": features} if kind == "visual_bert" else {
                "visual_feats": features,
                "visual_pos": boxes,
            }
        return words, tf.AutoImageProcessor.from_pretrained(folder_of(kind))(image, return_tensors="pt")

    def close(a, b):
        """Equal to 1e-5."""
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    return by_hand, close, head_of


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "0ef4d269")
def test_states_are_those_of_transformers(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    by_hand, close, head_of = setup_3edde302
    for kind in FAMILIES:
        for image, text in zip(PICTURES, TEXTS):
            head, (words, seen) = head_of(kind), by_hand(kind, image, text)
            ours, T = READERS[kind]([image], [text]), words["input_ids"].shape[1]
            with torch.no_grad():
                if kind in ("vilt", "visual_bert"):
                    states = getattr(head, kind)(**words, **seen).last_hidden_state
                    vector, tokens = states[:, 0], states[:, :T]
                elif kind == "lxmert":
                    out = head.lxmert(**words, **seen)
                    vector, tokens = out.pooled_output, out.language_output
                elif kind == "flava":
                    states = head.flava(**words, **seen).multimodal_embeddings  # [CLS], 1 + 9 of the picture, words
                    vector, tokens = states[:, 0], states[:, 11:]
                elif kind == "clip":
                    sides = [
                        F.normalize(x.pooler_output)
                        for x in (head.get_image_features(**seen), head.get_text_features(**words))
                    ]
                    vector, tokens = (
                        torch.cat([*sides, sides[0] * sides[1]], 1),
                        head.text_model(**words).last_hidden_state,
                    )
                else:
                    sight = head.vision_model(seen["pixel_values"]).last_hidden_state
                    tokens = head.text_encoder(
                        words["input_ids"], words["attention_mask"], encoder_hidden_states=sight
                    ).last_hidden_state
                    vector = tokens[:, 0]
            close(ours.pooled, vector), close(ours.tokens, tokens)
            assert ours.mask.all() and ours.tokens.shape[1] == T and ours.pooled.std() > 0.1


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "664ed2c5")
def test_published_heads_give_their_own_answers(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    by_hand, close, head_of = setup_3edde302
    for kind in FAMILIES:
        for image, text in zip(PICTURES, TEXTS):
            head, (words, seen) = head_of(kind), by_hand(kind, image, text)
            with torch.no_grad():
                ours, out = (
                    READERS[kind]([image], [text]),
                    head(**words, **seen, **{"return_loss": False} if kind == "flava" else {}),
                )
                if kind == "vilt":
                    close(head.mlm_score(ours.tokens), out.logits)
                elif kind == "lxmert":
                    (
                        close(head.cls(ours.tokens, ours.pooled)[0], out.prediction_logits),
                        close(head.cls(ours.tokens, ours.pooled)[1], out.cross_relationship_score),
                    )
                elif kind == "visual_bert":
                    scores, match = head.cls(ours.tokens, head.visual_bert.pooler(ours.pooled[:, None]))
                    (
                        close(scores, out.prediction_logits[:, : scores.shape[1]]),
                        close(match, out.seq_relationship_logits),
                    )
                elif kind == "flava":
                    (
                        close(head.itm_head(ours.pooled[:, None]), out.itm_logits),
                        close(head.mmm_text_head(ours.tokens), out.mmm_text_logits),
                    )
                elif kind == "clip":
                    close(
                        head.logit_scale.exp() * ours.pooled[:, 24:].sum(1, keepdim=True), out.logits_per_image
                    )  # its own score is linear in what we read
                else:
                    close(head.itm_head(ours.pooled), out.itm_score)


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "d589e284")
def test_neighbours_in_a_batch_change_nothing(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302
    for reader in READERS.values():
        together = reader(PICTURES, TEXTS)  # three sizes of pictures, three lengths of texts
        assert together.mask.sum(1).unique().numel() == 3
        for batch in (1, 2):
            close(reader(PICTURES, TEXTS, batch).pooled, together.pooled)
        for i in range(3):
            alone = reader(PICTURES[i : i + 1], TEXTS[i : i + 1])
            close(alone.pooled[0], together.pooled[i]), close(alone.tokens[0], together.tokens[i][together.mask[i]])


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "f44a8c08")
def test_vilt_sees_all_patches_in_every_run(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, folder_of, _ = setup_b62824fa
    READERS = setup_2c72f820
    by_hand, _, _ = setup_3edde302
    reader, before = READERS["vilt"], torch.get_rng_state()
    states = [reader(PICTURES, TEXTS).pooled for _ in range(2)]
    assert torch.equal(*states) and torch.equal(
        before, torch.get_rng_state()
    )  # the same bits, and nobody's random numbers used up
    model = tf.ViltModel.from_pretrained(folder_of("vilt"))  # as its config asks: 5 of the 9 or more patches, by chance
    words, seen = by_hand("vilt", PICTURES[1], TEXTS[0])
    with torch.no_grad():
        runs = [model(**words, **seen).last_hidden_state[:, 0] for _ in range(4)]
    assert max((a - runs[0]).abs().max() for a in runs[1:]) > 0.01
    words, seen = reader.tokenize(TEXTS), reader.see(PICTURES)
    words = {key: words[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():  # padding taken for picture
        wrong = reader.read(reader.model, words, {**seen, "pixel_mask": torch.ones_like(seen["pixel_mask"])})[0]
    assert (wrong - states[0]).abs().amax(1).min() > 0.01


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "095d83ee")
def test_another_picture_another_vector(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302
    for kind, reader in READERS.items():
        matched, swapped = reader(PICTURES, TEXTS), reader([*PICTURES[1:], PICTURES[0]], TEXTS)
        assert (matched.pooled - swapped.pooled).abs().amax(1).min() > 0.01, kind
        if kind == "clip":
            (
                close(matched.pooled[:, 12:24], swapped.pooled[:, 12:24]),
                close(matched.tokens, swapped.tokens),
            )  # its words see no picture
        else:
            assert (matched.tokens - swapped.tokens)[matched.mask].abs().amax(1).min() > 0.001, kind  # every word does


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "4d2bc3ac")
def test_blind_controls(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302
    for kind, reader in READERS.items():
        both, words, sight = reader(PICTURES, TEXTS), reader(None, TEXTS), reader(PICTURES, None)
        close(words.pooled, reader([GREY] * 3, TEXTS).pooled), close(sight.pooled, reader(PICTURES, [""] * 3).pooled)
        assert sight.mask.sum(1).tolist() == [2, 2, 2] and words.mask.equal(both.mask)
        for blind in (words, sight):
            assert (blind.pooled - both.pooled).abs().amax(1).min() > 0.01, kind
        if kind == "clip":
            close(both.pooled[:, :12], sight.pooled[:, :12]), close(both.pooled[:, 12:24], words.pooled[:, 12:24])


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "27974da2")
def test_states_at_words_and_masks(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302
    gaps = ["a [MASK] owl", "the small owls left of a [MASK] fox", "a square is [MASK] it"]
    for kind, reader in READERS.items():
        states = reader(PICTURES, TEXTS)
        assert reader.starts(TEXTS[:2])[0] == [1, 2, 3]
        close(reader.at(PICTURES, TEXTS, [2, 0, 1]), states.tokens[torch.arange(3), torch.tensor([3, 1, 2])])
        if kind != "clip":
            assert reader.starts(TEXTS)[1] == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]  # owl ##s: two pieces, one word
            close(reader.at(PICTURES, gaps), reader(PICTURES, gaps).tokens[torch.arange(3), torch.tensor([2, 8, 4])])


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "0887914e")
def test_wrong_words(setup_b62824fa, setup_2c72f820):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    with pytest.raises(ValueError, match="model of type 'clip' has no .MASK. token"):
        READERS["clip"].at(PICTURES, TEXTS)
    reader = READERS["vilt"]
    for texts, found in (
        (["a [MASK] owl", "a fox"], "text 1 has 0 masks"),
        (["[MASK] [MASK]", "a"], "text 0 has 2 masks"),
    ):
        with pytest.raises(ValueError, match=found):
            reader.at(PICTURES[:2], texts)
    for word in (3, -1):
        with pytest.raises(ValueError, match=f"text 1 has 2 words: there is no word {word}"):
            reader.at(PICTURES[:2], ["a red owl", "a fox"], [0, word])
    with pytest.raises(ValueError, match="text 1 has 25 pieces, this model reads 24"):
        reader(PICTURES[:2], ["a fox", "owl " * 23])


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "d841b04d")
def test_wrong_items(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302
    reader = READERS["clip"]
    for images, texts in ((None, None), ([], []), (PICTURES, TEXTS[:2])):
        with pytest.raises(ValueError, match="a pair needs one of each, a control one list"):
            reader(images, texts)
    for wrong, found in (
        (PICTURES[0].astype(np.float32), "float32 of shape .48, 48, 3."),
        (PICTURES[0][..., 0], "uint8 of shape .48, 48."),
        ("owl.png", "str"),
    ):
        with pytest.raises(ValueError, match=f"a PIL image or a uint8 array .height, width, 3., not {found}"):
            reader([wrong], ["a fox"])
    close(reader([Image.fromarray(PICTURES[1])], ["a fox"]).pooled, reader([PICTURES[1]], ["a fox"]).pooled)


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "39f6e647")
def test_frozen_and_in_32_bits(setup_b62824fa, setup_2c72f820):
    PICTURES, TEXTS, _, folder_of, _ = setup_b62824fa
    READERS = setup_2c72f820
    folder = folder_of("blip")
    with tempfile.TemporaryDirectory() as place:
        half = shutil.copytree(folder, Path(place, "half"))
        tf.BlipForImageTextRetrieval.from_pretrained(folder).half().save_pretrained(half)
        model = load_reader(str(half)).model  # a string names a directory too
    assert not model.training and all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    assert not READERS["lxmert"](PICTURES, TEXTS).pooled.requires_grad


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "1063bba9")
def test_what_cannot_be_loaded(setup_b62824fa):
    _, _, _, folder_of, _ = setup_b62824fa
    folder = folder_of("vilt")
    with tempfile.TemporaryDirectory() as place:
        for name in ("nowhere/at/all", Path(place, "nothing")):
            with pytest.raises(
                ValueError, match="cannot load .* a directory or a Hugging Face name with weights as safetensors"
            ):
                load_reader(name)
        other = Path(place, "other")
        shutil.copytree(folder, other)
        (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(
            ValueError, match="model of type 'bert': known types are vilt, lxmert, visual_bert, flava, clip, blip"
        ):
            load_reader(other)
        pickled = Path(place, "pickled")
        shutil.copytree(folder, pickled)
        torch.save(tf.ViltForMaskedLM.from_pretrained(folder).state_dict(), pickled / "pytorch_model.bin")
        (pickled / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="with weights as safetensors .*no file named model.safetensors"):
            load_reader(pickled)
        wordless = Path(place, "wordless")
        shutil.copytree(folder, wordless)
        (wordless / "vocab.txt").unlink()
        with pytest.raises(ValueError, match="a vocabulary of 5 words for a model that knows 26: give tokenizer="):
            load_reader(wordless)
        assert len(load_reader(wordless, tokenizer=folder).tokenizer) == 26
        caption = Path(place, "caption")  # BLIP's captioner: no encoder of texts, only a decoder
        shutil.copytree(folder_of("blip"), caption)
        config = tf.BlipConfig.from_pretrained(caption)
        tf.BlipForConditionalGeneration(config).save_pretrained(caption)
        with pytest.raises(ValueError, match="lacks .* weights that are read, as text_encoder.* would be random"):
            load_reader(caption)


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "bff38139")
def test_regions_belong_to_two_families(setup_b62824fa):
    PICTURES, TEXTS, _, folder_of, some_regions = setup_b62824fa
    with pytest.raises(
        ValueError, match="type 'lxmert' reads regions of 20 numbers: give regions=, a detector's or grid_regions.20."
    ):
        load_reader(folder_of("lxmert"))
    with pytest.raises(ValueError, match="type 'clip' reads pixels: leave regions= out"):
        load_reader(folder_of("clip"), regions=some_regions(20))
    features, boxes = some_regions(20)(PICTURES)
    for wrong in (
        (features[..., :19], boxes),
        (features, boxes[:, :6]),
        (features, boxes * 48),
    ):  # width, number, pixels instead of shares
        with pytest.raises(
            ValueError,
            match="features .* boxes .* regions must give .items, regions, 20. and .items, regions, 4. in 0 to 1",
        ):
            load_reader(folder_of("lxmert"), regions=lambda images: wrong)(PICTURES, TEXTS)


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "1d78f39d")
def test_who_hears_where_a_region_is(setup_b62824fa, setup_2c72f820):
    PICTURES, TEXTS, WIDTHS, folder_of, some_regions = setup_b62824fa
    READERS = setup_2c72f820
    turned = {}
    for kind, width in WIDTHS.items():
        features, boxes = some_regions(width)(PICTURES)
        order = torch.tensor([3, 6, 0, 5, 1, 4, 2])
        shown = {"order": (features[:, order], boxes[:, order]), "boxes": (features, boxes[:, order])}
        plain = READERS[kind](PICTURES, TEXTS).pooled
        turned[kind] = {
            name: (load_reader(folder_of(kind), regions=lambda images: given)(PICTURES, TEXTS).pooled - plain)
            .abs()
            .max()
            for name, given in shown.items()
        }
    assert max(turned["lxmert"]["order"], turned["visual_bert"]["order"]) < 1e-5  # a set of regions, in any order
    assert turned["lxmert"]["boxes"] > 0.01 and turned["visual_bert"]["boxes"] == 0  # VisualBERT is not told the boxes


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "56e7166b")
def test_grid_regions_by_hand(setup_3edde302):
    _, close, _ = setup_3edde302

    class Cells(nn.Module):
        def forward(self, pixels):
            means = F.avg_pool2d(pixels, 32).mean(1, keepdim=True)
            return None, torch.cat([means, 2 * means, torch.zeros(len(pixels), 318, *means.shape[2:])], 1)

    canvas = np.zeros((64, 64, 3), np.uint8)
    canvas[:32, 32:] = 255  # white above right
    features, boxes = grid_regions(400, 64, Cells())([canvas, GREY])
    assert features.shape == (2, 4, 400)
    assert boxes[0].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    close(features[0] @ features[0].T, torch.diag(torch.tensor([0.0, 5, 0, 0])))  # lengths and angles stay: 1 + 4
    close(features[1] @ features[1].T, torch.full((4, 4), 5 * (128 / 255) ** 2))
    close(features, grid_regions(400, 64, Cells())([canvas, GREY])[0])  # the same in every run


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "d26cbd02")
def test_noise():
    def noise(items: int, chance: float | int) -> float:
        """Half-width in points of a guesser's 95 % interval; chance in percent."""
        return 1.96 * (chance * (100 - chance) / items) ** 0.5

    assert round(noise(200, 50), 1) == 6.9 and round(noise(504, 50), 1) == 4.4 and noise(400, 20) == 1.96 * 2


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "d26cbd02")
def test_noise_starter_fails():
    def noise(items: int, chance: float | int) -> float:
        """Half-width in points of a guesser's 95 % interval; chance in percent."""
        return 0.0

    with pytest.raises(Exception):
        assert round(noise(200, 50), 1) == 6.9 and round(noise(504, 50), 1) == 4.4 and noise(400, 20) == 1.96 * 2


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "591a3ede")
def test_layer_vector(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302

    def layer_vector(reader, image, text: str, layer: int):
        """ViLT's [CLS] after `layer` layers, for one pair."""
        words = reader.tokenize([text])
        with torch.no_grad():
            out = reader.model(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                **reader.see([image]),
                output_hidden_states=True,
            )
        return out.hidden_states[layer][0, 0]

    reader = READERS["vilt"]
    first = [layer_vector(reader, image, text, 0) for image, text in zip(PICTURES, TEXTS)]
    close(first[0], first[1])  # [CLS] has looked at nothing yet
    for image, text in zip(PICTURES, TEXTS):
        close(reader.model.layernorm(layer_vector(reader, image, text, 2)), reader([image], [text]).pooled[0])


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "591a3ede")
def test_layer_vector_starter_fails(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, _, _ = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302

    def layer_vector(reader, image, text: str, layer: int):
        """ViLT's [CLS] after `layer` layers, for one pair."""
        return reader([image], [text]).pooled[0]

    with pytest.raises(Exception):
        reader = READERS["vilt"]
        first = [layer_vector(reader, image, text, 0) for image, text in zip(PICTURES, TEXTS)]
        close(first[0], first[1])  # [CLS] has looked at nothing yet
        for image, text in zip(PICTURES, TEXTS):
            close(reader.model.layernorm(layer_vector(reader, image, text, 2)), reader([image], [text]).pooled[0])


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "ac6b42e2")
def test_lookup(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, folder_of, some_regions = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302

    def lookup(features: dict, boxes: dict):
        """A function from names to stored regions."""
        return lambda names: (
            torch.stack([features[name] for name in names]),
            torch.stack([boxes[name] for name in names]),
        )

    features, boxes = some_regions(20)(PICTURES)
    names = ["owl.jpg", "fox.jpg", "circle.jpg"]
    reader = load_reader(folder_of("lxmert"), regions=lookup(dict(zip(names, features)), dict(zip(names, boxes))))
    close(reader(names[::-1], TEXTS).pooled, READERS["lxmert"](PICTURES[::-1], TEXTS).pooled)


@pytest.mark.nb("nbs/4_pretraining/19b_probing_hf.ipynb", "ac6b42e2")
def test_lookup_starter_fails(setup_b62824fa, setup_2c72f820, setup_3edde302):
    PICTURES, TEXTS, _, folder_of, some_regions = setup_b62824fa
    READERS = setup_2c72f820
    _, close, _ = setup_3edde302

    def lookup(features: dict, boxes: dict):
        """A function from names to stored regions."""
        return lambda names: (torch.zeros(len(names), 7, 20), torch.zeros(len(names), 7, 4))

    with pytest.raises(Exception):
        features, boxes = some_regions(20)(PICTURES)
        names = ["owl.jpg", "fox.jpg", "circle.jpg"]
        reader = load_reader(folder_of("lxmert"), regions=lookup(dict(zip(names, features)), dict(zip(names, boxes))))
        close(reader(names[::-1], TEXTS).pooled, READERS["lxmert"](PICTURES[::-1], TEXTS).pooled)
