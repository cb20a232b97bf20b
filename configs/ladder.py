"""A size ladder for scaling studies: one shape rule, one vocabulary, one block, two objectives.

Argument: a rung; `objective=causal` (default) or `objective=mlm` on the same trunk; `seq` and
`probes` as in bert.py.

The rule: k layers of k heads of 64, so a width of 64 k and a constant ratio of width to depth. The
block is Llama's; a gated feed-forward block of 8/3 of the width, to the nearest multiple of 64,
makes 12 width^2 a layer, 49,152 k^3 in all. A rung is named for its parameters outside of the
embedding, and k is the whole number that comes nearest: see docs/models.md for the counts.

Rates fall with the width as in the GPT-3 table (0.5 / width is within a quarter of each of its
rows) and the budget is 20 tokens a parameter (Hoffmann et al. 2022). For the upper rungs give
`train.batch_size`, whose default is for a CPU.
"""

from configs import bert, llama
from pretrain import config as configs
from pretrain.errors import UserError

SIZES = {  # k
    "1m": 3,
    "4m": 4,
    "15m": 7,
    "35m": 9,
    "110m": 13,
    "350m": 19,
    "1b3": 30,
    "7b": 52,
}
VOCAB = 8192
OBJECTIVES = ("causal", "mlm")


def get_config(arg=None):
    defaults = dict(objective="causal", seq=256, probes=False)
    arg = configs.parse_arg(arg, variant="1m", **defaults)
    k = configs.variant(SIZES, arg.variant)
    if arg.objective not in OBJECTIVES:
        raise UserError(
            f"config argument 'objective': found {arg.objective!r}, expected "
            f"{' or '.join(OBJECTIVES)}"
        )
    config = configs.base(objective=arg.objective)
    config.label = f"ladder-{arg.variant}, {arg.objective}"
    model, optimizer = config.model, config.optimizer
    llama.set_block(model)
    width = 64 * k
    model.num_layers, model.hidden_size, model.num_heads = k, width, k
    model.ffn_size = 64 * round(8 * k / 3)
    model.max_positions, model.causal = 2048, arg.objective == "causal"
    model.tied, model.init_std, model.scale_residual_init = True, width**-0.5, True
    arg.published = True  # the vocabulary is part of the rule
    bert.set_run(config, arg, VOCAB)
    config.tokenizer.vocab_size = VOCAB
    config.train.budget = f"{20 * 49152 * k**3} tokens"
    optimizer.lr, optimizer.schedule, optimizer.end = 0.5 / width, "cosine", 0.1
    optimizer.warmup, optimizer.b2, optimizer.eps = "2%", 0.95, 1e-8
    optimizer.weight_decay = 0.1
    return config
