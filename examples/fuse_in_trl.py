"""The fused layers in a training script of your own: plain transformers, PEFT and TRL, plus one line.

    python examples/fuse_in_trl.py

Nothing here but `qdora_fast.fuse` is ours: no Unsloth, no config, no run folder. The base is the embedded demo model
(made on first use), in NF4; put any causal model in its place.
"""

from __future__ import annotations

import os
import tempfile

import torch

import qdora_fast
from qdora_fast.data.demo.base import demo_base

ROWS = [
    {"prompt": "Question: What is the capital of Japan? Answer:", "completion": " It is Tokyo."},
    {"prompt": "Question: What is the capital of Kenya? Answer:", "completion": " It is Nairobi."},
    {"prompt": "Question: What is the capital of Norway? Answer:", "completion": " It is Oslo."},
    {"prompt": "Question: What is the capital of Peru? Answer:", "completion": " It is Lima."},
]


def main(max_steps: int = 20) -> float:
    """Train for a few steps with the fused layers; returns the last loss."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # TRL's loss is a Triton kernel; without a GPU it is interpreted
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    folder = str(demo_base())
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4)
    model = get_peft_model(base, LoraConfig(use_dora=True, r=8, target_modules="all-linear", task_type="CAUSAL_LM"))

    report = qdora_fast.fuse(model)  # the one line; prints what was fused
    assert not report.skipped

    with tempfile.TemporaryDirectory() as folder_of_run:
        arguments = SFTConfig(
            output_dir=folder_of_run,
            max_steps=max_steps,
            learning_rate=2e-3,
            report_to="none",
            per_device_train_batch_size=4,
            logging_steps=max_steps,
            max_length=128,
            gradient_checkpointing=False,
            bf16=False,
            save_strategy="no",
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        loss = float(trainer.train().training_loss)
    print(f"mean loss over {max_steps} steps: {loss:.3f}")
    return loss


if __name__ == "__main__":
    main()
