"""At which rate is a network of configs/imdb_study.py best fine-tuned? The search for its `BEST`.

    python -m pretrain.study --config=configs/imdb_rates.py:data=FOLDER --workdir=runs/imdb

Tiny networks learn from 500 labels, at two rates, and are scored on 998 further reviews of the
training data. In one folder with the study both share the runs of pretraining, and the page is the
later one's.
"""

from ml_collections import ConfigDict

from configs.imdb import sources
from configs.imdb_study import labelled, pretrained, starts
from pretrain import config as configs

TRIED = (0.25, 0.75)  # parts of the rates in configs/imdb.py
SOURCES = dict(train="train.jsonl.gz[:94%]", test="train.jsonl.gz[94%:98%]")


def get_config(arg=None):
    data = configs.parse_arg(arg, data="data/imdb").data
    runs = pretrained(data, "tiny")
    for start in starts("tiny", 500):
        for part in TRIED:
            found = labelled(data, "tiny", start, 500, 0, part, sources(data, SOURCES, "data."))
            found["name"] += f"-{part}"
            found["model"] = f"{part} of the rate: {found['model']}"
            runs.append(found)
    return ConfigDict(
        dict(
            title="Rates of fine-tuning on film reviews",
            question=(
                "With which part of the rate of masked language modelling is it better to learn "
                "from 500 labels?"
            ),
            notes=("One seed: differences of less than 0.02 decide nothing.",),
            runs=tuple(runs),
        )
    )
