"""A data run: from the sources of a YAML to a token store and packed training files, on a laptop, Slurm or Ray.

What belongs here is the run: its settings, the reading of sources in shards, the stages and who carries them out.
What a cleaning rule does is in `clean`; token stores, mixtures and rows are made in the folder above.
"""
