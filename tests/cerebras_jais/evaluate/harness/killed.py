"""Evaluate a release, killed ten times on the way; run as a program by test_run.py: RELEASE FILE.json OUTPUT.

The last run goes through. The moments are drawn over the time that a whole run takes, whose output is OUTPUT/whole.
"""

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from cerebras_jais.chat.engine import open_engine
from cerebras_jais.endpoint.record import open_record
from cerebras_jais.evaluate.harness.lm import JaisLM
from cerebras_jais.evaluate.harness.run import RECORD, load_tasks, run

release, reading, output = map(Path, sys.argv[1:])


def evaluate(folder):
    folder.mkdir(exist_ok=True)
    with open_record(folder / RECORD) as record:
        lm = JaisLM(open_engine(release), record, "model", batch_tokens=256)
        run(lm, load_tasks(["demo_ar", "demo_en", "reading"], reading=reading), folder)


began = time.monotonic()
evaluate(output / "whole")
taken = time.monotonic() - began
moments, kills = random.Random(0), 0
while kills < 10:
    child = os.fork()
    if child == 0:
        moment = moments.uniform(0, 0.9 * taken)
        killer = threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL))
        killer.daemon = True
        killer.start()
        evaluate(output / "killed")
        os._exit(0)
    moments.random()
    if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        kills += 1
    else:  # it was done before; the next one begins anew
        taken /= 2
        (output / "killed" / RECORD).unlink()
print("kills:", kills)
evaluate(output / "killed")
