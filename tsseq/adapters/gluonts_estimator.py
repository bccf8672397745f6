"""`TsseqEstimator`: a gluonts estimator that fine-tunes a forecaster of tsseq or trains a new one."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gluonts.dataset.common import Dataset
from gluonts.exceptions import GluonTSDataError
from gluonts.model.estimator import Estimator

from tsseq.adapters.gluonts_predictor import TsseqPredictor, read_target
from tsseq.backbone import BackboneConfig
from tsseq.checkpoint import load
from tsseq.device import resolve_device
from tsseq.forecaster import Forecaster, ForecasterConfig
from tsseq.inference import InferenceConfig

if TYPE_CHECKING:
    from tsseq.finetuning import FinetuningConfig

logger = logging.getLogger(__name__)


class TsseqEstimator(Estimator):
    """Trains on a gluonts dataset and returns a `TsseqPredictor`.

    With a `model` (a checkpoint's name or path, or a `Forecaster`) its weights are adapted, and kept as they are
    unless that improves the forecast of a held-out tail of each series; the log says which. With `model=None` a new
    network of `layers` blocks of `mixer` is trained. `predictor` holds further arguments of `TsseqPredictor`.

    Raises ValueError for unusable settings and GluonTSDataError for data that cannot be trained on.
    """

    def __init__(
        self,
        prediction_length: int,
        model: str | Path | Forecaster | None = "base",
        *,
        mixer: str = "gated_delta_product",
        width: int = 64,
        layers: int = 2,
        patch_length: int = 8,
        max_steps: int = 300,
        learning_rate: float | None = None,
        batch_size: int = 16,
        seed: int = 0,
        device: str = "auto",
        **predictor: Any,
    ) -> None:
        super().__init__(lead_time=predictor.get("lead_time", 0))
        mixers = tuple(mixer.split(","))
        backbone = BackboneConfig(mixers=mixers, width=width, layers=layers, mlp_width=2 * width)
        self.prediction_length, self.model, self.device, self.predictor = prediction_length, model, device, predictor
        self.max_steps, self.batch_size, self.seed = max_steps, batch_size, seed
        self.learning_rate = (2e-3 if model is None else 3e-4) if learning_rate is None else learning_rate
        self.network = ForecasterConfig(
            patch_length=patch_length, hidden_width=2 * width, max_context=64 * patch_length, backbone=backbone
        )
        # What is wrong with settings is to be said before any training.
        with torch.random.fork_rng(devices=[]):
            TsseqPredictor(prediction_length, Forecaster(self.network), device="cpu", **predictor)
        self._training()

    def train(self, training_data: Dataset, validation_data: Dataset | None = None, **kwargs: Any) -> TsseqPredictor:
        """Train on all series of `training_data`. `validation_data` is not looked at: each series has its own tail."""
        from tsseq.finetuning import finetune, train_from_scratch

        series = [row.astype(np.float64) for entry in training_data for row in np.atleast_2d(read_target(entry))]
        config = self._training()
        device = str(resolve_device(self.device))
        try:
            if self.model is None:
                result = train_from_scratch(self.network, series, config, device=device)
            else:
                pretrained = self.model if isinstance(self.model, Forecaster) else load(self.model)
                result = finetune(pretrained, series, config, device=device)
        except ValueError as error:
            if "expected a series" not in str(error):
                raise
            raise GluonTSDataError(str(error)) from error
        logger.info("%s", result)
        return TsseqPredictor(self.prediction_length, result.forecaster, device=self.device, **self.predictor)

    def _training(self) -> FinetuningConfig:
        from tsseq.finetuning import FinetuningConfig

        options = [option.name for option in dataclasses.fields(InferenceConfig)]
        flags = {name: self.predictor[name] for name in options if name in self.predictor}
        return FinetuningConfig(
            horizon=self.prediction_length + self.lead_time,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            inference=InferenceConfig(**flags),
        )
