"""Does the best learning rate of a small model hold for a larger one? muP, and without it.

    python -m pretrain.study --config=configs/mup.py --workdir=runs/mup
    python -m tools.rates --config=configs/mup.py --workdir=runs/mup --plot=runs/mup/rates.png

Argument: nothing for the study, `quick` to try it (30 steps a run, two sizes).

GPT's block, 5 layers, 512 pieces, heads of 64, at widths of 128, 256 and 512: 1.1, 4.1 and 16.1
million parameters, embeddings included. Without muP matrices begin with a standard deviation of
1 / sqrt(width), the standard parametrisation; with it the widths have that of the first width,
`mup_base_width`. So the first width is the same model in both.
"""

from ml_collections import ConfigDict

from pretrain import config as configs

WIDTHS = {"1M": 128, "4M": 256, "15M": 512}  # width
BASE = "1M"
RATES = {  # in steps of a factor 2, at least one to each side of the best
    ("1M", ""): (0.5, 1, 2, 4, 8),
    ("4M", "standard"): (0.25, 0.5, 1, 2),
    ("4M", "muP"): (1, 2, 4),
    ("15M", "standard"): (0.25, 0.5, 1),
    ("15M", "muP"): (1, 2, 4),
}
UNIT = 2.0**-10  # of RATES
PLANS = {"full": (250, tuple(WIDTHS)), "quick": (30, ("1M", "4M"))}  # steps, sizes
LAYERS, SEQ, ROWS, PIECES = 5, 64, 4, 512


def get_config(arg=None):
    arg = configs.parse_arg(arg, variant="full")
    steps, sizes = configs.variant(PLANS, arg.variant)
    return ConfigDict(
        dict(
            title="Does the best learning rate hold for larger models?",
            question=(
                "One decoder at several widths, and the learning rate that is best for each, in "
                "the standard parametrisation and in muP (Yang et al. 2022)."
            ),
            notes=("The first width is muP's base: both parametrisations are the same model.",),
            runs=tuple(
                run(size, kind, unit * UNIT, steps)
                for (size, kind), units in RATES.items()
                for unit in units
                if size in sizes
            ),
        )
    )


def run(size, kind, lr, steps):
    """One width at one rate."""
    width, base = WIDTHS[size], WIDTHS[BASE]
    mup = kind == "muP"
    return dict(
        name=f"{'-'.join(filter(None, (size, kind)))}-lr{lr:.1e}",
        config="configs/gpt.py",
        arg=f"tiny,seq={SEQ}",
        model=", ".join(filter(None, (size, kind))),
        overrides={
            "model.num_layers": LAYERS,
            "model.hidden_size": width,
            "model.num_heads": width // 64,
            "model.ffn_size": 4 * width,
            "model.max_positions": SEQ,
            "model.init_std": (base if mup else width) ** -0.5,
            "model.mup_base_width": base if mup else 0,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "optimizer.lr": lr,
            "optimizer.weight_decay": 0.0,
            "tokenizer.type": "bpe",
            "tokenizer.vocab_size": PIECES,
            "train.batch_size": ROWS,
            "train.budget": f"{steps} steps",
            "evals.every": "100%",
            "evals.batches": 2,
        },
    )
