"""Exact numbers of parameters of every variant of every family, by shapes alone."""

import functools
import math

import jax
import pytest

from configs import bert, ladder
from pretrain import blank, study, tasks
from pretrain import config as configs
from pretrain.models.families import FAMILIES
from pretrain.models.heads import Classifier, Tagger
from tests.configs.test_configs import FOLDER, MODULES, load
from tools import params

# As trained, with the head of the objective. Published numbers are those of the sizes that others
# have released; of the rest, transformers has counted the same shape (4.48.3, meta device).
TRAINED = {
    "bert": {  # encoder, tied masked-language-model head, uncased vocabulary
        "micro": 2_121_210,
        "tiny": 4_416_698,
        "mini": 11_201_594,
        "small": 28_795_194,
        "medium": 41_404_730,
        "base": 109_514_298,
        "large": 335_174_458,
        "l2-h128": 4_416_698,
        "l2-h256": 9_622_074,
        "l2-h512": 22_490_426,
        "l2-h768": 38_635_578,
        "l4-h128": 4_813_242,
        "l4-h256": 11_201_594,
        "l4-h512": 28_795_194,
        "l4-h768": 52_811_322,
        "l6-h128": 5_209_786,
        "l6-h256": 12_781_114,
        "l6-h512": 35_099_962,
        "l6-h768": 66_987_066,
        "l8-h128": 5_606_330,
        "l8-h256": 14_360_634,
        "l8-h512": 41_404_730,
        "l8-h768": 81_162_810,
        "l10-h128": 6_002_874,
        "l10-h256": 15_940_154,
        "l10-h512": 47_709_498,
        "l10-h768": 95_338_554,
        "l12-h128": 6_399_418,
        "l12-h256": 17_519_674,
        "l12-h512": 54_014_266,
        "l12-h768": 109_514_298,
    },
    "roberta": {"base": 124_697_433, "large": 355_412_057, "distilroberta": 82_170_201},
    "distilbert": {"base-uncased": 66_985_530, "base-cased": 65_812_036},
    "tinybert": {  # published with a sentence-pair head besides: 14_479_676 and 67_579_196
        "4l-312": 14_479_676 - (312**2 + 312) - (2 * 312 + 2),
        "6l-768": 67_579_196 - (768**2 + 768) - (2 * 768 + 2),
    },
    "mobilebert": {
        "released": 36_596_538,
        "tiny": 15_485_696 + 12_014_650,  # a head like the released one's
        # transformers counts 319_633_664 without the head: in each layer half of the matrices of
        # queries and keys, which its own forward pass cannot multiply, and a pooler.
        "teacher": 319_633_664 - 24 * 2 * 512 * 1024 - (512**2 + 512) + 12_014_650,
        "micro": 4_363_322,
        "micro-teacher": 6_026_810,
    },
    "electra": {  # discriminator, and the generator without the embeddings that both have
        "small": 13_549_057 + 647_162,
        "base": 109_483_009 + 33_740_602 - (30522 + 512 + 2 + 2) * 768,
        "large": 335_142_913 + 51_295_290 - (30522 + 512 + 2 + 2) * 1024,
        "small-generator": 13_546_682,
        "base-generator": 33_740_602,
        "large-generator": 51_295_290,
    },
    "modernbert": {"base": 149_655_232, "large": 395_881_664},
    "gpt": {
        "tiny": 7_091_840,
        "mini": 16_549_632,
        "small": 39_390_720,
        "medium": 52_000_256,
        "125m": 125_226_240,
        "350m": 355_871_744,
        "760m": 760_300_032,
        "1b3": 1_315_723_264,
        "2b7": 2_651_553_280,
        "6b7": 6_658_404_352,
        "13b": 12_853_386_240,
        "175b": 174_604_259_328,
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
        "distilgpt2": 81_912_576,
    },
    "llama": {
        "tiny": 8_585_856,
        "125m": 124_668_672,
        "350m": 336_118_784,
        "1b1": 1_100_048_384,
        "3b": 3_426_473_600,
        "7b": 6_738_415_616,
        "13b": 13_015_864_320,
    },
    "transformer_xl": {
        "tiny": 936_450,
        "enwik8-12": 41_055_436,
        "enwik8-24": 277_278_924,
        "wt103-base": 151_107_538,
        "wt103-large": 285_205_322,
    },
    "t5": {
        "tiny": 9_012_864,
        "small": 76_961_152,
        "base": 247_577_856,
        "large": 783_150_080,
        "xl": 2_849_757_184,
        "xxl": 11_135_332_352,
    },
    "bart": {  # a bias on the logits besides, which transformers keeps as a constant
        "tiny": 7_622_784 + 50265,
        "base": 139_420_416 + 50265,
        "large": 406_291_456 + 50265,
    },
    "ladder": {
        "1m": 2_901_312,
        "4m": 5_310_720,
        "15m": 20_736_576,
        "35m": 40_561_344,
        "110m": 115_517_376,
        "350m": 348_621_120,
        "1b3": 1_342_949_760,
        "7b": 6_949_852_416,
    },
    "linear": {  # two classes
        **dict.fromkeys(("lr", "svm", "hinge", "ner"), 2 * (2**18 + 1)),
        "nbsvm": 2 * (2**20 + 1),
        "fasttext": 2**18 * 16 + 2 * (16 + 1),
        "crf": 2 * (2**18 + 1) + 2 * 2 + 2 + 2,
    },
    "bilstm": {  # words, characters, two directions of four gates, head, CRF
        "ner": 20_000 * 100
        + (256 * 30 + 90 * 30 + 30)
        + 2 * 4 * 100 * (130 + 100 + 1)
        + 2 * (200 + 1)
        + (2 * 2 + 2 + 2),
        "classify": 20_000 * 100 + 2 * 4 * 100 * (100 + 100 + 1) + 2 * (200 + 1),
    },
}

