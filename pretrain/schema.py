"""The sections of a config whose keys depend on a choice: every key, its default and its meaning.

One table each for ``model``, ``objective`` and ``optimizer``, by the section's ``name``; the other
sections stand in :func:`pretrain.config.base`.
"""

MODELS = {
    "transformer": dict(
        vocab_size=0,  # rows of the word embedding; 0: as many as the tokenizer has pieces
        num_layers=2,
        hidden_size=128,
        embedding_size=0,  # width of the embeddings, projected to hidden_size (ELECTRA); 0: equal
        num_heads=2,
        num_kv_heads=0,  # heads of keys and values (grouped-query attention); 0: num_heads
        head_size=0,  # 0: hidden_size / num_heads
        ffn_size=512,  # inner width of the feed-forward block
        max_positions=512,  # the longest sequence accepted; rows of the position table
        position_offset=0,  # rows of the position table before that of position 0 (RoBERTa: 2)
        type_vocab_size=2,  # rows of the token-type (sentence A/B) embedding; 0: none
        position="learned",  # "learned" absolute embeddings, or "rotary" (RoFormer)
        rotary_base=10_000.0,  # wavelength base of the rotary angles
        local_window=0,  # local layers see positions at most this far away; 0: no local layers
        global_every=1,  # layers 0, n, 2n, ... see the whole row, the others are local
        local_rotary_base=10_000.0,  # of local layers
        causal=False,  # each position sees only itself and earlier ones
        norm="layer",  # "layer" (LayerNorm) or "rms" (RMSNorm)
        norm_position="post",  # "post": BERT; "pre": GPT-2 and most since, with a final norm
        norm_eps=1e-12,
        norm_bias=True,
        first_norm=True,  # false: layer 0 has no norm before its attention (ModernBERT)
        embedding_norm=True,  # norm on the embeddings
        activation="gelu",  # "gelu" (erf), "gelu_tanh", "relu", "silu", "tanh"
        gated=False,  # GLU: activation(gate) * up, gate and up each ffn_size wide
        bias=True,  # biases in attention, feed-forward and the head's transform
        pooler="bert",  # what objective.pool "pooler" does: see pretrain/models/options.py
        tied=True,  # vocabulary logits through the word embedding, else a matrix of their own
        head_transform=True,  # dense + activation + norm before the vocabulary projection
        head_bias=True,  # bias on the vocabulary logits
        init_std=0.02,
        scale_residual_init=False,  # GPT-2 paper: projections onto the residual / sqrt(2 * layers)
        mup_base_width=0,  # muP (Yang et al. 2022): the hidden_size of the model that init_std and
        # optimizer.lr were found for; 0: standard parametrisation
        mup_base_head_size=0,  # that model's; 0: this one's, so that it is the heads' number that
        # grows with the width
        dropout=0.1,  # embeddings and sub-layer outputs
        attention_dropout=0.1,
        dtype="float32",  # of activations; parameters stay float32
        remat="none",  # what layers compute again going backward: "none"; "minimal": all but the
        # products with weights; "minimal_with_context": and attention's output; "full"; or
        # "dots_saveable", "everything_saveable", ... of jax.checkpoint_policies
        attention="auto",  # "auto": "splash" on TPU, "cudnn" on GPU where they can, else "plain"
        unroll=1,  # layers unrolled in each iteration of the scan over layers
    ),
    "mobilebert": dict(
        vocab_size=0,  # rows of the word embedding; 0: as many as the tokenizer has pieces
        num_layers=24,
        hidden_size=512,  # width between layers
        embedding_size=128,  # width of the word embedding; three neighbours are projected
        bottleneck_size=128,  # width within a layer
        num_heads=4,
        ffn_size=512,  # inner width of each feed-forward block
        num_ffns=4,  # feed-forward blocks in a layer
        max_positions=512,  # the longest sequence accepted; rows of the position table
        type_vocab_size=2,  # rows of the token-type (sentence A/B) embedding
        attention_input="shared",  # "shared": queries and keys from a bottleneck of their own,
        # values from the full width; "bottleneck": all from the layer's bottleneck; "full": none
        norm="none",  # "none": scale and bias alone, "layer": LayerNorm
        norm_eps=1e-12,
        outer_norm_eps=1e-12,  # of the embeddings and a layer's last FFN (transformers: 1e-5)
        activation="relu",  # "gelu" (erf), "gelu_tanh", "relu", "silu", "tanh"
        pooler="none",  # of objective.pool "pooler": "bert" or "none", see models/options.py
        init_std=0.02,
        dropout=0.0,  # embeddings and what a layer adds to the full width
        attention_dropout=0.1,
        dtype="float32",  # of activations; parameters stay float32
        remat="none",  # what layers compute again going backward: "none"; "minimal": all but the
        # products with weights; "full"; or "dots_saveable", ...
        unroll=1,  # layers unrolled in each iteration of the scan over layers
    ),
    "encoder_decoder": dict(
        vocab_size=0,  # rows of the word embedding; 0: as many as the tokenizer has pieces
        num_layers=2,  # of the encoder
        num_decoder_layers=0,  # 0: num_layers
        hidden_size=128,
        num_heads=2,
        head_size=0,  # 0: hidden_size / num_heads
        ffn_size=512,  # inner width of the feed-forward block
        max_positions=512,  # the longest sequence accepted; rows of each stack's position table
        position="relative",  # "relative" buckets, one table a stack (T5), or "learned" embeddings
        position_offset=0,  # rows of the position table before that of position 0 (BART: 2)
        relative_buckets=32,
        relative_distance=128,  # the last bucket holds all distances from about here
        norm="rms",  # "rms" (RMSNorm, T5) or "layer" (LayerNorm, BART)
        norm_position="pre",  # "pre": T5, with a final norm in each stack; "post": BART
        norm_eps=1e-6,
        embedding_norm=False,  # norm on the embeddings (BART)
        scale_embedding=False,  # word vectors times sqrt(hidden_size)
        scale_scores=False,  # attention scores / sqrt(head_size) (BART)
        activation="gelu_tanh",  # "gelu" (erf), "gelu_tanh", "relu", "silu", "tanh"
        gated=True,  # GLU: activation(gate) * up, gate and up each ffn_size wide
        bias=False,  # biases in attention and feed-forward
        pooler="bart",  # what objective.pool "pooler" does: see pretrain/models/options.py
        tied=False,  # vocabulary logits through the word embedding, else a matrix of their own
        scale_logits=False,  # decoder states / sqrt(hidden_size) before the vocabulary (T5 1.0)
        head_bias=False,  # bias on the vocabulary logits
        decoder_start_id=0,  # the decoder's first input (T5: padding, BART: </s>)
        reads="decoder",  # whose states heads read; "encoder": there is no decoder
        init_std=0.02,
        fan_in_init=False,  # T5: embeddings 1, projections back 1 / sqrt(inputs), queries
        # init_std / sqrt(head_size); goes with init_std 1 / sqrt(hidden_size)
        dropout=0.1,  # embeddings and sub-layer outputs
        attention_dropout=0.1,
        dtype="float32",  # of activations; parameters stay float32
        remat="none",  # what layers compute again going backward: "none"; "minimal": all but the
        # products with weights; "full"; or "dots_saveable", ...
        unroll=1,  # layers unrolled in each iteration of the scan over layers
    ),
    "transformer_xl": dict(
        vocab_size=0,  # ids of the vocabulary; 0: as many as the tokenizer has pieces
        num_layers=2,
        hidden_size=128,
        embedding_size=0,  # width of the embeddings of the first cluster; 0: hidden_size
        num_heads=2,
        head_size=0,  # 0: hidden_size / num_heads
        ffn_size=512,  # inner width of the feed-forward block
        cutoffs="",  # first ids of the vocabulary's rarer clusters: "20000,40000"; "": one cluster
        div_val=1,  # cluster i is embedded in embedding_size / div_val^i; 1: one table for all
        tied=True,  # logits through the embeddings, else matrices of their own
        tied_projections="all_but_first",  # clusters whose output projection is that of their
        # embeddings: "all", "all_but_first", "none"
        shared_biases=False,  # u and v of relative attention: of all layers, else of each
        mem_len=0,  # positions of memory that are kept
        zero_memory=False,  # what a row sees that is given no memory: mem_len zero states (as in
        # TensorFlow's release and Hugging Face's library), else nothing
        same_length=False,  # each position sees the mem_len last ones at most, itself included
        clamp_len=0,  # larger distances count as this one; 0: all differ
        norm_eps=1e-5,
        pooler="bart",  # what objective.pool "pooler" does: see pretrain/models/options.py
        init_std=0.02,
        projection_init_std=0.01,  # of the embeddings' and the outputs' projections
        dropout=0.1,  # embeddings, relative positions, sub-layers and their output
        attention_dropout=0.0,
        dtype="float32",  # of activations; parameters stay float32
        remat="none",  # what layers compute again going backward: "none"; "minimal": all but the
        # products with weights; "full"; or "dots_saveable", ...
        unroll=1,  # layers unrolled in each iteration of the scan over layers
    ),
    "linear": dict(
        num_features=2**18,  # hash buckets
        ngrams=2,  # classification: word n-grams up to this length; 0: none
        min_ngrams=1,  # and from this length on
        char_ngrams=0,  # classification: character n-grams within words, likewise
        min_char_ngrams=2,
        lowercase=True,  # classification: ignore case
        weighting="tfidf",  # of an n-gram: "tfidf"; "naive_bayes" (log-count ratios of each class,
        # NBSVM); "mean" (counts that sum to 1, fastText)
        sublinear_tf=True,  # of "tfidf": term frequency tf counts as 1 + ln tf
        smoothing=1.0,  # of "naive_bayes": added to each count
        beta=1.0,  # predictions with (1 - beta) * mean |kernel| + beta * kernel (NBSVM: 0.25)
        embedding_size=0,  # classification: embed n-grams, classify their sum (fastText); 0: linear
        window=2,  # tagging: neighbours on each side whose features a token sees
    ),
    "bilstm": dict(
        vocab_size=20_000,  # rows of the word embedding: of the training set's words the most
        # frequent, padding and the unknown word
        min_count=2,  # rarer words are unknown ones
        embedding_size=100,
        num_layers=1,
        hidden_size=200,  # of both directions together
        characters="cnn",  # a word's vector from its characters: "cnn", "lstm", "none"
        character_size=30,  # width of that vector and of the characters' embeddings
        word_length=20,  # characters of a word that are read
        dropout=0.5,  # of the words' vectors and behind each layer
    ),
}

