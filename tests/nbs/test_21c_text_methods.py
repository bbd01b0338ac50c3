"""Generated from nbs/5_prompting/21c_text_methods.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig
from transformers import BertModel
from transformers import LlamaConfig
from transformers import LlamaModel
from vlp_course.data.snippets import Snippets
from vlp_course.data.snippets import in_batches
from vlp_course.nn.language import LanguageModel
from vlp_course.prompts.cloze import CONTENT_FREE
from vlp_course.prompts.text_methods import Classifier, LENGTHS, RATES, Task, adapt, train_classifier


@pytest.fixture(scope="module")
def setup_c3d71d98():
    class Pieces:
        """Whole words as tokens: enough of a tokenizer for the tests."""

        pad_token_id, cls_token_id, bos_token_id, unk_token_id = 0, 1, 0, None
        words = [
            "[PAD]",
            "[CLS]",
            "[SEP]",
            *"N/A [MASK] it was a great terrible movie good bad fine dull plot film . Overall, the It movie.".split(),
        ]

        def __call__(
            self, texts, add_special_tokens=True, return_tensors=None, padding=False, return_offsets_mapping=False
        ):
            rows = [texts] if isinstance(texts, str) else texts
            ids = [[self.words.index(w) for w in t.split()] for t in rows]
            ids = [[1, *r, 2] if add_special_tokens else r for r in ids]
            found = {"input_ids": ids[0] if isinstance(texts, str) else ids}
            if return_offsets_mapping:
                found["offset_mapping"] = [[(0, 0)] * len(r) for r in ids]
            if return_tensors:
                longest = max(map(len, ids))
                found = {
                    "input_ids": torch.tensor([r + [0] * (longest - len(r)) for r in ids]),
                    "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in ids]),
                }
            return found

    def tiny_language(causal=False):
        torch.manual_seed(2)
        if causal:
            base = LlamaModel(
                LlamaConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=6,
                    num_key_value_heads=3,
                    intermediate_size=30,
                    vocab_size=6100,
                    max_position_embeddings=64,
                )
            )
        else:
            base = BertModel(
                BertConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=3,
                    intermediate_size=30,
                    vocab_size=6100,
                    max_position_embeddings=64,
                ),
                add_pooling_layer=False,
            )
        return LanguageModel(base, Pieces(), causal).freeze(), Task(
            "{text}", ("It was a terrible movie.", "It was a great movie."), 20.0, 8
        ) if not causal else Task("{text} Overall, the movie was", ("terrible", "great"), 1.0, 4)

    return tiny_language


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "b449825c")
def test_the_start_is_the_calibrated_prompt(setup_c3d71d98):
    tiny_language = setup_c3d71d98
    model = Classifier(*tiny_language())
    h = lambda text: model.states([text])[0]
    torch.testing.assert_close(
        model(["good film"])[0], torch.stack([20 * h(a) @ h("good film") for a in model.task.answers]), rtol=0, atol=0.3
    )  # bf16 has 8 bits
    plain = model(list(CONTENT_FREE)).mean(0)
    model.calibrate()
    torch.testing.assert_close(model(list(CONTENT_FREE)).mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    assert abs(plain).max() > 0.1 and not model.train().training
    texts = ["good film", "dull plot it was a bad movie", "fine", "a great film it was"]
    torch.testing.assert_close(
        in_batches(model, texts, 3), torch.cat([model([t]) for t in texts]), rtol=0, atol=0.2
    )  # any order, any neighbours
    causal = Classifier(*tiny_language(True)).calibrate()
    torch.testing.assert_close(causal(texts), torch.cat([causal([t]) for t in texts]), rtol=0, atol=0.1)


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "6a3bbfc1")
def test_what_each_method_trains_and_keeps(setup_c3d71d98):
    tiny_language = setup_c3d71d98
    D, L, head = 24, 2, 2 * 24 + 2
    biases = 24 + L * (4 * D + D + 30 + D + D)
    lstm = 8 * D + 2 * 4 * (D * 12 + 12 * 12 + 24) + 2 * 4 * (24 * 12 + 12 * 12 + 24) + 2 * (24 * 24 + 24)
    whole = sum(p.numel() for p in tiny_language()[0].base.parameters())
    expected = {
        "probe": (head, head),
        "prompt": (10 * D, 10 * D),
        "prefix": (4 * D + (D * 64 + 64) + (64 * 96 + 96), 4 * 96),
        "ptuning": (lstm, 8 * D),
        "deep": (4 * 96 + head,) * 2,
        "lora": (2 * 4 * 48 + head,) * 2,
        "bitfit": (biases + head,) * 2,
        "full": (whole + head,) * 2,
    }
    for method, (trained, kept) in expected.items():
        model = Classifier(*tiny_language()).calibrate()
        assert adapt(model, method, seed=1) == kept, method
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained, method
        assert model(["good film"]).shape == (1, 2)
    for init in ("sampled", "uniform", "normal"):
        assert adapt(Classifier(*tiny_language()), "prompt", 1, init, 5) == 5 * D
    with pytest.raises(ValueError, match="unknown method 'adapters': choose one of probe, prompt"):
        adapt(model, "adapters", 1)
    with pytest.raises(ValueError, match="unknown beginning 'zeros': choose one of labels, sampled, uniform, normal"):
        adapt(Classifier(*tiny_language()), "prompt", 1, "zeros")


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "77617510")
def test_every_method_starts_at_the_prior(setup_c3d71d98):
    tiny_language = setup_c3d71d98
    texts = ["good film", "dull plot it was a bad movie", "a great film it was"]
    bare = Classifier(*tiny_language()).calibrate()
    for method in RATES:
        model = Classifier(*tiny_language())
        adapt(model, method, seed=1)
        torch.testing.assert_close(model(list(CONTENT_FREE)).mean(0), torch.zeros(2), rtol=0, atol=1e-3)
        torch.testing.assert_close(
            model.head.weight, 20 * model.states(list(model.task.answers)), rtol=1e-4, atol=1e-4
        )  # read through its own vectors
        same = (model(texts) - bare(texts)).abs().max() < 1e-3
        assert same == (method not in LENGTHS), method  # vectors change how texts are read, the others nothing
    causal = Classifier(*tiny_language(True))
    words = causal.head.weight.clone()
    adapt(causal, "prompt", seed=1)
    assert torch.equal(causal.head.weight, words) and not causal.head.weight.requires_grad


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "2df3f887")
def test_every_method_learns_four_texts(setup_c3d71d98):
    tiny_language = setup_c3d71d98
    data = Snippets(["good film", "bad plot", "fine movie good", "dull film bad"], torch.tensor([1, 0, 1, 0]))
    for method, lr in {
        "probe": 0.1,
        "prompt": 0.1,
        "prefix": 1e-2,
        "ptuning": 1e-2,
        "deep": 0.1,
        "lora": 3e-2,
        "bitfit": 1e-2,
        "full": 1e-3,
    }.items():
        model = Classifier(*tiny_language())
        adapt(model, method, seed=1)
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        before = F.cross_entropy(model(data.texts), data.labels).item()
        train_classifier(model, data, 30, lr, 0)
        assert F.cross_entropy(model(data.texts), data.labels).item() < before, method
        assert all(p.equal(frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "66e0aa58")
def test_deep_vectors():
    def deep_vectors(rank):
        return 2 * rank  # 2 L D P = 2 L r (D + D)

    for rank, L, D in ((2, 6, 384), (3, 2, 24)):
        assert deep_vectors(rank) * 2 * L * D == 2 * L * rank * (D + D)


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "66e0aa58")
def test_deep_vectors_starter_fails():
    def deep_vectors(rank):
        return rank

    with pytest.raises(Exception):
        for rank, L, D in ((2, 6, 384), (3, 2, 24)):
            assert deep_vectors(rank) * 2 * L * D == 2 * L * rank * (D + D)


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "756bfa8b")
def test_several_answers():
    def several_answers(vectors):
        return F.normalize(torch.stack([F.normalize(v, dim=-1).mean(0) for v in vectors]), dim=-1)

    found = several_answers([torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, -3.0]])])
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


@pytest.mark.nb("nbs/5_prompting/21c_text_methods.ipynb", "756bfa8b")
def test_several_answers_starter_fails():
    def several_answers(vectors):
        return torch.stack([v[0] for v in vectors])

    with pytest.raises(Exception):
        found = several_answers([torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, -3.0]])])
        torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))
