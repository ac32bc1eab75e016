"""Fine-tune with the fastest settings of `transformers.Trainer`, as a reference for `bertsmith train`.

The settings are dynamic padding, texts of similar length in a batch, fused AdamW, and bf16 with ``--bf16``. The Trainer
scores each epoch and keeps the best one. The script writes test metrics, but has no checks, baselines, calibration,
intervals or report.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging


def main() -> None:
    from datasets import Dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with train.csv, validation.csv and test.csv")
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(0)
    tables = {name: pd.read_csv(given.folder / f"{name}.csv") for name in ("train", "validation", "test")}
    names = sorted(set(tables["train"]["Label"]))
    index = {name: i for i, name in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    encoded = {}
    for name, table in tables.items():
        columns = tokenizer(table["Text"].tolist(), truncation=True, max_length=given.max_length)
        encoded[name] = Dataset.from_dict({**columns, "labels": [index[label] for label in table["Label"]]})
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=len(names))

    def scores(prediction: object) -> dict[str, float]:
        found = np.argmax(prediction.predictions, axis=-1)
        f1 = f1_score(prediction.label_ids, found, average="macro", zero_division=0)
        return {"macro_f1": float(f1), "accuracy": float(accuracy_score(prediction.label_ids, found))}

    arguments = TrainingArguments(
        output_dir=str(given.output / "checkpoints"),
        num_train_epochs=given.epochs,
        per_device_train_batch_size=given.batch,
        per_device_eval_batch_size=given.batch,
        learning_rate=given.learning_rate,
        warmup_steps=0.1,
        bf16=given.bf16,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
        compute_metrics=scores,
    )
    trainer.train()
    trainer.save_model(str(given.output / "model"))
    metrics = trainer.predict(encoded["test"], metric_key_prefix="test").metrics
    (given.output / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
