r"""Writes `tests/golden`: tiny random models of the `transformers` library, and what they compute.

    python -m tools.make_golden             # all cases (needs torch and transformers)
    python -m tools.make_golden bert-base   # some

Each folder is what `save_pretrained` leaves (config.json, model.safetensors) with `golden.npz`:
the inputs, the hidden states `[n, B, S, D]` and the logits, in float32. The weights are random, so
that every detail shows: norms scale and shift, biases are not zero, padding rows are not empty.
"""

import argparse
import inspect
import pathlib
import shutil

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "golden"
VOCAB, ROWS, LENGTH = 64, 2, 14
LABELS = 3

BERT = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=32, max_position_embeddings=20, type_vocab_size=2,
)  # fmt: skip
DISTILBERT = dict(
    vocab_size=VOCAB, dim=16, n_layers=2, n_heads=4, hidden_dim=32, max_position_embeddings=20
)
ELECTRA = BERT | dict(embedding_size=8)
MODERNBERT = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=4, num_attention_heads=4,
    intermediate_size=20, max_position_embeddings=20, local_attention=8,
    global_attn_every_n_layers=3, global_rope_theta=900.0, local_rope_theta=50.0, norm_eps=1e-2,
    pad_token_id=0, reference_compile=False,
)  # fmt: skip
MODERNBERT_OTHER = MODERNBERT | dict(
    norm_bias=True, decoder_bias=False, tie_word_embeddings=False, global_attn_every_n_layers=2
)
GPT2 = dict(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=4, n_positions=20, pad_token_id=0)
LLAMA = dict(
    vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=32, max_position_embeddings=20, pad_token_id=0,
    rope_theta=50.0, rms_norm_eps=1e-2,
)  # fmt: skip
MOBILEBERT = dict(
    vocab_size=VOCAB, hidden_size=24, embedding_size=8, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=20, intra_bottleneck_size=12,
    max_position_embeddings=20, num_feedforward_networks=3, classifier_activation=False,
)  # fmt: skip
MOBILEBERT_TINY = MOBILEBERT | dict(
    use_bottleneck_attention=True, num_feedforward_networks=2, classifier_activation=True
)
MOBILEBERT_TEACHER = MOBILEBERT | dict(
    hidden_size=16, intra_bottleneck_size=20, num_feedforward_networks=1,
    normalization_type="layer_norm", hidden_act="gelu",
)  # fmt: skip
MOBILEBERT_FULL = MOBILEBERT | dict(  # the teacher's attention, which runs at equal widths only
    hidden_size=16, intra_bottleneck_size=16, key_query_shared_bottleneck=False,
    num_feedforward_networks=1, hidden_act="gelu_new", classifier_activation=True,
)  # fmt: skip
BART = dict(
    vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=20,
)  # fmt: skip
T5 = dict(
    vocab_size=VOCAB, d_model=16, d_kv=6, d_ff=32, num_layers=2, num_heads=2,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False, relative_attention_num_buckets=8,
    relative_attention_max_distance=12, decoder_start_token_id=0,
)  # fmt: skip
T5_FIRST = T5 | dict(feed_forward_proj="relu", tie_word_embeddings=True, num_decoder_layers=1)
TRANSFO_XL = dict(
    vocab_size=VOCAB, cutoffs=[20, 40], d_model=16, d_embed=16, n_head=4, d_head=6, d_inner=32,
    div_val=2, n_layer=2, mem_len=0, clamp_len=10, same_length=False, pad_token_id=0,
    eos_token_id=1,
)  # fmt: skip
TRANSFO_XL_MEMORY = TRANSFO_XL | dict(div_val=4, mem_len=11, same_length=True, untie_r=False)
TRANSFO_XL_UNTIED = TRANSFO_XL | dict(proj_share_all_but_first=False, tie_word_embeddings=False)

