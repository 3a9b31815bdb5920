"""One file for each thing that a user can ask for, each read from top to bottom.

Only these and the command line know the whole Config; what they call gets the sections or values that it needs.
"""
