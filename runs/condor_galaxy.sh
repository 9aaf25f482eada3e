#!/bin/bash
# jais-family-30b from nothing to 16k tokens of context, on the CS systems of Condor Galaxy, from a user node.
#
# docs/launching.md says what must be installed and mounted first. Start it again after anything that stopped it (a node
# that went down, an end of allocation): it goes on where it stood. Run it in tmux or as a service; it takes weeks.
#
#   runs/condor_galaxy.sh [SYSTEMS]
set -euo pipefail

SYSTEMS=${1:-16}
VOLUME=${VOLUME:-/cb/$(id -un)}            # mounted by the cluster: environment, Model Zoo, data
RUN=${RUN:-$VOLUME/runs/jais-family-30b}   # checkpoints; see --dry-run for how much room they take
CONFIG=${CONFIG:-configs/jais-family-30b-16k/phases.yaml}

source "$VOLUME/venv/bin/activate"

launch() {
    cerebras-jais fit "$CONFIG" --backend csx --model-dir "$RUN" \
        --num-csx "$SYSTEMS" --workers-per-csx 1 \
        --mount-dir "$VOLUME" --python-path "$VOLUME/modelzoo/src" \
        --job-label project=jais --job-label model=family-30b --job-priority p2 "$@"
}

cerebras-jais config check "$CONFIG"

# What is done, what is left, what it takes; and whether everything is in place.
launch --dry-run

# A compile that fails should fail before systems are waited for. Its result is kept, so this costs little again.
launch --compile-only

# All three phases, each from the checkpoint of the one before. A cluster that does not answer (status 1) and a job that
# failed (status 3) are launched again, what was wrong with the launch itself (status 2) is not. Finished: nothing is
# left, with status 0.
for attempt in 1 2 3 4 5; do
    status=0
    launch || status=$?
    [[ $status -eq 1 || $status -eq 3 ]] || exit $status
    echo "attempt $attempt ended early; again in a minute" >&2
    sleep 60
done
exit $status
