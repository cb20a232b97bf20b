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
        dropout=0.1,  # embeddings and sub-layer outputs
        attention_dropout=0.1,
        dtype="float32",  # of activations; parameters stay float32
        remat="none",  # "none", "full", or a name in jax.checkpoint_policies
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
        remat="none",  # "none", "full", or a name in jax.checkpoint_policies
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
        remat="none",  # "none", "full", or a name in jax.checkpoint_policies
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
        remat="none",  # "none", "full", or a name in jax.checkpoint_policies
        unroll=1,  # layers unrolled in each iteration of the scan over layers
    ),
    "linear": dict(
        num_features=2**18,  # hash buckets
        ngrams=2,  # classification: word n-grams up to this length
        window=2,  # tagging: neighbours on each side whose features a token sees
    ),
}

# Of ``model``, chosen per run: they change neither the parameters' shapes nor their meaning.
RUNTIME_FIELDS = ("dropout", "attention_dropout", "dtype", "remat", "unroll")
RUNTIME_FIELDS += ("mem_len", "zero_memory", "same_length", "clamp_len")  # of Transformer-XL

OBJECTIVES = {
    "mlm": dict(
        mask_rate=0.15,  # of a row's positions, exactly this many predicted (evaluated at 0.15)
        mask_prob=0.8,  # of the chosen positions, replaced by [MASK]
        random_prob=0.1,  # of the chosen positions, replaced by a random piece
    ),
    "causal": dict(
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "rtd": dict(
        replace_rate=0.15,  # of a row's positions, exactly this many drawn anew
    ),
    "denoising": dict(  # an encoder sees what "mlm" masks, the decoder writes the whole text
        mask_rate=0.15,  # as of "mlm"
        mask_prob=0.8,
        random_prob=0.1,
        chunk_size=64,  # positions of a row whose logits exist at a time
    ),
    "none": dict(),  # an imported model without a head: to start from, and to embed with
    "classify": dict(
        pool="",  # "first" | "last" | "mean" | "pooler" (the family's own, model.pooler);
        # "": first for an encoder, last for a causal model
        head_dropout=0.1,
        loss="softmax",  # "softmax" cross-entropy, or "squared_hinge" (one-vs-rest linear SVM)
        C=0.0,  # inverse L2 penalty on the kernels as in scikit-learn; 0: none
    ),
    "tag": dict(
        pooler=False,  # the dense layer of model.pooler at every position, as ModernBERT has it
        head_dropout=0.1,
        loss="softmax",
        C=0.0,
    ),
}

LANGUAGE_MODELS = ("mlm", "causal", "rtd", "denoising")  # on raw text; the others learn labels
COLUMNS = {  # keys of ``data`` by which each task reads its sources
    **dict.fromkeys(LANGUAGE_MODELS, ("format", "text", "document")),
    "none": (),
    "classify": ("format", "text", "label"),
    "tag": ("format", "tokens", "tags"),
}

OPTIMIZERS = {
    "adamw": dict(
        lr=1e-3,  # peak learning rate
        schedule="linear",  # "linear" | "cosine" | "constant" after the warm-up
        warmup=0.1,  # fraction of the budget over which the rate rises from 0
        end=0.0,  # rate at the end of the budget, as a fraction of the peak
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.01,  # on kernels and embeddings; never on biases and norms
        clip=1.0,  # global gradient norm; 0: no clipping
    ),
    "lbfgs": dict(
        memory=10,  # past updates kept
        tolerance=1e-4,  # stop once the gradient's largest entry falls below it
    ),
}