# Of ``model``, chosen per run: they change neither the parameters' shapes nor their meaning.
RUNTIME_FIELDS = ("dropout", "attention_dropout", "dtype", "remat", "attention", "unroll")
RUNTIME_FIELDS += ("mem_len", "zero_memory", "same_length", "clamp_len")  # of Transformer-XL

OBJECTIVES = {
    "mlm": dict(
        mask_rate=0.15,  # of a row's positions, exactly this many predicted (evaluated at 0.15)
        mask_prob=0.8,  # of the chosen positions, replaced by [MASK]
        random_prob=0.1,  # of the chosen positions, replaced by a random piece
        whole_words=False,  # choose words, all of their pieces or none
        static_masks=0,  # masks that a row ever has, one an epoch in turn (BERT: 10); 0: a new one
        # in every step
        sentence_pairs="",  # also learn of pairs whether B follows A: "nsp" (BERT), "sop" (ALBERT);
        # goes with data.packing False
        short_rate=0.1,  # of the pairs, cut to a random shorter length
    ),
    "causal": dict(
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "rtd": dict(
        replace_rate=0.15,  # of a row's positions, exactly this many drawn anew
        generator_size=0.25,  # width, heads and feed-forward of the generator that draws them, as a
        # share of the discriminator's; 0: none, random pieces
        generator_layers=0,  # 0: as many as the discriminator has
        mask_prob=0.85,  # of these positions, masked for the generator; it sees the others
        discriminator_weight=50.0,  # of its loss, beside the generator's
    ),
    "denoising": dict(  # an encoder sees what "mlm" masks, the decoder writes the whole text
        mask_rate=0.15,  # as of "mlm"
        mask_prob=0.8,
        random_prob=0.1,
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "spans": dict(  # T5: an encoder sees a sentinel for each span, the decoder writes the spans
        noise_density=0.15,  # of a row's tokens, exactly this many in spans
        mean_span=3.0,  # tokens of a span on average
        num_sentinels=100,  # ids above the tokenizer's pieces, where it has no <extra_id_0>, ...
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "infilling": dict(  # BART: an encoder sees a mask for each span, the decoder writes the text
        noise_density=0.3,  # of a row's ordinary tokens, exactly this many in spans
        mean_span=3.0,  # of the Poisson lengths of spans; one of length 0 puts a mask in between
        permute_sentences=True,  # in each document, before
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "prefix": dict(  # a causal model that reads a random prefix of each document in both directions
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "recurrent": dict(  # "causal" on a stream of text, model.mem_len positions of it in memory
        chunk_size=64,  # positions of a row whose logits exist at a time
        eval_mem_len=0,  # positions that each one sees in evaluation; 0: memory as in training
        eval_clamp_len=0,  # with that: distances above it count as this one; 0: all differ
    ),
    "none": dict(),  # an imported model without a head: to start from, and to embed with
    "classify": dict(
        pool="",  # "first" | "last" | "mean" | "pooler" (the family's own, model.pooler);
        # "": first for an encoder, last for a causal model
        head_dropout=0.1,
        loss="softmax",  # "softmax" cross-entropy, "squared_hinge" or "hinge" (one-vs-rest SVM)
        C=0.0,  # inverse L2 penalty on the kernels as in scikit-learn; 0: none
    ),
    "tag": dict(
        pooler=False,  # the dense layer of model.pooler at every position, as ModernBERT has it
        head_dropout=0.1,
        crf=False,  # a conditional random field over the tags of a sentence; goes with "softmax"
        loss="softmax",
        C=0.0,
    ),
}

SMALL_MODELS = ("linear", "bilstm")  # of labelled tasks alone, without a tokenizer
LANGUAGE_MODELS = (  # on raw text; the others learn labels
    *("mlm", "causal", "rtd", "denoising", "spans", "infilling", "prefix", "recurrent"),
)
COLUMNS = {  # keys of ``data`` by which each task reads its sources
    **dict.fromkeys(LANGUAGE_MODELS, ("format", "text", "document")),
    "none": (),
    "classify": ("format", "text", "label"),
    "tag": ("format", "tokens", "tags"),
}

_RATE = dict(
    lr=1e-3,  # peak learning rate
    schedule="linear",  # "linear" | "cosine" | "inverse_sqrt" | "wsd" | "constant", after warmup
    warmup="10%",  # duration over which the rate rises from 0, in any unit; "": none
    decay="",  # of "wsd": duration of the fall at the end of the budget
    decay_shape="linear",  # of "wsd": "linear" | "cosine" | "sqrt" (ModernBERT: 1 - sqrt)
    end=0.0,  # rate at the end of the budget, or the least one, as a fraction of the peak
)
_SHARED = dict(
    weight_decay=0.01,  # decoupled: times the learning rate, and of LAMB times its trust ratio
    decayed="(.*/)?(kernel|embedding)",  # regex for paths of parameters that decay; LAMB's trust
    # ratios are of these alone
    layer_decay=1.0,  # learning rate of each layer relative to the one above (ELECTRA: 0.8)
    freeze="",  # regex for paths of parameters that stay as they are; "": none
    clip=1.0,  # global gradient norm; 0: no clipping
    ema=0.0,  # of the moving average of the parameters that is evaluated and kept; 0: none
    offload=False,  # the optimizer's state lies in the host's memory between updates
)
_ADAM = dict(
    b1=0.9,
    b2=0.98,
    eps=1e-6,
    bias_correction=True,  # false: as in BERT's release
    mu_dtype="float32",  # the first moment is kept in; "bfloat16" takes half the memory
)
OPTIMIZERS = {
    "adamw": _RATE | _SHARED | _ADAM,
    "lamb": _RATE | _SHARED | _ADAM | dict(b2=0.999),
    "lion": _RATE
    | _SHARED
    | dict(
        lr=1e-4,
        b1=0.9,
        b2=0.99,
        mu_dtype="float32",  # the momentum is kept in; "bfloat16" takes half the memory
        weight_decay=0.1,
    ),
    "adafactor": _RATE
    | _SHARED
    | dict(
        lr=1e-2,
        weight_decay=0.0,
        decay_rate=0.8,  # after n updates the second moment keeps 1 - n ** -decay_rate of itself
        eps=1e-30,  # added to squared gradients
        update_clip=1.0,  # root mean square of a matrix's update; 0: no clipping
        relative=True,  # updates relative to the root mean square of a matrix's entries
    ),
    "muon": _RATE
    | _SHARED
    | _ADAM  # of all that is no matrix of a layer
    | dict(
        momentum=0.95,
        rms=0.2,  # root mean square of a matrix's update, about that of Adam's
    ),
    "sgd": _RATE
    | _SHARED
    | dict(
        lr=0.1,
        weight_decay=0.0,
        momentum=0.9,  # 0: none
        nesterov=False,
        mu_dtype="float32",  # the momentum is kept in; "bfloat16" takes half the memory
    ),
    "lbfgs": dict(
        memory=10,  # past updates kept
        tolerance=1e-4,  # stop once the gradient's largest entry falls below it
    ),
}
