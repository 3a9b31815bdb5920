"""Numbers for `train.batch_size: auto` and `model.max_length: auto`: choice.py decides, sentences.py says why."""
