# %% [markdown]
# # From rows in memory to a tuned model
#
# Open this file as a notebook in Jupyter (with Jupytext) or VS Code, or run it: `.venv/bin/python examples/notebook.py`

# %%
from itertools import islice

import pandas

import qdora_fast
from qdora_fast.data.demo.world import rows

# %% Rows of your own: a DataFrame, a list of dictionaries, a datasets.Dataset
frame = pandas.DataFrame(list(islice(rows(), 200)))
frame.head()

# %% What becomes of them, before a weight is read
data = qdora_fast.prepare_data("demo", data={"rows": frame})
data  # noqa: B018 - a notebook shows it

# %% A bar and a curve; each step is told to a function of yours
losses: list[float] = []
run = qdora_fast.train(
    "demo",
    data={"rows": frame},
    run={"name": "notebook"},
    train={"max_steps": 20},
    evaluation={"max_rows": 8},
    export={"at_end": "none"},
    on_step=lambda step: losses.append(step["loss"]),
)

# %% The verdict, the figures, the curve
run  # noqa: B018

# %% The same as DataFrames
run.metrics()[["step", "loss"]].tail()

# %%
run.answers()[["question", "reference", "base", "tuned"]].head()

# %%
print(f"{len(losses)} steps, loss {losses[0]:.2f} to {losses[-1]:.2f}; {run.path / 'report.html'} has all of it")
