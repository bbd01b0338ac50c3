"""Generated from nbs/5_prompting/21_soft_prompts.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors
from transformers import BertConfig
from transformers import BertForSequenceClassification
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PreTrainedTokenizerFast
from transformers import T5Config
from transformers import T5ForConditionalGeneration
from transformers.utils import logging
from vlp_course.prompts.soft import (
    PTuned,
    PromptEncoder,
    PromptTuned,
    Template,
    Vectors,
    prepend,
    sampled_vectors,
    uniform_vectors,
    word_vectors,
)


@pytest.fixture(scope="module")
def setup_11b921b4():
    logging.set_verbosity_error()
    IDS = torch.tensor([[5, 9, 33, 8, 41, 7, 12], [20, 3, 17, 55, 6, 0, 0]])  # 2 rows of 7 tokens, the second padded
    MASK = (IDS > 0).long()

    def tiny(kind, positions=40):
        """A model of 24 dimensions, 2 layers and 61 words with weights large enough to matter."""
        torch.manual_seed(1)
        models = {
            "gpt2": lambda: GPT2LMHeadModel(
                GPT2Config(n_embd=24, n_layer=2, n_head=3, vocab_size=61, n_positions=positions)
            ),
            "llama": lambda: LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=6,
                    num_key_value_heads=3,
                    intermediate_size=30,
                    vocab_size=61,
                    max_position_embeddings=positions,
                )
            ),
            "bert": lambda: BertForSequenceClassification(
                BertConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=3,
                    num_labels=4,
                    intermediate_size=30,
                    vocab_size=61,
                    max_position_embeddings=positions,
                )
            ),
            "t5": lambda: T5ForConditionalGeneration(
                T5Config(
                    d_model=24, d_kv=8, d_ff=30, num_layers=2, num_heads=3, vocab_size=61, decoder_start_token_id=0
                )
            ),
        }
        model = models[kind]().eval().double()
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return model

    def extra(kind):
        return {"decoder_input_ids": IDS[:, :3]} if kind == "t5" else {}

    def digest(module):
        return hashlib.sha256(
            b"".join(v.contiguous().numpy().tobytes() for v in module.state_dict().values())
        ).hexdigest()

    return IDS, MASK, digest, extra, tiny


@pytest.fixture(scope="module")
def setup_4d76c5cd():
    WORDS = "[PAD] [UNK] [CLS] [SEP] good bad film plot the it was ##ly".split() + [f"w{n}" for n in range(49)]

    def tiny_tokenizer():
        core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        core.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )

    return tiny_tokenizer


@pytest.fixture(scope="module")
def setup_1d39b060(setup_11b921b4):
    IDS, MASK, _, extra, _ = setup_11b921b4

    def learners(module):
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    def few_steps(tuned, kind, steps=3, rate=0.1):
        optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], rate)
        for _ in range(steps):
            optimiser.zero_grad()
            tuned(IDS, MASK, **extra(kind)).logits.square().mean().backward()
            optimiser.step()

    return few_steps, learners


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "effce580")
def test_words_as_a_prompt_are_words(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4
    model, words = tiny("gpt2"), torch.tensor([11, 4, 30])  # the vectors of three words, in front of the rest
    vectors = model.get_input_embeddings().weight[words]
    given = model(**prepend(model, vectors, IDS, MASK)).logits
    typed = model(
        input_ids=torch.cat([words.expand(2, -1), IDS], 1), attention_mask=torch.cat([torch.ones(2, 3).long(), MASK], 1)
    ).logits
    torch.testing.assert_close(given, typed, rtol=0, atol=1e-12)
    each = torch.stack([vectors, vectors.flip(0)])  # a prompt for each row
    rows = model(**prepend(model, each, IDS, MASK)).logits
    torch.testing.assert_close(rows[0], given[0], rtol=0, atol=1e-12)
    assert (rows[1] - given[1]).abs().max() > 0.01


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "236ed138")
def test_a_prompt_that_does_not_fit(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4
    for kind in ("gpt2", "bert", "llama"):
        model = tiny(kind, positions=10)
        prepend(model, torch.zeros(3, 24), IDS, MASK)
        with pytest.raises(ValueError, match="4 virtual and 7 real tokens: the model's context is 10"):
            prepend(model, torch.zeros(4, 24), IDS, MASK)
    prepend(tiny("t5"), torch.zeros(900, 24), IDS, MASK)  # relative positions: no limit
    with pytest.raises(
        ValueError, match="vectors of width 23 for a model whose inputs are 24 wide: made for another model?"
    ):
        prepend(tiny("gpt2"), torch.zeros(3, 23), IDS, MASK)


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "dbf553b3")
def test_three_beginnings(setup_11b921b4, setup_4d76c5cd):
    _, _, _, _, tiny = setup_11b921b4
    tiny_tokenizer = setup_4d76c5cd
    model, draw = tiny("bert"), lambda seed: torch.Generator().manual_seed(seed)
    table = model.get_input_embeddings().weight
    flat = uniform_vectors(model, 500, draw(0))
    assert (
        flat.shape == (500, 24)
        and flat.dtype == torch.float64
        and -0.5 <= flat.min() < -0.49
        and 0.49 < flat.max() <= 0.5
        and abs(flat.mean()) < 0.02
    )
    some = sampled_vectors(model, 61, draw(0))
    assert sorted(map(tuple, some.tolist())) == sorted(map(tuple, table.tolist()))  # all different: without replacement
    assert all(any(v.equal(table[i]) for i in (7, 9)) for v in sampled_vectors(model, 2, draw(1), among=[7, 9]))
    made = word_vectors(model, tiny_tokenizer(), ["good", "badly"], 5, draw(0))
    torch.testing.assert_close(made[0], table[4])
    torch.testing.assert_close(made[1], (table[5] + table[11]) / 2)  # bad, ##ly
    torch.testing.assert_close(made[2:], sampled_vectors(model, 3, draw(0)))
    assert not made.requires_grad
    with pytest.raises(ValueError, match="62 different words out of 61: draw from more words"):
        sampled_vectors(model, 62, draw(0))
    with pytest.raises(ValueError, match="2 words for 1 vectors: a prompt needs at least one vector a word"):
        word_vectors(model, tiny_tokenizer(), ["good", "bad"], 1, draw(0))
    with pytest.raises(ValueError, match="'great' is not in the vocabulary"):
        word_vectors(model, tiny_tokenizer(), ["great"], 5, draw(0))


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "dae1bb8a")
def test_only_the_prompt_learns(setup_11b921b4, setup_1d39b060):
    _, _, digest, _, tiny = setup_11b921b4
    few_steps, learners = setup_1d39b060
    for kind in ("gpt2", "llama", "bert", "t5"):
        model = tiny(kind)
        tuned = PromptTuned(model, Vectors(torch.randn(5, 24)))
        assert learners(tuned) == 5 * 24
        before, start = digest(model), tuned.prompt().detach().clone()
        few_steps(tuned.train(), kind)
        assert (
            digest(model) == before and (tuned.prompt() - start).abs().min() > 1e-4
        )  # no bit of the model, every number of the prompt


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "3d03b97b")
def test_labels_of_the_prompt_do_not_count(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4
    tuned = PromptTuned(tiny("gpt2"), Vectors(torch.randn(5, 24)))
    labels = IDS.masked_fill(MASK == 0, -100)
    out = tuned(IDS, MASK, labels=labels)
    by_hand = F.cross_entropy(
        out.logits[:, 4:-1].flatten(0, 1), labels.flatten(), ignore_index=-100
    )  # the last vector writes the first word
    torch.testing.assert_close(out.loss.double(), by_hand, rtol=0, atol=1e-6)  # transformers computes it in 32 bits


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "d64d8d6a")
def test_the_sizes_of_prompt_encoders(setup_1d39b060):
    _, learners = setup_1d39b060
    P, D, h = 5, 24, 7
    start = torch.randn(P, D, dtype=torch.float64)
    mlp = PromptEncoder(start, "mlp", h)
    assert mlp().shape == (P, D) and mlp().dtype == torch.float64
    assert learners(mlp) == P * D + (D * h + h) + (h * h + h) + (h * D + D)
    lstm, one = PromptEncoder(start), lambda wide, h: 4 * (wide * h + h * h + 2 * h)  # four gates, two biases
    h = D // 2
    assert learners(lstm) == P * D + 2 * one(D, h) + 2 * one(2 * h, h) + 2 * (D * D + D)
    alone = mlp()[2].detach()
    with torch.no_grad():
        mlp.embedding.weight[3] += 1
        lone = lstm()[2].clone()
        lstm.embedding.weight[3] += 1
    assert mlp()[2].equal(alone) and not lstm()[2].equal(lone)  # an MLP sees one vector, a BiLSTM its neighbours
    with pytest.raises(ValueError, match="unknown prompt encoder 'gru': choose lstm or mlp"):
        PromptEncoder(start, "gru")


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "0cf0973e")
def test_a_template_by_hand(setup_4d76c5cd):
    tiny_tokenizer = setup_4d76c5cd
    template = Template(tiny_tokenizer(), 2, "{text}", 1, "it was", most=3)
    slots = template(["good film", "the badly plot good"])
    assert slots.input_ids.tolist() == [
        [2, 0, 0, 4, 6, 0, 9, 10, 3, 0],
        [2, 0, 0, 8, 5, 11, 0, 9, 10, 3],
    ]  # plot and good are cut
    assert slots.pseudo.tolist() == [[-1, 0, 1, -1, -1, 2, -1, -1, -1, -1], [-1, 0, 1, -1, -1, -1, 2, -1, -1, -1]]
    assert slots.attention_mask.tolist() == [[1] * 9 + [0], [1] * 10] and template.count == 3
    for parts, slots in (((3, "it was"), 0), ((1, "{text}", "{text}"), 2)):
        with pytest.raises(ValueError, match=f'the template has {slots} slots: it needs exactly one "{{text}}"'):
            Template(tiny_tokenizer(), *parts)
    with pytest.raises(ValueError, match="the template has no pseudo token: put a number above 0 into it"):
        Template(tiny_tokenizer(), "{text}", "it was")


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "a411bc28")
def test_pseudo_tokens_stand_where_the_template_says(setup_1d39b060, setup_11b921b4, setup_4d76c5cd):
    _, learners = setup_1d39b060
    _, _, _, _, tiny = setup_11b921b4
    tiny_tokenizer = setup_4d76c5cd
    model = tiny("bert")
    template = Template(tiny_tokenizer(), 2, "{text}", 1, "it was")
    tuned = PTuned(model, Vectors(torch.randn(3, 24, dtype=torch.float64)), template)
    slots = template(["good film", "the badly plot good"])
    got, table = tuned.embed(slots), model.get_input_embeddings().weight
    slow = torch.stack(
        [
            torch.stack([tuned.prompt()[p] if p >= 0 else table[i] for i, p in zip(*row)])
            for row in zip(slots.input_ids.tolist(), slots.pseudo.tolist())
        ]
    )
    assert torch.equal(got, slow)
    assert (
        learners(tuned) == 3 * 24
        and learners(PTuned(model, Vectors(torch.randn(3, 24)), template, frozen=False)) > 10_000
    )
    front = Template(tiny_tokenizer(), 3, "{text}")
    front.begin = front.end = []  # all in front, no specials: prompt tuning
    tuned = PTuned(tiny("bert"), Vectors(torch.randn(3, 24, dtype=torch.float64)), front)
    words = front.tokenizer(["good film plot"], add_special_tokens=False, return_tensors="pt")
    same = PromptTuned(tuned.model, tuned.prompt)(words["input_ids"], words["attention_mask"]).logits
    torch.testing.assert_close(tuned(front(["good film plot"])).logits, same, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="4 vectors for 3 pseudo tokens"):
        PTuned(model, Vectors(torch.randn(4, 24)), template)
    with pytest.raises(ValueError, match="vectors of width 9 for a model"):
        PTuned(model, Vectors(torch.randn(3, 9)), template)
    with pytest.raises(ValueError, match="3 virtual and 5 real tokens: the model's context is 7"):
        PTuned(
            tiny("bert", positions=7), Vectors(torch.randn(3, 24)), Template(tiny_tokenizer(), 3, "{text}", "it was")
        )(Template(tiny_tokenizer(), 3, "{text}", "it was")(["good"]))


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "5c43f9d8")
def test_what_the_prompt_encoder_leaves_behind(setup_11b921b4, setup_4d76c5cd):
    _, _, digest, _, tiny = setup_11b921b4
    tiny_tokenizer = setup_4d76c5cd
    model = tiny("bert")
    template = Template(tiny_tokenizer(), 2, "{text}", 3)
    tuned = PTuned(model, PromptEncoder(torch.randn(5, 24, dtype=torch.float64)), template)
    optimiser, slots = torch.optim.Adam(tuned.prompt.parameters(), 0.01), template(["good film", "bad plot"])
    before = digest(model)
    for _ in range(3):
        optimiser.zero_grad(), F.cross_entropy(tuned(slots).logits, torch.tensor([1, 3])).backward(), optimiser.step()
    kept = PTuned(model, Vectors(tuned.prompt()), template)  # after training, 5 vectors say all
    assert torch.equal(kept(slots).logits, tuned(slots).logits) and digest(model) == before


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "e4c6d07a")
def test_prompts_a_copy():
    def prompts_a_copy(parameters, tokens, width):
        return parameters // (tokens * width)

    assert prompts_a_copy(11_000_000_000, 5, 4096) == 537_109 and prompts_a_copy(100, 3, 7) == 4


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "e4c6d07a")
def test_prompts_a_copy_starter_fails():
    def prompts_a_copy(parameters, tokens, width):
        return parameters // width

    with pytest.raises(Exception):
        assert prompts_a_copy(11_000_000_000, 5, 4096) == 537_109 and prompts_a_copy(100, 3, 7) == 4


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "9d38ad05")
def test_nearest_words():
    def nearest_words(vectors, table):
        return (F.normalize(vectors, dim=-1) @ F.normalize(table, dim=-1).T).argmax(1)

    table = torch.tensor([[1.0, 0.0], [0.6, 0.8], [9.0, 9.0]])
    assert nearest_words(torch.tensor([[3.0, 0.1], [0.5, 0.7]]), table).tolist() == [0, 1]


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "9d38ad05")
def test_nearest_words_starter_fails():
    def nearest_words(vectors, table):
        return (vectors @ table.T).argmax(1)

    with pytest.raises(Exception):
        table = torch.tensor([[1.0, 0.0], [0.6, 0.8], [9.0, 9.0]])
        assert nearest_words(torch.tensor([[3.0, 0.1], [0.5, 0.7]]), table).tolist() == [0, 1]


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "adf1f640")
def test_from_hand(setup_11b921b4, setup_4d76c5cd):
    _, _, _, _, tiny = setup_11b921b4
    tiny_tokenizer = setup_4d76c5cd

    def from_hand(model, tokenizer, words):
        return (
            model.get_input_embeddings()
            .weight.detach()[tokenizer(words, add_special_tokens=False)["input_ids"]]
            .clone()
        )

    model, tokenizer = tiny("bert"), tiny_tokenizer()
    tuned = PTuned(model, Vectors(from_hand(model, tokenizer, "it was badly")), Template(tokenizer, "{text}", 4))
    hand = tokenizer("good film it was badly", return_tensors="pt")
    torch.testing.assert_close(
        tuned(tuned.template(["good film"])).logits,
        model(input_ids=hand["input_ids"], attention_mask=hand["attention_mask"]).logits,
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.nb("nbs/5_prompting/21_soft_prompts.ipynb", "adf1f640")
def test_from_hand_starter_fails(setup_11b921b4, setup_4d76c5cd):
    _, _, _, _, tiny = setup_11b921b4
    tiny_tokenizer = setup_4d76c5cd

    def from_hand(model, tokenizer, words):
        return uniform_vectors(model, len(words.split()), torch.Generator().manual_seed(0))

    with pytest.raises(Exception):
        model, tokenizer = tiny("bert"), tiny_tokenizer()
        tuned = PTuned(model, Vectors(from_hand(model, tokenizer, "it was badly")), Template(tokenizer, "{text}", 4))
        hand = tokenizer("good film it was badly", return_tensors="pt")
        torch.testing.assert_close(
            tuned(tuned.template(["good film"])).logits,
            model(input_ids=hand["input_ids"], attention_mask=hand["attention_mask"]).logits,
            rtol=0,
            atol=1e-12,
        )
