"""From configs to the rows of objectives that write sequences, with T5's tokenizer."""

import numpy as np
import pytest

from pretrain import config as configs
from pretrain import tasks
from pretrain.errors import UserError
from tests import small_runs


def task_of(data, **changes):
    path = str(small_runs.TOKENIZERS / "t5")
    config = small_runs.config("t5", data, tokenizer__path=path, **changes)
    read = configs.Reader(config)
    return tasks.build(read), read


def test_a_tokenizer_with_sentinels_and_no_first_token(small_data):
    """Rows as T5 has them; the number of sentinels of other tokenizers is not asked for."""
    task, read = task_of(small_data, objective__num_sentinels=50)
    pieces = task.encoder.tokenizer
    sentinels = [pieces.pieces.index(f"<extra_id_{i}>") for i in range(3)]
    batch = task.splits["train"].dataset[np.arange(8)]
    begins = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
    assert begins.any() and (batch["tokens"][begins] != pieces.cls_id).all()
    assert batch["targets"][:, 0].tolist() == 8 * sentinels[:1]
    assert "objective.num_sentinels" in read.unread()
    _, read = task_of(small_data)
    assert not [key for key in read.unread() if key.startswith("objective")]


def test_too_few_sentinels_of_its_own(small_data):
    with pytest.raises(UserError, match=r"train\.seq_len: found 128, rows of 7 .* at most 3 spans"):
        task_of(small_data, train__seq_len=128)
