"""The plugin for the Cerebras Model Zoo 2.10; the only room that imports Cerebras packages."""
