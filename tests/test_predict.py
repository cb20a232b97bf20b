"""Raw text through finished runs."""

import jax
import numpy as np
import pytest

from pretrain import config as configs
from pretrain import optim, state, tasks
from pretrain.checkpoint import LAST, Checkpointer, load_params
from pretrain.errors import UserError
from pretrain.files import write_json
from pretrain.predict import predict, sample, write
from tests import small_runs, tiny


@pytest.fixture(scope="module")
def untrained(small_data, tmp_path_factory):
    """``name`` of a config -> workdir of a language model with its initial parameters."""

    def make(name, arg="tiny,seq=32", **changes):
        workdir = tmp_path_factory.mktemp(name)
        changes = {"model__init_std": 0.5} | changes
        config = small_runs.config(name, small_data, arg, **changes)
        task = tasks.build(configs.Reader(config))
        task.encoder.save(workdir)
        write_json(workdir / tasks.CONFIG, config.to_dict())
        initial = state.sharded_init(
            task.objective, optim.create(**config.optimizer), tiny.mesh(), jax.random.key(0)
        )
        checkpointer = Checkpointer(workdir / LAST)
        checkpointer.save(initial, {})
        checkpointer.close()
        return workdir

    return make


def test_a_classifier_gives_probabilities(small_run):
    texts = ["the cat and dog", "an oak near a rose", ""]
    records = list(predict(small_run("linear", "lr"), texts))
    assert [r["text"] for r in records] == texts
    assert [r["prediction"] for r in records[:2]] == ["animals", "plants"]
    for record in records:
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["prediction"] == max(record["probabilities"], key=record["probabilities"].get)


def test_a_tagger_gives_entities_of_words(small_run):
    """Spaces and punctuation separate words; a text may have none."""
    texts = ["Ada sees Oslo.", "", "from Grace, near Lima"]
    first, empty, last = predict(small_run("linear", "ner"), texts)
    assert first["tokens"] == ["Ada", "sees", "Oslo", "."]
    assert first["prediction"] == ["B-PER", "O", "B-LOC", "O"]
    assert first["spans"][0] == {"type": "PER", "start": 0, "end": 1, "text": ["Ada"]}
    assert empty["tokens"] == empty["prediction"] == empty["spans"] == []
    assert [s["text"] for s in last["spans"]] == [["Grace"], ["Lima"]]


def test_a_masked_language_model_fills_masks(untrained):
    """With the probabilities of the whole row's forward pass."""
    workdir = untrained("bert")
    (record,) = predict(workdir, ["the [MASK] and [MASK]"], top=3)
    _, task = tasks.restore(workdir)
    pieces, model = task.encoder.tokenizer, task.objective.model
    ids = [2, *pieces.encode("the "), 4, *pieces.encode(" and "), 4, 3]
    params, _ = load_params(workdir, tiny.mesh())
    hidden = model.apply({"params": params}, np.array([ids]))
    logits = model.apply({"params": params}, hidden, method="logits")[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert len(record["masks"]) == 2
    for candidates, place in zip(record["masks"], (ids.index(4), len(ids) - 2), strict=True):
        best = np.sort(probabilities[place])[::-1][:3]
        assert [c["probability"] for c in candidates] == pytest.approx(best.tolist(), rel=1e-3)
        assert candidates[0]["piece"] == pieces.pieces[probabilities[place].argmax()]
    with pytest.raises(UserError, match=r"text: no \[MASK\] in 'the cat'"):
        list(predict(workdir, ["the cat"]))
    with pytest.raises(UserError, match="tokens, expected at most the 32 of a row"):
        list(predict(workdir, ["[MASK] " + "cat " * 40]))
    for options, flag in (({"top": 0}, "--top"), ({"tokens": -1}, "--tokens")):
        with pytest.raises(UserError, match=f"{flag}: found -?[01], expected at least 1"):
            list(predict(workdir, ["a [MASK]"], **options))


def test_a_checkpoints_tokenizer_fills_masks(untrained):
    """RoBERTa's: the mask, by either name, takes the space before it, as `transformers` has it."""
    workdir = untrained("bert", tokenizer__path=str(small_runs.TOKENIZERS / "roberta"))
    (record,) = predict(workdir, ["the <mask> and [MASK]"], top=1)
    _, task = tasks.restore(workdir)
    pieces, model = task.encoder.tokenizer, task.objective.model
    ids = [0, *pieces.encode("the"), 4, *pieces.encode(" and"), 4, 2]
    params, _ = load_params(workdir, tiny.mesh())
    hidden = model.apply({"params": params}, np.array([ids]))
    best = model.apply({"params": params}, hidden, method="logits")[0].argmax(-1)
    found = [candidates[0]["piece"] for candidates in record["masks"]]
    assert found == [pieces.pieces[best[i]] for i, id in enumerate(ids) if id == 4]
    with pytest.raises(UserError, match=r"text: no <mask> or \[MASK\] in 'the cat'"):
        list(predict(workdir, ["the cat"]))
    gpt = untrained("gpt", tokenizer__path=str(small_runs.TOKENIZERS / "gpt2"))
    (record,) = predict(gpt, ["the cat"], tokens=4)
    assert record["continuation"]


def test_a_causal_model_continues_a_text(untrained):
    """The same seed, the same text; also behind a text that is longer than a row."""
    workdir = untrained("gpt")
    first, longer = predict(workdir, ["the cat", "the cat " * 30], tokens=5)
    again, _ = predict(workdir, ["the cat", "x"], tokens=5)
    (other,) = predict(workdir, ["the cat"], tokens=5, seed=1)
    assert first == again and first["continuation"] and longer["continuation"]
    assert other["continuation"] != first["continuation"]


def test_a_replaced_token_detector_tells_of_every_piece(untrained):
    workdir = untrained("electra", "small,seq=32")
    (record,) = predict(workdir, ["the cat sees"])
    _, task = tasks.restore(workdir)
    pieces, model = task.encoder.tokenizer, task.objective.model
    ids = [2, *pieces.encode("the cat sees"), 3]
    params, _ = load_params(workdir, tiny.mesh())
    logits = np.asarray(model.apply({"params": params}, np.array([ids])))[0, 1:-1]
    assert [token["piece"] for token in record["tokens"]] == [pieces.pieces[i] for i in ids[1:-1]]
    expected = (1 / (1 + np.exp(-logits))).tolist()
    assert [token["replaced"] for token in record["tokens"]] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UserError, match="tokens, expected at most the 32 of a row"):
        list(predict(workdir, ["cat " * 40]))