# name -> (class, keys of its config)
CASES = {
    "bert": ("BertModel", BERT),
    "bert-mlm": ("BertForMaskedLM", BERT),
    "bert-pretraining": ("BertForPreTraining", BERT),
    "bert-classify": ("BertForSequenceClassification", BERT),
    "bert-tag": ("BertForTokenClassification", BERT),
    "roberta-mlm": ("RobertaForMaskedLM", BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5)),
    "roberta-classify": ("RobertaForSequenceClassification", BERT | dict(type_vocab_size=1)),
    "roberta-tag": ("RobertaForTokenClassification", BERT | dict(type_vocab_size=1)),
    "distilbert-mlm": ("DistilBertForMaskedLM", DISTILBERT),
    "distilbert-classify": ("DistilBertForSequenceClassification", DISTILBERT),
    "distilbert-tag": ("DistilBertForTokenClassification", DISTILBERT),
    "electra-generator": ("ElectraForMaskedLM", ELECTRA),
    "electra-discriminator": ("ElectraForPreTraining", ELECTRA),
    "electra-classify": ("ElectraForSequenceClassification", BERT | dict(embedding_size=16)),
    "electra-tag": ("ElectraForTokenClassification", ELECTRA),
    "modernbert-mlm": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert-other": ("ModernBertForMaskedLM", MODERNBERT_OTHER),
    "modernbert-classify": (
        "ModernBertForSequenceClassification",
        MODERNBERT | dict(norm_bias=True),
    ),
    "modernbert-mean": (
        "ModernBertForSequenceClassification",
        MODERNBERT | dict(classifier_pooling="mean"),
    ),
    "modernbert-tag": ("ModernBertForTokenClassification", MODERNBERT),
    "gpt2-lm": ("GPT2LMHeadModel", GPT2),
    "gpt2-classify": ("GPT2ForSequenceClassification", GPT2),
    "gpt2-tag": ("GPT2ForTokenClassification", GPT2),
    "llama-lm": ("LlamaForCausalLM", LLAMA),
    "llama-tied": ("LlamaForCausalLM", LLAMA | dict(tie_word_embeddings=True, head_dim=8)),
    "llama-classify": ("LlamaForSequenceClassification", LLAMA),
    "llama-tag": ("LlamaForTokenClassification", LLAMA),
    "mobilebert-mlm": ("MobileBertForMaskedLM", MOBILEBERT),
    "mobilebert-classify": ("MobileBertForSequenceClassification", MOBILEBERT),
    "mobilebert-tag": ("MobileBertForTokenClassification", MOBILEBERT_TINY),
    "mobilebert-tiny": ("MobileBertForMaskedLM", MOBILEBERT_TINY),
    "mobilebert-teacher": ("MobileBertForMaskedLM", MOBILEBERT_TEACHER),
    "mobilebert-full": ("MobileBertForSequenceClassification", MOBILEBERT_FULL),
    "transfo-xl": ("TransfoXLModel", TRANSFO_XL),
    "transfo-xl-lm": ("TransfoXLLMHeadModel", TRANSFO_XL),
    "transfo-xl-untied": ("TransfoXLLMHeadModel", TRANSFO_XL_UNTIED),
    "transfo-xl-one-table": ("TransfoXLLMHeadModel", TRANSFO_XL | dict(div_val=1, d_embed=8)),
    "transfo-xl-plain": ("TransfoXLLMHeadModel", TRANSFO_XL | dict(div_val=1, cutoffs=[])),
    "transfo-xl-memory": ("TransfoXLLMHeadModel", TRANSFO_XL_MEMORY),
    "transfo-xl-classify": ("TransfoXLForSequenceClassification", TRANSFO_XL),
    "bart": ("BartModel", BART | dict(decoder_layers=1, scale_embedding=True)),
    "bart-lm": ("BartForConditionalGeneration", BART),
    "bart-classify": ("BartForSequenceClassification", BART),
    "t5-lm": ("T5ForConditionalGeneration", T5),
    "t5-first": ("T5ForConditionalGeneration", T5_FIRST),
    "t5-encoder": ("T5EncoderModel", T5),
    "t5-classify": ("T5ForSequenceClassification", T5),
    "t5-tag": ("T5ForTokenClassification", T5),
}


