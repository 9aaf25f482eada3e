"""Task files of lm_eval: the questions that come with this project, and Arabic sets that lm_eval has no task for.

`lm_eval --include_path` finds them here too. Data sets of others are not in this folder: the files only say how to read
them. `questions.py` and `reading.py` are what the task files call.
"""
