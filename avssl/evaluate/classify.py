"""Linear classification on frozen features, the field's usual figure of merit."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of scikit-learn: inverse of the L2 penalty
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
    groups = np.arange(len(train)) if groups is None else np.unique(groups, return_inverse=True)[1]
    folds = min(FOLDS, len(np.unique(groups)))
    scores = []
    for strength in STRENGTHS:
        right = 0
        for inside, outside in GroupKFold(folds, shuffle=True, random_state=0).split(train, groups=groups):
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


def _fit(features: np.ndarray, targets: np.ndarray, strength: float) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
    # One thread: the products are small, and threads that wait for each other make a fit up to 20 times slower.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties need not converge to rank the strengths
        return model.fit(features.astype(np.float64), targets)
