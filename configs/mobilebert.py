"""MobileBERT (Sun et al. 2020): an encoder as deep as BERT-large and a fourth as wide.

Argument: `released`, `tiny` (all of attention within the bottleneck, two feed-forward blocks a
layer), `teacher` (IB-BERT-large, from which both were distilled: the bottleneck is wider than what
it connects), or `micro` and `micro-teacher` for CPUs; `nsp` (with which the authors trained all of
them), `seq`, `published` and `probes` as in bert.py.

The teacher is as its authors configured and ran it: queries, keys and values read the full width,
which makes 294 M parameters (293 M in the paper). The class of transformers allocates 320 M for the
same options, among them two matrices a layer that its own forward pass cannot multiply.

Rates are for 2048 (micro: 32) rows a batch. The students' own training adds the teacher's feature
maps and attention; trained as written here they learn from text by masked language modelling alone.
"""

from configs import bert
from pretrain import config as configs

SIZES = {  # what differs from the released model, the defaults of the ``model`` section
    "released": {},
    "tiny": dict(attention_input="bottleneck", num_ffns=2),
    "teacher": dict(
        attention_input="full", bottleneck_size=1024, ffn_size=4096, num_ffns=1, norm="layer",
        activation="gelu", pooler="bert", dropout=0.1,
    ),
    "micro": dict(
        num_layers=4, hidden_size=128, embedding_size=64, bottleneck_size=64, ffn_size=128,
        num_ffns=2,
    ),
    "micro-teacher": dict(
        num_layers=4, hidden_size=128, embedding_size=64, bottleneck_size=256, ffn_size=512,
        num_ffns=1, attention_input="full", norm="layer", activation="gelu", pooler="bert",
    ),
}  # fmt: skip


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="micro", nsp=False, seq=128, published=False, probes=False)
    options = configs.variant(SIZES, arg.variant)
    micro = arg.variant.startswith("micro")
    optimizer = "adamw" if micro else "lamb"
    config = configs.base(model="mobilebert", objective="mlm", optimizer=optimizer)
    config.label = f"MobileBERT-{arg.variant}"
    config.model.update(options)
    if not micro:
        config.optimizer.lr, config.optimizer.warmup = 1.5e-3, "2%"
    bert.set_pairs(config, "nsp" if arg.nsp else "")
    bert.set_run(config, arg, bert.UNCASED)
    return config
