"""Feeds a Lightning trainer from a prior; resuming continues the stream where it stopped."""

import lightning
from torch.utils.data import DataLoader

from tsseq.datasets.stream import PriorStream, StreamConfig
from tsseq.datasets.tasks import TrainingBatch
from tsseq.synthetic.base import Prior


class PriorDataModule(lightning.LightningDataModule):
    """One endless epoch. On a GPU the series are drawn there, in the training process; otherwise by `workers`."""

    def __init__(self, prior: Prior, config: StreamConfig, *, workers: int = 0) -> None:
        super().__init__()
        self.prior, self.config, self.workers = prior, config, workers

    def train_dataloader(self) -> DataLoader[TrainingBatch]:
        trainer = self.trainer
        assert trainer is not None
        device = trainer.strategy.root_device
        on_gpu = device.type == "cuda"
        stream = PriorStream(
            self.prior,
            self.config,
            rank=trainer.global_rank,
            first_step=trainer.global_step * trainer.accumulate_grad_batches,
            device=str(device) if on_gpu else "cpu",
        )
        return DataLoader(stream, batch_size=None, num_workers=0 if on_gpu else self.workers)
