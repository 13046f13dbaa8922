"""Linear classification on frozen features by scikit-learn: one figure per video, all features in memory.

What lives here: logistic regression, the support vector machine of ESC-50, and few labels. What does not: heads on
every map of an encoder (heads.py).

Letters: n training videos, m test videos, V views of each, D feature, C classes.
"""

import warnings
from collections.abc import Iterator

import numpy as np
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


def linear_predict(
    train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, *, groups: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Multinomial logistic regression on standardised features; the L2 penalty is chosen by cross-validation on the
    training features alone.

    Args:
        train: (n, D) features.
        train_targets: (n,) classes.
        test: (m, D) features.
        groups: (n,) clips of one group (scene, source video) are never on both sides of a fold; None = each by itself.

    Returns:
        (m,) predicted classes, and the penalty C that was chosen.

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


def grouped_predict(features: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, num_folds: int = 5) -> np.ndarray:
    """Every clip classified by a linear probe that has seen no clip of its group (scene, source video).

    Args:
        features: (n, D).
        targets: (n,) classes.
        groups: (n,) any labels.
        num_folds: groups are shared out over as many folds, of about equal numbers of clips.

    Returns:
        (n,) predicted classes.

    Raises:
        ValueError: fewer groups than folds, or a fold whose training side has one class only.
    """
    member = np.unique(groups, return_inverse=True)[1]
    if member.max(initial=-1) + 1 < num_folds:
        raise ValueError(f"{member.max(initial=-1) + 1} groups cannot be shared out over num_folds={num_folds}")
    predicted = np.empty_like(targets)
    for train, test in GroupKFold(num_folds).split(features, groups=member):
        predicted[test], _ = linear_predict(features[train], targets[train], features[test], groups=member[train])
    return predicted


def svm_scores(
    train: np.ndarray, train_targets: np.ndarray, test: np.ndarray, *, groups: np.ndarray, num_classes: int
) -> tuple[np.ndarray, float]:
    """Linear support vector machine, one class against the others, on standardised features of single views; the
    decision values of a video are the mean over its views. C is chosen inside the training videos.

    Args:
        train: (n, V, D) features; every view is a sample.
        train_targets: (n,) classes.
        test: (m, V, D).
        groups: (n,) videos of one group are never on both sides of a fold.
        num_classes: C.

    Returns:
        (m, C) mean decision values, -inf for a class that was not learned; and the C that was chosen.

    Source: the protocol of ESC-50 in the AVID paper, section 4.
    Differs from the scripts that are public: there C is chosen on the test folds.
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


def draw_few(targets: np.ndarray, share: float, *, num_draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Positions of so few labelled videos: `share` of every class, at least one, in `num_draws` draws.

    Source: the balanced lists of SimCLR (Chen et al. 2020), drawn here by a seed.
    """
    for draw in range(num_draws):
        rng = np.random.default_rng((seed, draw))
        kept = []
        for each in np.unique(targets):
            rows = np.flatnonzero(targets == each)
            kept.append(rng.choice(rows, max(1, round(share * len(rows))), replace=False))
        yield np.sort(np.concatenate(kept))


def _folds(groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions inside and outside of each of at most FOLDS folds of whole groups; of rows where all are one group."""
    member = np.unique(groups, return_inverse=True)[1]
    if member.max() == 0:
        member = np.arange(len(groups))
    splitter = GroupKFold(min(FOLDS, member.max() + 1), shuffle=True, random_state=0)
    return splitter.split(member, groups=member)


def _svm(train: np.ndarray, targets: np.ndarray, test: np.ndarray, strength: float, num_classes: int) -> np.ndarray:
    """Mean decision values (m, C) of `test` (m, V, D)."""
    model = make_pipeline(StandardScaler(), LinearSVC(C=strength, random_state=0))
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train.reshape(-1, train.shape[2]), np.repeat(targets, train.shape[1]))
    found = model.decision_function(test.reshape(-1, test.shape[2]))
    known = model.classes_
    found = np.stack([-found, found], axis=1) if len(known) == 2 else found  # of two classes one value is given
    scores = np.full((len(test), num_classes), -np.inf)
    scores[:, known] = found.reshape(len(test), -1, len(known)).mean(axis=1)
    return scores


def _fit(features: np.ndarray, targets: np.ndarray, strength: float) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    # One thread: the products are small, and threads that wait for each other make a fit up to 20 times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need not converge to rank the strengths
        return model.fit(features.astype(np.float64), targets)
