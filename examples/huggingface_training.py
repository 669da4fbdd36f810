"""A Hugging Face Trainer that saves into a store, is stopped, and goes on as if it had not been.

Needs: pip install 'mldb[huggingface]'. Start it twice: python examples/huggingface_training.py
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is made here; nothing is fetched

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import mldb
from mldb.adapters.huggingface import MldbTrainer


def rows(count: int) -> list[dict[str, Any]]:
    """Eight tokens each; the class is whether the first one is large."""
    tokens = torch.randint(0, 64, (count, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": (row[0] > 31).long()} for row in tokens]


def main(folder: str, epochs: float = 2) -> Any:
    """Train to *epochs*, from the newest checkpoint where there is one; return the model."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    arguments = TrainingArguments(
        f"{folder}/trainer",
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with mldb.open(f"{folder}/store") as db:
        trainer = MldbTrainer(
            BertForSequenceClassification(config), arguments, train_dataset=rows(256), db=db
        )
        trainer.train(resume_from_checkpoint=bool(db.checkpoints()))
        loss = db.metrics("loss")
        for step, value in zip(loss.step, loss.value, strict=True):
            print(f"step {step}: loss {value:.4f}")
        for saved in db.checkpoints():
            print(f"{saved.name}: epoch {saved.epoch}, {saved.tensors} tensors, {saved.nbytes:,} B")
    return trainer.model


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "huggingface_run",
        float(sys.argv[2]) if len(sys.argv) > 2 else 2,
    )
