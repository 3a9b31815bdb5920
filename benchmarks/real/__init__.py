"""A small pretrained model on real sentences: what a random model cannot show (`make real`)."""
