"""Predicts from shapes alone how many FLOPs a model's training takes."""

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PretrainedConfig

from ds_train.model.causal_lm import model_without_weights
from ds_train.model.footprint import model_shape
from ds_train.model.recomputation import checkpointable_layers, recomputed_layers


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of forward and backward together, in integers, so that sums do not depend on their order.

    All experts and all tokens before a token are counted, also where a model uses some of them only.

    Attributes:
        per_token: 6 for each parameter that a token is multiplied with, which excludes an input embedding.
        per_pair: for each of the n² pairs of a document of n tokens: 3 × layers × width of queries and of values.
            Causal attention needs half of the pairs, which would take 6.
    """

    per_token: int
    per_pair: int

    def of(self, num_tokens: int, num_pairs: int) -> int:
        """FLOPs of documents with this many tokens, and this many pairs of tokens of one document."""
        return self.per_token * num_tokens + self.per_pair * num_pairs

    def of_documents(self, lengths: Iterable[int]) -> int:
        """FLOPs of documents with these lengths in tokens."""
        lengths = [*lengths]
        return self.of(sum(lengths), sum(length**2 for length in lengths))


def training_flops(config: PretrainedConfig) -> TrainingFlops:
    """The FLOPs of a model, from its shapes alone."""
    shape = model_shape(config)
    is_tied = getattr(config, "tie_word_embeddings", False)
    embedding = 0 if is_tied else shape.vocab_size * shape.hidden
    attended = shape.num_layers * (shape.query_width + shape.value_width)
    return TrainingFlops(6 * (shape.num_parameters - embedding), 3 * attended)


def recomputation_flops(config: PretrainedConfig, every: int) -> TrainingFlops:
    """What activation checkpointing of every N-th layer adds: its forward, without the last product of each layer.

    That is the second one of the feed-forward part: torch stops a recomputation when all activations are there.
    """
    if not every:
        return TrainingFlops(0, 0)
    shape, layers = model_shape(config), checkpointable_layers(model_without_weights(config))
    recomputed = [layers[number] for number in recomputed_layers(len(layers), every)]
    matrices = sum(weight.numel() for layer in recomputed for weight in layer.parameters() if weight.dim() > 1)
    last = len(recomputed) * shape.hidden * shape.intermediate
    return TrainingFlops(2 * (matrices - last), len(recomputed) * (shape.query_width + shape.value_width))
