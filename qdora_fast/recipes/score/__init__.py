"""`evaluate MODEL --data FILE`: any model that answers, on the rows of a file.

score     the rows, what is known of their training, and the record
asking    one metric for all rows; asked with the base, alone, or of a server
"""
