"""Evaluation by the tasks of lm_eval: the model as it sees one, the suites, task files, and a run that goes on.

`tasks` has the task files that lm_eval lacks, and the questions that come with this project. How tokens are scored is
in `scoring`, what is made of the results in `report`. Only modules of this folder import lm_eval.
"""
