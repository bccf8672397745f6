"""A small sequence tagger on the shared backbone, and how it learns a state-tracking task."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, nn
from torch.nn import functional as F

from tsseq.array_typing import Float, Int, Tensor
from tsseq.backbone import Backbone, BackboneConfig
from tsseq.datasets.state_tracking import Task, Words


@dataclass(frozen=True)
class TrackerTraining:
    """AdamW on words of `train_length`, scored on `test_words` words of `test_length` that never change.

    The learning rate rises over the first tenth of the steps and falls as a cosine to 1/200 of its peak; embeddings
    do not decay. `penalty` weighs what the mixers' papers add to the loss. Training stops early once `enough` of the
    tested labels are right.

    Three things here, each of them optional, take far fewer steps than the papers' 100000. With `every_position` the
    state after each token is a label in training (never in the test), not only the last. With `start_length` words
    are at most that long at first; the bound grows by a third whenever about `grow_at` of the labels are right.
    `label_smoothing` keeps the loss above zero, and so the pressure on the state to be exact, once all words of the
    training lengths are right.
    """

    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    penalty: float = 0.0
    label_smoothing: float = 0.1
    every_position: bool = True
    start_length: int | None = None
    grow_at: float = 0.8
    train_length: tuple[int, int] = (3, 40)
    test_length: tuple[int, int] = (40, 256)
    test_words: int = 1024
    test_every: int = 250
    enough: float = 0.9995

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.test_words, self.test_every) < 1:
            raise ValueError("expected steps, batch_size, test_words and test_every of at least 1")
        if self.start_length is not None and self.start_length < self.train_length[0]:
            raise ValueError(f"expected start_length of at least {self.train_length[0]}, got {self.start_length}")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"expected a label_smoothing between 0 and 1, got {self.label_smoothing}")

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        warmup = max(1, self.steps // 10)
        if step < warmup:
            return (step + 1) / warmup
        share = (step - warmup) / max(1, self.steps - warmup)
        return 0.005 + 0.995 * (1 + math.cos(math.pi * share)) / 2


class Score(NamedTuple):
    """Share of labels that are right on the test words after `step` steps."""

    step: int
    accuracy: float


class StateTracker(nn.Module):
    """Embedding, backbone, and a class per position."""

    def __init__(self, task: Task, config: BackboneConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(task.vocabulary + 1, config.width)
        self.backbone = Backbone(config)
        self.read_out = nn.Linear(config.width, task.classes)

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time class"]:
        y: Tensor = self.read_out(self.backbone(self.embedding(tokens))[0])
        return y


def train_tracker(
    task: Task,
    config: BackboneConfig,
    training: TrackerTraining,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Scores every `test_every` steps and after the last one; `report` hears each when it is known.

    Weights come from torch's global generator, words from one of their own, both seeded by `seed`; the test words are
    the same for every seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StateTracker(task, config).to(device)
    words = Generator(device).manual_seed(seed)
    embedding = [model.embedding.weight]
    others = [p for p in model.parameters() if p is not model.embedding.weight]
    groups = [{"params": embedding, "weight_decay": 0.0}, {"params": others, "weight_decay": training.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, training.rate)
    scores: list[Score] = []
    longest, right = _first_bound(training), 0.0
    for step in range(1, training.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        lengths = (training.train_length[0], longest)
        drawn = task.sample(words, training.batch_size, lengths, every_position=training.every_position)
        loss, hits = _loss(model, drawn, training)
        loss.backward()
        optimizer.step()
        schedule.step()
        if longest < training.train_length[1]:
            right += 0.1 * (float(hits) - right)
            if right > training.grow_at:
                longest, right = min(training.train_length[1], longest + max(1, longest // 3)), 0.0
        if step % training.test_every == 0 or step == training.steps:
            scores.append(Score(step, accuracy(model, task, training)))
            if report is not None:
                report(scores[-1])
            if scores[-1].accuracy >= training.enough:
                break
    return scores


def _first_bound(training: TrackerTraining) -> int:
    high = training.train_length[1]
    return high if training.start_length is None else min(high, training.start_length)


def _loss(model: StateTracker, words: Words, training: TrackerTraining) -> tuple[Tensor, Tensor]:
    """The loss, and the share of labels that are right."""
    logits, labels = model(words.tokens)[words.scored], words.labels[words.scored]
    loss = F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
    if training.penalty:
        loss = loss + training.penalty * torch.stack([block.mixer.penalty() for block in model.backbone.layers]).sum()
    return loss, (logits.detach().argmax(-1) == labels).float().mean()


@torch.no_grad()
def accuracy(model: StateTracker, task: Task, training: TrackerTraining) -> float:
    """Share of right labels over the test words."""
    device = model.embedding.weight.device
    generator = Generator(device).manual_seed(2**31)
    right = total = 0
    for start in range(0, training.test_words, 512):
        words = task.sample(generator, min(512, training.test_words - start), training.test_length)
        hits = model(words.tokens).argmax(-1) == words.labels
        right += int(hits[words.scored].sum())
        total += int(words.scored.sum())
    return right / total
