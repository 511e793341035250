"""Weighted nearest neighbours on frozen features (Wu et al. 2018, "Unsupervised feature learning via non-parametric
instance discrimination", section 3.4).

    N training rows    M test rows    D features    C classes    k neighbours
"""

from torch import Tensor
from torch.nn import functional as F

from selfie_cli.errors import DataError


def knn_predict(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    *,
    num_classes: int,
    k: int,
    temperature: float,
    chunk: int = 2**24,
) -> Tensor:
    """Class scores of the test rows, float32 [M, C], each row summing to one.

    The k training rows of highest cosine similarity, all if there are fewer, vote for their class, each with the weight
    exp(similarity / temperature). A row of zero norm has similarity 0 to all, and gets arbitrary neighbours.

    `train` [N, D] and `test` [M, D] are floats, `train_labels` [N] int64, all on one device. At most about `chunk`
    similarities (at least one test row's N) are in memory at a time. Raises DataError without training rows.
    """
    if len(train) == 0:
        raise DataError("kNN needs at least one labelled training image.")
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    scores = test.new_zeros(len(test), num_classes)
    rows = max(1, chunk // len(train))
    for first in range(0, len(test), rows):
        part = slice(first, first + rows)
        similarity, neighbour = (test[part] @ train.T).topk(min(k, len(train)), dim=1)  # [m, N] -> [m, k]
        # Softmax is exp(similarity / temperature) divided by its sum, and never overflows.
        scores[part].scatter_add_(1, train_labels[neighbour], (similarity / temperature).softmax(dim=1))  # [m, C]
    return scores
