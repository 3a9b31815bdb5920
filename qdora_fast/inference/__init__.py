"""Talk to what was trained: a run, an adapter's folder, or the folder of a merged model.

    loading       what can be talked to, and its model and template as they were trained
    conversation  turns that fit the model's length, and answers to them as they are written
    session       the terminal: one answer, or turns and commands until the end of input
    serve         the same model behind OpenAI's API

The prompt is rendered and tokenised by the code that prepared the training rows, and an answer ends at the run's stop
tokens; so what is seen here is what was trained, and what `serve` gives.
"""

from qdora_fast.inference.conversation import Answer, Conversation, SamplingParams, answer
from qdora_fast.inference.loading import ChatModel, Source, load_source

__all__ = ["Answer", "ChatModel", "Conversation", "SamplingParams", "Source", "answer", "load_source"]
