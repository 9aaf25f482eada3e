"""The plugin for the Cerebras Model Zoo 2.10, and launches on CS systems.

Only modules here import Cerebras packages. `launch` and `preflight` are for the user node of a cluster; the others run
wherever the Model Zoo is installed. How a launch is planned does not belong here: that is in `launch`.
"""
