"""Distillation: a student learns from the outputs, states and attention of a finished run.

Argument: a recipe, and `teacher=` the workdir of the finished run (see docs/distillation.md):

  distilbert        every second layer of a masked language model, trained on by its outputs at
                    temperature 2, by masked language modelling and by the cosine of its states
  tinybert          a narrower student learns embeddings, states and attention scores from text
  tinybert-layers   the same of a teacher that labels texts, from its workdir `student=`
  tinybert-outputs  then the labels' probabilities; `student=` the run of tinybert-layers
  mobilebert        layer after layer from an IB-BERT teacher (configs/mobilebert.py:teacher), then
                    its outputs; `nsp`: beside next-sentence prediction, as it was trained
  minilm            self-attention relations of the teacher's last layer, into any width
  labels            probabilities of the labels alone, into any encoder, whatever its tokenizer

`size` names the student's shape, where it has none yet: as in bert.py, without labels also as in
tinybert.py, of MobileBERT as in mobilebert.py (which has teachers of that shape too); `task`
(classify, the default, or ner) what a labelled one learns; `seq` the length of rows.

DistilBERT (Sanh et al. 2019), TinyBERT (Jiao et al. 2020), MobileBERT (Sun et al. 2020), MiniLM
(Wang et al. 2020; 2021), Hinton et al. 2015. Rates are for 32 rows a batch.
"""

from configs import bert, classify, mobilebert, ner, tinybert
from pretrain import config as configs
from pretrain.errors import UserError

TINYBERT = dict(task=0.0, embeddings=1.0, hidden=1.0, attention_scores=1.0, projection="shared")
RECIPES = {
    "distilbert": dict(task=2.0, logits=5.0, temperature=2.0, all_positions=True, cosine=1.0),
    "tinybert": TINYBERT,
    "tinybert-layers": TINYBERT,
    "tinybert-outputs": dict(task=0.0, logits=1.0),
    # Layers in the first third of the budget as in the authors' 240k of 740k steps, then gold and
    # soft targets in equal parts.
    "mobilebert": dict(
        task=0.5, logits=0.5, hidden=100.0, standardise=True, attention=1.0, mean=5000.0,
        variance=5.0, progressive=0.324,
    ),
    "minilm": dict(task=0.0, relations=1.0),
    "labels": dict(task=0.5, logits=0.5, temperature=2.0),
}  # fmt: skip
LABELLED = ("tinybert-layers", "tinybert-outputs", "labels")


def get_config(arg=None):
    arg = configs.parse_arg(
        arg,
        variant="distilbert",
        teacher="",
        student="",
        size="",
        task="",
        seq=128,
        nsp=False,
    )
    terms = configs.variant(RECIPES, arg.variant)
    if arg.size and (arg.student or arg.variant == "distilbert"):
        raise UserError(
            f"config argument 'size': found {arg.size!r}, expected none: the model is that of "
            f"{'student' if arg.student else 'the teacher'}"
        )
    if arg.nsp and arg.variant != "mobilebert":
        raise UserError(f"config argument 'nsp': found it with {arg.variant!r}, expected none")
    if arg.task and arg.variant not in LABELLED:
        raise UserError(
            f"config argument 'task': found {arg.task!r} with {arg.variant!r}, expected none"
        )
    if arg.variant in LABELLED:
        task = configs.variant({"classify": classify, "ner": ner}, arg.task or "classify")
        config = task.get_config(f"{arg.size or 'tiny'},seq={arg.seq}")
        config.init_from = arg.student
    elif arg.student:
        raise UserError(f"config argument 'student': found it with {arg.variant!r}, expected none")
    elif arg.variant == "mobilebert":
        config = mobilebert.get_config(f"{arg.size or 'micro'},seq={arg.seq},nsp={arg.nsp}")
    else:
        family = tinybert if arg.size in tinybert.SIZES else bert
        config = family.get_config(f"{arg.size or 'tiny'},seq={arg.seq}")
    config.label = f"{arg.variant} student"
    config.distill.update(terms)
    config.distill.teacher = arg.teacher
    if arg.variant == "distilbert":
        config.init_from = arg.teacher
        config.surgery.layers = "0,2,4,7,9,11"  # of a teacher of 12; others: set it anew
        config.optimizer.lr, config.optimizer.warmup = 5e-4, "5%"
        config.optimizer.weight_decay, config.optimizer.clip = 0.0, 5.0
    elif arg.variant == "tinybert-layers":
        config.optimizer.schedule, config.optimizer.warmup = "constant", ""
        config.checkpoint.best = ""  # no loss reaches the labels yet: their score says nothing
    if arg.variant == "tinybert-layers" and not arg.student:
        config.tokenizer.path, config.tokenizer.source = arg.teacher, ""  # the teacher's pieces
    return config
