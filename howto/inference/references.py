"""How likely the model finds the references: the basis of perplexity."""

from collections.abc import Iterator, Sequence

import torch

from howto.inference.kv_cache import KVCache, OneRowCache
from howto.modeling.collate import Example
from howto.modeling.distributed.process_group import ProcessGroup

MAX_LOGITS = 2**24  # in memory at once: 64 MiB in float32
MAX_TOKENS = 2**14  # in one forward pass, unless a single row has more


@torch.inference_mode()
def mean_log_probabilities(
    cache: KVCache | OneRowCache, examples: Sequence[Example], vocabulary: int, group: ProcessGroup
) -> list[float]:
    """Return for each example the mean log-probability, in nats, of its completion tokens after its prompt.

    The end of sequence is one of them. The perplexity of a data set is exp(-mean), with a mean weighted by tokens. The
    processes of the group share the work. Which examples are computed together does not depend on their number.
    """
    batches = list(enumerate(_batches(examples, MAX_LOGITS // vocabulary)))
    own: dict[int, list[float]] = {}
    for number, batch in group.shard(batches):
        logits = cache.logits(batch).float()  # [completion tokens, vocabulary]
        labels = torch.tensor([token for example in batch for token in example.completion], device=logits.device)
        found = (logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(dim=1)).double()
        parts = torch.split(found, [len(example.completion) for example in batch])
        own[number] = [part.mean().item() for part in parts]
    means = {number: values for part in group.all_gather(own) for number, values in part.items()}
    return [mean for number, _ in batches for mean in means[number]]


def _batches(examples: Sequence[Example], max_completion_tokens: int) -> Iterator[list[Example]]:
    """Yield the examples, in order, in batches of one, or of at most so many completion tokens and MAX_TOKENS."""
    batch: list[Example] = []
    completions = tokens = 0
    for example in examples:
        completions, tokens = completions + len(example.completion), tokens + len(example)
        if batch and (completions > max_completion_tokens or tokens > MAX_TOKENS):
            yield batch
            batch, completions, tokens = [], len(example.completion), len(example)
        batch.append(example)
    if batch:
        yield batch