GRID = {  # encoder and pooler of the miniatures: by layers, for widths 128, 256, 512 and 768
    2: (4_385_920, 9_591_040, 22_458_880, 38_603_520),
    4: (4_782_464, 11_170_560, 28_763_648, 52_779_264),
    6: (5_179_008, 12_750_080, 35_068_416, 66_955_008),
    8: (5_575_552, 14_329_600, 41_373_184, 81_130_752),
    10: (5_972_096, 15_909_120, 47_677_952, 95_306_496),
    12: (6_368_640, 17_488_640, 53_982_720, 109_482_240),
}
MINIATURES = {
    f"l{layers}-h{width}": count
    for layers, row in GRID.items()
    for width, count in zip((128, 256, 512, 768), row, strict=True)
}
POOLED = {  # encoder with the pooler of transformers' base model
    ("bert", "large"): 335_141_888,
    ("bert", "base,cased"): 108_310_272,
    ("bert", "large,cased"): 333_579_264,
    ("roberta", "base"): 124_645_632,
    ("roberta", "large"): 355_359_744,
    ("roberta", "distilroberta"): 82_118_400,
    ("tinybert", "4l-312"): 14_350_248,
    ("tinybert", "6l-768"): 66_955_008,
} | {("bert", name): count for name, count in MINIATURES.items()}
BARE = {  # encoder alone
    ("bert", "tiny"): 4_369_408,
    ("bert", "mini"): 11_104_768,
    ("bert", "small"): 28_500_992,
    ("bert", "medium"): 41_110_528,
    ("bert", "base"): 108_891_648,
    ("bert", "large"): 334_092_288,
    ("roberta", "base"): 124_055_040,
    ("roberta", "large"): 354_310_144,
    ("roberta", "distilroberta"): 81_527_808,
    ("distilbert", "base-uncased"): 66_362_880,
    ("distilbert", "base-cased"): 65_190_912,
    ("mobilebert", "released"): 24_581_888,
    ("transformer_xl", "wt103-large"): 283_885_936,
    ("electra", "small"): 13_483_008,
    ("electra", "base"): 108_891_648,
    ("electra", "large"): 334_092_288,
    ("electra", "base-generator"): 33_511_168,
    ("electra", "large-generator"): 50_999_552,
    ("modernbert", "base"): 149_014_272,
    ("modernbert", "large"): 394_781_696,
}
CLASSIFIERS = {  # of two classes, with the family's own pooling; one matrix for causal models
    ("bert", "tiny"): 4_386_178,
    ("bert", "mini"): 11_171_074,
    ("bert", "base"): 109_483_778,
    ("roberta", "base"): 124_647_170,
    ("distilbert", "base-uncased"): 66_955_010,
    ("electra", "small"): 13_549_314,
    ("modernbert", "base"): 149_606_402,
    ("modernbert", "large"): 395_833_346,
    ("gpt", "gpt2"): 124_441_344,
    ("gpt", "gpt2-xl"): 1_557_614_400,
}


