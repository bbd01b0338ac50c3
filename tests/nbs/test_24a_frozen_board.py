"""Generated from nbs/5_prompting/24a_frozen_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from vlp_course.lab import result_path
from vlp_course.models.frozen import Frozen
from vlp_course.models.frozen import VisualPrefix
from vlp_course.models.frozen import shots_prompt
from vlp_course.models.frozen import word_scale
from vlp_course.frozen_board import ASKED, BATCH, SHOTS, main


@pytest.mark.nb("nbs/5_prompting/24a_frozen_board.ipynb", "dda45936")
def test_what_is_recorded_is_kept():
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1, 2):
            path = result_path(Path(folder), "prompts-frozen", {"row": "captions", "budget": "quick", "seed": seed})
            path.parent.mkdir(exist_ok=True), path.write_text('{"row": "captions", "budget": "quick"}')
        main(["--results", folder])  # nothing to do: no model is loaded
        assert len(list(Path(folder, "prompts-frozen").iterdir())) == 3 and SHOTS[0] == 0 and ASKED % BATCH == 0


@pytest.mark.nb("nbs/5_prompting/24a_frozen_board.ipynb", "35ac3f83")
def test_captions_learn_through_a_frozen_model():
    import copy
    from transformers import LlamaConfig, LlamaForCausalLM
    from vlp_course.nn.encoders import ImageEncoder
    from vlp_course.nn.language import wrap
    import vlp_course.frozen_board as board

    class Letters:
        """A tokenizer that reads the first 14 letters."""

        bos_token, bos_token_id = "#", 35

        def __call__(self, texts, **_):
            if isinstance(texts, str):
                return {"input_ids": [ord(c) % 97 for c in texts[:14]]}
            ids = torch.tensor([[ord(c) % 97 for c in t[:14].ljust(14)] for t in texts])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    torch.manual_seed(0)
    lm = wrap(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=3,
                num_key_value_heads=1,
                intermediate_size=16,
                tie_word_embeddings=True,
            )
        ),
        Letters(),
    )
    for p in lm.parameters():
        p.data += 0.4 * torch.randn_like(p)  # a model whose words differ
    before, model = (
        copy.deepcopy(lm.state_dict()),
        Frozen(lm, VisualPrefix(ImageEncoder(8, 2), 8, 24, 2, word_scale(lm))),
    )
    cached, board.features_of = (
        board.features_of,
        lambda part: np.broadcast_to(np.linspace(-1, 1, 12288, dtype=np.float16), (16002, 12288)),
    )
    try:
        curve = board.train_captions(model, 20, 0.05, 0)
    finally:
        board.features_of = cached
    assert np.mean(curve[-5:]) < np.mean(curve[:5]) - 0.1 and all(
        torch.equal(before[k], v) for k, v in lm.state_dict().items()
    )


@pytest.mark.nb("nbs/5_prompting/24a_frozen_board.ipynb", "75439c73")
def test_sight():
    def sight(right, other, black):
        return other - right, black - right

    assert sight(2.0, 2.5, 2.25) == (0.5, 0.25)


@pytest.mark.nb("nbs/5_prompting/24a_frozen_board.ipynb", "75439c73")
def test_sight_starter_fails():
    def sight(right, other, black):
        return right - other, right - black

    with pytest.raises(Exception):
        assert sight(2.0, 2.5, 2.25) == (0.5, 0.25)


@pytest.mark.nb("nbs/5_prompting/24a_frozen_board.ipynb", "57ce7bf3")
def test_repeated():
    def repeated(shots, times):
        return [shot for _ in range(times) for shot in shots]

    assert shots_prompt(repeated([("q", "a")], 2), "r").count("<image>") == 3 and repeated([1, 2], 2) == [1, 2, 1, 2]


@pytest.mark.nb("nbs/5_prompting/24a_frozen_board.ipynb", "57ce7bf3")
def test_repeated_starter_fails():
    def repeated(shots, times):
        return shots

    with pytest.raises(Exception):
        assert shots_prompt(repeated([("q", "a")], 2), "r").count("<image>") == 3 and repeated([1, 2], 2) == [
            1,
            2,
            1,
            2,
        ]
