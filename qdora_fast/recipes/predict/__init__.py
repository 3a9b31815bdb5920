"""Answers to a file of rows: `predict`, and what `evaluate MODEL --data FILE` shares with it.

opened    what MODEL is: a run, an adapter, a model's folder, a base by name, a server
rows      the rows of a file, of a list or of a table in memory, and what is asked for each
progress  the answers so far, beside the file that is written, so that the same command goes on
output    the rows with their answers, in the form of the file's ending
schema    which answers are valid JSON for a schema
predict   the command
"""
