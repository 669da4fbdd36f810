"""A small training with MldbTrainer, as a program that a test starts, kills and starts again."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)

import mldb
from mldb.adapters.huggingface import MldbTrainer

STEPS_AN_EPOCH = 8


def rows(count: int = 32) -> list[dict[str, Any]]:
    """Texts of eight tokens and their classes."""
    draw = torch.Generator().manual_seed(1)
    return [
        {"input_ids": torch.randint(0, 50, (8,), generator=draw), "labels": torch.tensor(i % 2)}
        for i in range(count)
    ]


def new_model() -> Any:
    """A model with dropout, so that the generators matter, and two layers of one embedding."""
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    )


def arguments(out: str, **options: Any) -> TrainingArguments:
    """Two epochs of eight steps, with a checkpoint every three steps."""
    chosen: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(out, **(chosen | options))


class Killed(TrainerCallback):
    """Ends the process without warning after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(store: str, out: str, resume: bool, kill: int) -> None:
    """Train, and be killed after step *kill* where it is not 0."""
    torch.set_num_threads(1)
    with mldb.open(store) as db:
        trainer = MldbTrainer(
            new_model(), arguments(out), train_dataset=rows(), db=db, callbacks=[Killed(kill)]
        )
        trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "resume", int(sys.argv[4]))
