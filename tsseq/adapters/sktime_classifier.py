"""`TsseqClassifier`: a classifier of tsseq as an sktime estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sktime.classification.base import BaseClassifier

from tsseq.device import resolve_device

if TYPE_CHECKING:
    from tsseq.ensemble import Recipe

Panel = NDArray[np.float64] | list[pd.DataFrame]


class TsseqClassifier(BaseClassifier):
    """Classifies multivariate series of equal or unequal lengths with linear RNNs or state-space models.

    An average over `members` networks that differ in their seeds: a convolution cuts a series into positions, a
    stack of any mixer of tsseq reads them forwards and backwards, and the mean and maximum over time give the class.
    Channels are normalised over the training set, and where beside the largest of its series half of them would vanish,
    by each series too; missing values may be NaN. Training runs in Lightning.

    Parameters
    ----------
    mixer : str, default="lru"
        Sequence mixer, one of `tsseq.mixers.MIXERS`, or several joined by commas and cycled over the layers.
    width, layers : int, default=64, 2
        Features and residual blocks.
    positions : int or None, default=None
        Longest sequence that the mixer reads; longer series are cut into patches of as many steps as needed. None is
        50; series of more than 400 steps are cut into patches of 8, or longer ones that make 400 positions.
    members : int, default=3
        Networks to average.
    max_epochs, max_steps : int, default=60, 3000
        Passes over the training set of each network, and most optimiser steps.
    batch_size : int, default=16
    learning_rate : float, default=2e-3
    validation : float, default=0.0
        Share of each class that is held out, another one for each member, for early stopping; 0 trains on all data
        by the whole schedule.
    patience : int, default=20
        Epochs without a lower validation loss that end the training.
    warp : float, default=0.3
        Training series are passed through at speeds that differ from stretch to stretch: the standard deviation of
        their logarithm; 0 leaves the series as they are.
    mixer_options : dict or None, default=None
        Keyword arguments of the mixer; None is {} but for the "lru", whose modes then start slow.
    device : str, default="auto"
        Where the networks run: "auto" (a GPU if there is one), "cpu", "cuda", "mps".
    random_state : int, RandomState or None, default=0

    Examples
    --------
    >>> from sktime.datasets import load_unit_test
    >>> from tsseq.adapters.sktime import TsseqClassifier
    >>> X, y = load_unit_test(split="train")
    >>> classifier = TsseqClassifier(width=16, members=1, max_epochs=5).fit(X, y)
    >>> classifier.predict_proba(X).shape
    (20, 2)
    """

    _tags = {
        "authors": ["tsseq"],
        "maintainers": ["tsseq"],
        "python_dependencies": ["torch", "lightning"],
        # Arrays stay arrays; all else, of unequal lengths perhaps, becomes a list of tables.
        "X_inner_mtype": ["df-list", "numpy3D"],
        "y_inner_mtype": "numpy1D",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
        "capability:predict_proba": True,
        "capability:categorical_in_X": False,
        "capability:random_state": True,
        "property:randomness": "derandomized",
    }

    def __init__(
        self,
        mixer: str = "lru",
        width: int = 64,
        layers: int = 2,
        positions: int | None = None,
        members: int = 3,
        max_epochs: int = 60,
        max_steps: int = 3000,
        batch_size: int = 16,
        learning_rate: float = 2e-3,
        validation: float = 0.0,
        patience: int = 20,
        warp: float = 0.3,
        mixer_options: dict[str, Any] | None = None,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.mixer = mixer
        self.width = width
        self.layers = layers
        self.positions = positions
        self.members = members
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation = validation
        self.patience = patience
        self.warp = warp
        self.mixer_options = mixer_options
        self.device = device
        self.random_state = random_state
        super().__init__()

    def reset(self) -> TsseqClassifier:
        """As in sktime, which resets at each fit, but leaving what scikit-learn put there for the time of a fit.

        From 1.9 on a scikit-learn pipeline hangs a callback context on its steps, and fails if it is gone later.
        """
        context = self.__dict__.get("_parent_callback_ctx")
        super().reset()
        if context is not None:
            self._parent_callback_ctx = context
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of a step since 1.6, and sktime does not answer."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier", target_tags=TargetTags(required=True), classifier_tags=ClassifierTags()
        )

    def __sklearn_is_fitted__(self) -> bool:
        return bool(self.is_fitted)

    def _fit(self, X: Panel, y: NDArray[Any]) -> TsseqClassifier:
        from tsseq.ensemble import train

        labels = np.searchsorted(self.classes_, y)
        seed = int(check_random_state(self.random_state).randint(2**31))
        device = str(resolve_device(self.device))
        self._ensemble = train(_to_array(X), labels, len(self.classes_), self._recipe(), seed=seed, device=device)
        return self

    def _recipe(self) -> Recipe:
        from tsseq.classifier_training import ClassifierTrainingConfig
        from tsseq.ensemble import Recipe

        mixers = tuple(self.mixer.split(","))
        training = ClassifierTrainingConfig(
            max_epochs=self.max_epochs,
            min_steps=min(ClassifierTrainingConfig.min_steps, self.max_steps),
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            validation=self.validation,
            patience=self.patience,
            warp=self.warp,
        )
        return Recipe(
            mixers=mixers,
            width=self.width,
            layers=self.layers,
            positions=self.positions,
            members=self.members,
            options=Recipe.options_for(mixers, self.mixer_options),
            training=training,
        )

    def _predict(self, X: Panel) -> NDArray[Any]:
        labels: NDArray[Any] = np.asarray(self.classes_)[self._predict_proba(X).argmax(1)]
        return labels

    def _predict_proba(self, X: Panel) -> NDArray[np.float64]:
        values = _to_array(X)
        if values.shape[2] != self._ensemble.channels:
            raise ValueError(f"expected series of {self._ensemble.channels} channels as in fit, got {values.shape[2]}")
        return self._ensemble.probabilities(values, resolve_device(self.device))

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Parameters of instances that fit and predict in milliseconds."""
        quick = {"width": 8, "layers": 1, "positions": 8, "max_steps": 2, "device": "cpu"}
        return [
            {**quick, "mixer": "lru", "members": 1},
            {**quick, "mixer": "lstm,min_gru", "members": 2, "validation": 0.3},
        ]


def _to_array(X: Panel) -> NDArray[np.float64]:
    """Series as case × time × channel, NaN after the end of shorter ones.

    Raises ValueError for infinite values and for series of different numbers of channels.
    """
    if isinstance(X, np.ndarray):
        values = np.asarray(X, np.float64).transpose(0, 2, 1)
    else:
        length, channels = max(len(table) for table in X), X[0].shape[1]
        values = np.full((len(X), length, channels), np.nan)
        for row, table in enumerate(X):
            if table.shape[1] != channels:
                raise ValueError(
                    f"expected series of {channels} channels as in the first, got {table.shape[1]} in {row}"
                )
            values[row, : len(table)] = table.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        case = int(np.argwhere(np.isinf(values))[0, 0])
        raise ValueError(
            f"expected finite values or NaN for missing in X, got an infinite one in series {case}: impute it"
        )
    return np.ascontiguousarray(values)
