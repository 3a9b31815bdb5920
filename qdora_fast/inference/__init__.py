"""Talk to what was trained: a run, an adapter's folder, or the folder of a merged model.

    opening       what lies at a path, and its model and template as they were trained
    conversation  turns that fit the model's length, and answers to them as they are written
    session       the terminal: one answer, or turns and commands until the end of input

The prompt is rendered and tokenised by the code that prepared the training rows, and an answer ends at the run's stop
tokens; so what is seen here is what was trained, and what `serve` gives.
"""

from qdora_fast.inference.conversation import Answer, Asking, Conversation, answer
from qdora_fast.inference.opening import Source, Speaker, find, load, open_source
from qdora_fast.inference.session import chat

__all__ = ["Answer", "Asking", "Conversation", "Source", "Speaker", "answer", "chat", "find", "load", "open_source"]
