"""The plugin for vLLM: Jais releases in its engine and server.

Only modules here import vLLM. `plugin` runs in each of its processes and imports nothing heavy; `model` is imported
where an engine loads a Jais release; `release` needs no vLLM. Adapted releases are Llama models, which vLLM has itself.
"""