def inputs(config) -> dict[str, np.ndarray]:
    """Rows of different lengths, padded on the right; token types where the model has them."""
    rng = np.random.default_rng(0)
    lengths = rng.permutation([LENGTH, LENGTH - 5])
    mask = (np.arange(LENGTH)[None, :] < lengths[:, None]).astype(np.int64)
    pad = config.pad_token_id or 0
    ids = rng.integers(5, VOCAB, (ROWS, LENGTH))
    if (end := config.eos_token_id) is not None and end < VOCAB:
        ids[np.arange(ROWS), lengths - 1] = end  # read by encoder-decoders' classifiers
    given = {"input_ids": np.where(mask, ids, pad), "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = (np.arange(LENGTH)[None, :] > lengths[:, None] // 2) * mask
    return given


def decoder_inputs() -> dict[str, np.ndarray]:
    """Rows of other lengths than the encoder's."""
    length = LENGTH - 4
    mask = (np.arange(length)[None, :] < np.array([[length - 3], [length]])).astype(np.int64)
    ids = np.random.default_rng(1).integers(5, VOCAB, (ROWS, length))
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


def randomise(model) -> None:
    """All parameters from a normal distribution, norms' scales around one; BART's constant bias."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        constants = [x for x in model.named_buffers() if x[0] == "final_logits_bias"]
        for name, parameter in sorted([*model.named_parameters(), *constants]):
            noise = torch.randn(parameter.shape, generator=generator)
            centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.round(16 * noise) / 64)  # coarse numbers compress
        model.tie_weights()


def repair_type_as() -> None:
    """Lets a tensor's ``type_as`` take a dtype, as transformers' Transformer-XL has it.

    No version of torch does: without this, the model cannot run.
    """
    import torch

    original = torch.Tensor.type_as
    torch.Tensor.type_as = lambda self, other=None, dtype=None: (
        self.to(dtype) if other is None else original(self, other)
    )


def create(class_name: str, options: dict):
    """The model, its parameters random, in evaluation mode."""
    import transformers

    kind = getattr(transformers, class_name)
    labelled = dict(num_labels=LABELS) if "Classification" in class_name else {}
    model = kind(kind.config_class(**options, **labelled))
    if model.config.model_type == "transfo-xl":
        repair_type_as()
    randomise(model)
    return model.eval()


def outputs(model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states and logits by name."""
    import torch

    known = inspect.signature(model.forward).parameters
    tensors = {name: torch.from_numpy(given[name]) for name in given if name in known}
    with torch.no_grad():
        told = model(**tensors, output_hidden_states=True)
    found = {}
    for name in ("hidden_states", "encoder_hidden_states", "decoder_hidden_states"):
        if told.get(name) is not None:
            found[name] = np.stack([state.numpy() for state in told[name]])
    for name in ("logits", "prediction_logits", "prediction_scores", "pooler_output"):
        if told.get(name) is not None:
            found["logits" if "prediction" in name else name] = told[name].numpy()
    return found


def following_segment(model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs and outputs of a Transformer-XL's second segment, with the memory of the first."""
    import torch

    ids = np.random.default_rng(2).integers(5, VOCAB, (ROWS, LENGTH - 5))
    with torch.no_grad():
        memory = model(torch.from_numpy(given["input_ids"])).mems
        told = model(torch.from_numpy(ids), mems=memory, output_hidden_states=True)
    states = np.stack([state.numpy() for state in told.hidden_states])
    return {
        "next_input_ids": ids, "next_hidden_states": states, "next_logits": told.logits.numpy(),
    }  # fmt: skip


def write(case: str, folder: pathlib.Path) -> None:
    """One folder of goldens."""
    class_name, options = CASES[case]
    model = create(class_name, options)
    shutil.rmtree(folder / case, ignore_errors=True)
    copies = None
    if options.get("untie_r") is False:  # shared tensors, which save_pretrained refuses
        copies = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder / case, state_dict=copies, safe_serialization=True)
    (folder / case / "generation_config.json").unlink(missing_ok=True)
    (folder / case / "model.safetensors").chmod(0o644)
    given = inputs(model.config)
    if class_name == "BartModel" or "ConditionalGeneration" in class_name:
        given |= decoder_inputs()
    found = outputs(model, given)
    if options.get("mem_len"):
        given["attention_mask"] = np.ones_like(given["attention_mask"])  # all are tokens to it
        found |= following_segment(model, given)
    np.savez_compressed(folder / case / "golden.npz", **given, **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--output", type=pathlib.Path, default=FOLDER)
    arguments = parser.parse_args()
    for case in arguments.cases or CASES:
        write(case, arguments.output)
        print(arguments.output / case)


if __name__ == "__main__":
    main()