SHIPPED = {tuple(name.split(":")): config for name, config in params.shipped()}


@functools.cache
def describe(name, variant):
    """Of a variant as it is published."""
    if "," in variant:
        return params.describe(load(name, variant))
    return params.describe(SHIPPED[name, variant])


def bare(name, variant) -> int:
    """Without heads."""
    modules = describe(name, variant)["modules"].items()
    return sum(about["parameters"] for path, about in modules if path.startswith("trunk"))


def count(kind, name, variant, *args) -> int:
    """Of a model that has the backbone of a variant."""
    model = SHIPPED[name, variant].model
    options = tasks.backbone_options(configs.Reader(configs.ConfigDict({"model": model})))
    joined = kind(FAMILIES[model.name].backbone(options), *args)
    boxed = jax.eval_shape(joined.init, jax.random.key(0), joined.example())
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(boxed))


def test_every_shipped_variant_is_pinned():
    assert SHIPPED.keys() == {(name, size) for name, sizes in TRAINED.items() for size in sizes}


@pytest.mark.parametrize("name, variant", SHIPPED)
def test_parameters_as_trained(name, variant):
    assert describe(name, variant)["total"] == TRAINED[name][variant]


@pytest.mark.parametrize("variant, pinned", [("base", 108_340_804), ("large", 333_610_308)])
def test_cased_vocabulary(variant, pinned):
    assert describe("bert", f"{variant},cased")["total"] == pinned


@pytest.mark.parametrize("name, variant", POOLED)
def test_encoders_with_pooler(name, variant):
    width = load(name, variant).model.hidden_size
    assert bare(name, variant) + width**2 + width == POOLED[name, variant]


@pytest.mark.parametrize("name, variant", BARE)
def test_encoders(name, variant):
    assert bare(name, variant) == BARE[name, variant]


@pytest.mark.parametrize("name, variant", CLASSIFIERS)
def test_classifiers(name, variant):
    pool = "last" if name == "gpt" else "pooler"
    assert count(Classifier, name, variant, 2, pool, 0.1) == CLASSIFIERS[name, variant]


def test_taggers():
    """BertForTokenClassification of two tags has no pooler."""
    assert count(Tagger, "bert", "base", 2, 0.1) == 108_893_186


@pytest.mark.parametrize("name", ["classify", "ner"])
@pytest.mark.parametrize("variant", ["tiny", "large"])
def test_task_models_are_the_encoder_and_a_head(name, variant):
    config = configs.load(
        str(params.FOLDER / f"{name}.py"), variant, {"model.vocab_size": bert.UNCASED}
    )
    head = len(blank.LABELS) * (config.model.hidden_size + 1)
    assert params.describe(config)["total"] == BARE["bert", variant] + head


