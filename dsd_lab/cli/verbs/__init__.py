"""The verbs of the command line with their arguments, by kind; what they do is in `dsd_lab/cli/VERB.py`."""
