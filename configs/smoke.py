"""One run for each way to learn, of under a minute on two cores, on the embedded data.

Argument: what to try; the model is one layer of width 64, trained for 150 steps of 16 rows. A
check that an objective runs and its loss falls, not that it is any good. `distill` learns from the
run of `mlm`, whose workdir is `teacher` (runs/smoke-mlm):

    python -m pretrain.train --config=configs/smoke.py:mlm --workdir=runs/smoke-mlm
    python -m pretrain.train --config=configs/smoke.py:distill --workdir=runs/smoke-distill
"""

import importlib

from pretrain import config as configs
from pretrain.errors import UserError

OBJECTIVES = {  # config file, its argument
    "mlm": ("bert", "micro"),
    "whole-words": ("bert", "micro,wwm"),
    "static": ("bert", "micro,static"),
    "nsp": ("bert", "micro,nsp"),
    "sop": ("bert", "micro,sop"),
    "rtd": ("electra", "small"),
    "random-rtd": ("electra", "small,random"),
    "causal": ("gpt", "tiny"),
    "prefix": ("gpt", "tiny,prefix"),
    "recurrent": ("transformer_xl", "tiny"),
    "spans": ("t5", "tiny"),
    "infilling": ("bart", "tiny"),
    "denoising": ("bart", "tiny,tokens"),
    "classify": ("classify", "micro"),
    "tag": ("ner", "micro"),
    "distill": ("distill", "distilbert"),
}
SEQ, PIECES = 64, 2048


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="mlm", teacher="")
    name, argument = configs.variant(OBJECTIVES, arg.variant)
    if name == "distill":
        argument += f",teacher={arg.teacher or 'runs/smoke-mlm'}"
    elif arg.teacher:
        raise UserError(
            f"config argument 'teacher': found it with {arg.variant!r}, expected 'distill'"
        )
    config = importlib.import_module(f"configs.{name}").get_config(f"{argument},seq={SEQ}")
    config.label = f"smoke, {arg.variant}"
    model, optimizer = config.model, config.optimizer
    model.num_layers, model.hidden_size, model.num_heads, model.ffn_size = 1, 64, 2, 128
    model.dropout = model.attention_dropout = 0.0
    model.init_std = 0.125  # 1 / sqrt(width)
    config.tokenizer.type, config.tokenizer.vocab_size = "bpe", PIECES
    if name == "distill":  # from random weights: the teacher has no layers to leave out
        config.init_from, config.surgery.layers = "", ""
    if name == "electra":
        model.embedding_size = 0
    if name == "transformer_xl":
        model.vocab_size, model.cutoffs, model.div_val = 0, "", 1
    if name == "t5":
        model.head_size, model.vocab_size = 32, PIECES + config.objective.num_sentinels
    if name != "t5":  # whose optimizer has another unit
        optimizer.lr = 3e-3
    optimizer.warmup, optimizer.schedule = "10%", "linear"
    config.train.batch_size, config.train.budget = 16, "150 steps"
    config.evals.every, config.evals.batches = "100%", 4
    return config
