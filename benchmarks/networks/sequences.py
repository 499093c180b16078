"""Networks for sequences: sound, text, sensors."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from benchmarks.networks.registry import WORDS, network

LENGTH, WIDTH = 20, 8


def series() -> Any:
    return keras.Input((LENGTH, WIDTH), name="series")


def words(name: str = "words") -> Any:
    return keras.Input((LENGTH,), dtype="int32", name=name)


def encoder_block(x: Any) -> Any:
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    y = layers.Dense(x.shape[-1])(layers.Dense(32, activation="relu")(x))
    return layers.LayerNormalization()(x + y)


@network
def temporal_convolutions() -> keras.Model:
    x = inputs = series()
    for rate in (1, 2, 4):
        y = layers.Conv1D(8, 3, padding="causal", dilation_rate=rate, activation="relu")(x)
        x = layers.Add()([x, layers.Dropout(0.1)(y)])
    return keras.Model(inputs, layers.Dense(4)(x[:, -1, :]))


@network
def wavenet() -> keras.Model:
    inputs = series()
    x, skips = layers.Conv1D(8, 1)(inputs), []
    for rate in (1, 2):
        options: dict[str, Any] = {"padding": "causal", "dilation_rate": rate}
        gated = layers.Conv1D(8, 2, activation="tanh", **options)(x)
        gated = gated * layers.Conv1D(8, 2, activation="sigmoid", **options)(x)
        skips.append(layers.Conv1D(8, 1)(gated))
        x = x + skips[-1]
    return keras.Model(inputs, layers.Conv1D(16, 1)(layers.ReLU()(layers.Add()(skips))))


@network
def keyword_spotting() -> keras.Model:
    inputs = keras.Input((25, 10, 1), name="spectrum")
    x = layers.Conv2D(16, (10, 4), strides=2, padding="same", activation="relu")(inputs)
    for _ in range(2):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(16, 1, activation="relu")(x)
    x = layers.Flatten()(layers.AveragePooling2D((13, 5))(x))
    return keras.Model(inputs, layers.Dense(6, activation="softmax")(x))


@network
def heartbeat_resnet() -> keras.Model:
    x = inputs = keras.Input((64, 1), name="signal")
    for filters in (8, 16):
        y = layers.Conv1D(filters, 5, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.MaxPooling1D()(layers.Add()([layers.Conv1D(filters, 1)(x), y]))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


@network
def unet_of_sound() -> keras.Model:
    inputs = series()
    a = layers.Conv1D(8, 3, padding="same", activation="relu")(inputs)
    b = layers.Conv1D(8, 3, padding="same", activation="relu")(layers.AveragePooling1D(2)(a))
    up = layers.Conv1DTranspose(8, 2, strides=2)(b)
    x = layers.Concatenate()([a, up, layers.UpSampling1D()(b)])
    return keras.Model(inputs, layers.Conv1D(1, 1, activation="tanh")(x))


@network
def crnn() -> keras.Model:
    inputs = keras.Input((16, 32, 1), name="line")
    x = layers.MaxPooling2D((2, 2))(layers.Conv2D(8, 3, padding="same", activation="relu")(inputs))
    x = layers.Reshape((16, 64))(layers.Permute((2, 1, 3))(x))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True))(x)
    return keras.Model(inputs, layers.Dense(12, activation="softmax")(x))


@network
def noise_suppression() -> keras.Model:
    inputs = series()
    x = layers.Dense(8, activation="tanh")(inputs)
    voice = layers.GRU(8, return_sequences=True)(x)
    noise = layers.Concatenate()([x, voice, inputs])
    noise = layers.GRU(8, return_sequences=True, reset_after=False)(noise)
    gains = layers.Dense(8, activation="sigmoid")(layers.Concatenate()([voice, noise]))
    return keras.Model(inputs, [gains, layers.Dense(1, activation="sigmoid")(voice)])


@network
def lstm_classifier() -> keras.Model:
    inputs = words()
    x = layers.LSTM(12)(layers.Embedding(WORDS, 8, mask_zero=True)(inputs))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


@network
def tagger() -> keras.Model:
    inputs = words()
    x = layers.Embedding(WORDS, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.GRU(8, return_sequences=True), merge_mode="sum")(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(5, activation="softmax"))(x))


@network
def lstm_autoencoder() -> keras.Model:
    inputs = series()
    x = layers.RepeatVector(LENGTH)(layers.LSTM(6)(inputs))
    x = layers.LSTM(8, return_sequences=True)(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(WIDTH))(x))


@network
def stacked_cells() -> keras.Model:
    inputs = series()
    x = layers.RNN([layers.LSTMCell(6), layers.GRUCell(6)])(inputs)
    return keras.Model(inputs, layers.Dense(3)(x))


@network
def text_convolutions() -> keras.Model:
    inputs = words()
    x = layers.Embedding(WORDS, 8)(inputs)
    found = [layers.Conv1D(6, size, activation="relu")(x) for size in (2, 3, 4)]
    x = layers.Concatenate()([layers.GlobalMaxPooling1D()(y) for y in found])
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


@network
def bag_of_words() -> keras.Model:
    inputs = words()
    x = layers.GlobalAveragePooling1D()(layers.Embedding(WORDS, 8, mask_zero=True)(inputs))
    return keras.Model(inputs, layers.Dense(4)(layers.Dense(8, activation="selu")(x)))


@network
def transformer_encoder() -> keras.Model:
    inputs = words()
    x = layers.Embedding(WORDS, 16, mask_zero=True)(inputs)
    x = encoder_block(x + layers.Embedding(LENGTH, 16)(ops.arange(LENGTH)))
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


@network
def transformer_decoder() -> keras.Model:
    inputs = words()
    table = layers.Embedding(WORDS, 16)
    x = table(inputs)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 8)(y, y, use_causal_mask=True)
    x = x + layers.Dense(16)(layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(inputs, layers.Dense(WORDS)(layers.LayerNormalization()(x)))


@network
def sequence_to_sequence() -> keras.Model:
    source, target = words("source"), words("target")
    seen, state = layers.GRU(8, return_sequences=True, return_state=True)(
        layers.Embedding(WORDS, 8)(source)
    )
    said = layers.GRU(8, return_sequences=True)(
        layers.Embedding(WORDS, 8)(target), initial_state=state
    )
    context = layers.Attention()([said, seen])
    x = layers.Concatenate()([said, context])
    return keras.Model([source, target], layers.Dense(WORDS, activation="softmax")(x))


@network
def grouped_queries() -> keras.Model:
    x = inputs = series()
    y = layers.RMSNormalization()(x)
    x = x + layers.GroupQueryAttention(4, 4, 2)(y, y)
    y = layers.RMSNormalization()(x)
    gate = layers.Dense(16, activation="silu")(y)
    return keras.Model(inputs, x + layers.Dense(WIDTH)(gate * layers.Dense(16)(y)))


@network
def conformer() -> keras.Model:
    x = inputs = series()
    y = layers.Dense(16, activation="swish")(layers.LayerNormalization()(x))
    x = x + 0.5 * layers.Dense(WIDTH)(y)
    y = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(2, 4)(y, y)
    y = layers.Conv1D(16, 1)(layers.LayerNormalization()(x))
    a, b = ops.split(y, 2, axis=-1)
    y = layers.DepthwiseConv1D(5, padding="same")(a * ops.sigmoid(b))
    y = layers.Activation("swish")(layers.BatchNormalization()(y))
    x = layers.LayerNormalization()(x + layers.Conv1D(WIDTH, 1)(y))
    return keras.Model(inputs, layers.Dense(6)(x))


@network
def additive_attention() -> keras.Model:
    inputs = series()
    scores = layers.Softmax(axis=1)(layers.Dense(1)(layers.Dense(6, activation="tanh")(inputs)))
    return keras.Model(inputs, layers.Dense(3)(ops.sum(inputs * scores, axis=1)))