@pytest.mark.parametrize("variant", ["micro", "small", "large"])
def test_modern_variant_in_closed_form(variant):
    """Four square matrices, three of the gated block, two norms a layer but one; no biases."""
    layers, width = bert.SIZES[variant]
    inner = 8 * width // 3 // 64 * 64
    layer = 4 * width**2 + 3 * width * inner + 2 * width
    # Norms: after the embedding and the layers, and all but the first before attention.
    trunk = bert.UNCASED * width + width + layers * layer - width + width
    head = width**2 + width + bert.UNCASED
    about = describe("bert", f"{variant},modern,published")
    assert about["total"] == trunk + head
    assert about["total"] == pytest.approx(TRAINED["bert"][variant], rel=0.05), "comparable"


@pytest.mark.parametrize("variant", ladder.SIZES)
def test_ladder_follows_its_rule(variant):
    named = float(variant.replace("1b3", "1.3b").replace("m", "e6").replace("b", "e9"))
    k = round((named / 49_152) ** (1 / 3))
    width, ffn = 64 * k, 64 * round(8 * k / 3)
    layer = 4 * width**2 + 3 * width * ffn + 2 * width
    config, about = SHIPPED["ladder", variant], describe("ladder", variant)
    assert (config.model.num_layers, config.model.hidden_size) == (k, width)
    assert about["non_embedding"] == k * layer + width
    assert about["non_embedding"] == pytest.approx(49_152 * k**3, rel=0.025)
    assert about["embedding"] == 8192 * width
    assert config.train.budget == f"{20 * 49_152 * k**3} tokens"
    masked = load("ladder", f"{variant},objective=mlm").model.to_dict()
    assert masked == config.model.to_dict() | {"causal": False}


@pytest.mark.parametrize("size, total", [("1M", 1_065_344), ("4M", 4_096_768), ("15M", 16_057_856)])
def test_sizes_of_the_study_of_learning_rates(size, total):
    """Whatever the parametrisation; a layer has 12 width^2 + 13 width."""
    width = MODULES["mup"].WIDTHS[size]
    layers = 5 * (12 * width**2 + 13 * width)
    assert layers + (512 + 64) * width + 2 * width == total
    runs = study.parse_runs(MODULES["mup"].get_config().runs)
    models = {run.model: run for run in runs if run.model.startswith(size)}
    assert len(models) == (1 if size == "1M" else 2)
    for run in models.values():
        config = configs.load(str(FOLDER / "gpt.py"), run.arg, run.overrides)
        assert params.describe(config)["total"] == total


def test_every_family_publishes_its_vocabulary_in_one_way():
    """Without `published` the model takes the tokenizer's; T5 knows it, and adds 100 sentinels."""
    for name, module in MODULES.items():
        if name in TRAINED and name not in (*configs.SMALL_MODELS, "ladder", "transformer_xl"):
            for variant in module.SIZES:
                assert load(name, variant).model.vocab_size == (8292 if name == "t5" else 0)
                assert load(name, f"{variant},published").model.vocab_size > 28_000


@pytest.mark.parametrize(
    "size, encoder, pretraining, t5, rtd, spans",
    [
        ("tiny", 902_018, 922_368, 914_882, 1_033_537, 1_960_576),
        ("mini", 4_066_050, 4_135_424, 4_091_778, 4_956_289, 9_232_128),
    ],
)
def test_networks_of_the_film_reviews(size, encoder, pretraining, t5, rtd, spans):
    """Masked and causal ones differ in who sees whom alone."""
    found = {
        name: params.describe(load("imdb", f"{name},size={size}"))["total"]
        for name in MODULES["imdb"].KINDS
    }
    assert found == dict(
        mlm=pretraining, causal=pretraining, rtd=rtd, spans=spans,
        encoder=encoder, decoder=encoder, t5=t5,
    )  # fmt: skip
    plain = load("bert", f"{size},modern", model__vocab_size=4096)
    assert params.describe(plain)["total"] == pretraining
