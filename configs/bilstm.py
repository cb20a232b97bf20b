"""BiLSTMs over words and their characters, with vocabularies of their own, from scratch.

Argument: `ner`, a BiLSTM-CRF with a character CNN (Ma & Hovy 2016), or with `characters=lstm` a
character LSTM (Lample et al. 2016); `classify`, the mean of a BiLSTM's states.
"""

from pretrain import config as configs

VARIANTS = {"ner": "tag", "classify": "classify"}  # objective


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="ner", characters="")
    task = configs.variant(VARIANTS, arg.variant)
    config = configs.base(model="bilstm", objective=task)
    if task == "tag":
        config.label = "BiLSTM-CRF"
        config.objective.crf = True
        config.train.batch_size, config.train.seq_len = 16, 128
    else:
        config.label = "BiLSTM"
        config.model.characters = "none"
        config.train.batch_size, config.train.seq_len = 32, 256
    if arg.characters:
        config.model.characters = arg.characters
    subset = "role" if task == "tag" else "package"
    config.data.train = f"docstrings:{subset}:train"
    config.data.validation = f"docstrings:{subset}:validation"
    config.data.test = f"docstrings:{subset}:test"
    config.objective.head_dropout = 0.0  # the trunk drops its output
    config.optimizer.lr, config.optimizer.warmup = 3e-3, "5%"
    config.optimizer.weight_decay = 0.0
    config.train.budget = "10 epochs"
    config.checkpoint.best = "f1" if task == "tag" else "accuracy"
    return config