def test_a_denoising_decoder_reads_what_it_wrote_for_earlier_masks(untrained):
    workdir = untrained("bart", "tiny,seq=32,tokens")
    (record,) = predict(workdir, ["the [MASK] and [MASK]"], top=1)
    _, task = tasks.restore(workdir)
    pieces, model = task.encoder.tokenizer, task.objective.model
    ids = [2, *pieces.encode("the "), 4, *pieces.encode(" and "), 4, 3]
    params, _ = load_params(workdir, tiny.mesh())
    written = list(ids)
    for place, candidates in zip((ids.index(4), len(ids) - 2), record["masks"], strict=True):
        before = np.array([[model.trunk.config.decoder_start_id, *written[:-1]]])
        hidden = model.apply({"params": params}, np.array([ids]), decoder_tokens=before)
        logits = model.apply({"params": params}, hidden, method="logits")[0, place]
        assert candidates[0]["piece"] == pieces.pieces[int(logits.argmax())]
        probability = float(jax.nn.softmax(logits).max())
        assert candidates[0]["probability"] == pytest.approx(probability, rel=1e-3)
        written[place] = int(logits.argmax())
    assert 4 not in written


def test_a_decoder_writes_what_sentinels_stand_for(untrained):
    """Always the likeliest id; those that are no pieces are left out."""
    workdir = untrained("t5", model__vocab_size=400)
    (record,) = predict(workdir, ["the [MASK] and [MASK]"])
    _, task = tasks.restore(workdir)
    pieces, model = task.encoder.tokenizer, task.objective.model
    ids = [2, *pieces.encode("the"), 300, *pieces.encode(" and"), 301, 3]
    params, _ = load_params(workdir, tiny.mesh())
    written = write(model, params, ids, 32, pieces.sep_id)
    before = np.array([[model.trunk.config.decoder_start_id, *written]])
    hidden = model.apply({"params": params}, np.array([ids]), decoder_tokens=before)
    best = model.apply({"params": params}, hidden, method="logits")[0].argmax(-1).tolist()
    assert written == best[: len(written)]
    assert len(written) == 32 or best[len(written)] == pieces.sep_id
    spans, span = {300: [], 301: []}, []
    for i in written:
        if i >= 300:
            span = spans.get(i, [])
        else:
            span.append(i)
    assert record == {
        "text": "the [MASK] and [MASK]",
        "spans": list(map(pieces.decode, spans.values())),
    }
    with pytest.raises(UserError, match="text: no \\[MASK\\] in 'the'"):
        list(predict(workdir, ["the"]))
    with pytest.raises(UserError, match="text: found 101 masks, expected at most 100"):
        list(predict(workdir, ["[MASK] " * 101]))


def test_a_decoder_that_learned_infilling_writes_the_text(untrained):
    workdir = untrained("bart", model__vocab_size=400)
    with_mask, without = predict(workdir, ["the [MASK] and", "the and"])
    assert isinstance(with_mask["written"], str) and with_mask != without


def test_a_prefix_is_read_in_both_directions(untrained):
    """Also one that is longer than a row; a causal reading is followed by something else."""
    workdir = untrained("gpt", "tiny,seq=32,prefix", model__num_layers=2)
    texts = ["the cat", "the cat " * 30]
    found = [r["continuation"] for s in range(2) for r in predict(workdir, texts, tokens=3, seed=s)]
    _, task = tasks.restore(workdir)
    params, _ = load_params(workdir, tiny.mesh())

    def sampled(prefix):
        model, pieces = task.objective.model, task.encoder.tokenizer
        return [
            sample(model, params, pieces, text, 32, 3, jax.random.key(seed), prefix)
            for seed in range(2)
            for text in texts
        ]

    assert found == sampled(True) != sampled(False)
