"""Running a plan: bands of rows move between files in bounded memory, each tensor gets a digest, and a run can resume.

`mapping` decides which bytes go where. Only moving them belongs here.
"""
