r"""Named entity recognition with an encoder: fine-tuned from `init_from`, or from scratch.

Argument: the size of a model trained from scratch (see bert.py), `modern`, `seq`; `crf` puts a
conditional random field on the tags.

    --config=configs/ner.py --config.init_from=runs/bert-tiny --config.data.train=train.conll \
    --config.data.validation=dev.conll --config.data.test=test.conll
"""

from configs import bert
from pretrain import config as configs


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="tiny", modern=False, seq=128, crf=False)
    config = configs.base(objective="tag")
    config.objective.crf = arg.crf
    bert.set_model(config.model, arg.variant, arg.modern)
    config.model.max_positions = max(512, arg.seq)
    config.data.train = "docstrings:role:train"
    config.data.validation = "docstrings:role:validation"
    config.data.test = "docstrings:role:test"
    config.tokenizer.source = "docstrings:corpus:train"
    config.train.seq_len = arg.seq
    config.train.budget = "10 epochs"
    config.optimizer.lr = 5e-4
    config.checkpoint.best = "f1"
    return config
