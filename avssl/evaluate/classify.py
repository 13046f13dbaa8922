"""Classification and clustering of frozen features in memory by scikit-learn's models.

Letters: n training videos, m test videos, V views of each, D feature, C classes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn: inverse of the L2 penalty
SVM_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 3
NUM_STARTS = 10  # of k-means


def linear_predict(
    train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, *, groups: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on standardized features, L2 penalty by cross-validation on the training set.

    Args:
        train: (n, D) features.
        train_targets: (n,) classes.
        test: (m, D) features.
        groups: (n,) clips of one group (scene, source video) are never split over folds; None = no groups.

    Returns:
        (m,) predicted classes, and the chosen C.

    Raises:
        ValueError: fewer than two classes.
    """
    if len(np.unique(train_targets)) < 2:
        raise ValueError(
            f"a linear probe needs at least two classes, the training features have {np.unique(train_targets)}"
        )
    scores = []
    for strength in STRENGTHS:
        right = 0
        for inside, outside in _folds(np.arange(len(train)) if groups is None else groups):
            if len(np.unique(train_targets[inside])) > 1:
                predicted = _fit(train[inside], train_targets[inside], strength).predict(train[outside])
                right += int((predicted == train_targets[outside]).sum())
        scores.append(right)
    best = STRENGTHS[int(np.argmax(scores))]
    return _fit(train, train_targets, best).predict(test), best


def svm_scores(
    train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, *, groups: np.ndarray, num_classes: int
) -> tuple[np.ndarray, float]:
    """Linear one-vs-rest SVM on standardized features of single views; decision values are averaged over the views.

    Args:
        train: (n, V, D) features; every view is a sample.
        train_targets: (n,) classes.
        test: (m, V, D).
        groups: (n,) as in `linear_predict`.
        num_classes: C.

    Returns:
        (m, C) mean decision values, -inf for a class without training videos; and the chosen SVM penalty.

    Source: the protocol of ESC-50 in the AVID paper, section 4.
    Differs from the public scripts: there the penalty is chosen on the test folds.
    """
    right = []
    for strength in SVM_STRENGTHS:
        scores = np.full((len(train), num_classes), -np.inf)
        for inside, outside in _folds(groups):
            if len(np.unique(train_targets[inside])) > 1:
                scores[outside] = _svm(train[inside], train_targets[inside], train[outside], strength, num_classes)
        right.append(int((scores.argmax(axis=1) == train_targets).sum()))
    best = SVM_STRENGTHS[int(np.argmax(right))]
    return _svm(train, train_targets, test, best, num_classes), best


def draw_few(targets: np.ndarray, fraction: float, *, num_draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Positions of a fraction of every class, at least one video each, in `num_draws` random draws.

    Source: the balanced lists of SimCLR (Chen et al. 2020), drawn here by a seed.
    """
    for draw in range(num_draws):
        rng = np.random.default_rng((seed, draw))
        drawn = []
        for each in np.unique(targets):
            rows = np.flatnonzero(targets == each)
            drawn.append(rng.choice(rows, max(1, round(fraction * len(rows))), replace=False))
        yield np.sort(np.concatenate(drawn))


def cluster(features: np.ndarray, *, num_clusters: int, seed: int = 0) -> np.ndarray:
    """(n,) clusters by k-means on features (n, D) scaled to unit length, the best of NUM_STARTS starts."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    model = KMeans(min(num_clusters, len(features)), n_init=NUM_STARTS, random_state=seed)
    with _quiet():  # warns about fewer distinct videos than clusters
        return model.fit_predict(features / np.maximum(lengths, 1e-12))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of convergence, which ranking penalties does not need, and of few clips per class. One thread:
    for small products, waiting threads make a fit up to 20 times slower."""
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        yield


def _folds(groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inside, outside) positions of at most FOLDS folds of whole groups; of single rows if there is one group only."""
    member = np.unique(groups, return_inverse=True)[1]
    if member.max() == 0:
        member = np.arange(len(groups))
    splitter = GroupKFold(min(FOLDS, member.max() + 1), shuffle=True, random_state=0)
    return splitter.split(member, groups=member)


def _svm(train: np.ndarray, targets: np.ndarray, test: np.ndarray, strength: float, num_classes: int) -> np.ndarray:
    """Mean decision values (m, C) of `test` (m, V, D)."""
    model = make_pipeline(StandardScaler(), LinearSVC(C=strength, random_state=0))
    with _quiet():
        model.fit(train.reshape(-1, train.shape[2]), np.repeat(targets, train.shape[1]))
    found = model.decision_function(test.reshape(-1, test.shape[2]))
    known = model.classes_
    if len(known) == 2:  # scikit-learn returns a single column
        found = np.stack([-found, found], axis=1)
    scores = np.full((len(test), num_classes), -np.inf)
    scores[:, known] = found.reshape(len(test), -1, len(known)).mean(axis=1)
    return scores


def _fit(features: np.ndarray, targets: np.ndarray, strength: float) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    with _quiet():
        return model.fit(features.astype(np.float64), targets)
